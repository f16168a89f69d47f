//! What a pair of malloc and free costs the target, on a stack of 10 frames.
//!
//! The victim counts its thread's CPU time, all of it that the kernel spends in the traps included: on a shared
//! machine, the time of a clock would count other programs, too.

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;

use super::{
    profiler::{NO_INTERVAL, Profiler},
    table::{Bar, Samples, Table, milliseconds, nanoseconds, ratio},
    victim::Victim,
};

/// Frames of the stack up to `main`, both ends included.
const FRAMES: u32 = 10;

/// leakprobe may cost this many times the floor: programs that do nothing at the same places.
const OVER_FLOOR: f64 = 1.6;

/// Probes at the symbols must cost at least this many times as much as leakprobe's own, where `free` is
/// single-stepped there.
const SYMBOL_OVER_OURS: f64 = 5.0;

/// A way of having the same job done.
struct Way {
    name: &'static str,
    /// leakprobe's options; `None` for no leakprobe at all.
    options: Option<&'static [&'static str]>,
    /// Pairs of one measurement: some hundredths of a second.
    pairs: u64,
    /// Whether allocations are recorded.
    records: bool,
}

const WAYS: [Way; 4] = [
    Way { name: "no probe", options: None, pairs: 1_000_000, records: false },
    Way {
        name: "floor: programs that do nothing, at the same places",
        options: Some(&["--placement", "floor"]),
        pairs: 20_000,
        records: false,
    },
    Way { name: "leakprobe", options: Some(&[]), pairs: 20_000, records: true },
    Way {
        name: "leakprobe with probes at the symbols",
        options: Some(&["--placement", "symbol"]),
        pairs: 5_000,
        records: true,
    },
];

/// Pairs before those that are measured.
const WARM_UP: u64 = 5_000;

/// Times that one attached leakprobe is measured; the median counts.
const REPEATS: u64 = 9;

/// Measures the ways in turns.
pub fn measure(rounds: usize, table: &mut Table) -> anyhow::Result<()> {
    let mut victim = Victim::start()?;
    let ours = free_probe(&mut victim, &[])?;
    let at_symbol = free_probe(&mut victim, &["--placement", "symbol"])?;
    let mut costs = WAYS.map(|_| Samples::default());
    let mut stops = Samples::default();
    for _ in 0..rounds {
        for (way, costs) in WAYS.iter().zip(&mut costs) {
            costs.push(cost(way, &mut victim, &mut stops)?);
        }
    }
    table.title(format!(
        "CPU time of a malloc/free pair, stack of {FRAMES} frames up to main (median of {rounds} rounds, least to most)"
    ));
    for (way, costs) in WAYS.iter().zip(&costs) {
        table.row(way.name, costs.show(nanoseconds));
    }
    let [_, floor, leakprobe, symbol] = &costs;
    let over_floor = leakprobe.per_round(floor);
    let bar = Bar::AtMost(OVER_FLOOR);
    table.barred("leakprobe / floor", over_floor.show(ratio), over_floor.median(), bar, ratio);
    let times = symbol.per_round(leakprobe);
    let what = "at the symbols / leakprobe";
    if at_symbol.single_stepped {
        let bar = Bar::AtLeast(SYMBOL_OVER_OURS);
        table.barred(what, times.show(ratio), times.median(), bar, ratio);
    } else {
        table.not_applicable(what, times.show(ratio), "free is emulated there, too");
    }
    table.row("probe on free", ours.place);
    table.row("probe on free at its symbol", at_symbol.place);
    table.row("from SIGINT to exit, few blocks", stops.show(milliseconds));
    Ok(())
}

/// One way's ns a pair, checked against what was counted.
fn cost(way: &Way, victim: &mut Victim, stops: &mut Samples) -> anyhow::Result<f64> {
    let repeated = |victim: &mut Victim| -> anyhow::Result<f64> {
        victim.pairs(WARM_UP, FRAMES)?;
        let mut times = Samples::default();
        for _ in 0..REPEATS {
            times.push(victim.pairs(way.pairs, FRAMES)?);
        }
        Ok(times.median())
    };
    let Some(options) = way.options else { return repeated(victim) };
    let profiler = Profiler::start(victim.pid(), &[&NO_INTERVAL, options].concat())?;
    let cost = repeated(victim)?;
    let ended = profiler.stop()?;
    let truth = if way.records { WARM_UP + REPEATS * way.pairs } else { 0 };
    let totals = &ended.json["totals"];
    let counted = (totals["allocated_blocks"].as_u64(), totals["freed_blocks"].as_u64());
    ensure!(
        counted == (Some(truth), Some(truth)),
        "failed to measure {}: it counted {counted:?} blocks allocated and freed, not {truth}",
        way.name
    );
    stops.push(ended.until_exit.as_secs_f64());
    Ok(cost)
}

/// Where the probe on `free` is.
struct FreeProbe {
    place: String,
    single_stepped: bool,
}

/// Checks that leakprobe sees the stack that is talked of, and finds its probe on `free`.
fn free_probe(victim: &mut Victim, options: &[&str]) -> anyhow::Result<FreeProbe> {
    let options = [&NO_INTERVAL, &["--older", "0", "--verbose"][..], options].concat();
    let profiler = Profiler::start(victim.pid(), &options)?;
    victim.keep(FRAMES)?;
    let report = profiler.stop()?.json;
    check_stack(&report)?;
    let probes = report["probes"].as_array().context("failed to find the probes in a report")?;
    let is_free = |probe: &&Value| {
        probe["symbols"].as_array().is_some_and(|names| names.iter().any(|name| name == "free"))
    };
    let probe = probes.iter().find(is_free).context("failed to find the probe on free in a report")?;
    let single_stepped = probe["single_stepped"] == true;
    Ok(FreeProbe {
        place: format!(
            "free+{} {}, {}",
            probe["symbol_offset"],
            probe["instruction"].as_str().unwrap_or_default(),
            if single_stepped { "single-stepped" } else { "emulated" }
        ),
        single_stepped,
    })
}

/// The only block comes from `pairs`, and `main` is the tenth frame.
fn check_stack(report: &Value) -> anyhow::Result<()> {
    let sites = report["sites"].as_array().context("failed to find the sites in a report")?;
    let [site] = &sites[..] else { bail!("failed to find the one site in a report: it has {}", sites.len()) };
    let frames = site["stack"]["frames"].as_array().context("failed to find a site's frames")?;
    let names: Vec<&str> =
        frames.iter().map(|frame| frame["function"].as_str().unwrap_or_default()).collect();
    let main = names.iter().position(|&name| name == "main");
    ensure!(
        names.first() == Some(&"pairs") && main == Some(FRAMES as usize - 1),
        "failed to see a stack of {FRAMES} frames from pairs up to main: {names:?}"
    );
    Ok(())
}
