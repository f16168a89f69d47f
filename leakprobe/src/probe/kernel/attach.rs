//! Putting the kernel's probes in. Dropping them takes them out.

use std::{
    collections::HashMap,
    ffi::CString,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
};

use anyhow::{Context as _, Result, ensure};

use super::load::{self, BulkPrograms, KernelObject};
use crate::{
    cli::ProbeFunctions,
    sys::{bpf, perf, tracepoint::TraceFs},
    target::kernel::shape::{Function, Shape, Tracepoints},
};

/// How a function without a tracepoint is probed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// By patching it.
    Patched,
    /// By a breakpoint.
    Breakpoint,
}

/// What a session attaches.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// Whether pages are traced.
    pub pages: bool,
    /// Whether per-CPU memory is traced.
    pub percpu: bool,
    /// How functions without a tracepoint are probed.
    pub functions: ProbeFunctions,
    /// Whether what is freed in an interrupt of the same program is seen by a second one.
    pub twice: bool,
    /// Empty programs in place of the real ones: what the tracepoints alone cost.
    pub floor: bool,
}

/// The kernel's probes.
#[derive(Default)]
pub struct KernelProbes {
    links: Vec<OwnedFd>,
    programs: Vec<(String, OwnedFd)>,
    /// Functions without a tracepoint that are probed, and how.
    pub functions: Vec<(String, How)>,
    /// Those that are there and could not be probed: their names.
    pub unprobed: Vec<String>,
}

impl KernelProbes {
    /// Runs that the kernel skipped, by tracepoint or program.
    pub fn recursion_misses(&self) -> Vec<(String, u64)> {
        let misses = |program: BorrowedFd<'_>| bpf::recursion_misses(program).unwrap_or_default();
        self.programs.iter().map(|(name, program)| (name.clone(), misses(program.as_fd()))).collect()
    }

    /// Takes the probes out; the programs stay, to be asked.
    pub fn detach(&mut self) {
        self.links.clear();
    }

    fn link(&mut self, program: BorrowedFd<'_>, event: OwnedFd) -> Result<()> {
        // Kernels before 5.15 have no such links; the event then owns the program.
        match bpf::link_perf_event(program, event.as_fd(), 0) {
            Ok(link) => self.links.push(link),
            Err(_) => perf::set_program(event.as_fd(), program)?,
        }
        self.links.push(event);
        Ok(())
    }
}

/// Attaches everything that a session needs: what gives memory back first.
///
/// # Errors
/// When a tracepoint cannot be attached to. Functions that cannot be probed are named in the result.
pub fn attach(object: &KernelObject, shape: &Shape, wanted: Wanted) -> Result<KernelProbes> {
    let Wanted { pages, percpu, functions, twice, floor } = wanted;
    let mut probes = KernelProbes::default();
    let mut points = load::tracepoints(shape, pages, percpu);
    if floor || !twice {
        points.retain(|point| !point.program.ends_with("_again"));
    }
    // One program for each tracepoint, even where they share their code: the kernel runs none twice at a time on a CPU,
    // so what an interrupt frees while a task frees by the other tracepoint is not missed.
    let mut loaded: HashMap<(&str, &str), OwnedFd> = HashMap::new();
    for point in &points {
        let program = object.load(if floor { "kernel_floor" } else { point.program })?;
        loaded.insert((point.name, point.program), program);
    }
    // Everything is loaded before anything is attached: what the verifier allocates and frees would fill the books.
    let bulk: Vec<Option<Prepared<'_>>> = load::bulk_programs(shape)
        .into_iter()
        .map(|(function, programs)| Prepared::new(object, function.filter(|_| !floor)?, programs, functions))
        .collect();
    let (frees, allocations): (Vec<_>, Vec<_>) = points.iter().partition(|point| point.name.contains("free"));
    let tracing = (shape.tracepoints == Tracepoints::Classic).then(TraceFs::open).transpose()?;
    let attach_points = |probes: &mut KernelProbes, points: &[&load::Point]| -> Result<()> {
        for point in points {
            let program = &loaded[&(point.name, point.program)];
            let context = || format!("failed to attach to the tracepoint {}:{}", point.category, point.name);
            match tracing.as_ref().filter(|_| point.is_classic()) {
                None => {
                    let name = CString::new(point.name)?;
                    let link = bpf::program::attach_raw_tracepoint(program.as_fd(), &name);
                    probes.links.push(link.with_context(context)?);
                }
                Some(tracing) => {
                    let id = tracing.id(point.category, point.name)?;
                    let event = perf::open_tracepoint(id).with_context(context)?;
                    probes.link(program.as_fd(), event).with_context(context)?;
                }
            }
        }
        Ok(())
    };
    attach_points(&mut probes, &frees)?;
    let gives_back = |prepared: &Prepared<'_>| !prepared.programs.patched.contains("alloc");
    let (bulk_frees, bulk_allocations): (Vec<_>, Vec<_>) = bulk.into_iter().flatten().partition(gives_back);
    bulk_frees.into_iter().for_each(|prepared| prepared.attach(&mut probes, object));
    attach_points(&mut probes, &allocations)?;
    bulk_allocations.into_iter().for_each(|prepared| prepared.attach(&mut probes, object));
    let named = |((_, program), fd): ((&str, &str), OwnedFd)| (program.to_owned(), fd);
    probes.programs.extend(loaded.into_iter().map(named));
    probes.programs.sort_by(|(a, _), (b, _)| a.cmp(b));
    Ok(probes)
}

