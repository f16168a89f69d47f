//! What the stack costs of a pair of malloc and free, on stacks of different depths: by unwind tables, by frame pointers,
//! and by the kernel's own walk along these.

use std::path::Path;

use anyhow::Context as _;

use super::{
    profiler::{NO_INTERVAL, Profiler},
    table::{Bar, Samples, Table, nanoseconds, ratio, seconds, thousands},
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
    load_a_library(&mut victim, rounds, table)
}

/// A large library: the one that the BPF toolchain of `cargo xtask setup` brings.
const LIBRARY: &str = "/usr/lib/llvm-22/lib/libLLVM.so";

/// Its tables may take so long until the probes are in place, s.
const LOADED_WITHIN: f64 = 0.5;

/// A row may take so many bytes of the kernel's memory.
const BYTES_A_ROW: f64 = 8.0;

/// How much later the probes are in place where a target has a large library mapped.
fn load_a_library(victim: &mut Victim, rounds: usize, table: &mut Table) -> anyhow::Result<()> {
    let library = Path::new(LIBRARY);
    let what = "libLLVM's tables: later in place by";
    if !library.exists() {
        table.not_applicable(what, "", format!("there is no {LIBRARY}"));
        return Ok(());
    }
    let attach = |victim: &Victim| -> anyhow::Result<(f64, u64, u64)> {
        let mut times = Samples::default();
        let (mut rows, mut bytes) = (0, 0);
        for _ in 0..rounds {
            let profiler = Profiler::start(victim.pid(), &NO_INTERVAL)?;
            times.push(profiler.own_account.as_secs_f64());
            let report = profiler.stop()?.json;
            let objects = report["stacks"].as_array().context("failed to find the stacks in a report")?;
            let sum = |what: &str| objects.iter().filter_map(|object| object[what].as_u64()).sum();
            (rows, bytes) = (sum("rows"), sum("bytes"));
        }
        Ok((times.median(), rows, bytes))
    };
    let (without, few, few_bytes) = attach(victim)?;
    victim.load_library(library)?;
    let (with, many, many_bytes) = attach(victim)?;
    let rows = (many - few) as f64;
    table.row("rows of libLLVM, and of what it needs", thousands(rows));
    let each = (many_bytes - few_bytes) as f64 / rows;
    table.barred("bytes a row", ratio(each), each, Bar::AtMost(BYTES_A_ROW), ratio);
    let later = with - without;
    table.barred(what, seconds(later), later, Bar::AtMost(LOADED_WITHIN), seconds);
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
