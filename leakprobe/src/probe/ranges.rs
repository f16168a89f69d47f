//! The tracepoints of the mmap family (`--mmap`).

use std::os::fd::{AsFd as _, OwnedFd};

use anyhow::{Context as _, Result};
use aya::{Ebpf, programs::TracePoint};

use super::load;
use crate::sys::{
    bpf,
    tracepoint::{TraceFs, open_event},
};

/// A program on a tracepoint. Dropping it takes it off.
pub struct RangeLink {
    _link: OwnedFd,
    _event: OwnedFd,
}

/// System call, and the program at its entry.
const CALLS: [(&str, &str); 4] =
    [("munmap", "munmap_enter"), ("mremap", "mremap_enter"), ("brk", "brk_enter"), ("mmap", "mmap_enter")];

/// Attaches the programs, those that give ranges back first.
pub fn attach(ebpf: &mut Ebpf) -> Result<Vec<RangeLink>> {
    let tracing = TraceFs::open()?;
    let mut links = Vec::new();
    for program in CALLS.map(|(_, program)| program).into_iter().chain(["range_exit"]) {
        let program: &mut TracePoint = load::program(ebpf, program)?;
        program.load().context("failed to load a BPF program of the mmap family")?;
    }
    for (call, enter) in CALLS {
        for (name, program) in
            [(format!("sys_exit_{call}"), "range_exit"), (format!("sys_enter_{call}"), enter)]
        {
            let id = tracing.id("syscalls", &name)?;
            let event =
                open_event(id).with_context(|| format!("failed to open the tracepoint syscalls:{name}"))?;
            let program: &mut TracePoint = load::program(ebpf, program)?;
            let link = bpf::link_perf_event(program.fd()?.as_fd(), event.as_fd())
                .with_context(|| format!("failed to attach to the tracepoint syscalls:{name}"))?;
            links.push(RangeLink { _link: link, _event: event });
        }
    }
    Ok(links)
}
