//! Names and lines from what the object itself holds.

use std::{fs, path::Path, sync::Arc};

use super::victim::{
    CLASSES, LEAF, Scratch, TRAITS, brief, compile, full, line, mapping, object, run, symbols_only, tool,
    try_tool,
};
use crate::{
    symbolize::Symbolizer,
    target::space::{AddressSpace, Backing, Mapping},
};

#[test]
fn inlined_functions_stand_before_what_they_were_inlined_into() {
    let scratch = Scratch::new();
    let program = compile(&scratch, "victim", "-g");
    let ran = run(&program);
    let frames = ran.frames(&mut Symbolizer::new());
    assert_eq!(brief(&frames), full());

    let addresses: Vec<u64> = frames.iter().map(|frame| frame.address).collect();
    let [outer, hidden, main] = ran.addresses[..] else { panic!("{:x?}", ran.addresses) };
    assert_eq!(addresses, [outer, outer, outer, hidden, main]);
    assert!(frames.iter().all(|frame| frame.object.as_deref() == program.to_str()));
    assert!(frames.iter().all(|frame| frame.unknown.is_none()));
    assert_eq!(frames[2].file.as_deref(), scratch.path().join("src/inlined.c").to_str());
    assert_eq!([frames[0].function_offset, frames[1].function_offset], [None, None]);

    // The symbol table, read by somebody else, agrees on addresses and offsets.
    let symbols = tool("nm", "{}", &[&program]);
    for frame in &frames[2..] {
        let name = frame.function.as_deref().unwrap();
        let symbol = symbols.lines().find(|line| line.ends_with(&format!(" {name}"))).unwrap();
        let start = u64::from_str_radix(&symbol[..16], 16).unwrap();
        assert_eq!(frame.object_address, Some(start + frame.function_offset.unwrap() - 1), "{name}");
    }
    let base = ran.space.mappings[0].start - ran.space.mappings[0].file_offset;
    assert_eq!(frames[4].object_address, Some(main - base - 1));
}

#[test]
fn a_non_pie_program_is_looked_up_by_its_own_addresses() {
    let scratch = Scratch::new();
    let ran = run(&compile(&scratch, "victim", "-g -no-pie"));
    let frames = ran.frames(&mut Symbolizer::new());
    assert_eq!(brief(&frames), full());
    assert_eq!(frames[4].object_address, Some(ran.addresses[2] - 1));
}

#[test]
fn cpp_names_are_demangled() {
    let scratch = Scratch::new();
    let (leaf, source) = (scratch.file("leaf.c"), scratch.file("classes.cc"));
    let (leaf_object, program) = (scratch.file("leaf.o"), scratch.file("victim"));
    fs::write(&leaf, LEAF).unwrap();
    fs::write(&source, CLASSES).unwrap();
    tool("cc", "-O2 -c -o {} {}", &[&leaf_object, &leaf]);
    tool("c++", "-O2 -g -o {} {} {}", &[&program, &source, &leaf_object]);
    let expected = [
        format!("cache::Store<int>::put(int) classes.cc:{}", line(CLASSES, "put")),
        format!("(anonymous namespace)::unnamed(char const*) classes.cc:{}", line(CLASSES, "unnamed")),
    ];
    let named = brief(&run(&program).frames(&mut Symbolizer::new()));
    // The compiler may clone a local function; the name then says so.
    let named: Vec<_> = named.iter().map(|name| name.replace(" [clone .constprop.0]", "")).collect();
    assert_eq!(named, expected);
}

#[test]
fn rust_names_are_demangled() {
    let scratch = Scratch::new();
    let (leaf, source) = (scratch.file("leaf.c"), scratch.file("traits.rs"));
    let (leaf_object, program) = (scratch.file("leaf.o"), scratch.file("victim"));
    fs::write(&leaf, LEAF).unwrap();
    fs::write(&source, TRAITS).unwrap();
    tool("cc", "-O2 -fPIC -c -o {} {}", &[&leaf_object, &leaf]);
    let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned());
    tool(&rustc, "--edition=2024 -O -g -C link-arg={} -o {} {}", &[&leaf_object, &program, &source]);
    let expected = [
        format!("traits::helper traits.rs:{} inlined", line(TRAITS, "helper")),
        format!("<traits::Cache as traits::Keep>::keep traits.rs:{}", line(TRAITS, "keep")),
    ];
    assert_eq!(brief(&run(&program).frames(&mut Symbolizer::new())), expected);
}

#[test]
fn compressed_debug_information_is_read() {
    let scratch = Scratch::new();
    let plain = compile(&scratch, "plain", "-g");
    for format in ["zlib", "zstd"] {
        let program = scratch.file(format);
        let option = format!("--compress-debug-sections={format}");
        let arguments = [option.as_str(), plain.to_str().unwrap(), program.to_str().unwrap()];
        if let Err(reason) = try_tool("objcopy", &arguments) {
            // binutils can be built without zstd, and llvm has its own.
            assert_eq!(format, "zstd", "{reason}");
            if let Err(llvm) = try_tool("llvm-objcopy", &arguments) {
                panic!("neither {reason} nor {llvm} can compress with zstd");
            }
        }
        let sections = tool("readelf", "-tW {}", &[&program]);
        assert!(sections.contains(&format!("COMPRESSED\n       {}", format.to_uppercase())), "{sections}");
        assert_eq!(brief(&run(&program).frames(&mut Symbolizer::new())), full(), "{format}");
    }
}

