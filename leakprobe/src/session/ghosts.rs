//! With `--follow`: children that had ended when they were told of, or before they were taken in, and those that could not
//! be. What they have made lives on: a daemon's first child makes it, and is gone at once.

use std::{collections::HashMap, sync::Arc};

use anyhow::Result;

use super::watched::{Guard, Seed, seed};
use crate::probe::attach::{self, Attachment};

/// Ghosts that are kept: those that they have made are told of in the same breath.
const MAX_GHOSTS: usize = 256;

/// What a process has that another one has made.
pub struct Inheritance {
    /// What is known of it.
    pub seed: Arc<Seed>,
    /// Its probes.
    pub probes: Vec<Attachment>,
    /// Whether it has events of its own, and leaves those of the other one alone.
    pub is_guarded: bool,
    /// Its guard, where it has one from birth.
    pub guard: Option<Guard>,
}

impl Inheritance {
    /// Of one that was made at that time by one with these.
    pub fn new(seed: Arc<Seed>, probes: Vec<Attachment>, guard: Option<&Guard>, at_ns: u64) -> Self {
        let is_guarded = guard.is_some_and(|guard| guard.covers(at_ns));
        Self { seed, probes, is_guarded, guard: guard.and_then(|guard| guard.handed_down(at_ns)) }
    }

    /// Puts into it what it may lack: a guard, and probes. On success it has a guard.
    ///
    /// # Errors
    /// What the kernel said, or that it has ended.
    pub fn put_into(&mut self, pid: u32, at_ns: u64) -> Result<()> {
        // First of all: from now on, what it makes leaves its events alone.
        if self.guard.is_none() {
            self.guard = Some(Guard::new(pid)?);
        }
        // It was made while probes went into its parent, and may not have them all; or by one that was no more than made
        // itself, whose own it may have by now, and that one its.
        seed::extend(&mut self.probes, pid, at_ns, self.is_guarded)
    }
}

/// By number.
#[derive(Default)]
pub struct Ghosts {
    by_pid: HashMap<u32, Ghost>,
    /// How many there were.
    count: u64,
}

struct Ghost {
    seed: Arc<Seed>,
    probes: Vec<Attachment>,
    guard: Option<Guard>,
    parent: u32,
    number: u64,
}

impl Ghosts {
    /// Keeps what one had.
    pub fn keep(
        &mut self,
        pid: u32,
        parent: u32,
        seed: Arc<Seed>,
        probes: Vec<Attachment>,
        guard: Option<Guard>,
    ) {
        if self.by_pid.len() >= MAX_GHOSTS {
            let oldest = self.by_pid.iter().min_by_key(|(_, ghost)| ghost.number).map(|(&pid, _)| pid);
            oldest.map(|pid| self.by_pid.remove(&pid));
        }
        self.count += 1;
        self.by_pid.insert(pid, Ghost { seed, probes, guard, parent, number: self.count });
    }

    /// What one that it has made at that time has from it.
    pub fn inheritance(&self, pid: u32, at_ns: u64) -> Option<Inheritance> {
        self.by_pid.get(&pid).map(|ghost| {
            let (seed, probes) = (Arc::clone(&ghost.seed), attach::share(&ghost.probes));
            Inheritance::new(seed, probes, ghost.guard.as_ref(), at_ns)
        })
    }

    /// Which process has made it.
    pub fn parent(&self, pid: u32) -> Option<u32> {
        self.by_pid.get(&pid).map(|ghost| ghost.parent)
    }

    /// Its number is another one's.
    pub fn forget(&mut self, pid: u32) {
        self.by_pid.remove(&pid);
    }

    /// Lets go of all.
    pub fn clear(&mut self) {
        self.by_pid.clear();
    }
}
