//! What a report takes when a million blocks are outstanding.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::Value;

use super::{
    process::{self, number_after},
    profiler::{NO_INTERVAL, Profiler},
    table::{Bar, Samples, Table, megabytes, seconds, thousands},
    victim::Victim,
};

/// Blocks, and the stacks that they come from in turn.
const BLOCKS: u64 = 1_000_000;
const SITES: u64 = 5_000;

/// A report must be there within this time, seconds.
const WITHIN: f64 = 1.0;

/// Memory that leakprobe may take, bytes.
const MEMORY: f64 = 250e6;

/// Long enough for a victim under probes to take all blocks before the first report or the second.
const INTERVAL: Duration = Duration::from_secs(6);

/// Measures `count` reports of one session, and the last report of another one that shows every site.
pub fn measure(count: usize, table: &mut Table) -> anyhow::Result<()> {
    let mut victim = Victim::start()?;
    let interval = format!("{}s", INTERVAL.as_secs());
    let profiler = Profiler::start(victim.pid(), &["--interval", &interval, "--older", "0"])?;
    victim.hold(BLOCKS, SITES)?;
    // Reports that fell due while the victim was still at it.
    let early = profiler.in_place.elapsed().as_secs() / INTERVAL.as_secs();
    for _ in 0..early {
        profiler.report()?;
    }
    let before = process::cpu_seconds(profiler.pid())?;
    let mut times = Samples::default();
    for number in (early + 1..).take(count) {
        // leakprobe begins a report when it is due. Each may begin a millisecond late, the timer's grain, which
        // adds up.
        let due = profiler.in_place + INTERVAL * u32::try_from(number).context("too many intervals")?;
        let report = profiler.report()?;
        check(&report.json)?;
        times.push(report.at.saturating_duration_since(due).as_secs_f64());
    }
    let processor = (process::cpu_seconds(profiler.pid())? - before) / count as f64;
    let resident = process::peak_resident_bytes(profiler.pid())? as f64;
    let maps: u64 =
        process::open_file_facts(profiler.pid())?.iter().filter_map(|facts| map_bytes(facts)).sum();
    let ended = profiler.stop()?;
    check(&ended.json)?;
    let every = every_site()?;

    table.title(format!(
        "a report of {} outstanding blocks from {} stacks (median of {count}, least to most)",
        thousands(BLOCKS as f64),
        thousands(SITES as f64)
    ));
    let bar = Bar::AtMost(WITHIN);
    let what = "from when it is due to its last byte; the bar is for all";
    table.barred(what, times.show(seconds), times.largest(), bar, seconds);
    table.row("CPU time of it", seconds(processor));
    table.row("the last one: from SIGINT to its last byte", seconds(ended.until_report.as_secs_f64()));
    table.row("the last one, when it shows all sites", seconds(every.as_secs_f64()));
    table.barred(
        "leakprobe's peak resident memory",
        megabytes(resident),
        resident,
        Bar::AtMost(MEMORY),
        megabytes,
    );
    let all = resident + maps as f64;
    let what = "the same with its BPF maps, which the kernel holds";
    table.barred(what, megabytes(all), all, Bar::AtMost(MEMORY), megabytes);
    Ok(())
}

/// Takes a report that shows every site, checks each, and tells how long it took.
fn every_site() -> anyhow::Result<Duration> {
    let mut victim = Victim::start()?;
    let top = SITES.to_string();
    let options = [&NO_INTERVAL[..], &["--older", "0", "--top", &top]].concat();
    let profiler = Profiler::start(victim.pid(), &options)?;
    victim.hold(BLOCKS, SITES)?;
    let ended = profiler.stop()?;
    check(&ended.json)?;
    let sites = ended.json["sites"].as_array().context("failed to find the sites in a report")?;
    let each = BLOCKS / SITES;
    let right = sites.iter().filter(|site| site["live_blocks"] == each && site["survivor_blocks"] == each);
    let right = right.count() as u64;
    ensure!(right == SITES, "failed to see {each} blocks at each of {SITES} sites: only {right} show them");
    Ok(ended.until_report)
}

/// All blocks and all sites are there, or the time it took means nothing.
fn check(report: &Value) -> anyhow::Result<()> {
    let totals = &report["totals"];
    let seen = [&totals["live_blocks"], &totals["survivor_blocks"], &report["sites_with_survivors"]]
        .map(Value::as_u64);
    ensure!(
        seen == [Some(BLOCKS), Some(BLOCKS), Some(SITES)],
        "failed to see {BLOCKS} live blocks, all of them survivors, at {SITES} sites: {seen:?}"
    );
    Ok(())
}

/// Memory of a BPF map as the kernel counts it, bytes; `None` for what is not a map.
fn map_bytes(facts: &str) -> Option<u64> {
    number_after(facts, "map_id:")?;
    number_after(facts, "memlock:")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_maps_count_as_maps() {
        assert_eq!(map_bytes("map_type:\t1\nmemlock:\t145555328\nmap_id:\t7743\n"), Some(145_555_328));
        assert_eq!(map_bytes("prog_type:\t2\nmemlock:\t8192\nprog_id:\t5263\n"), None);
    }

    #[test]
    fn a_report_with_a_block_less_is_refused() {
        let report = |live: u64| {
            serde_json::json!({
                "totals": { "live_blocks": live, "survivor_blocks": BLOCKS },
                "sites_with_survivors": SITES,
            })
        };
        assert!(check(&report(BLOCKS)).is_ok());
        assert!(check(&report(BLOCKS - 1)).is_err());
    }
}
