//! Call frame information: what compilers write so that a stack can be unwound at any instruction.
//!
//! It comes from a file of the target's, and is not trusted: every read is checked, each byte of a section is read once
//! (those that functions share a bounded number of times), and what is kept of it is bounded.

pub mod entries;
mod expression;
mod program;
mod reader;

use std::{collections::HashMap, ops::Range};

use leakprobe_common::Rule;

use self::entries::{Section, each};
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

/// Why an object's information is not used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TooMuch {
    /// More rows than the limit.
    #[error("its call frame information has more than {0} rows")]
    Rows(usize),
    /// More different rules than the limit.
    #[error("its call frame information has more than {0} different rules")]
    Rules(usize),
}

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

/// Reads the rules of all functions of a section.
///
/// # Errors
/// When there are too many.
pub fn functions(section: Section<'_>, arch: Arch, limits: Limits) -> Result<Functions, TooMuch> {
    let mut all = Functions::default();
    let mut numbers = Numbers::default();
    let mut initials = HashMap::new();
    let mut too_much = None;
    let mut damaged = 0;
    let left_out = each(section, |entry| {
        if too_much.is_some() || entry.start >= entry.end {
            return;
        }
        let initial =
            *initials.entry(entry.common_at).or_insert_with(|| program::initial(&entry.common, arch).ok());
        let Some(initial) = initial else {
            damaged += 1;
            return;
        };
        let first = all.rows.len();
        let ran =
            program::run(&entry.common, arch, initial, entry.start, entry.instructions, |address, rule| {
                if address >= entry.end || too_much.is_some() {
                    return;
                }
                let number = numbers.of(rule, &mut all.rules);
                if all.rules.len() > limits.rules {
                    too_much = Some(TooMuch::Rules(limits.rules));
                } else if all.rows.len() >= limits.rows {
                    too_much = Some(TooMuch::Rows(limits.rows));
                } else if all.rows.len() == first || all.rows.last().is_some_and(|last| last.1 != number) {
                    all.rows.push((address, number));
                }
            });
        if ran.is_err() {
            damaged += 1;
            all.rows.truncate(first);
            return;
        }
        all.stretches.push(Stretch { start: entry.start, end: entry.end, rows: (first, all.rows.len()) });
    });
    if let Some(too_much) = too_much {
        return Err(too_much);
    }
    all.left_out = left_out + damaged;
    all.sort();
    Ok(all)
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
    /// When there are too many.
    pub fn merge(&mut self, more: Self, limits: Limits) -> Result<(), TooMuch> {
        if self.stretches.is_empty() {
            *self = Self { left_out: self.left_out + more.left_out, ..more };
            return Ok(());
        }
        let known = self.stretches.clone();
        let mut numbers: HashMap<Rule, u16> = self.rules.iter().copied().zip(0..).collect();
        for stretch in more.stretches {
            let next = known.partition_point(|known| known.end <= stretch.start);
            if known.get(next).is_some_and(|known| known.start < stretch.end) {
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
            if self.rules.len() > limits.rules {
                return Err(TooMuch::Rules(limits.rules));
            }
            if self.rows.len() > limits.rows {
                return Err(TooMuch::Rows(limits.rows));
            }
            self.stretches.push(Stretch { rows: (first, self.rows.len()), ..stretch });
        }
        self.left_out += more.left_out;
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
