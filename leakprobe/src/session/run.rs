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
    let begun = match trigger::wait(&options, &mut processes)? {
        trigger::Waited::NotAtAll => begun,
        trigger::Waited::Until(begun) => begun,
        trigger::Waited::ForNothing => return Ok(()),
    };
    let mut session = Session::prepare(options)?;
    session.members.require_some()?;
    limits::raise_open_files();
    for process in processes {
        session.watch(process)?;
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
    if session.watched.is_empty() {
        let why = session.notes.iter().map(|note| note.text.as_str()).collect::<Vec<_>>().join("; ");
        bail!("none of the processes asked for can be profiled: {why}");
    }
    if session.ranges.is_none() && !session.watched.iter().any(Watched::has_allocator) {
        session.watched[0].require_allocator()?;
    }
    follow::block_on(session, None, begun).map(drop)
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
