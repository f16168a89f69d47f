//! Reports for tests: one with everything in it, and the special cases.

mod kernel;

pub(super) use self::kernel::{kernel, kernel_hostile};
use super::model::*;

/// What stands in every report of the session of [`full`].
fn frame(function: &str, place: Option<(&str, u32)>, address: u64) -> Frame {
    Frame {
        address,
        function: Some(function.to_owned()),
        function_offset: Some(0x2a),
        file: place.map(|(file, _)| file.to_owned()),
        line: place.map(|(_, line)| line),
        inlined: false,
        object: Some("/usr/local/bin/api-server".to_owned()),
        object_address: Some(address - 0x55d0_c0de_0000),
        unknown: None,
    }
}

fn inlined(function: &str, file: &str, line: u32, address: u64) -> Frame {
    Frame { inlined: true, ..frame(function, Some((file, line)), address) }
}

fn unknown(object: &str, address: u64, object_address: u64, reason: &str) -> Frame {
    Frame {
        address,
        object: Some(object.to_owned()),
        object_address: Some(object_address),
        unknown: Some(reason.to_owned()),
        ..Frame::default()
    }
}

fn entry(name: &str, count: u64, lost: bool) -> Entry {
    Entry { name: name.to_owned(), count, lost }
}

fn start() -> [Frame; 3] {
    [
        frame("main", Some(("src/main.c", 88)), 0x55d0_c0df_10f0),
        Frame {
            object: Some("/usr/lib/x86_64-linux-gnu/libc.so.6".to_owned()),
            ..frame("__libc_start_call_main", None, 0x7f12_0002_7249)
        },
        Frame { function_offset: Some(0x21), ..frame("_start", None, 0x55d0_c0df_1001) },
    ]
}

fn process() -> Process {
    let gauge = |now, change| Some(Gauge { now, change });
    Process {
        pid: 1298,
        name: "api-server".to_owned(),
        command_line: [
            "/usr/local/bin/api-server",
            "--listen",
            "0.0.0.0:8080",
            "--motd",
            "it's up",
            "--workers",
            "8",
        ]
        .map(str::to_owned)
        .to_vec(),
        state: ProcessState::Running,
        programs: 1,
        forked_from: None,
        inherited_blocks: 0,
        inherited_bytes: 0,
        inherited_freed: 0,
        namespace_pid: None,
        container: None,
        live_bytes: 35_756_441,
        live_blocks: 8_704,
        survivor_bytes: 32_610_713,
        survivor_blocks: 7_936,
        growth_bytes_per_minute: 7_151_288.0,
        vm_size_bytes: gauge(1_299_227_607, 67_108_864),
        vm_rss_bytes: gauge(327_155_712, 60_922_265),
        vm_data_bytes: gauge(421_527_552, 67_108_864),
        threads: gauge(12, 4),
        open_files: gauge(87, 0),
    }
}

