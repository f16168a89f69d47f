//! Allocators that stripped programs hide.

use std::collections::HashSet;

use super::{Session, watched::Watched};
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
    /// Looks at each program that was not looked at yet, before a report.
    pub(super) fn look_for_hidden(&mut self) {
        for watched in &self.watched {
            // The program itself is mapped below its libraries.
            let Some(space) = watched.space_now() else { continue };
            let program = space.mappings.iter().filter(|mapping| mapping.executable).find_map(|mapping| {
                let Backing::Object(object) = &mapping.backing else { return None };
                Some(object)
            });
            let Some(object) = program else { continue };
            let Ok(file) = &object.file else { continue };
            if self.hidden.told.len() >= MAX_TOLD || !self.hidden.seen.insert(object.id) {
                continue;
            }
            let len = file.metadata().map_or(0, |metadata| metadata.len());
            // What cannot be read has been told of already.
            let Ok(Some(found)) = hidden::stripped(file, len) else { continue };
            let path = visible(&object.path.to_string_lossy()).into_owned();
            let families = found.families.into_iter().filter(|family| !has_family(watched, family));
            self.hidden.told.extend(families.map(|family| Warning {
                kind: "hidden_allocator".to_owned(),
                text: format!(
                    "{path} is stripped, and has {family} linked in, as the texts in it show: its functions have no names, so \
                     that what they hand out is not recorded, or not given back in this report; profile a build that keeps \
                     its symbols (strip --strip-debug leaves them)"
                ),
            }));
            self.hidden.stripped.push(path);
        }
    }

    /// What to say of these.
    pub(super) fn hidden_allocators(&self) -> impl Iterator<Item = Warning> {
        self.hidden.told.iter().cloned()
    }
}

/// Whether functions of a family have been found, under any prefix.
fn has_family(watched: &Watched, family: &str) -> bool {
    watched.families().any(|name| name.starts_with(family))
}
