//! Of what shape this kernel's allocators are: found in what the kernel says of itself, never in its version.

use leakprobe_common::CacheKind;

use super::{
    btf::{Btf, Kind, TypeId},
    format::Format,
    kallsyms::Kallsyms,
    slabinfo::Slabinfo,
};

/// What tells of allocations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tracepoints {
    /// Raw tracepoints, whose arguments the kernel's BTF describes.
    Raw,
    /// Classic ones, whose records their format files describe.
    Classic,
}

impl Tracepoints {
    /// The word for them in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Classic => "classic",
        }
    }
}

/// A function of the kernel's, to be probed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    /// Its symbol.
    pub name: String,
    /// Its number in the kernel's BTF; `None` where there is none.
    pub type_id: Option<TypeId>,
}

/// Constants that the BPF programs get; what they mean is said at the globals of leakprobe-ebpf. 0: not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are those of the globals, where each is described")]
pub struct Layout {
    pub cache_name_at: u64,
    pub cache_size_at: u64,
    pub cache_object_size_at: u64,
    pub page_offset_variable: u64,
    pub vmemmap_variable: u64,
    pub page_bytes: u64,
    pub compound_head_at: u64,
    pub slab_cache_at: u64,
    pub gfp_account: u64,
    pub gfp_reclaimable: u64,
    pub gfp_dma: u64,
    pub largest_kmalloc: u64,
    pub bulk_result_bits: u64,
    pub sheaf_arguments: u32,
    pub kmalloc_requested_at: u64,
    pub kmalloc_allocated_at: u64,
    pub kmalloc_gfp_at: u64,
    pub cache_requested_at: u64,
    pub cache_allocated_at: u64,
    pub cache_name_loc_at: u64,
    pub percpu_size_at: u64,
    pub percpu_pointer_at: u64,
    pub percpu_freed_at: u64,
}

impl Default for Layout {
    fn default() -> Self {
        Self {
            cache_name_at: 0,
            cache_size_at: 0,
            cache_object_size_at: 0,
            page_offset_variable: 0,
            vmemmap_variable: 0,
            page_bytes: 64,
            compound_head_at: 8,
            slab_cache_at: 0,
            gfp_account: 0,
            gfp_reclaimable: 0x10,
            gfp_dma: 1,
            largest_kmalloc: 8192,
            bulk_result_bits: 0xffff_ffff,
            sheaf_arguments: 2,
            kmalloc_requested_at: 0,
            kmalloc_allocated_at: 0,
            kmalloc_gfp_at: 0,
            cache_requested_at: 0,
            cache_allocated_at: 0,
            cache_name_loc_at: 0,
            percpu_size_at: 0,
            percpu_pointer_at: 0,
            percpu_freed_at: 0,
        }
    }
}

/// The shape of a kernel's allocators.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    /// What tells of them.
    pub tracepoints: Tracepoints,
    /// Whether allocations on a given node have tracepoints of their own (before 6.1).
    pub node_variants: bool,
    /// Whether kmem_cache_alloc names the cache (from 6.1 on).
    pub names_cache: bool,
    /// Whether there are tracepoints of the page allocator.
    pub pages: bool,
    /// Whether there are tracepoints of the per-CPU allocator, and then whether its caller comes first (from 6.0 on).
    pub percpu: Option<bool>,
    /// kmem_cache_free_bulk.
    pub bulk_free: Option<Function>,
    /// kmem_cache_alloc_bulk.
    pub bulk_alloc: Option<Function>,
    /// Puts an object into a sheaf of its cache until a grace period is over (from 6.18 on).
    pub sheaf_free: Option<Function>,
    /// Whether caches keep free objects in sheaves instead of slabs of each CPU (from 7.0 on).
    pub sheaves: bool,
    /// Constants for the programs.
    pub layout: Layout,
}

