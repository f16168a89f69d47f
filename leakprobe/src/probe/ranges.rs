//! The tracepoints of the mmap family (`--mmap`).

use std::os::fd::{AsFd as _, OwnedFd};

use anyhow::{Context as _, Result};
use aya::programs::TracePoint;

use super::{
    features::Mechanism,
    load::{self, Loaded},
};
use crate::sys::{bpf, perf, tracepoint::TraceFs};

/// A program on a tracepoint. Dropping it takes it off.
pub struct RangeLink {
    _link: Option<OwnedFd>,
    _event: OwnedFd,
}

/// System call, and the program at its entry.
const CALLS: [(&str, &str); 4] =
    [("munmap", "munmap_enter"), ("mremap", "mremap_enter"), ("brk", "brk_enter"), ("mmap", "mmap_enter")];

/// Attaches the programs, those that give ranges back first.
pub fn attach(loaded: &mut Loaded) -> Result<Vec<RangeLink>> {
    let tracing = TraceFs::open()?;
    let mut links = Vec::new();
    loaded.load_tracepoints()?;
    let by_link = loaded.mechanism != Mechanism::PerfEventByAddress;
    for (call, enter) in CALLS {
        for (name, program) in
            [(format!("sys_exit_{call}"), "range_exit"), (format!("sys_enter_{call}"), enter)]
        {
            let id = tracing.id("syscalls", &name)?;
            let event = perf::open_tracepoint(id)
                .with_context(|| format!("failed to open the tracepoint syscalls:{name}"))?;
            let program: &mut TracePoint = load::program(&mut loaded.ebpf, program)?;
            let program = program.fd()?.as_fd();
            let link = match by_link {
                true => bpf::link_perf_event(program, event.as_fd()).map(Some),
                false => perf::set_program(event.as_fd(), program).map(|()| None),
            };
            let link = link.with_context(|| format!("failed to attach to the tracepoint syscalls:{name}"))?;
            links.push(RangeLink { _link: link, _event: event });
        }
    }
    Ok(links)
}
