//! Strings from untrusted programs and files, made safe to print.
//!
//! Names, paths, command lines and symbols are whatever a program's author, or an attacker, wanted them to
//! be. In a terminal an escape sequence can move the cursor, retitle the window or hide lines; overrides of
//! the writing direction and characters that take no room can make one name look like another.

use std::borrow::Cow;
use std::fmt::Write;
use unicode_width::UnicodeWidthChar;

/// Characters of one string that are printed at most; of longer ones the middle is left out.
pub const MAX_CHARS: usize = 1024;

/// Stands where something was left out.
pub const ELLIPSIS: char = '…';

/// The string with everything that could act on a terminal, or not be seen in it, written visibly (`\n`,
/// `\x1b`, `\u{202e}`), and at most [`MAX_CHARS`] of its characters. A line of text stays one line.
pub fn visible(text: &str) -> Cow<'_, str> {
    let text = bounded(text, MAX_CHARS);
    if text.chars().all(is_harmless) {
        return text;
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            _ if is_harmless(c) => escaped.push(c),
            '\n' => escaped.push_str("\\n"),
            '\r' => escaped.push_str("\\r"),
            '\t' => escaped.push_str("\\t"),
            _ => push_code(&mut escaped, c),
        }
    }
    Cow::Owned(escaped)
}

fn push_code(out: &mut String, c: char) {
    let code = u32::from(c);
    let written = if code < 0x80 { write!(out, "\\x{code:02x}") } else { write!(out, "\\u{{{code:x}}}") };
    debug_assert!(written.is_ok(), "writing to a String cannot fail");
}

/// Whether a character takes room, takes it where it stands, and does nothing else.
///
/// Besides control characters this refuses all that is zero columns wide, which takes in the marks and
/// overrides of direction, zero-width spaces and joiners, variation selectors, tags and combining marks
/// (whose number on one letter nothing bounds), and the two separators that break lines.
fn is_harmless(c: char) -> bool {
    matches!(c.width(), Some(1..)) && !matches!(c, '\u{2028}' | '\u{2029}')
}

/// Bytes that should be UTF-8, as text: what is not is written `\xff`, everything else is left alone.
pub fn from_bytes(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        for byte in chunk.invalid() {
            let written = write!(text, "\\x{byte:02x}");
            debug_assert!(written.is_ok(), "writing to a String cannot fail");
        }
    }
    text
}

/// At most `max_chars` characters: both ends, and an ellipsis for the middle.
pub fn bounded(text: &str, max_chars: usize) -> Cow<'_, str> {
    // A string has at most as many characters as bytes, so the usual one is not walked.
    if text.len() <= max_chars || text.chars().nth(max_chars).is_none() {
        return Cow::Borrowed(text);
    }
    let tail = max_chars.saturating_sub(1) / 2;
    let head = max_chars.saturating_sub(1) - tail;
    let head_end = text.char_indices().nth(head).map_or(text.len(), |(index, _)| index);
    let tail_start = match tail {
        0 => text.len(),
        _ => text.char_indices().nth_back(tail - 1).map_or(0, |(index, _)| index),
    };
    Cow::Owned(format!("{}{ELLIPSIS}{}", &text[..head_end], &text[tail_start..]))
}

/// Columns that a [`visible`] string takes.
pub fn columns(text: &str) -> usize {
    text.chars().map(|c| c.width().unwrap_or(0)).sum()
}

/// Which part of a string that is too wide gives way to the ellipsis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// The start: of a path the file's name and line matter most.
    Start,
    /// The middle: of a demangled name its namespace and its last part.
    Middle,
    /// The end: of a command line its first arguments.
    End,
}

/// At most `width` columns of a [`visible`] string.
pub fn fit(text: &str, width: usize, cut: Cut) -> Cow<'_, str> {
    if columns(text) <= width {
        return Cow::Borrowed(text);
    }
    let Some(room) = width.checked_sub(1) else { return Cow::Borrowed("") };
    let (head, tail) = match cut {
        Cut::Start => (0, room),
        Cut::Middle => (room - room / 2, room / 2),
        Cut::End => (room, 0),
    };
    let head_end = prefix(text.char_indices(), head).map_or(0, |(index, c)| index + c.len_utf8());
    let tail_start = prefix(text.char_indices().rev(), tail).map_or(text.len(), |(index, _)| index);
    Cow::Owned(format!("{}{ELLIPSIS}{}", &text[..head_end], &text[tail_start..]))
}

