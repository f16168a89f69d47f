//! What a child has from the process that made it.

use std::sync::Arc;

use anyhow::Result;

use super::Watched;
use crate::{
    probe::{
        attach::{self, Attachment, Lacking, PlannedProbe, Probed},
        inherited::{self, Threads},
    },
    report::model::ProbeRow,
    sys::{clock, perf},
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
    /// From when on what it does is to be in the reports, `CLOCK_MONOTONIC` nanoseconds.
    counted_ns: u64,
}

/// Longer than a fork takes, nanoseconds: seconds for 100 GB of small pages. When it ends is known and not when it began,
/// and what a process is given meanwhile its child need not have.
const LONGEST_FORK_NS: u64 = 5_000_000_000;

/// Perf events in a process that keep those of its probes its own.
pub struct Guard {
    threads: Threads,
    /// Since when, `CLOCK_MONOTONIC` nanoseconds; `None`: since it was made.
    since_ns: Option<u64>,
    /// Whether the process's probes were put in once more since then.
    is_renewed: bool,
}

impl Guard {
    /// Puts them into a process.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn new(pid: u32) -> Result<Self> {
        let threads = inherited::guard(pid)?;
        Ok(Self { threads, since_ns: Some(clock::monotonic_ns()), is_renewed: false })
    }

    /// Whether a process that was made at that time has events of its own, and leaves the other's alone: also where its
    /// making had begun before.
    pub fn covers(&self, at_ns: u64) -> bool {
        self.since_ns.is_none_or(|since_ns| since_ns < at_ns)
    }

    /// The guard of a process that was made at that time, where it has one from birth.
    pub fn handed_down(&self, at_ns: u64) -> Option<Self> {
        let was_there = self.since_ns.is_none_or(|since_ns| since_ns < before_fork(at_ns));
        let is_handed_down = perf::guards_descendants() && was_there;
        is_handed_down.then(|| Self { threads: Arc::clone(&self.threads), since_ns: None, is_renewed: false })
    }

    /// Whether the process's probes are to be put in once more: the first time that this is asked.
    pub fn asks_for_renewal(&mut self) -> bool {
        !std::mem::replace(&mut self.is_renewed, true)
    }
}

/// When a process's making may have begun, of which is told at that time.
fn before_fork(at_ns: u64) -> u64 {
    at_ns.saturating_sub(LONGEST_FORK_NS)
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

    /// Its guard.
    pub fn own_guard(&self) -> Option<&Guard> {
        self.guard.as_ref()
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
            counted_ns: self.counted_ns,
        });
        self.seed = Some(Arc::clone(&seed));
        seed
    }

    /// A child, which has not been looked at itself, with the probes that it has inherited. `images`: the numbers of its first
    /// program image and of the present one; `made_ns`: when it was made, `executed_ns`: when it has executed that image,
    /// which is its parent's otherwise.
    pub fn child(
        process: Process,
        seed: &Seed,
        (attachments, guard): (Vec<Attachment>, Guard),
        parent: u32,
        images: (u32, u32),
        (made_ns, executed_ns): (u64, Option<u64>),
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
        watched.counted_ns = seed.counted_ns;
        match executed_ns {
            Some(at_ns) => watched.begin_program(at_ns),
            None => watched.begin_at(made_ns),
        }
        watched.guard = Some(guard);
        watched.placed.clone_from(&seed.placed);
        watched.probes = seed.probes.iter().map(|row| ProbeRow { pid, ..row.clone() }).collect();
        if let (None, Some(space)) = (executed_ns, &seed.space) {
            watched.take_in(space, 0);
        }
        Ok(watched)
    }

    /// Makes sure of all of its probes: those that it has inherited may have been exchanged for another process's.
    pub fn renew_probes(&mut self) {
        if let Err(error) = renew(&mut self.attachments, self.process.pid()) {
            let pid = self.pid();
            self.fail(format!("process {pid}: {error:#}; some of its blocks may not be recorded"));
        }
    }

    /// The same, the first time since it has its guard.
    pub fn renew_probes_once(&mut self) {
        if self.guard.as_mut().is_none_or(Guard::asks_for_renewal) {
            self.renew_probes();
        }
    }
}

/// Puts those probes into a process, made at that time, which it may lack. `is_guarded`: those that were in place in the one
/// that made it are its own.
///
/// # Errors
/// What the kernel said.
pub fn extend(attachments: &mut [Attachment], pid: u32, made_ns: u64, is_guarded: bool) -> Result<()> {
    attachments
        .iter_mut()
        .filter(|attachment| !is_guarded || attachment.since_ns() >= before_fork(made_ns))
        .try_for_each(|attachment| {
            let lacking = if attachment.placed_ns() >= made_ns {
                Lacking::Certainly
            } else if !is_guarded || attachment.since_ns() >= made_ns {
                Lacking::Perhaps
            } else {
                Lacking::Nothing
            };
            attachment.extend(pid, lacking)
        })
}

/// Puts all probes of a process in once more, which may have been exchanged for another one's.
///
/// # Errors
/// What the kernel said.
pub fn renew(attachments: &mut [Attachment], pid: u32) -> Result<()> {
    attachments.iter_mut().try_for_each(|attachment| attachment.extend(pid, Lacking::Perhaps))
}
