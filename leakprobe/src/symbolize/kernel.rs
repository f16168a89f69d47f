//! Names for addresses of the kernel: from its symbols, and lines from a `vmlinux` with debug information.

use std::{fs::File, io::Read as _, path::PathBuf};

use super::{
    elf::{Layout, build_id},
    return_address::ReturnAddress,
    source::{Found, Source},
};
use crate::{
    probe::features::release,
    report::model::Frame,
    target::kernel::kallsyms::{Found as Symbol, Kallsyms},
};

/// Where distributions put it; `{}` stands for the release.
const PLACES: [&str; 6] = [
    "/usr/lib/debug/boot/vmlinux-{}",
    "/usr/lib/debug/lib/modules/{}/vmlinux",
    "/usr/lib/debug/vmlinux-{}",
    "/boot/vmlinux-{}",
    "/lib/modules/{}/build/vmlinux",
    "/lib/modules/{}/vmlinux",
];

/// What runs a probe: no caller is further in.
const RUNS: [&str; 4] = ["bpf_trace_run", "trace_call_bpf", "perf_trace_", "__bpf_trace_"];

/// So many frames at most are the probe's.
const DEEPEST: usize = 8;

/// Frames at the inner end of a stack that are no callers: what runs the probe, and the allocator's own functions.
const INNER: [&str; 42] = [
    "bpf_prog_",
    "bpf_trace_run",
    "bpf_trampoline_",
    "bpf_get_stack",
    "__bpf_trace_",
    "__traceiter_",
    "__bpf_prog_",
    "trace_call_bpf",
    "perf_trace_",
    "trace_event_raw_event_",
    "kprobe_",
    "ftrace_",
    "kretprobe_",
    "arch_rethook_",
    "__kretprobe_",
    "kmalloc",
    "__kmalloc",
    "___kmalloc",
    "__do_kmalloc",
    "kvmalloc",
    "__kvmalloc",
    "krealloc",
    "__krealloc",
    "__do_krealloc",
    "kmem_cache_alloc",
    "__kmem_cache_alloc",
    "slab_post_alloc",
    "slab_alloc",
    "pcpu_alloc",
    "__alloc_percpu",
    "alloc_pages",
    "__alloc_frozen_pages",
    "alloc_frozen_pages",
    "vma_alloc_folio",
    "folio_alloc",
    "__folio_alloc",
    "filemap_alloc_folio",
    "__alloc_pages",
    "get_page_from_freelist",
    "__get_free_pages",
    "get_zeroed_page",
    "get_free_pages",
];

/// Sets of modules that have gone whose names are kept.
const MAX_GONE: usize = 64;

/// Looks names up.
pub struct KernelSymbolizer {
    symbols: Kallsyms,
    /// Those of modules that have gone, the last to go last.
    gone: Vec<Kallsyms>,
    lines: Option<Lines>,
    /// What is to be said of a `vmlinux` that was found and cannot be used.
    pub note: Option<String>,
}

/// A `vmlinux`, and by how much the running kernel is moved.
struct Lines {
    source: Source,
    moved: u64,
}

impl KernelSymbolizer {
    /// With these symbols, and the lines of a `vmlinux` if there is one.
    pub fn new(symbols: Kallsyms) -> Self {
        let release = release();
        let found = PLACES.iter().map(|place| PathBuf::from(place.replace("{}", &release)));
        let mut note = None;
        let mut lines = None;
        for path in found {
            let Ok(file) = File::open(&path) else { continue };
            match Lines::open(&file, &symbols, own_build_id().as_deref()) {
                Ok(opened) => {
                    lines = Some(opened);
                    note = None;
                    break;
                }
                Err(reason) => {
                    note = Some(format!("{} is not used for source lines: {reason}", path.display()))
                }
            }
        }
        Self { symbols, gone: Vec::new(), lines, note }
    }

    /// The symbols in use.
    pub fn symbols(&self) -> &Kallsyms {
        &self.symbols
    }

