//! Sessions from their beginning to their end: over running processes, or a program that is started.

use std::{ffi::OsString, sync::Arc};

use anyhow::{Context as _, Result, bail};

use super::{Begun, Session, follow, trigger, watched::Watched};
use crate::{
    cli::{Options, Subject},
    launch,
    probe::features,
    sys::{limits, signals::Ending},
    target::process::Process,
};

/// Runs a session over running processes.
pub fn run_processes(options: Options, begun: Begun) -> Result<()> {
    let Subject::Processes(selection) = options.subject.clone() else { bail!("no process was named") };
    // First, so that a wrong number is told of even where nothing could be loaded.
    if let Some(refusal) = features::refusal_here() {
        bail!(refusal);
    }
    let mut processes = selection.pids.into_iter().map(Process::open).collect::<Result<Vec<_>, _>>()?;
    let ending = note_ending()?;
    let (begun, has_waited) = match trigger::wait(&options, &mut processes, &ending)? {
        trigger::Waited::NotAtAll => (begun, false),
        trigger::Waited::Until(begun, _) => (begun, true),
        trigger::Waited::ForNothing => return Ok(()),
    };
    let mut session = Session::prepare(options)?;
    session.heed(ending);
    // Who was waited for can have ended since, and others can come.
    let may_be_empty = has_waited && session.waits_for_more();
    if !has_waited {
        session.members.require_some()?;
    }
    limits::raise_open_files();
    let attached = session.attach(processes);
    if session.watched.is_empty() && attached.is_ok() && may_be_empty {
        return follow::block_on(session, None, begun).map(drop);
    }
    if let Err(error) = attached.and_then(|()| session.require_something()) {
        follow::telling_if_slow("taking the probes out again".to_owned(), || session.take_out());
        return Err(error);
    }
    follow::block_on(session, None, begun).map(drop)
}

/// Has an ending signal noted from now on.
fn note_ending() -> Result<Ending> {
    Ending::note().context("failed to set up the handling of signals")
}

impl Session {
    /// Has signals end it.
    fn heed(&mut self, ending: Ending) {
        self.unwinding.heed(Arc::clone(&ending.is_asked));
        self.ending = ending;
    }

    /// Puts probes into the processes that were named, and those that belong to what was asked for.
    fn attach(&mut self, named: Vec<Process>) -> Result<()> {
        for process in named {
            self.require_time()?;
            self.watch_one(process)?;
        }
        self.follow_ranges()?;
        for index in 0..self.watched.len() {
            self.require_time()?;
            self.learn_break(index);
            let looked = self.look_strictly(index);
            let watched = &self.watched[index];
            let has_ended = watched.process().has_ended().unwrap_or(true);
            match looked {
                Ok(true) if self.ranges.is_none() && !has_ended => watched.require_allocator()?,
                Ok(true) => {}
                // One of several that dies does not hold up the others.
                Ok(false) | Err(_) if has_ended && self.room > 1 => {
                    let text = format!("process {} ended while it was being looked at", watched.pid());
                    self.note("ended", text);
                }
                Ok(false) => bail!("process {} ended while it was being looked at", watched.pid()),
                Err(error) => return Err(error),
            }
        }
        if self.options.follow {
            self.members.search_below();
        }
        self.admit()?;
        self.require_time()
    }

    /// Refuses to begin when Ctrl-C came meanwhile.
    fn require_time(&self) -> Result<()> {
        if let Some(signal) = self.ending.signal() {
            bail!("stopped by {signal} before probes were in place; nothing was recorded");
        }
        Ok(())
    }

    /// Refuses to begin where nothing could be probed.
    fn require_something(&self) -> Result<()> {
        let Some(first) = self.watched.first() else {
            if self.notes.is_empty() {
                bail!("the processes asked for have ended before probes were in place");
            }
            let why = self.notes.iter().map(|note| note.text.as_str()).collect::<Vec<_>>().join("; ");
            bail!("none of the processes asked for can be profiled: {why}");
        };
        if self.ranges.is_none() && !self.watched.iter().any(Watched::has_allocator) {
            first.require_allocator()?;
        }
        Ok(())
    }

    /// Watches one of those that were named. One of several that dies does not hold up the others.
    fn watch_one(&mut self, process: Process) -> Result<()> {
        let (pid, start) = (process.pid(), process.start_time());
        match self.watch(process) {
            Err(_)
                if self.room > 1
                    && !Process::hold(pid).is_ok_and(|process| process.start_time() == start) =>
            {
                if let Some(target) = self.maps.target(pid)? {
                    self.maps.remove_target(pid, target.born)?;
                }
                self.note("ended", format!("process {pid} ended while it was being looked at"));
                Ok(())
            }
            watched => watched.map(drop),
        }
    }
}

/// Starts a program, runs a session over it, and returns its exit code.
pub fn run_command(options: Options, command: &[OsString], begun: Begun) -> Result<u8> {
    if let Some(refusal) = features::refusal_here() {
        bail!(refusal);
    }
    let mut session = Session::prepare(options)?;
    let held = launch::start(command)?;
    limits::raise_open_files();
    session.watch(Process::open(held.pid())?)?;
    session.follow_ranges()?;
    let started = held.run_to_entry(|| session.look(0).map(drop))?;
    // Until here a signal has its default effect, and a program that is held ends with leakprobe; what leakprobe was
    // started with ignored, the program ignores, too.
    session.heed(note_ending()?);
    follow::block_on(session, Some(started), begun)
}
