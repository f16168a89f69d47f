//! The processes of a session: taken in, looked at, and their places taken over by others when they have ended.

use std::{collections::HashMap, thread, time::Instant};

use anyhow::{Result, bail};
use leakprobe_common::{Block, BlockKey};

use super::{
    Session, children,
    watched::{self, Watched},
};
use crate::{
    cli::Placement,
    probe::{assign::Freedom, attach, features, tables::Image},
    report::model::Warning,
    target::{
        discovery::Discovery,
        process::{Process, TargetError},
    },
};

impl Session {
    /// Takes a process in: checks it and makes it a target. Its probes follow by [`Session::look`]. Returns its place.
    pub fn watch(&mut self, process: Process) -> Result<usize> {
        if self.hazardous && !self.options.allow_return_probes_under_seccomp {
            let text = format!(
                "kernel {} may kill a process that installs a seccomp filter while return probes are in it; do not \
                 profile a process that is about to confine itself",
                features::release()
            );
            self.note("seccomp", text);
        }
        if let Some(refusal) = watched::seccomp_refusal(&process)? {
            if !self.options.allow_return_probes_under_seccomp {
                bail!(refusal);
            }
            self.note("seccomp", refusal);
        }
        if features::execute_only_pages() {
            let text = "this processor does not let a program read the page that return probes lead to: a target that \
                        unwinds its stack inside its allocator (a thread cancelled there, a backtrace in a signal \
                        handler) can crash; do not profile such a program here";
            self.note("execute_only", text.to_owned());
        }
        let pid = process.pid();
        let index = self.place_of(pid)?;
        // Before others had it, a place begins with 0, as what is learnt of a process's break is numbered.
        let generation = if index == self.watched.len() { 0 } else { self.latest_generation };
        self.unwinding.begin_anew(index as u32, 0)?;
        self.maps.add_target(pid, index as u32, generation)?;
        let discovery = Discovery::new(self.families, self.options.allocator_objects.clone());
        let mut watched = Watched::new(process, discovery, self.options.record_operator_new, generation)?;
        if self.options.follow {
            watched.guard()?;
        }
        match self.watched.get_mut(index) {
            Some(place) => *place = watched,
            None => self.watched.push(watched),
        }
        Ok(index)
    }

    /// A place for a process; its first program image has the latest number then, which no other one of that place or number
    /// had, unless it is a child, which has a number already. The place of one that has ended is taken over where there
    /// is no other, or where it had the same number.
    pub(super) fn place_of(&mut self, pid: u32) -> Result<usize> {
        self.latest_generation += 1;
        let is_free = |watched: &Watched| watched.has_ended();
        let index = match self.index_of(pid) {
            Some(index) if !is_free(&self.watched[index]) => bail!("process {pid} is profiled already"),
            Some(index) => index,
            None if self.watched.len() < self.room => return Ok(self.watched.len()),
            None => match self.watched.iter().position(is_free) {
                Some(index) => index,
                None => bail!(self.no_room_for(pid)),
            },
        };
        let old = self.watched[index].pid();
        self.forget(&HashMap::from([(old, self.watched[index].born())]))?;
        self.leave_place(index)?;
        if let Some(ranges) = &mut self.ranges {
            ranges.forget(old);
        }
        if let Some(cookies) = &mut self.cookies
            && !self.options.follow
        {
            cookies.forget(old);
        }
        let numbers = self.watched.iter().map(Watched::generation).filter(|number| number >> 31 == 0);
        self.latest_generation = self.latest_generation.max(numbers.max().unwrap_or(0) + 1);
        Ok(index)
    }

    /// Notes that there is no room for a process.
    pub(super) fn crowd_out(&mut self, pid: u32) {
        /// Their number is told; there are no more numbers of processes than four times this.
        const MOST: usize = 1 << 20;
        if self.crowded_out.len() < MOST {
            self.crowded_out.insert(pid);
        }
    }

    /// Whether there is room for one more process.
    pub(super) fn has_room(&self) -> bool {
        self.watched.len() < self.room || self.watched.iter().any(Watched::has_ended)
    }

