//! A Rust program whose allocator is jemalloc, under names of its own (`_rjem_`).
//!
//! `nested` takes blocks of an arena whose extents jemalloc takes from the C library, in the midst of the call.

use std::ffi::{c_uint, c_void};
use std::hint::black_box;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{io, ptr};

use crate_victims::Wire;
use tikv_jemalloc_sys::{MALLOCX_ARENA, MALLOCX_TCACHE_NONE, extent_hooks_t, mallctl, mallocx};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

unsafe extern "C" {
    fn aligned_alloc(alignment: usize, bytes: usize) -> *mut c_void;
}

/// How often jemalloc came to the C library.
static EXTENTS: AtomicUsize = AtomicUsize::new(0);

unsafe extern "C" fn extent(
    _: *mut extent_hooks_t,
    wanted: *mut c_void,
    bytes: usize,
    alignment: usize,
    zero: *mut bool,
    commit: *mut bool,
    _: c_uint,
) -> *mut c_void {
    // At no address of its choice.
    if !wanted.is_null() {
        return ptr::null_mut();
    }
    EXTENTS.fetch_add(1, Ordering::Relaxed);
    // SAFETY: aligned_alloc takes numbers; what comes back has room for `bytes`, and the flags are the caller's.
    unsafe {
        let extent = aligned_alloc(alignment, bytes);
        if !extent.is_null() && *zero {
            extent.cast::<u8>().write_bytes(0, bytes);
        }
        *commit = true;
        extent
    }
}

/// Without any other hook, what is once taken is kept.
static HOOKS: extent_hooks_t = extent_hooks_t {
    alloc: Some(extent),
    dalloc: None,
    destroy: None,
    commit: None,
    decommit: None,
    purge_lazy: None,
    purge_forced: None,
    split: None,
    merge: None,
};

fn arena() -> io::Result<usize> {
    let mut arena: c_uint = 0;
    let mut length = size_of::<c_uint>();
    let hooks: *const extent_hooks_t = &HOOKS;
    // SAFETY: the name ends with a zero; the arena's number fits in `arena`, and the hooks live for ever.
    let error = unsafe {
        mallctl(
            c"arenas.create".as_ptr(),
            (&raw mut arena).cast(),
            &raw mut length,
            (&raw const hooks).cast_mut().cast(),
            size_of::<*const extent_hooks_t>(),
        )
    };
    if error == 0 { Ok(arena as usize) } else { Err(io::Error::from_raw_os_error(error)) }
}

#[inline(never)]
fn leak_from_the_arena(arena: usize) {
    for _ in 0..black_box(20) {
        // SAFETY: mallocx takes numbers.
        let block = unsafe { mallocx(50_000, MALLOCX_ARENA(arena) | MALLOCX_TCACHE_NONE) };
        assert!(!block.is_null());
        black_box(block);
    }
}

fn main() -> io::Result<()> {
    // Its own beginnings are in a block of the C library too: before anybody counts.
    let arena = arena()?;
    crate_victims::serve(|command, wire: &mut Wire| {
        if command != b"nested" {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let before = EXTENTS.load(Ordering::Relaxed);
        leak_from_the_arena(arena);
        wire.tell(format_args!("*leak_from_the_arena"), 20, 20 * 50_000)?;
        let extents = EXTENTS.load(Ordering::Relaxed) - before;
        wire.say(format_args!("truth note extents={extents}\n"))
    })
}
