//! The ranges that a process has mapped since the probes were in: an interval map for each process, kept
//! from the events of the mmap family in their order.

use std::collections::{BTreeMap, HashMap};

use leakprobe_common::{NO_STACK, RangeEvent, RangeOperation, Site};

use crate::drain::snapshot::{SiteKey, Snapshot, Survivor};

/// Family number of ranges, beside those of allocators.
pub const RANGE_FAMILY: u32 = u32::MAX;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    end: u64,
    /// Which mapping it is of, or a piece of: counted from 1 in its process.
    mapping: u64,
    stack: u64,
    mapped_ns: u64,
}

/// What was cut out of a range.
#[derive(Clone, Copy, Debug)]
struct Piece {
    start: u64,
    /// Its end, and what it has from the range that it was cut out of.
    range: Range,
    /// Whether nothing is left of its mapping.
    last: bool,
}

#[derive(Debug, Default)]
struct Process {
    /// By first address; they don't overlap.
    ranges: BTreeMap<u64, Range>,
    /// What the thread's last unmapping took, in case the kernel refuses it.
    last_unmapped: HashMap<u32, Vec<Piece>>,
    /// How many pieces are left of each mapping.
    pieces: HashMap<u64, u32>,
    /// Mappings so far.
    mappings: u64,
    /// The program break, once known.
    program_break: Option<u64>,
    generation: u32,
}

/// The mapped ranges of all processes.
#[derive(Debug)]
pub struct Ranges {
    page_bytes: u64,
    processes: HashMap<u32, Process>,
    totals: HashMap<SiteKey, Site>,
}

impl Ranges {
    /// No ranges yet. `page_bytes`: the machine's page size, a power of two.
    pub fn new(page_bytes: u64) -> Self {
        Self { page_bytes, processes: HashMap::new(), totals: HashMap::new() }
    }

    /// Takes in one event.
    pub fn apply(&mut self, operation: RangeOperation, event: &RangeEvent) {
        let tgid = event.head.tgid;
        let process = self.processes.entry(tgid).or_default();
        if process.generation != event.generation {
            *process = Process { generation: event.generation, ..Process::default() };
        }
        let page_up = |bytes: u64| bytes.checked_next_multiple_of(self.page_bytes).unwrap_or(bytes);
        let at_ns = event.head.at_ns;
        let start = event.address;
        let end = start.saturating_add(page_up(event.bytes));
        match operation {
            RangeOperation::Map => {
                let replaced = process.take(start, end);
                let range = process.map(start, end, event.head.a, at_ns);
                for piece in replaced {
                    give_back(&mut self.totals, tgid, piece);
                }
                book(&mut self.totals, tgid, start, range);
            }
            RangeOperation::Unmap => {
                let taken = process.take(start, end);
                for &piece in &taken {
                    give_back(&mut self.totals, tgid, piece);
                }
                process.last_unmapped.insert(event.tid, taken);
            }
            RangeOperation::Undo => {
                for piece in process.last_unmapped.remove(&event.tid).unwrap_or_default() {
                    let revived = process.insert(piece.start, piece.range);
                    let site = self
                        .totals
                        .entry(SiteKey { tgid, stack: piece.range.stack })
                        .or_insert(Site::NOTHING);
                    site.freed_bytes = site.freed_bytes.saturating_sub(piece.range.end - piece.start);
                    site.freed_blocks = site.freed_blocks.saturating_sub(u64::from(revived));
                }
            }
            RangeOperation::Break => {
                let now = page_up(start);
                match process.program_break.replace(now) {
                    Some(before) if now < before => {
                        for piece in process.take(now, before) {
                            give_back(&mut self.totals, tgid, piece);
                        }
                    }
                    Some(before) if now > before && event.head.a != NO_STACK => {
                        let range = process.map(before, now, event.head.a, at_ns);
                        book(&mut self.totals, tgid, before, range);
                    }
                    _ => {}
                }
            }
        }
    }

    /// Tells where a process's break was when the probes came in, so that its first growth counts.
    pub fn set_break(&mut self, tgid: u32, generation: u32, program_break: u64) {
        let new = || Process { generation, ..Process::default() };
        let process = self.processes.entry(tgid).or_insert_with(new);
        if process.generation == generation {
            process.program_break.get_or_insert(program_break);
        }
    }

    /// A process was forked: its break is where its parent's is.
    pub fn fork(&mut self, parent: u32, child: u32, generation: u32) {
        if let Some(program_break) = self.processes.get(&parent).and_then(|process| process.program_break) {
            self.set_break(child, generation, program_break);
        }
    }

    /// Forgets a process's ranges: it has replaced its program.
    pub fn forget(&mut self, tgid: u32) {
        self.processes.remove(&tgid);
    }