    fn no_room_for(&self, pid: u32) -> String {
        format!(
            "no room for process {pid}: {} are profiled already; raise --max-processes",
            self.watched.len()
        )
    }

    /// Deletes the records of processes that have ended, by number, with that of their first program image: there can be
    /// another process of the number.
    pub(super) fn forget(&mut self, ended: &HashMap<u32, u32>) -> Result<()> {
        let is_gone = |key: &BlockKey, block: &Block| {
            ended.get(&key.tgid).is_some_and(|&born| children::is_of(block.generation, born))
        };
        for (stack, dropped) in self.maps.forget(is_gone)? {
            self.own.ended_dropped += dropped.blocks;
            self.dropped.entry(stack).or_default().add(dropped);
        }
        Ok(())
    }

    /// Makes room where more than half of it is used, and others go on: what processes held that have ended is gone with
    /// them, and this report has shown it.
    pub(super) fn make_room(&mut self, records: u64) -> Result<()> {
        let ended = self.watched.iter().filter(|watched| watched.has_ended());
        let ended: HashMap<u32, u32> = ended.map(|watched| (watched.pid(), watched.born())).collect();
        if records > self.maps.room_for_blocks() / 2 && !ended.is_empty() && ended.len() < self.watched.len()
        {
            self.forget(&ended)?;
        }
        Ok(())
    }

    /// Looks at what a process has mapped, and probes the allocators that are new. Returns whether the process is still
    /// there to be looked at. Where others are profiled too, a failure is this one's alone.
    pub fn look(&mut self, index: usize) -> Result<bool> {
        match self.look_strictly(index) {
            // It comes and goes: what of it could not be done in its last moments is nobody's loss.
            Err(_) if self.room > 1 && !self.watched[index].process().is_there() => Ok(true),
            Err(error) if self.room > 1 => {
                let pid = self.watched[index].pid();
                self.watched[index].fail(format!("process {pid}: {error:#}"));
                Ok(true)
            }
            outcome => outcome,
        }
    }

    /// As [`Session::look`], where a failure is the session's.
    pub(super) fn look_strictly(&mut self, index: usize) -> Result<bool> {
        if self.stopped_ns.is_some() {
            return Ok(true);
        }
        let freedom = match self.options.placement {
            Placement::Symbol => Freedom::Symbol,
            Placement::Auto | Placement::Floor => Freedom::Best,
        };
        let floor = self.options.placement == Placement::Floor;
        let watched = &mut self.watched[index];
        if self.hazardous
            && !self.options.allow_return_probes_under_seccomp
            && let Ok(Some(refusal)) = watched::seccomp_refusal(watched.process())
        {
            // It has confined itself since the probes went in.
            attach::detach(watched.take_attachments());
            watched.fail(refusal);
            return Ok(true);
        }
        let epoch = self.unwinding.epoch(index as u32)?;
        let Some(mapped) = watched.read_mappings(&mut self.objects)? else { return Ok(false) };
        if watched.is_refused() {
            if self.options.follow {
                self.settle_child(index)?;
            }
            return Ok(true);
        }
        if self.unwinding.epoch(index as u32)? != epoch {
            // It changed meanwhile: what was read is of neither. Its allocators are probed already, or come next time.
            watched.want_look();
            return Ok(true);
        }
        let found = watched.take_in(&mapped, epoch);
        self.maps.set_trampoline(watched.pid(), watched.trampoline())?;
        if epoch & 1 == 0 {
            let image = Image { generation: watched.generation(), epoch };
            let program = watched.process().program();
            if self.unwinding.describe(index as u32, image, &mapped, watched.variant(), program)? {
                self.anew.unwind(watched.pid(), index as u32, &self.unwinding, &mut self.maps)?;
                self.take_kept(index);
            } else {
                // The rest when what else has happened was seen to. Copied stacks wait for it.
                watched.want_look();
            }
            if self.options.follow {
                self.settle_child(index)?;
            }
        }
        let watched = &mut self.watched[index];
        let mut planned = watched.plan(&found, freedom);
        if let Some(cookies) = &mut self.cookies {
            for object in &planned {
                cookies.learn(watched.book(), object.of.object, &object.probes);
            }
            // Anew at each look: what is ambiguous depends on where it is mapped.
            if let Some(space) = watched.space_now() {
                self.maps.set_cookies(cookies.entries(watched.book(), space))?;
            }
        }
        if self.options.follow {
            for object in &mut planned {
                if watched.probes_on(object.of).is_some() {
                    continue;
                }
                let (arranged, cookies) = attach::arrange(&mut self.loaded, object.of.object, &object.probes);
                // By address, they are told of above.
                if self.cookies.is_none() {
                    self.maps.set_cookies(cookies)?;
                }
                object.arranged = Some(arranged);
            }
        }
        let met: Vec<_> = planned.iter().map(|object| object.of).collect();
        for object in planned {
            watched.probe(&mut self.loaded, object, floor)?;
        }
        watched.end_look();
        if self.options.follow {
            met.into_iter().for_each(|met| self.foresee(index, met));
        }
        Ok(true)
    }

