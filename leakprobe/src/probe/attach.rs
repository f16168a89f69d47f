//! Putting the planned probes into a process, and taking them out.

use std::{
    num::NonZeroU32,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::PathBuf,
    sync::Arc,
    thread,
};

use anyhow::{Context as _, Result};
use aya::programs::{
    UProbe,
    uprobe::{UProbeAttachLocation, UProbeAttachPoint, UProbeLink, UProbeScope},
};
use leakprobe_common::{Call, Cookie, ProbeKey};

use super::{
    features::Mechanism,
    inherited::{Arranged, Event, Threads},
    load::{self, Loaded, UprobePrograms},
};
use crate::{
    sys::{
        bpf::{self, LinkKind, Point},
        clock,
    },
    target::space::FileId,
};

/// A probe, planned to the byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlannedProbe {
    /// Offset of the probed instruction in the object's file.
    pub file_offset: u64,
    /// What the BPF program is told.
    pub cookie: Cookie,
}

impl PlannedProbe {
    fn is(&self, call: Call) -> bool {
        self.cookie.call() == Some(call)
    }

    fn has(&self, property: fn(Call) -> bool) -> bool {
        self.cookie.call().is_some_and(property)
    }

    fn point(&self) -> Point {
        Point { file_offset: self.file_offset, cookie: self.cookie.0 }
    }
}

/// An allocator in an object, which may hold several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probed {
    /// The object.
    pub object: FileId,
    /// The allocator's index among the families.
    pub family: u8,
}

/// Probes in place on one allocator of one process. Dropping it takes them out.
pub struct Attachment {
    of: Probed,
    links: Vec<Link>,
    /// When it was in place, `CLOCK_MONOTONIC` nanoseconds: children that were made later have it.
    since_ns: u64,
    /// The same for this process.
    placed_ns: u64,
    /// Whether it went in before the object was met here.
    is_foreseen: bool,
}

enum Link {
    Multi {
        _fd: OwnedFd,
    },
    Perf {
        _link: UProbeLink,
    },
    /// The first one goes first.
    Inherited {
        threads: Threads,
        event: Arc<Event>,
    },
}

/// What a process may not have of the probes of the one that made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lacking {
    /// It is not known to lack them.
    Nothing,
    /// They may have been exchanged for another one's.
    Perhaps,
    /// They were not in place when it was made.
    Certainly,
}

/// The same probes for a child, which has inherited them: they stay in as long as one of both has them. Those that are not
/// inherited are left out.
pub fn share(attachments: &[Attachment]) -> Vec<Attachment> {
    attachments.iter().filter_map(Attachment::share).collect()
}

impl Attachment {
    /// The same probes, for as long as one of both is kept; `None` where they are not inherited.
    pub fn share(&self) -> Option<Self> {
        let share = |link: &Link| match link {
            Link::Multi { .. } | Link::Perf { .. } => None,
            Link::Inherited { threads, event } => {
                Some(Link::Inherited { threads: Arc::clone(threads), event: Arc::clone(event) })
            }
        };
        let links = self.links.iter().map(share).collect::<Option<_>>()?;
        Some(Self { links, ..*self })
    }

    /// What the probes are on.
    pub fn of(&self) -> Probed {
        self.of
    }

    /// Whether it went in, here or in a process that made this one, before the object was met there.
    pub fn is_foreseen(&self) -> bool {
        self.is_foreseen
    }

    /// When all were in place in this process or the one that made it, `CLOCK_MONOTONIC` nanoseconds.
    pub fn placed_ns(&self) -> u64 {
        self.placed_ns
    }

    /// The same probes for a process that may map the object later: nothing where they are not inherited.
    ///
    /// # Errors
    /// Names the process and the cause.
    pub fn foresee(&self, pid: u32) -> Result<Option<Self>> {
        let Some(mut foreseen) = self.share() else { return Ok(None) };
        foreseen.links = foreseen.extended(pid)?;
        foreseen.since_ns = clock::monotonic_ns();
        foreseen.placed_ns = foreseen.since_ns;
        foreseen.is_foreseen = true;
        Ok(Some(foreseen))
    }

    /// When it was in place, `CLOCK_MONOTONIC` nanoseconds.
    pub fn since_ns(&self) -> u64 {
        self.since_ns
    }

