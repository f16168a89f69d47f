//! A walk by rules over a copy of a stack: what the BPF programs do with the stack itself, for stacks that came through
//! code whose rules were not known yet.

use leakprobe_common::{MAX_FRAMES, Rule, StackEnd, cfa, guess, saved};

/// A thread's stack as it was, with the registers that a walk begins with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StackMemory {
    /// Address of the code.
    pub ip: u64,
    /// Stack pointer.
    pub sp: u64,
    /// Frame pointer.
    pub fp: u64,
    /// Where the return address was in a register, that.
    pub link: u64,
    /// The bits of a saved code address.
    pub mask: u64,
    /// Address of the copy's first byte.
    pub base: u64,
    /// The copy.
    pub memory: Vec<u8>,
}

/// What a walk has found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Walked {
    /// Addresses, innermost first; at most [`MAX_FRAMES`].
    pub frames: Vec<u64>,
    /// How it ended.
    pub end: StackEnd,
    /// [`guess`]'s bits of the rules that were met.
    pub guessed: u8,
}

/// In a signal frame of aarch64, how far below the interrupted address (`pc`) the link register (`regs[30]`) is, bytes.
const LINK_BELOW_INTERRUPTED: Option<u64> = if cfg!(target_arch = "aarch64") { Some(16) } else { None };

impl StackMemory {
    /// Walks. `rule_of` says what is known of an address.
    ///
    /// # Errors
    /// What `rule_of` says.
    pub fn walk<E>(&self, mut rule_of: impl FnMut(u64) -> Result<Rule, E>) -> Result<Walked, E> {
        let mut at =
            Frame { ip: self.ip, sp: self.sp, fp: self.fp, link: self.link, back: 1, interrupted: 0 };
        let mut walked = Walked { frames: Vec::new(), end: StackEnd::Truncated, guessed: 0 };
        while walked.frames.len() < MAX_FRAMES {
            walked.frames.push(at.ip);
            let rule = rule_of(at.ip.wrapping_sub(at.back))?;
            walked.guessed |= rule.is_guess;
            match self.caller(&at, &rule) {
                Ok(caller) => at = caller,
                Err(end) => {
                    walked.end = end;
                    // A zero that was read: only call frame information says for sure which frame is the last one.
                    if end == StackEnd::Base && rule.ra != saved::NOWHERE {
                        walked.guessed |= guess::FRAME_POINTER;
                    }
                    break;
                }
            }
        }
        Ok(walked)
    }

    /// A frame's caller, or how the walk ends at it.
    fn caller(&self, at: &Frame, rule: &Rule) -> Result<Frame, StackEnd> {
        if rule.ra == saved::NOWHERE {
            return Err(StackEnd::Base);
        }
        if rule.is_guess & guess::FRAME_POINTER != 0 && at.fp == 0 {
            return Err(StackEnd::Base);
        }
        let word = |address: u64| self.word(address).ok_or(StackEnd::Lost);
        let (offset, addend) = (i64::from(rule.cfa_offset), i64::from(rule.cfa_addend));
        let frame = match rule.cfa {
            cfa::STACK_POINTER => at.sp.wrapping_add_signed(offset),
            cfa::FRAME_POINTER => at.fp.wrapping_add_signed(offset),
            cfa::AT_STACK_POINTER => word(at.sp.wrapping_add_signed(offset))?.wrapping_add_signed(addend),
            cfa::AT_FRAME_POINTER => word(at.fp.wrapping_add_signed(offset))?.wrapping_add_signed(addend),
            from @ (cfa::INTERRUPTED | cfa::UNTOUCHED) if at.back == 0 || from == cfa::UNTOUCHED => {
                word(at.interrupted.wrapping_add_signed(offset))?.wrapping_add_signed(addend)
            }
            cfa::LINKAGE_TABLE => {
                let pushed = at.ip & 15 >= offset.cast_unsigned();
                at.sp.wrapping_add(if pushed { 16 } else { 8 })
            }
            _ => return Err(StackEnd::Lost),
        };
        let is_signal = rule.is_signal != 0;
        let least = at.sp.saturating_add(u64::from(rule.ra != saved::SAME));
        if frame % 8 != 0 || (frame < least && !is_signal) {
            return Err(StackEnd::Lost);
        }
        let place = |place: u8, offset: i16| {
            let from = match place {
                saved::AT_CFA => frame,
                saved::AT_STACK_POINTER => at.sp,
                saved::AT_FRAME_POINTER => at.fp,
                _ => return None,
            };
            Some(from.wrapping_add_signed(offset.into()))
        };
        let ra_at = place(rule.ra, rule.ra_offset);
        let mut link = at.link;
        if let (true, Some(below), Some(at)) = (is_signal, LINK_BELOW_INTERRUPTED, ra_at) {
            link = word(at.wrapping_sub(below))?;
        }
        let ip = match ra_at {
            Some(at) => word(at)?,
            // Used once: a caller's is on its stack.
            None => std::mem::take(&mut link),
        } & self.mask;
        let fp = match place(rule.fp, rule.fp_offset) {
            Some(at) => word(at)?,
            None => at.fp,
        };
        if ip == 0 {
            return Err(StackEnd::Base);
        }
        let interrupted = if is_signal { ra_at.unwrap_or(0) } else { at.interrupted };
        Ok(Frame { ip, sp: frame, fp, link, back: u64::from(!is_signal), interrupted })
    }

