//! What leakprobe itself uses while it watches.

use anyhow::ensure;

use super::{
    process,
    profiler::Profiler,
    table::{Bar, Table, thousands},
    victim::Victim,
};

/// Blocks outstanding, and the stacks that they come from.
const BLOCKS: u64 = 100_000;
const SITES: u64 = 5_000;

/// leakprobe may use this share of one CPU.
const SHARE: f64 = 0.02;

/// Measures its CPU time over `intervals` of the default length, each with its report: from the end of one report
/// to the end of another.
pub fn measure(intervals: usize, table: &mut Table) -> anyhow::Result<()> {
    let mut victim = Victim::start()?;
    let profiler = Profiler::start(victim.pid(), &["--older", "0"])?;
    victim.hold(BLOCKS, SITES)?;
    let first = profiler.report()?;
    let before = process::cpu_seconds(profiler.pid())?;
    let mut last = first.at;
    for _ in 0..intervals {
        let report = profiler.report()?;
        let seen = report.json["totals"]["live_blocks"].as_u64();
        ensure!(seen == Some(BLOCKS), "failed to see {BLOCKS} live blocks: {seen:?}");
        last = report.at;
    }
    let used = process::cpu_seconds(profiler.pid())? - before;
    let elapsed = (last - first.at).as_secs_f64();
    let share = used / elapsed;
    profiler.stop()?;
    table.title(format!(
        "leakprobe's own CPU time with {} live blocks from {} stacks",
        thousands(BLOCKS as f64),
        thousands(SITES as f64)
    ));
    let what = format!("over {elapsed:.0} s, reports made meanwhile: {intervals}");
    table.barred(what, percent(share), share, Bar::AtMost(SHARE), percent);
    Ok(())
}

/// `1.2% of a CPU`
fn percent(share: f64) -> String {
    format!("{:.1}% of a CPU", share * 100.0)
}
