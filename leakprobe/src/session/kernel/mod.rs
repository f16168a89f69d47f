//! A session on the kernel's own memory (`--kernel`).

mod assemble;
mod caches;
mod follow;

use std::collections::HashMap;

use anyhow::{Result, anyhow, bail};

use self::caches::Caches;
use super::{Begun, output::Output};
use crate::{
    analysis::{balance::OwnCounts, sites::Analyst},
    cli::{AttachWith, Options, Placement},
    probe::{
        features::{self, lockdown_hint},
        kernel::{
            attach::{self, KernelProbes, Wanted},
            load::{KernelObject, Settings},
            maps::KernelMaps,
        },
        load::{Trial, preallocate},
    },
    report::model::Warning,
    symbolize::kernel::KernelSymbolizer,
    sys::{clock, tracepoint::TraceFs},
    target::kernel::{
        btf::Btf,
        format::Format,
        kallsyms::Kallsyms,
        meminfo::{self, Meminfo},
        shape::{Shape, Tracepoints},
        slabinfo::{self, Slabinfo},
    },
};

/// From this sample on, programs run for so short that the kernel skips too few runs to be worth a second program.
const FEW_SAMPLED: u32 = 64;

/// A running session.
pub struct KernelSession {
    options: Options,
    shape: Shape,
    maps: KernelMaps,
    probes: KernelProbes,
    symbolizer: KernelSymbolizer,
    caches: Caches,
    /// By site: which cache it allocates from, and whether its pages are a slab's.
    origins: HashMap<u64, Origin>,
    analyst: Analyst,
    own: OwnCounts,
    output: Output,
    notes: Vec<Warning>,
    memory_at_start: Meminfo,
    modules: String,
    stopped_ns: Option<u64>,
    started_ns: u64,
    last_report_ns: u64,
    reports: u64,
}

/// What is known of a site besides its counters.
#[derive(Clone, Copy, Debug)]
struct Origin {
    cache: u64,
    is_slab_page: bool,
}

impl KernelSession {
    /// Opens the output, finds out what the kernel is like, and puts the probes in.
    fn prepare(options: Options) -> Result<Self> {
        let output = Output::open(&options)?;
        let symbols = Kallsyms::read()?;
        let slabs = slabinfo::read();
        let mut notes = Vec::new();
        if let Err(error) = &slabs {
            let text = format!(
                "{error:#}: nothing that was traced can be compared with the kernel's own account of its caches"
            );
            notes.push(Warning { kind: "slabinfo".into(), text });
        }
        let slabs = slabs.unwrap_or_default();
        let shape = find_shape(options.attach_with, &symbols, &slabs)?;
        require(&options, &shape, &symbols)?;
        let caches = Caches::new(&options, &shape, slabs)?;
        let settings = settings(&options, &shape);
        let mut object = KernelObject::create(&settings, &shape.layout)?;
        let mut maps = KernelMaps::take(&mut object.ebpf)?;
        caches.tell(&mut maps)?;
        let wanted = Wanted {
            pages: options.kernel.pages,
            percpu: options.kernel.percpu,
            functions: options.kernel.functions,
            twice: options.kernel.one_in < FEW_SAMPLED,
            floor: options.placement == Placement::Floor,
        };
        let probes = attach::attach(&object, &shape, wanted)?;
        if symbols.is_hidden() {
            let text = "the kernel hides the addresses of its symbols: stacks have no names; as root, sysctl \
                        kernel.kptr_restrict=1";
            notes.push(Warning { kind: "symbols_hidden".into(), text: text.to_owned() });
        }
        notes.extend(limits_of(&options, &shape, &probes));
        let symbolizer = KernelSymbolizer::new(symbols);
        notes.extend(
            symbolizer.note.iter().map(|text| Warning { kind: "vmlinux".into(), text: text.clone() }),
        );
        let now = clock::monotonic_ns();
        Ok(Self {
            options,
            shape,
            maps,
            probes,
            symbolizer,
            caches,
            origins: HashMap::new(),
            analyst: Analyst::new(now),
            own: OwnCounts::default(),
            output,
            notes,
            memory_at_start: meminfo::read()?,
            modules: modules(),
            stopped_ns: None,
            started_ns: now,
            last_report_ns: now,
            reports: 0,
        })
    }

