//! How much work and room the unwind tables of a session may take, so that what one process has mapped, which may have been
//! made to keep us busy, leaves what the others need.

use std::collections::HashMap;

/// Bytes of call frame information that are read in a session.
const SESSION_BYTES: u64 = 1 << 30;

/// Of what the others have left, one part in so many is for a process: 128 MiB. The largest browsers have 30, rustc with LLVM
/// has 17.
const BYTES_SHARE: u64 = 8;

/// The same of the room for rows, and of that for pages of code: 1 GiB of it. A process that is alone has all.
const ROWS_SHARE: u64 = 2;
const PAGES_SHARE: u64 = 4;

/// Pages that an object may have while there are any: 4 MiB of code.
const FEW_PAGES: u64 = 64;

/// Bytes that are read before the loop goes on, which takes in events and writes reports: some 0.2 s.
const TURN: u64 = 8 << 20;

/// What an object counts for in a turn, whatever it has: it is opened, and its headers are read.
const OBJECT: u64 = 32 << 10;

/// What may be read and kept.
#[derive(Debug)]
pub struct Budget {
    bytes: Shared,
    rows: Shared,
    pages: Shared,
    /// Bytes that are left of a turn; `None` before the first one: probes wait for all tables.
    turn: Option<u64>,
}

/// What an object may take. It is to be given back by [`Budget::settle`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Bytes that may be read of it.
    pub bytes: u64,
    /// Whether they are fewer than there are for its process.
    pub is_cut: bool,
    /// Rows that it may come to.
    pub rows: usize,
}

/// Why there is no room for an object's tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Exhausted {
    /// Too many rows.
    #[error(
        "its unwind tables would take more than the room that is left to its process; raise --max-unwind-rows"
    )]
    Rows,
    /// Too much code.
    #[error("its code takes more than the room for code that is left to its process")]
    Pages,
}

impl Budget {
    /// For so many rows and pages, of a session of one process or of several.
    pub fn new(rows: usize, pages: u32, is_alone: bool) -> Self {
        let share = |share| if is_alone { 1 } else { share };
        Self {
            bytes: Shared::new(SESSION_BYTES, BYTES_SHARE),
            rows: Shared::new(rows as u64, share(ROWS_SHARE)),
            pages: Shared::new(pages.into(), share(PAGES_SHARE)),
            turn: None,
        }
    }

    /// A turn of the loop begins.
    pub fn begin_turn(&mut self) {
        self.turn = Some(TURN);
    }

    /// Begins with another process in a target's place: what the one before has taken is gone.
    pub fn begin_anew(&mut self, target: u32) {
        for shared in [&mut self.bytes, &mut self.rows, &mut self.pages] {
            shared.by_target.remove(&target);
        }
    }

    /// Whether more objects are to wait for the next turn.
    pub fn is_over(&self) -> bool {
        self.turn == Some(0)
    }

    /// What the next object of a target may take: half of the bytes that its process has left, so that none takes all.
    /// `hurried`: no more than what is left of this turn.
    pub fn grant(&mut self, target: u32, hurried: bool) -> Grant {
        let fair = self.bytes.left(target) / 2;
        let bytes = if hurried { fair.min(self.turn.unwrap_or(fair)) } else { fair };
        self.bytes.take(target, bytes);
        let rows = usize::try_from(self.rows.left(target)).unwrap_or(usize::MAX);
        Grant { bytes, is_cut: bytes < fair, rows }
    }

    /// An object has taken so many bytes of its grant.
    pub fn settle(&mut self, target: u32, grant: Grant, spent: u64) {
        self.bytes.give_back(target, grant.bytes.saturating_sub(spent));
        self.turn = self.turn.map(|turn| turn.saturating_sub(spent.max(OBJECT)));
    }

    /// Room for an object's tables.
    ///
    /// # Errors
    /// When its process has none left.
    pub fn take_room(&mut self, target: u32, rows: usize, pages: usize) -> Result<(), Exhausted> {
        let (rows, pages) = (rows as u64, pages as u64);
        if rows > self.rows.left(target) {
            return Err(Exhausted::Rows);
        }
        // A file can have any length without taking room on a disk: no object has more than half, while that is much.
        let left = self.pages.left(target);
        if pages > (left / 2).max(FEW_PAGES).min(left) {
            return Err(Exhausted::Pages);
        }
        self.rows.take(target, rows);
        self.pages.take(target, pages);
        Ok(())
    }
}

/// Something of which each process has a share.
#[derive(Debug)]
struct Shared {
    all: u64,
    /// Of what the others have left, one part in so many is for a process.
    share: u64,
    spent: u64,
    by_target: HashMap<u32, u64>,
}

