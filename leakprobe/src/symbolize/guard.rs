//! The boundary behind which third-party parsers read untrusted files.
//!
//! blazesym, gimli and the demanglers return errors for most malformed input, but not for all of it:
//! blazesym 0.2.7 unwraps a line row's file index (`Lines::row_location`), adds a symbol's size to its
//! address unchecked, and asserts a decompressed section's length. A panic there must cost one address
//! its name and not the user their session, so it is caught here, and nowhere else in the program.

use std::{
    cell::Cell,
    panic::{self, AssertUnwindSafe},
    sync::Once,
};

// With `panic = "abort"` nothing below would work.
const _: () = assert!(cfg!(panic = "unwind"), "symbolize needs a profile with panic = \"unwind\"");

thread_local! {
    static PARSING: Cell<bool> = const { Cell::new(false) };
}

/// Runs `parse`; a panic in it becomes an error, and prints nothing on the user's terminal.
///
/// Whoever calls this must drop or no longer trust what `parse` was changing when it panicked.
pub(super) fn catch<T>(parse: impl FnOnce() -> T) -> Result<T, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let previous = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !PARSING.get() {
                previous(info);
            }
        }));
    });
    let outer = PARSING.replace(true);
    let result = panic::catch_unwind(AssertUnwindSafe(parse));
    PARSING.set(outer);
    result.map_err(|payload| {
        let text = payload
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| payload.downcast_ref::<&str>().copied())
            .unwrap_or("no message");
        format!("malformed symbols or debug information ({})", text.lines().next().unwrap_or_default())
    })
}

#[cfg(test)]
mod tests {
    use super::catch;

    #[test]
    fn a_panic_becomes_an_error() {
        assert_eq!(catch(|| 7), Ok(7));
        let caught = catch(|| -> u8 { panic!("row {}\nsecond line", 3) });
        assert_eq!(caught, Err("malformed symbols or debug information (row 3)".to_owned()));
    }
}
