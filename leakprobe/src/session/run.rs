//! Sessions from their beginning to their end: over running processes, or a program that is started.

use std::ffi::OsString;

use anyhow::{Result, bail};

use super::{Begun, Session, follow};
use crate::{
    cli::{Options, Subject},
    launch,
    probe::features,
    sys::limits,
    target::process::Process,
};

/// Runs a session over running processes.
pub fn run_pids(options: Options, begun: Begun) -> Result<()> {
    let Subject::Pids(pids) = options.subject.clone() else { bail!("no process was named") };
    // First, so that a wrong number is told of even where nothing could be loaded.
    if let Some(refusal) = features::refusal_here() {
        bail!(refusal);
    }
    let processes = pids.into_iter().map(Process::open).collect::<Result<Vec<_>, _>>()?;
    let mut session = Session::prepare(options)?;
    limits::raise_open_files();
    for process in processes {
        session.watch(process)?;
    }
    session.follow_ranges()?;
    if let Some(ranges) = &mut session.ranges {
        // A program that is started has none yet, and shows it when it makes one.
        for watched in &session.watched {
            if let Ok(Some(program_break)) = watched.process().program_break() {
                ranges.set_break(watched.pid(), program_break);
            }
        }
    }
    for index in 0..session.watched.len() {
        if !session.look(index)? {
            bail!("process {} ended while it was being looked at", session.watched[index].pid());
        }
        if session.ranges.is_none() {
            session.watched[index].require_allocator()?;
        }
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
