//! One ELF file that names are looked up in.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use blazesym::symbolize::{CodeInfo, Input, Reason, Symbolized, Symbolizer, source};

use super::{
    debug_file::{build_id_name, descriptor_path, reopen},
    demangle::{cut, demangle, is_mangled},
    guard,
};

/// Most inlined functions that are taken for one address.
const MAX_INLINED: usize = 64;
/// After so many panics a file is no longer asked.
const MAX_PANICS: u32 = 8;

/// What is known of one function at one address; several of them where functions were inlined.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Name {
    /// Demangled; `None` if only the line is known.
    pub(super) function: Option<String>,
    /// Virtual address of the function's first byte; `None` for an inlined one.
    pub(super) start: Option<u64>,
    /// Whether the file has the full, mangled name.
    pub(super) mangled: bool,
    pub(super) file: Option<String>,
    pub(super) line: Option<u32>,
    pub(super) inlined: bool,
}

/// What a look-up came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// Innermost first; the last one is not inlined.
    Names(Vec<Name>),
    /// The file is in order and has no name for the address.
    Nothing(Reason),
    /// The file, or this part of it, cannot be read.
    Failed(String),
}

/// An ELF file and blazesym's state for it.
///
/// Each file has a symbolizer of its own. So what a damaged file left behind is dropped with it, and no
/// cache keyed by path is shared: descriptor numbers are reused, `/proc/self/fd/7` names many files in a
/// session. `_file` keeps this number taken for as long as the symbolizer lives.
pub(super) struct Source {
    symbolizer: Symbolizer,
    elf: source::Source<'static>,
    has_lines: bool,
    panics: u32,
    broken: Option<String>,
    _file: File,
}

impl Source {
    /// Functions from the symbol tables.
    pub(super) fn symbols(file: &File) -> io::Result<Self> {
        Self::new(file, false, None)
    }

    /// Functions, lines and inlined functions from the debug information. Only for a file that names no
    /// other files, because blazesym would open them.
    pub(super) fn lines(file: &File) -> io::Result<Self> {
        Self::new(file, true, None)
    }

    /// The same for a file whose debug information refers to `shared`, a file with that build ID.
    ///
    /// blazesym can only be told directories to search, and takes a build ID's file in the first of them
    /// before it tries the path that the link gives. So it gets a directory that holds nothing but a
    /// way to our descriptor, for as long as it takes to open it.
    pub(super) fn lines_sharing(file: &File, shared: &File, build_id: &[u8]) -> io::Result<Self> {
        let directory = Signpost::new(&build_id_name(build_id), &descriptor_path(shared))?;
        let mut source = Self::new(file, true, Some(&directory.0))?;
        // The first look-up opens everything; what it finds is of no interest.
        source.look_up(0);
        Ok(source)
    }

    fn new(file: &File, debug_information: bool, debug_directory: Option<&Path>) -> io::Result<Self> {
        let file = reopen(file)?;
        let mut elf = source::Elf::new(descriptor_path(&file));
        elf.debug_syms = debug_information;
        let symbolizer = Symbolizer::builder()
            // Our own demangling is bounded.
            .enable_demangling(false)
            // The descriptor always leads to the same file: no stat for each address.
            .enable_auto_reload(false)
            // None would stand for /usr/lib/debug.
            .set_debug_dirs(Some(debug_directory))
            .build();
        Ok(Self {
            symbolizer,
            elf: elf.into(),
            has_lines: debug_information,
            panics: 0,
            broken: None,
            _file: file,
        })
    }

    /// Whether it is asked for lines and inlined functions too.
    pub(super) fn has_lines(&self) -> bool {
        self.has_lines
    }

    /// Looks one virtual address up.
    ///
    /// One at a time, because blazesym's batches are a loop over the same function that reports errors
    /// as "ignored", and a panic would lose the whole batch.
    pub(super) fn look_up(&mut self, address: u64) -> Found {
        if let Some(reason) = &self.broken {
            return Found::Failed(reason.clone());
        }
        let found =
            guard::catch(|| match self.symbolizer.symbolize_single(&self.elf, Input::VirtOffset(address)) {
                Ok(Symbolized::Sym(symbol)) => Found::Names(names(&symbol)),
                Ok(Symbolized::Unknown(reason)) => Found::Nothing(reason),
                Err(error) => Found::Failed(cut(&format!("{error:#}"))),
            });
        found.unwrap_or_else(|reason| {
            self.panics += 1;
            if self.panics >= MAX_PANICS {
                self.broken = Some(reason.clone());
            }
            Found::Failed(reason)
        })
    }
}

/// A directory of our own with one symbolic link in it; goes away when dropped.
struct Signpost(PathBuf);

impl Signpost {
    fn new(name: &Path, target: &Path) -> io::Result<Self> {
        let signpost = Self(nix::unistd::mkdtemp(&std::env::temp_dir().join("leakprobe-XXXXXX"))?);
        let link = signpost.0.join(name);
        fs::create_dir_all(link.parent().unwrap_or(&signpost.0))?;
        symlink(target, link)?;
        Ok(signpost)
    }
}

impl Drop for Signpost {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            log::debug!("failed to remove {}: {error}", self.0.display());
        }
    }
}

/// blazesym lists the function first and then what was inlined into it, outermost first, each with the
/// line at which *it* is left; the report wants the innermost first.
fn names(symbol: &blazesym::symbolize::Sym<'_>) -> Vec<Name> {
    let skipped = symbol.inlined.len().saturating_sub(MAX_INLINED);
    let inlined = symbol.inlined.iter().skip(skipped).rev().map(|function| Name {
        function: text(&function.name),
        inlined: true,
        ..place(function.code_info.as_ref())
    });
    let outermost = Name {
        function: text(&symbol.name),
        start: Some(symbol.addr),
        mangled: is_mangled(&symbol.name),
        ..place(symbol.code_info.as_deref())
    };
    inlined.chain([outermost]).collect()
}

fn text(name: &str) -> Option<String> {
    (!name.is_empty()).then(|| demangle(name))
}

fn place(code: Option<&CodeInfo<'_>>) -> Name {
    let file = code.map(|code| cut(&code.to_path().to_string_lossy()));
    let line = code.and_then(|code| code.line);
    Name { file, line, ..Name::default() }
}