    /// Probes are in place: from now on time counts.
    fn begin(&mut self, begun: Begun) -> Result<()> {
        self.caches.begin();
        self.memory_at_start = meminfo::read()?;
        let now = clock::monotonic_ns();
        (self.started_ns, self.last_report_ns, self.analyst) = (now, now, Analyst::new(now));
        eprintln!("leakprobe: probes in place ({} ms)", begun.at.elapsed().as_millis());
        Ok(())
    }

    /// Reads the kernel's symbols anew when modules have come or gone: of those that go, the names stay known.
    fn notice_modules(&mut self) -> Result<()> {
        let modules = modules();
        if modules != self.modules {
            self.modules = modules;
            self.symbolizer.renew(Kallsyms::read()?);
        }
        Ok(())
    }

    /// Ends the recording; see [`super::Session::stop`].
    fn stop(&mut self) -> Result<()> {
        self.maps.close()?;
        self.stopped_ns = Some(clock::monotonic_ns());
        self.probes.detach();
        self.own.recursion_misses = self.probes.recursion_misses();
        Ok(())
    }
}

/// Runs a session on the kernel's own memory.
///
/// # Errors
/// When this kernel, or this process, cannot do that, with the reason.
pub fn run_kernel(options: Options, begun: Begun) -> Result<()> {
    let refusal =
        features::capability_refusal(features::own_capabilities()).or_else(features::namespace_refusal);
    if let Some(refusal) = refusal {
        bail!(refusal);
    }
    let session = KernelSession::prepare(options)?;
    follow::block_on(session, begun)
}

/// What this kernel is like, and what it makes of the programs that a session may need; attaches nothing.
///
/// # Errors
/// Why its memory cannot be traced.
pub fn examine() -> Result<(Shape, Vec<Trial>)> {
    const FEW: u32 = 1024;
    let symbols = Kallsyms::read()?;
    let shape = find_shape(AttachWith::Auto, &symbols, &slabinfo::read().unwrap_or_default())?;
    let settings = Settings {
        min_size: 0,
        max_size: u64::MAX,
        max_blocks: FEW,
        max_stacks: FEW,
        one_in: 1,
        stacks: true,
        filter_caches: true,
        may_recur: may_recur(&shape),
        cpus: possible_cpus(),
    };
    let trials = KernelObject::create(&settings, &shape.layout)?.try_all(&shape);
    Ok((shape, trials))
}

/// The kernel's shape, by its BTF if it has one.
fn find_shape(attach_with: AttachWith, symbols: &Kallsyms, slabs: &Slabinfo) -> Result<Shape> {
    let release = features::release();
    let refuse = |reason: String| anyhow!("failed to trace kernel {release}: {reason}{}", lockdown_hint());
    let btf = match attach_with {
        AttachWith::Auto => Btf::of_this_kernel()?,
        AttachWith::PerfEvent | AttachWith::PerfEventByAddress => None,
    };
    let by_btf = btf.map(|btf| Shape::from_btf(&btf, symbols, slabs));
    if let Some(Ok(shape)) = by_btf {
        return Ok(shape);
    }
    let tracing = TraceFs::open().map_err(|error| refuse(format!("{error:#}")))?;
    let format =
        |category: &str, name: &str| tracing.format(category, name).ok().map(|text| Format::parse(&text));
    Shape::from_formats(format, symbols, slabs).map_err(|reason| {
        refuse(match by_btf {
            Some(Err(by_btf)) => format!("{by_btf}; {reason}"),
            _ => reason,
        })
    })
}

/// Refuses what this kernel does not offer.
fn require(options: &Options, shape: &Shape, symbols: &Kallsyms) -> Result<()> {
    let release = features::release();
    if options.kernel.pages && !shape.pages {
        bail!(
            "failed to trace pages: kernel {release} has no tracepoints kmem:mm_page_alloc and kmem:mm_page_free; leave out --pages"
        );
    }
    if options.kernel.pages && symbols.is_hidden() {
        bail!(
            "failed to trace pages: those that slabs take are told apart by the functions that take them, and this \
             kernel hides its symbols; as root, sysctl kernel.kptr_restrict=1"
        );
    }
    if options.kernel.percpu && shape.percpu.is_none() {
        bail!(
            "failed to trace per-CPU memory: kernel {release} has no tracepoint percpu:percpu_alloc_percpu of a known \
             form; leave out --percpu"
        );
    }
    Ok(())
}