fn sites() -> Vec<SiteRow> {
    let leak = SiteRow {
        rank: 1,
        pid: 1298,
        kind: SiteKind::Heap,
        allocator: "glibc".to_owned(),
        live_bytes: 31_457_280,
        live_blocks: 7_680,
        survivor_bytes: 28_311_552,
        survivor_blocks: 6_912,
        growth_bytes: 524_288,
        growth_bytes_per_minute: 6_291_456.0,
        oldest_seconds: 299.0,
        median_seconds: 151.5,
        allocated_blocks: 7_680,
        allocated_bytes: 31_457_280,
        freed_blocks: 0,
        freed_bytes: 0,
        made_by: Vec::new(),
        contradiction: None,
        stack: StackRow {
            id: "00000000000a11ce".to_owned(),
            quality: StackQuality::Whole,
            frames: [
                inlined("string_copy", "src/string.h", 31, 0x55d0_c0df_2a10),
                frame("leak_in_parser", Some(("src/parse/header.c", 142)), 0x55d0_c0df_2a10),
                frame("handle_request", Some(("src/server/request.c", 391)), 0x55d0_c0df_3b20),
            ]
            .into_iter()
            .chain(start())
            .collect(),
        },
    };
    let recursion = (0..97)
        .map(|_| frame("tree::Node<K, V>::insert(K&&, V&&)", Some(("src/tree.hpp", 77)), 0x55d0_c0df_4444));
    let cache = SiteRow {
        rank: 2,
        live_bytes: 4_299_161,
        live_blocks: 1_024,
        survivor_bytes: 4_299_161,
        survivor_blocks: 1_024,
        growth_bytes: 0,
        growth_bytes_per_minute: -12_288.0,
        oldest_seconds: 58.0,
        median_seconds: 31.2,
        allocated_blocks: 2_048,
        allocated_bytes: 8_598_322,
        freed_blocks: 1_024,
        freed_bytes: 4_299_161,
        stack: StackRow {
            id: "00000000000ca11e".to_owned(),
            quality: StackQuality::Truncated,
            frames: [frame(
                "std::_Rb_tree<std::__cxx11::basic_string<char>, std::pair<std::__cxx11::basic_string<char> const, \
                 session>, std::_Select1st<std::pair<std::__cxx11::basic_string<char> const, session>>>::_M_create_node",
                Some(("/usr/include/c++/12/bits/stl_tree.h", 610)),
                0x55d0_c0df_4400,
            )]
            .into_iter()
            .chain(recursion)
            .chain([
                frame("session_cache::fill(request const&)", Some(("src/cache.cpp", 1203)), 0x55d0_c0df_4555),
            ])
            .collect(),
        },
        ..leak.clone()
    };
    let stripped = "no symbols: the object is stripped, and no debug package for it was found";
    let mapping = SiteRow {
        rank: 3,
        kind: SiteKind::Mapping,
        allocator: "mmap".to_owned(),
        live_bytes: 1_048_576,
        live_blocks: 1,
        survivor_bytes: 1_048_576,
        survivor_blocks: 1,
        growth_bytes: 0,
        growth_bytes_per_minute: 0.0,
        oldest_seconds: 42.0,
        median_seconds: 42.0,
        allocated_blocks: 1,
        allocated_bytes: 1_048_576,
        stack: StackRow {
            id: "0000000000000bad".to_owned(),
            quality: StackQuality::Partial,
            frames: vec![
                unknown("/usr/lib/x86_64-linux-gnu/libvendor.so.3", 0x7f12_3456_7890, 0x1890, stripped),
                unknown("/usr/lib/x86_64-linux-gnu/libvendor.so.3", 0x7f12_3456_9999, 0x3999, stripped),
                Frame {
                    address: 0x7f12_dead_0000,
                    unknown: Some("not in any mapped object".to_owned()),
                    ..Frame::default()
                },
            ],
        },
        ..leak.clone()
    };
    vec![leak, cache, mapping]
}

/// What the ledger of a session without losses says.
fn ledger() -> Ledger {
    Ledger {
        allocations: Account {
            hits: 10_002,
            outcomes: vec![
                entry("recorded", 9_990, false),
                entry("failed", 10, false),
                entry("nested", 0, false),
                entry("block_map_full", 0, true),
            ],
            in_flight: 2,
        },
        frees: Account {
            hits: 1_300,
            outcomes: vec![
                entry("freed", 1_285, false),
                entry("free_null", 5, false),
                entry("free_unknown", 10, false),
            ],
            in_flight: 0,
        },
        records: Account {
            hits: 9_990,
            outcomes: vec![entry("outstanding", 8_705, false), entry("freed", 1_285, false)],
            in_flight: 0,
        },
        ranges: None,
        remarks: vec![entry("stack_truncated", 2_048, false), entry("stack_map_full", 0, true)],
        recursion_misses: vec![],
    }
}

