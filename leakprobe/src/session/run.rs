//! Sessions from their beginning to their end: over running processes, or a program that is started.

use std::ffi::OsString;

use anyhow::{Result, bail};

use super::{Begun, Session, follow, trigger, watched::Watched};
use crate::{
    cli::{Options, Subject},
    launch,
    probe::features,
    sys::limits,
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
    let (begun, has_waited) = match trigger::wait(&options, &mut processes)? {
        trigger::Waited::NotAtAll => (begun, false),
        trigger::Waited::Until(begun, _) => (begun, true),
        trigger::Waited::ForNothing => return Ok(()),
    };
    let mut session = Session::prepare(options)?;
    // Who was waited for can have ended since, and others can come.
    let may_be_empty = has_waited && session.waits_for_more();
    if !has_waited {
        session.members.require_some()?;
    }
    limits::raise_open_files();
    for process in processes {
        session.watch_one(process)?;
    }
    session.follow_ranges()?;
    for index in 0..session.watched.len() {
        session.learn_break(index);
        let looked = session.look_strictly(index);
        let watched = &session.watched[index];
        let has_ended = watched.process().has_ended().unwrap_or(true);
        match looked {
            Ok(true) if session.ranges.is_none() && !has_ended => watched.require_allocator()?,
            Ok(true) => {}
            // One of several that dies does not hold up the others.
            Ok(false) | Err(_) if has_ended && session.room > 1 => {
                let text = format!("process {} ended while it was being looked at", watched.pid());
                session.note("ended", text);
            }
            Ok(false) => bail!("process {} ended while it was being looked at", watched.pid()),
            Err(error) => return Err(error),
        }
    }
    if session.options.follow {
        session.members.search_below();
    }
    session.admit()?;
    if session.watched.is_empty() && may_be_empty {
        return follow::block_on(session, None, begun).map(drop);
    }
    if session.watched.is_empty() && session.notes.is_empty() {
        bail!("the processes asked for have ended before probes were in place");
    }
    if session.watched.is_empty() {
        let why = session.notes.iter().map(|note| note.text.as_str()).collect::<Vec<_>>().join("; ");
        bail!("none of the processes asked for can be profiled: {why}");
    }
    if session.ranges.is_none() && !session.watched.iter().any(Watched::has_allocator) {
        session.watched[0].require_allocator()?;
    }
    follow::block_on(session, None, begun).map(drop)
}

impl Session {
    /// Watches one of those that were named. One of several that dies does not hold up the others.
    fn watch_one(&mut self, process: Process) -> Result<()> {
        let (pid, start) = (process.pid(), process.start_time());
        match self.watch(process) {
            Err(_)
                if self.room > 1
                    && !Process::open(pid).is_ok_and(|process| process.start_time() == start) =>
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
    follow::block_on(session, Some(started), begun)
}
