//! The compiler of call frame information, held against another reader of it.

mod hostile;

use std::{
    collections::{BTreeSet, HashSet},
    fs,
    path::PathBuf,
    sync::atomic::AtomicBool,
    time::Instant,
};

use gimli::{
    BaseAddresses, CfaRule, EhFrame, NativeEndian, Register, RegisterRule, UnwindContext, UnwindSection as _,
    UnwindTableRow,
};
use leakprobe_common::{CHUNK_ROWS, Rule, cfa, saved};
use object::{Object as _, ObjectSection as _, ObjectSymbol as _};
use proptest::prelude::*;

use super::{
    cfi::{
        self, Functions, Limits, Stretch, Unusable,
        entries::{Form, Section},
    },
    object::{Compiled, compile},
    sections::expand,
    table::{GUESS, Table},
};
use crate::{probe::plan::Arch, target::testing::Folder};

const FP: u16 = if cfg!(target_arch = "aarch64") { 29 } else { 6 };
const SP: u16 = if cfg!(target_arch = "aarch64") { 31 } else { 7 };
const RA: u16 = if cfg!(target_arch = "aarch64") { 30 } else { 16 };

/// The files that this test itself has mapped as code.
fn mapped_files() -> BTreeSet<PathBuf> {
    let maps = fs::read_to_string("/proc/self/maps").expect("own mappings");
    let code = |line: &str| {
        let mut words = line.split_whitespace();
        let is_code = words.nth(1)?.contains('x');
        words.nth(3).filter(|path| is_code && path.starts_with('/')).map(PathBuf::from)
    };
    maps.lines().filter_map(code).collect()
}

/// Whether no rule can say a row: the frame pointer or the return address is in another register, or the stack pointer
/// somewhere else than at the frame address (a signal frame says where that is, which is the same).
fn is_beyond_rules(row: &UnwindTableRow<usize>) -> bool {
    let in_register = |register| matches!(row.register(Register(register)), Some(RegisterRule::Register(_)));
    let sp = row.register(Register(SP));
    in_register(FP)
        || in_register(RA)
        || !matches!(sp, None | Some(RegisterRule::Expression(_) | RegisterRule::ValOffset(0)))
}

/// Registers that calls preserve, beside the frame pointer.
const PRESERVED: &[u16] = if cfg!(target_arch = "aarch64") {
    &[19, 20, 21, 22, 23, 24, 25, 26, 27, 28]
} else {
    &[3, 12, 13, 14, 15]
};

/// Where the kernel keeps the register that a frame address comes from in a signal frame, beside the interrupted address.
#[cfg(target_arch = "aarch64")]
fn in_signal_frame(register: u16) -> i32 {
    i32::from(register) * 8 - 32 * 8
}

/// The same.
#[cfg(target_arch = "x86_64")]
fn in_signal_frame(register: u16) -> i32 {
    // By the numbers of call frame information: the names of sys/ucontext.h.
    let place = match register {
        0 => libc::REG_RAX,
        1 => libc::REG_RDX,
        2 => libc::REG_RCX,
        3 => libc::REG_RBX,
        4 => libc::REG_RSI,
        5 => libc::REG_RDI,
        other => libc::REG_R8 + i32::from(other) - 8,
    };
    (place - libc::REG_RIP) * 8
}

/// Whether a rule says what the other reader says; expressions are compared by where they occur.
fn agrees(rule: Option<&Rule>, row: &UnwindTableRow<usize>) -> bool {
    let Some(rule) = rule else { return false };
    if row.register(Register(RA)) == Some(RegisterRule::Undefined) {
        return rule.ra == saved::NOWHERE;
    }
    if is_beyond_rules(row) {
        return rule.cfa == cfa::UNKNOWN;
    }
    let frame = match row.cfa() {
        CfaRule::RegisterAndOffset { register, offset } => {
            let (from, at, addend) = match register.0 {
                SP => (cfa::STACK_POINTER, *offset, 0),
                FP => (cfa::FRAME_POINTER, *offset, 0),
                other if PRESERVED.contains(&other) => {
                    (cfa::INTERRUPTED, in_signal_frame(other).into(), *offset)
                }
                other => (cfa::UNTOUCHED, in_signal_frame(other).into(), *offset),
            };
            (rule.cfa, rule.cfa_offset.into(), rule.cfa_addend.into()) == (from, at, addend)
        }
        CfaRule::Expression(_) => rule.cfa >= cfa::AT_STACK_POINTER,
    };
    let place = |register, kind: u8, offset: i16| match row.register(Register(register)) {
        Some(RegisterRule::Offset(at)) => (kind, i64::from(offset)) == (saved::AT_CFA, at),
        Some(RegisterRule::Expression(_)) => {
            [saved::AT_STACK_POINTER, saved::AT_FRAME_POINTER].contains(&kind)
        }
        None | Some(RegisterRule::SameValue | RegisterRule::Undefined) => kind == saved::SAME,
        _ => false,
    };
    frame && place(FP, rule.fp, rule.fp_offset) && place(RA, rule.ra, rule.ra_offset)
}

