//! Names from untrusted programs inside our own one-line messages.

/// `bytes` as text for one line of a terminal: control characters escaped, at most `limit` characters.
pub(super) fn printable(bytes: &[u8], limit: usize) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut out = String::new();
    for (count, c) in text.chars().enumerate() {
        if count == limit {
            out.push_str("...");
            break;
        }
        // escape_debug leaves letters of all scripts and escapes controls, but also quotes, which are harmless.
        if c == '"' || c == '\'' { out.push(c) } else { out.extend(c.escape_debug()) }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::printable;

    #[test]
    fn control_characters_cannot_reach_the_terminal() {
        assert_eq!(printable(b"a\n\x1b[2Jb'\xff", 100), "a\\n\\u{1b}[2Jb'\u{fffd}");
        assert_eq!(printable("größe".as_bytes(), 3), "grö...");
    }
}
