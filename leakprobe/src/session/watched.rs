//! One process of a session: what is known of it, and its probes.

pub mod foreseen;
mod probing;
pub mod seed;
mod told;

pub use probing::Late;
pub use seed::{Guard, Seed};

use std::{
    borrow::Cow,
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use leakprobe_common::{Kin, MAX_FRAMES, Stack};

use super::{variants::Variants, versions::Versions};
use crate::{
    probe::{
        attach::{Attachment, PlannedProbe, Probed},
        features,
        plan::Arch,
    },
    report::model::ProbeRow,
    sys::clock,
    target::{
        discovery::{Discovery, FoundObject},
        object::{ObjectCache, read_address_space},
        process::{Process, TargetError, Vitals},
        seccomp::{self, SeccompMode},
        space::{AddressSpace, FileId, Object},
    },
};

/// Reading a process's maps holds a lock that its own mmap and munmap need: not more often than this.
const BETWEEN_LOOKS: Duration = Duration::from_millis(20);

/// As long as a program may take to get to its first allocation.
const YOUNG: Duration = Duration::from_secs(10);

/// As long as a program takes to map its objects, at most.
const LINKING: Duration = Duration::from_millis(50);

/// Failures that are kept.
const MAX_FAILURES: usize = 16;

const ARCH: Arch = if cfg!(target_arch = "aarch64") { Arch::Aarch64 } else { Arch::X86_64 };

/// A process being profiled.
pub struct Watched {
    process: Process,
    name: String,
    command_line: Vec<String>,
    container: Option<String>,
    start: Vitals,
    last: Vitals,
    ended: Option<Option<String>>,
    /// Whether it had been watched for a moment only by then.
    is_brief: bool,
    generation: u32,
    /// The number of its first program.
    born: u32,
    /// How many programs it has had.
    programs: u32,
    /// With `--follow`: the process that it was forked from.
    parent: Option<u32>,
    /// With `--follow`: what it holds, and what it had from its parent.
    kin: Kin,
    /// Whose cookies are its own, where they are looked up by address.
    book: u32,
    /// What a child has from it.
    seed: Option<Arc<Seed>>,
    since: Instant,
    versions: Versions,
    variants: Variants,
    variant: u32,
    /// Epoch of the code, as far as events have told: stacks are told of in the same order.
    epoch: u32,
    looked: Option<Instant>,
    look_wanted: bool,
    discovery: Discovery,
    attachments: Vec<Attachment>,
    /// With `--follow`: what keeps them its own.
    guard: Option<Guard>,
    /// What is probed in which object.
    placed: Vec<(Arc<Object>, Probed, Vec<PlannedProbe>)>,
    /// When it was last seen to fork, where its children still have its breakpoints.
    forked: Option<Instant>,
    swept: Option<Instant>,
    probes: Vec<ProbeRow>,
    trampoline: u64,
    cut: Option<String>,
    failures: Vec<String>,
    /// The program that it was last found to run, and that can be profiled.
    fit: Option<FileId>,
    /// Its programs that cannot be profiled, and whether the present one is such.
    refusals: Vec<String>,
    is_refused: bool,
    /// Allocators that were met when the process ran with them already.
    late: Vec<Late>,
    /// When its program began, as long as what that has at first was not seen. `CLOCK_MONOTONIC` nanoseconds.
    began_ns: Option<u64>,
    /// From when on what it does is to be in the reports, or what the one did that made it; the same clock.
    counted_ns: u64,
    /// Whether its probes may have gone with a thread when it executed a program: see [`Watched::put_in_again`].
    is_replaced: bool,
    /// Whether it was found among those that are looked for.
    is_member: bool,
    /// Whether all that it had at first is probed.
    is_settled: bool,
    /// When it executed a program, as long as what that has mapped was not seen.
    executed: Option<Instant>,
    /// What its mappings are known of: when they were read last, and when what that has shown first was not mapped yet.
    /// `CLOCK_MONOTONIC` nanoseconds.
    read_ns: u64,
    taken_ns: u64,
    lacked_ns: u64,
    /// Whether the dynamic linker has told of that program's objects.
    is_linked: bool,
    /// Whether functions that may throw have return probes, where nothing else would tell of their returns.
    throwing: bool,
}

/// The same where the dynamic linker has told of a change: a library that was opened is used at once.
const BETWEEN_CHANGES: Duration = Duration::from_millis(5);

impl Watched {
    /// Reads what the process uses now, to compare with later.
    pub fn new(process: Process, discovery: Discovery, throwing: bool, generation: u32) -> Result<Self> {
        let pid = process.pid();
        let vitals =
            process.vitals().with_context(|| format!("failed to read the state of process {pid}"))?;
        let command_line = process
            .command_line()
            .with_context(|| format!("failed to read the command line of process {pid}"))?;
        Ok(Self {
            name: vitals.name.clone(),
            command_line,
            // Of one that ends meanwhile it does not matter.
            container: process.container().unwrap_or_default(),
            start: vitals.clone(),
            last: vitals,
            ended: None,
            is_brief: false,
            generation,
            born: generation,
            programs: 1,
            parent: None,
            kin: Kin::default(),
            book: pid,
            seed: None,
            since: Instant::now(),
            versions: Versions::default(),
            variants: Variants::default(),
            variant: 0,
            epoch: 0,
            looked: None,
            look_wanted: false,
            discovery,
            attachments: Vec::new(),
            guard: None,
            placed: Vec::new(),
            forked: None,
            swept: None,
            probes: Vec::new(),
            trampoline: 0,
            cut: None,
            failures: Vec::new(),
            fit: None,
            refusals: Vec::new(),
            is_refused: false,
            late: Vec::new(),
            began_ns: None,
            counted_ns: 0,
            is_replaced: false,
            is_member: false,
            is_settled: false,
            executed: None,
            read_ns: 0,
            taken_ns: 0,
            lacked_ns: 0,
            is_linked: false,
            throwing,
            process,
        })
    }

    /// Takes what it uses now for what it used at the start: the session begins.
    pub fn begin(&mut self) {
        self.refresh();
        self.is_settled = !self.is_member || self.has_allocator();
        if self.counted_ns == 0 {
            self.counted_ns = clock::monotonic_ns();
        }
        self.start = self.last.clone();
        self.since = Instant::now();
    }

    /// Reads what it uses now, if it is still there.
    pub fn refresh(&mut self) {
        if let Ok(vitals) = self.process.vitals() {
            self.name.clone_from(&vitals.name);
            self.last = vitals;
        }
        if let Ok(command_line) = self.process.command_line()
            && !command_line.is_empty()
        {
            self.command_line = command_line;
        }
    }

    /// Process number.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// The process itself.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Where each probe went.
    pub fn probes(&self) -> &[ProbeRow] {
        &self.probes
    }

    /// Address of the page of return-probe trampolines, or 0 while there is none.
    pub fn trampoline(&self) -> u64 {
        self.trampoline
    }

    /// Number of the program image that it runs.
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// Whether the process has ended.
    pub fn has_ended(&self) -> bool {
        self.ended.is_some()
    }

    /// Notes that it has ended, and how, where that is known.
    pub fn end(&mut self, how: Option<String>) {
        self.look_wanted = false;
        self.is_brief = self.is_young();
        self.ended = Some(how);
        self.seed = None;
    }

    /// It has executed a program at that time, which has mapped nothing yet.
    fn begin_program(&mut self, at_ns: u64) {
        (self.executed, self.is_linked) = (Some(Instant::now()), false);
        self.taken_ns = at_ns;
        self.begin_at(at_ns);
    }

    /// Its program has begun at that time, or it was made then: what comes before that counts does not matter.
    fn begin_at(&mut self, at_ns: u64) {
        self.began_ns = Some(at_ns.max(self.counted_ns));
    }

    /// It is one of those that are looked for, and may have been met before its program began: what it has then is not late.
    pub fn be_member(&mut self) {
        self.is_member = true;
    }

    /// What it does is in the reports from now on, and not before.
    pub fn count_from_now(&mut self) {
        self.counted_ns = clock::monotonic_ns();
    }

    /// Whether it has executed a program that cannot be profiled. Asked at each look: one may come before the exec is told of.
    pub fn is_refused(&mut self) -> bool {
        self.is_refused = false;
        let program = self.process.program();
        if program.is_some() && program == self.fit {
            return false;
        }
        let refusal = match self.process.check_program() {
            Err(error @ (TargetError::ThirtyTwoBit { .. } | TargetError::OtherMachine { .. })) => {
                error.to_string()
            }
            Ok(()) => {
                self.fit = program;
                return false;
            }
            // Of one that has ended, the look tells.
            Err(_) => return false,
        };
        self.executed = None;
        self.is_refused = true;
        if !self.refusals.contains(&refusal) && self.refusals.len() < MAX_FAILURES {
            self.refusals.push(refusal);
        }
        true
    }

    /// Whether the objects of the program that it has executed were never seen.
    pub fn is_unseen(&self) -> bool {
        self.executed.is_some()
    }

    /// Notes that it runs another program, since that time (`CLOCK_MONOTONIC` nanoseconds).
    pub fn exec(&mut self, generation: u32, at_ns: u64) {
        self.generation = generation;
        self.programs += 1;
        self.begin_program(at_ns);
        self.looked = None;
        self.seed = None;
        // What the program before it missed is not in the reports any more.
        self.late.clear();
    }

    /// Reads its mappings; `None` when it has ended.
    pub fn read_mappings(&mut self, objects: &mut ObjectCache) -> Result<Option<AddressSpace>> {
        self.looked = Some(Instant::now());
        self.read_ns = clock::monotonic_ns();
        self.look_wanted = false;
        let scan = match read_address_space(&self.process, objects) {
            Ok(scan) => scan,
            // Its memory goes some time before the pidfd says that it has ended.
            Err(error) if is_gone(&error) || self.process.has_ended().unwrap_or(true) => return Ok(None),
            Err(error) => {
                return Err(error)
                    .with_context(|| format!("failed to read the mappings of process {}", self.pid()));
            }
        };
        self.cut = scan.cut;
        Ok(Some(scan.space))
    }

    /// Takes in its mappings, those of an epoch of its code, and returns the allocators that are new.
    pub fn take_in(&mut self, mapped: &AddressSpace, epoch: u32) -> Vec<FoundObject> {
        self.seed = None;
        (self.lacked_ns, self.taken_ns) = (self.taken_ns, self.read_ns);
        self.note_late_probes(mapped);
        if self.is_linked || self.executed.is_some_and(|at| at.elapsed() >= LINKING) {
            self.executed = None;
        }
        // What it maps last may come after this look.
        self.look_wanted |= self.executed.is_some();
        let trampoline = mapped.mappings.iter().find(|mapping| mapping.is_trampoline());
        self.trampoline = trampoline.map_or(0, |mapping| mapping.start);
        self.variant = self.variants.take_in(self.generation, epoch, mapped);
        self.versions.take_in(self.generation, epoch, self.variant, mapped.clone());
        self.discovery.search(mapped).to_vec()
    }

    /// Takes note of a new stack: a frame in no known mapping calls for a look, before it is unmapped again.
    pub fn notice(&mut self, id: u64, stack: &Stack) {
        self.versions.made_in(id, self.epoch);
        if stack.generation != self.generation || self.has_ended() {
            return;
        }
        let frames = stack.frames.iter().take(stack.len as usize);
        // JIT code stays unknown however often one looks, and a look finds it in an anonymous mapping.
        self.look_wanted |= self
            .versions
            .latest(self.generation)
            .is_none_or(|space| frames.clone().any(|&address| address != 0 && space.find(address).is_none()));
    }

    /// What tells its code from other code that was in the same place, as of the last look.
    pub fn variant(&self) -> u32 {
        self.variant
    }

    /// The ID of a stack whose epoch was noted, where it is not the one that it has: see [`Variants::own_id`].
    pub fn own_id(&self, id: u64, stack: &Stack) -> Option<u64> {
        let (frames, epoch) =
            (&stack.frames[..(stack.len as usize).min(MAX_FRAMES)], self.versions.epoch_of(id));
        let space = self.space_of(id, stack.generation)?;
        self.variants.own_id(id, (stack.tgid, stack.generation), epoch, frames, &space)
    }

    /// In which epoch of the code a stack was made first.
    pub fn epoch_of(&self, id: u64) -> u32 {
        self.versions.epoch_of(id)
    }

    /// Notes in which epoch of the code a stack was made first.
    pub fn made_in(&mut self, id: u64, epoch: u32) {
        self.versions.made_in(id, epoch);
    }

    /// Forgets when a stack was made: its ID stands for another one.
    pub fn forget_stack(&mut self, id: u64) {
        self.versions.forget(id);
    }

    /// Notes that its code has changed. Whether it is to be looked at at once; else it is when that is due.
    pub fn code_changed(&mut self, epoch: u32) -> bool {
        // A child that changed its code before it was taken in has no epochs yet.
        if epoch != u32::MAX {
            self.epoch = epoch;
        }
        self.is_linked = true;
        self.want_look();
        self.look_wanted && self.looked.is_none_or(|at| at.elapsed() >= BETWEEN_CHANGES)
    }

    /// Has it looked at: code was met that is not known.
    pub fn want_look(&mut self) {
        self.look_wanted |= !self.has_ended();
    }

    /// When it may be looked at, if a look is wanted.
    pub fn look_due(&self) -> Option<Instant> {
        self.look_wanted.then(|| self.looked.map_or_else(Instant::now, |at| at + BETWEEN_LOOKS))
    }

    /// Notes what could not be done for it, once.
    pub fn fail(&mut self, text: String) {
        if !self.failures.contains(&text) && self.failures.len() < MAX_FAILURES {
            self.failures.push(text);
        }
    }

    /// Whether an allocator was found in it.
    pub fn has_allocator(&self) -> bool {
        self.discovery.has_allocator()
    }

    /// Whether an allocator of a family was found in it.
    pub fn has_family(&self, name: &str) -> bool {
        self.discovery.objects.iter().any(|found| found.family.name == name)
    }

    /// Whether it was taken in a moment ago.
    pub fn is_young(&self) -> bool {
        self.since.elapsed() < YOUNG
    }

    /// For how long it has been profiled.
    pub fn watched_for(&self) -> Duration {
        self.since.elapsed()
    }

    /// Refuses a process in which nothing can be probed.
    pub fn require_allocator(&self) -> Result<()> {
        if !self.discovery.has_allocator() {
            bail!(self.discovery.nothing_found(self.pid()));
        }
        Ok(())
    }

    /// The number of its first program image: with its process number, its identity.
    pub fn born(&self) -> u32 {
        self.born
    }

    /// Whose cookies are its own, where they are looked up by address.
    pub fn book(&self) -> u32 {
        self.book
    }

    /// Takes note of what it holds and had from its parent.
    pub fn set_kin(&mut self, kin: Kin) {
        self.kin = kin;
    }

    /// What was mapped when a stack was made.
    pub fn space_of(&self, id: u64, generation: u32) -> Option<Cow<'_, AddressSpace>> {
        let variant = self.variants.of(generation, self.versions.epoch_of(id));
        self.versions.of(id, generation, variant)
    }

    /// What its present program has had mapped, as of the last look.
    pub fn space_now(&self) -> Option<&AddressSpace> {
        self.versions.latest(self.generation)
    }
}

/// Whether a failed look says that there is nothing left to look at.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}

/// Whether this kernel lets a seccomp filter kill a process for a return probe.
pub fn kernel_is_hazardous() -> bool {
    seccomp::return_probe_hazard(SeccompMode::Filter, &features::release(), ARCH).is_some()
}

/// Why return probes would endanger a process; `None` when they do not.
pub fn seccomp_refusal(process: &Process) -> Result<Option<String>> {
    let pid = process.pid();
    let mode =
        process.seccomp().with_context(|| format!("failed to read the seccomp mode of process {pid}"))?;
    Ok(seccomp::return_probe_hazard(mode, &features::release(), ARCH)
        .map(|hazard| hazard.refusal(pid, &process.name().unwrap_or_default())))
}
