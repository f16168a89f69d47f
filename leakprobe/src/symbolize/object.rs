//! One mapped object: its layout, the files that name its code, and the names found so far.

use std::{collections::HashMap, fs::File, io, sync::Arc};

use blazesym::symbolize::Reason;

use super::{
    Unknown, debug_file,
    elf::Layout,
    source::{Found, Name, Source},
};
use crate::target::space::Object;

/// Most addresses of one object whose names are kept.
const MAX_NAMES: usize = 1 << 16;

/// What is known of one file offset of an object.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Names {
    /// The object's virtual address of the look-up.
    pub(super) address: Option<u64>,
    /// Innermost first; at least one.
    pub(super) names: Vec<Name>,
    /// Why the last of `names` has no function.
    pub(super) unknown: Option<Unknown>,
}

impl Names {
    fn none(address: Option<u64>, unknown: Unknown) -> Arc<Self> {
        Arc::new(Self { address, names: vec![Name::default()], unknown: Some(unknown) })
    }
}

/// An object that was asked for.
pub(super) struct Known {
    /// Kept, because it keeps the file open: as long as it is, no other file gets its inode, by which the
    /// names are cached.
    _object: Arc<Object>,
    state: Result<Readable, Unknown>,
    names: HashMap<u64, Arc<Names>>,
    /// When it was last asked, in the symbolizer's count of stacks.
    pub(super) used: u64,
}

struct Readable {
    layout: Layout,
    /// Most knowing first.
    sources: Vec<Source>,
    has_symbols: bool,
}

impl Known {
    pub(super) fn new(object: &Arc<Object>, host_root: Option<&File>) -> Self {
        let state = Readable::open(object, host_root);
        Self { _object: Arc::clone(object), state, names: HashMap::new(), used: 0 }
    }

    /// The names at an offset of the object's file.
    pub(super) fn names(&mut self, offset: u64) -> Arc<Names> {
        if let Some(names) = self.names.get(&offset) {
            return Arc::clone(names);
        }
        let names = match &mut self.state {
            Ok(readable) => readable.look_up(offset),
            Err(unknown) => return Names::none(None, unknown.clone()),
        };
        if self.names.len() >= MAX_NAMES {
            self.names.clear();
        }
        self.names.insert(offset, Arc::clone(&names));
        names
    }
}

impl Readable {
    fn open(object: &Object, host_root: Option<&File>) -> Result<Self, Unknown> {
        let file = object.file.as_ref().map_err(|reason| Unknown::NotOpened(reason.clone()))?;
        let layout = Layout::read(file).map_err(Unknown::Malformed)?;
        let roots: Vec<&File> = object.root.as_deref().into_iter().chain(host_root).collect();
        let failed = |error: io::Error| Unknown::NotOpened(error.to_string());
        let mut sources = Vec::new();
        let mut has_symbols = layout.has_symbols || layout.has_dwarf;
        if let Some(lines) = lines(file, &layout, &roots) {
            sources.push(lines.map_err(failed)?);
        } else if let Some((debug, found)) = debug_file::find(&object.path, &layout, &roots) {
            has_symbols = true;
            if let Some(lines) = lines(&debug, &found, &roots) {
                sources.push(lines.map_err(failed)?);
            }
            // For what its debug information does not name, or when that cannot be read.
            sources.push(Source::symbols(&debug).map_err(failed)?);
        }
        sources.push(Source::symbols(file).map_err(failed)?);
        Ok(Self { layout, sources, has_symbols })
    }

    /// Asks one source after the other until the function has a name; keeps the best that any knew.
    fn look_up(&mut self, offset: u64) -> Arc<Names> {
        let Some(address) = self.layout.address(offset) else {
            return Names::none(None, Unknown::OutsideSegments);
        };
        let mut best: Option<Vec<Name>> = None;
        let mut unknown = if self.has_symbols { Unknown::NotCovered } else { Unknown::Stripped };
        for source in &mut self.sources {
            match source.look_up(address) {
                Found::Names(names) => {
                    let names = better(best.take(), names);
                    let settled = settled(&names) || !source.has_lines();
                    best = Some(names);
                    if settled {
                        break;
                    }
                }
                Found::Failed(reason) => unknown = Unknown::Failed(reason),
                Found::Nothing(Reason::MissingSyms | Reason::UnknownAddr) => {}
                Found::Nothing(reason) => unknown = Unknown::Failed(reason.to_string()),
            }
        }
        let Some(names) = best else { return Names::none(Some(address), unknown) };
        let named = names.last().is_some_and(|name| name.function.is_some());
        Arc::new(Names { address: Some(address), names, unknown: (!named).then_some(unknown) })
    }
}

/// The debug information of a file, if it has any that can be read without following its own links.
fn lines(file: &File, layout: &Layout, roots: &[&File]) -> Option<io::Result<Source>> {
    if !layout.has_dwarf || layout.names_other_files {
        return None;
    }
    let Some(link) = &layout.shared_link else { return Some(Source::lines(file)) };
    let shared = debug_file::find_shared(link, roots)?;
    Some(Source::lines_sharing(file, &shared, &link.build_id))
}

/// Whether a symbol table could not name the function better.
fn settled(names: &[Name]) -> bool {
    names.last().is_some_and(|name| name.function.is_some() && name.mangled)
}

/// Adds to what debug information knows what a symbol table knows better: the name, where the debug
/// information has none (its strings may be in a file that cannot be had), and the full name of a C++
/// function that only its own file sees, of which the debug information has but the last part.
fn better(before: Option<Vec<Name>>, now: Vec<Name>) -> Vec<Name> {
    let Some(mut before) = before else { return now };
    if let (Some(outer), Some(symbol)) = (before.last_mut(), now.last()) {
        let fuller = symbol.mangled && !outer.mangled && symbol.start == outer.start;
        if outer.function.is_none() || fuller {
            outer.function.clone_from(&symbol.function);
            outer.start = symbol.start;
            outer.mangled = symbol.mangled;
        }
    }
    before
}