    /// Puts the probes of a process in once more that may have lost them by executing a program.
    pub(super) fn put_in_again(&mut self, index: usize) {
        let floor = self.options.placement == Placement::Floor;
        let old = self.watched[index].put_in_again(&mut self.loaded, floor);
        if !old.is_empty() {
            self.detaching.retain(|detaching| !detaching.is_finished());
            self.detaching.push(thread::spawn(move || attach::detach(old)));
        }
    }

    /// Takes in the processes that have come to what was asked for, and probes them. Returns their places.
    pub(super) fn admit(&mut self) -> Result<Vec<usize>> {
        if self.stopped_ns.is_some() {
            return Ok(Vec::new());
        }
        let mut new = Vec::new();
        let profiled: Vec<u32> =
            self.watched.iter().filter(|watched| !watched.has_ended()).map(Watched::pid).collect();
        let members = match self.members.find(&profiled) {
            Ok(members) => members,
            // Those that are profiled go on.
            Err(error) => {
                self.note("members", format!("processes that have come since are not profiled: {error:#}"));
                return Ok(new);
            }
        };
        for pid in members {
            if self.ending.signal().is_some() {
                break;
            }
            let known = self.index_of(pid);
            if self.children.has(pid) {
                // It is followed, and a member anyhow.
                self.take_in(pid)?;
                continue;
            }
            if self.options.follow && self.maps.target(pid)?.is_some() {
                // It is one already: as a child whose making is not told of yet.
                continue;
            }
            if known.is_some_and(|index| !self.watched[index].has_ended()) || !self.members.may_come(pid) {
                continue;
            }
            // It is taken in once there is room: one that has ended makes some.
            if known.is_none() && !self.has_room() {
                self.crowd_out(pid);
                continue;
            }
            let process = match Process::open(pid) {
                Ok(process) => process,
                // It has ended meanwhile.
                Err(TargetError::NoSuchProcess { .. } | TargetError::Zombie { .. }) => continue,
                Err(error) => {
                    if Process::hold(pid).is_ok_and(|process| process.is_there()) {
                        self.leave_out(pid, known, error.to_string());
                    }
                    continue;
                }
            };
            let start = process.start_time();
            // One that has ended has its number until its parent has been told.
            let is_new = |index: usize| self.watched[index].process().start_time() != process.start_time();
            if !known.is_none_or(is_new) {
                continue;
            }
            match self.watch(process) {
                Ok(index) => {
                    self.learn_break(index);
                    self.watched[index].be_member();
                    self.look(index)?;
                    self.watched[index].begin();
                    // As the loop runs, they have come since.
                    self.came_later += u64::from(self.children.over.is_some());
                    new.push(index);
                }
                Err(error) => {
                    let is_it = |process: Process| process.start_time() == start && process.is_there();
                    if Process::hold(pid).is_ok_and(is_it) {
                        self.leave_out(pid, known, format!("{error:#}"));
                    }
                }
            }
        }
        // One that was met between its fork and its program's first moments has no allocator yet.
        for index in 0..self.watched.len() {
            let watched = &self.watched[index];
            if !watched.has_ended() && !watched.has_allocator() && watched.is_young() {
                self.look(index)?;
            }
        }
        Ok(new)
    }

