//! The loop: reports by the clock, events as they come, until something ends the session.

use std::{
    os::unix::process::ExitStatusExt as _, process::ExitStatus, sync::mpsc::RecvTimeoutError, thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use aya::maps::{MapData, RingBuf};
use aya_log::EbpfLogger;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval_at, sleep_until},
};

use super::{
    Begun, Session,
    assemble::Occasion,
    children::{Over, tell_when_over},
    output::Reader,
};
use crate::{
    cli::Subject,
    drain::decode,
    launch::{Started, exit_code},
    probe::maps::Rings,
    sys::{ready, signals},
};

/// Time between two looks at what a process uses: the last one stands in the report when it ends.
pub(super) const SAMPLE: Duration = Duration::from_millis(500);

/// Records of the ring buffer taken in before the clock is looked at again.
const EVENTS_AT_ONCE: usize = 4096;

/// Copied stacks taken in before the clock is looked at again: more than there is room for.
const COPIES_AT_ONCE: usize = 1024;

/// What ends within this time is not spoken of.
const PATIENCE: Duration = Duration::from_secs(1);

/// Runs the loop to its end; the exit code is the started program's, where there is one.
pub fn block_on(session: Session, started: Option<Started>, begun: Begun) -> Result<u8> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("failed to start the event loop")?
        .block_on(follow(session, started, begun))
}

/// Why the loop ended.
enum End {
    AllExited,
    Asked,
    DurationOver,
    ReaderGone,
}

async fn follow(mut session: Session, mut started: Option<Started>, begun: Begun) -> Result<u8> {
    let mut ending = session.ending.listen()?;
    // Said only now that a Ctrl-C brings a last report.
    session.begin(begun)?;
    let logger = session.options.verbose.then(|| read_diagnostics(&mut session)).transpose()?;
    let Rings { events, copies } = session.rings.take().context("the ring buffers are taken")?;
    let mut events = ready::readable(events)?;
    let mut copies = ready::readable(copies)?;
    let (exited, mut exits) = mpsc::unbounded_channel();
    session.children.over = Some(exited.clone());
    for index in 0..session.watched.len() {
        await_end(&session, index, &exited)?;
    }
    let begin = Instant::now();
    let interval = session.options.interval;
    let mut reports = interval_at(begin + interval, interval);
    reports.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut samples = interval_at(begin + SAMPLE, SAMPLE);
    samples.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let deadline = session.options.duration.map(|duration| begin + duration);
    let over = async move {
        match deadline {
            Some(deadline) => sleep_until(deadline).await,
            None => std::future::pending().await,
        }
    };
    tokio::pin!(over);

    let end = loop {
        session.unwinding.begin_turn();
        tokio::select! {
            biased;
            signal = ending.first() => {
                if signal != Signal::SIGINT {
                    forward(started.as_ref(), signal);
                }
                break End::Asked
            }
            Some(over) = exits.recv() => {
                if session.options.follow {
                    // What it has made before its end has its probes, and goes on.
                    take_events(&mut session, events.get_mut())?;
                }
                take_end(&mut session, over, started.as_mut())?;
                if session.all_ended() && !session.waits_for_more() {
                    break End::AllExited;
                }
            }
            () = &mut over => break End::DurationOver,
            _ = reports.tick() => {
                if session.options.follow {
                    take_events(&mut session, events.get_mut())?;
                }
                session.take_in_children()?;
                session.look_at_all()?;
                if session.report(Occasion::Interval)? == Reader::Gone {
                    break End::ReaderGone;
                }
            }
            _ = samples.tick() => {
                session.sample();
                session.maps.sweep_kin()?;
                if session.options.follow {
                    take_events(&mut session, events.get_mut())?;
                }
                session.take_in_children()?;
                for index in session.admit()? {
                    await_end(&session, index, &exited)?;
                }
            }
            () = sleep_until(looks_due(&session)), if session.wants_to_look() => session.look_where_wanted()?,
            // Before events, which may tell that what the copies were made of is gone.
            ready = copies.readable_mut() => {
                let mut ready = ready?;
                // Those that come meanwhile make it readable again.
                ready.clear_ready();
                take_copies(&mut session, ready.get_inner_mut())?;
            }
            ready = events.readable_mut() => {
                let mut ready = ready?;
                let mut messages = Vec::new();
                let ring = ready.get_inner_mut();
                while messages.len() < EVENTS_AT_ONCE {
                    let Some(record) = ring.next() else { break };
                    messages.extend(decode::message(&record));
                }
                if messages.len() < EVENTS_AT_ONCE {
                    ready.clear_ready();
                }
                for message in messages {
                    session.handle(message)?;
                }
            }
        }
    };
    // A second Ctrl-C need not wait for the last report.
    drop(ending);
    signals::restore_defaults_soon();
    if let Some(logger) = logger {
        logger.abort();
    }
    if session.options.follow {
        take_events(&mut session, events.get_mut())?;
        session.take_in_children()?;
    }
    // One that has ended by now has, even where Ctrl-C was seen first.
    for index in 0..session.watched.len() {
        let watched = &session.watched[index];
        if !watched.has_ended() && watched.process().has_ended().unwrap_or(false) {
            let how = how_it_ended(&mut session, index, started.as_mut());
            session.end(index, how)?;
        }
    }
    session.unwinding.end_loop();
    // Before the last look, which says what is in there.
    take_copies(&mut session, copies.get_mut())?;
    session.look_at_all()?;
    session.stop()?;
    while let Some(record) = events.get_mut().next() {
        if let Some(message) = decode::message(&record) {
            session.handle(message)?;
        }
    }
    session.take_in_children()?;
    let reported = match end {
        End::ReaderGone => Ok(Reader::Gone),
        End::AllExited | End::Asked | End::DurationOver => session.report(Occasion::End),
    };
    telling_if_slow("the last report is complete; taking the probes out".to_owned(), || session.take_out());
    reported?;
    let demo = session.options.subject == Subject::Demo;
    drop(session);
    if demo {
        // It has shown what it was started for.
        forward(started.as_ref(), Signal::SIGKILL);
        return Ok(0);
    }
    match started.as_mut() {
        Some(started) => {
            let what = format!("waiting for the program, process {}, to end", started.pid());
            let status =
                telling_if_slow(what, || started.wait()).context("failed to wait for the program")?;
            Ok(exit_code(status))
        }
        None => Ok(0),
    }
}

