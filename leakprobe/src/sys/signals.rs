//! Signal dispositions.

use std::{thread, time::Duration};

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

/// Signals that come closer together are one: timeout(1) sends its signal to the process and to its group.
const TOGETHER: Duration = Duration::from_millis(500);

/// Gives the ending signals back their default effect a moment from now, so that a second Ctrl-C ends the
/// program at once. The async runtime leaves its handlers in place when nobody listens any more.
pub fn restore_defaults_soon() {
    // Whoever cannot be given a thread waits for the last report.
    let _ = thread::Builder::new().spawn(|| {
        thread::sleep(TOGETHER);
        restore_defaults();
    });
}

fn restore_defaults() {
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        // SAFETY: the default disposition runs no code of ours.
        let _ = unsafe { sigaction(signal, &default) };
    }
}