/// An everyday report: one process, three sites, nothing lost.
pub(super) fn everyday() -> Report {
    Report {
        version: SCHEMA_VERSION,
        generator: "leakprobe 0.1.0".to_owned(),
        sequence: 60,
        is_final: false,
        time: "2026-01-12T03:12:04Z".to_owned(),
        elapsed_seconds: 300.4,
        since_last_seconds: 5.0,
        older_seconds: 30.0,
        warnings: vec![],
        processes: vec![process()],
        kernel: None,
        totals: Totals {
            live_bytes: 36_805_017,
            live_blocks: 8_705,
            survivor_bytes: 33_659_289,
            survivor_blocks: 7_937,
            growth_bytes: 524_288,
            growth_bytes_per_minute: 6_279_168.0,
            allocated_blocks: 9_990,
            allocated_bytes: 41_104_178,
            freed_blocks: 1_285,
            freed_bytes: 4_299_161,
        },
        sites: sites(),
        mismatches: Vec::new(),
        sites_with_survivors: 87,
        ledger: ledger(),
        verbose: false,
        probes: vec![],
        stacks: vec![],
    }
}

/// A report without any block that survived.
pub(super) fn nothing_survived() -> Report {
    let mut report = everyday();
    report.sequence = 1;
    report.elapsed_seconds = 15.0;
    report.older_seconds = 7.5;
    report.sites.clear();
    report.sites_with_survivors = 0;
    report.totals.survivor_bytes = 0;
    report.totals.survivor_blocks = 0;
    report
}

/// A report of a process that allocated nothing.
pub(super) fn idle() -> Report {
    let mut report = nothing_survived();
    report.totals = Totals::default();
    report.ledger = Ledger::default();
    report
}

/// The last report of a session that lost records, ran out of stacks and saw its target die.
pub(super) fn losses() -> Report {
    let mut report = everyday();
    report.is_final = true;
    report.sequence = 61;
    report.processes[0].state = ProcessState::Exited(Some("signal 9".to_owned()));
    report.processes[0].vm_rss_bytes = None;
    report.ledger.allocations.hits += 812;
    report.ledger.allocations.outcomes[3].count = 812;
    report.ledger.frees.hits += 3;
    report.ledger.remarks[1].count = 40;
    report.ledger.recursion_misses = vec![entry("free_enter", 6, true)];
    report.warnings = report.ledger.losses();
    report.sites.truncate(1);
    report.sites[0].stack.quality = StackQuality::NotKept;
    report.sites[0].stack.frames.clear();
    report
}