    /// Puts the probes into a process that may lack them.
    ///
    /// # Errors
    /// Names the process and the cause.
    pub fn extend(&mut self, pid: u32, lacking: Lacking) -> Result<()> {
        let more = self.extended(pid)?;
        self.links.extend(more);
        if lacking != Lacking::Nothing {
            // Those that it has made meanwhile lack it, too.
            self.since_ns = clock::monotonic_ns();
        }
        if lacking == Lacking::Certainly {
            self.placed_ns = self.since_ns;
        }
        Ok(())
    }

    /// Its events in one more process.
    fn extended(&self, pid: u32) -> Result<Vec<Link>> {
        let mut more = Vec::new();
        let mut extended: Vec<&Arc<Event>> = Vec::new();
        for link in &self.links {
            if let Link::Inherited { event, .. } = link
                && !extended.iter().any(|other| Arc::ptr_eq(other, event))
            {
                extended.push(event);
                more.push(Link::Inherited { threads: event.extend(pid)?, event: Arc::clone(event) });
            }
        }
        Ok(more)
    }
}

/// The order in which probes go in.
///
/// Not at once, so in an order in which nothing looks like a leak that is none: first the functions that
/// free, then the returns, of either kind, then the entries, reallocating functions before allocating ones. A block is
/// recorded only once its free will be seen.
struct Order {
    frees: Vec<PlannedProbe>,
    returning: Vec<PlannedProbe>,
    leaves: Vec<PlannedProbe>,
    allocations: Vec<PlannedProbe>,
}

impl Order {
    fn of(probes: &[PlannedProbe]) -> Self {
        let (frees, others): (Vec<PlannedProbe>, Vec<PlannedProbe>) =
            probes.iter().partition(|probe| !probe.is(Call::Leave) && !probe.has(Call::returns));
        let (leaves, mut allocations): (Vec<PlannedProbe>, Vec<PlannedProbe>) =
            others.iter().partition(|probe| probe.is(Call::Leave));
        allocations.sort_by_key(|probe| !probe.has(Call::replaces));
        let returning =
            allocations.iter().filter(|probe| !probe.cookie.ends_at_instructions()).copied().collect();
        Self { frees, returning, leaves, allocations }
    }

    fn roles(&self) -> [(Role, &[PlannedProbe]); 4] {
        [
            (Role::Free, &self.frees[..]),
            (Role::Return, &self.returning[..]),
            (Role::Leave, &self.leaves[..]),
            (Role::Enter, &self.allocations[..]),
        ]
    }
}

/// With `--follow`: arranges an object's probes in events, and says what the map of cookies must hold before these are
/// put in.
pub fn arrange(
    loaded: &mut Loaded,
    object: FileId,
    probes: &[PlannedProbe],
) -> (Vec<Arranged>, Vec<(ProbeKey, Cookie)>) {
    let Some(definitions) = &mut loaded.inherited else { return (Vec::new(), Vec::new()) };
    let arranged = definitions.arrange(object, &Order::of(probes).roles());
    let cookies = definitions.cookies(&arranged);
    (arranged, cookies)
}

