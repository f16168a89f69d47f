//! Patterns for function names: `*` stands for any run of characters, the rest for itself.

/// Whether all of `name` fits `pattern`.
pub fn matches(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|first| name.strip_prefix(first)) else { return false };
    let mut parts = parts.peekable();
    if parts.peek().is_none() {
        return rest.is_empty();
    }
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return rest.ends_with(part);
        }
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    true
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn without_a_star_names_must_be_equal() {
        assert!(matches("malloc", "malloc"));
        assert!(!matches("malloc", "malloc_usable_size"));
        assert!(!matches("malloc", "mallo"));
        assert!(!matches("", "malloc"));
    }

    #[test]
    fn a_star_stands_for_anything_and_nothing() {
        assert!(matches("*::leak_boxes*", "rust_victim::leak_boxes::h0123"));
        assert!(matches("*::row()", "(anonymous namespace)::row()"));
        assert!(!matches("*::row()", "(anonymous namespace)::row()::{lambda()}"));
        assert!(matches("*make<double,*6>()", "void names::make<double, 6>()"));
        assert!(matches("a*a", "aa"));
        assert!(!matches("a*a", "a"));
        assert!(!matches("a*b*c", "acb"));
    }
}