    /// Adds the mappings there are to the snapshot: each is one block as long as a piece of it is left.
    pub fn add_to(&self, snapshot: &mut Snapshot) {
        for (&tgid, process) in &self.processes {
            let mut left: HashMap<u64, (Range, u64)> = HashMap::new();
            for (&start, range) in &process.ranges {
                left.entry(range.mapping).or_insert((*range, 0)).1 += range.end - start;
            }
            for (range, bytes) in left.into_values() {
                let key = SiteKey { tgid, stack: range.stack };
                let site = snapshot.outstanding.entry(key).or_default();
                site.blocks += 1;
                site.bytes += bytes;
                site.family = RANGE_FAMILY;
                if snapshot.at_ns.saturating_sub(range.mapped_ns) >= snapshot.older_ns {
                    site.survivors.push(Survivor { allocated_ns: range.mapped_ns, bytes, weight: 1 });
                }
            }
        }
        for (key, site) in &self.totals {
            snapshot.sites.insert(key.stack, *site);
        }
    }
}

fn book(totals: &mut HashMap<SiteKey, Site>, tgid: u32, start: u64, range: Range) {
    let site = totals.entry(SiteKey { tgid, stack: range.stack }).or_insert(Site::NOTHING);
    site.allocated_blocks += 1;
    site.allocated_bytes += range.end - start;
}

/// Counts a piece as given back: its bytes, and its mapping when nothing is left of that.
fn give_back(totals: &mut HashMap<SiteKey, Site>, tgid: u32, piece: Piece) {
    let site = totals.entry(SiteKey { tgid, stack: piece.range.stack }).or_insert(Site::NOTHING);
    site.freed_bytes += piece.range.end - piece.start;
    site.freed_blocks += u64::from(piece.last);
}

impl Process {
    /// Cuts `[start, end)` out, and returns the pieces that lay in it, cut to fit.
    fn take(&mut self, start: u64, end: u64) -> Vec<Piece> {
        if start >= end {
            return Vec::new();
        }
        let first = self.ranges.range(..=start).next_back().filter(|(_, range)| range.end > start);
        let from = first.map_or(start, |(&from, _)| from);
        let hit: Vec<(u64, Range)> =
            self.ranges.range(from..end).map(|(&start, &range)| (start, range)).collect();
        hit.into_iter()
            .map(|(piece_start, piece)| {
                self.ranges.remove(&piece_start);
                let mut rests = 0;
                if piece_start < start {
                    self.ranges.insert(piece_start, Range { end: start, ..piece });
                    rests += 1;
                }
                if piece.end > end {
                    self.ranges.insert(end, piece);
                    rests += 1;
                }
                let left = self.pieces.entry(piece.mapping).or_insert(1);
                *left = (*left + rests).saturating_sub(1);
                let last = *left == 0;
                if last {
                    self.pieces.remove(&piece.mapping);
                }
                Piece {
                    start: piece_start.max(start),
                    range: Range { end: piece.end.min(end), ..piece },
                    last,
                }
            })
            .collect()
    }

    /// Adds a new mapping.
    fn map(&mut self, start: u64, end: u64, stack: u64, mapped_ns: u64) -> Range {
        self.mappings += 1;
        let range = Range { end, mapping: self.mappings, stack, mapped_ns };
        self.insert(start, range);
        range
    }

    /// Adds a piece; returns whether it is the only one of its mapping.
    fn insert(&mut self, start: u64, range: Range) -> bool {
        if start >= range.end {
            return false;
        }
        self.ranges.insert(start, range);
        let pieces = self.pieces.entry(range.mapping).or_default();
        *pieces += 1;
        *pieces == 1
    }
}

#[cfg(test)]
mod tests {
    use leakprobe_common::{Event, EventKind};

    use super::*;

    const PAGE: u64 = 4096;

    /// Runs a script: an operation, its page, its pages, its stack; on thread 7 at time 10, 20, ...
    fn run(script: &[(RangeOperation, u64, u64, u64)]) -> Ranges {
        let mut ranges = Ranges::new(PAGE);
        ranges.set_break(1, 0, 100 * PAGE);
        for (step, &(operation, page, pages, stack)) in script.iter().enumerate() {
            let head =
                Event { kind: EventKind::Range as u32, tgid: 1, at_ns: 10 * (step as u64 + 1), a: stack };
            // One byte less: the kernel rounds up.
            let bytes = (pages * PAGE).saturating_sub(1);
            let event = RangeEvent {
                head,
                address: page * PAGE,
                bytes,
                operation: operation as u32,
                tid: 7,
                generation: 0,
                _pad: 0,
            };
            ranges.apply(operation, &event);
        }
        ranges
    }

    /// (stack, blocks, pages) of each site that has some.
    fn pages(ranges: &Ranges) -> Vec<(u64, u64, u64)> {
        let mut snapshot = Snapshot::new(1_000, 0);
        ranges.add_to(&mut snapshot);
        let mut sites: Vec<_> = snapshot
            .outstanding
            .iter()
            .map(|(key, site)| (key.stack, site.blocks, site.bytes / PAGE))
            .collect();
        sites.sort_unstable();
        sites
    }

    use RangeOperation::{Break, Map, Undo, Unmap};

