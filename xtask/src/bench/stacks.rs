//! What the stack costs of a pair of malloc and free, on stacks of different depths: by unwind tables, by frame pointers,
//! and by the kernel's own walk along these.

use super::{
    profiler::{NO_INTERVAL, Profiler},
    table::{Bar, Samples, Table, nanoseconds, ratio},
    victim::Victim,
};

/// Frames of the stacks up to `main`, both ends included; behind it are three more.
const DEPTHS: [u32; 3] = [10, 30, 100];

/// The depth that the bar is about.
const BARRED: usize = 1;

/// With warm caches, tables may cost this many times the kernel's walk.
const OVER_KERNEL: f64 = 1.5;

/// Ways to make a stack; the first makes none.
const WAYS: [(&str, &str); 4] =
    [("none", "caller"), ("tables", "auto"), ("frame pointers", "fp"), ("bpf_get_stack", "kernel")];

/// Pairs of one measurement, and before those that are measured.
const PAIRS: u64 = 10_000;
const WARM_UP: u64 = 2_000;
/// Times that one attached leakprobe is measured; the median counts.
const REPEATS: u64 = 5;

/// Measures the ways in turns.
pub fn measure(rounds: usize, table: &mut Table) -> anyhow::Result<()> {
    let mut victim = Victim::start()?;
    let mut added: [[Samples; 4]; 3] = Default::default();
    for _ in 0..rounds {
        for (depth, added) in DEPTHS.iter().zip(&mut added) {
            let mut costs = [0.0; 4];
            for (cost, (_, how)) in costs.iter_mut().zip(WAYS) {
                *cost = pair(&mut victim, how, *depth)?;
            }
            for (samples, cost) in added.iter_mut().zip(costs) {
                samples.push(cost - costs[0]);
            }
        }
    }
    table
        .title(format!("what a stack adds to a malloc/free pair (median of {rounds} rounds, least to most)"));
    for (index, (depth, added)) in DEPTHS.iter().zip(&added).enumerate() {
        for ((way, _), samples) in WAYS.iter().zip(added).skip(1) {
            table.row(format!("{depth} frames up to main, {way}"), samples.show(nanoseconds));
        }
        let [_, tables, _, kernel] = added;
        let share = tables.per_round(kernel);
        let what = format!("{depth} frames, tables / bpf_get_stack");
        if index == BARRED {
            table.barred(what, share.show(ratio), share.median(), Bar::AtMost(OVER_KERNEL), ratio);
        } else {
            table.row(what, share.show(ratio));
        }
    }
    Ok(())
}

/// ns a pair.
fn pair(victim: &mut Victim, how: &str, depth: u32) -> anyhow::Result<f64> {
    let options = [&NO_INTERVAL[..], &["--unwind", how]].concat();
    let profiler = Profiler::start(victim.pid(), &options)?;
    victim.pairs(WARM_UP, depth)?;
    let mut times = Samples::default();
    for _ in 0..REPEATS {
        times.push(victim.pairs(PAIRS, depth)?);
    }
    profiler.stop()?;
    Ok(times.median())
}
