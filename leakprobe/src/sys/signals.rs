//! Signal dispositions.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

/// Signals that come closer together are one: timeout(1) sends its signal to the process and to its group.
const TOGETHER: Duration = Duration::from_millis(500);

/// A flag that is set when an ending signal comes, for work that the event loop waits for.
///
/// # Errors
/// When the kernel refuses.
pub fn note_ending() -> io::Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        let flag = Arc::clone(&flag);
        // SAFETY: a store to an atomic may be done in a signal handler, and it cannot panic.
        unsafe {
            signal_hook_registry::register(signal as i32, move || flag.store(true, Ordering::Relaxed))?;
        }
    }
    Ok(flag)
}

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
