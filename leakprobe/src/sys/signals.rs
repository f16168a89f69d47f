//! The signals that end a session: Ctrl-C, SIGTERM, and SIGHUP unless it is ignored, as under nohup.

use std::{
    io,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, raise, sigaction};
use tokio::signal::unix::{self, SignalKind};

use super::clock;

/// Signals that come closer together are one: timeout(1) sends its signal to the process and to its group.
const TOGETHER: Duration = Duration::from_millis(500);

/// The signals, SIGHUP last.
const ALL: [Signal; 3] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP];

/// Those that are heeded.
fn heeded() -> &'static [Signal] {
    static IS_HANGUP_IGNORED: OnceLock<bool> = OnceLock::new();
    let is_ignored = || {
        let status = procfs::process::Process::myself().and_then(|process| process.status());
        status.is_ok_and(|status| status.sigign & (1 << (Signal::SIGHUP as u32 - 1)) != 0)
    };
    let number = if *IS_HANGUP_IGNORED.get_or_init(is_ignored) { 2 } else { 3 };
    &ALL[..number]
}

/// Whether an ending signal has come.
#[derive(Clone, Debug, Default)]
pub struct Ending {
    /// Set when one has come, for work that is to stop then and does not care which.
    pub is_asked: Arc<AtomicBool>,
    /// Which one; 0: none.
    signal: Arc<AtomicI32>,
}

impl Ending {
    /// Takes note of them from now on. A later one has its default effect, but for one that belongs to the first.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn note() -> io::Result<Self> {
        let ending = Self::default();
        let first_ns = Arc::new(AtomicU64::new(0));
        for &signal in heeded() {
            let (ending, first_ns) = (ending.clone(), Arc::clone(&first_ns));
            // SAFETY: loads and stores of atomics, the clock, sigaction and raise may be used in a signal handler, and none of
            // them can panic; what is heeded is known by now.
            unsafe {
                signal_hook_registry::register(signal as i32, move || {
                    let now_ns = clock::monotonic_ns();
                    match first_ns.compare_exchange(0, now_ns, Ordering::Relaxed, Ordering::Relaxed) {
                        Ok(_) => {
                            ending.signal.store(signal as i32, Ordering::Relaxed);
                            ending.is_asked.store(true, Ordering::Relaxed);
                        }
                        Err(first_ns) if now_ns.saturating_sub(first_ns) >= TOGETHER.as_nanos() as u64 => {
                            restore_defaults();
                            // Its effect comes when this returns.
                            let _ = raise(signal);
                        }
                        Err(_) => {}
                    }
                })?;
            }
        }
        Ok(ending)
    }

    /// The signal, if one has come.
    pub fn signal(&self) -> Option<Signal> {
        Signal::try_from(self.signal.load(Ordering::Relaxed)).ok()
    }

    /// A wait for the first signal, in an event loop.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn listen(&self) -> io::Result<Listener> {
        let hangup = heeded().contains(&Signal::SIGHUP).then(|| unix::signal(SignalKind::hangup()));
        Ok(Listener {
            ending: self.clone(),
            interrupt: unix::signal(SignalKind::interrupt())?,
            terminate: unix::signal(SignalKind::terminate())?,
            hangup: hangup.transpose()?,
        })
    }
}

/// Waits for the first signal.
#[derive(Debug)]
pub struct Listener {
    ending: Ending,
    interrupt: unix::Signal,
    terminate: unix::Signal,
    hangup: Option<unix::Signal>,
}

impl Listener {
    /// The first signal: at once, if it has come.
    pub async fn first(&mut self) -> Signal {
        let Self { ending, interrupt, terminate, hangup } = self;
        loop {
            // It was noted before the runtime was told.
            if let Some(signal) = ending.signal() {
                return signal;
            }
            let hung_up = async {
                match hangup {
                    Some(hangup) => hangup.recv().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                _ = hung_up => {}
            }
        }
    }
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
    for &signal in heeded() {
        // SAFETY: the default disposition runs no code of ours.
        let _ = unsafe { sigaction(signal, &default) };
    }
}
