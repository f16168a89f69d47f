//! Names for addresses: function, source line and inlined functions of each frame of a stack.
//!
//! Only what is asked for is looked up, once: names are kept by file and offset in it, so two processes
//! that map the same library share them. Everything works on the [open files](crate::target::space::Object)
//! of an address space, through `/proc/self/fd`; so it works after the target's end, on a deleted or
//! replaced file, and on files of a container. Debug information comes from the object itself (plain, or
//! compressed with zlib or zstd), else from the file that its build ID or its `.gnu_debuglink` names, in
//! the process's own root and then in the host's; names without lines come from `.symtab`,
//! `.gnu_debugdata` and `.dynsym`. What has no name says [why](Unknown).
//!
//! # Untrusted files
//!
//! Every file here may be made to harm its reader. Headers are checked before blazesym sees a file;
//! compressed sections are sized first; other files that it names are opened here, never by blazesym, and
//! only if they are regular; texts, inlined functions and the caches are bounded; a panic becomes a
//! reason. Three things a hostile file can still do, which only a process of its own could prevent, and
//! which end leakprobe but not the target (its probes go with their file descriptors):
//!
//! * blazesym maps files: one that is cut short by its owner between check and look-up raises SIGBUS (as
//!   it does in the process that runs it);
//! * blazesym's walk of inlined functions recurses once for each level that the debug information nests
//!   (honest code: below 100); 10,000 levels fit on a stack of 8 MiB, 20,000 overflow it;
//! * functions that share one long range list cost time and memory that grow with the square of the file.

mod debug_file;
mod demangle;
mod elf;
mod expand;
mod guard;
pub mod kernel;
mod object;
mod return_address;
mod source;
#[cfg(test)]
mod tests;
mod unknown;

use std::{collections::HashMap, fs::File, sync::Arc};

pub use return_address::ReturnAddress;
pub use unknown::Unknown;

use crate::{
    report::model::Frame,
    target::space::{AddressSpace, Backing, FileId, Mapping, Object},
};
use object::{Known, Names};

/// Most objects that are kept open and mapped, with up to 6 file descriptors each (two for each file
/// asked). A service that loads and drops libraries all day must not use up our descriptors, of which
/// there are 1,024 where nobody raised the limit; the least recently used object goes first.
const MAX_OBJECTS: usize = 128;

/// Looks names up, and remembers them.
///
/// Not `Send`, as blazesym is not: it stays on the thread that made it. The first look-up in an object
/// with much debug information can take a second; it should not be on a thread that drains maps.
pub struct Symbolizer {
    objects: HashMap<FileId, Known>,
    host_root: Option<File>,
    stacks: u64,
}

impl Symbolizer {
    /// A symbolizer that knows nothing yet.
    pub fn new() -> Self {
        // Without a root of our own (never seen) only the processes' roots are searched for debug files.
        Self { objects: HashMap::new(), host_root: File::open("/").ok(), stacks: 0 }
    }

    /// The frames of one stack of the process that `space` is of, innermost first; functions inlined into
    /// a frame stand before it. Each address gives at least one frame; one without a name says why.
    pub fn stack(&mut self, space: &AddressSpace, return_addresses: &[u64]) -> Vec<Frame> {
        self.stacks += 1;
        return_addresses.iter().flat_map(|&address| self.frames(space, ReturnAddress(address))).collect()
    }

    fn frames(&mut self, space: &AddressSpace, address: ReturnAddress) -> Vec<Frame> {
        // A return probe returns to the first byte of its page: nothing was called from before it.
        let trampoline =
            space.find(address.0).filter(|mapping| mapping.is_trampoline() && mapping.start == address.0);
        let Some(mapping) = trampoline.or_else(|| space.find(address.lookup())) else {
            return vec![unnamed(address, None, &Unknown::NotMapped)];
        };
        match &mapping.backing {
            Backing::Object(object) => self.in_object(mapping, object, address),
            Backing::Anonymous => vec![unnamed(address, None, &Unknown::MadeAtRunTime)],
            Backing::Named(name) => {
                let unknown = match name.as_str() {
                    "[vdso]" => Unknown::Vdso,
                    "[uprobes]" => Unknown::ReturnProbe,
                    // Memory that the process itself gave a name to (PR_SET_VMA_ANON_NAME).
                    name if name.starts_with("[anon") => Unknown::MadeAtRunTime,
                    name => Unknown::Named(demangle::cut(name)),
                };
                vec![unnamed(address, Some(demangle::cut(name)), &unknown)]
            }
        }
    }

    fn in_object(&mut self, mapping: &Mapping, object: &Arc<Object>, address: ReturnAddress) -> Vec<Frame> {
        let path = object.path.to_string_lossy();
        if let Err(reason) = &object.file {
            // Its identity is worth nothing then, so nothing is kept for it.
            let unknown = Unknown::NotOpened(demangle::cut(reason));
            return vec![unnamed(address, Some(demangle::cut(&path)), &unknown)];
        }
        let Some(offset) = (address.lookup() - mapping.start).checked_add(mapping.file_offset) else {
            return vec![unnamed(address, Some(demangle::cut(&path)), &Unknown::OutsideSegments)];
        };
        let names = self.known(object).names(offset);
        frames(address, &path, &names)
    }

    fn known(&mut self, object: &Arc<Object>) -> &mut Known {
        if !self.objects.contains_key(&object.id) && self.objects.len() >= MAX_OBJECTS {
            let oldest = self.objects.iter().min_by_key(|(_, known)| known.used).map(|(id, _)| *id);
            oldest.map(|id| self.objects.remove(&id));
        }
        let host_root = self.host_root.as_ref();
        let known = self.objects.entry(object.id).or_insert_with(|| Known::new(object, host_root));
        known.used = self.stacks;
        known
    }
}

impl Default for Symbolizer {
    fn default() -> Self {
        Self::new()
    }
}

fn frames(address: ReturnAddress, path: &str, found: &Names) -> Vec<Frame> {
    let last = found.names.len() - 1;
    let frame = |(index, name): (usize, &source::Name)| Frame {
        address: address.0,
        function: name.function.clone(),
        // From the look-up's address, which is one byte before the return address.
        function_offset: name.start.and_then(|start| found.address?.checked_sub(start)?.checked_add(1)),
        file: name.file.clone(),
        line: name.line,
        inlined: name.inlined,
        object: Some(demangle::cut(path)),
        object_address: found.address,
        unknown: match (&name.function, &found.unknown) {
            (Some(_), _) => None,
            (None, Some(unknown)) if index == last => Some(unknown.to_string()),
            (None, _) => Some("the debug information does not name this inlined function".to_owned()),
        },
    };
    found.names.iter().enumerate().map(frame).collect()
}

fn unnamed(address: ReturnAddress, object: Option<String>, unknown: &Unknown) -> Frame {
    Frame { address: address.0, object, unknown: Some(unknown.to_string()), ..Frame::default() }
}
