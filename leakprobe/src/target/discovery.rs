//! The allocators of a process: every mapped object is searched once, and those mapped later (dlopen) when
//! they appear.

#[cfg(test)]
mod tests;

use std::{
    collections::{HashMap, HashSet},
    fmt::Write,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    family::Family,
    near::near,
    space::{AddressSpace, Backing, FileId, Object},
    symbols::{Allocator, Found, Function, find_functions},
    text::printable,
};

/// Objects that the message of a vain search names.
const NAMED_OBJECTS: usize = 8;

/// An allocator in an object, which may hold several.
#[derive(Clone, Debug)]
pub struct FoundObject {
    /// The object.
    pub object: Arc<Object>,
    /// Its family.
    pub family: &'static Family,
    /// The family's index in the table, for a probe's cookie.
    pub family_index: u8,
    /// What is to be probed, frees first. At least one.
    pub functions: Vec<Function>,
    /// See [`Allocator::freed_elsewhere`].
    pub freed_elsewhere: bool,
}

/// An object that was searched, or could not be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Searched {
    /// Its path as the process sees it. Untrusted, not escaped.
    pub path: PathBuf,
    /// What came of it, in words: `glibc, 13 functions`, `defines no malloc and free`, ...
    pub outcome: String,
    /// Whether an allocator could hide in it all the same: it could not be read, or has no symbols.
    pub doubtful: bool,
}

/// What is known of the allocators of one process so far.
#[derive(Clone, Debug)]
pub struct Discovery {
    families: &'static [Family],
    /// File names or paths of the objects that are searched; empty: all.
    only: Vec<PathBuf>,
    /// The allocators, in order of discovery, each file once.
    pub objects: Vec<FoundObject>,
    /// Every object looked at, in order of address, each once.
    pub searched: Vec<Searched>,
    done: HashSet<FileId>,
    /// Objects that could not be opened: index in `searched`, to be tried again.
    failed: HashMap<FileId, usize>,
}

/// Whether an object is meant by a file name or a path.
fn is_called(path: &Path, name: &Path) -> bool {
    // Most systems have /lib as a link to /usr/lib.
    let below_usr = |path: &Path| path.strip_prefix("/usr").ok().map(|rest| Path::new("/").join(rest));
    let same = |path: &Path, name: &Path| below_usr(path).is_some_and(|path| path == name);
    path == name || path.file_name() == Some(name.as_os_str()) || same(path, name) || same(name, path)
}

/// Searches all objects of an address space.
pub fn discover(space: &AddressSpace, families: &'static [Family]) -> Discovery {
    let mut discovery = Discovery::new(families, Vec::new());
    discovery.search(space);
    discovery
}

impl Discovery {
    /// Nothing known yet. `only`: file names or paths of the objects to be searched; empty: all.
    pub fn new(families: &'static [Family], only: Vec<PathBuf>) -> Self {
        let (objects, searched) = (Vec::new(), Vec::new());
        Self { families, only, objects, searched, done: HashSet::new(), failed: HashMap::new() }
    }

    /// Searches the objects of `space` that were not searched yet; returns the allocators that are new, which
    /// are also in [`Discovery::objects`] from now on.
    pub fn search(&mut self, space: &AddressSpace) -> &[FoundObject] {
        let before = self.objects.len();
        for mapping in space.mappings.iter().filter(|m| m.executable) {
            if let Backing::Object(object) = &mapping.backing
                && !self.done.contains(&object.id)
            {
                self.look_at(object);
            }
        }
        &self.objects[before..]
    }

