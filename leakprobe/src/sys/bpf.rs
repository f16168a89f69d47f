//! Operations of bpf(2) that aya 0.14 has no call for: batches of map elements, multi-uprobe links and
//! programs loaded for them, links of perf events, and a program's own statistics.

pub mod program;

use std::{
    ffi::{CStr, CString},
    io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
};

use aya_obj::generated::{
    BPF_ANY, BPF_NOEXIST, bpf_attach_type, bpf_attr, bpf_cmd, bpf_map_type, bpf_prog_info,
};

/// Issues a command of bpf(2) and returns its non-negative result.
fn command(command: bpf_cmd, attributes: &mut bpf_attr) -> io::Result<i64> {
    // SAFETY: the kernel reads and writes within the size given; the callers below see to it that each
    // pointer inside is valid for the length that the command gives it.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command as libc::c_int, &raw mut *attributes, size_of::<bpf_attr>())
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn zeroed() -> bpf_attr {
    // SAFETY: bpf_attr is a union of plain integers, for which zero is a value; the kernel demands that
    // what is not used be zero.
    unsafe { std::mem::zeroed() }
}

fn owned(fd: i64) -> OwnedFd {
    // SAFETY: the command just returned this new descriptor, which nobody else owns.
    unsafe { OwnedFd::from_raw_fd(fd as i32) }
}

/// Creates a map.
///
/// # Errors
/// What the kernel said: `EINVAL` for a type that it does not know, `EPERM` where the limit on locked memory holds.
pub fn create_map(kind: bpf_map_type, key: u32, value: u32, entries: u32) -> io::Result<OwnedFd> {
    let mut attributes = zeroed();
    // SAFETY: this variant of the zeroed union is the one that BPF_MAP_CREATE reads.
    let create = unsafe { &mut attributes.__bindgen_anon_1 };
    create.map_type = kind as u32;
    create.key_size = key;
    create.value_size = value;
    create.max_entries = entries;
    command(bpf_cmd::BPF_MAP_CREATE, &mut attributes).map(owned)
}

/// Waits until no program runs any more that ran when this was called. The kernel does so when a map of maps is changed, so
/// that the old one is nobody's; membarrier(2), which is made for it, doesn't on a single processor, where a program can be
/// preempted all the same.
///
/// # Errors
/// What the kernel said.
pub fn wait_for_programs() -> io::Result<()> {
    const WORD: u32 = size_of::<u32>() as u32;
    let inner = create_map(bpf_map_type::BPF_MAP_TYPE_ARRAY, WORD, WORD, 1)?;
    let mut attributes = zeroed();
    // SAFETY: this variant of the zeroed union is the one that BPF_MAP_CREATE reads.
    let create = unsafe { &mut attributes.__bindgen_anon_1 };
    create.map_type = bpf_map_type::BPF_MAP_TYPE_ARRAY_OF_MAPS as u32;
    create.key_size = WORD;
    create.value_size = WORD;
    create.max_entries = 1;
    create.inner_map_fd = inner.as_raw_fd() as u32;
    let outer = command(bpf_cmd::BPF_MAP_CREATE, &mut attributes).map(owned)?;
    update(outer.as_fd(), &0u32.to_ne_bytes(), &inner.as_raw_fd().to_ne_bytes())
}

/// How one call of [`lookup_batch`] ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Batch {
    /// So many elements were read; more may follow from this position.
    More(usize, u32),
    /// So many elements were read, and they were the last.
    End(usize),
    /// Nothing fits: one hash bucket alone holds more elements than there is room for.
    TooSmall,
}

/// Reads elements of a hash map, as many as there is room for, from `position` (`None`: the start).
/// `keys` and `values` hold `room` elements of the map's key and value size.
///
/// # Errors
/// `EINVAL` or `ENOTSUPP` (524) from kernels that have no batches for this map.
///
/// # Panics
/// If a buffer is shorter than `room` elements of `key_size` or `value_size` bytes.
pub fn lookup_batch(
    map: BorrowedFd<'_>,
    position: Option<u32>,
    (keys, key_size): (&mut [u8], usize),
    (values, value_size): (&mut [u8], usize),
    room: usize,
) -> io::Result<Batch> {
    assert!(keys.len() >= room * key_size && values.len() >= room * value_size);
    let mut next = 0u32;
    let mut attributes = zeroed();
    attributes.batch.in_batch = position.as_ref().map_or(0, |position| &raw const *position as u64);
    attributes.batch.out_batch = &raw mut next as u64;
    attributes.batch.keys = keys.as_mut_ptr() as u64;
    attributes.batch.values = values.as_mut_ptr() as u64;
    attributes.batch.count = room as u32;
    attributes.batch.map_fd = map.as_raw_fd() as u32;
    let result = command(bpf_cmd::BPF_MAP_LOOKUP_BATCH, &mut attributes);
    // SAFETY: every variant of the union starts as zeroed integers, and the kernel wrote an integer here.
    let count = unsafe { attributes.batch.count } as usize;
    match result {
        Ok(_) => Ok(Batch::More(count, next)),
        Err(error) => match error.raw_os_error() {
            Some(libc::ENOENT) => Ok(Batch::End(count)),
            Some(libc::ENOSPC) => Ok(Batch::TooSmall),
            _ => Err(error),
        },
    }
}

