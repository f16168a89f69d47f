//! The BPF object for the kernel's own memory: its maps made, its constants set, its programs ready to be loaded.

use std::os::fd::OwnedFd;

use anyhow::{Result, anyhow};
use aya::{Ebpf, EbpfLoader, VerifierLogLevel};
use aya_obj::generated::bpf_attach_type;

use crate::{
    probe::load::{Trial, object::Relocated},
    sys::limits::LockedMemory,
    target::kernel::shape::{Function, Layout, Shape, Tracepoints},
};

#[cfg(target_arch = "x86_64")]
static OBJECT: &[u8] = aya::include_bytes_aligned!("../../../ebpf/kernel.x86_64.bpf.o");
#[cfg(target_arch = "aarch64")]
static OBJECT: &[u8] = aya::include_bytes_aligned!("../../../ebpf/kernel.aarch64.bpf.o");

/// What the user may set before loading.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Smallest object recorded, bytes asked for.
    pub min_size: u64,
    /// Largest object recorded, bytes asked for.
    pub max_size: u64,
    /// Capacity of the map of outstanding objects; set aside at once.
    pub max_blocks: u32,
    /// Capacity of the stack table; set aside at once.
    pub max_stacks: u32,
    /// One address in so many is recorded; at least 1.
    pub one_in: u32,
    /// Whether stacks are taken.
    pub stacks: bool,
    /// Whether only some caches are recorded.
    pub filter_caches: bool,
    /// Whether the kernel may run a program while it runs on that CPU.
    pub may_recur: bool,
    /// CPUs that per-CPU memory is made for.
    pub cpus: u32,
}

/// Sites of caches whose stacks were not kept have a place besides those that have one.
const SITES_WITHOUT_STACKS: u32 = 1024;

/// The object, its maps made.
pub struct KernelObject {
    /// The maps.
    pub ebpf: Ebpf,
    relocated: Relocated,
}

impl KernelObject {
    /// Makes the maps, and sets the constants.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn create(settings: &Settings, layout: &Layout) -> Result<Self> {
        let _limit = LockedMemory::unlimited();
        let globals = globals(settings, layout);
        let mut loader = EbpfLoader::new();
        loader
            .btf(None)
            .verifier_log_level(VerifierLogLevel::DISABLE)
            .map_max_entries("BLOCKS", settings.max_blocks)
            .map_max_entries("STACKS", settings.max_stacks)
            .map_max_entries("SITES", settings.max_stacks.saturating_add(SITES_WITHOUT_STACKS));
        for (name, bytes) in &globals {
            loader.override_global(name, &bytes[..], true);
        }
        let ebpf = loader.load(OBJECT).map_err(|error| {
            anyhow!(
                "failed to load the BPF object: {error}; if the kernel has too little memory for its maps, lower \
                 --max-blocks ({}) or --max-stacks ({})",
                settings.max_blocks,
                settings.max_stacks
            )
        })?;
        let relocated = Relocated::new(OBJECT, &ebpf, &globals)?;
        Ok(Self { ebpf, relocated })
    }

    /// Loads a program for a tracepoint or a breakpoint.
    ///
    /// # Errors
    /// What the kernel said, with the verifier's last words.
    pub fn load(&self, program: &str) -> Result<OwnedFd> {
        let _limit = LockedMemory::unlimited();
        self.relocated.load(program, 0)
    }

    /// Loads a program for the entry (`exit`: the return) of a function of the kernel's, by its number in BTF.
    ///
    /// # Errors
    /// As [`KernelObject::load`].
    pub fn load_for_function(&self, program: &str, function: u32, exit: bool) -> Result<OwnedFd> {
        let _limit = LockedMemory::unlimited();
        self.relocated.load_for_function(program, attach_type(exit), function)
    }

    /// Loads each program that a session with all options may need here, and attaches none.
    pub fn try_all(&self, shape: &Shape) -> Vec<Trial> {
        let _limit = LockedMemory::unlimited();
        let mut trials: Vec<Trial> = tracepoint_programs(shape)
            .into_iter()
            .map(|name| {
                let loaded = self.relocated.load_measured(name, 0);
                Trial { name, outcome: loaded.map(|(_, cost)| (cost.instructions, cost.time)) }
            })
            .collect();
        for (function, programs) in bulk_programs(shape) {
            let Some(function) = function else { continue };
            trials.extend(self.try_bulk(function, programs));
        }
        trials
    }

    /// Patched functions where the kernel can do that, else breakpoints; nothing where it has neither.
    fn try_bulk(&self, function: &Function, programs: BulkPrograms) -> Vec<Trial> {
        if let Some(type_id) = function.type_id {
            let attach_type = attach_type(programs.at_exit);
            let loaded = self.relocated.load_measured_for_function(programs.patched, attach_type, type_id);
            if let Ok((_, cost)) = loaded {
                return vec![Trial { name: programs.patched, outcome: Ok((cost.instructions, cost.time)) }];
            }
        }
        programs
            .breakpoints
            .iter()
            .map(|&name| {
                let loaded = self.relocated.load_measured(name, 0);
                Trial { name, outcome: loaded.map(|(_, cost)| (cost.instructions, cost.time)) }
            })
            .collect()
    }
}

