//! The small program that `leakprobe demo` profiles: two leaks, a bounded cache, and churn, at known rates.
//!
//! One tick a millisecond. Each function that a stack should show is kept out of line, and uses its callee's
//! result, so that no call becomes a jump and its frame stays.

use std::{
    hint::black_box,
    os::unix::process::parent_id,
    thread,
    time::{Duration, Instant},
};

/// A leak of the demonstration, as it is written: the report is to find this again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leak {
    /// The functions on the way to the allocation, outermost first.
    pub path: &'static [&'static str],
    /// Bytes asked for in each block; the mean where they vary.
    pub bytes_per_block: u64,
    /// Blocks leaked in a second.
    pub blocks_per_second: u64,
}

/// The two leaks, the faster one first: 128,000 and 22,800 bytes per second.
pub const LEAKS: [Leak; 2] = [
    Leak {
        path: &["handle_request", "parse_headers", "remember_header"],
        bytes_per_block: 256,
        blocks_per_second: 500,
    },
    // 64, 80, ... 848 bytes, and from the beginning.
    Leak { path: &["refresh_session", "append_audit_line"], bytes_per_block: 456, blocks_per_second: 50 },
];

/// Entries that the cache (`cache_lookup`, `insert_entry`) holds at most: full after a second, then each new
/// one takes an old one's place. No leak.
pub const CACHE_ENTRIES: usize = 1000;

const CACHE_ENTRY_BYTES: usize = 512;
const TICK: Duration = Duration::from_millis(1);

/// Runs the demonstration for `duration`, or until the process that started this one is gone.
///
/// A signal on the parent's death would be simpler, but it comes at the death of the parent's *thread*.
pub fn run_victim(duration: Duration) {
    let (parent, start) = (parent_id(), Instant::now());
    let mut cache = new_cache();
    for tick in 0_u32.. {
        let due = TICK * tick;
        if due >= duration || parent_id() != parent {
            break;
        }
        // After a delay the ticks are made up for, so that the rates hold.
        thread::sleep(due.saturating_sub(start.elapsed()));
        black_box(run_tick(tick, &mut cache));
    }
}

type Cache = Vec<Option<Box<[u8]>>>;

fn new_cache() -> Cache {
    vec![None; CACHE_ENTRIES]
}

/// One millisecond's work; returns the sizes of the blocks leaked on the two paths.
fn run_tick(tick: u32, cache: &mut Cache) -> [Option<usize>; 2] {
    let header = tick.is_multiple_of(2).then(|| handle_request(tick));
    let line = tick.is_multiple_of(20).then(|| refresh_session(tick / 20));
    black_box(cache_lookup(cache, tick));
    for _ in 0..4 {
        black_box(render_response(tick));
    }
    [header, line]
}

#[inline(never)]
fn handle_request(tick: u32) -> usize {
    black_box(parse_headers(tick))
}

#[inline(never)]
fn parse_headers(tick: u32) -> usize {
    black_box(remember_header(tick as u8))
}

#[inline(never)]
fn remember_header(byte: u8) -> usize {
    let header = black_box(vec![byte | 1; 256]);
    header.leak().len()
}

#[inline(never)]
fn refresh_session(number: u32) -> usize {
    black_box(append_audit_line(number))
}

#[inline(never)]
fn append_audit_line(number: u32) -> usize {
    let line = black_box("x".repeat(64 + 16 * (number as usize % 50)));
    line.leak().len()
}

#[inline(never)]
fn cache_lookup(cache: &mut Cache, key: u32) -> usize {
    black_box(insert_entry(cache, key))
}

#[inline(never)]
fn insert_entry(cache: &mut Cache, key: u32) -> usize {
    let entry = black_box(vec![key as u8 | 1; CACHE_ENTRY_BYTES]).into_boxed_slice();
    cache[key as usize % CACHE_ENTRIES] = Some(entry);
    CACHE_ENTRY_BYTES
}

#[inline(never)]
fn render_response(tick: u32) -> usize {
    black_box(format_body(tick))
}

#[inline(never)]
fn format_body(tick: u32) -> usize {
    black_box(vec![tick as u8 | 1; 4096]).len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_of_ticks_leaks_what_the_table_says() {
        let mut cache = new_cache();
        let leaked: Vec<_> = (0..1000).map(|tick| run_tick(tick, &mut cache)).collect();
        for (path, leak) in LEAKS.iter().enumerate() {
            let sizes: Vec<_> = leaked.iter().filter_map(|blocks| blocks[path]).collect();
            assert_eq!(sizes.len() as u64, leak.blocks_per_second, "{leak:?}");
            assert_eq!(sizes.iter().sum::<usize>() as u64 / leak.blocks_per_second, leak.bytes_per_block);
        }
        assert!(cache.iter().all(Option::is_some), "the cache is full after a second");
    }

    #[test]
    fn it_ends_when_its_time_is_over() {
        run_victim(Duration::ZERO);
        run_victim(TICK);
    }
}
