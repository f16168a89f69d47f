//! The length of a string that a function has returned: what it has allocated where no argument says so.

use aya_ebpf::helpers::generated::bpf_probe_read_user_str;

use crate::maps::{MEASURED, Piece};

/// Strings that are longer count as of this many pieces: 8 MiB.
const PIECES: u32 = 256;

/// Puts the length of a string in the process's memory, with its end, into `bytes`, which is of a map: the verifier does not
/// know what stands there, and so takes all lengths for one. Whether it could be read.
#[inline(always)]
pub fn measure(start: u64, bytes: &mut u64) -> bool {
    const PIECE: u64 = size_of::<Piece>() as u64;
    let Some(piece) = MEASURED.get_ptr_mut(0) else { return false };
    *bytes = 0;
    for _ in 0..PIECES {
        // SAFETY: the map's value is as long as that; the helper checks the address, and a fault is an error.
        let copied = unsafe {
            bpf_probe_read_user_str(piece.cast(), PIECE as u32, (start + known(bytes)) as *const _)
        };
        if copied <= 0 {
            return false;
        }
        // The last byte is an end that the helper has put there, if it has not met the string's own.
        let is_cut = copied as u64 == PIECE;
        *bytes = known(bytes) + if is_cut { PIECE - 1 } else { copied as u64 };
        if !is_cut {
            return true;
        }
    }
    true
}

/// What stands there, as far as the verifier knows.
#[inline(always)]
fn known(bytes: &u64) -> u64 {
    // SAFETY: a reference is valid.
    unsafe { core::ptr::read_volatile(bytes) }
}
