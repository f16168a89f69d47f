//! The processes that others have made, and these in turn.

use std::{
    collections::{HashMap, HashSet},
    fs, io,
};

/// All processes below those of `roots`, by number, without these.
///
/// # Errors
/// When /proc cannot be read.
pub fn below(roots: &[u32]) -> io::Result<Vec<u32>> {
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // One that has ended meanwhile has no parent any more.
        if let Some(parent) = fs::read(entry.path().join("stat")).ok().and_then(|stat| parent(&stat)) {
            children.entry(parent).or_default().push(pid);
        }
    }
    Ok(closure(roots, &children))
}

fn closure(roots: &[u32], children: &HashMap<u32, Vec<u32>>) -> Vec<u32> {
    let mut seen: HashSet<u32> = roots.iter().copied().collect();
    let (mut below, mut waiting) = (Vec::new(), roots.to_vec());
    while let Some(parent) = waiting.pop() {
        // They were not read at one moment: a number can be met twice.
        for &child in children.get(&parent).into_iter().flatten().filter(|&&child| seen.insert(child)) {
            below.push(child);
            waiting.push(child);
        }
    }
    below
}

/// The parent by a process's `stat`; `None` for one that has ended. Its name stands in parentheses, and can hold any.
fn parent(stat: &[u8]) -> Option<u32> {
    let behind = stat.iter().rposition(|&byte| byte == b')')?;
    let mut fields = std::str::from_utf8(&stat[behind + 1..]).ok()?.split_ascii_whitespace();
    let state = fields.next()?;
    let parent = fields.next()?.parse().ok()?;
    (!["Z", "X"].contains(&state)).then_some(parent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parent_is_read_behind_the_name() {
        assert_eq!(parent(b"17 (a) S 4) R 9 17 17 0"), Some(9));
        assert_eq!(parent(b"17 (sh) Z 9 17"), None, "a zombie");
        assert_eq!([&b""[..], b"17 (sh", b"17 (sh) S", b"17 (sh) S x"].map(parent), [None; 4]);
    }

    #[test]
    fn all_that_is_below_is_found_each_once() {
        let children = HashMap::from([(1, vec![2, 3]), (2, vec![4]), (4, vec![2]), (9, vec![10])]);
        let mut below = closure(&[1, 3], &children);
        below.sort_unstable();
        assert_eq!(below, [2, 4]);
    }
}
