//! Call frame information: what compilers write so that a stack can be unwound at any instruction.
//!
//! It comes from a file of the target's, and is not trusted: every read is checked, each byte of a section is read once
//! (those that functions share a bounded number of times), and what is kept of it is bounded.

pub mod entries;
mod expression;
mod program;
mod reader;

use std::{
    collections::HashMap,
    ops::Range,
    sync::atomic::{AtomicBool, Ordering},
};

use leakprobe_common::Rule;

use self::{
    entries::{Entries, Entry, Section},
    program::State,
};
use crate::probe::plan::Arch;

/// Damaged information: cut short, or of a form that does not exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("damaged call frame information")]
pub struct Damaged;

/// What an object's information may come to.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Rows in all.
    pub rows: usize,
    /// Different rules.
    pub rules: usize,
}

/// Why a section is not used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// More rows than the limit.
    #[error("it has more than {0} rows")]
    Rows(usize),
    /// More different rules than the limit.
    #[error("it has more than {0} different rules")]
    Rules(usize),
    /// Most functions are left out; the rest was not looked at, or there is none.
    #[error("{left_out} of its first {read} functions are described in a damaged or unknown way")]
    LeftOut {
        /// How many.
        left_out: usize,
        /// Of so many.
        read: usize,
    },
    /// It was not waited for.
    #[error("it was not waited for")]
    Stopped,
}

/// Functions that may be left out whatever their share: compilers leave none, and what is written by hand is little.
const FEW_LEFT_OUT: usize = 1000;

/// Functions read before somebody who waits for the end is looked for again.
const AT_ONCE: usize = 1024;

/// The rules of an object's functions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Functions {
    /// Stretches of code, sorted by address, not overlapping.
    pub stretches: Vec<Stretch>,
    /// Rows of the stretches: from an address on, a rule by its index in `rules`.
    pub rows: Vec<(u64, u16)>,
    /// The rules, each once.
    pub rules: Vec<Rule>,
    /// Functions that were left out, because what describes them is damaged or of an unknown kind.
    pub left_out: usize,
    /// Functions that were read, those among them.
    pub read: usize,
}

/// A function's code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stretch {
    /// First address.
    pub start: u64,
    /// First address behind it.
    pub end: u64,
    /// Its rows, as indices.
    pub rows: (usize, usize),
}

/// Reads the rules of all functions of a section that lie in an object's `code`, until `stop` is set.
///
/// # Errors
/// When there are too many, or most of them are left out: a few good ones among thousands of others are no compiler's work,
/// and the others take their time.
pub fn functions(
    section: Section<'_>,
    arch: Arch,
    code: &Range<u64>,
    limits: Limits,
    stop: &AtomicBool,
) -> Result<Functions, Unusable> {
    let mut all = Functions::default();
    let mut numbers = Numbers::default();
    let mut initials = HashMap::new();
    let (mut read, mut left_out) = (0, 0);
    for entry in Entries::new(section) {
        read += 1;
        if read % AT_ONCE == 0 && stop.load(Ordering::Relaxed) {
            return Err(Unusable::Stopped);
        }
        let ran = entry.and_then(|entry| {
            // Of code that the linker has thrown away, in `.debug_frame`.
            if entry.start >= entry.end || entry.end <= code.start || entry.start >= code.end {
                return Ok(Ok(()));
            }
            let initial = *initials
                .entry(entry.common_at)
                .or_insert_with(|| program::initial(&entry.common, arch).ok());
            add(&mut all, &mut numbers, &entry, initial.ok_or(Damaged)?, arch, limits)
        });
        match ran {
            Ok(kept) => kept?,
            Err(Damaged) => left_out += 1,
        }
        if left_out > FEW_LEFT_OUT && left_out > read / 2 {
            return Err(Unusable::LeftOut { left_out, read });
        }
    }
    if all.stretches.is_empty() && left_out > 0 {
        return Err(Unusable::LeftOut { left_out, read });
    }
    (all.left_out, all.read) = (left_out, read);
    all.sort();
    Ok(all)
}

