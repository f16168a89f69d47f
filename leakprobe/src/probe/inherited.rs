//! With `--follow`: probes that a child has from its first instruction on.
//!
//! A fork copies breakpoints, but the kernel asks for each hit whether anyone wants to know of it in this process. A
//! perf event that is inherited (`perf_event_attr.inherit`) says so for all that its thread will ever make, through
//! exec too. So the probes of an object are events on functions (`uprobe_events` of tracefs, by a mount of our own),
//! and each thread of the process has a perf event for each of these. A fork takes about 22 us longer for each
//! (6.18), so one event has many functions (Linux 5.5). perf's own event source for uprobes would do without
//! definitions, but reads the object's path from the memory of the thread that forks.

use std::{
    ffi::CStr,
    fs, io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::Path,
    sync::{Arc, Weak},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use leakprobe_common::{Cookie, PAGE_BITS_OF_PROBES, PAGE_OFFSET, ProbeKey};

use super::{
    attach::{KTHREADD, PlannedProbe, Role},
    load::UprobePrograms,
};
use crate::{
    sys::{bpf, limits, perf, tracepoint::TraceFs},
    target::space::FileId,
};

/// Perf events that one process may take: with 3 an object, those of 2,700 threads. Each is a descriptor of leakprobe's,
/// and one step of the kernel's search at each hit.
const MAX_EVENTS: usize = 16_384;

/// Descriptors that are left for other files.
const RESERVE: usize = 512;

/// How all names of definitions begin; leakprobe's process number and `_` follow, then the event's number.
const GROUP: &str = "leakprobe_";

/// How often the kernel is asked to take away an event that it still uses, and how long is waited in between: a thread of
/// the target that ends at that time has its share of it a little longer.
const TRIES: u32 = 100;
const BETWEEN_TRIES: Duration = Duration::from_millis(10);

/// What defines events.
pub struct Definitions {
    tracing: Arc<TraceFs>,
    programs: UprobePrograms<OwnedFd>,
    /// Whether an event's number is its programs' cookie.
    with_cookies: bool,
    /// Of the last event.
    number: u64,
    /// The events that are there, or have been.
    events: Vec<Known>,
}

/// An event that other processes which map its object may share: each of its own would be one more that the kernel asks at
/// every hit in any of them, and that it waits several grace periods for, one event after the other, to take away.
struct Known {
    object: FileId,
    role: Role,
    probes: Vec<PlannedProbe>,
    event: Weak<Event>,
}

/// Functions of an object that one event stands for.
pub struct Arranged {
    role: Role,
    number: u64,
    probes: Vec<PlannedProbe>,
    /// The event, where it is there for another process.
    event: Option<Arc<Event>>,
}

/// An event on functions, with its program. Dropping it takes it away.
pub struct Event {
    number: u64,
    id: u64,
    _link: Option<OwnedFd>,
    /// In a kernel thread, which has no memory to hit a breakpoint in: the program is this one's, as it would go with
    /// the first thread otherwise that has inherited it and ends.
    _holder: OwnedFd,
    _definition: Definition,
}

/// A line in the kernel's list, or several of one name.
struct Definition {
    tracing: Arc<TraceFs>,
    name: String,
}

impl Drop for Definition {
    fn drop(&mut self) {
        for _ in 0..TRIES {
            match self.tracing.change_uprobe_events(&format!("-:{}", self.name)) {
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => thread::sleep(BETWEEN_TRIES),
                // What is left then does nothing, and the next leakprobe takes it away.
                Ok(()) | Err(_) => return,
            }
        }
    }
}

/// Perf events of threads. The last process of a tree to let go of them closes them.
pub type Threads = Arc<Vec<OwnedFd>>;

impl Definitions {
    /// Takes what a leakprobe that was killed has left away.
    ///
    /// # Errors
    /// When this kernel has no tracefs, or no such events.
    pub fn new(programs: UprobePrograms<OwnedFd>, with_cookies: bool) -> Result<Self> {
        let tracing = TraceFs::open()?;
        let defined = tracing.uprobe_events().context(
            "failed to read the list of events on functions of programs (uprobe_events), which --follow needs: this \
             kernel was built without CONFIG_UPROBE_EVENTS",
        )?;
        for name in stale(&defined, is_leakprobe) {
            // One that another tracer has taken up is left to it.
            let _ = tracing.change_uprobe_events(&format!("-:{name}"));
        }
        Ok(Self { tracing: Arc::new(tracing), programs, with_cookies, number: 0, events: Vec::new() })
    }

    /// The programs.
    pub fn programs(&self) -> &UprobePrograms<OwnedFd> {
        &self.programs
    }

    /// Arranges an object's probes in as few events as can be, in the order in which they are to be put in. What a program
    /// is told of a probe it finds by event and by the offset of the instruction in its page, so two of the same offset
    /// and with different cookies are in two events. What is there for another process is shared with it.
    pub fn arrange(&mut self, object: FileId, order: &[(Role, &[PlannedProbe])]) -> Vec<Arranged> {
        let mut arranged: Vec<Arranged> = Vec::new();
        for &(role, probes) in order {
            let first = arranged.len();
            for &probe in probes {
                let clashes = |other: &PlannedProbe| {
                    self.with_cookies
                        && role != Role::Return
                        && other.cookie != probe.cookie
                        && (other.file_offset ^ probe.file_offset) & PAGE_OFFSET == 0
                };
                match arranged[first..].iter_mut().find(|event| !event.probes.iter().any(clashes)) {
                    Some(event) => event.probes.push(probe),
                    None => arranged.push(Arranged { role, number: 0, probes: vec![probe], event: None }),
                }
            }
        }
        self.events.retain(|known| known.event.strong_count() > 0);
        for planned in &mut arranged {
            planned.event = self.known(object, planned);
            planned.number = planned.event.as_ref().map_or_else(
                || {
                    self.number += 1;
                    self.number
                },
                |event| event.number,
            );
        }
        arranged
    }

    /// The event on these functions of an object, if it is there.
    fn known(&self, object: FileId, planned: &Arranged) -> Option<Arc<Event>> {
        let is_it = |known: &&Known| {
            known.object == object && known.role == planned.role && known.probes == planned.probes
        };
        self.events.iter().find(is_it)?.event.upgrade()
    }

    /// What the map of cookies must hold for events before they are put in.
    pub fn cookies(&self, arranged: &[Arranged]) -> Vec<(ProbeKey, Cookie)> {
        let entries = arranged.iter().filter(|event| event.role != Role::Return).flat_map(|event| {
            let key = |probe: &PlannedProbe| ProbeKey {
                address: event.number << PAGE_BITS_OF_PROBES | probe.file_offset & PAGE_OFFSET,
                ..ProbeKey::default()
            };
            event.probes.iter().map(move |probe| (key(probe), probe.cookie))
        });
        entries.collect()
    }

    /// Puts events into an object, open as `file`, in all threads of a process and in what they will make.
    ///
    /// # Errors
    /// What the kernel said, or that the process has too many threads.
    pub fn attach(
        &mut self,
        (object, file): (FileId, BorrowedFd<'_>),
        pid: u32,
        arranged: &[Arranged],
    ) -> Result<Vec<(Threads, Arc<Event>)>> {
        check_room(pid, arranged.len())?;
        let path = bpf::fd_path(file);
        let mut events = Vec::new();
        for planned in arranged {
            let event = match &planned.event {
                Some(event) => Arc::clone(event),
                None => {
                    let event = Arc::new(self.define(&path, planned)?);
                    let (role, probes) = (planned.role, planned.probes.clone());
                    self.events.push(Known { object, role, probes, event: Arc::downgrade(&event) });
                    event
                }
            };
            let threads = open_in_threads(event.id, pid)?;
            // In the order in which they go, should the next one fail.
            events.push((threads, event));
        }
        Ok(events)
    }

    fn define(&self, path: &CStr, planned: &Arranged) -> Result<Event> {
        let group = format!("{GROUP}{}", std::process::id());
        let name = format!("e{}", planned.number);
        let kind = if planned.role == Role::Return { 'r' } else { 'p' };
        let definition = Definition { tracing: Arc::clone(&self.tracing), name: format!("{group}/{name}") };
        for probe in &planned.probes {
            let line = format!("{kind}:{group}/{name} {}:{:#x}", path.to_string_lossy(), probe.file_offset);
            self.tracing
                .change_uprobe_events(&line)
                .with_context(|| format!("failed to define the event {line}"))?;
        }
        let id = self.tracing.id(&group, &name)?;
        let context = || format!("failed to open the event {group}:{name}");
        let holder = perf::open_in_thread(id, KTHREADD, false).with_context(context)?;
        let program = planned.role.of(&self.programs).as_fd();
        let link = match self.with_cookies {
            true => bpf::link_perf_event(program, holder.as_fd(), planned.number).map(Some),
            false => perf::set_program(holder.as_fd(), program).map(|()| None),
        };
        let link = link.with_context(|| format!("failed to attach to the event {group}:{name}"))?;
        Ok(Event { number: planned.number, id, _link: link, _holder: holder, _definition: definition })
    }
}

impl Event {
    /// Puts it into one more process, and what that will make.
    ///
    /// # Errors
    /// As [`Definitions::attach`].
    pub fn extend(&self, pid: u32) -> Result<Threads> {
        check_room(pid, 1)?;
        open_in_threads(self.id, pid).with_context(|| format!("failed to extend the event {}", self.number))
    }
}

/// Opens an event in each thread of a process (in none of one that ends), until there is none that has come meanwhile: what
/// is made by one that has the event has it too.
fn open_in_threads(id: u64, pid: u32) -> Result<Threads> {
    each_thread(pid, |tid| perf::open_in_thread(id, tid, true))
}

/// Keeps the events of a process from being exchanged with those of the ones that it makes: see [`perf::open_guard`].
///
/// # Errors
/// What the kernel said, or that the process has ended.
pub fn guard(pid: u32) -> Result<Threads> {
    check_room(pid, 1)?;
    each_thread(pid, perf::open_guard)
}

fn each_thread(pid: u32, open: impl Fn(u32) -> io::Result<OwnedFd>) -> Result<Threads> {
    let mut done: Vec<u32> = Vec::new();
    let mut events = Vec::new();
    loop {
        let new: Vec<u32> = threads(pid)?.into_iter().filter(|tid| !done.contains(tid)).collect();
        if new.is_empty() {
            break;
        }
        for tid in new {
            done.push(tid);
            match open(tid) {
                Ok(event) => events.push(event),
                // It has ended meanwhile.
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
                Err(error) => {
                    return Err(error).with_context(|| {
                        format!("failed to open an event in thread {tid} of process {pid}")
                    });
                }
            }
        }
    }
    Ok(Arc::new(events))
}

/// Refuses a process whose events would be too many.
fn check_room(pid: u32, events: usize) -> Result<()> {
    let threads = threads(pid)?.len();
    let open = fs::read_dir("/proc/self/fd").map_or(0, |entries| entries.count());
    let room = limits::open_files().saturating_sub(open + RESERVE).min(MAX_EVENTS);
    if threads * (events + 1) > room {
        bail!(
            "process {pid} has {threads} threads: --follow needs {events} perf events in each, and there is room for \
             {room}; raise the limit of open files (ulimit -Hn), or leave out --follow, which profiles the process \
             without its children"
        );
    }
    Ok(())
}

fn threads(pid: u32) -> Result<Vec<u32>> {
    let entries = match fs::read_dir(format!("/proc/{pid}/task")) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => {
            return Err(error).with_context(|| format!("failed to list the threads of process {pid}"));
        }
    };
    Ok(entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect())
}

/// Names of events that a leakprobe has defined which is not there any more.
fn stale(defined: &str, is_leakprobe: impl Fn(u32) -> bool) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for line in defined.lines() {
        let name = line.split_once(':').and_then(|(_, rest)| rest.split_whitespace().next());
        let Some(name) = name else { continue };
        let owner = name
            .strip_prefix(GROUP)
            .and_then(|rest| rest.split_once('/'))
            .and_then(|(pid, _)| pid.parse().ok());
        if owner.is_some_and(|pid| !is_leakprobe(pid)) && !names.iter().any(|known| known == name) {
            names.push(name.to_owned());
        }
    }
    names
}

/// Whether a process is there that runs this program, another one than this: what has its number is of an earlier one.
fn is_leakprobe(pid: u32) -> bool {
    let name = |pid: &str| fs::read_to_string(Path::new("/proc").join(pid).join("comm")).ok();
    pid != std::process::id() && name(&pid.to_string()).is_some_and(|comm| Some(comm) == name("self"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_of_a_leakprobe_that_is_gone_are_found_each_once() {
        let defined = "p:leakprobe_17/e1 /proc/self/fd/9:0x10\np:leakprobe_17/e1 /proc/self/fd/9:0x20\n\
            r:leakprobe_18/e1 /proc/self/fd/9:0x20\np:uprobes/leakprobe_17 /bin/x:0x20\nr:leakprobe_17/e2 /proc/self/fd/9:0x20\n";
        assert_eq!(stale(defined, |pid| pid == 18), ["leakprobe_17/e1", "leakprobe_17/e2"]);
        assert_eq!(stale(defined, |_| true), [""; 0]);
    }
}
