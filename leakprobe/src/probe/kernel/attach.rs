//! Putting the kernel's probes in. Dropping them takes them out.

use std::{
    collections::HashMap,
    ffi::CString,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
};

use anyhow::{Context as _, Result};

use super::load::{self, BulkPrograms, KernelObject};
use crate::{
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
    /// Runs that the kernel skipped, by program.
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
pub fn attach(
    object: &KernelObject,
    shape: &Shape,
    pages: bool,
    percpu: bool,
    floor: bool,
) -> Result<KernelProbes> {
    let mut probes = KernelProbes::default();
    let points = load::tracepoints(shape, pages, percpu);
    let mut loaded: HashMap<&str, OwnedFd> = HashMap::new();
    for point in &points {
        let program = if floor { "kernel_floor" } else { point.program };
        if !loaded.contains_key(program) {
            loaded.insert(program, object.load(program)?);
        }
    }
    let bulk = load::bulk_programs(shape);
    let (frees, allocations): (Vec<_>, Vec<_>) = points.iter().partition(|point| point.name.contains("free"));
    let tracing = (shape.tracepoints == Tracepoints::Classic).then(TraceFs::open).transpose()?;
    let attach_points = |probes: &mut KernelProbes, points: &[&load::Point]| -> Result<()> {
        for point in points {
            let program = &loaded[if floor { "kernel_floor" } else { point.program }];
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
            attach_function(&mut probes, object, *function, *programs);
        }
    }
    attach_points(&mut probes, &allocations)?;
    if !floor {
        let (function, programs) = bulk[2];
        attach_function(&mut probes, object, function, programs);
    }
    probes.programs.extend(loaded.into_iter().map(|(name, program)| (name.to_owned(), program)));
    Ok(probes)
}

/// Probes a function in whatever way the kernel offers; notes it where there is none.
fn attach_function(
    probes: &mut KernelProbes,
    object: &KernelObject,
    function: Option<&Function>,
    programs: BulkPrograms,
) {
    let Some(function) = function else { return };
    if let Err(patching) = patch(probes, object, function, programs) {
        log::debug!("failed to patch {}: {patching:#}", function.name);
        if let Err(breaking) = set_breakpoints(probes, object, function, programs) {
            log::debug!("failed to set a breakpoint on {}: {breaking:#}", function.name);
            probes.unprobed.push(function.name.clone());
        }
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