/// Compares at the first and the last byte of each row; returns how many rows there were.
fn compare(bytes: &[u8], compiled: &Compiled) -> (usize, usize) {
    let file = object::File::parse(bytes).expect("an ELF file");
    let section = file.section_by_name(".eh_frame").expect("the section");
    let data = section.uncompressed_data().expect("its bytes");
    let frames = EhFrame::new(&data, NativeEndian);
    let bases = BaseAddresses::default().set_eh_frame(section.address());
    let mut context = UnwindContext::new();
    let mut entries = frames.entries(&bases);
    let (mut rows, mut beyond) = (0, 0);
    while let Some(entry) = entries.next().expect("well formed") {
        let gimli::CieOrFde::Fde(partial) = entry else { continue };
        let function = partial.parse(EhFrame::cie_from_offset).expect("a function");
        let mut table = function.rows(&frames, &bases, &mut context).expect("its rows");
        while let Some(row) = table.next_row().expect("a row") {
            if row.start_address() >= row.end_address() {
                continue;
            }
            for address in [row.start_address(), row.end_address() - 1] {
                let rule = compiled.table.find(address);
                assert!(agrees(rule, row), "{address:#x}: {rule:?} is not {row:?}");
            }
            rows += 1;
            beyond += usize::from(is_beyond_rules(row));
        }
    }
    (rows, beyond)
}

#[test]
fn each_row_is_what_another_reader_reads() {
    let (mut all, mut all_beyond) = (0, 0);
    for path in mapped_files() {
        let bytes = fs::read(&path).expect("a mapped file");
        let began = Instant::now();
        let compiled = compile(&bytes[..]).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let took = began.elapsed();
        assert_eq!(compiled.table.left_out, 0, "{}", path.display());
        let (rows, beyond) = compare(&bytes, &compiled);
        println!(
            "{}: {rows} rows, {beyond} beyond rules, {} kept, {} rules, {took:?}",
            path.display(),
            compiled.table.rows.len(),
            compiled.table.rules.len()
        );
        all += rows;
        all_beyond += beyond;
    }
    assert!(all > 20_000, "{all} rows");
    assert!(all_beyond * 1000 < all, "{all_beyond} of {all}");
}

/// A function with a frame that moves, and nothing of a C library's around it.
const ALONE: &str = "__attribute__((noinline)) int other(volatile int *);\n\
    int walk(int n) { volatile int a[n + 1]; a[n] = n; return n > 9 ? other(a) : walk(n + 1) + a[n]; }\n\
    int other(volatile int *p) { return *p; }\n";

/// The rules of each byte of its function `walk`.
fn rules_of_walk(bytes: &[u8]) -> Vec<Option<Rule>> {
    let file = object::File::parse(bytes).expect("an ELF file");
    let symbol = file.symbols().find(|symbol| symbol.name() == Ok("walk")).expect("the function");
    let table = compile(bytes).expect("its tables").table;
    let code = symbol.address()..symbol.address() + symbol.size();
    code.map(|address| table.find(address).copied()).collect()
}

#[test]
fn every_place_of_call_frame_information_says_the_same() {
    let folder = Folder::new();
    let build = |name: &str, more: &[&str]| {
        let arguments =
            [&["-O2", "-g", "-fPIC", "-shared", "-nostdlib", "-fvisibility=hidden"], more].concat();
        fs::read(folder.compile(name, ALONE, &arguments)).expect("what was built")
    };
    let mapped = build("mapped.so", &["-fasynchronous-unwind-tables"]);
    let debug = build("debug.so", &["-fno-asynchronous-unwind-tables"]);
    // Linked with code that comes with the other one.
    let code = "int more(int n) { return n + 1; }\n";
    let more = folder.compile("more.o", code, &["-O2", "-c", "-fPIC", "-fasynchronous-unwind-tables"]);
    let both = build("both.so", &["-fno-asynchronous-unwind-tables", &more.to_string_lossy()]);
    // As a static program's: nothing but a section's name says where it is.
    let by_name = build("by-name.so", &["-fasynchronous-unwind-tables", "-Wl,--no-eh-frame-hdr"]);
    let section = |bytes: &[u8], name: &str| {
        object::File::parse(bytes)
            .expect("an ELF file")
            .section_by_name(name)
            .map_or(0, |section| section.size())
    };
    let sections =
        |bytes: &[u8]| [".eh_frame", ".debug_frame", ".eh_frame_hdr"].map(|name| section(bytes, name) > 0);
    assert_eq!(sections(&mapped), [true, false, true]);
    assert_eq!(sections(&debug), [false, true, false]);
    assert_eq!(sections(&both), [true, true, true]);
    assert_eq!(sections(&by_name), [true, false, false]);
    let truth = rules_of_walk(&mapped);
    assert!(truth.iter().all(Option::is_some) && truth.iter().collect::<HashSet<_>>().len() > 2, "{truth:?}");
    for other in [debug, both, by_name] {
        assert_eq!(rules_of_walk(&other), truth);
    }
}