    /// Takes the symbols of a kernel whose modules have changed.
    pub fn renew(&mut self, symbols: Kallsyms) {
        let gone = self.symbols.gone(&symbols);
        if !gone.is_empty() {
            if self.gone.len() == MAX_GONE {
                self.gone.remove(0);
            }
            self.gone.push(gone);
        }
        self.symbols = symbols;
    }

    /// The function that a return address is in. The kernel's generated code comes to lie where a module was, and has
    /// no size: there a module that has gone is believed first.
    fn function(&self, return_address: u64) -> Option<Symbol<'_>> {
        let address = ReturnAddress(return_address).lookup();
        let now = self.symbols.function(address);
        let gone = || self.gone.iter().rev().find_map(|gone| gone.function(address));
        match now {
            Some(found) if !found.is_generated() => now,
            _ => gone().or(now),
        }
    }

    /// Whether an address lies in no symbol that is known.
    pub fn is_unknown(&self, address: u64) -> bool {
        self.function(address).is_none()
    }

    /// The frames of a stack, innermost first, from the allocator's caller on; functions inlined into a frame stand
    /// before it.
    pub fn stack(&mut self, return_addresses: &[u64]) -> Vec<Frame> {
        let from = self.first_caller(return_addresses);
        return_addresses[from..].iter().flat_map(|&address| self.frames(address)).collect()
    }

    /// Where the allocator's caller is in a stack; a stack of nothing but the allocator is shown as it is.
    fn first_caller(&self, return_addresses: &[u64]) -> usize {
        // The probe's own code comes first, with whatever name; what runs it is known.
        let runs = |&address: &u64| {
            self.function(address)
                .is_some_and(|found| RUNS.iter().any(|prefix| found.name.starts_with(prefix)))
        };
        let last = return_addresses.iter().take(DEEPEST).rposition(runs);
        let probe = last.map_or_else(
            || return_addresses.iter().take_while(|&&address| self.is_unknown(address)).count(),
            |last| last + 1,
        );
        let inner = return_addresses[probe..].iter().take_while(|&&address| self.is_inner(address)).count();
        // Without either, it begins elsewhere.
        let is_known = last.is_some() || inner > 0;
        if is_known && probe + inner < return_addresses.len() { probe + inner } else { 0 }
    }

    fn is_inner(&self, address: u64) -> bool {
        let found = self.function(address);
        found.is_some_and(|found| INNER.iter().any(|prefix| found.name.starts_with(prefix)))
    }

    /// Whether a stack goes through one of the functions that take pages for slabs, or for large blocks of kmalloc.
    pub fn takes_pages_for_slabs(&self, return_addresses: &[u64]) -> bool {
        const TAKERS: [&str; 7] = [
            "allocate_slab",
            "new_slab",
            "alloc_slab_page",
            "___slab_alloc",
            "kmalloc_large",
            "__kmalloc_large",
            "___kmalloc_large",
        ];
        let takes = |found: Symbol<'_>| {
            found.module.is_none()
                && (TAKERS.iter().any(|taker| found.name.starts_with(taker))
                    || found.name.starts_with("kmalloc_order"))
        };
        return_addresses.iter().any(|&address| self.function(address).is_some_and(takes))
    }

    fn frames(&mut self, address: u64) -> Vec<Frame> {
        let lookup = ReturnAddress(address).lookup();
        let Some(found) = self.function(address) else {
            let unknown = if self.symbols.is_hidden() {
                "the kernel hides its symbols: kernel.kptr_restrict is 2"
            } else {
                "in no function that the kernel's symbols name; a module that is gone, or generated code"
            };
            // With its address as that in an object: frames that are told apart by it alone are not alike.
            let object_address = Some(address);
            return vec![Frame {
                address,
                object_address,
                unknown: Some(unknown.to_owned()),
                ..Frame::default()
            }];
        };
        let plain = Frame {
            address,
            function: Some(found.name.to_owned()),
            function_offset: Some(address - found.start),
            object: found.module.map(|module| format!("[{module}]")),
            ..Frame::default()
        };
        let (start, in_module) = (found.start, found.module.is_some());
        if in_module {
            return vec![plain];
        }
        let Some(lines) = &mut self.lines else { return vec![plain] };
        let Found::Names(names) = lines.source.look_up(lookup.wrapping_sub(lines.moved)) else {
            return vec![plain];
        };
        names
            .into_iter()
            .map(|name| Frame {
                // The kernel's own name for the function itself, whatever a file calls it.
                function: if name.inlined { name.function } else { plain.function.clone() },
                file: name.file,
                line: name.line,
                inlined: name.inlined,
                function_offset: (!name.inlined).then_some(address - start),
                unknown: None,
                ..plain.clone()
            })
            .filter(|frame| frame.function.is_some())
            .collect()
    }
}

