//! With `--follow`: children, from the moment that they are made.
//!
//! A child is a target of the BPF programs before its first instruction, in its parent's place: its code is its parent's.
//! It is taken in, with a place and tables of its own, when it runs another program, when it changes its code, and
//! else half a second later or before a report. One that has ended by then never is: what it did is in the ledger, and
//! what it held is dropped with it.

use std::{
    collections::{HashMap, VecDeque},
    mem,
    os::fd::OwnedFd,
    path::Path,
    sync::Arc,
};

use anyhow::{Context as _, Result, bail};
use leakprobe_common::{EXECS, Site, Target};
use tokio::sync::mpsc;

use super::{
    Session,
    ghosts::{Ghosts, Inheritance},
    late::Doubtful,
    watched,
    watched::{Guard, Seed, Watched, seed},
};
use crate::{
    drain::decode::CopiedStack,
    probe::attach::{self, Attachment, Probed},
    report::model::Warning,
    sys::{clock, perf, ready},
    target::process::{Process, TargetError},
};

/// Copies of stacks that are kept until the process that they are of is known: more than their ring buffer has room for.
const MAX_EARLY: usize = 512;

/// Stacks of children that are remembered until they are taken in, or until the next report.
const MAX_STACKS: usize = 65_536;

/// Clock ticks of /proc a second (`USER_HZ`).
const TICK_NS: u64 = 10_000_000;

/// Which process has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    /// The one in this place.
    Place(usize),
    /// A child.
    Child {
        /// Its number.
        pid: u32,
        /// The number of its first program image.
        born: u32,
    },
}

/// The children that have no place.
#[derive(Default)]
pub struct Children {
    pending: HashMap<u32, Pending>,
    /// Those that have ended, with the number of their first image: their records are to be deleted.
    ended: HashMap<u32, u32>,
    /// The stacks of these.
    ended_stacks: Vec<u64>,
    /// What all sites that were deleted have allocated and freed.
    gone: Option<Site>,
    early: VecDeque<CopiedStack>,
    ghosts: Ghosts,
    doubtful: Doubtful,
    /// Where the ends of processes are told.
    pub over: Option<mpsc::UnboundedSender<Over>>,
}

/// A child that is not taken in yet.
struct Pending {
    process: Process,
    /// When it was made, `CLOCK_MONOTONIC` nanoseconds.
    made_ns: u64,
    /// When it has called exec last, `CLOCK_MONOTONIC` nanoseconds, where that was told, and whether probes may ever have
    /// gone by that.
    executed_ns: u64,
    is_replaced: bool,
    /// Whether it was not taken in because that had not been told.
    is_put_off: bool,
    parent: u32,
    seed: Arc<Seed>,
    probes: Vec<Attachment>,
    guard: Guard,
    born: u32,
    stacks: Vec<u64>,
}

impl Children {
    /// What the sites of children have allocated and freed that are not there any more.
    pub fn gone(&self) -> Option<Site> {
        self.gone
    }

    /// What to say of those whose probes the kernel may have taken for a while.
    pub fn doubts(&self) -> Option<Warning> {
        self.doubtful.warning()
    }

    /// Whether none waits to be taken in.
    pub fn are_none(&self) -> bool {
        self.pending.is_empty()
    }

    /// Keeps a copy of a stack, of a process that may become known.
    pub fn keep(&mut self, copy: CopiedStack) {
        if self.early.len() == MAX_EARLY {
            self.early.pop_front();
        }
        self.early.push_back(copy);
    }

    /// Lets go of the probes of those that wait.
    pub fn let_go(&mut self) {
        self.ghosts.clear();
        self.pending.values_mut().for_each(|pending| pending.probes.clear());
    }

    /// Whether a process waits to be taken in.
    pub fn has(&self, pid: u32) -> bool {
        self.pending.contains_key(&pid)
    }

    /// Notes a stack of one that waits, or has ended.
    pub fn notice(&mut self, pid: u32, stack: u64) {
        let stacks = match self.pending.get_mut(&pid) {
            Some(pending) => &mut pending.stacks,
            None => &mut self.ended_stacks,
        };
        if stacks.len() < MAX_STACKS {
            stacks.push(stack);
        }
    }