/// With `--follow`: puts events on `of` into its object, open as `file`, as mapped by process `pid`, in a way that its
/// children inherit.
///
/// # Errors
/// Names the process and the cause. Nothing is left attached.
pub fn attach_inherited(
    loaded: &mut Loaded,
    (of, file): (Probed, BorrowedFd<'_>),
    pid: u32,
    arranged: &[Arranged],
) -> Result<Attachment> {
    let definitions = loaded.inherited.as_mut().context("there are no programs for events")?;
    let events = definitions.attach((of.object, file), pid, arranged)?;
    let links = events.into_iter().map(|(threads, event)| Link::Inherited { threads, event }).collect();
    let since_ns = clock::monotonic_ns();
    Ok(Attachment { of, links, since_ns, placed_ns: since_ns, is_foreseen: false })
}

/// Puts probes on `of` into its object, open as `file`, as mapped by process `pid`, in the order of [`Order`].
///
/// # Errors
/// Names the process and the cause. Nothing is left attached.
pub fn attach(
    loaded: &mut Loaded,
    floor: bool,
    (of, file): (Probed, BorrowedFd<'_>),
    pid: u32,
    probes: &[PlannedProbe],
) -> Result<Attachment> {
    let mut attachment = Attachment { of, links: Vec::new(), since_ns: 0, placed_ns: 0, is_foreseen: false };
    for (role, probes) in Order::of(probes).roles() {
        if probes.is_empty() {
            continue;
        }
        let points: Vec<Point> = probes.iter().map(|probe| probe.point()).collect();
        match &loaded.multi {
            Some(programs) => {
                let program = role.of(programs).as_fd();
                let kind = if role == Role::Return { LinkKind::Return } else { LinkKind::Enter };
                let link = bpf::link_uprobes(program, kind, &bpf::fd_path(file), &points, pid)?;
                attachment.links.push(Link::Multi { _fd: link });
            }
            None => {
                let name = *role.of(&loaded.names(floor));
                attachment.links.extend(attach_one_by_one(loaded, name, file, pid, &points)?);
            }
        }
    }
    Ok(attachment)
}

/// Takes the breakpoints of a process's probes out of the processes that have inherited them by fork: the kernel leaves them
/// there, and each call of a probed function would trap. When a probe of any process is unregistered, the kernel takes the
/// breakpoint out of all that have none of their own; so one of a kernel thread, which has no memory to put one into, is put
/// in and out. Takes as long as detaching.
///
/// # Errors
/// What the kernel said.
pub fn sweep(
    programs: &UprobePrograms<OwnedFd>,
    file: BorrowedFd<'_>,
    probes: &[PlannedProbe],
) -> Result<OwnedFd> {
    let points: Vec<Point> = probes.iter().map(|probe| probe.point()).collect();
    let path = bpf::fd_path(file);
    let link = bpf::link_uprobes(programs.free_enter.as_fd(), LinkKind::Enter, &path, &points, KTHREADD)?;
    Ok(link)
}

/// The kernel thread that makes the others.
pub const KTHREADD: u32 = 2;

/// Closes links, which takes the kernel a while each, behind the caller's back.
pub fn close_later(links: Vec<OwnedFd>) {
    if !links.is_empty() {
        thread::spawn(move || drop(links));
    }
}

fn attach_one_by_one(
    loaded: &mut Loaded,
    name: &'static str,
    file: BorrowedFd<'_>,
    pid: u32,
    points: &[Point],
) -> Result<Vec<Link>> {
    let carries_cookie = loaded.mechanism != Mechanism::PerfEventByAddress;
    let program: &mut UProbe = load::program(&mut loaded.ebpf, name)?;
    let path = PathBuf::from(bpf::fd_path(file).to_string_lossy().into_owned());
    let pid = NonZeroU32::new(pid).context("process 0 cannot be probed")?;
    points
        .iter()
        .map(|point| {
            let location = UProbeAttachLocation::AbsoluteOffset(point.file_offset);
            let id = program.attach(
                UProbeAttachPoint { location, cookie: carries_cookie.then_some(point.cookie) },
                &path,
                UProbeScope::OneProcess(pid),
            )?;
            Ok(Link::Perf { _link: program.take_link(id)? })
        })
        .collect()
}

/// Which of the programs a probe runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// At the entry of what frees, and of what tells of changes of the code.
    Free,
    /// At the return of what allocates.
    Return,
    /// At the return instructions of what allocates and may throw.
    Leave,
    /// At its entry.
    Enter,
}

impl Role {
    /// Its program.
    pub fn of<T>(self, programs: &UprobePrograms<T>) -> &T {
        match self {
            Self::Free => &programs.free_enter,
            Self::Return => &programs.allocate_return,
            Self::Leave => &programs.allocate_leave,
            Self::Enter => &programs.allocate_enter,
        }
    }
}

/// Links closed at the same time.
const AT_ONCE: usize = 16;

/// Takes out the probes of many objects and processes. The kernel waits for running programs at each link
/// (about 30 ms for one of many probes, and 100 ms for the last perf event of a definition), and the waits overlap
/// when they begin together; those for definitions do not. In no order: the programs do nothing any more.
pub fn detach(attachments: Vec<Attachment>) {
    let mut links: Vec<Link> = attachments.into_iter().flat_map(|attachment| attachment.links).collect();
    let share = links.len().div_ceil(AT_ONCE).max(1);
    thread::scope(|scope| {
        while !links.is_empty() {
            let some = links.split_off(links.len().saturating_sub(share));
            scope.spawn(move || drop(some));
        }
    });
}
