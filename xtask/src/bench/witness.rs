//! Whether what `leakprobe --kernel` ranks first on a healthy, busy machine is borne out by the kernel's own account.

use anyhow::{Context as _, ensure};
use serde_json::Value;

use super::{
    profiler::Profiler,
    table::{Bar, Table},
    victim::Victim,
};

/// Sites that are looked at in each report: the first ones.
const FIRST: usize = 5;

/// Length of one stretch of load, ms; there are two of them between reports.
const STRETCH_MS: u64 = 30_000;

/// Keeps the machine busy for so many minutes, and compares each minute's report with /proc/slabinfo.
pub fn measure(minutes: usize, table: &mut Table) -> anyhow::Result<()> {
    let mut victim = Victim::start_for_kernel()?;
    let profiler = Profiler::start_on_kernel(&["--interval", "60s"])?;
    let (mut compared, mut without_a_cache, mut contradicted) = (0, 0, Vec::new());
    for _ in 0..minutes {
        for _ in 0..2 {
            victim.busy(STRETCH_MS)?;
        }
        let report = profiler.report()?.json;
        let caches =
            report["kernel"]["caches"].as_array().context("failed to find the caches in a report")?;
        let sites = report["sites"].as_array().context("failed to find the sites in a report")?;
        ensure!(
            sites.len() >= FIRST,
            "failed to compare: a busy machine has {} sites with survivors",
            sites.len()
        );
        for site in sites.iter().take(FIRST) {
            match growth(site, caches) {
                None => without_a_cache += 1,
                Some((traced, by_slabinfo)) => {
                    compared += 1;
                    if site["contradiction"].is_string() || by_slabinfo <= 0 {
                        contradicted.push(format!("{}: {traced} traced, {by_slabinfo}", site["allocator"]));
                    }
                }
            }
        }
    }
    profiler.stop()?;
    table.title(format!(
        "{minutes} minutes of files, network and forks: the first {FIRST} sites of each minute's report"
    ));
    table.row("compared with their cache in /proc/slabinfo", compared.to_string());
    table.row("of a cache that is not shown, or of none", without_a_cache.to_string());
    let count = contradicted.len() as f64;
    table.barred(
        "contradicted, or of a cache that has not grown",
        count.to_string(),
        count,
        Bar::AtMost(0.0),
        |most| format!("{most:.0}"),
    );
    for line in contradicted {
        table.row("  contradicted", line);
    }
    Ok(())
}

/// Objects that a site holds, and by how many its cache grew by /proc/slabinfo; `None` where it is not in the table.
fn growth(site: &Value, caches: &[Value]) -> Option<(i64, i64)> {
    let cache = caches.iter().find(|cache| cache["name"] == site["allocator"])?;
    Some((site["live_blocks"].as_i64()?, cache["slabinfo_change"].as_i64()?))
}
