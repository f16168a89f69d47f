//! Blocks that one thread takes and another gives back.

use leakprobe_tests::probe::Probe;
use leakprobe_tests::report::Sums;
use leakprobe_tests::victim::Victim;

use crate::last;

#[test]
fn eight_threads_leave_exactly_800_000_bytes_in_200_000_blocks() {
    let mut victim = Victim::start("threads", &[]);
    let mut probe = Probe::attach(victim.pid(), &["--interval", "500ms"]);
    let expected = Sums { blocks: 200_000, bytes: 800_000, allocated: 400_000, freed: 200_000 };

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