/// The last of the characters, taken in order, that fit into `width` columns together.
pub(super) fn prefix(chars: impl Iterator<Item = (usize, char)>, width: usize) -> Option<(usize, char)> {
    let mut used = 0;
    chars
        .take_while(|(_, c)| {
            used += c.width().unwrap_or(0);
            used <= width
        })
        .last()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_text_is_left_alone() {
        for text in ["", "std::vec<int>::push_back(int&&)", "naïve 名前 файл", r"dev-disk\x2dby.mount"]
        {
            assert!(matches!(visible(text), Cow::Borrowed(same) if same == text), "{text}");
        }
    }

    #[test]
    fn what_acts_on_a_terminal_is_made_visible() {
        for (text, shown) in [
            ("a\x1b[2Jb", r"a\x1b[2Jb"),
            ("a\nb\r\tc\0", r"a\nb\r\tc\x00"),
            ("\x7f\u{9b}31m", r"\x7f\u{9b}31m"),
            ("gpj.\u{202e}exe", r"gpj.\u{202e}exe"),
            ("\u{202a}\u{202b}\u{202c}\u{202d}", r"\u{202a}\u{202b}\u{202c}\u{202d}"),
            ("\u{2066}\u{2067}\u{2068}\u{2069}", r"\u{2066}\u{2067}\u{2068}\u{2069}"),
            ("\u{61c}\u{200e}\u{200f}", r"\u{61c}\u{200e}\u{200f}"),
            ("ma\u{200b}in\u{feff}\u{2060}\u{ad}", r"ma\u{200b}in\u{feff}\u{2060}\u{ad}"),
            ("a\u{2028}b\u{2029}", r"a\u{2028}b\u{2029}"),
            ("Z\u{310}\u{e0041}", r"Z\u{310}\u{e0041}"),
        ] {
            assert_eq!(visible(text), shown);
        }
    }

    #[test]
    fn bytes_that_are_no_text_are_made_visible() {
        assert_eq!(from_bytes(b"ok"), "ok");
        assert_eq!(from_bytes(b"a\xffb\xe2\x82"), r"a\xffb\xe2\x82");
        assert_eq!(from_bytes("é\x1b".as_bytes()), "é\x1b");
    }

    #[test]
    fn long_strings_lose_their_middle() {
        assert_eq!(bounded("abcdef", 6), "abcdef");
        assert_eq!(bounded("abcdefg", 6), "abc…fg");
        assert_eq!(bounded("äöüßéèê", 6), "äöü…èê");
        assert_eq!(bounded("äöüßéè", 6), "äöüßéè");
        assert_eq!(bounded("abc", 1), "…");
        assert_eq!(visible(&"x".repeat(1_000_000)).chars().count(), MAX_CHARS);
        assert_eq!(visible(&"\x1b".repeat(1_000_000)).chars().count(), 4 * (MAX_CHARS - 1) + 1);
    }

    #[test]
    fn cuts_count_columns_not_characters() {
        assert_eq!(fit("abcdef", 6, Cut::End), "abcdef");
        assert_eq!(fit("abcdefg", 6, Cut::End), "abcde…");
        assert_eq!(fit("abcdefg", 6, Cut::Start), "…cdefg");
        assert_eq!(fit("abcdefg", 6, Cut::Middle), "abc…fg");
        assert_eq!(fit("名前名前", 6, Cut::End), "名前…");
        assert_eq!(fit("名前名前", 6, Cut::Start), "…名前");
        assert_eq!(fit("名前名前", 4, Cut::Middle), "名…");
        assert_eq!(fit("abc", 1, Cut::Middle), "…");
        assert_eq!(fit("abc", 0, Cut::Middle), "");
    }
}
