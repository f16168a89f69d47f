//! With `--follow`: probes in an allocator that a process has not met itself, but one that it has made.
//!
//! A program is probed when it has begun, and its first blocks are lost where its allocator is a new one. The next of its
//! kind comes from the same process most times, and has the probes from the beginning if that one has them.

use super::Watched;
use crate::probe::attach::{Attachment, Probed};

/// Allocators that are foreseen in a process: each takes its forks some 66 us longer (three events, see
/// [`crate::probe::inherited`]).
const MAX_FORESEEN: usize = 4;

/// Puts the probes on an allocator into a process with these. One that cannot have them goes without: what follows from that
/// is told where it happens.
pub fn foresee(probes: &mut Vec<Attachment>, of: &Attachment, pid: u32) {
    let is_there = probes.iter().any(|known| known.of() == of.of());
    let foreseen = probes.iter().filter(|known| known.is_foreseen()).count();
    if !is_there
        && foreseen < MAX_FORESEEN
        && let Ok(Some(attachment)) = of.foresee(pid)
    {
        probes.push(attachment);
    }
}

impl Watched {
    /// The process that made it.
    pub fn parent(&self) -> Option<u32> {
        self.parent
    }

    /// Its probes on an allocator.
    pub fn probes_on(&self, of: Probed) -> Option<&Attachment> {
        self.attachments.iter().find(|attachment| attachment.of() == of)
    }

    /// When the probes on an allocator that it has met now were put in, `CLOCK_MONOTONIC` nanoseconds; `None` when they are to be.
    pub(super) fn foreseen_ns(&self, of: Probed) -> Option<u64> {
        self.probes_on(of).map(Attachment::placed_ns)
    }

    /// Puts the probes of one that it has made, or that has come from there, into it.
    pub fn foresee(&mut self, of: &Attachment) {
        if !self.has_ended() {
            self.seed = None;
            foresee(&mut self.attachments, of, self.process.pid());
        }
    }
}
