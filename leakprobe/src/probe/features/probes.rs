//! One question to the kernel for each feature.

use std::{ffi::CStr, fs, io, os::fd::AsFd as _};

use aya::{
    Btf,
    programs::ProgramType,
    sys::{BpfHelper, is_helper_supported},
};
use aya_obj::{
    btf::BtfKind,
    generated::{bpf_attach_type, bpf_insn, bpf_map_type, bpf_prog_type},
};
use serde::Serialize;

use super::filter;
use crate::sys::{
    bpf::{
        self, LinkKind, Point,
        program::{self, Program},
    },
    limits::LockedMemory,
    pages, perf,
    tracepoint::TraceFs,
};

/// Functions of every kernel's that may be traced: a test function of the kernel's own, and the end of a process.
const KERNEL_FUNCTIONS: [&CStr; 2] = [c"bpf_fentry_test1", c"do_exit"];

/// What a kernel offers to leakprobe, now or later.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Features {
    /// Perf events on functions of programs: what everything else rests on.
    pub uprobes: bool,
    /// The ring buffer map (5.8).
    pub ring_buffer: bool,
    /// Reading many elements of a hash map by one call (5.6).
    pub batch: bool,
    /// `bpf_get_attach_cookie` (5.15).
    pub cookies: bool,
    /// BPF links of perf events (5.15).
    pub perf_links: bool,
    /// Links of many uprobes (6.6).
    pub multi_links: bool,
    /// Whether such a link for one process runs in all of its threads (6.11, and some before).
    pub multi_filters_processes: bool,
    /// Uprobe programs that decide at the entry whether the return is probed (6.13).
    pub session_links: bool,
    /// Tracepoints by name, those of system calls among them.
    pub tracepoints: bool,
    /// The kernel describes its own types.
    pub kernel_btf: bool,
    /// Tracepoint programs that read the kernel's types directly.
    pub btf_tracepoints: bool,
    /// Perf events on functions of the kernel.
    pub kprobes: bool,
    /// Programs at the entry of the kernel's functions, by patching them.
    pub fentry: bool,
    /// The same at their return.
    pub fexit: bool,
    /// `bpf_loop` (5.17).
    pub bpf_loop: bool,
    /// Maps of tracing programs may grow (6.1).
    pub maps_on_demand: bool,
    /// Whether a process's perf events can be kept its own for all that it makes (6.13).
    pub inherited_guards: bool,
    /// Whether the page that return probes lead to cannot be read by the program (aarch64, from Armv8.7 on).
    pub execute_only_pages: bool,
    /// Whether maps count as locked memory of the user (before 5.11).
    pub maps_are_locked_memory: bool,
}

impl Features {
    /// Asks for all of them. Takes a second on slow machines, most of it for the kernel's BTF.
    pub fn probe() -> Self {
        let locked = maps_are_locked_memory();
        let _limit = LockedMemory::unlimited();
        let multi_links = multi_links();
        let btf = Btf::from_sys_fs().ok();
        let traces = |attach_type| btf.as_ref().is_some_and(|btf| traces(btf, attach_type));
        Self {
            uprobes: uprobes(),
            ring_buffer: ring_buffer(),
            batch: batch().unwrap_or(false),
            cookies: cookies(),
            perf_links: perf_links(),
            multi_links,
            multi_filters_processes: multi_links && filter::compares_processes().unwrap_or(false),
            session_links: links_exist(LinkKind::Session),
            tracepoints: TraceFs::open().and_then(|tracing| tracing.id("syscalls", "sys_enter_mmap")).is_ok(),
            kernel_btf: btf.is_some(),
            btf_tracepoints: btf.as_ref().is_some_and(btf_tracepoints),
            kprobes: kprobes(),
            fentry: traces(bpf_attach_type::BPF_TRACE_FENTRY),
            fexit: traces(bpf_attach_type::BPF_TRACE_FEXIT),
            bpf_loop: has_loop(),
            maps_on_demand: maps_on_demand(),
            inherited_guards: perf::guards_descendants(),
            execute_only_pages: execute_only_pages(),
            maps_are_locked_memory: locked,
        }
    }
}

/// Whether the kernel was built with them.
pub fn uprobes() -> bool {
    fs::exists("/sys/bus/event_source/devices/uprobe").unwrap_or(false)
}

/// Whether maps of tracing programs may grow. To ask by loading such a program would bring the very warning that is
/// to be avoided; but BPF has had an allocator of its own since then, and the kernel's description of its types
/// names it. Multi-uprobe links are younger.
pub fn maps_on_demand() -> bool {
    const ALLOCATOR: &[u8] = b"\0bpf_mem_alloc\0";
    let described = |types: Vec<u8>| types.windows(ALLOCATOR.len()).any(|window| window == ALLOCATOR);
    multi_links() || fs::read("/sys/kernel/btf/vmlinux").is_ok_and(described)
}

/// Whether an unwinder that looks for a signal frame in the trampoline of return probes faults. On x86_64 that page
/// can be read, whatever protection keys make of others.
pub fn execute_only_pages() -> bool {
    cfg!(target_arch = "aarch64") && pages::execute_only().unwrap_or(false)
}

/// Whether the map can be made.
pub fn ring_buffer() -> bool {
    let _limit = LockedMemory::unlimited();
    // Its size is a power of two in whole pages; 64 KiB is the largest page of any machine.
    bpf::create_map(bpf_map_type::BPF_MAP_TYPE_RINGBUF, 0, 0, 64 * 1024).is_ok()
}

