//! Blocks that one thread takes and another gives back.

use leakprobe_tests::pace;
use leakprobe_tests::probe::Probe;
use leakprobe_tests::report::Sums;
use leakprobe_tests::victim::Victim;

use crate::last;

/// At full size: 800,000 bytes in 200,000 blocks.
#[test]
fn eight_threads_leave_exactly_half_of_their_blocks() {
    let each = pace::share(50_000);
    let mut victim = Victim::start("threads", &[&each.to_string()]);
    let mut probe = Probe::attach(victim.pid(), &["--interval", "500ms"]);
    let expected = Sums { blocks: 4 * each, bytes: 16 * each, allocated: 8 * each, freed: 4 * each };

    victim.run("hand").check(&probe.next_report());

    // Ending threads give their caches back to the allocator: not one block more or less.
    victim.run("end");
    let reports = probe.finish();
    assert_eq!(last(&reports).sums_of(&["produce"]), expected, "{}", last(&reports).digest());
    assert_eq!(last(&reports).totals.sums(), expected, "{}", last(&reports).digest());
    assert_eq!(last(&reports).ledger.lost(), 0, "{}", last(&reports).digest());
    last(&reports).check_sums();
    victim.quit();
}