    fn look_at(&mut self, object: &Arc<Object>) {
        let (outcome, doubtful) = match object.file.as_ref().map(|file| find_functions(file, self.families)) {
            Ok(Ok(Found::Allocators(mut allocators))) => {
                let all = allocators.len();
                if !self.is_wanted(object) {
                    // The dynamic linker is watched whatever is recorded: stacks go wrong without it.
                    allocators.retain(|found| !self.families[found.family].is_allocator());
                }
                let left_out = all > allocators.len();
                let outcomes = allocators.iter().map(|Allocator { family, functions, .. }| {
                    format!("{}, {} functions", self.families[*family].name, functions.len())
                });
                let left_out = left_out.then(|| "an allocator that --allocator-object leaves out".to_owned());
                let outcome = outcomes.chain(left_out).collect::<Vec<_>>().join("; ");
                self.objects.extend(allocators.into_iter().map(
                    |Allocator { family, functions, freed_elsewhere }| FoundObject {
                        object: Arc::clone(object),
                        family: &self.families[family],
                        family_index: u8::try_from(family).unwrap_or(u8::MAX),
                        functions,
                        freed_elsewhere,
                    },
                ));
                (outcome, false)
            }
            Ok(Ok(Found::Nothing(why))) => (why.to_string(), why == super::symbols::Nothing::Stripped),
            Ok(Err(e)) => (e.to_string(), true),
            Err(reason) => (reason.clone(), true),
        };
        let searched = Searched { path: object.path.clone(), outcome, doubtful };
        if object.file.is_ok() {
            self.done.insert(object.id);
        }
        // One that could not be opened is tried again in each scan, and told of once.
        match self.failed.get(&object.id) {
            Some(&index) => self.searched[index] = searched,
            None => {
                if object.file.is_err() {
                    self.failed.insert(object.id, self.searched.len());
                }
                self.searched.push(searched);
            }
        }
    }

    /// Whether an allocator was found.
    pub fn has_allocator(&self) -> bool {
        self.objects.iter().any(|found| found.family.is_allocator())
    }

    /// Whether an object's allocators are to be recorded.
    fn is_wanted(&self, object: &Object) -> bool {
        self.only.is_empty() || self.only.iter().any(|name| is_called(&object.path, name))
    }

    /// Whether an object of this file name or path was searched.
    pub fn has_object(&self, name: &Path) -> bool {
        self.searched.iter().any(|searched| is_called(&searched.path, name))
    }

    /// File names of the searched objects that are most like one.
    pub fn near_objects(&self, name: &Path) -> Vec<String> {
        let shown = |path: &Path| path.file_name().map(|name| printable(name.as_bytes(), 64));
        near(&shown(name).unwrap_or_default(), self.searched.iter().filter_map(|known| shown(&known.path)))
    }

    /// All functions to be probed with their objects, in the order in which probes must be attached: the
    /// frees of all objects, then the reallocations, then the allocations.
    pub fn attach_order(&self) -> Vec<(&FoundObject, &Function)> {
        let mut all: Vec<_> =
            self.objects.iter().flat_map(|o| o.functions.iter().map(move |f| (o, f))).collect();
        all.sort_by_key(|(_, function)| function.role.attach_rank());
        all
    }

    /// Why there is nothing to probe in process `pid`, in one line, which names the objects where an
    /// allocator could have been first.
    pub fn nothing_found(&self, pid: u32) -> String {
        let mut text = format!("found no allocator in process {pid}: ");
        if self.searched.is_empty() {
            text.push_str("it has no file mapped as code");
            return text;
        }
        let plural = if self.searched.len() == 1 { "" } else { "s" };
        let _ = write!(text, "searched {} mapped object{plural} (", self.searched.len());
        let order =
            self.searched.iter().filter(|s| s.doubtful).chain(self.searched.iter().filter(|s| !s.doubtful));
        for (i, searched) in order.take(NAMED_OBJECTS).enumerate() {
            let separator = if i == 0 { "" } else { "; " };
            let path = printable(searched.path.as_os_str().as_bytes(), 256);
            let _ = write!(text, "{separator}{path}: {}", printable(searched.outcome.as_bytes(), 256));
        }
        if let Some(more) = self.searched.len().checked_sub(NAMED_OBJECTS).filter(|&more| more > 0) {
            let _ = write!(text, "; and {more} more");
        }
        for name in self.only.iter().filter(|name| !self.has_object(name)) {
            let near = self.near_objects(name);
            let name = printable(name.as_os_str().as_bytes(), 256);
            let near =
                if near.is_empty() { String::new() } else { format!("; there are: {}", near.join(", ")) };
            let _ = write!(text, "; none of them is called {name}, as --allocator-object says{near}");
        }
        text.push_str(
            "); leakprobe knows the allocators of glibc, musl, jemalloc, tcmalloc and mimalloc, in a shared library or linked \
             into a program that is not stripped; --allocator-prefix names another",
        );
        if self.searched.iter().any(|searched| searched.doubtful) {
            text.push_str(
                "; of a stripped program, profile a build that keeps its symbols (strip --strip-debug leaves them), or its \
                 mmap and brk calls alone (--mmap)",
            );
        }
        text
    }
}
