//! The tracepoints of the mmap family (`--mmap`).

use std::os::fd::{AsFd as _, OwnedFd};

use anyhow::{Context as _, Result};

use super::{features::Mechanism, load::Loaded};
use crate::sys::{bpf, perf, tracepoint::TraceFs};

/// A program on a tracepoint. Dropping it takes it off.
pub struct RangeLink {
    _link: Option<OwnedFd>,
    _event: OwnedFd,
}

/// Attaches the programs, those that give ranges back first.
pub fn attach(loaded: &Loaded) -> Result<Vec<RangeLink>> {
    let Some(programs) = &loaded.ranges else { return Ok(Vec::new()) };
    let tracing = TraceFs::open()?;
    let mut links = Vec::new();
    let by_link = loaded.mechanism != Mechanism::PerfEventByAddress;
    for (call, entry) in &programs.entries {
        for (name, program) in
            [(format!("sys_exit_{call}"), &programs.exit), (format!("sys_enter_{call}"), entry)]
        {
            let id = tracing.id("syscalls", &name)?;
            let event = perf::open_tracepoint(id)
                .with_context(|| format!("failed to open the tracepoint syscalls:{name}"))?;
            let link = match by_link {
                true => bpf::link_perf_event(program.as_fd(), event.as_fd(), 0).map(Some),
                false => perf::set_program(event.as_fd(), program.as_fd()).map(|()| None),
            };
            let link = link.with_context(|| format!("failed to attach to the tracepoint syscalls:{name}"))?;
            links.push(RangeLink { _link: link, _event: event });
        }
    }
    Ok(links)
}
