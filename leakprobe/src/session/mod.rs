//! One run: from options to the last report.

mod anew;
mod assemble;
mod budget;
mod children;
mod copies;
mod doubts;
mod follow;
mod ghosts;
mod hidden;
mod kernel;
mod late;
mod members;
mod mismatches;
mod output;
mod processes;
mod run;
mod trigger;
mod unmatched;
mod unwinding;
mod variants;
mod versions;
mod watched;

use std::{
    collections::{BTreeSet, HashMap},
    os::fd::BorrowedFd,
    thread::JoinHandle,
    time::Instant,
};

use anyhow::Result;
use leakprobe_common::{CHUNK_ROWS, Unwinding};

use self::{
    anew::Anew, children::Children, copies::Copies, members::Members, output::Output,
    unwinding::ObjectTables, watched::Watched,
};
pub use self::{
    kernel::{examine as examine_kernel, run_kernel},
    run::{run_command, run_processes},
    watched::kernel_is_hazardous,
};
use crate::{
    analysis::{balance::OwnCounts, sites::Analyst},
    cli::{AttachWith, Options, Placement, Subject, Unwind},
    drain::{
        decode::{CopiedStack, Message},
        snapshot::Dropped,
    },
    lifetime::ranges::Ranges,
    probe::{
        attach,
        cookies::Cookies,
        features::{self, Mechanism},
        load::{self, Loaded, Settings, preallocate},
        maps::{Maps, Rings},
        tables::Tables,
    },
    report::model::{Ledger, Warning},
    symbolize::Symbolizer,
    sys::{bpf, clock, signals::Ending},
    target::{
        family::{Family, with_prefixes},
        object::ObjectCache,
    },
};

/// What goes into a session besides its options.
#[derive(Clone, Copy, Debug)]
pub struct Begun {
    /// When the program began, for the time that attaching took.
    pub at: Instant,
}

/// A running session.
pub struct Session {
    options: Options,
    loaded: Loaded,
    maps: Maps,
    rings: Option<Rings>,
    /// By place, which is the number of a target for the BPF programs.
    watched: Vec<Watched>,
    members: Members,
    children: Children,
    /// Processes that may be profiled at a time.
    room: usize,
    /// The latest number of a program image, where places are taken over.
    latest_generation: u32,
    /// Where probes carry no cookie.
    cookies: Option<Cookies>,
    objects: ObjectCache,
    families: &'static [Family],
    hidden: hidden::Hidden,
    /// What the names of allocators in the processes begin with, where a prefix that was named matches nothing.
    prefixes_there: Vec<String>,
    searched_for_prefixes: usize,
    unwinding: ObjectTables,
    anew: Anew,
    /// By ID that a stack was kept under: the one that it has.
    own_ids: HashMap<u64, u64>,
    copies: Option<Copies>,
    symbolizer: Symbolizer,
    analyst: Analyst,
    ranges: Option<Ranges>,
    range_links: Vec<crate::probe::ranges::RangeLink>,
    /// Probes of processes that have ended, being taken out.
    detaching: Vec<JoinHandle<()>>,
    own: OwnCounts,
    /// Programs that had ended before they were looked at.
    unseen: u64,
    /// Processes that were found when the session had begun.
    came_later: u64,
    /// By stack: what was deleted because its program is gone. BPF counts it as outstanding for ever.
    dropped: HashMap<u64, Dropped>,
    output: Output,
    notes: Vec<Warning>,
    /// Processes that there was no room for.
    crowded_out: BTreeSet<u32>,
    /// When the programs were told to stand still.
    stopped_ns: Option<u64>,
    /// Whether it is to end.
    ending: Ending,
    /// Whether return probes endanger a process that has a seccomp filter, on this kernel.
    hazardous: bool,
    started_ns: u64,
    last_report_ns: u64,
    reports: u64,
}