/// The key after `key` in the kernel's order (`None`: the first one), written to `next`; `false` at the end.
/// A key that is gone meanwhile makes the kernel start again from the first.
pub fn next_key(map: BorrowedFd<'_>, key: Option<&[u8]>, next: &mut [u8]) -> io::Result<bool> {
    let mut attributes = zeroed();
    attributes.__bindgen_anon_2.map_fd = map.as_raw_fd() as u32;
    attributes.__bindgen_anon_2.key = key.map_or(0, |key| key.as_ptr() as u64);
    attributes.__bindgen_anon_2.__bindgen_anon_1.next_key = next.as_mut_ptr() as u64;
    found(command(bpf_cmd::BPF_MAP_GET_NEXT_KEY, &mut attributes))
}

/// The value of a key, written to `value`; `false` when there is none.
pub fn lookup(map: BorrowedFd<'_>, key: &[u8], value: &mut [u8]) -> io::Result<bool> {
    let mut attributes = zeroed();
    attributes.__bindgen_anon_2.map_fd = map.as_raw_fd() as u32;
    attributes.__bindgen_anon_2.key = key.as_ptr() as u64;
    attributes.__bindgen_anon_2.__bindgen_anon_1.value = value.as_mut_ptr() as u64;
    found(command(bpf_cmd::BPF_MAP_LOOKUP_ELEM, &mut attributes))
}

/// Sets the value of a key.
pub fn update(map: BorrowedFd<'_>, key: &[u8], value: &[u8]) -> io::Result<()> {
    set(map, key, value, BPF_ANY)
}

/// Sets the value of a key that has none; `false` when it has.
pub fn insert(map: BorrowedFd<'_>, key: &[u8], value: &[u8]) -> io::Result<bool> {
    match set(map, key, value, BPF_NOEXIST) {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(false),
        Err(error) => Err(error),
    }
}

fn set(map: BorrowedFd<'_>, key: &[u8], value: &[u8], flags: u32) -> io::Result<()> {
    let mut attributes = zeroed();
    attributes.__bindgen_anon_2.map_fd = map.as_raw_fd() as u32;
    attributes.__bindgen_anon_2.key = key.as_ptr() as u64;
    attributes.__bindgen_anon_2.__bindgen_anon_1.value = value.as_ptr() as u64;
    attributes.__bindgen_anon_2.flags = flags.into();
    command(bpf_cmd::BPF_MAP_UPDATE_ELEM, &mut attributes).map(drop)
}

/// Deletes a key of a hash map and writes the value that it had to `value`; `false` when it was not there. In one go from
/// Linux 5.14 on.
pub fn take(map: BorrowedFd<'_>, key: &[u8], value: &mut [u8]) -> io::Result<bool> {
    /// The kernel's own, which C libraries do not name.
    const ENOTSUPP: i32 = 524;
    let mut attributes = zeroed();
    attributes.__bindgen_anon_2.map_fd = map.as_raw_fd() as u32;
    attributes.__bindgen_anon_2.key = key.as_ptr() as u64;
    attributes.__bindgen_anon_2.__bindgen_anon_1.value = value.as_mut_ptr() as u64;
    match found(command(bpf_cmd::BPF_MAP_LOOKUP_AND_DELETE_ELEM, &mut attributes)) {
        Err(error) if error.raw_os_error() == Some(ENOTSUPP) => {
            Ok(lookup(map, key, value)? && delete(map, key)?)
        }
        result => result,
    }
}

/// Deletes a key; `false` when it was not there.
pub fn delete(map: BorrowedFd<'_>, key: &[u8]) -> io::Result<bool> {
    let mut attributes = zeroed();
    attributes.__bindgen_anon_2.map_fd = map.as_raw_fd() as u32;
    attributes.__bindgen_anon_2.key = key.as_ptr() as u64;
    found(command(bpf_cmd::BPF_MAP_DELETE_ELEM, &mut attributes))
}