    /// Notes that one that waits has executed a program, and whether its probes may have gone by that.
    pub fn exec(&mut self, pid: u32, at_ns: u64, is_replaced: bool) {
        if let Some(pending) = self.pending.get_mut(&pid) {
            pending.executed_ns = at_ns;
            if is_replaced {
                pending.is_replaced = true;
                // One that has ended needs none.
                let _ = seed::renew(&mut pending.probes, pid);
            }
        }
    }

    /// Whether a process has ended before it was taken in.
    pub fn has_lost(&self, pid: u32) -> bool {
        self.ended.contains_key(&pid)
    }
}

/// Whether there is a process of this number.
fn is_there(pid: u32) -> bool {
    Path::new("/proc").join(pid.to_string()).exists()
}

/// Whether a record's program image is one of the process whose first one was `born`: each exec adds 1.
pub fn is_of(generation: u32, born: u32) -> bool {
    generation.wrapping_sub(born) < EXECS
}

impl Session {
    /// A process of the session has made another one, of this number and with that of its first program image.
    pub(super) fn born(&mut self, parent: u32, (child, born): (u32, u32), at_ns: u64) -> Result<()> {
        // One of the same number has ended: its end comes later, by another way.
        if let Some(old) = self.children.pending.remove(&child) {
            self.drop_child(child, old.born, old.stacks)?;
        }
        if self.children.ended.contains_key(&child) {
            self.forget_ended_children()?;
        }
        if let Some(index) = self.index_of(child) {
            if !self.watched[index].has_ended() {
                self.end(index, None)?;
            }
            self.forget(&HashMap::from([(child, self.watched[index].born())]))?;
        }
        self.children.ghosts.forget(child);
        let Some(mut had) = self.inheritance(parent, at_ns) else {
            if is_there(child) {
                let text = format!("left out: process {child}: what has made it is not known any more");
                self.note("left_out", text);
            }
            return self.drop_child(child, born, Vec::new());
        };
        let process = match Process::hold(child) {
            Ok(process) if is_child_made_at(&process, at_ns) && self.may_have_made(parent, &process) => {
                process
            }
            Ok(_) | Err(TargetError::NoSuchProcess { .. } | TargetError::Zombie { .. }) => {
                return self.leave_ghost((child, born), (parent, at_ns), had);
            }
            Err(error) => {
                // What is said of one that ends at this moment is of many kinds.
                if is_there(child) {
                    self.note("left_out", format!("left out: {error}"));
                }
                return self.leave_ghost((child, born), (parent, at_ns), had);
            }
        };
        if let Err(error) = had.put_into(child, at_ns) {
            if !process.has_ended().unwrap_or(true) && is_there(child) {
                self.note("left_out", format!("left out: {error:#}"));
            }
            return self.leave_ghost((child, born), (parent, at_ns), had);
        }
        if !had.is_guarded {
            let has_ended = self.has_ended(parent);
            self.doubt(parent, has_ended, at_ns);
        }
        let Inheritance { seed, probes, guard: Some(guard), .. } = had else {
            return self.drop_child(child, born, Vec::new());
        };
        self.await_child(&process, born)?;
        if let Some(ranges) = &mut self.ranges {
            ranges.fork(parent, child, born);
        }
        let pending = Pending {
            process,
            made_ns: at_ns,
            executed_ns: 0,
            is_replaced: false,
            is_put_off: false,
            parent,
            seed,
            probes,
            guard,
            born,
            stacks: Vec::new(),
        };
        self.children.pending.insert(child, pending);
        Ok(())
    }

    /// One that cannot be followed, most times because it has ended, leaves what it had to those that it has made.
    fn leave_ghost(
        &mut self,
        (pid, born): (u32, u32),
        (parent, at_ns): (u32, u64),
        had: Inheritance,
    ) -> Result<()> {
        if !had.is_guarded {
            self.doubt(parent, true, at_ns);
        }
        self.children.ghosts.keep(pid, parent, had.seed, had.probes, had.guard);
        self.drop_child(pid, born, Vec::new())
    }