impl Session {
    /// Opens the output, and loads the BPF programs; nothing is probed yet.
    pub fn prepare(options: Options) -> Result<Self> {
        let members = match &options.subject {
            Subject::Processes(selection) => Members::new(selection)?,
            Subject::Command(_) | Subject::Demo | Subject::Kernel => Members::default(),
        };
        let output = Output::open(&options)?;
        let copies = options.stack_copies.as_deref().map(Copies::create).transpose()?;
        let preallocate = !features::maps_on_demand();
        let settings = Settings {
            min_size: options.min_size.unwrap_or(0),
            max_size: options.max_size.unwrap_or(u64::MAX),
            max_blocks: options.max_blocks.unwrap_or(preallocate::max_blocks(preallocate)),
            preallocate,
            max_stacks: options.max_stacks,
            unwinding: match options.unwind {
                Unwind::Auto => Unwinding::Auto,
                Unwind::Dwarf => Unwinding::Tables,
                Unwind::Fp => Unwinding::FramePointers,
                Unwind::Kernel => Unwinding::Kernel,
                Unwind::Caller => Unwinding::Caller,
            },
            copied_one_in: if copies.is_some() { options.stack_copies_one_in } else { 0 },
            row_chunks: options.max_unwind_rows.div_ceil(CHUNK_ROWS as u32),
            targets: match &options.subject {
                Subject::Processes(selection) if selection.is_open() || options.follow => {
                    options.max_processes.max(selection.pids.len() as u32)
                }
                Subject::Processes(selection) => selection.pids.len() as u32,
                Subject::Command(_) | Subject::Demo if options.follow => options.max_processes,
                Subject::Command(_) | Subject::Demo | Subject::Kernel => 1,
            },
            ranges: options.mmap,
            follow: options.follow,
            diagnostics: options.verbose,
            floor: options.placement == Placement::Floor,
        };
        let mut loaded = match options.attach_with {
            AttachWith::Auto => load_as_chosen(&settings)?,
            AttachWith::PerfEvent => load::load(&settings, Mechanism::PerfEvent)?,
            AttachWith::PerfEventByAddress => load::load(&settings, Mechanism::PerfEventByAddress)?,
        };
        let by_address = loaded.mechanism == Mechanism::PerfEventByAddress;
        if by_address && options.verbose {
            eprintln!(
                "leakprobe: probes carry no cookies on kernel {}: they are told apart by their addresses, which is a \
                 little slower (`leakprobe doctor` says more)",
                features::release()
            );
        }
        let tables = Tables::take(&mut loaded.ebpf, settings.row_chunks, options.unwind == Unwind::Auto)?;
        let (maps, rings) =
            Maps::take(&mut loaded.ebpf, settings.max_blocks, settings.max_stacks, settings.follow)?;
        let ranges = options.mmap.then(|| Ranges::new(page_bytes()));
        let now = clock::monotonic_ns();
        let unwind = options.unwind;
        let families = with_prefixes(&options.allocator_prefixes);
        Ok(Self {
            options,
            loaded,
            maps,
            rings: Some(rings),
            watched: Vec::new(),
            members,
            children: Children::default(),
            room: settings.targets as usize,
            latest_generation: 0,
            cookies: by_address.then(Cookies::default),
            objects: ObjectCache::new(),
            families,
            hidden: hidden::Hidden::default(),
            prefixes_there: Vec::new(),
            searched_for_prefixes: 0,
            unwinding: ObjectTables::new(unwind, tables, settings.targets == 1),
            anew: Anew::default(),
            own_ids: HashMap::new(),
            copies,
            symbolizer: Symbolizer::new(),
            analyst: Analyst::new(now),
            ranges,
            range_links: Vec::new(),
            detaching: Vec::new(),
            own: OwnCounts::default(),
            unseen: 0,
            came_later: 0,
            dropped: HashMap::new(),
            output,
            notes: Vec::new(),
            crowded_out: BTreeSet::new(),
            stopped_ns: None,
            ending: Ending::default(),
            hazardous: watched::kernel_is_hazardous(),
            started_ns: now,
            last_report_ns: now,
            reports: 0,
        })
    }

    /// With `--mmap`: follows the mmap family from now on.
    fn follow_ranges(&mut self) -> Result<()> {
        if self.ranges.is_some() {
            self.range_links = crate::probe::ranges::attach(&self.loaded)?;
        }
        Ok(())
    }