/// Two processes, everything optional filled in, every kind of everything: for the schema.
pub(super) fn full() -> Report {
    let mut report = losses();
    report.sites = sites();
    report.processes.push(Process {
        pid: 1301,
        name: "worker".to_owned(),
        command_line: vec!["worker".to_owned()],
        programs: 2,
        state: ProcessState::Running,
        forked_from: Some(1298),
        inherited_blocks: 812,
        inherited_bytes: 77_952,
        inherited_freed: 12,
        namespace_pid: Some(7),
        container: Some("docker 3f9a3f9a3f9a".to_owned()),
        ..process()
    });
    report.sites[1].pid = 1301;
    report.mismatches = vec![MismatchRow {
        pid: 1301,
        blocks: 12,
        bytes: 1_440,
        allocator: "jemalloc".to_owned(),
        stack: report.sites[0].stack.clone(),
        freed_by: "glibc".to_owned(),
        freed_stack: StackRow {
            id: "00000000000f4eed".to_owned(),
            quality: StackQuality::Whole,
            frames: [frame("close_session", Some(("src/session.c", 31)), 0x55d0_c0df_2f10)]
                .into_iter()
                .chain(start())
                .collect(),
        },
    }];
    report.ledger.frees.hits -= 3;
    report.ledger.ranges = Some(Account {
        hits: 3,
        outcomes: vec![entry("ranges_reported", 2, false), entry("ranges_failed", 1, false)],
        in_flight: 0,
    });
    let probe = ProbeRow {
        pid: 1298,
        allocator: "glibc".to_owned(),
        symbols: vec!["memalign".to_owned(), "aligned_alloc".to_owned()],
        object: "/usr/lib/x86_64-linux-gnu/libc.so.6".to_owned(),
        file_offset: 0x9_d1c7,
        symbol_offset: 7,
        instruction: "push rbp".to_owned(),
        single_stepped: false,
        reason: None,
        returns: true,
        leaves: Vec::new(),
    };
    let reason = Some("it has no call frame information".to_owned());
    let stacks = ObjectStacks {
        object: "/usr/lib/x86_64-linux-gnu/libc.so.6".to_owned(),
        method: StackMethod::Tables,
        rows: 23_353,
        bytes: 93_652,
        unknown_bytes: 0,
        functions_left_out: 0,
        sections_refused: Vec::new(),
        reason: None,
    };
    let object = "/usr/lib/x86_64-linux-gnu/libvendor.so.3".to_owned();
    let guessed = ObjectStacks { object, method: StackMethod::FramePointers, reason, ..stacks.clone() };
    let object = "/usr/lib/x86_64-linux-gnu/libodd.so.1".to_owned();
    let sections_refused = vec![
        "its .debug_frame is not used: it takes more than 128 KiB, which is out of proportion to its code"
            .to_owned(),
    ];
    let odd = ObjectStacks { object, functions_left_out: 3, sections_refused, ..stacks.clone() };
    report.stacks = vec![stacks, odd, guessed];
    report.probes = vec![
        probe.clone(),
        ProbeRow {
            symbols: vec!["free".to_owned(), "cfree".to_owned()],
            symbol_offset: 0,
            file_offset: 0x9_c0a0,
            instruction: "test rdi,rdi".to_owned(),
            single_stepped: true,
            reason: Some(
                "a jump leads back to each emulated instruction before the argument is overwritten"
                    .to_owned(),
            ),
            returns: false,
            ..probe
        },
    ];
    report
}

/// Strings that want to do harm, wherever a program can put one.
pub(super) fn hostile() -> Report {
    let mut report = everyday();
    let evil = "\x1b]0;owned\x07\x1b[2J\ngpj.\u{202e}exe\u{200b}";
    report.processes[0].name = "\x1b[31mred\n".to_owned();
    report.processes[0].command_line = vec![evil.to_owned(), "x".repeat(1 << 20)];
    report.processes[0].state = ProcessState::Exited(Some(evil.to_owned()));
    report.warnings = vec![Warning { kind: "evil".to_owned(), text: evil.to_owned() }];
    let (object, reason) = (evil.to_owned(), Some(evil.to_owned()));
    let method = StackMethod::Ended;
    report.stacks = vec![ObjectStacks {
        object,
        method,
        rows: 0,
        bytes: 0,
        unknown_bytes: 0,
        functions_left_out: 0,
        sections_refused: vec![evil.to_owned()],
        reason,
    }];
    report.sites.truncate(1);
    report.sites[0].allocator = evil.to_owned();
    report.sites[0].stack.frames = vec![
        Frame {
            function: Some(evil.to_owned()),
            file: Some(evil.to_owned()),
            ..frame("", Some(("", 1)), 0x55d0_c0df_0001)
        },
        frame(&"f".repeat(1 << 20), Some((&"/d".repeat(1 << 20), 7)), 0x55d0_c0df_0002),
        frame("名前空間::関数", Some(("src/日本語.cpp", 3)), 0x55d0_c0df_0003),
        unknown(evil, 0x7f00_0000_1000, 0x1000, evil),
        Frame { address: u64::MAX, ..Frame::default() },
    ];
    report.ledger.allocations.outcomes.push(entry(evil, 0, true));
    report.ledger.remarks.push(entry(evil, 1, true));
    report
}
