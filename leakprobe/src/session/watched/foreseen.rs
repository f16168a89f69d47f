//! With `--follow`: probes in an allocator that a process has not met itself, but one that it has made.
//!
//! A program is probed when it has begun, and its first blocks are lost where its allocator is a new one. The next of its
//! kind comes from the same process most times, and has the probes from the beginning if that one has them.

use super::Watched;
use crate::{probe::attach::Attachment, target::space::FileId};

/// Objects that are foreseen in a process: each takes its forks some 66 us longer (three events, see
/// [`crate::probe::inherited`]).
const MAX_FORESEEN: usize = 4;

/// Puts an object's probes into a process that has these. One that cannot have them goes without: what follows from that
/// is told where it happens.
pub fn foresee(probes: &mut Vec<Attachment>, of: &Attachment, pid: u32) {
    let is_there = probes.iter().any(|known| known.object() == of.object());
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

    /// Its probes in an object.
    pub fn probes_in(&self, object: FileId) -> Option<&Attachment> {
        self.attachments.iter().find(|attachment| attachment.object() == object)
    }

    /// When the probes in an object that it has met now were put in, `CLOCK_MONOTONIC` nanoseconds; `None` when they are to be.
    pub(super) fn foreseen_ns(&self, object: FileId) -> Option<u64> {
        self.probes_in(object).map(Attachment::placed_ns)
    }

    /// Puts the probes of one that it has made, or that has come from there, into it.
    pub fn foresee(&mut self, of: &Attachment) {
        if !self.has_ended() {
            self.seed = None;
            foresee(&mut self.attachments, of, self.process.pid());
        }
    }
}