    /// Probes are in place: from now on time counts.
    fn begin(&mut self, begun: Begun) -> Result<()> {
        self.watched.iter_mut().for_each(Watched::begin);
        self.watched.iter_mut().for_each(Watched::count_from_now);
        let now = clock::monotonic_ns();
        (self.started_ns, self.last_report_ns, self.analyst) = (now, now, Analyst::new(now));
        eprintln!("leakprobe: probes in place ({} ms)", begun.at.elapsed().as_millis());
        Ok(())
    }

    /// Takes in one record of the ring buffer.
    fn handle(&mut self, message: Message) -> Result<()> {
        match message {
            Message::NewStack { tgid, stack } => {
                if self.children.has(tgid) || self.children.has_lost(tgid) {
                    self.children.notice(tgid, stack);
                    return Ok(());
                }
                let Some(index) = self.index_of(tgid) else { return Ok(()) };
                if let Some(kept) = self.maps.stack(stack) {
                    self.watched[index].notice(stack, &kept);
                    self.settle_id(index, stack);
                }
            }
            Message::CodeChange { tgid, epoch } => {
                if self.children.has(tgid) {
                    return self.take_in(tgid);
                }
                let Some(index) = self.index_of(tgid) else { return Ok(()) };
                if self.watched[index].code_changed(epoch) {
                    self.look(index)?;
                }
            }
            Message::Fork { tgid } => {
                // Where probes are perf events, the kernel frees a child of each breakpoint as it meets it.
                if let (Some(index), true) = (self.index_of(tgid), self.loaded.multi.is_some()) {
                    self.watched[index].fork();
                }
            }
            Message::Born { tgid, child, born, at_ns } => self.born(tgid, (child, born), at_ns)?,
            Message::Exec { tgid, generation, at_ns, is_replaced } => {
                if self.children.has(tgid) {
                    self.children.exec(tgid, at_ns, is_replaced);
                    return self.take_in(tgid);
                }
                let Some(index) = self.index_of(tgid) else {
                    // A child that has ended already.
                    self.unseen += u64::from(self.options.follow);
                    return Ok(());
                };
                // The BPF programs know a process by its number: once it has ended, another one may have that.
                if self.watched[index].process().number_is_anothers() {
                    return Ok(());
                }
                self.keep_image(tgid, generation)?;
                self.watched[index].exec(generation, at_ns);
                if is_replaced {
                    self.put_in_again(index);
                }
                self.watched[index].refresh();
                self.forget_replaced(tgid, generation)?;
                if let Some(ranges) = &mut self.ranges {
                    ranges.forget(tgid);
                }
                self.look(index)?;
            }
            Message::Range(operation, event) => {
                if let Some(ranges) = &mut self.ranges {
                    ranges.apply(operation, &event);
                }
            }
        }
        Ok(())
    }

    /// Deletes the records of the programs that a process has replaced.
    fn forget_replaced(&mut self, tgid: u32, generation: u32) -> Result<()> {
        for (stack, dropped) in
            self.maps.forget(|key, block| key.tgid == tgid && block.generation < generation)?
        {
            self.own.exec_dropped += dropped.blocks;
            self.dropped.entry(stack).or_default().add(dropped);
        }
        Ok(())
    }

    /// Whether copies of stacks are still taken in.
    fn takes_copies(&self) -> bool {
        self.copies.is_some() || self.anew.has_room(self.options.max_stacks)
    }

    /// Takes in a copy of a stack, whose record has these bytes.
    fn handle_copy(&mut self, copy: CopiedStack, record: &[u8]) -> Result<()> {
        if let Some(copies) = &mut self.copies {
            copies.write(record)?;
        }
        if copy.undescribed && self.options.follow && self.is_to_come(copy.tgid) {
            self.children.keep(copy);
        } else if copy.undescribed
            && let Some(index) = self.index_of(copy.tgid)
        {
            // It may be described by now, and not as it is any more after the next change.
            if self.anew.take(copy, index as u32, &self.unwinding, &mut self.maps)? {
                self.watched[index].want_look();
            }
            self.take_kept(index);
        }
        Ok(())
    }

