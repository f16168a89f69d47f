//! Waiting for descriptors.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
};

use aya::maps::{MapData, RingBuf};
use tokio::io::{Interest, unix::AsyncFd};

/// What keeps one descriptor open for as long as it lives, and always names the same one.
pub trait OwnsDescriptor: AsRawFd {}

impl OwnsDescriptor for OwnedFd {}
impl OwnsDescriptor for RingBuf<MapData> {}
impl<T> OwnsDescriptor for aya_log::EbpfLogger<T> {}

/// Registers `inner` with the event loop that runs.
pub fn readable<T: OwnsDescriptor>(inner: T) -> io::Result<AsyncFd<T>> {
    // SAFETY: the descriptor stays open and the same while `inner` lives, which is what the trait says and
    // what the three types above do: each owns its descriptor and has no way to exchange it.
    unsafe { AsyncFd::register_with_interest(inner, Interest::READABLE) }
        .map_err(|error| error.into_parts().1)
}