/// A function without a tracepoint, with the programs for it.
struct Prepared<'a> {
    function: &'a Function,
    programs: BulkPrograms,
    how: ProbeFunctions,
    /// Loaded for patching it; `None` where the kernel refuses that.
    patched: Option<OwnedFd>,
    /// Loaded for breakpoints, in the order of their names; none where it can perhaps be patched.
    breakpoints: Vec<OwnedFd>,
}

impl<'a> Prepared<'a> {
    /// Loads the programs; `None` for a function that the kernel does not have.
    fn new(
        object: &KernelObject,
        function: &'a Function,
        programs: BulkPrograms,
        how: ProbeFunctions,
    ) -> Option<Self> {
        let type_id = function.type_id.filter(|_| how == ProbeFunctions::Auto);
        let patched = type_id.and_then(|type_id| {
            let loaded = object.load_for_function(programs.patched, type_id, programs.at_exit);
            loaded.inspect_err(|error| log::debug!("failed to patch {}: {error:#}", function.name)).ok()
        });
        let mut prepared = Self { function, programs, how, patched, breakpoints: Vec::new() };
        if prepared.patched.is_none() && how != ProbeFunctions::Not && perf::kprobe_source().is_some() {
            prepared.load_breakpoints(object);
        }
        Some(prepared)
    }

    fn load_breakpoints(&mut self, object: &KernelObject) {
        for program in self.programs.breakpoints {
            match object.load(program) {
                Ok(loaded) => self.breakpoints.push(loaded),
                Err(error) => log::debug!("failed to load {program}: {error:#}"),
            }
        }
    }

    /// Probes the function in whatever way the kernel offers; notes it where there is none.
    fn attach(mut self, probes: &mut KernelProbes, object: &KernelObject) {
        let name = &self.function.name;
        if let Some(program) = self.patched.take() {
            match bpf::program::attach_tracing(program.as_fd()) {
                Ok(link) => {
                    probes.links.push(link);
                    probes.programs.push((self.programs.patched.to_owned(), program));
                    return probes.functions.push((name.clone(), How::Patched));
                }
                Err(error) => log::debug!("failed to patch {name}: {error}"),
            }
            if self.how != ProbeFunctions::Not {
                self.load_breakpoints(object);
            }
        }
        if let Err(error) = self.set_breakpoints(probes) {
            log::debug!("failed to set a breakpoint on {}: {error:#}", self.function.name);
            probes.unprobed.push(self.function.name.clone());
        }
    }

    fn set_breakpoints(&mut self, probes: &mut KernelProbes) -> Result<()> {
        let source = perf::kprobe_source().context("this kernel has no kprobes")?;
        let name = CString::new(self.function.name.clone())?;
        ensure!(self.breakpoints.len() == self.programs.breakpoints.len(), "its programs are not loaded");
        // The return first: an entry without its return would be remembered for ever.
        let all: Vec<_> =
            self.programs.breakpoints.iter().zip(self.breakpoints.drain(..)).enumerate().collect();
        for (index, (program, loaded)) in all.into_iter().rev() {
            let event = perf::open_kprobe(source, &name, index > 0)
                .with_context(|| format!("failed to open a kprobe on {}", self.function.name))?;
            probes.link(loaded.as_fd(), event)?;
            probes.programs.push(((*program).to_owned(), loaded));
        }
        probes.functions.push((self.function.name.clone(), How::Breakpoint));
        Ok(())
    }
}