    /// Takes note of the stacks that were unwound anew.
    fn take_kept(&mut self, index: usize) {
        for kept in self.anew.kept() {
            self.watched[index].made_in(kept.id, kept.epoch);
            self.watched[index].forget_stack(kept.from);
            self.settle_id(index, kept.id);
        }
    }

    /// Keeps a stack under the ID that it has in other variants of the process's code too, if it does not come through what
    /// tells them apart.
    fn settle_id(&mut self, index: usize, id: u64) {
        let Some(stack) = self.maps.stack(id) else { return };
        let watched = &mut self.watched[index];
        if let Some(own) = watched.own_id(id, &stack)
            && self.maps.set_stack(own, stack)
        {
            watched.made_in(own, watched.epoch_of(id));
            self.own_ids.insert(id, own);
        }
    }

    /// IDs that stand for the same stack as another one.
    fn same_stacks(&self) -> HashMap<u64, u64> {
        let own = |id: u64| self.own_ids.get(&id).copied().unwrap_or(id);
        let anew = self.anew.same().into_iter().map(|(from, to)| (from, own(to)));
        anew.chain(self.own_ids.iter().map(|(&from, &to)| (from, to))).collect()
    }

    /// Reads what each process uses now, for the head of a report that comes after its end.
    fn sample(&mut self) {
        self.watched.iter_mut().filter(|watched| !watched.has_ended()).for_each(Watched::refresh);
    }

    /// Ends the recording: the programs are told to stand still, and those that run now are waited for. From then on what
    /// the maps hold is of one moment, and the probes do nothing; without that, frees would be missed while the probes go
    /// one by one, and freed blocks reported as live.
    fn stop(&mut self) -> Result<()> {
        self.maps.close()?;
        self.stopped_ns = Some(clock::monotonic_ns());
        self.own.recursion_misses = self.recursion_misses();
        if bpf::wait_for_programs().is_err() {
            // That waits for them too, but takes its time where there are many.
            self.take_out();
        }
        Ok(())
    }

    /// Takes the probes out.
    fn take_out(&mut self) {
        self.range_links.clear();
        self.children.let_go();
        attach::detach(self.watched.iter_mut().flat_map(Watched::take_attachments).collect());
        for detaching in self.detaching.drain(..) {
            // What it panicked of is not this session's.
            let _ = detaching.join();
        }
    }

    fn recursion_misses(&self) -> Vec<(String, u64)> {
        let floor = self.options.placement == Placement::Floor;
        let misses = |program: BorrowedFd<'_>| bpf::recursion_misses(program).unwrap_or_default();
        let programs = self.loaded.programs(floor).into_iter();
        programs.map(|(name, fd)| (name.to_owned(), misses(fd))).collect()
    }

    /// What limits the report, most important first.
    fn warnings(&self, ledger: &Ledger) -> Vec<Warning> {
        let mut all = ledger.losses();
        all.extend(mismatches::warning(ledger));
        all.extend(self.notes.iter().cloned());
        all.extend(self.hidden_allocators());
        all.extend(self.unmatched_prefixes());
        all.extend(self.unmatched_objects());
        all.extend(late::came_later(self.came_later));
        all.extend(late::refused(&self.watched));
        all.extend(late::crowded_out(&self.crowded_out, self.room));
        all.extend(self.children.doubts());
        all.extend(late::warnings(&self.watched, self.unseen));
        all.extend(self.unwinding.warnings());
        all.extend(self.watched.iter().flat_map(Watched::warnings));
        all
    }
}

/// Loads the programs for the mechanism that the kernel allows.
fn load_as_chosen(settings: &Settings) -> Result<Loaded> {
    let choice = features::Choice::begin();
    let likely = choice.likely();
    let loaded = load::load(settings, likely);
    match choice.settle() {
        settled if settled == likely => loaded,
        settled => {
            drop(loaded);
            load::load(settings, settled)
        }
    }
}

/// Machine's page size, bytes.
fn page_bytes() -> u64 {
    procfs::page_size()
}
