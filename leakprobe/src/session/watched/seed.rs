//! What a child has from the process that made it.

use std::sync::Arc;

use anyhow::Result;

use super::Watched;
use crate::{
    probe::{
        attach::{self, Attachment, PlannedProbe, Probed},
        inherited::{self, Threads},
    },
    report::model::ProbeRow,
    sys::clock,
    target::{
        discovery::Discovery,
        process::Process,
        space::{AddressSpace, Object},
    },
};

/// What is known of a process, for those that it makes: they begin with the same program, and its probes.
pub struct Seed {
    discovery: Discovery,
    placed: Vec<(Arc<Object>, Probed, Vec<PlannedProbe>)>,
    probes: Vec<ProbeRow>,
    space: Option<AddressSpace>,
    book: u32,
    throwing: bool,
}

/// Perf events in a process that keep those of its probes its own.
pub struct Guard {
    _threads: Threads,
    /// Since when, `CLOCK_MONOTONIC` nanoseconds.
    since_ns: u64,
}

impl Guard {
    /// Puts them into a process.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn new(pid: u32) -> Result<Self> {
        let _threads = inherited::guard(pid)?;
        Ok(Self { _threads, since_ns: clock::monotonic_ns() })
    }

    /// Whether a process that was made at that time has events of its own, and leaves the other's alone.
    pub fn covers(&self, at_ns: u64) -> bool {
        self.since_ns < at_ns
    }
}

impl Watched {
    /// Guards its probes.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn guard(&mut self) -> Result<()> {
        self.guard = Some(Guard::new(self.pid())?);
        Ok(())
    }

    /// Whether a process that it made at that time has events of its own.
    pub fn guards(&self, at_ns: u64) -> bool {
        self.guard.as_ref().is_some_and(|guard| guard.covers(at_ns))
    }

    /// Its probes, for a process that it makes.
    pub fn share_probes(&self) -> Vec<Attachment> {
        attach::share(&self.attachments)
    }

    /// What a process that it makes now has from it.
    pub fn seed(&mut self) -> Arc<Seed> {
        if let Some(seed) = &self.seed {
            return Arc::clone(seed);
        }
        let seed = Arc::new(Seed {
            discovery: self.discovery.clone(),
            placed: self.placed.clone(),
            probes: self.probes.clone(),
            space: self.space_now().cloned(),
            book: self.book,
            throwing: self.throwing,
        });
        self.seed = Some(Arc::clone(&seed));
        seed
    }

    /// A child, which has not been looked at itself, with the probes that it has inherited. `images`: the numbers of its first
    /// program image and of the present one; `executed_ns`: when it has executed that, which is its parent's otherwise.
    pub fn child(
        process: Process,
        seed: &Seed,
        (attachments, guard): (Vec<Attachment>, Guard),
        parent: u32,
        images: (u32, u32),
        executed_ns: Option<u64>,
    ) -> Result<Self> {
        let (born, generation) = images;
        let mut watched = Self::new(process, seed.discovery.clone(), seed.throwing, generation)?;
        let pid = watched.pid();
        watched.born = born;
        watched.parent = Some(parent);
        watched.book = seed.book;
        watched.programs = generation.wrapping_sub(born) + 1;
        watched.attachments = attachments;
        watched.is_settled = true;
        if let Some(at_ns) = executed_ns {
            watched.begin_program(at_ns);
        }
        watched.guard = Some(guard);
        watched.placed.clone_from(&seed.placed);
        watched.probes = seed.probes.iter().map(|row| ProbeRow { pid, ..row.clone() }).collect();
        if let (None, Some(space)) = (executed_ns, &seed.space) {
            watched.take_in(space, 0);
        }
        Ok(watched)
    }

    /// Puts those of its parent's probes into it that were not in place yet when it was made.
    pub fn extend_probes(&mut self, born_ns: u64) {
        if let Err(error) = extend(&mut self.attachments, self.process.pid(), born_ns) {
            let pid = self.pid();
            self.fail(format!("process {pid}: {error:#}; some of its blocks may not be recorded"));
        }
    }

    /// Makes sure of all of its probes: those that it has inherited may have been exchanged for another process's.
    pub fn renew_probes(&mut self) {
        self.extend_probes(0);
    }
}

/// Puts those probes into a process that were not in place yet at a time in the one that made it.
///
/// # Errors
/// What the kernel said.
pub fn extend(attachments: &mut [Attachment], pid: u32, born_ns: u64) -> Result<()> {
    attachments
        .iter_mut()
        .filter(|attachment| attachment.since_ns() >= born_ns)
        .try_for_each(|attachment| attachment.extend(pid))
}
