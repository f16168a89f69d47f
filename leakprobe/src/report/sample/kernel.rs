//! Reports on the kernel's own memory.

use super::*;

/// A stack in the kernel's own notation, with a module or a place in the source: `tick+0x5a [leaky], kthread+0xe9`.
/// A function without an offset is inlined.
fn kernel_stack(frames: &str) -> StackRow {
    let frames = frames.split(", ").map(|text| {
        let (name, place) = text.split_once(' ').unwrap_or((text, ""));
        let (function, offset) = name.split_once("+0x").unwrap_or((name, ""));
        let source = place.split_once(':');
        Frame {
            address: 0xffff_ffff_8120_002a,
            function: Some(function.to_owned()),
            function_offset: u64::from_str_radix(offset, 16).ok(),
            file: source.map(|(file, _)| file.to_owned()),
            line: source.and_then(|(_, line)| line.parse().ok()),
            inlined: offset.is_empty(),
            object: place.starts_with('[').then(|| place.to_owned()),
            ..Frame::default()
        }
    });
    StackRow { id: "000000000005ab1e".to_owned(), quality: StackQuality::Whole, frames: frames.collect() }
}

/// Who made survivors: name, blocks, processes, PID.
fn makers<const N: usize>(makers: [(&str, u64, u64, u32); N]) -> Vec<Maker> {
    let maker = |(name, blocks, processes, pid)| Maker { name: str::to_owned(name), blocks, processes, pid };
    makers.map(maker).to_vec()
}

/// A module that leaks by a timer, pages filled in an interrupt, names that a shell's children look up, per-CPU memory
/// of which the caller alone is known, and a cache whose frees are not seen.
fn kernel_sites() -> Vec<SiteRow> {
    let site = |rank, kind, cache: &str, bytes, [live, survivors, freed]: [u64; 3], growth| SiteRow {
        rank,
        pid: 0,
        kind,
        allocator: cache.to_owned(),
        live_bytes: bytes * live,
        live_blocks: live,
        survivor_bytes: bytes * survivors,
        survivor_blocks: survivors,
        growth_bytes: growth,
        growth_bytes_per_minute: (bytes * live) as f64 / 5.0,
        oldest_seconds: 299.9,
        median_seconds: 164.8,
        allocated_blocks: live + freed,
        allocated_bytes: bytes * (live + freed),
        freed_blocks: freed,
        freed_bytes: bytes * freed,
        made_by: makers([("kworker/1:2", 12_441, 1, 61), ("kworker/0:1", 4_839, 1, 412)]),
        contradiction: None,
        stack: kernel_stack(
            "leaky_forget_buffer+0x2f [leaky], leaky_tick+0x5a [leaky], process_one_work+0x1c7, worker_thread+0x4d, \
             kthread+0xe9, ret_from_fork+0x22",
        ),
    };
    vec![
        site(1, SiteKind::Slab, "kmalloc-256", 256, [19_200, 17_280, 0], 81_920),
        SiteRow {
            made_by: makers([("swapper/0", 41, 1, 0), ("sshd", 7, 2, 733)]),
            stack: kernel_stack(
                "skb_page_frag_refill+0x85, try_fill_recv+0x2d1 [virtio_net], virtnet_poll+0x40a [virtio_net], \
                 __napi_poll+0x28, net_rx_action+0x2a4, __do_softirq+0xf0, common_interrupt+0xb5",
            ),
            ..site(2, SiteKind::Pages, "pages", 32_768, [48, 48, 2_163], 0)
        },
        SiteRow {
            made_by: makers([("sh", 5_720, 41, 2_210), ("cron", 2_280, 1, 498)]),
            stack: kernel_stack(
                "__d_alloc+0x2a fs/dcache.c:1768, d_alloc+0x13 fs/dcache.c:1852, __lookup_slow+0x7a fs/namei.c:1690, \
                 lookup_slow fs/namei.c:1722, walk_component+0xe1 fs/namei.c:2013, \
                 do_syscall_64+0x55 arch/x86/entry/common.c:80",
            ),
            ..site(3, SiteKind::Slab, "dentry", 192, [8_064, 8_000, 33_266], -1_920)
        },
        SiteRow {
            made_by: makers([("cc1", 3, 3, 4_077)]),
            stack: StackRow {
                quality: StackQuality::Caller,
                ..kernel_stack("__percpu_counter_init+0x5b")
            },
            ..site(4, SiteKind::PerCpu, "per-CPU", 256, [96, 3, 4_024], 256)
        },
        SiteRow {
            made_by: makers([("cc1", 20_250, 1_204, 4_077), ("make", 6_750, 1, 3_002)]),
            contradiction: Some(
                "not to be believed as growth: by /proc/slabinfo the objects of maple_node have changed by -16 since \
                 the start; either as many older ones went, or frees of these were not seen"
                    .to_owned(),
            ),
            stack: kernel_stack(
                "mas_alloc_nodes+0x1f9, mas_preallocate+0x66, mmap_region+0x3ab, do_mmap+0x3b4, vm_mmap_pgoff+0xd3, \
                 do_syscall_64+0x55, entry_SYSCALL_64_after_hwframe+0x6e",
            ),
            ..site(5, SiteKind::Slab, "maple_node", 256, [28_800, 27_000, 161_600], 122_880)
        },
    ]
}