/// Whether the program type of uprobes has the helper.
pub fn cookies() -> bool {
    has_helper(BpfHelper::BPF_FUNC_get_attach_cookie)
}

/// Whether a program can be linked to a perf event: only a kernel that does so says that it is none.
pub fn perf_links() -> bool {
    aya::features().bpf_perf_link()
}

/// Whether there are multi-uprobe links.
pub fn multi_links() -> bool {
    links_exist(LinkKind::Enter)
}

/// Whether a program can have the kernel call one of its functions many times (5.17).
pub fn has_loop() -> bool {
    has_helper(BpfHelper::BPF_FUNC_loop)
}

fn has_helper(helper: BpfHelper) -> bool {
    let _limit = LockedMemory::unlimited();
    matches!(is_helper_supported(ProgramType::KProbe, helper), Ok(true))
}

/// Asks for a link on a directory: only a kernel that knows such links says `EBADF`.
fn links_exist(kind: LinkKind) -> bool {
    let Ok(program) = program::load(&trivial(bpf_prog_type::BPF_PROG_TYPE_KPROBE, kind.attach_type(), 0))
    else {
        return false;
    };
    let point = Point { file_offset: 1, cookie: 0 };
    match bpf::link_uprobes(program.as_fd(), kind, c"/", &[point], 0) {
        Ok(_) => true,
        Err(error) => error.raw_os_error() == Some(libc::EBADF),
    }
}

/// Reads a map of one element.
fn batch() -> io::Result<bool> {
    let map = bpf::create_map(bpf_map_type::BPF_MAP_TYPE_HASH, 8, 8, 4)?;
    bpf::update(map.as_fd(), &7u64.to_ne_bytes(), &9u64.to_ne_bytes())?;
    let (mut keys, mut values) = ([0; 32], [0; 32]);
    let read = bpf::lookup_batch(map.as_fd(), None, (&mut keys, 8), (&mut values, 8), 4)?;
    Ok(read == bpf::Batch::End(1) && keys[..8] == 7u64.to_ne_bytes() && values[..8] == 9u64.to_ne_bytes())
}

/// Makes a map while this process may lock no memory.
fn maps_are_locked_memory() -> bool {
    let _limit = LockedMemory::none();
    let made = bpf::create_map(bpf_map_type::BPF_MAP_TYPE_ARRAY, 4, 8, 1);
    matches!(made, Err(error) if error.raw_os_error() == Some(libc::EPERM))
}

/// Loads a program for a tracepoint that every kernel has.
fn btf_tracepoints(btf: &Btf) -> bool {
    let Ok(id) = btf.id_by_type_name_kind("btf_trace_sched_process_exit", BtfKind::Typedef) else {
        return false;
    };
    let attach_type = bpf_attach_type::BPF_TRACE_RAW_TP as u32;
    program::load(&trivial(bpf_prog_type::BPF_PROG_TYPE_TRACING, attach_type, id)).is_ok()
}

/// Puts a program on one of the kernel's functions, and takes it off again.
fn traces(btf: &Btf, attach_type: bpf_attach_type) -> bool {
    KERNEL_FUNCTIONS.iter().any(|function| {
        let Ok(id) = btf.id_by_type_name_kind(&function.to_string_lossy(), BtfKind::Func) else {
            return false;
        };
        let program = trivial(bpf_prog_type::BPF_PROG_TYPE_TRACING, attach_type as u32, id);
        program::load(&program).and_then(|program| program::attach_tracing(program.as_fd())).is_ok()
    })
}

/// Puts a perf event on one of the kernel's functions, and takes it off again.
fn kprobes() -> bool {
    let Some(source) = perf::kprobe_source() else { return false };
    KERNEL_FUNCTIONS.iter().any(|function| perf::open_kprobe(source, function, false).is_ok())
}

/// A program that does nothing.
fn trivial(kind: bpf_prog_type, attach_type: u32, kernel_type: u32) -> Program<'static> {
    Program {
        name: "leakprobe_try",
        kind,
        attach_type,
        kernel_type,
        instructions: &NOTHING,
        license: c"Dual MIT/GPL",
        types: None,
    }
}

static NOTHING: [bpf_insn; 2] = [instruction(0xb7, 0, 0, 0), instruction(0x95, 0, 0, 0)];

/// An instruction: code, destination, source, immediate.
pub(super) const fn instruction(code: u8, to: u8, from: u8, imm: i32) -> bpf_insn {
    bpf_insn {
        code,
        _bitfield_align_1: [],
        _bitfield_1: aya_obj::generated::__BindgenBitfieldUnit::new([to | from << 4]),
        off: 0,
        imm,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whoever runs this has a kernel that leakprobe works on, and as root all that this takes.
    #[test]
    fn what_leakprobe_needs_is_found_here() {
        if super::super::capability_refusal(super::super::own_capabilities()).is_some() {
            eprintln!("skipped: this process may not load BPF programs");
            return;
        }
        let features = Features::probe();
        assert!(features.uprobes && features.ring_buffer && features.batch, "{features:?}");
        assert_eq!(
            features.kernel_btf,
            fs::exists("/sys/kernel/btf/vmlinux").unwrap_or(false),
            "{features:?}"
        );
        assert!(!features.multi_filters_processes || features.multi_links, "{features:?}");
        assert!(!features.btf_tracepoints || features.kernel_btf, "{features:?}");
    }
}