#[test]
fn mini_debug_information_is_read() {
    let scratch = Scratch::new();
    let program = compile(&scratch, "victim", "");
    let mini = scratch.file("mini");
    tool("objcopy", "--only-keep-debug {} {}", &[&program, &mini]);
    tool("xz", "-k {}", &[&mini]);
    tool("strip", "{}", &[&program]);
    assert_ne!(brief(&run(&program).frames(&mut Symbolizer::new())), symbols_only());
    let packed = scratch.file("mini.xz");
    tool("objcopy", "--add-section .gnu_debugdata={} {}", &[&packed, &program]);
    let frames = run(&program).frames(&mut Symbolizer::new());
    assert_eq!(brief(&frames), symbols_only());
    assert_eq!(frames[0].line, None);
}

#[test]
fn exported_names_are_used_where_nothing_else_is_left() {
    let scratch = Scratch::new();
    let program = compile(&scratch, "victim", "-rdynamic");
    tool("strip", "{}", &[&program]);
    let frames = run(&program).frames(&mut Symbolizer::new());
    assert_eq!(frames[0].function.as_deref(), Some("outer"));
    assert_eq!(frames[1].function, None, "a static function is not exported");
    assert_eq!(frames[2].function.as_deref(), Some("main"));
}

#[test]
fn a_deleted_program_keeps_its_names() {
    let scratch = Scratch::new();
    let program = compile(&scratch, "victim", "-g");
    let ran = run(&program);
    fs::remove_file(&program).unwrap();
    assert_eq!(brief(&ran.frames(&mut Symbolizer::new())), full());
}

#[test]
fn a_replaced_program_keeps_its_own_names() {
    let scratch = Scratch::new();
    let program = compile(&scratch, "victim", "-g");
    let other = compile(&scratch, "other", "-g -DOUTER=replacement");
    let before = run(&program);
    fs::rename(&other, &program).unwrap();
    let after = run(&program);
    let mut symbolizer = Symbolizer::new();
    let replaced: Vec<String> = full().iter().map(|name| name.replace("outer ", "replacement ")).collect();
    assert_ne!(full(), replaced);
    for _ in 0..2 {
        assert_eq!(brief(&before.frames(&mut symbolizer)), full());
        assert_eq!(brief(&after.frames(&mut symbolizer)), replaced);
    }
}

#[test]
fn descriptors_that_are_used_again_do_not_mix_names() {
    // Evicted objects free their descriptors, which later objects get: `/proc/self/fd/N` then leads to
    // another file than before.
    let scratch = Scratch::new();
    let programs = ["first", "second", "third"]
        .map(|name| (name, compile(&scratch, name, &format!("-g -DOUTER={name}_outer"))));
    let mut symbolizer = Symbolizer::new();
    for copy in 0..crate::symbolize::MAX_OBJECTS + 40 {
        let (name, program) = &programs[copy % 3];
        let twin = scratch.file(&format!("twin{copy}"));
        fs::copy(program, &twin).unwrap();
        let mut ran = run(program);
        for mapping in &mut ran.space.mappings {
            mapping.backing = Backing::Object(object(&twin, &twin, None));
        }
        let frames = ran.frames(&mut symbolizer);
        assert_eq!(frames[2].function, Some(format!("{name}_outer")), "copy {copy}");
        assert_eq!(frames[2].object.as_deref(), twin.to_str());
    }
    assert_eq!(symbolizer.objects.len(), crate::symbolize::MAX_OBJECTS);
}

#[test]
fn a_name_is_looked_up_once() {
    let scratch = Scratch::new();
    let program = compile(&scratch, "victim", "-g");
    let ran = run(&program);
    let mapping = &ran.space.mappings[0];
    let Backing::Object(object) = &mapping.backing else { unreachable!() };
    let offset = ran.addresses[0] - 1 - mapping.start + mapping.file_offset;
    let mut symbolizer = Symbolizer::new();
    let first = symbolizer.known(object).names(offset);
    assert!(Arc::ptr_eq(&symbolizer.known(object).names(offset), &first));
    assert!(!Arc::ptr_eq(&symbolizer.known(object).names(offset + 1), &first));
}

#[inline(never)]
fn a_function_of_this_test() -> u32 {
    std::hint::black_box(line!())
}

#[test]
fn the_own_process_is_named_end_to_end() {
    let text = fs::read_to_string("/proc/self/maps").unwrap();
    let mut space = AddressSpace::default();
    for (mapping, path) in text.lines().filter_map(mapping) {
        let backing = match path {
            "" => Backing::Anonymous,
            path if path.starts_with('[') => Backing::Named(path.to_owned()),
            path => Backing::Object(object(Path::new(path), Path::new(path), None)),
        };
        space.mappings.push(Mapping { backing, ..mapping });
    }
    let own: fn() -> u32 = a_function_of_this_test;
    let getpid = libc::getpid as *const () as u64;
    let vdso = space.mappings.iter().find(|m| matches!(&m.backing, Backing::Named(name) if name == "[vdso]"));
    let addresses = [own as usize as u64 + 1, getpid + 1, vdso.unwrap().start + 0x100];
    let frames = Symbolizer::new().stack(&space, &addresses);

    assert_eq!(
        frames[0].function.as_deref(),
        Some("leakprobe::symbolize::tests::names::a_function_of_this_test")
    );
    assert!(frames[0].file.as_deref().unwrap().ends_with("symbolize/tests/names.rs"), "{frames:?}");
    assert_eq!(frames[0].line, Some(own() - 1));
    assert_eq!(frames[0].function_offset, Some(1));
    assert!(["getpid", "__getpid"].contains(&frames[1].function.as_deref().unwrap()), "{frames:?}");
    assert_eq!(frames[2].object.as_deref(), Some("[vdso]"));
    assert_eq!(frames.len(), 3);
}