    /// What a process of the session hands down to one that it has made at that time.
    fn inheritance(&mut self, parent: u32, at_ns: u64) -> Option<Inheritance> {
        if let Some(pending) = self.children.pending.get(&parent) {
            let (seed, probes) = (Arc::clone(&pending.seed), attach::share(&pending.probes));
            return Some(Inheritance::new(seed, probes, Some(&pending.guard), at_ns));
        }
        if let Some(inheritance) = self.children.ghosts.inheritance(parent, at_ns) {
            return Some(inheritance);
        }
        let index = self.index_of(parent)?;
        let watched = &mut self.watched[index];
        let (seed, probes) = (watched.seed(), watched.share_probes());
        Some(Inheritance::new(seed, probes, watched.own_guard(), at_ns))
    }

    /// Whether a process that has shown a stack is to be taken in: its making is told of by another ring buffer.
    pub(super) fn is_to_come(&self, pid: u32) -> bool {
        self.children.has(pid) || self.index_of(pid).is_none_or(|index| self.watched[index].has_ended())
    }

    /// A process of the session, with a place or without.
    fn process_of(&self, pid: u32) -> Option<&Process> {
        let pending = self.children.pending.get(&pid).map(|pending| &pending.process);
        pending.or_else(|| Some(self.watched[self.index_of(pid)?].process()))
    }

    /// Whether a process of the session has ended.
    fn has_ended(&self, pid: u32) -> bool {
        self.process_of(pid).is_none_or(|process| process.has_ended().unwrap_or(true))
    }

    /// Whether a process can be one that another one has made: its child, or with `CLONE_PARENT` its sibling, unless that one
    /// has ended and left it to others.
    fn may_have_made(&self, maker: u32, process: &Process) -> bool {
        let parent = process.parent();
        parent == maker
            || self.process_of(maker).is_none_or(|maker| maker.parent() == parent)
            || self.has_ended(maker)
    }

    /// A process was made at that time by one that had no guard: their events may have been exchanged. Makes sure of the
    /// maker's probes, which may be the other one's by now.
    fn doubt(&mut self, maker: u32, has_one_ended: bool, at_ns: u64) {
        if has_one_ended && !perf::guards_descendants() {
            self.children.doubtful.note(at_ns);
        }
        if let Some(pending) = self.children.pending.get_mut(&maker) {
            if pending.guard.asks_for_renewal() {
                // One that has ended needs none.
                let _ = seed::renew(&mut pending.probes, maker);
            }
        } else if let Some(index) = self.index_of(maker).filter(|&index| !self.watched[index].has_ended()) {
            self.watched[index].renew_probes_once();
        }
    }

    /// Puts the probes on an allocator that a process has met into those that it comes from: see [`watched::foreseen`].
    pub(super) fn foresee(&mut self, index: usize, met: Probed) {
        /// Longer lines are not gone back; nor do numbers that are another process's by now lead in circles.
        const MAX_DEPTH: usize = 16;
        let Some(of) = self.watched[index].probes_on(met).and_then(Attachment::share) else { return };
        let mut parent = self.watched[index].parent();
        for _ in 0..MAX_DEPTH {
            let Some(pid) = parent else { return };
            if let Some(pending) = self.children.pending.get_mut(&pid) {
                watched::foreseen::foresee(&mut pending.probes, &of, pid);
                parent = Some(pending.parent);
            } else if let Some(index) = self.index_of(pid) {
                self.watched[index].foresee(&of);
                parent = self.watched[index].parent();
            } else {
                parent = self.children.ghosts.parent(pid);
            }
        }
    }

    /// Has a child's end told.
    fn await_child(&self, process: &Process, born: u32) -> Result<()> {
        let Some(over) = &self.children.over else { return Ok(()) };
        let pidfd = process.pidfd().try_clone_to_owned().context("failed to copy a pidfd")?;
        tokio::spawn(tell_when_over(pidfd, Over::Child { pid: process.pid(), born }, over.clone()));
        Ok(())
    }

    /// A child that has ended, or that cannot be followed, is no target any more.
    fn drop_child(&mut self, pid: u32, born: u32, stacks: Vec<u64>) -> Result<()> {
        self.children.ended_stacks.extend(stacks);
        self.children.early.retain(|copy| copy.tgid != pid);
        if let Some(ranges) = &mut self.ranges {
            ranges.forget(pid);
        }
        self.children.ended.insert(pid, born);
        self.maps.remove_target(pid, born)
    }

