//! Prefixes and objects that the user named, and that no allocator has or is in: what was searched, and what may have been
//! meant.

use std::{
    collections::{BTreeSet, HashSet},
    path::PathBuf,
};

use super::Session;
use crate::{
    report::{escape::visible, model::Warning, units::counted},
    target::{family::is_known, near::near, space::Backing, symbols::prefixes::prefixes},
};

impl Session {
    /// Looks for what may have been meant, once, before the first report.
    pub(super) fn look_for_prefixes(&mut self) {
        let wanted = &self.options.allocator_prefixes;
        if self.reports > 0 || wanted.iter().all(|prefix| self.has_prefix(prefix)) {
            return;
        }
        let (mut seen, mut there) = (HashSet::new(), BTreeSet::new());
        for watched in &self.watched {
            let Some(space) = watched.space_now() else { continue };
            for mapping in space.mappings.iter().filter(|mapping| mapping.executable) {
                let Backing::Object(object) = &mapping.backing else { continue };
                let is_new = seen.insert(object.id);
                if let (Ok(file), true) = (&object.file, is_new && !watched.is_known_allocator(object.id)) {
                    // What cannot be read has been told of already.
                    there.extend(prefixes(file).unwrap_or_default());
                }
            }
        }
        self.prefixes_there = there.into_iter().collect();
        self.searched_for_prefixes = seen.len();
    }

    fn has_prefix(&self, prefix: &str) -> bool {
        let name = is_known(prefix).map_or_else(|| format!("{prefix}*"), str::to_owned);
        self.watched.iter().any(|watched| watched.has_family(&name))
    }

    /// What to say of each prefix that nothing has; one can still come with a library.
    pub(super) fn unmatched_prefixes(&self) -> impl Iterator<Item = Warning> {
        let unmatched = self.options.allocator_prefixes.iter().filter(|prefix| !self.has_prefix(prefix));
        unmatched.map(|prefix| {
            let is_left_out =
                self.prefixes_there.contains(prefix) && !self.options.allocator_objects.is_empty();
            // One that is there as it was given has other functions than those that are probed.
            let there = || self.prefixes_there.iter().filter(|there| *there != prefix).cloned();
            let alike = near(prefix, there());
            let there = match (alike.as_slice(), there().collect::<Vec<_>>().as_slice()) {
                _ if is_left_out => {
                    "an object has them that --allocator-object leaves out".to_owned()
                }
                ([], []) => "no names in them look like an allocator's with a prefix".to_owned(),
                ([], all) => format!("there are: {}", shown(all)),
                (alike, _) => format!("there are: {}", shown(alike)),
            };
            let searched = counted(self.searched_for_prefixes as u64, "mapped object");
            let stripped = match self.hidden.stripped.first() {
                Some(path) => format!("; {path} is stripped: functions in it may have no names"),
                None => String::new(),
            };
            let text = format!(
                "--allocator-prefix {prefix} matches nothing so far: {searched} searched for {prefix}malloc and \
                 {prefix}free and their like; {there}{stripped}"
            );
            Warning { kind: "prefix_unmatched".to_owned(), text }
        })
    }

    /// What to say of each object that nobody has mapped; it can still be opened.
    pub(super) fn unmatched_objects(&self) -> impl Iterator<Item = Warning> {
        let is_nowhere = |name: &&PathBuf| !self.watched.iter().any(|watched| watched.has_object(name));
        self.options.allocator_objects.iter().filter(is_nowhere).map(|name| {
            let near: BTreeSet<String> =
                self.watched.iter().flat_map(|watched| watched.near_objects(name)).collect();
            let near: Vec<String> = near.into_iter().collect();
            let there =
                if near.is_empty() { String::new() } else { format!("; there are: {}", shown(&near)) };
            let name = visible(&name.to_string_lossy()).into_owned();
            let text = format!("--allocator-object {name} is no mapped object so far{there}");
            Warning { kind: "object_unmatched".to_owned(), text }
        })
    }
}

/// The first few.
fn shown(prefixes: &[String]) -> String {
    let all: Vec<String> = prefixes.iter().take(8).map(|prefix| visible(prefix).into_owned()).collect();
    all.join(", ")
}