/// What is said of the kernel in [`kernel`].
fn kernel_memory() -> Kernel {
    let memory = [
        ("Slab", 110_100_480, 7_077_888),
        ("SReclaimable", 62_914_560, 1_835_008),
        ("SUnreclaim", 47_185_920, 5_242_880),
        ("KernelStack", 4_194_304, 0),
        ("PageTables", 9_437_184, -65_536),
        ("Percpu", 1_650_688, 0),
        ("VmallocUsed", 29_360_128, 0),
    ];
    let cache = |name: &str, size, [live, freed, untraced]: [u64; 3], there: Option<(u64, i64)>| CacheRow {
        name: name.to_owned(),
        object_bytes: there.map(|_| size),
        live_objects: live,
        live_bytes: size * live,
        growth_bytes_per_minute: (size * live) as f64 / 5.0,
        slabinfo_objects: there.map(|(objects, _)| objects),
        slabinfo_change: there.map(|(_, change)| change),
        slabinfo_bytes_per_minute: there.map(|(_, change)| change as f64 * size as f64 / 5.0),
        allocated_objects: live + freed,
        freed_objects: freed,
        untraced_frees: untraced,
        untraced_free_share: untraced as f64 / freed as f64,
        contradicted: name == "maple_node",
    };
    let sum =
        |(name, now, change)| MemoryRow { name: str::to_owned(name), bytes: Some(Gauge { now, change }) };
    Kernel {
        release: "6.1.0-56-amd64".to_owned(),
        memory: memory.map(sum).to_vec(),
        caches: vec![
            cache("pages", 4_096, [3_072, 307_172, 0], None),
            cache("maple_node", 256, [31_204, 176_796, 150_277], Some((2_912, -16))),
            cache("kmalloc-256", 256, [19_740, 382_378, 12], Some((24_016, 19_712))),
            cache("dentry", 192, [9_112, 41_908, 0], Some((31_080, 9_240))),
            cache("per-CPU", 256, [96, 4_024, 0], None),
        ],
        caches_with_live_objects: 62,
        sampled_one_in: 1,
        tracepoints: "raw".to_owned(),
        probed_functions: vec![],
        unprobed_functions: vec!["kmem_cache_free_bulk".to_owned()],
        slab_pages: Some(SlabPages { blocks: 410, bytes: 3_358_720 }),
    }
}