/// Names that a kernel function has had.
const BULK_FREE: [&str; 1] = ["kmem_cache_free_bulk"];
const BULK_ALLOC: [&str; 2] = ["kmem_cache_alloc_bulk_noprof", "kmem_cache_alloc_bulk"];
const SHEAF_FREE: [&str; 1] = ["__kfree_rcu_sheaf"];

/// Why there is nothing to trace.
pub const NO_EVENTS: &str = "this kernel has no tracepoints of its allocators (kmem:kmalloc, kmem:kfree, \
    kmem:kmem_cache_alloc, kmem:kmem_cache_free): it must be built with CONFIG_TRACEPOINTS and CONFIG_EVENT_TRACING";

impl Shape {
    /// The shape that the kernel's types tell of.
    ///
    /// # Errors
    /// What is missing or of a form that is not known.
    pub fn from_btf(btf: &Btf, symbols: &Kallsyms, slabs: &Slabinfo) -> Result<Self, String> {
        let arguments = |tracepoint: &str| arguments(btf, tracepoint);
        let (Some(kmalloc), Some(alloc)) = (arguments("kmalloc"), arguments("kmem_cache_alloc")) else {
            return Err(NO_EVENTS.to_owned());
        };
        let (Some(kfree), Some(free)) = (arguments("kfree"), arguments("kmem_cache_free")) else {
            return Err(NO_EVENTS.to_owned());
        };
        let unknown = |name: &str, found: &[String]| {
            format!("the tracepoint kmem:{name} has arguments of an unknown form: {}", found.join(", "))
        };
        let begins = |found: &[String], expected: &[&str]| {
            found.len() >= expected.len() && found.iter().zip(expected).all(|(a, b)| a == b)
        };
        if !begins(&kmalloc, &["call_site", "ptr", "bytes_req", "bytes_alloc", "gfp_flags"]) {
            return Err(unknown("kmalloc", &kmalloc));
        }
        for (name, found) in [("kfree", &kfree), ("kmem_cache_free", &free)] {
            if !begins(found, &["call_site", "ptr"]) {
                return Err(unknown(name, found));
            }
        }
        let names_cache = begins(&alloc, &["call_site", "ptr", "s", "gfp_flags"]);
        if !names_cache && !begins(&alloc, &["call_site", "ptr", "bytes_req", "bytes_alloc", "gfp_flags"]) {
            return Err(unknown("kmem_cache_alloc", &alloc));
        }
        let percpu = arguments("percpu_alloc_percpu").and_then(|found| {
            let place = |name: &str| found.iter().position(|argument| argument == name);
            match (place("size"), place("ptr"), place("call_site")) {
                (Some(3), Some(7), Some(0)) => Some(true),
                (Some(2), Some(6), None) => Some(false),
                _ => None,
            }
        });
        let frees_percpu =
            arguments("percpu_free_percpu").is_some_and(|found| found.get(2).is_some_and(|it| it == "ptr"));
        let pages = arguments("mm_page_alloc").is_some_and(|found| begins(&found, &["page", "order"]))
            && arguments("mm_page_free").is_some_and(|found| begins(&found, &["page", "order"]));
        let function = |names: &[&str]| {
            let name = names.iter().find(|name| symbols.has(name))?;
            Some(Function { name: (*name).to_owned(), type_id: btf.find(Kind::Func, name) })
        };
        let bulk_alloc = function(&BULK_ALLOC);
        let sheaf_free = function(&SHEAF_FREE);
        let mut layout = Layout { largest_kmalloc: largest_kmalloc(slabs), ..Layout::default() };
        set_cache(&mut layout, btf)?;
        set_walk(&mut layout, btf, symbols);
        set_gfp(&mut layout, btf, slabs);
        if let Some(bulk_alloc) = &bulk_alloc
            && btf.returned_bytes(&bulk_alloc.name) == Some(1)
        {
            layout.bulk_result_bits = 0xff;
        }
        if let Some(parameters) = sheaf_free.as_ref().and_then(|function| btf.parameters(&function.name)) {
            layout.sheaf_arguments = parameters.len() as u32;
        }
        Ok(Self {
            tracepoints: Tracepoints::Raw,
            node_variants: arguments("kmalloc_node").is_some()
                && arguments("kmem_cache_alloc_node").is_some(),
            names_cache,
            pages,
            percpu: percpu.filter(|_| frees_percpu),
            bulk_free: function(&BULK_FREE),
            bulk_alloc,
            sheaves: btf
                .find(Kind::Struct, "kmem_cache")
                .is_some_and(|cache| btf.member(cache, "cpu_slab").is_none()),
            // Of another number of arguments, its result would be taken from the wrong place.
            sheaf_free: sheaf_free.filter(|_| matches!(layout.sheaf_arguments, 2 | 3)),
            layout,
        })
    }