/// What a program at a function's entry, or its return, is loaded for.
fn attach_type(exit: bool) -> u32 {
    let attach_type = if exit { bpf_attach_type::BPF_TRACE_FEXIT } else { bpf_attach_type::BPF_TRACE_FENTRY };
    attach_type as u32
}

/// Names of the programs for a function without a tracepoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BulkPrograms {
    /// Where the function can be patched.
    pub patched: &'static str,
    /// Whether that is at its return.
    pub at_exit: bool,
    /// Breakpoints: at its entry, and where there is a second one at its return.
    pub breakpoints: &'static [&'static str],
}

/// The functions without a tracepoint, with their programs; those that give objects back first.
pub fn bulk_programs(shape: &Shape) -> [(Option<&Function>, BulkPrograms); 3] {
    let programs = |patched, at_exit, breakpoints| BulkPrograms { patched, at_exit, breakpoints };
    [
        (shape.bulk_free.as_ref(), programs("bulk_free_fentry", false, &["bulk_free_kprobe"])),
        (
            shape.sheaf_free.as_ref(),
            programs("sheaf_free_fexit", true, &["sheaf_free_kprobe", "sheaf_free_kretprobe"]),
        ),
        (
            shape.bulk_alloc.as_ref(),
            programs("bulk_alloc_fexit", true, &["bulk_alloc_kprobe", "bulk_alloc_kretprobe"]),
        ),
    ]
}

/// The tracepoint programs for a shape, each once.
pub fn tracepoint_programs(shape: &Shape) -> Vec<&'static str> {
    let mut names: Vec<&str> = Vec::new();
    for point in tracepoints(shape, true, true) {
        if !names.contains(&point.program) {
            names.push(point.program);
        }
    }
    names
}

/// A tracepoint and its program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Point {
    /// The tracepoint's group.
    pub category: &'static str,
    /// Its name.
    pub name: &'static str,
    /// The program in the BPF object.
    pub program: &'static str,
}

impl Point {
    /// Whether the program is for the tracepoint's record, and not for its arguments.
    pub fn is_classic(&self) -> bool {
        self.program.ends_with("_classic")
    }
}

/// The tracepoints of a session in the order in which they are attached: those that give memory back first, so that no
/// object is recorded whose free is not watched.
pub fn tracepoints(shape: &Shape, pages: bool, percpu: bool) -> Vec<Point> {
    let raw = shape.tracepoints == Tracepoints::Raw;
    let pick = |a: &'static str, b: &'static str| if raw { a } else { b };
    let point = |category, name, program| Point { category, name, program };
    let kmalloc = pick("kmalloc", "kmalloc_classic");
    let alloc = match (raw, shape.names_cache) {
        (true, true) => "cache_alloc",
        (true, false) => "cache_alloc_sized",
        (false, _) => "cache_alloc_classic",
    };
    let mut all = vec![
        point("kmem", "kfree", pick("kfree", "kfree_classic")),
        point("kmem", "kmem_cache_free", pick("cache_free", "cache_free_classic")),
        // After the first ones: the kernel runs them in the order in which they are attached. Raw in any case: while one
        // classic program runs, no other does.
        point("kmem", "kfree", "kfree_again"),
        point("kmem", "kmem_cache_free", "cache_free_again"),
    ];
    if pages {
        all.push(point("kmem", "mm_page_free", pick("page_free", "page_free_classic")));
    }
    if percpu {
        all.push(point("percpu", "percpu_free_percpu", pick("percpu_free", "percpu_free_classic")));
    }
    all.extend([point("kmem", "kmalloc", kmalloc), point("kmem", "kmem_cache_alloc", alloc)]);
    if shape.node_variants {
        all.extend([point("kmem", "kmalloc_node", kmalloc), point("kmem", "kmem_cache_alloc_node", alloc)]);
    }
    if pages {
        all.push(point("kmem", "mm_page_alloc", pick("page_alloc", "page_alloc_classic")));
    }
    if percpu {
        let with_caller = if shape.percpu == Some(true) { "percpu_alloc" } else { "percpu_alloc_bare" };
        all.push(point("percpu", "percpu_alloc_percpu", pick(with_caller, "percpu_alloc_classic")));
    }
    all
}