/// The ledger of [`kernel`]. Pages that slabs took are in it; sites and totals leave them out.
fn kernel_ledger() -> Ledger {
    let entries = |of: &[(&str, u64)], lost: &[&str]| {
        let kept = of.iter().map(|&(name, count)| entry(name, count, false));
        kept.chain(lost.iter().map(|name| entry(name, 0, true))).collect::<Vec<_>>()
    };
    let allocations = [("recorded", 1_204_311), ("failed", 2), ("own", 4_410)];
    let frees = [("freed", 983_755), ("free_null", 12), ("free_unknown", 4_871)];
    let records = [("outstanding", 71_450), ("freed", 983_755), ("missed_free", 150_320)];
    let lost = ["block_map_full", "block_map_refused", "scratch_busy", "bulk_cut"];
    let remarks = [("stack_truncated", 0), ("pages_split", 1_214)];
    Ledger {
        allocations: Account { hits: 1_208_726, outcomes: entries(&allocations, &lost), in_flight: 3 },
        frees: Account { hits: 988_638, outcomes: entries(&frees, &["free_bulk_cut"]), in_flight: 0 },
        records: Account { hits: 1_205_525, outcomes: entries(&records, &[]), in_flight: 0 },
        ranges: None,
        remarks: entries(&remarks, &["stack_map_full", "pages_split_lost"]),
        recursion_misses: vec![],
    }
}

/// The kernel for five minutes, with pages and per-CPU memory: a module leaks, and frees in bulk are not seen.
pub(in crate::report) fn kernel() -> Report {
    let warning = Warning {
        kind: "frees_untraced".to_owned(),
        text: "this kernel has neither kprobes nor patched functions, so kmem_cache_free_bulk cannot be probed: objects \
               that are freed in bulk or after a grace period look live until their address is handed out again; the \
               column \"frees untraced\" says in which caches that was seen, and /proc/slabinfo is compared with all"
            .to_owned(),
    };
    Report {
        elapsed_seconds: 300.0,
        warnings: vec![warning],
        processes: vec![],
        kernel: Some(kernel_memory()),
        totals: Totals {
            live_bytes: 29_884_416,
            live_blocks: 71_040,
            survivor_bytes: 24_117_248,
            survivor_blocks: 60_211,
            growth_bytes: 212_992,
            growth_bytes_per_minute: 5_976_883.2,
            allocated_blocks: 1_204_115,
            allocated_bytes: 451_384_416,
            freed_blocks: 1_133_075,
            freed_bytes: 421_500_000,
        },
        sites: kernel_sites(),
        sites_with_survivors: 214,
        ledger: kernel_ledger(),
        ..everyday()
    }
}

/// As [`kernel`], with strings that want to do harm wherever a process or a module can put one, and numbers as large
/// as there are; functions are probed.
pub(in crate::report) fn kernel_hostile() -> Report {
    let mut report = kernel();
    let evil = "\x1b]0;owned\x07\x1b[2J\ngpj.\u{202e}exe\u{200b}";
    let long = "x".repeat(1 << 20);
    let mut kernel = kernel_memory();
    kernel.release = evil.to_owned();
    kernel.memory.truncate(2);
    kernel.memory[0].name = evil.to_owned();
    kernel.memory[1].bytes = None;
    kernel.caches.truncate(3);
    kernel.caches[0].name = evil.to_owned();
    kernel.caches[1].name = long.clone();
    let largest = &mut kernel.caches[2];
    largest.name = "キャッシュ".to_owned();
    (largest.object_bytes, largest.live_objects, largest.live_bytes) = (Some(u64::MAX), u64::MAX, u64::MAX);
    (largest.slabinfo_change, largest.slabinfo_bytes_per_minute) = (Some(i64::MIN), Some(f64::NAN));
    largest.growth_bytes_per_minute = f64::INFINITY;
    kernel.probed_functions = [("kmem_cache_free_bulk", "patched"), (evil, "breakpoint")]
        .map(|(name, how)| ProbedFunction { name: name.to_owned(), how: how.to_owned() })
        .to_vec();
    report.kernel = Some(kernel);
    report.warnings = vec![Warning { kind: "evil".to_owned(), text: evil.to_owned() }];
    report.sites.truncate(2);
    let [first, second] = &mut report.sites[..] else { unreachable!("two are left") };
    first.allocator = evil.to_owned();
    first.made_by[0].name = evil.to_owned();
    first.contradiction = Some(evil.to_owned());
    first.stack.frames[0].function = Some(evil.to_owned());
    first.stack.frames[0].object = Some(evil.to_owned());
    second.made_by = makers([(&long, 41, u64::MAX, 0)]);
    second.allocator = long;
    second.stack.frames.truncate(2);
    report
}