impl Lines {
    /// Opens a `vmlinux` that is the running kernel's by its build ID, as far as both have one.
    fn open(file: &File, symbols: &Kallsyms, own: Option<&[u8]>) -> Result<Self, String> {
        let layout = Layout::read(file)?;
        match (layout.build_id.as_deref(), own) {
            (Some(theirs), Some(own)) if theirs != own => {
                return Err(
                    "it is of another build than the running kernel (their build IDs differ)".to_owned()
                );
            }
            _ => {}
        }
        if !layout.has_dwarf {
            return Err("it has no debug information; install the kernel's debug package".to_owned());
        }
        if layout.names_other_files {
            return Err("its debug information is in other files".to_owned());
        }
        let theirs = symbol_address(file, "_text").or_else(|| symbol_address(file, "_stext"));
        let here = symbols.address("_text").or_else(|| symbols.address("_stext"));
        let (Some(theirs), Some(here)) = (theirs, here) else {
            return Err("it has no symbol _text to compare with the running kernel's".to_owned());
        };
        let source = Source::lines(file).map_err(|error| error.to_string())?;
        Ok(Self { source, moved: here.wrapping_sub(theirs) })
    }
}

/// The build ID of the running kernel: an ELF note.
fn own_build_id() -> Option<Vec<u8>> {
    let mut notes = Vec::new();
    File::open("/sys/kernel/notes").ok()?.take(1 << 16).read_to_end(&mut notes).ok()?;
    build_id(&notes)
}

