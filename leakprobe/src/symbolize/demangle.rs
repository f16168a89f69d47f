//! Demangled names, of bounded length.
//!
//! Done here and not by blazesym, because cpp_demangle bounds its recursion (96 levels to parse, 128 to
//! print) but not its output: with substitutions each level can double the text, so a name of some
//! hundred bytes would print gigabytes.

use std::fmt::{self, Write};

use cpp_demangle::{DemangleOptions, Symbol};

use super::guard;

/// Longest text that is taken from an untrusted file, bytes.
pub(super) const MAX_TEXT: usize = 4096;

/// Longest mangled name that is parsed at all, bytes.
const MAX_MANGLED: usize = 16 * 1024;

/// Whether a name is mangled as Rust's or C++'s.
pub(super) fn is_mangled(name: &str) -> bool {
    name.starts_with("_Z") || name.starts_with("_R")
}

/// The name as its programmer wrote it: Rust or C++ where it is mangled so, unchanged otherwise; cut
/// after [`MAX_TEXT`] bytes.
pub(super) fn demangle(name: &str) -> String {
    // glibc's name for calls of its own function from inside itself; same address, same function.
    let name = name.strip_prefix("__GI_").unwrap_or(name);
    if name.len() > MAX_MANGLED {
        return cut(name);
    }
    // A panic in a demangler leaves nothing behind: it works on locals only.
    guard::catch(|| rust(name).or_else(|| cpp(name))).ok().flatten().unwrap_or_else(|| cut(name))
}

/// `text`, cut after [`MAX_TEXT`] bytes.
pub(super) fn cut(text: &str) -> String {
    let mut bounded = Bounded::default();
    // The error only says that it was cut.
    let _ = bounded.write_str(text);
    bounded.finish()
}

fn rust(name: &str) -> Option<String> {
    let symbol = rustc_demangle::try_demangle(name).ok()?;
    let mut bounded = Bounded::default();
    // `#` leaves the hash out.
    let written = write!(bounded, "{symbol:#}");
    (written.is_ok() || bounded.is_cut).then(|| bounded.finish())
}

fn cpp(name: &str) -> Option<String> {
    // cpp_demangle takes bare types too: a C function named `f` would become `float`.
    if !is_mangled(name) {
        return None;
    }
    let symbol = Symbol::new(name).ok()?;
    let mut bounded = Bounded::default();
    let written = symbol.structured_demangle(&mut bounded, &DemangleOptions::default());
    (written.is_ok() || bounded.is_cut).then(|| bounded.finish())
}

/// A text that takes no more than [`MAX_TEXT`] bytes and fails the write that would exceed them, which
/// stops the demangler.
#[derive(Default)]
struct Bounded {
    text: String,
    is_cut: bool,
}

impl Bounded {
    fn finish(mut self) -> String {
        if self.is_cut {
            self.text.push('…');
        }
        self.text
    }
}

impl Write for Bounded {
    fn write_str(&mut self, piece: &str) -> fmt::Result {
        if self.is_cut {
            return Err(fmt::Error);
        }
        let room = MAX_TEXT - self.text.len();
        if piece.len() <= room {
            self.text.push_str(piece);
            return Ok(());
        }
        self.text.push_str(&piece[..piece.floor_char_boundary(room)]);
        self.is_cut = true;
        Err(fmt::Error)
    }
}

#[cfg(test)]
mod tests {
    use super::{MAX_TEXT, cut, demangle};

    #[test]
    fn mangled_names_become_readable() {
        let table = [
            ("_ZN5cache5StoreIiE3putEi", "cache::Store<int>::put(int)"),
            ("_Z4leakPKc.isra.0", "leak(char const*) [clone .isra.0]"),
            ("_ZN4core3fmt5Write9write_fmt17h0123456789abcdefE", "core::fmt::Write::write_fmt"),
            ("_RNvNtCs1234_7mycrate3foo3bar", "mycrate::foo::bar"),
            ("malloc", "malloc"),
            ("f", "f"),
            ("i", "i"),
            ("__GI___libc_malloc", "__libc_malloc"),
            ("_ZN", "_ZN"),
            ("", ""),
        ];
        for (mangled, readable) in table {
            assert_eq!(demangle(mangled), readable, "{mangled}");
        }
    }

    #[test]
    fn a_name_that_doubles_with_each_level_is_cut() {
        // f(pair<A, A>, pair<pair, pair>, ...): each parameter refers twice to the one before it.
        let mut name = "_Z1f1AI1BS0_E".to_owned();
        let digits = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ";
        for level in 0..60 {
            let id = |n: usize| match n {
                0..36 => char::from(digits[n]).to_string(),
                _ => format!("{}{}", char::from(digits[n / 36]), char::from(digits[n % 36])),
            };
            let last = id(1 + level);
            name.push_str(&format!("S_IS{last}_S{last}_E"));
        }
        let readable = demangle(&name);
        assert!(readable.ends_with('…'), "{readable}");
        assert_eq!(readable.len(), MAX_TEXT + '…'.len_utf8());
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        let text = "ü".repeat(MAX_TEXT);
        assert_eq!(cut(&text), format!("{}…", "ü".repeat(MAX_TEXT / 2)));
        assert_eq!(cut(&text[..MAX_TEXT]), &text[..MAX_TEXT]);
        assert_eq!(demangle(&"_Z".repeat(20_000)).len(), MAX_TEXT + '…'.len_utf8());
    }

    #[test]
    fn deep_nesting_is_refused_not_followed() {
        let name = format!("_Z1f{}i", "P".repeat(15_000));
        assert_eq!(demangle(&name), cut(&name));
    }
}