    /// One that waited to be taken in has ended. What it has made may not have been told of yet.
    fn drop_pending(&mut self, pid: u32, pending: Pending) -> Result<()> {
        let Pending { parent, seed, probes, guard, born, stacks, .. } = pending;
        self.children.ghosts.keep(pid, parent, seed, probes, Some(guard));
        self.drop_child(pid, born, stacks)
    }

    /// Deletes what children held that ended before they were taken in.
    pub(super) fn forget_ended_children(&mut self) -> Result<()> {
        let ended = mem::take(&mut self.children.ended);
        if ended.is_empty() {
            return Ok(());
        }
        self.forget(&ended)?;
        let stacks = mem::take(&mut self.children.ended_stacks);
        for stack in &stacks {
            self.dropped.remove(stack);
        }
        self.maps.remove_stacks(&stacks, self.children.gone.get_or_insert(Site::NOTHING))
    }

    /// Takes in every child that runs, as soon as that can be.
    pub(super) fn take_in_children(&mut self) -> Result<()> {
        let pids: Vec<u32> = self.children.pending.keys().copied().collect();
        pids.into_iter().try_for_each(|pid| self.take_in(pid))
    }

    /// Takes in a child: its place, its tables, and the probes that it lacks.
    pub(super) fn take_in(&mut self, pid: u32) -> Result<()> {
        let Some(target) = self.maps.target(pid)? else {
            return match self.children.pending.remove(&pid) {
                Some(pending) => self.drop_pending(pid, pending),
                None => Ok(()),
            };
        };
        // One of vfork has nothing of its own before it calls exec, which tells.
        if target.owner != pid {
            return Ok(());
        }
        // When it has executed its program is about to be told: whether its probes were there by then depends on that.
        if target.flags & Target::FORKED == 0
            && let Some(pending) = self.children.pending.get_mut(&pid)
            && pending.executed_ns == 0
            && !mem::replace(&mut pending.is_put_off, true)
        {
            return Ok(());
        }
        let Some(pending) = self.children.pending.remove(&pid) else { return Ok(()) };
        let born = pending.born;
        if target.born != born || pending.process.has_ended().unwrap_or(true) {
            let has_called_exec = target.born == born && target.flags & Target::FORKED == 0;
            self.unseen += u64::from(has_called_exec);
            return self.drop_pending(pid, pending);
        }
        if self.index_of(pid).is_none() && !self.has_room() {
            self.crowd_out(pid);
            return self.drop_pending(pid, pending);
        }
        let (start, stacks) = (pending.process.start_time(), pending.stacks.clone());
        let (parent, seed) = (pending.parent, Arc::clone(&pending.seed));
        let probes = attach::share(&pending.probes);
        match self.take_in_place(pending, &target) {
            Ok(index) => {
                self.forget_replaced(pid, target.generation)?;
                self.look(index)?;
                self.watched[index].begin();
                self.take_early_copies(index)
            }
            Err(error) => {
                // One that has ended meanwhile, or is about to and has no memory any more, is not left out.
                let is_it = |process: Process| process.start_time() == start && process.is_there();
                let is_there = Process::hold(pid).is_ok_and(is_it);
                if is_there && self.members.leave_out(pid) {
                    self.note("left_out", format!("left out: {error:#}"));
                }
                self.children.ghosts.keep(pid, parent, seed, probes, None);
                self.drop_child(pid, born, stacks)
            }
        }
    }

    /// Takes in the copies of stacks that have come before their process was known.
    fn take_early_copies(&mut self, index: usize) -> Result<()> {
        let pid = self.watched[index].pid();
        let early = mem::take(&mut self.children.early);
        let (of_this, others): (VecDeque<_>, _) = early.into_iter().partition(|copy| copy.tgid == pid);
        self.children.early = others;
        for copy in of_this {
            if self.anew.take(copy, index as u32, &self.unwinding, &mut self.maps)? {
                self.watched[index].want_look();
            }
        }
        self.take_kept(index);
        Ok(())
    }