    /// The shape that the format files tell of, `format(category, name)` each.
    ///
    /// # Errors
    /// What is missing.
    pub fn from_formats(
        format: impl Fn(&str, &str) -> Option<Format>,
        symbols: &Kallsyms,
        slabs: &Slabinfo,
    ) -> Result<Self, String> {
        let kmem = |name: &str| format("kmem", name);
        let (Some(kmalloc), Some(alloc)) = (kmem("kmalloc"), kmem("kmem_cache_alloc")) else {
            return Err(NO_EVENTS.to_owned());
        };
        let (Some(kfree), Some(free)) = (kmem("kfree"), kmem("kmem_cache_free")) else {
            return Err(NO_EVENTS.to_owned());
        };
        for (name, found) in [
            ("kmalloc", &kmalloc),
            ("kmem_cache_alloc", &alloc),
            ("kfree", &kfree),
            ("kmem_cache_free", &free),
        ] {
            if (found.offset("call_site"), found.offset("ptr")) != (Some(8), Some(16)) {
                return Err(format!("the tracepoint kmem:{name} has a record of an unknown form"));
            }
        }
        let at = |format: &Format, name: &str| format.offset(name).unwrap_or(0);
        let mut layout = Layout {
            largest_kmalloc: largest_kmalloc(slabs),
            kmalloc_requested_at: at(&kmalloc, "bytes_req"),
            kmalloc_allocated_at: at(&kmalloc, "bytes_alloc"),
            kmalloc_gfp_at: at(&kmalloc, "gfp_flags"),
            cache_requested_at: at(&alloc, "bytes_req"),
            cache_allocated_at: at(&alloc, "bytes_alloc"),
            cache_name_loc_at: at(&alloc, "name"),
            ..Layout::default()
        };
        if has_cgroup_caches(slabs) {
            layout.gfp_account = USUAL_GFP_ACCOUNT;
        }
        let (percpu, freed) =
            (format("percpu", "percpu_alloc_percpu"), format("percpu", "percpu_free_percpu"));
        if let (Some(percpu), Some(freed)) = (&percpu, &freed) {
            layout.percpu_size_at = at(percpu, "size");
            layout.percpu_pointer_at = at(percpu, "ptr");
            layout.percpu_freed_at = at(freed, "ptr");
        }
        let pages = [kmem("mm_page_alloc"), kmem("mm_page_free")].iter().all(|format| {
            format.as_ref().is_some_and(|it| (it.offset("pfn"), it.offset("order")) == (Some(8), Some(16)))
        });
        let function = |names: &[&str]| {
            let name = names.iter().find(|name| symbols.has(name))?;
            Some(Function { name: (*name).to_owned(), type_id: None })
        };
        Ok(Self {
            tracepoints: Tracepoints::Classic,
            node_variants: kmem("kmalloc_node").is_some() && kmem("kmem_cache_alloc_node").is_some(),
            names_cache: layout.cache_name_loc_at != 0,
            pages,
            percpu: (layout.percpu_pointer_at != 0 && layout.percpu_freed_at != 0).then_some(true),
            bulk_free: function(&BULK_FREE),
            // Its objects' sizes are read through the kernel's types.
            bulk_alloc: None,
            sheaf_free: None,
            sheaves: false,
            layout,
        })
    }

