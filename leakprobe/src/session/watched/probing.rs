//! The probes of a process: which go where, what becomes of them, and what a fork has copied of them.

use std::{
    os::fd::{AsFd as _, OwnedFd},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Result;

use super::{MAX_FAILURES, Watched};
use crate::{
    probe::{
        assign::{self, Freedom},
        attach::{self, Attachment, PlannedProbe, Probed},
        inherited::Arranged,
        load::{Loaded, UprobePrograms},
    },
    report::model::ProbeRow,
    sys::clock,
    target::{
        discovery::FoundObject,
        family::LINKER,
        space::{AddressSpace, Backing, Mapping, Object},
    },
};

/// Freeing children of breakpoints goes through all processes that map the same objects: not more often than this.
const BETWEEN_SWEEPS: Duration = Duration::from_millis(500);

/// An allocator in an object, with the probes chosen for it.
pub struct PlannedObject {
    /// Which allocator.
    pub of: Probed,
    /// Its probes.
    pub probes: Vec<PlannedProbe>,
    object: Arc<Object>,
    rows: Vec<ProbeRow>,
    /// With `--follow`: in which events.
    pub arranged: Option<Vec<Arranged>>,
}

/// An allocator that was met when the process ran with it already.
#[derive(Clone, Debug)]
pub struct Late {
    /// The object that it is in, harmless to print.
    pub object: String,
    /// How much later its probes were in than the program began, nanoseconds; `None`: than it was mapped, which is not known.
    pub by_ns: Option<u64>,
}

impl Watched {
    /// Chooses the probes of objects.
    pub fn plan(&self, found: &[FoundObject], freedom: Freedom) -> Vec<PlannedObject> {
        let plan = |found: &FoundObject| {
            let (probes, rows) = assign::assign(self.pid(), found, freedom, self.throwing);
            let object = Arc::clone(&found.object);
            PlannedObject {
                of: Probed { object: object.id, family: found.family_index },
                object,
                probes,
                rows,
                arranged: None,
            }
        };
        found.iter().map(plan).collect()
    }

    /// Puts its probes into an object.
    pub fn probe(&mut self, loaded: &mut Loaded, planned: PlannedObject, floor: bool) -> Result<()> {
        let pid = self.pid();
        let PlannedObject { of, object, probes, rows, arranged } = planned;
        let Ok(file) = &object.file else { return Ok(()) };
        self.seed = None;
        if let Some(placed_ns) = self.foreseen_ns(of) {
            if placed_ns >= self.lacked_ns && is_allocator(&rows) {
                self.note_late(&object, placed_ns);
            }
            self.probes.extend(rows);
            self.placed.push((object, of, probes));
            return Ok(());
        }
        let file = (of, file.as_fd());
        let attached = match &arranged {
            Some(arranged) => attach::attach_inherited(loaded, file, pid, arranged),
            None => attach::attach(loaded, floor, file, pid, &probes),
        };
        match attached {
            Ok(attachment) => {
                if is_allocator(&rows) {
                    self.note_late(&object, clock::monotonic_ns());
                }
                self.attachments.push(attachment);
                self.probes.extend(rows);
                self.placed.push((object, of, probes));
                Ok(())
            }
            Err(error) => {
                let ended = self.process.has_ended().unwrap_or(true);
                let points: Vec<String> =
                    rows.iter().map(|row| format!("{}+{}", row.symbols[0], row.symbol_offset)).collect();
                let object = crate::report::escape::visible(&object.path.to_string_lossy()).into_owned();
                let what = format!(
                    "failed to attach uprobes {} in {object} of process {pid}{}",
                    points.join(", "),
                    if ended { ": the process has ended meanwhile" } else { "" },
                );
                if self.attachments.is_empty() {
                    return Err(if ended { anyhow::anyhow!(what) } else { error.context(what) });
                }
                // Another allocator of this process is probed: go on, and say so.
                if self.process.is_there() {
                    self.failures.push(format!("{what}: {error:#}; its blocks are not recorded"));
                }
                Ok(())
            }
        }
    }

    /// Notes that its probes may have gone when it executed a program: links are bound to its first thread, which is gone where
    /// another one has executed it, and inherited events can be any thread's.
    pub fn replace(&mut self) {
        self.is_replaced = true;
    }

    /// Puts all of its probes in once more; those that were in, to be detached.
    pub fn put_in_again(&mut self, loaded: &mut Loaded, floor: bool) -> Vec<Attachment> {
        let pid = self.pid();
        self.replace();
        if loaded.inherited.is_some() {
            self.renew_probes();
            return Vec::new();
        }
        let mut anew = Vec::new();
        for (object, of, probes) in &self.placed {
            let Ok(file) = &object.file else { continue };
            match attach::attach(loaded, floor, (*of, file.as_fd()), pid, probes) {
                Ok(attachment) => anew.push(attachment),
                // One that has ended needs none.
                Err(_) if self.process.has_ended().unwrap_or(true) => return Vec::new(),
                Err(error) => {
                    let object = crate::report::escape::visible(&object.path.to_string_lossy()).into_owned();
                    self.failures.push(format!(
                        "failed to attach uprobes in {object} once more after an exec of process {pid}: {error:#}; its \
                         blocks are not recorded"
                    ));
                    break;
                }
            }
        }
        std::mem::replace(&mut self.attachments, anew)
    }

    /// Notes an allocator that comes with another program or was opened since, with probes that were in place at `placed_ns`.
    fn note_late(&mut self, object: &Object, placed_ns: u64) {
        if !self.is_settled {
            return;
        }
        let object = crate::report::escape::visible(&object.path.to_string_lossy()).into_owned();
        let by_ns = self.began_ns.map(|began_ns| placed_ns.saturating_sub(began_ns));
        if let Some(late) = self.late.iter_mut().find(|late| late.object == object) {
            // Not known is longer than any time.
            late.by_ns = late.by_ns.zip(by_ns).map(|(one, other)| one.max(other));
        } else if self.late.len() < MAX_FAILURES {
            self.late.push(Late { object, by_ns });
        }
    }

    /// Notes what it has had from the one that made it, and without probes: it was made, or has executed its program, before
    /// these were in place.
    pub(super) fn note_late_probes(&mut self, mapped: &AddressSpace) {
        let Some(began_ns) = self.began_ns else { return };
        let is_mapped = |object: &Object| {
            let is_of =
                |mapping: &Mapping| matches!(&mapping.backing, Backing::Object(of) if of.id == object.id);
            mapped.mappings.iter().any(is_of)
        };
        let placed = self.discovery.objects.iter().filter_map(|found| {
            let probes = self.probes_on(Probed { object: found.object.id, family: found.family_index })?;
            Some((found, probes.placed_ns()))
        });
        let late: Vec<(Arc<Object>, u64)> = placed
            .filter(|(found, placed_ns)| {
                *placed_ns >= began_ns && found.family.is_allocator() && is_mapped(&found.object)
            })
            .map(|(found, placed_ns)| (Arc::clone(&found.object), placed_ns))
            .collect();
        for (object, placed_ns) in late {
            self.note_late(&object, placed_ns);
        }
    }

    /// A look is over: what is met from now on has come later than the program began, if that has all that it has at first.
    pub fn end_look(&mut self) {
        if !self.is_unseen() {
            self.began_ns = None;
        }
        self.is_settled |= self.counted_ns != 0 && self.has_allocator();
    }

    /// Takes the probes out of its keeping, to be detached.
    pub fn take_attachments(&mut self) -> Vec<Attachment> {
        self.guard = None;
        self.seed = None;
        std::mem::take(&mut self.attachments)
    }

    /// Notes that it has forked: its child has its breakpoints.
    pub fn fork(&mut self) {
        self.forked.get_or_insert_with(Instant::now);
    }

    /// When its children are to be freed of its breakpoints.
    pub fn sweep_due(&self) -> Option<Instant> {
        let forked = self.forked?;
        Some(self.swept.map_or(forked, |swept| forked.max(swept + BETWEEN_SWEEPS)))
    }

    /// Frees the processes that it has forked of its breakpoints.
    pub fn sweep(&mut self, programs: &UprobePrograms<OwnedFd>) -> Result<()> {
        (self.forked, self.swept) = (None, Some(Instant::now()));
        let mut links = Vec::new();
        for (object, _, probes) in &self.placed {
            if let Ok(file) = &object.file {
                links.push(attach::sweep(programs, file.as_fd(), probes)?);
            }
        }
        attach::close_later(links);
        Ok(())
    }
}

/// Whether these are probes on an allocator.
fn is_allocator(rows: &[ProbeRow]) -> bool {
    rows.iter().any(|row| row.allocator != LINKER)
}
