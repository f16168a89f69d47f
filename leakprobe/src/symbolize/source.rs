//! One ELF file that names are looked up in.

use std::{fs::File, io};

use blazesym::symbolize::{CodeInfo, Input, Reason, Symbolized, Symbolizer, source};

use super::{
    debug_file::{descriptor_path, reopen},
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
    /// `debug_information`: also lines and inlined functions. Only for a file that names no other files,
    /// because blazesym would open them.
    pub(super) fn new(file: &File, debug_information: bool) -> io::Result<Self> {
        let file = reopen(file)?;
        let mut elf = source::Elf::new(descriptor_path(&file));
        elf.debug_syms = debug_information;
        let no_directories: Option<[&str; 0]> = Some([]);
        let symbolizer = Symbolizer::builder()
            // Our own demangling is bounded.
            .enable_demangling(false)
            // The descriptor always leads to the same file: no stat for each address.
            .enable_auto_reload(false)
            .set_debug_dirs(no_directories)
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