    /// With `--mmap`: learns where a process's heap ends. A program that is started has none yet, and shows it when it makes
    /// one.
    pub(super) fn learn_break(&mut self, index: usize) {
        let (process, generation) = (self.watched[index].process(), self.watched[index].generation());
        if let Some(ranges) = &mut self.ranges
            && let Ok(Some(program_break)) = process.program_break()
        {
            ranges.set_break(process.pid(), generation, program_break);
        }
    }

    /// Notes why a process is not profiled, unless it is a member that has just ended.
    fn leave_out(&mut self, pid: u32, known: Option<usize>, why: String) {
        if known.is_none() && self.members.leave_out(pid) {
            self.note("left_out", format!("left out: {why}"));
        }
    }

    /// Notes the end of a process.
    pub(super) fn end(&mut self, index: usize, how: Option<String>) -> Result<()> {
        self.read_kin(index);
        let watched = &mut self.watched[index];
        self.unseen += u64::from(watched.is_unseen());
        watched.end(how);
        self.maps.remove_target(watched.pid(), watched.born())?;
        // They do nothing any more, but cost the others that map the same objects. Taking them out takes its time.
        let attachments = watched.take_attachments();
        if self.room > 1 && !attachments.is_empty() {
            self.detaching.retain(|detaching| !detaching.is_finished());
            self.detaching.push(thread::spawn(move || attach::detach(attachments)));
        }
        Ok(())
    }

    /// With `--follow`: reads what a process had from its parent.
    pub(super) fn read_kin(&mut self, index: usize) {
        if self.options.follow && !self.watched[index].has_ended() {
            let kin = self.maps.kin(self.watched[index].pid());
            self.watched[index].set_kin(kin);
        }
    }

    /// Notes what limits the report, once.
    pub(super) fn note(&mut self, kind: &str, text: String) {
        /// Beyond them, one says that there are more.
        const MAX_NOTES: usize = 32;
        let mut note = Warning { kind: kind.to_owned(), text };
        if self.notes.len() >= MAX_NOTES {
            note.text = "more processes are left out, for reasons that are not listed".to_owned();
            note.kind = "left_out".to_owned();
        }
        if self.notes.len() <= MAX_NOTES && !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }

    /// Looks at every process that is still there.
    pub(super) fn look_at_all(&mut self) -> Result<()> {
        for index in 0..self.watched.len() {
            if !self.watched[index].has_ended() {
                self.look(index)?;
            }
        }
        self.objects.prune();
        Ok(())
    }

    /// Whether a process has shown frames in no known mapping, or has forked.
    pub(super) fn wants_to_look(&self) -> bool {
        self.look_due().is_some()
    }

    /// When the first such process may be looked at.
    pub(super) fn look_due(&self) -> Option<Instant> {
        self.watched.iter().flat_map(|watched| [watched.look_due(), watched.sweep_due()]).flatten().min()
    }

    /// Looks at those whose time has come.
    pub(super) fn look_where_wanted(&mut self) -> Result<()> {
        for index in 0..self.watched.len() {
            if self.watched[index].look_due().is_some_and(|due| due <= Instant::now()) {
                self.look(index)?;
            }
            let watched = &mut self.watched[index];
            if watched.sweep_due().is_some_and(|due| due <= Instant::now())
                && let Some(programs) = &self.loaded.multi
                && let Err(error) = watched.sweep(programs)
            {
                let pid = watched.pid();
                watched.fail(format!(
                    "failed to free the children of process {pid} of its breakpoints: {error:#}"
                ));
            }
        }
        Ok(())
    }

    pub(super) fn index_of(&self, tgid: u32) -> Option<usize> {
        self.watched.iter().position(|watched| watched.pid() == tgid)
    }

    /// Whether nobody is left of those that have been taken in, or are to be.
    pub(super) fn all_ended(&self) -> bool {
        self.watched.iter().all(Watched::has_ended) && self.children.are_none()
    }

    /// Whether the session goes on when all of its processes have ended.
    pub(super) fn waits_for_more(&self) -> bool {
        self.members.are_open()
    }
}
