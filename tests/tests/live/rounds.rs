//! Attach and detach, again and again, to a target that is busy all the while.
//!
//! `LEAKPROBE_ROUNDS` sets how many rounds; the bar is 1,000.

use std::thread;
use std::time::Duration;

use leakprobe_tests::probe::Probe;
use leakprobe_tests::victim::Victim;
use leakprobe_tests::{kernel, pace, text};

use crate::last;

fn rounds() -> u32 {
    pace::rounds(60)
}

/// The target churns on; stopped and looked at once more, its 4,000 blocks are counted exactly.
fn check_unharmed(mut victim: Victim) {
    assert!(victim.is_alive());
    text::check_whole(victim.pid());
    kernel::check_gone();
    let probe = Probe::attach(victim.pid(), &[]);
    assert!(!text::patched(victim.pid()).is_empty(), "the check sees probes where there are some");
    assert_eq!(kernel::programs().len(), 7, "and programs: {:?}", kernel::programs());
    assert!(victim.run("stop").number("note", "churned") > 0);
    let truth = victim.run("sweep");
    let reports = probe.finish();
    truth.check(last(&reports));
    assert_eq!(last(&reports).totals.live_blocks, 4000, "{}", last(&reports).digest());
    victim.run("clear");
    victim.quit();
}

#[test]
fn a_busy_target_lives_through_every_round() {
    let victim = Victim::start("churn", &["2"]);
    for _ in 0..rounds() {
        // `finish` checks the exit status, the books, and that the target's code is whole again.
        let reports = Probe::attach(victim.pid(), &[]).finish();
        assert!(last(&reports).totals.live_blocks <= 4000, "{}", last(&reports).digest());
    }
    check_unharmed(victim);
}

#[test]
fn a_busy_target_lives_through_kills_at_any_moment() {
    let mut victim = Victim::start("churn", &["2"]);
    // About half of the kills meet leakprobe while it attaches: these numbers only spread them.
    let latest = 2 * Probe::time_to_attach(victim.pid()).as_micros() as u64;
    // Numbers that are the same in every run.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for _ in 0..rounds() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let mut probe = Probe::launch(&[victim.pid()], &["--interval", "50ms"]);
        let delay = Duration::from_micros(state % latest);
        thread::sleep(delay);
        probe.kill();
        assert!(victim.is_alive(), "the target died with leakprobe killed {delay:?} after its start");
        text::check_whole(victim.pid());
    }
    check_unharmed(victim);
}