impl Shared {
    fn new(all: u64, share: u64) -> Self {
        Self { all, share, spent: 0, by_target: HashMap::new() }
    }

    fn left(&self, target: u32) -> u64 {
        let own = self.by_target.get(&target).copied().unwrap_or_default();
        let others = self.spent - own;
        (self.all.saturating_sub(others) / self.share).saturating_sub(own)
    }

    fn take(&mut self, target: u32, much: u64) {
        self.spent += much;
        *self.by_target.entry(target).or_default() += much;
    }

    fn give_back(&mut self, target: u32, much: u64) {
        self.spent -= much;
        if let Some(own) = self.by_target.get_mut(&target) {
            *own -= much;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// Lets a target take what it can.
    fn exhaust(budget: &mut Budget, target: u32) -> u64 {
        let take = |_| {
            let grant = budget.grant(target, false);
            budget.settle(target, grant, grant.bytes);
            grant.bytes
        };
        (0..100).map(take).sum()
    }

    #[test]
    fn a_process_takes_its_share_and_leaves_the_others_theirs() {
        let mut budget = Budget::new(1000, 800, false);
        let first = budget.grant(7, false);
        assert_eq!(first, Grant { bytes: 64 * MIB, is_cut: false, rows: 500 });
        budget.settle(7, first, 0);
        assert!((128 * MIB - 64..=128 * MIB).contains(&exhaust(&mut budget, 7)));
        assert!(budget.grant(7, false).bytes < 64);
        let other = budget.grant(8, false);
        assert_eq!(other.bytes / MIB, (1024 - 128) / 8 / 2);
        budget.settle(8, other, 0);
        for target in 9..18 {
            exhaust(&mut budget, target);
        }
        // A process that comes after ten others that took what they could.
        assert!(budget.grant(18, false).bytes > 16 * MIB);
        for target in 20..1000 {
            exhaust(&mut budget, target);
            budget.begin_anew(target);
        }
        assert!(budget.bytes.spent <= SESSION_BYTES);
    }

    #[test]
    fn what_is_compiled_at_the_same_time_has_grants_of_its_own() {
        let mut budget = Budget::new(1000, 800, false);
        let (first, second) = (budget.grant(7, false), budget.grant(7, false));
        assert_eq!((first.bytes, second.bytes), (64 * MIB, 32 * MIB));
        budget.settle(7, first, MIB);
        budget.settle(7, second, MIB);
        assert_eq!(budget.grant(7, false).bytes, 63 * MIB);
    }

    #[test]
    fn a_turn_ends_when_its_bytes_are_read_and_there_is_none_before_the_loop() {
        let mut budget = Budget::new(1000, 800, false);
        let read = |budget: &mut Budget, bytes| {
            let grant = budget.grant(7, false);
            budget.settle(7, grant, bytes);
        };
        read(&mut budget, 20 * MIB);
        assert!(!budget.is_over());
        budget.begin_turn();
        read(&mut budget, 5 * MIB);
        assert!(!budget.is_over());
        assert_eq!(budget.grant(9, true), Grant { bytes: 3 * MIB, is_cut: true, rows: 500 });
        read(&mut budget, 5 * MIB);
        assert!(budget.is_over());
        budget.begin_turn();
        // Objects without any count too.
        (0..255).for_each(|_| read(&mut budget, 0));
        assert!(!budget.is_over());
        read(&mut budget, 0);
        assert!(budget.is_over());
    }

    #[test]
    fn room_for_tables_is_shared_unless_a_process_is_alone() {
        let mut budget = Budget::new(1000, 800, false);
        assert_eq!(budget.take_room(7, 501, 1), Err(Exhausted::Rows));
        assert_eq!(budget.take_room(7, 1, 101), Err(Exhausted::Pages));
        assert_eq!(budget.take_room(7, 400, 100), Ok(()));
        assert_eq!(budget.take_room(7, 50, 64), Ok(()));
        assert_eq!(budget.take_room(7, 50, 37), Err(Exhausted::Pages));
        assert_eq!(budget.take_room(7, 50, 36), Ok(()));
        assert_eq!(budget.take_room(7, 1, 0), Err(Exhausted::Rows));
        assert_eq!(budget.take_room(8, 250, 75), Ok(()));
        assert_eq!(budget.take_room(8, 1, 0), Err(Exhausted::Rows));
        assert_eq!(budget.grant(9, false).rows, 125);
        let mut alone = Budget::new(1000, 800, true);
        assert_eq!((alone.take_room(0, 600, 400), alone.take_room(0, 400, 0)), (Ok(()), Ok(())));
        assert_eq!(alone.take_room(0, 0, 201), Err(Exhausted::Pages));
    }
}
