//! Tables that are too small: what they lose is counted, and said first.

use leakprobe_tests::probe::Probe;
use leakprobe_tests::victim::Victim;

use crate::last;

#[test]
fn a_full_table_of_blocks_loses_and_says_how_many() {
    let mut victim = Victim::start("leak", &[]);
    let mut probe = Probe::attach(victim.pid(), &["--max-blocks", "100", "--interval", "200ms"]);
    victim.run("leak 1000 64");
    let report = probe.next_report();
    let (recorded, full) = (report.ledger.count("recorded"), report.ledger.count("block_map_full"));
    assert_eq!(recorded + full, 1000, "{}", report.digest());
    assert!(recorded > 0 && full >= 500, "{}", report.digest());
    assert_eq!(report.totals.live_blocks, recorded, "{}", report.digest());
    assert_eq!(report.totals.live_bytes, 64 * recorded, "{}", report.digest());
    assert_eq!(report.ledger.lost(), full, "{}", report.digest());
    let first = report.warnings.first().expect("a warning");
    assert!(first.text.contains("--max-blocks"), "the first warning says what to do: {:?}", report.warnings);
    assert!(first.text.contains(&full.to_string()), "and how many: {:?}", report.warnings);

    // What was lost is unknown when it is given back; what was recorded is not.
    victim.run("free");
    let reports = probe.finish();
    let report = last(&reports);
    assert_eq!(report.totals.live_blocks, 0, "{}", report.digest());
    assert_eq!(report.ledger.count("freed"), recorded, "{}", report.digest());
    assert_eq!(report.ledger.count("free_unknown"), full, "{}", report.digest());
    victim.quit();
}

#[test]
fn a_full_table_of_stacks_keeps_the_blocks_and_says_so() {
    let mut victim = Victim::start("stacks", &[]);
    let probe = Probe::attach(victim.pid(), &["--max-stacks", "16"]);
    let truth = victim.run("stacks 8");
    let reports = probe.finish();
    let report = last(&reports);
    assert_eq!(truth.sum("blocks"), 256);
    assert_eq!((report.totals.live_blocks, report.totals.live_bytes), (256, 256 * 40), "{}", report.digest());
    report.check_sums();
    let without = report.ledger.count("stack_map_full");
    assert!(without >= 128, "{}", report.digest());
    let of = |quality: &str| {
        let sites = report.sites.iter().filter(|site| site.stack.quality == quality);
        sites.map(|site| site.live_blocks).sum::<u64>()
    };
    assert_eq!(of("not_kept"), without, "{}", report.digest());
    assert_eq!(report.sums_of(&["leaf"]).blocks, 256 - without, "{}", report.digest());
    let said = report.warnings.iter().any(|warning| warning.text.contains("--max-stacks"));
    assert!(said, "a warning says what to do: {:?}", report.warnings);
    victim.quit();
}

#[test]
fn tables_that_suffice_lose_nothing_and_warn_of_nothing_lost() {
    let mut victim = Victim::start("stacks", &[]);
    let probe = Probe::attach(victim.pid(), &[]);
    let truth = victim.run("stacks 8");
    let reports = probe.finish();
    let report = last(&reports);
    truth.check(report);
    assert_eq!(report.sites_of(&["leaf"]).count(), 256, "each way is a site");
    assert_eq!((report.ledger.lost(), report.ledger.count("stack_map_full")), (0, 0), "{}", report.digest());
    let loss = |option: &str| report.warnings.iter().any(|warning| warning.text.contains(option));
    assert!(!loss("--max-blocks") && !loss("--max-stacks"), "{:?}", report.warnings);
    victim.quit();
}

#[test]
fn sizes_outside_the_filter_are_counted_as_filtered() {
    let mut victim = Victim::start("leak", &[]);
    let probe = Probe::attach(victim.pid(), &["--min-size", "64", "--max-size", "4k"]);
    for (number, size) in [(100, 63), (110, 64), (120, 4096), (130, 4097)] {
        victim.run(&format!("leak {number} {size}"));
    }
    let reports = probe.finish();
    let report = last(&reports);
    assert_eq!(report.ledger.count("recorded"), 230, "{}", report.digest());
    assert_eq!(report.ledger.count("filtered"), 230, "{}", report.digest());
    assert_eq!(report.totals.live_blocks, 230, "{}", report.digest());
    assert_eq!(report.totals.live_bytes, 110 * 64 + 120 * 4096, "{}", report.digest());
    assert_eq!(report.ledger.lost(), 0, "what was not asked for is not lost{}", report.digest());
    victim.quit();
}

#[test]
fn fewer_sites_than_there_are_still_add_up_to_the_totals() {
    let mut victim = Victim::start("stacks", &[]);
    let probe = Probe::attach(victim.pid(), &["--top", "10"]);
    victim.run("stacks 8");
    let reports = probe.finish();
    let report = last(&reports);
    assert_eq!((report.sites.len(), report.sites_with_survivors), (10, 256));
    assert_eq!(report.totals.live_blocks, 256);
    victim.quit();
}

#[test]
fn young_blocks_are_live_and_no_survivors() {
    let mut victim = Victim::start("leak", &[]);
    let probe = Probe::attach(victim.pid(), &["--older", "1h"]);
    victim.run("leak 100 64");
    let reports = probe.finish();
    let totals = &last(&reports).totals;
    assert_eq!((totals.live_blocks, totals.live_bytes), (100, 6400));
    assert_eq!((totals.survivor_blocks, totals.survivor_bytes), (0, 0));
    victim.quit();
}
