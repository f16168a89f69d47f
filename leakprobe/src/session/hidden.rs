//! Allocators that stripped programs hide, and libraries that came with them.

use std::{collections::HashSet, path::Path};

use super::Session;
use crate::{
    report::{escape::visible, model::Warning},
    target::{
        space::{Backing, FileId},
        symbols::hidden,
    },
};

/// Programs of which more is not told.
const MAX_TOLD: usize = 16;

/// What was found so far.
#[derive(Default)]
pub struct Hidden {
    seen: HashSet<FileId>,
    told: Vec<Warning>,
    /// Those that are stripped, harmless to print.
    pub stripped: Vec<String>,
}

impl Session {
    /// Looks at each object that was not looked at yet, before a report.
    pub(super) fn look_for_hidden(&mut self) {
        for watched in &self.watched {
            let Some(space) = watched.space_now() else { continue };
            let objects = space.mappings.iter().filter(|mapping| mapping.executable).filter_map(|mapping| {
                let Backing::Object(object) = &mapping.backing else { return None };
                Some(object)
            });
            for object in objects {
                let Ok(file) = &object.file else { continue };
                let is_new = self.hidden.told.len() < MAX_TOLD && self.hidden.seen.insert(object.id);
                if !is_new || is_of_the_system(&object.path) {
                    continue;
                }
                let len = file.metadata().map_or(0, |metadata| metadata.len());
                // What cannot be read has been told of already.
                let Ok(Some(found)) = hidden::stripped(file, len) else { continue };
                let path = visible(&object.path.to_string_lossy()).into_owned();
                let has = |family: &&str| watched.families_in(object.id).any(|name| name.starts_with(family));
                let families = found.families.into_iter().filter(|family| !has(family));
                self.hidden.told.extend(families.map(|family| told(&path, family)));
                self.hidden.stripped.push(path);
            }
        }
    }

    /// What to say of these.
    pub(super) fn hidden_allocators(&self) -> impl Iterator<Item = Warning> {
        self.hidden.told.iter().cloned()
    }
}

fn told(path: &str, family: &str) -> Warning {
    let text = format!(
        "{path} is stripped, and has {family} linked in, as the texts in it show: its functions have no names, so that what \
         they hand out is not recorded, or not given back in this report; profile a build that keeps its symbols (strip \
         --strip-debug leaves them)"
    );
    Warning { kind: "hidden_allocator".to_owned(), text }
}

/// Whether a library is one of the distribution's, which come with their own allocators' names or none: they are many, and
/// each is read as a whole.
fn is_of_the_system(path: &Path) -> bool {
    ["/lib", "/lib64", "/usr/lib", "/usr/lib64"].iter().any(|folder| path.starts_with(folder))
}
