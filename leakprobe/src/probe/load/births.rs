//! How the programs hear of new tasks: the program on a raw tracepoint finds the number in the task itself, where the kernel
//! has BTF to say where; else one on the classic tracepoint reads it in its record.

use std::os::fd::{AsFd as _, OwnedFd};

use anyhow::{Context as _, Result};

use crate::{
    sys::{bpf, perf, tracepoint::TraceFs},
    target::kernel::{
        btf::{Btf, Kind},
        format::Format,
    },
};

/// The tracepoint of new processes and threads.
pub const NEW_TASK: &str = "task_newtask";

/// With `--follow`, in the place of the program on the raw tracepoint where the kernel has no BTF: makes each child a target.
/// Its runs are skipped on a CPU on which a reader of any BPF map was preempted (seen as 5 of 500 forks on a busy 7.2).
pub const BORN: &str = "process_born";

/// Where a new task's number is found, bytes from the beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NewTask {
    /// In the task.
    Task {
        /// Its number.
        pid: u64,
    },
    /// In the record of the classic tracepoint.
    Record {
        /// Its number.
        pid: u64,
        /// The flags of clone, which tell threads from processes.
        flags: u64,
    },
}

impl NewTask {
    /// Asks this kernel.
    ///
    /// # Errors
    /// When neither way is open.
    pub fn find() -> Result<Self> {
        // What cannot be read does as well as none.
        let types = Btf::of_this_kernel().ok().flatten();
        let in_task = types.and_then(|types| types.member(types.find(Kind::Struct, "task_struct")?, "pid"));
        if let Some(pid) = in_task {
            return Ok(Self::Task { pid });
        }
        let format = Format::parse(&TraceFs::open()?.format("task", NEW_TASK)?);
        let offset = |name: &str| {
            format
                .offset(name)
                .with_context(|| format!("the tracepoint task:{NEW_TASK} of this kernel has no field {name}"))
        };
        Ok(Self::Record { pid: offset("pid")?, flags: offset("clone_flags")? })
    }

    /// As the programs want it: the offset of the number, and that of the flags, which is 0 for those of a task.
    pub fn offsets(self) -> (u64, u64) {
        match self {
            Self::Task { pid } => (pid, 0),
            Self::Record { pid, flags } => (pid, flags),
        }
    }
}

/// The program on the classic tracepoint. Dropping it takes it off.
pub struct BornLink {
    /// The program.
    pub program: OwnedFd,
    _link: Option<OwnedFd>,
    _event: OwnedFd,
}

impl BornLink {
    /// Attaches the program. `by_link`: whether this kernel has links of perf events.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn attach(program: OwnedFd, by_link: bool) -> Result<Self> {
        let context = || format!("failed to attach {BORN} to the tracepoint task:{NEW_TASK}");
        let event = perf::open_tracepoint(TraceFs::open()?.id("task", NEW_TASK)?).with_context(context)?;
        let link = match by_link {
            true => bpf::link_perf_event(program.as_fd(), event.as_fd(), 0).map(Some),
            false => perf::set_program(event.as_fd(), program.as_fd()).map(|()| None),
        };
        Ok(Self { _link: link.with_context(context)?, _event: event, program })
    }
}