/// The constants that the verifier sees.
fn globals(settings: &Settings, layout: &Layout) -> Vec<(&'static str, Vec<u8>)> {
    let long = |name, value: u64| (name, value.to_ne_bytes().to_vec());
    let int = |name, value: u32| (name, value.to_ne_bytes().to_vec());
    vec![
        long("MIN_SIZE", settings.min_size),
        long("MAX_SIZE", settings.max_size),
        int("OWN_TGID", std::process::id()),
        int("SAMPLE_BELOW", u32::MAX / settings.one_in.max(1)),
        int("SAMPLE_WEIGHT", settings.one_in.max(1)),
        long("SAMPLE_SEED", seed()),
        int("MAY_RECUR", settings.may_recur.into()),
        int("WITH_STACKS", settings.stacks.into()),
        int("FILTER_CACHES", settings.filter_caches.into()),
        long("CPUS", settings.cpus.into()),
        long("CACHE_NAME_AT", layout.cache_name_at),
        long("CACHE_SIZE_AT", layout.cache_size_at),
        long("CACHE_OBJECT_SIZE_AT", layout.cache_object_size_at),
        long("PAGE_OFFSET_VARIABLE", layout.page_offset_variable),
        long("VMEMMAP_VARIABLE", layout.vmemmap_variable),
        long("PAGE_BYTES", layout.page_bytes),
        long("COMPOUND_HEAD_AT", layout.compound_head_at),
        long("SLAB_CACHE_AT", layout.slab_cache_at),
        long("GFP_ACCOUNT", layout.gfp_account),
        long("GFP_RECLAIMABLE", layout.gfp_reclaimable),
        long("GFP_DMA", layout.gfp_dma),
        long("LARGEST_KMALLOC", layout.largest_kmalloc),
        long("BULK_RESULT_BITS", layout.bulk_result_bits),
        int("SHEAF_ARGUMENTS", layout.sheaf_arguments),
        long("KMALLOC_REQUESTED_AT", layout.kmalloc_requested_at),
        long("KMALLOC_ALLOCATED_AT", layout.kmalloc_allocated_at),
        long("KMALLOC_GFP_AT", layout.kmalloc_gfp_at),
        long("CACHE_REQUESTED_AT", layout.cache_requested_at),
        long("CACHE_ALLOCATED_AT", layout.cache_allocated_at),
        long("CACHE_NAME_LOC_AT", layout.cache_name_loc_at),
        long("PERCPU_SIZE_AT", layout.percpu_size_at),
        long("PERCPU_POINTER_AT", layout.percpu_pointer_at),
        long("PERCPU_FREED_AT", layout.percpu_freed_at),
    ]
}

/// Another number in each session.
fn seed() -> u64 {
    use std::hash::{BuildHasher as _, Hasher as _, RandomState};
    RandomState::new().build_hasher().finish()
}

#[cfg(test)]
mod tests {
    use aya_obj::Object;

    use super::*;

    #[test]
    fn every_program_and_every_constant_is_in_the_object() {
        let object = Object::parse(OBJECT).expect("the committed object");
        let mut shape = Shape {
            tracepoints: Tracepoints::Raw,
            node_variants: true,
            names_cache: true,
            pages: true,
            percpu: Some(true),
            bulk_free: None,
            bulk_alloc: None,
            sheaf_free: None,
            sheaves: false,
            layout: Layout::default(),
        };
        let mut names = tracepoint_programs(&shape);
        (shape.names_cache, shape.percpu) = (false, Some(false));
        names.extend(tracepoint_programs(&shape));
        shape.tracepoints = Tracepoints::Classic;
        names.extend(tracepoint_programs(&shape));
        for (_, programs) in bulk_programs(&shape) {
            names.push(programs.patched);
            names.extend(programs.breakpoints);
        }
        for name in names {
            assert!(object.programs.contains_key(name), "{name}");
        }
        let growing = aya_obj::generated::BPF_F_NO_PREALLOC;
        for (name, map) in &object.maps {
            assert_eq!(map.map_flags() & growing, 0, "{name} would allocate while it traces the allocator");
        }
    }

    #[test]
    fn frees_are_watched_before_anything_is_recorded() {
        let shape = Shape {
            tracepoints: Tracepoints::Classic,
            node_variants: true,
            names_cache: false,
            pages: true,
            percpu: Some(true),
            bulk_free: None,
            bulk_alloc: None,
            sheaf_free: None,
            sheaves: false,
            layout: Layout::default(),
        };
        let all = tracepoints(&shape, true, true);
        let last_free = all.iter().rposition(|point| point.name.contains("free")).expect("frees");
        let first = all.iter().position(|point| point.name.contains("alloc")).expect("allocations");
        assert!(last_free < first, "{all:?}");
        assert_eq!(all.len(), 12);
    }
}
