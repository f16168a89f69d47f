//! Files that were made to keep us busy, and what is refused of them.

use std::{fs, process::Command, sync::atomic::AtomicBool};

use leakprobe_common::{Rule, cfa};

use super::{ALONE, RA, read, record};
use crate::{
    probe::plan::Arch,
    target::testing::Folder,
    unwind::{
        cfi::{
            self, Functions, Limits, Unusable,
            entries::{Form, Section},
        },
        object::{Compiled, NoTable, compile},
    },
};

/// What is common to functions: the usual, and so many instructions that do nothing.
fn shared(instructions: usize) -> Vec<u8> {
    [&[1, 0, 1, 0x78, RA as u8, 0x0c, 7, 8, 0x90, 1][..], &vec![0; instructions]].concat()
}

/// Appends a function of 16 bytes to an `.eh_frame`.
fn function(place: u64, common: usize, section: &mut Vec<u8>) {
    let body = [(0x1000 + place * 16).to_le_bytes(), 16u64.to_le_bytes()].concat();
    let back = section.len() + 4 - common;
    record(back as u32, &body, section);
}

/// What functions share can overlap in a file that was made to keep us busy: little of it is read, and few of them.
#[test]
fn what_functions_share_is_bounded() {
    const FEW: usize = 65_536;
    let count = |section: &[u8]| {
        let section = Section { bytes: section, address: 0, form: Form::EhFrame };
        let all = read(section, Arch::X86_64, Limits { rows: 1 << 20, rules: 500 }).expect("few rows");
        (all.stretches.len(), all.left_out)
    };
    let mut section = Vec::new();
    record(0, &shared(1000), &mut section);
    let second = section.len();
    record(0, &shared(2000), &mut section);
    function(0, 0, &mut section);
    function(1, second, &mut section);
    assert_eq!(count(&section), (1, 1), "the one whose shared instructions are few");

    let (mut section, mut commons) = (Vec::new(), Vec::new());
    for _ in 0..FEW + 5 {
        commons.push(section.len());
        record(0, &shared(0), &mut section);
    }
    for (place, &common) in (0..).zip(&commons) {
        function(place, common, &mut section);
    }
    function(FEW as u64 + 9, 0, &mut section);
    assert_eq!(count(&section), (FEW + 1, 5), "those that come first, and what was read is known");

    // Each begins in the one before, by whose instructions its bytes do no harm.
    const OVERLAPPING: u64 = 40;
    const EACH: usize = 16;
    let one = [&[0x7c, 0, 0, 0, 0, 0, 0, 0, 3, 0, 1, 0x78, 0x40, 0x0c][..], &[7, 8]].concat();
    let mut section = one.repeat(OVERLAPPING as usize);
    section.extend([&one[..], &[0; 0x70]].concat());
    (0..OVERLAPPING).for_each(|place| function(place, place as usize * EACH, &mut section));
    assert_eq!(count(&section), (16, 24), "as many as could stand side by side");
}

/// An `.eh_frame` of so many functions, every `one_in`th of which is good, in that order or the other one.
fn with_bad_functions(functions: u64, one_in: u64) -> Vec<u8> {
    let mut section = Vec::new();
    record(0, &shared(0), &mut section);
    for place in 0..functions {
        if place % one_in == 0 {
            function(place, 0, &mut section);
        } else {
            record(section.len() as u32 + 4, &[], &mut section);
        }
    }
    section
}

#[test]
fn what_is_mostly_left_out_is_given_up_early() {
    let read = |bytes: &[u8]| {
        let section = Section { bytes, address: 0, form: Form::EhFrame };
        let all = read(section, Arch::X86_64, Limits { rows: 1 << 20, rules: 500 })?;
        Ok((all.stretches.len(), all.left_out, all.read))
    };
    assert_eq!(read(&with_bad_functions(1000, 50)), Ok((20, 980, 1000)), "a few, of whatever share");
    let given_up = Err(Unusable::LeftOut { left_out: 1001, read: 1022 });
    assert_eq!(read(&with_bad_functions(100_000, 50)), given_up, "long before the end");
    assert_eq!(read(&with_bad_functions(100_000, 2)), Ok((50_000, 50_000, 100_000)));
    let mut none = Vec::new();
    record(0, &shared(0), &mut none);
    record(none.len() as u32 + 4, &[], &mut none);
    assert_eq!(read(&none), Err(Unusable::LeftOut { left_out: 1, read: 1 }), "nothing else is there");
}

