//! What `leakprobe --kernel` costs: a pair of kmalloc and kfree, and a machine that forks and sends.

use anyhow::ensure;
use serde_json::Value;

use super::{
    profiler::{NO_INTERVAL, Profiler},
    table::{Bar, Samples, Table, nanoseconds, ratio},
    victim::Victim,
};

/// Without stacks, leakprobe may cost this many times the floor: programs that do nothing at the same tracepoints.
const OVER_FLOOR: f64 = 2.0;

/// With `--sample`, a machine under load must keep this share of its throughput.
const KEPT: f64 = 0.9;

/// The sample that is measured.
const SAMPLE: &str = "512";

/// Pairs of one measurement.
const PAIRS: u64 = 200_000;

/// Times that one attached leakprobe is measured; the median counts.
const REPEATS: u64 = 5;

/// Length of one measurement under load, ms.
const LOAD_MS: u64 = 2_000;

/// A way of having the same job done: its name, and leakprobe's options; `None` for no leakprobe at all.
type Way = (&'static str, Option<&'static [&'static str]>);

const PAIR_WAYS: [Way; 5] = [
    ("no leakprobe", None),
    ("floor: programs that do nothing, at the same tracepoints", Some(&["--placement", "floor"])),
    ("leakprobe --kernel --no-stacks", Some(&["--no-stacks"])),
    ("leakprobe --kernel", Some(&[])),
    ("leakprobe --kernel --sample 512", Some(&["--sample", SAMPLE])),
];

/// Measures the ways in turns.
pub fn measure_pairs(rounds: usize, table: &mut Table) -> anyhow::Result<()> {
    let mut victim = Victim::start_for_kernel()?;
    let mut costs = PAIR_WAYS.map(|_| Samples::default());
    for _ in 0..rounds {
        for ((name, options), costs) in PAIR_WAYS.iter().zip(&mut costs) {
            costs.push(pair(name, *options, &mut victim)?);
        }
    }
    table.title(format!(
        "CPU time of a kmalloc/kfree pair with the system call that makes it (median of {rounds} rounds, least to most)"
    ));
    for ((name, _), costs) in PAIR_WAYS.iter().zip(&costs) {
        table.row(*name, costs.show(nanoseconds));
    }
    let [none, floor, bare, stacks, sample] = &costs;
    let over_floor = bare.per_round(floor);
    let bar = Bar::AtMost(OVER_FLOOR);
    table.barred("without stacks / floor", over_floor.show(ratio), over_floor.median(), bar, ratio);
    let added = |costs: &Samples| nanoseconds(costs.median() - none.median());
    table.row("what the empty programs add to the system call", added(floor));
    table.row("what leakprobe adds without stacks", added(bare));
    table.row("what the stack adds to that", nanoseconds(stacks.median() - bare.median()));
    table.row("what leakprobe adds with --sample 512", added(sample));
    Ok(())
}

/// One way's ns a pair, checked against what was counted.
fn pair(name: &str, options: Option<&[&str]>, victim: &mut Victim) -> anyhow::Result<f64> {
    let repeated = |victim: &mut Victim| -> anyhow::Result<f64> {
        victim.kernel_pairs(PAIRS / 10)?;
        let mut times = Samples::default();
        for _ in 0..REPEATS {
            times.push(victim.kernel_pairs(PAIRS)?);
        }
        Ok(times.median())
    };
    let Some(options) = options else { return repeated(victim) };
    let profiler = Profiler::start_on_kernel(&[&NO_INTERVAL, options].concat())?;
    let cost = repeated(victim)?;
    let report = profiler.stop()?.json;
    let hits = report["ledger"]["allocations"]["hits"].as_u64().unwrap_or(0);
    // The same address again and again, which is in a sample or is not.
    let blind = options.contains(&"floor") || options.contains(&"--sample");
    let truth = if blind { 0 } else { REPEATS * PAIRS + PAIRS / 10 };
    ensure!(hits >= truth, "failed to measure {name}: it saw {hits} allocations of at least {truth}");
    Ok(cost)
}

const LOAD_WAYS: [Way; 3] = [
    ("no leakprobe", None),
    ("leakprobe --kernel --sample 512", Some(&["--sample", SAMPLE])),
    ("leakprobe --kernel", Some(&[])),
];

/// Lets the machine fork and send at once, in turns without and with leakprobe.
pub fn measure_load(rounds: usize, table: &mut Table) -> anyhow::Result<()> {
    let mut victim = Victim::start_for_kernel()?;
    let mut forks = LOAD_WAYS.map(|_| Samples::default());
    let mut connections = LOAD_WAYS.map(|_| Samples::default());
    let mut sampled = None;
    victim.load(LOAD_MS)?;
    for _ in 0..rounds {
        for (way, (_, options)) in LOAD_WAYS.iter().enumerate() {
            let profiler =
                options.map(|options| Profiler::start_on_kernel(&[&NO_INTERVAL, options].concat()));
            let profiler = profiler.transpose()?;
            let (forked, connected) = victim.load(LOAD_MS)?;
            forks[way].push(forked * 1e3 / LOAD_MS as f64);
            connections[way].push(connected * 1e3 / LOAD_MS as f64);
            if let Some(profiler) = profiler {
                let report = profiler.stop()?.json;
                ensure!(saw_load(&report), "failed to measure under load: leakprobe saw none of it");
                if report["kernel"]["sampled_one_in"] == 512 {
                    sampled = Some(report);
                }
            }
        }
    }
    table.title(format!(
        "throughput of two busy processes, one that forks and one that connects and sends (median of {rounds} rounds)"
    ));
    let a_second = |rate: f64| format!("{rate:.0}/s");
    for (way, (name, _)) in LOAD_WAYS.iter().enumerate() {
        table.row(format!("{name}: forks"), forks[way].show(a_second));
        table.row(format!("{name}: connections"), connections[way].show(a_second));
    }
    let kept = |way: usize| {
        let (forks, connections) =
            (forks[way].per_round(&forks[0]), connections[way].per_round(&connections[0]));
        (forks.median() + connections.median()) / 2.0
    };
    let bar = Bar::AtLeast(KEPT);
    table.barred("share kept with --sample 512, of both", ratio(kept(1)), kept(1), bar, ratio);
    table.row("share kept without --sample, of both", ratio(kept(2)));
    if let Some(report) = sampled {
        let warnings = report["warnings"].as_array().cloned().unwrap_or_default();
        let said = warnings.iter().find(|warning| warning["kind"] == "sampled");
        ensure!(said.is_some(), "failed to find what was sampled in a report: {warnings:?}");
        let outcomes = report["ledger"]["allocations"]["outcomes"].as_array().cloned().unwrap_or_default();
        let count = |name: &str| {
            outcomes
                .iter()
                .find(|outcome| outcome["name"] == name)
                .and_then(|outcome| outcome["count"].as_u64())
        };
        let recorded = count("recorded").unwrap_or(0);
        table.row("recorded in a report with --sample 512", recorded.to_string());
        let said = said.and_then(|warning| warning["text"].as_str()).unwrap_or_default();
        println!(
            "it says: {said}
"
        );
    }
    Ok(())
}

/// Whether a report is of a machine that forked and sent.
fn saw_load(report: &Value) -> bool {
    report["ledger"]["allocations"]["hits"].as_u64().is_some_and(|hits| hits > 100)
}