    fn word(&self, address: u64) -> Option<u64> {
        let from = usize::try_from(address.checked_sub(self.base)?).ok()?;
        let bytes = self.memory.get(from..from.checked_add(8)?)?;
        Some(u64::from_ne_bytes(bytes.try_into().ok()?))
    }
}

/// The registers in one frame.
struct Frame {
    ip: u64,
    sp: u64,
    fp: u64,
    link: u64,
    /// What is taken off `ip` to find its rule: 1 behind a call, which may be the last instruction of its function.
    back: u64,
    /// Where the last signal frame has the interrupted address.
    interrupted: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    const STACK: u64 = 0x7000;
    const CALL: Rule = Rule {
        cfa_offset: 16,
        ra_offset: -8,
        fp_offset: -16,
        cfa: cfa::STACK_POINTER,
        fp: saved::AT_CFA,
        ra: saved::AT_CFA,
        is_signal: 0,
        is_guess: 0,
        _pad: 0,
        cfa_addend: 0,
    };
    const OUTERMOST: Rule = Rule { ra: saved::NOWHERE, ..CALL };

    fn stack(words: &[u64]) -> StackMemory {
        let memory = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        StackMemory {
            ip: 0x10,
            sp: STACK,
            fp: 7,
            mask: u64::MAX,
            base: STACK,
            memory,
            ..StackMemory::default()
        }
    }

    /// Walks where code at an address has this rule.
    fn walk(stack: &StackMemory, rules: &[(u64, Rule)]) -> (Vec<u64>, StackEnd) {
        let rule_of = |address: u64| {
            let known = rules.iter().find(|(at, _)| *at == address);
            Ok::<_, ()>(known.map_or(Rule::default(), |known| known.1))
        };
        let walked = stack.walk(rule_of).expect("rules are known");
        (walked.frames, walked.end)
    }

    #[test]
    fn calls_are_followed_to_the_outermost_function() {
        // Saved frame pointer, return address; the same again.
        let stack = stack(&[0x7020, 0x20, 1, 0x30]);
        let rules = [(0xf, CALL), (0x1f, CALL), (0x2f, OUTERMOST)];
        assert_eq!(walk(&stack, &rules), (vec![0x10, 0x20, 0x30], StackEnd::Base));
        // By the frame pointer that the first function had saved.
        let by_fp = Rule { cfa: cfa::FRAME_POINTER, cfa_offset: 0, ..CALL };
        assert_eq!(walk(&stack, &[(0xf, CALL), (0x1f, by_fp), (0x2f, OUTERMOST)]).0, [0x10, 0x20, 0x30]);
        let unknown = &rules[..1];
        assert_eq!(walk(&stack, unknown), (vec![0x10, 0x20], StackEnd::Lost));
    }

    #[test]
    fn what_is_not_in_the_copy_ends_the_walk() {
        assert_eq!(walk(&stack(&[0x7020]), &[(0xf, CALL)]), (vec![0x10], StackEnd::Lost));
        let down = Rule { cfa_offset: -16, ..CALL };
        assert_eq!(walk(&stack(&[1, 2, 3]), &[(0xf, down)]), (vec![0x10], StackEnd::Lost));
        let zero = stack(&[0x7020, 0]);
        assert_eq!(walk(&zero, &[(0xf, CALL)]), (vec![0x10], StackEnd::Base));
    }

    #[test]
    fn a_stack_without_end_is_cut() {
        let words: Vec<u64> = (0..400).map(|index| if index % 2 == 0 { 1 } else { 0x10 }).collect();
        let (frames, end) = walk(&stack(&words), &[(0xf, CALL)]);
        assert_eq!((frames.len(), end), (MAX_FRAMES, StackEnd::Truncated));
    }

    #[test]
    fn what_a_signal_has_interrupted_is_not_behind_a_call() {
        let signal =
            Rule { is_signal: 1, cfa: cfa::AT_STACK_POINTER, cfa_offset: 0, fp: saved::SAME, ..CALL };
        let signal = Rule { ra: saved::AT_STACK_POINTER, ra_offset: 8, ..signal };
        if LINK_BELOW_INTERRUPTED.is_none() {
            let stack = stack(&[STACK + 16, 0x40, 0, 0x50]);
            let rules = [(0xf, signal), (0x40, CALL), (0x4f, OUTERMOST)];
            assert_eq!(walk(&stack, &rules), (vec![0x10, 0x40, 0x50], StackEnd::Base));
        }
    }
}
