//! The compiler of call frame information, held against another reader of it.

use std::{collections::BTreeSet, fs, path::PathBuf, time::Instant};

use gimli::{
    BaseAddresses, CfaRule, EhFrame, NativeEndian, Register, RegisterRule, UnwindContext, UnwindSection as _,
    UnwindTableRow,
};
use leakprobe_common::{Rule, cfa, saved};
use object::{Object as _, ObjectSection as _};

use super::object::{Compiled, compile};

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

/// Whether no rule can say a row: a frame address from another register, or a return address in one.
fn is_beyond_rules(row: &UnwindTableRow<usize>) -> bool {
    let in_register = |register| matches!(row.register(Register(register)), Some(RegisterRule::Register(_)));
    let from_another = match row.cfa() {
        CfaRule::RegisterAndOffset { register, .. } => ![FP, SP].contains(&register.0),
        CfaRule::Expression(_) => false,
    };
    from_another || in_register(FP) || in_register(RA)
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
            let from = if register.0 == SP { cfa::STACK_POINTER } else { cfa::FRAME_POINTER };
            (rule.cfa, i64::from(rule.cfa_offset)) == (from, *offset)
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