#[test]
fn nothing_behind_the_end_of_a_section_is_taken_for_code() {
    let folder = Folder::new();
    let arguments = ["-O2", "-fPIC", "-shared", "-nostdlib", "-fasynchronous-unwind-tables"];
    let mut bytes = fs::read(folder.compile("end.so", ALONE, &arguments)).expect("what was built");
    let before = compile(&bytes[..]).expect("its tables").table;
    let file = object::File::parse(&bytes[..]).expect("an ELF file");
    let range =
        file.section_by_name(".eh_frame").and_then(|section| section.file_range()).expect("its place");
    let end = (range.0 + range.1) as usize;
    // A loaded segment goes on to its end: what is there would be taken for a function of this very code.
    let first = bytes[range.0 as usize..end].to_vec();
    bytes.splice(end.., first);
    bytes.resize(bytes.len().max(1 << 16), 0xff);
    assert_eq!(compile(&bytes[..]).map(|compiled| compiled.table).ok(), Some(before));
}

/// Two functions of 16 bytes with so many bytes between them.
fn with_gap(bytes: u64) -> Table {
    let rule =
        Rule { cfa: cfa::STACK_POINTER, cfa_offset: 8, ra: saved::AT_CFA, ra_offset: -8, ..Rule::default() };
    let (first, second) = (0x1000..0x1010, 0x1010 + bytes..0x1020 + bytes);
    let mut functions = Functions::default();
    functions.add(first.clone(), rule);
    functions.add(second.clone(), rule);
    Table::new(&functions, &(first.start..second.end), None).expect("a table")
}

#[test]
fn what_lies_between_functions_is_padding_or_code_of_another_kind() {
    let row_at = |table: &Table, address: u16| {
        let after = table.rows.partition_point(|row| row.0 <= address);
        table.rows[after - 1].1
    };
    for (bytes, rule, told) in
        [(8, 0, 0), (16, GUESS, 0), (48, GUESS, 0), (64, GUESS, 64), (8192, GUESS, 8192)]
    {
        let table = with_gap(bytes);
        assert_eq!(row_at(&table, 0x1011), rule, "{bytes}");
        assert_eq!(table.unknown_bytes, told, "{bytes}");
        assert!(table.find(0x100f).is_some() && table.find(0x1010 + bytes).is_some(), "{bytes}");
    }
}

/// What must hold of every table, whatever it was made of.
fn check_shape(table: &Table) {
    for rows in &table.pages {
        let rows = &table.rows[rows.clone()];
        assert_eq!(rows.first().map(|row| row.0), Some(0), "a page's first byte has a row");
        assert!(rows.is_sorted_by(|a, b| a.0 < b.0) && rows.len() <= CHUNK_ROWS);
        assert!(rows.iter().all(|row| row.1 == GUESS || usize::from(row.1) <= table.rules.len()));
    }
    for address in [0, table.base, table.base + 0x1234, u64::MAX] {
        let _ = table.find(address);
    }
}

/// A small real object: the dynamic loader, which every test has mapped.
fn loader() -> Vec<u8> {
    let path = mapped_files().into_iter().find(|path| path.to_string_lossy().contains("ld-linux"));
    fs::read(path.expect("a dynamic loader")).expect("its bytes")
}