fn found(result: io::Result<i64>) -> io::Result<bool> {
    match result {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// One probed instruction of a multi-uprobe link.
#[derive(Clone, Copy, Debug)]
pub struct Point {
    /// Offset in the object's file.
    pub file_offset: u64,
    /// What the program reads by `bpf_get_attach_cookie`.
    pub cookie: u64,
}

/// When the program of a multi-uprobe link runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkKind {
    /// At the probed instruction (Linux 6.6).
    Enter,
    /// When the function that begins there returns (Linux 6.6).
    Return,
    /// At both; the first run decides whether there is a second (Linux 6.13).
    Session,
}

impl LinkKind {
    /// What its program must be loaded for.
    pub fn attach_type(self) -> u32 {
        match self {
            Self::Enter | Self::Return => program::UPROBE_MULTI,
            Self::Session => program::UPROBE_SESSION,
        }
    }
}

/// Puts a program at many places of one object, for one process, through one link. The kernel registers
/// the points in the order given. Dropping the link removes all of them.
///
/// # Errors
/// `EBADF` when `path` is no regular file (and so proof that the kernel has such links), `ESRCH` when the
/// process is gone, `EINVAL` on kernels that have no such links.
pub fn link_uprobes(
    program: BorrowedFd<'_>,
    kind: LinkKind,
    path: &CStr,
    points: &[Point],
    pid: u32,
) -> io::Result<OwnedFd> {
    let offsets: Vec<u64> = points.iter().map(|point| point.file_offset).collect();
    let cookies: Vec<u64> = points.iter().map(|point| point.cookie).collect();
    let mut attributes = zeroed();
    // SAFETY: this variant of the zeroed union is the one that BPF_LINK_CREATE reads.
    unsafe {
        let create = &mut attributes.link_create;
        create.__bindgen_anon_1.prog_fd = program.as_raw_fd() as u32;
        create.attach_type = kind.attach_type();
        let multi = &mut create.__bindgen_anon_3.uprobe_multi;
        multi.path = path.as_ptr() as u64;
        multi.offsets = offsets.as_ptr() as u64;
        multi.cookies = cookies.as_ptr() as u64;
        multi.cnt = points.len() as u32;
        multi.flags = u32::from(kind == LinkKind::Return); // BPF_F_UPROBE_MULTI_RETURN
        multi.pid = pid;
    }
    command(bpf_cmd::BPF_LINK_CREATE, &mut attributes).map(owned)
}

/// Links a program to a perf event (a tracepoint). Dropping the link detaches it; the event must live as
/// long.
/// `cookie`: what the program reads by `bpf_get_attach_cookie`.
pub fn link_perf_event(program: BorrowedFd<'_>, event: BorrowedFd<'_>, cookie: u64) -> io::Result<OwnedFd> {
    let mut attributes = zeroed();
    // SAFETY: this variant of the zeroed union is the one that BPF_LINK_CREATE reads.
    unsafe {
        let create = &mut attributes.link_create;
        create.__bindgen_anon_1.prog_fd = program.as_raw_fd() as u32;
        create.__bindgen_anon_2.target_fd = event.as_raw_fd() as u32;
        create.attach_type = bpf_attach_type::BPF_PERF_EVENT as u32;
        create.__bindgen_anon_3.perf_event.bpf_cookie = cookie;
    }
    command(bpf_cmd::BPF_LINK_CREATE, &mut attributes).map(owned)
}

/// How often the kernel skipped the program because it, or for some kinds any program or a call on a map, was under way on
/// that CPU already. Not all kernels count: before 6.7 not those of classic tracepoints.
pub fn recursion_misses(program: BorrowedFd<'_>) -> io::Result<u64> {
    // SAFETY: plain integers and arrays of them.
    let mut info: bpf_prog_info = unsafe { std::mem::zeroed() };
    let mut attributes = zeroed();
    attributes.info.bpf_fd = program.as_raw_fd() as u32;
    attributes.info.info = &raw mut info as u64;
    attributes.info.info_len = size_of::<bpf_prog_info>() as u32;
    command(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attributes)?;
    Ok(info.recursion_misses)
}

/// A C string for the path of one of our own descriptors, by which the kernel finds exactly that file.
pub fn fd_path(fd: BorrowedFd<'_>) -> CString {
    CString::new(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap_or_default()
}