    /// Whether objects of caches can be told apart by name.
    pub fn knows_caches(&self) -> bool {
        self.names_cache || self.layout.page_offset_variable != 0
    }
}

/// Names of a tracepoint's arguments.
fn arguments(btf: &Btf, tracepoint: &str) -> Option<Vec<String>> {
    let mut all = btf.parameters(&format!("__traceiter_{tracepoint}"))?;
    // The first is what the tracepoint's user has registered with it.
    (!all.is_empty()).then(|| all.split_off(1))
}

fn set_cache(layout: &mut Layout, btf: &Btf) -> Result<(), String> {
    let cache = btf.find(Kind::Struct, "kmem_cache");
    let member = |name: &str| {
        cache
            .and_then(|cache| btf.member(cache, name))
            .ok_or_else(|| format!("the kernel's struct kmem_cache has no member {name} in its BTF"))
    };
    layout.cache_name_at = member("name")?;
    layout.cache_size_at = member("size")?;
    layout.cache_object_size_at = member("object_size")?;
    Ok(())
}

/// From an object to its cache: `page_offset_base` and `vmemmap_base` are variables on x86_64 only.
fn set_walk(layout: &mut Layout, btf: &Btf, symbols: &Kallsyms) {
    let page = btf.find(Kind::Struct, "page");
    if let Some(bytes) = page.and_then(|page| btf.size(page)) {
        layout.page_bytes = bytes;
    }
    let (Some(page), Some(direct), Some(vmemmap)) =
        (page, symbols.address("page_offset_base"), symbols.address("vmemmap_base"))
    else {
        return;
    };
    let slab_cache = btf.find(Kind::Struct, "slab").and_then(|slab| btf.member(slab, "slab_cache"));
    let slab_cache = slab_cache.or_else(|| btf.member(page, "slab_cache"));
    let head = btf.member(page, "compound_head").or_else(|| btf.member(page, "compound_info"));
    if let (Some(slab_cache), Some(head)) = (slab_cache, head) {
        layout.slab_cache_at = slab_cache;
        layout.compound_head_at = head;
        layout.vmemmap_variable = vmemmap;
        layout.page_offset_variable = direct;
    }
}

/// `__GFP_ACCOUNT` up to 6.9, where the flags were macros; their numbers are constants in BTF since.
const USUAL_GFP_ACCOUNT: u64 = 0x40_0000;

fn set_gfp(layout: &mut Layout, btf: &Btf, slabs: &Slabinfo) {
    let flag = |name: &str, usual: u64| btf.constant(name).map_or(usual, |bit| 1u64 << (bit & 63));
    layout.gfp_dma = flag("___GFP_DMA_BIT", layout.gfp_dma);
    layout.gfp_reclaimable = flag("___GFP_RECLAIMABLE_BIT", layout.gfp_reclaimable);
    if has_cgroup_caches(slabs) {
        layout.gfp_account = flag("___GFP_ACCOUNT_BIT", USUAL_GFP_ACCOUNT);
    }
}

fn has_cgroup_caches(slabs: &Slabinfo) -> bool {
    slabs.keys().any(|name| name.starts_with("kmalloc-cg-"))
}

fn largest_kmalloc(slabs: &Slabinfo) -> u64 {
    let plain = slabs.iter().filter(|(name, _)| name.starts_with("kmalloc-"));
    plain.map(|(_, row)| row.object_bytes).max().unwrap_or(Layout::default().largest_kmalloc)
}

