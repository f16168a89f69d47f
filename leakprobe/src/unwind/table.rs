//! An object's rules, arranged as the BPF programs look them up.

use std::ops::Range;

use leakprobe_common::{CHUNK_ROWS, PAGE_BITS, Rule, cfa, saved};

use super::cfi::Functions;

/// Pages that an object's code may take: 2 GiB of it.
const MAX_PAGES: u64 = 1 << (31 - PAGE_BITS);

/// Bytes without call frame information that are taken for code without it, and not for what fills the room between two
/// functions. It may keep frame pointers: V8's built-in functions do, a megabyte of node.
const FOREIGN: u64 = 16;

/// What stands for a rule's index where frame pointers are to be followed, if at all.
pub const GUESS: u16 = u16::MAX;

/// Bytes without call frame information that are told of: what lies between two functions is hardly ever more.
const TOLD: u64 = 64;

/// Bytes that an entry point without call frame information is taken to have.
const ENTRY_BYTES: u64 = 64;

/// Rows of an object, sorted by address, cut into pages of 2^[`PAGE_BITS`] bytes of code. Each page begins with a row for
/// its first byte, so that none need be looked for in the page before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// Address in the object of the first page.
    pub base: u64,
    /// By page: its rows, as indices.
    pub pages: Vec<Range<usize>>,
    /// From an address in its page on, a rule: 0 for none, [`GUESS`], else one more than its index in `rules`.
    pub rows: Vec<(u16, u16)>,
    /// The rules, each once.
    pub rules: Vec<Rule>,
    /// Functions that were left out: see [`Functions::left_out`].
    pub left_out: usize,
    /// Functions that were read, those among them.
    pub read: usize,
    /// Bytes of code that nothing is known of.
    pub unknown_bytes: u64,
}

/// Why an object's rules cannot be arranged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// It has no code, or more than is looked up.
    #[error("its code takes 0 bytes, or more than 2 GiB")]
    Size,
    /// More rows in one page than there is room for.
    #[error("a page of its code has more than {CHUNK_ROWS} rows")]
    Dense,
}

impl Table {
    /// Arranges the rules of an object with code at `code`. Where nothing is known of its entry point, that is taken for
    /// the outermost function: some are written without call frame information.
    ///
    /// # Errors
    /// When the code is too large, or its rows are too dense.
    pub fn new(functions: &Functions, code: &Range<u64>, entry: Option<u64>) -> Result<Self, Unfit> {
        let base = code.start >> PAGE_BITS << PAGE_BITS;
        let count = code.end.checked_sub(base).map(|bytes| bytes.div_ceil(1 << PAGE_BITS));
        let count = count.filter(|&count| count > 0 && count <= MAX_PAGES && code.start < code.end);
        let count = count.ok_or(Unfit::Size)?;
        let mut builder = Builder {
            table: Self {
                base,
                rules: functions.rules.clone(),
                left_out: functions.left_out,
                read: functions.read,
                ..Self::default()
            },
            carried: 0,
            code: code.clone(),
        };
        let end = base + (count << PAGE_BITS);
        let mut known_to = base;
        for stretch in &functions.stretches {
            let start = stretch.start.max(base);
            if stretch.end <= base || start >= end {
                continue;
            }
            // What fills the room between two functions never runs, but an address behind it may be returned to: that of
            // `__start_context`, before which nothing is.
            if start > known_to {
                builder.gap(known_to, start, entry)?;
            }
            let rows = &functions.rows[stretch.rows.0..stretch.rows.1];
            for (index, &(address, rule)) in rows.iter().enumerate() {
                let next = rows.get(index + 1).map_or(stretch.end, |next| next.0);
                // Of a stretch that was cut short, or begins before the code.
                if address >= stretch.end || address >= end || next <= base {
                    continue;
                }
                builder.push(address.max(base), rule + 1)?;
            }
            known_to = stretch.end.min(end);
        }
        if known_to < end {
            builder.gap(known_to, end, entry)?;
        }
        builder.open_pages_to(count)?;
        let mut table = builder.table;
        table.close();
        Ok(table)
    }

    /// The rule of an address in the object, for tests and for what user space unwinds itself.
    pub fn find(&self, address: u64) -> Option<&Rule> {
        let within = address.checked_sub(self.base)?;
        let rows = &self.rows[self.pages.get(usize::try_from(within >> PAGE_BITS).ok()?)?.clone()];
        let low = (within & ((1 << PAGE_BITS) - 1)) as u16;
        let after = rows.partition_point(|row| row.0 <= low);
        let rule = rows.get(after.checked_sub(1)?)?.1;
        self.rules.get(usize::from(rule).checked_sub(1)?)
    }

    fn close(&mut self) {
        let end = self.rows.len();
        if let Some(last) = self.pages.last_mut() {
            last.end = end;
        }
    }
}

/// A table in the making.
struct Builder {
    table: Table,
    /// The rule that holds at the end of what there is.
    carried: u16,
    code: Range<u64>,
}

impl Builder {
    /// Nothing is known between two addresses, but that an entry point is outermost.
    fn gap(&mut self, from: u64, to: u64, entry: Option<u64>) -> Result<(), Unfit> {
        self.push(from, if to - from >= FOREIGN { GUESS } else { 0 })?;
        let (first, last) = (from.max(self.code.start), to.min(self.code.end));
        if last.saturating_sub(first) >= TOLD {
            self.table.unknown_bytes += last - first;
        }
        if let Some(entry) = entry.filter(|entry| (from..to).contains(entry)) {
            let outermost = Rule { cfa: cfa::STACK_POINTER, ra: saved::NOWHERE, ..Rule::default() };
            let known = self.table.rules.iter().position(|rule| *rule == outermost);
            let index = known.unwrap_or_else(|| {
                self.table.rules.push(outermost);
                self.table.rules.len() - 1
            });
            self.push(entry, u16::try_from(index + 1).map_err(|_| Unfit::Dense)?)?;
            // Such an entry point is a few instructions that call the rest.
            let end = entry.saturating_add(ENTRY_BYTES);
            if end < to {
                self.push(end, if to - end >= FOREIGN { GUESS } else { 0 })?;
            }
        }
        Ok(())
    }

    /// Opens pages until there are `count`, each with what holds at its first byte.
    fn open_pages_to(&mut self, count: u64) -> Result<(), Unfit> {
        while (self.table.pages.len() as u64) < count {
            let at = self.table.rows.len();
            if let Some(last) = self.table.pages.last_mut() {
                last.end = at;
                if at - last.start > CHUNK_ROWS {
                    return Err(Unfit::Dense);
                }
            }
            self.table.pages.push(at..at);
            self.table.rows.push((0, self.carried));
        }
        Ok(())
    }

    /// A rule holds from an address on; addresses rise.
    fn push(&mut self, address: u64, rule: u16) -> Result<(), Unfit> {
        let within = address - self.table.base;
        self.open_pages_to((within >> PAGE_BITS) + 1)?;
        let low = (within & ((1 << PAGE_BITS) - 1)) as u16;
        let carried = std::mem::replace(&mut self.carried, rule);
        match self.table.rows.last_mut() {
            // The page's first row, or one that held for no byte.
            Some(last) if last.0 == low => last.1 = rule,
            _ if carried == rule => {}
            _ => self.table.rows.push((low, rule)),
        }
        let first = self.table.pages.last().map_or(0, |page| page.start);
        if self.table.rows.len() - first > CHUNK_ROWS { Err(Unfit::Dense) } else { Ok(()) }
    }
}