/// Where its call frame information is, and its headers.
fn places_of_interest(bytes: &[u8]) -> Vec<std::ops::Range<usize>> {
    let file = object::File::parse(bytes).expect("an ELF file");
    let range = |name| file.section_by_name(name).and_then(|section| section.file_range());
    let ranges = [".eh_frame", ".eh_frame_hdr"].into_iter().filter_map(range);
    let ranges = ranges.map(|(at, len)| at as usize..(at + len) as usize);
    ranges.chain([0..64, 64..64 + 56 * 11]).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_damaged_object_does_no_harm(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), any::<u8>()), 1..40),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut bytes = loader();
        let places = places_of_interest(&bytes);
        for (place, at, value) in changes {
            let place = place.get(&places);
            bytes[place.start + at.index(place.len())] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        if let Ok(compiled) = compile(&bytes[..]) {
            check_shape(&compiled.table);
        }
    }

    #[test]
    fn arbitrary_call_frame_information_does_no_harm(
        bytes in prop::collection::vec(any::<u8>(), 0..2000),
        debug in any::<bool>(),
        address in any::<u64>(),
    ) {
        let form = if debug { Form::DebugFrame } else { Form::EhFrame };
        check_section(Section { bytes: &bytes, address, form });
    }

    #[test]
    fn arbitrary_instructions_do_no_harm(
        shared in prop::collection::vec(any::<u8>(), 0..60),
        own in prop::collection::vec(any::<u8>(), 0..400),
        code_alignment in any::<u8>(),
        data_alignment in any::<u8>(),
    ) {
        // A CIE of version 1 without augmentation, and a function of 4096 bytes at 0x1000.
        let mut section = Vec::new();
        let head = [1, 0, code_alignment & 0x7f, data_alignment & 0x7f, RA as u8];
        record(0, &[&head[..], &shared].concat(), &mut section);
        let back = section.len() as u32 + 4;
        let place = [0x1000u64.to_le_bytes(), 0x1000u64.to_le_bytes()].concat();
        record(back, &[&place[..], &own].concat(), &mut section);
        check_section(Section { bytes: &section, address: 0, form: Form::EhFrame });
    }
}

/// Of all code that there can be, to the end.
fn read(section: Section<'_>, arch: Arch, limits: Limits) -> Result<Functions, Unusable> {
    cfi::functions(section, arch, &(0..u64::MAX), limits, &AtomicBool::new(false))
}

/// Appends an entry.
fn record(id: u32, body: &[u8], section: &mut Vec<u8>) {
    section.extend((4 + body.len() as u32).to_le_bytes());
    section.extend(id.to_le_bytes());
    section.extend(body);
}

fn check_section(section: Section<'_>) {
    let limits = Limits { rows: 10_000, rules: 500 };
    for arch in [Arch::X86_64, Arch::Aarch64] {
        let Ok(functions) = read(section, arch, limits) else { continue };
        assert!(functions.rows.len() <= limits.rows && functions.rules.len() <= limits.rules);
        assert!(functions.left_out <= functions.read);
        assert!(functions.stretches.windows(2).all(|pair| pair[0].end <= pair[1].start));
        if let Ok(table) = Table::new(&functions, &(0x800..0x3_0000), Some(0x900)) {
            check_shape(&table);
        }
    }
}

/// A section can be compressed, and say any length.
#[test]
fn a_compressed_section_is_expanded_and_no_further_than_is_allowed() {
    use std::io::Write as _;
    let plain = vec![7; 100_000];
    let mut zlib = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
    zlib.write_all(&plain).expect("written");
    let zstd = zstd::encode_all(&plain[..], 3).expect("compressed");
    for (kind, data) in [(1u32, zlib.finish().expect("ended")), (2, zstd)] {
        let section = [&kind.to_le_bytes()[..], &[0; 20], &data].concat();
        assert_eq!(expand(&section, 100_000).expect("expanded").as_ref(), Some(&plain));
        assert_eq!(expand(&section, 99_999).expect("no damage"), None);
        assert!(expand(&section[..40], 100_000).is_err());
        assert!(expand(&section[..23], 100_000).is_err());
    }
    assert!(expand(&[&[9, 0, 0, 0][..], &[0; 20]].concat(), 100).is_err());
}

/// A function that is described twice, one that lies in another, one beyond the code: the code has one rule a byte.
#[test]
fn overlapping_functions_are_cut_short() {
    let rule =
        |offset| Rule { cfa: cfa::STACK_POINTER, cfa_offset: offset, ra: saved::AT_CFA, ..Rule::default() };
    let functions = Functions {
        stretches: vec![
            Stretch { start: 0x1000, end: 0x1800, rows: (0, 2) },
            Stretch { start: 0x1800, end: 0x1900, rows: (2, 3) },
            Stretch { start: 0x2_0000, end: 0x2_1000, rows: (3, 4) },
        ],
        rows: vec![(0x1000, 0), (0x1900, 1), (0x1800, 2), (0x2_0000, 1)],
        rules: vec![rule(8), rule(16), rule(24)],
        left_out: 0,
        read: 4,
    };
    let table = Table::new(&functions, &(0x1000..0x2_0800), None).expect("a table");
    check_shape(&table);
    let offset = |address| table.find(address).map(|rule| rule.cfa_offset);
    assert_eq!([0x1000, 0x17ff, 0x1800, 0x18ff].map(offset), [Some(8), Some(8), Some(24), Some(24)]);
    assert_eq!([0x1900, 0xffff, 0x1_ffff].map(offset), [None; 3]);
    assert_eq!([0x2_0000, 0x2_0fff].map(offset), [Some(16); 2]);
    assert_eq!(table.find(0x3_0000), None);
}