    /// Gives a child a place.
    fn take_in_place(&mut self, pending: Pending, target: &Target) -> Result<usize> {
        let Pending {
            process,
            made_ns,
            executed_ns,
            is_replaced,
            parent,
            seed,
            probes,
            guard,
            born,
            stacks,
            ..
        } = pending;
        if let Some(refusal) = watched::seccomp_refusal(&process)?
            && !self.options.allow_return_probes_under_seccomp
        {
            bail!(refusal);
        }
        let pid = process.pid();
        let index = self.place_of(pid)?;
        // As those of its stacks that were copied have it.
        let epoch = self.unwinding.epoch(target.number)?;
        self.unwinding.begin_anew(index as u32, epoch + (epoch & 1))?;
        let generation = target.generation;
        // Where it was not told of, not before it was made.
        let executed_ns = (target.flags & Target::FORKED == 0).then_some(executed_ns.max(made_ns));
        let mut watched = Watched::child(
            process,
            &seed,
            (probes, guard),
            parent,
            (born, generation),
            (made_ns, executed_ns),
        )?;
        if is_replaced {
            watched.replace();
        }
        for stack in stacks {
            watched.made_in(stack, epoch);
        }
        match self.watched.get_mut(index) {
            Some(place) => *place = watched,
            None => self.watched.push(watched),
        }
        self.learn_break(index);
        Ok(index)
    }

    /// A child's code is described in its own place now: the programs find it there from now on.
    pub(super) fn settle_child(&mut self, index: usize) -> Result<()> {
        let watched = &self.watched[index];
        let (pid, generation) = (watched.pid(), watched.generation());
        let Some(target) = self.maps.target(pid)? else { return Ok(()) };
        // After an exec that is not known of yet, it is described once more.
        if target.born != watched.born() || target.generation != generation {
            return Ok(());
        }
        let is_settled = target.number == index as u32
            && target.image == generation
            && target.flags & Target::PENDING == 0;
        if is_settled {
            return Ok(());
        }
        let flags = target.flags & !Target::PENDING;
        self.maps.set_target(pid, Target { number: index as u32, image: generation, flags, ..target })
    }

    /// A process has replaced its program. What user space has written of it at that moment may have been the old image's.
    pub(super) fn keep_image(&mut self, pid: u32, generation: u32) -> Result<()> {
        match self.maps.target(pid)? {
            Some(target) if self.options.follow && target.generation < generation => {
                let flags = target.flags & !Target::FORKED;
                let target = Target { generation, image: generation, owner: pid, flags, ..target };
                self.maps.set_target(pid, target)
            }
            _ => Ok(()),
        }
    }

    /// A place is taken over: children that have not been taken in since are described by it no more.
    pub(super) fn leave_place(&mut self, index: usize) -> Result<()> {
        for pid in self.children.pending.keys() {
            if let Some(target) = self.maps.target(*pid)?
                && target.number == index as u32
                && target.image != Target::UNDESCRIBED
            {
                self.maps.set_target(*pid, Target { image: Target::UNDESCRIBED, ..target })?;
            }
        }
        Ok(())
    }

    /// A child has ended.
    pub(super) fn child_is_over(&mut self, pid: u32, born: u32) -> Result<()> {
        if self.children.pending.get(&pid).is_some_and(|pending| pending.born == born)
            && let Some(pending) = self.children.pending.remove(&pid)
        {
            return self.drop_pending(pid, pending);
        }
        match self.index_of(pid).filter(|&index| self.watched[index].born() == born) {
            Some(index) if !self.watched[index].has_ended() => self.end(index, None),
            _ => Ok(()),
        }
    }
}

/// Whether a process is the child that was made at that time, as far as /proc tells, which rounds: its number can be another
/// one's by now, which has begun later. How much earlier than it is told of it began does not matter: making it can be
/// interrupted for long.
fn is_child_made_at(process: &Process, at_ns: u64) -> bool {
    let ticks = (at_ns + clock::suspended_ns()) / TICK_NS;
    process.start_time() <= ticks + 1
}

/// Waits for a process's end.
pub async fn tell_when_over(pidfd: OwnedFd, which: Over, over: mpsc::UnboundedSender<Over>) {
    if let Ok(pidfd) = ready::readable(pidfd)
        && pidfd.readable().await.is_ok()
    {
        // The receiver is gone only when the session is.
        let _ = over.send(which);
    }
}