/// Adds a function's rows, none where what describes it is damaged; inside, whether there was room for them.
fn add<'a>(
    all: &mut Functions,
    numbers: &mut Numbers,
    entry: &Entry<'a>,
    initial: State<'a>,
    arch: Arch,
    limits: Limits,
) -> Result<Result<(), Unusable>, Damaged> {
    let first = all.rows.len();
    let mut kept = Ok(());
    let ran = program::run(&entry.common, arch, initial, entry.start, entry.instructions, |address, rule| {
        if address >= entry.end || kept.is_err() {
            return;
        }
        let number = numbers.of(rule, &mut all.rules);
        if all.rules.len() > limits.rules {
            kept = Err(Unusable::Rules(limits.rules));
        } else if all.rows.len() >= limits.rows {
            kept = Err(Unusable::Rows(limits.rows));
        } else if all.rows.len() == first || all.rows.last().is_some_and(|last| last.1 != number) {
            all.rows.push((address, number));
        }
    });
    if ran.is_err() {
        all.rows.truncate(first);
    } else if kept.is_ok() {
        all.stretches.push(Stretch { start: entry.start, end: entry.end, rows: (first, all.rows.len()) });
    }
    ran.map(|()| kept)
}

/// The numbers of rules that were met. Nearly every row's rule is one met shortly before, and is looked for where it would
/// be remembered: hashing each one, so that chosen keys cannot collide, was half of what compiling took.
struct Numbers {
    all: HashMap<Rule, u16>,
    recent: [(Rule, u16); RECENT],
}

const RECENT: usize = 256;

impl Default for Numbers {
    fn default() -> Self {
        // No rule of a file's is a guess.
        let nothing = Rule { is_guess: 1, ..Rule::default() };
        Self { all: HashMap::new(), recent: [(nothing, 0); RECENT] }
    }
}

impl Numbers {
    /// A rule's number, which is its index in `rules`; a new one is put there.
    fn of(&mut self, rule: Rule, rules: &mut Vec<Rule>) -> u16 {
        let kinds = (u32::from(rule.cfa) << 4) ^ (u32::from(rule.fp) << 2) ^ u32::from(rule.ra);
        let place = (rule.cfa_offset.cast_unsigned() >> 3) ^ (kinds << 5);
        let recent = &mut self.recent[place as usize % RECENT];
        if recent.0 != rule {
            let number = *self.all.entry(rule).or_insert_with(|| {
                rules.push(rule);
                u16::try_from(rules.len() - 1).unwrap_or(u16::MAX)
            });
            *recent = (rule, number);
        }
        recent.1
    }
}

impl Functions {
    /// Adds the functions of another section that are not here yet.
    ///
    /// # Errors
    /// When there are too many: then none is added.
    pub fn merge(&mut self, more: Self, limits: Limits) -> Result<(), Unusable> {
        if self.stretches.is_empty() {
            *self = more;
            return Ok(());
        }
        let (known, known_rows, known_rules) = (self.stretches.len(), self.rows.len(), self.rules.len());
        let mut numbers: HashMap<Rule, u16> = self.rules.iter().copied().zip(0..).collect();
        for stretch in more.stretches {
            let before = &self.stretches[..known];
            let next = before.partition_point(|known| known.end <= stretch.start);
            if before.get(next).is_some_and(|known| known.start < stretch.end) {
                continue;
            }
            let first = self.rows.len();
            for &(address, rule) in &more.rows[stretch.rows.0..stretch.rows.1] {
                let rule = more.rules[usize::from(rule)];
                let next = self.rules.len();
                let number = *numbers.entry(rule).or_insert(next as u16);
                if usize::from(number) == next {
                    self.rules.push(rule);
                }
                self.rows.push((address, number));
            }
            if self.rules.len() > limits.rules || self.rows.len() > limits.rows {
                let unusable = match self.rules.len() > limits.rules {
                    true => Unusable::Rules(limits.rules),
                    false => Unusable::Rows(limits.rows),
                };
                self.stretches.truncate(known);
                self.rows.truncate(known_rows);
                self.rules.truncate(known_rules);
                return Err(unusable);
            }
            self.stretches.push(Stretch { rows: (first, self.rows.len()), ..stretch });
        }
        self.left_out += more.left_out;
        self.read += more.read;
        self.sort();
        Ok(())
    }

    /// Adds a function of one rule.
    pub fn add(&mut self, code: Range<u64>, rule: Rule) {
        let number = self.rules.len() as u16;
        self.rules.push(rule);
        self.rows.push((code.start, number));
        let rows = (self.rows.len() - 1, self.rows.len());
        self.stretches.push(Stretch { start: code.start, end: code.end, rows });
        self.sort();
    }

    /// Sorts the stretches; of those that overlap, the one that begins first is cut short.
    fn sort(&mut self) {
        self.stretches.sort_by_key(|stretch| stretch.start);
        for index in 1..self.stretches.len() {
            let start = self.stretches[index].start;
            let before = &mut self.stretches[index - 1];
            before.end = before.end.min(start);
        }
        self.stretches.retain(|stretch| stretch.start < stretch.end);
    }
}