fn settings(options: &Options, shape: &Shape) -> Settings {
    Settings {
        min_size: options.min_size.unwrap_or(0),
        max_size: options.max_size.unwrap_or(u64::MAX),
        // Set aside at once, whatever the kernel: a map that grows would allocate while it traces the allocator.
        max_blocks: options.max_blocks.unwrap_or(preallocate::max_blocks(true)),
        max_stacks: options.max_stacks,
        one_in: options.kernel.one_in,
        stacks: options.kernel.stacks,
        filter_caches: !options.kernel.caches.is_empty(),
        may_recur: may_recur(shape),
        cpus: possible_cpus(),
    }
}

/// Raw tracepoints, which some programs use in any case, have had a guard since the release in which kmem_cache_alloc
/// came to name the cache.
fn may_recur(shape: &Shape) -> bool {
    !shape.names_cache
}

/// What limits a session from its start on.
fn limits_of(options: &Options, shape: &Shape, probes: &KernelProbes) -> Vec<Warning> {
    let mut limits = Vec::new();
    let mut limit = |kind: &str, text: String| limits.push(Warning { kind: kind.to_owned(), text });
    if options.kernel.one_in > 1 {
        let pages = if options.kernel.pages { "; pages are all recorded" } else { "" };
        limit(
            "sampled",
            format!(
                "one address in {} is recorded: counts and bytes are scaled up, and those of few objects are rough; the ledger is of the sample \
                 alone{pages}",
                options.kernel.one_in
            ),
        );
    }
    if !options.kernel.caches.is_empty() {
        let names = options.kernel.caches.join(", ");
        limit("filtered", format!("only caches that match {names} are recorded (--cache)"));
    }
    if let Some(sizes) = sizes(options) {
        limit("filtered", format!("only allocations of {sizes} are recorded (--min-size, --max-size)"));
    }
    if !probes.unprobed.is_empty() && options.placement != Placement::Floor {
        limit(
            "frees_untraced",
            format!(
                "this kernel has neither kprobes nor patched functions, so {} cannot be probed: objects that are freed \
                 in bulk or after a grace period look live until their address is handed out again, and those that are \
                 allocated in bulk are not recorded; the column \"frees untraced\" says in which caches the former was \
                 seen, and /proc/slabinfo is compared with all",
                probes.unprobed.join(", ")
            ),
        );
    }
    if !shape.knows_caches() {
        limit(
            "caches_unnamed",
            "this kernel's tracepoints name no caches, and it says nowhere how to find them: caches other than \
             kmalloc's are told apart by the size of their objects alone"
                .to_owned(),
        );
    }
    if shape.tracepoints == Tracepoints::Classic {
        limit(
            "classic_tracepoints",
            "classic tracepoints are used, of which the kernel runs one program at a time on a CPU: what an interrupt \
             allocates meanwhile is not recorded, and older kernels do not count it"
                .to_owned(),
        );
    }
    limits
}

/// Sizes that are recorded, in words; `None` where all are.
fn sizes(options: &Options) -> Option<String> {
    match (options.min_size, options.max_size) {
        (None | Some(0), None) => None,
        (Some(min), None) => Some(format!("at least {min} bytes")),
        (None, Some(max)) => Some(format!("at most {max} bytes")),
        (Some(min), Some(max)) => Some(format!("{min} to {max} bytes")),
    }
}

/// CPUs that the kernel makes per-CPU memory for: `0-3`, or `0,2-3`.
fn possible_cpus() -> u32 {
    let text = std::fs::read_to_string("/sys/devices/system/cpu/possible").unwrap_or_default();
    let count = |range: &str| -> Option<u32> {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        Some(last.parse::<u32>().ok()?.checked_sub(first.parse().ok()?)? + 1)
    };
    text.trim().split(',').filter_map(count).sum::<u32>().max(1)
}

/// The modules that are loaded, as the kernel lists them; empty where it has none.
fn modules() -> String {
    let text = std::fs::read_to_string("/proc/modules").unwrap_or_default();
    // Name and state: one that is still being loaded may have no symbols yet. The words between count uses, which come
    // and go.
    let name_and_state = |line: &str| {
        let mut words = line.split(' ');
        Some(format!("{} {} ", words.next()?, words.nth(3)?))
    };
    text.lines().filter_map(name_and_state).collect()
}