/// Says what is being done, if it takes long.
pub(super) fn telling_if_slow<T>(what: String, work: impl FnOnce() -> T) -> T {
    let (done, is_done) = std::sync::mpsc::channel::<()>();
    let teller = thread::Builder::new().spawn(move || {
        if is_done.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
            eprintln!("leakprobe: {what}");
        }
    });
    let outcome = work();
    drop(done);
    // Who could not be given a thread is not told.
    let _ = teller.map(thread::JoinHandle::join);
    outcome
}

/// Takes in what the programs have told by now.
fn take_events(session: &mut Session, ring: &mut RingBuf<MapData>) -> Result<()> {
    for _ in 0..EVENTS_AT_ONCE {
        let Some(record) = ring.next() else { break };
        let message = decode::message(&record);
        drop(record);
        message.map_or(Ok(()), |message| session.handle(message))?;
    }
    Ok(())
}

/// Notes a process's end.
fn take_end(session: &mut Session, over: Over, started: Option<&mut Started>) -> Result<()> {
    match over {
        Over::Place(index) => {
            let how = how_it_ended(session, index, started);
            session.end(index, how)
        }
        Over::Child { pid, born } => session.child_is_over(pid, born),
    }
}

/// Takes in the copied stacks that there are.
fn take_copies(session: &mut Session, ring: &mut RingBuf<MapData>) -> Result<()> {
    for _ in 0..COPIES_AT_ONCE {
        // What is not taken fills the ring buffer, and nothing is copied any more.
        if !session.takes_copies() {
            break;
        }
        let Some(record) = ring.next() else { break };
        let mut bytes = &*record;
        if let Some(copy) = decode::copied_stack(&mut bytes) {
            session.handle_copy(copy, bytes)?;
        }
    }
    Ok(())
}

/// Has a process's end told.
fn await_end(session: &Session, index: usize, exited: &mpsc::UnboundedSender<Over>) -> Result<()> {
    let process = session.watched[index].process();
    let pidfd = process.pidfd().try_clone_to_owned().context("failed to copy a pidfd")?;
    tokio::spawn(tell_when_over(pidfd, Over::Place(index), exited.clone()));
    Ok(())
}

/// How a process ended, where that can be known: only its parent is told.
fn how_it_ended(session: &mut Session, index: usize, started: Option<&mut Started>) -> Option<String> {
    let started = started.filter(|started| started.pid() == session.watched[index].pid())?;
    started.try_wait().ok().flatten().map(in_words)
}

/// `exit status 3`, `signal 9`.
fn in_words(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => status.to_string(),
    }
}

/// When the next look at a process that has shown new frames is due.
fn looks_due(session: &Session) -> Instant {
    session.look_due().map_or_else(Instant::now, Instant::from_std)
}

/// Passes a signal on to the program that leakprobe started; Ctrl-C reaches it by the terminal.
fn forward(started: Option<&Started>, signal: Signal) {
    if let Some(started) = started
        && let Ok(pid) = i32::try_from(started.pid())
    {
        // It may have ended meanwhile.
        let _ = kill(Pid::from_raw(pid), signal);
    }
}

/// Prints what the BPF programs say with `--verbose`.
fn read_diagnostics(session: &mut Session) -> Result<tokio::task::JoinHandle<()>> {
    // A second call in one process finds the logger set.
    let _ = env_logger::Builder::new()
        .filter_level(log::LevelFilter::Warn)
        .filter_module("leakprobe", log::LevelFilter::Debug)
        .try_init();
    let logger =
        EbpfLogger::init(&mut session.loaded.ebpf).context("failed to read the BPF programs' diagnostics")?;
    let mut logger = ready::readable(logger)?;
    Ok(tokio::spawn(async move {
        while let Ok(mut ready) = logger.readable_mut().await {
            ready.get_inner_mut().flush();
            ready.clear_ready();
        }
    }))
}
