//! Addresses without a name, and what the report says of them.

use std::{path::PathBuf, sync::Arc};

use super::victim::{Scratch, brief, compile, object, run, tool};
use crate::{
    report::model::Frame,
    symbolize::Symbolizer,
    target::space::{AddressSpace, Backing, FileId, Mapping, Object},
};

fn space(backings: Vec<Backing>) -> AddressSpace {
    let mapping = |(index, backing)| {
        let start = 0x1000 * (index as u64 + 1);
        Mapping { start, end: start + 0x1000, file_offset: 0, executable: true, backing }
    };
    AddressSpace { mappings: backings.into_iter().enumerate().map(mapping).collect() }
}

#[test]
fn each_kind_of_mapping_has_its_reason() {
    let unopened = Object {
        id: FileId { device: 0, inode: 0 },
        path: PathBuf::from("/opt/gone.so"),
        file: Err("permission denied".to_owned()),
        deleted: false,
        root: None,
    };
    let named = |name: &str| Backing::Named(name.to_owned());
    let space = space(vec![
        Backing::Anonymous,
        named("[vdso]"),
        named("[uprobes]"),
        named("[anon:js code]"),
        named("[stack]"),
        Backing::Object(Arc::new(unopened)),
    ]);
    let jit = "code made at run time (JIT), no symbols";
    let nowhere = "nothing is mapped there: unmapped since, or not a return address";
    let table = [
        (0x1001, None, jit),
        (0x2001, Some("[vdso]"), "code of the kernel's vDSO, which has no file to look names up in"),
        (0x3001, Some("[uprobes]"), "return address held by another return probe"),
        (0x4001, Some("[anon:js code]"), jit),
        (0x5001, Some("[stack]"), "inside [stack], which is not a file with symbols"),
        (0x6001, Some("/opt/gone.so"), "the object could not be opened: permission denied"),
        // A return address at a mapping's start belongs to a call at the end of the one before.
        (0x2000, None, jit),
        (0x1000, None, nowhere),
        (0x7000, Some("/opt/gone.so"), "the object could not be opened: permission denied"),
        (0x7001, None, nowhere),
        // But return probes come back to the start of their page.
        (0x3000, Some("[uprobes]"), "return address held by another return probe"),
        (0, None, nowhere),
        (u64::MAX, None, nowhere),
    ];
    let addresses = table.map(|(address, _, _)| address);
    let expected = table.map(|(address, object, unknown)| Frame {
        address,
        object: object.map(str::to_owned),
        unknown: Some(unknown.to_owned()),
        ..Frame::default()
    });
    assert_eq!(Symbolizer::new().stack(&space, &addresses), expected);
}

#[test]
fn a_stripped_object_says_what_to_install() {
    let scratch = Scratch::new();
    let program = compile(&scratch, "victim", "");
    tool("strip", "{}", &[&program]);
    let frames = run(&program).frames(&mut Symbolizer::new());
    let reason = "the object has no symbols (stripped): install its debug symbols package, or keep the \
                  build's unstripped file";
    assert_eq!(brief(&frames), [reason; 3]);
    assert!(frames.iter().all(|frame| frame.object_address.is_some()), "addr2line needs it");
    assert!(frames.iter().all(|frame| frame.object.as_deref() == program.to_str()));
}

#[test]
fn an_address_between_symbols_is_not_called_stripped() {
    let scratch = Scratch::new();
    let program = compile(&scratch, "victim", "-g");
    let ran = run(&program);
    // Before the first function: the ELF header's page is not code, so take it as if it were.
    let mapping = &ran.space.mappings[0];
    let backing = mapping.backing.clone();
    let header = Mapping { start: 0x1000, end: 0x2000, file_offset: 0, executable: true, backing };
    let frames = Symbolizer::new().stack(&AddressSpace { mappings: vec![header] }, &[0x1011]);
    assert_eq!(brief(&frames), ["none of the object's symbols covers this address"]);
    assert_eq!(frames[0].object_address, Some(0x10));
}

#[test]
fn what_no_segment_loads_is_said() {
    let scratch = Scratch::new();
    let program = compile(&scratch, "victim", "-g");
    let ran = run(&program);
    let backing = ran.space.mappings[0].backing.clone();
    let behind = Mapping { start: 0x1000, end: 0x2000, file_offset: 1 << 40, executable: true, backing };
    let frames = Symbolizer::new().stack(&AddressSpace { mappings: vec![behind] }, &[0x1011]);
    assert_eq!(brief(&frames), ["the object's program headers do not cover this part of its file"]);
}

#[test]
fn files_that_are_not_elf_say_so() {
    let scratch = Scratch::new();
    let text = scratch.file("text");
    std::fs::write(&text, "#!/bin/sh\n").unwrap();
    let directory = scratch.path().to_owned();
    let null = PathBuf::from("/dev/null");
    let objects = [&text, &directory, &null].map(|path| Backing::Object(object(path, path, None)));
    let frames = Symbolizer::new().stack(&space(objects.to_vec()), &[0x1001, 0x2001, 0x3001]);
    let reasons = ["not an ELF file", "not a regular file", "not a regular file"];
    assert_eq!(brief(&frames), reasons.map(|reason| format!("the object could not be read: {reason}")));
}

#[test]
fn what_is_remembered_of_a_file_keeps_it_open() {
    // Otherwise its inode, by which it is remembered, could become another file's.
    let scratch = Scratch::new();
    let text = scratch.file("text");
    std::fs::write(&text, "no ELF").unwrap();
    let object = object(&text, &text, None);
    let mut symbolizer = Symbolizer::new();
    symbolizer.stack(&space(vec![Backing::Object(Arc::clone(&object))]), &[0x1001]);
    assert_eq!(Arc::strong_count(&object), 2);
    drop(symbolizer);
    assert_eq!(Arc::strong_count(&object), 1);
}

#[test]
fn two_processes_share_the_names_of_a_file() {
    let scratch = Scratch::new();
    let program = compile(&scratch, "victim", "-g");
    let mut ran = run(&program);
    let mut symbolizer = Symbolizer::new();
    let first = ran.frames(&mut symbolizer);
    for mapping in &mut ran.space.mappings {
        mapping.backing = Backing::Object(object(&program, &program, None));
    }
    assert_eq!(ran.frames(&mut symbolizer), first);
    assert_eq!(symbolizer.objects.len(), 1);
}