#[test]
fn functions_of_other_code_and_all_when_somebody_waits_are_not_run() {
    let bytes = with_bad_functions(5000, 1);
    let section = Section { bytes: &bytes, address: 0, form: Form::EhFrame };
    let limits = Limits { rows: 100, rules: 500 };
    let read = |code, stop| cfi::functions(section, Arch::X86_64, &code, limits, &AtomicBool::new(stop));
    let some = read(0x2000..0x2100, false).expect("within the limit");
    assert_eq!((some.stretches.len(), some.left_out, some.read), (16, 0, 5000));
    assert_eq!(read(0..u64::MAX, false), Err(Unusable::Rows(100)));
    assert_eq!(read(0x2000..0x2100, true), Err(Unusable::Stopped));
}

/// Sections that are put into the object whose code is [`ALONE`]'s.
fn refused(name: &str, hostile: &[(&str, &[u8])]) -> Result<(Compiled, Vec<String>), NoTable> {
    let folder = Folder::new();
    let arguments = ["-O2", "-fPIC", "-shared", "-nostdlib", "-fasynchronous-unwind-tables"];
    let built = folder.compile(name, ALONE, &arguments);
    for (section, bytes) in hostile {
        let contents = built.with_extension("section");
        fs::write(&contents, bytes).expect("written");
        let (contents, built) = (contents.to_string_lossy(), built.to_string_lossy());
        let add = format!("--add-section={section}={contents}");
        let update = format!("--update-section={section}={contents}");
        let option = if *section == ".debug_frame" { add } else { update };
        let status = Command::new("objcopy").args([&option, &*built]).status().expect("objcopy");
        assert!(status.success(), "{option}");
    }
    let compiled = compile(&fs::read(built).expect("what was built")[..])?;
    let refused = compiled.refused.iter().map(ToString::to_string).collect();
    Ok((compiled, refused))
}

#[test]
fn a_section_that_is_refused_is_told_and_leaves_the_other_one() {
    let (alone, told) = refused("good.so", &[]).expect("its tables");
    assert_eq!(told, [""; 0]);
    let bad = with_bad_functions(2000, 3000);
    let mut debug = Vec::new();
    record(u32::MAX, &shared(0), &mut debug);
    (0..2000).for_each(|_| record(0, &[], &mut debug));
    for (hostile, reason) in [
        (&vec![0xff; 1 << 20], "KiB, which is out of proportion to its code"),
        (&debug, "1001 of its first 1001 functions are described in a damaged or unknown way"),
    ] {
        let (compiled, told) = refused("debug.so", &[(".debug_frame", hostile)]).expect("its tables");
        // How much it is depends on the compiler's code.
        let [told] = &told[..] else { panic!("{told:?}") };
        assert!(told.starts_with("its .debug_frame is not used: ") && told.ends_with(reason), "{told}");
        assert_eq!(compiled.table.rows, alone.table.rows);
    }
    let no_index = refused("index.so", &[(".eh_frame_hdr", &[7; 12])]).expect_err("no tables").to_string();
    assert_eq!(no_index, "its .eh_frame is not used: the index that leads to it has a form that is not read");
    let both = [(".eh_frame", &bad[..]), (".debug_frame", &debug)];
    let neither = refused("both.so", &both).expect_err("no tables").to_string();
    let (first, second) = neither.split_once("; ").expect("two");
    assert!(first.starts_with("its .eh_frame is not used: ") && first.ends_with("unknown way"), "{first}");
    assert!(second.starts_with("its .debug_frame is not used: 1001 of"), "{second}");
}

#[test]
fn what_does_not_fit_beside_other_functions_leaves_them_as_they_were() {
    let rule = |offset| Rule { cfa: cfa::STACK_POINTER, cfa_offset: offset, ..Rule::default() };
    let of = |starts: &[u64]| {
        let mut functions = Functions { read: starts.len(), ..Functions::default() };
        starts.iter().for_each(|&start| functions.add(start..start + 16, rule(start as i32)));
        functions
    };
    let limits = Limits { rows: 4, rules: 4 };
    let before = of(&[0x10, 0x40]);
    let mut functions = before.clone();
    let too_many = of(&[0x10, 0x20, 0x30, 0x50]);
    assert_eq!(functions.merge(too_many.clone(), limits), Err(Unusable::Rules(4)));
    assert_eq!(functions.merge(too_many, Limits { rules: 9, ..limits }), Err(Unusable::Rows(4)));
    assert_eq!(functions, before);
    assert_eq!(functions.merge(of(&[0x10, 0x20, 0x50]), limits), Ok(()));
    let starts: Vec<u64> = functions.stretches.iter().map(|stretch| stretch.start).collect();
    assert_eq!((starts, functions.read), (vec![0x10, 0x20, 0x40, 0x50], 5));
}
