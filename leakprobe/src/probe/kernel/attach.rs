//! Putting the kernel's probes in. Dropping them takes them out.

use std::{
    collections::HashMap,
    ffi::CString,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
};

use anyhow::{Context as _, Result, anyhow};

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
        match bpf::link_perf_event(program, event.as_fd()) {
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
    let bulk = load::bulk_programs(shape);
    let (frees, allocations): (Vec<_>, Vec<_>) = points.iter().partition(|point| point.name.contains("free"));
    let tracing = (shape.tracepoints == Tracepoints::Classic).then(TraceFs::open).transpose()?;
    let attach_points = |probes: &mut KernelProbes, points: &[&load::Point]| -> Result<()> {
        for point in points {
            let program = &loaded[&(point.name, point.program)];
            let context = || format!("failed to attach to the tracepoint {}:{}", point.category, point.name);
            match &tracing {
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
    if !floor {
        for (function, programs) in &bulk[..2] {
            attach_function(&mut probes, object, *function, *programs, functions);
        }
    }
    attach_points(&mut probes, &allocations)?;
    if !floor {
        let (function, programs) = bulk[2];
        attach_function(&mut probes, object, function, programs, functions);
    }
    let named = |((_, program), fd): ((&str, &str), OwnedFd)| (program.to_owned(), fd);
    probes.programs.extend(loaded.into_iter().map(named));
    probes.programs.sort_by(|(a, _), (b, _)| a.cmp(b));
    Ok(probes)
}

/// Probes a function in whatever way the kernel offers; notes it where there is none.
fn attach_function(
    probes: &mut KernelProbes,
    object: &KernelObject,
    function: Option<&Function>,
    programs: BulkPrograms,
    how: ProbeFunctions,
) {
    let Some(function) = function else { return };
    let patched = match how {
        ProbeFunctions::Auto => patch(probes, object, function, programs),
        ProbeFunctions::Breakpoint | ProbeFunctions::Not => Err(anyhow!("it is not asked for")),
    };
    let Err(patching) = patched else { return };
    let broken = match how {
        ProbeFunctions::Auto | ProbeFunctions::Breakpoint => {
            set_breakpoints(probes, object, function, programs)
        }
        ProbeFunctions::Not => Err(anyhow!("it is not asked for")),
    };
    if let Err(breaking) = broken {
        log::debug!("failed to patch {}: {patching:#}; to set a breakpoint: {breaking:#}", function.name);
        probes.unprobed.push(function.name.clone());
    }
}

fn patch(
    probes: &mut KernelProbes,
    object: &KernelObject,
    function: &Function,
    programs: BulkPrograms,
) -> Result<()> {
    let type_id = function.type_id.context("the kernel's BTF does not describe it")?;
    let program = object.load_for_function(programs.patched, type_id, programs.at_exit)?;
    let link = bpf::program::attach_tracing(program.as_fd()).context("failed to attach")?;
    probes.links.push(link);
    probes.programs.push((programs.patched.to_owned(), program));
    probes.functions.push((function.name.clone(), How::Patched));
    Ok(())
}

fn set_breakpoints(
    probes: &mut KernelProbes,
    object: &KernelObject,
    function: &Function,
    programs: BulkPrograms,
) -> Result<()> {
    let source = perf::kprobe_source().context("this kernel has no kprobes")?;
    let name = CString::new(function.name.clone())?;
    // The return first: an entry without its return would be remembered for ever.
    for (index, program) in programs.breakpoints.iter().enumerate().rev() {
        let loaded = object.load(program)?;
        let event = perf::open_kprobe(source, &name, index > 0)
            .with_context(|| format!("failed to open a kprobe on {}", function.name))?;
        probes.link(loaded.as_fd(), event)?;
        probes.programs.push(((*program).to_owned(), loaded));
    }
    probes.functions.push((function.name.clone(), How::Breakpoint));
    Ok(())
}