/// The name of the cache that a key without an address stands for, as /proc/slabinfo has it; for what is in no cache,
/// what it is.
pub fn cache_name(kind: CacheKind, bytes: u64) -> String {
    let size = if bytes >= 1024 && bytes.is_multiple_of(1024) {
        format!("{}k", bytes / 1024)
    } else {
        bytes.to_string()
    };
    match kind {
        CacheKind::Kmalloc => format!("kmalloc-{size}"),
        CacheKind::KmallocCgroup => format!("kmalloc-cg-{size}"),
        CacheKind::KmallocReclaimable => format!("kmalloc-rcl-{size}"),
        CacheKind::KmallocDma => format!("dma-kmalloc-{size}"),
        CacheKind::KmallocLarge => "kmalloc-large".to_owned(),
        CacheKind::Unnamed => format!("a cache of {bytes}-byte objects"),
        CacheKind::Pages => "pages".to_owned(),
        CacheKind::PerCpu => "per-CPU".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::target::kernel::slabinfo::{self, Row};

    fn old_formats(category: &str, name: &str) -> Option<Format> {
        let sized = "field:unsigned long call_site;\toffset:8;\nfield:const void * ptr;\toffset:16;\n\
            field:size_t bytes_req;\toffset:24;\nfield:size_t bytes_alloc;\toffset:32;\nfield:gfp_t gfp_flags;\toffset:40;\n";
        let free = "field:unsigned long call_site;\toffset:8;\nfield:const void * ptr;\toffset:16;\n";
        match (category, name) {
            ("kmem", "kmalloc" | "kmalloc_node" | "kmem_cache_alloc" | "kmem_cache_alloc_node") => {
                Some(Format::parse(sized))
            }
            ("kmem", "kfree" | "kmem_cache_free") => Some(Format::parse(free)),
            _ => None,
        }
    }

    #[test]
    fn the_old_shape_is_found_in_format_files() {
        let shape =
            Shape::from_formats(old_formats, &Kallsyms::default(), &Slabinfo::new()).expect("a shape");
        assert_eq!((shape.tracepoints, shape.node_variants), (Tracepoints::Classic, true));
        assert!(!shape.names_cache && !shape.pages && shape.percpu.is_none() && !shape.knows_caches());
        assert_eq!((shape.layout.cache_requested_at, shape.layout.kmalloc_gfp_at), (24, 40));
    }

    #[test]
    fn a_kernel_without_these_events_is_told_of() {
        let none = Shape::from_formats(|_, _| None, &Kallsyms::default(), &Slabinfo::new());
        assert_eq!(none, Err(NO_EVENTS.to_owned()));
        let odd = |category: &str, name: &str| {
            old_formats(category, name).map(|_| Format::parse("field:int call_site;\toffset:4;\n"))
        };
        let odd = Shape::from_formats(odd, &Kallsyms::default(), &Slabinfo::new()).expect_err("refused");
        assert!(odd.contains("kmem:kmalloc has a record of an unknown form"), "{odd}");
    }

    /// The kernel that runs the tests, by both ways.
    #[test]
    fn this_kernels_shape_is_found() {
        let Ok(Some(btf)) = Btf::of_this_kernel() else {
            eprintln!("skipped: this kernel shows no BTF");
            return;
        };
        let symbols = Kallsyms::read().expect("symbols");
        let slabs = slabinfo::read().unwrap_or_default();
        let shape = Shape::from_btf(&btf, &symbols, &slabs).expect("a shape");
        assert_eq!(shape.tracepoints, Tracepoints::Raw);
        assert!(shape.pages && shape.percpu.is_some(), "{shape:?}");
        assert!(shape.layout.cache_name_at > shape.layout.cache_size_at, "{:?}", shape.layout);
        assert_eq!(shape.layout.cache_object_size_at, shape.layout.cache_size_at + 4);
    }

    #[test]
    fn caches_are_named_as_slabinfo_does() {
        assert_eq!(cache_name(CacheKind::Kmalloc, 96), "kmalloc-96");
        assert_eq!(cache_name(CacheKind::KmallocCgroup, 2048), "kmalloc-cg-2k");
        assert_eq!(cache_name(CacheKind::KmallocDma, 8192), "dma-kmalloc-8k");
        let slabs = Slabinfo::from([("kmalloc-8k".to_owned(), Row { object_bytes: 8192, ..Row::default() })]);
        assert_eq!(largest_kmalloc(&slabs), 8192);
    }
}