/// The address of a symbol in an ELF file.
fn symbol_address(file: &File, name: &str) -> Option<u64> {
    use object::{Object as _, ObjectSymbol as _, ReadCache};
    let cache = ReadCache::new(file);
    let parsed: object::File<'_, _> = object::File::parse(&cache).ok()?;
    parsed.symbols().find(|symbol| symbol.name() == Ok(name)).map(|symbol| symbol.address())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
ffffffff81000000 T _text
ffffffff81000100 t bpf_prog_6deef7357e7b4530_kmalloc\t[bpf]
ffffffff81000200 T __kmalloc_noprof
ffffffff81000300 T do_eventfd
ffffffff81000400 t allocate_slab
ffffffff81000500 t end
ffffffffc0000000 t leak_it\t[leaky]
";

    fn symbolizer(text: &str) -> KernelSymbolizer {
        let symbols = Kallsyms::parse(text.as_bytes()).expect("symbols");
        KernelSymbolizer { symbols, gone: Vec::new(), lines: None, note: None }
    }

    #[test]
    fn a_stack_begins_with_the_allocators_caller() {
        let mut symbolizer = symbolizer(TEXT);
        let base = 0xffff_ffff_8100_0000;
        let frames = symbolizer.stack(&[base + 0x110, base + 0x210, base + 0x310, 0xffff_ffff_c000_0008]);
        let names: Vec<_> = frames
            .iter()
            .map(|frame| (frame.function.as_deref(), frame.function_offset, frame.object.as_deref()))
            .collect();
        assert_eq!(
            names,
            [(Some("do_eventfd"), Some(0x10), None), (Some("leak_it"), Some(8), Some("[leaky]"))]
        );
        assert_eq!(symbolizer.stack(&[base + 0x110]).len(), 1, "nothing but the allocator is shown as it is");
        assert!(symbolizer.takes_pages_for_slabs(&[base + 0x310, base + 0x410]));
        assert!(!symbolizer.takes_pages_for_slabs(&[base + 0x310]));
    }

    #[test]
    fn a_module_that_is_gone_keeps_its_names() {
        let mut symbolizer = symbolizer(TEXT);
        symbolizer.renew(
            Kallsyms::parse(&TEXT.as_bytes()[..TEXT.find("ffffffffc").expect("there")]).expect("symbols"),
        );
        let frames = symbolizer.stack(&[0xffff_ffff_c000_0008, 0xffff_ffff_d000_0000]);
        assert_eq!(frames[0].function.as_deref(), Some("leak_it"));
        assert!(frames[1].unknown.as_deref().is_some_and(|reason| reason.contains("a module that is gone")));
    }

    /// A `vmlinux` of a kernel that runs elsewhere than it was linked for, as with a randomized base.
    #[cfg(target_arch = "x86_64")]
    #[test]
    fn a_vmlinux_of_this_build_gives_lines_and_inlined_functions() {
        const SOURCE: &str = "\
extern volatile int sink;
void _text(void) {}
static inline __attribute__((always_inline)) void inner(int x) {
    sink = x;
}
__attribute__((noipa)) void outer(int x) {
    inner(x + 1);
    sink = 2;
}
volatile int sink;
";
        let folder = std::env::temp_dir().join(format!("leakprobe-vmlinux-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        let (source, vmlinux) = (folder.join("k.c"), folder.join("vmlinux"));
        std::fs::write(&source, SOURCE).expect("a source");
        let built = std::process::Command::new("cc")
            .args([
                "-O1",
                "-g",
                "-nostdlib",
                "-static",
                "-ffreestanding",
                "-fno-pie",
                "-no-pie",
                "-mcmodel=kernel",
            ])
            .args([
                "-Wl,-Ttext=0xffffffff81000000",
                "-Wl,-e,_text",
                "-Wl,--build-id=0x0102030405060708",
                "-o",
            ])
            .args([&vmlinux, &source])
            .status();
        assert!(built.expect("a compiler").success());
        let file = File::open(&vmlinux).expect("built");
        let outer = symbol_address(&file, "outer").expect("there");
        const MOVED: u64 = 0x1e00_0000;
        let here = |address: u64| address.wrapping_add(MOVED);
        let text = format!(
            "{:x} T _text\n{:x} T outer\n{:x} T end\n",
            here(symbol_address(&file, "_text").expect("there")),
            here(outer),
            here(outer) + 0x1000
        );
        let symbols = Kallsyms::parse(text.as_bytes()).expect("symbols");
        let lines = Lines::open(&file, &symbols, Some(&[1, 2, 3, 4, 5, 6, 7, 8])).expect("lines");
        let other = Lines::open(&file, &symbols, Some(&[8; 8])).err().expect("refused");
        assert!(other.contains("another build"), "{other}");
        let mut symbolizer = KernelSymbolizer { symbols, gone: Vec::new(), lines: Some(lines), note: None };
        // Somewhere in `outer` is what was inlined, and somewhere is its own line.
        let mut seen = Vec::new();
        for offset in 1..32 {
            for frame in symbolizer.stack(&[here(outer) + offset]) {
                let file = frame.file.as_deref().unwrap_or_default().ends_with("/k.c");
                seen.push((frame.function.unwrap_or_default(), frame.inlined, file, frame.line));
            }
        }
        assert!(seen.contains(&("inner".to_owned(), true, true, Some(4))), "{seen:?}");
        assert!(seen.contains(&("outer".to_owned(), false, true, Some(7))), "{seen:?}");
        assert!(seen.contains(&("outer".to_owned(), false, true, Some(8))), "{seen:?}");
        std::fs::remove_dir_all(&folder).expect("ours");
    }
}
