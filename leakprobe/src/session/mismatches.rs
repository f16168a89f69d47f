//! Blocks of one allocator that came to another one's free.

use anyhow::Result;
use leakprobe_common::Counter;

use super::Session;
use crate::report::{
    model::{Ledger, MismatchRow, SiteKind, Warning},
    units::counted,
};

impl Session {
    /// The ways in which they came, most blocks first.
    pub(super) fn mismatches(&mut self) -> Result<Vec<MismatchRow>> {
        let mut all = self.maps.mismatches()?;
        all.sort_by_key(|(key, found)| std::cmp::Reverse((found.blocks, found.bytes, key.stack, key.caller)));
        all.truncate(self.options.top);
        let same = self.same_stacks();
        let own = |id: u64| same.get(&id).copied().unwrap_or(id);
        let rows = all.into_iter().map(|(key, found)| MismatchRow {
            pid: key.tgid,
            blocks: found.blocks,
            bytes: found.bytes,
            allocator: self.family_name(key.from),
            stack: self.stack_row(key.tgid, own(key.stack), SiteKind::Heap),
            freed_by: self.family_name(key.to),
            freed_stack: self.stack_row(key.tgid, own(key.copy_id()), SiteKind::Heap),
        });
        Ok(rows.collect())
    }

    /// An allocator family's name.
    pub(super) fn family_name(&self, family: u32) -> String {
        self.families.get(family as usize).map_or("unknown allocator", |family| family.name).to_owned()
    }
}

/// What to say of them before all else.
pub fn warning(ledger: &Ledger) -> Option<Warning> {
    let kind = Counter::Mismatched.key();
    let found = ledger.remarks.iter().find(|entry| entry.name == kind).map_or(0, |entry| entry.count);
    let text = format!(
        "{} of one allocator came to another one's free, which corrupts memory unless the one stands before the other: \
         see the mismatched frees below",
        counted(found, "block")
    );
    (found > 0).then(|| Warning { kind: kind.to_owned(), text })
}
