//! Names of caches as a user gives them: globs, and what is near a name that matches nothing.

/// Whether a name matches a pattern, in which `*` stands for any text and `?` for one character.
pub fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
    let (mut p, mut n) = (0, 0);
    // Where to go on when what follows the last star does not match: its place, and one more character for it.
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        if p < pattern.len() && (pattern[p] == '?' || (pattern[p] == name[n] && pattern[p] != '*')) {
            (p, n) = (p + 1, n + 1);
        } else if p < pattern.len() && pattern[p] == '*' {
            star = Some((p, n));
            p += 1;
        } else if let Some((at, taken)) = star {
            star = Some((at, taken + 1));
            (p, n) = (at + 1, taken + 1);
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|&c| c == '*')
}

/// At most `most` of the names, those nearest to the pattern first; none that has nothing in common with it.
pub fn nearest<'a>(pattern: &str, names: impl Iterator<Item = &'a str>, most: usize) -> Vec<&'a str> {
    let wanted: String = pattern.chars().filter(|&c| c != '*' && c != '?').collect();
    let mut scored: Vec<(usize, &str)> = names
        .map(|name| {
            let related = !wanted.is_empty() && (name.contains(&wanted) || wanted.contains(name));
            (if related { 0 } else { distance(&wanted, name) }, name)
        })
        .filter(|(score, name)| *score <= wanted.chars().count().max(name.chars().count()) / 2)
        .collect();
    scored.sort_unstable();
    scored.into_iter().take(most).map(|(_, name)| name).collect()
}

/// Levenshtein's distance: the fewest characters to insert, delete or replace.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (index, a) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = index + 1;
        for (column, b) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(a != *b);
            diagonal = row[column + 1];
            row[column + 1] = replaced.min(row[column] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_stand_for_any_text() {
        for (pattern, name, expected) in [
            ("dentry", "dentry", true),
            ("dentry", "dentry2", false),
            ("kmalloc-*", "kmalloc-cg-64", true),
            ("*-64", "kmalloc-cg-64", true),
            ("kmalloc-?4", "kmalloc-64", true),
            ("kmalloc-?", "kmalloc-64", false),
            ("*a*a*b", "aaaaaaaab", true),
            ("*a*a*b", "aaaaaaaac", false),
            ("", "", true),
            ("*", "", true),
            ("a*", "", false),
            ("*x", "a*x", true),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn near_names_come_first() {
        let names = ["dentry", "inode_cache", "ext4_inode_cache", "filp", "kmalloc-64"];
        let near = |pattern| nearest(pattern, names.iter().copied(), 3);
        assert_eq!(near("dentries"), ["dentry"]);
        assert_eq!(near("inode"), ["ext4_inode_cache", "inode_cache"]);
        assert_eq!(near("kmaloc-64"), ["kmalloc-64"]);
        assert!(near("xyzzy_quux").is_empty());
    }
}