    #[test]
    fn unmapping_the_middle_splits_a_range() {
        assert_eq!(pages(&run(&[(Map, 10, 10, 5)])), [(5, 1, 10)]);
        assert_eq!(pages(&run(&[(Map, 10, 10, 5), (Unmap, 13, 2, 0)])), [(5, 1, 8)]);
        assert_eq!(pages(&run(&[(Map, 10, 10, 5), (Unmap, 10, 3, 0)])), [(5, 1, 7)]);
        assert_eq!(pages(&run(&[(Map, 10, 10, 5), (Unmap, 18, 9, 0)])), [(5, 1, 8)]);
        assert_eq!(pages(&run(&[(Map, 10, 10, 5), (Unmap, 5, 30, 0)])), []);
    }

    #[test]
    fn a_child_goes_on_from_its_parents_break() {
        let mut ranges = run(&[(Break, 110, 0, 5)]);
        ranges.fork(1, 2, 7);
        let grow = |ranges: &mut Ranges, tgid, generation, page: u64, stack| {
            let head = Event { kind: EventKind::Range as u32, tgid, at_ns: 1, a: stack };
            let (address, operation) = (page * PAGE, Break as u32);
            ranges.apply(
                Break,
                &RangeEvent { head, address, bytes: 0, operation, tid: tgid, generation, _pad: 0 },
            );
        };
        grow(&mut ranges, 2, 7, 114, 6);
        // Where its break was is known by now.
        ranges.set_break(2, 7, 114 * PAGE);
        grow(&mut ranges, 2, 7, 115, 6);
        // Nobody has told of another one's.
        grow(&mut ranges, 3, 9, 150, 8);
        assert_eq!(pages(&ranges), [(5, 1, 10), (6, 2, 5)]);
    }

    #[test]
    fn one_unmapping_spans_several_ranges() {
        let script = [(Map, 10, 2, 5), (Map, 12, 2, 6), (Map, 14, 2, 7), (Unmap, 11, 4, 0)];
        assert_eq!(pages(&run(&script)), [(5, 1, 1), (7, 1, 1)]);
    }

    #[test]
    fn mapping_over_a_range_replaces_that_part() {
        assert_eq!(pages(&run(&[(Map, 10, 10, 5), (Map, 12, 2, 6)])), [(5, 1, 8), (6, 1, 2)]);
    }

    #[test]
    fn a_refused_unmapping_is_undone() {
        let script = [(Map, 10, 10, 5), (Unmap, 13, 2, 0), (Undo, 0, 0, 0)];
        let ranges = run(&script);
        assert_eq!(pages(&ranges).iter().map(|site| site.2).sum::<u64>(), 10);
        let site = ranges.totals[&SiteKey { tgid: 1, stack: 5 }];
        assert_eq!((site.allocated_bytes, site.freed_bytes), (10 * PAGE, 0));
    }

    #[test]
    fn ranges_made_less_ranges_given_back_are_those_there_are() {
        let scripts: [&[(RangeOperation, u64, u64, u64)]; 6] = [
            &[(Map, 10, 10, 5), (Unmap, 13, 2, 0)],
            &[(Map, 10, 10, 5), (Unmap, 10, 2, 0)],
            &[(Map, 10, 10, 5), (Unmap, 10, 10, 0)],
            &[(Map, 10, 10, 5), (Unmap, 13, 2, 0), (Undo, 0, 0, 0)],
            &[(Map, 10, 10, 5), (Unmap, 5, 30, 0), (Undo, 0, 0, 0)],
            &[(Map, 10, 10, 5), (Map, 12, 2, 5), (Unmap, 11, 2, 0)],
        ];
        for script in scripts {
            let ranges = run(script);
            let there = pages(&ranges).iter().map(|site| site.1).sum::<u64>();
            let site = ranges.totals[&SiteKey { tgid: 1, stack: 5 }];
            assert_eq!(site.allocated_blocks - site.freed_blocks, there, "{script:?}");
            let bytes = pages(&ranges).iter().map(|site| site.2 * PAGE).sum::<u64>();
            assert_eq!(site.allocated_bytes - site.freed_bytes, bytes, "{script:?}");
        }
    }

    #[test]
    fn the_break_grows_and_shrinks() {
        assert_eq!(pages(&run(&[(Break, 108, 0, 5)])), [(5, 1, 8)]);
        assert_eq!(pages(&run(&[(Break, 108, 0, 5), (Break, 102, 0, 6)])), [(5, 1, 2)]);
        assert_eq!(pages(&run(&[(Break, 108, 0, NO_STACK), (Break, 110, 0, 5)])), [(5, 1, 2)]);
        assert_eq!(pages(&run(&[(Break, 108, 0, 5), (Break, 90, 0, 6)])), []);
    }

    #[test]
    fn what_was_never_seen_mapped_is_unmapped_without_effect() {
        assert_eq!(pages(&run(&[(Unmap, 10, 10, 0), (Map, 10, 1, 5)])), [(5, 1, 1)]);
    }
}
