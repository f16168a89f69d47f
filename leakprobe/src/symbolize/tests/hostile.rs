//! Files made to harm their reader.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::Path,
};

use super::victim::{LEAF, Ran, Scratch, brief, compile, full, object, run, tool};
use crate::{
    symbolize::{
        Symbolizer,
        elf::Layout,
        source::{Found, Source},
    },
    target::space::Backing,
};

/// What `ran` would give if its program had been `file`.
fn frames_of(ran: &mut Ran, file: &Path) -> Vec<String> {
    let object = object(file, file, None);
    for mapping in &mut ran.space.mappings {
        mapping.backing = Backing::Object(object.clone());
    }
    brief(&ran.frames(&mut Symbolizer::new()))
}

/// xorshift64*, for the same flips in every run.
fn next(state: &mut u64) -> usize {
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    (state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize
}

fn flip(options: &str, compress: bool) {
    let scratch = Scratch::new();
    let program = compile(&scratch, "victim", options);
    if compress {
        tool("objcopy", "--compress-debug-sections=zlib {}", &[&program]);
    }
    let mut ran = run(&program);
    let sound = fs::read(&program).unwrap();
    let sections = tool("readelf", "-hW {}", &[&program]);
    let table = sections.split("Start of section headers:").nth(1).unwrap();
    let table: usize = table.split_whitespace().next().unwrap().parse().unwrap();
    let damaged = scratch.file("damaged");
    let mut state = 0x1234_5678_9abc_def1;
    let mut changed = 0;
    for round in 0..300 {
        let mut bytes = sound.clone();
        for _ in 0..1 + round % 8 {
            // A third of them in the headers, where they do most harm.
            let at = match next(&mut state) % 3 {
                0 => [next(&mut state) % 1024, table + next(&mut state) % (bytes.len() - table)][round % 2],
                _ => next(&mut state) % bytes.len(),
            };
            bytes[at] ^= 1 << (next(&mut state) % 8);
        }
        fs::write(&damaged, &bytes).unwrap();
        let frames = frames_of(&mut ran, &damaged);
        assert!(frames.len() >= ran.addresses.len(), "each address has a frame");
        changed += usize::from(frames != full());
        // Each round a file of its own: names are remembered by inode.
        fs::remove_file(&damaged).unwrap();
    }
    assert!(changed > 30, "only {changed} of 300 damaged files gave other frames");
}

#[test]
fn flipped_bits_cost_names_and_nothing_else() {
    flip("-g", false);
}

#[test]
fn flipped_bits_in_compressed_sections_cost_names_and_nothing_else() {
    flip("-g", true);
}

#[test]
fn cut_files_cost_names_and_nothing_else() {
    let scratch = Scratch::new();
    let program = compile(&scratch, "victim", "-g");
    let mut ran = run(&program);
    let sound = fs::read(&program).unwrap();
    for part in 0..64 {
        let cut = scratch.file(&format!("cut{part}"));
        fs::write(&cut, &sound[..sound.len() * part / 64]).unwrap();
        let frames = frames_of(&mut ran, &cut);
        assert_eq!(frames.len(), ran.addresses.len(), "{frames:?}");
        assert!(frames.iter().all(|frame| frame.starts_with("the object could not be read: ")), "{frames:?}");
    }
}

/// File offset and size of a section, from readelf.
fn section(program: &Path, name: &str) -> (u64, u64) {
    let sections = tool("readelf", "-SW {}", &[program]);
    let line = sections.lines().find(|line| line.split_whitespace().any(|word| word == name)).unwrap();
    let fields: Vec<_> = line.split_once(name).unwrap().1.split_whitespace().collect();
    let number = |text: &str| u64::from_str_radix(text, 16).unwrap();
    (number(fields[2]), number(fields[3]))
}

#[test]
fn a_compressed_section_cannot_claim_what_it_has_not() {
    let scratch = Scratch::new();
    let program = compile(&scratch, "victim", "-g");
    tool("objcopy", "--compress-debug-sections=zlib {}", &[&program]);
    let mut ran = run(&program);
    let at = section(&program, ".debug_info").0 + 8;
    let sound = fs::read(&program).unwrap();
    let size = u64::from_le_bytes(sound[at as usize..at as usize + 8].try_into().unwrap());
    let reasons = [
        // Allocating this would end the program, without a panic.
        (1 << 50, format!("claims {} bytes", 1_u64 << 50)),
        (u64::MAX, format!("claims {} bytes", u64::MAX)),
        (size + 1, format!("claims {} bytes and has {size}", size + 1)),
        (size - 1, format!("expands to more than {} bytes", size - 1)),
        (0, "expands to more than 0 bytes".to_owned()),
    ];
    for (number, (claim, reason)) in reasons.iter().enumerate() {
        let damaged = scratch.file(&format!("damaged{number}"));
        fs::write(&damaged, &sound).unwrap();
        File::options()
            .write(true)
            .open(&damaged)
            .unwrap()
            .write_all_at(&u64::to_le_bytes(*claim), at)
            .unwrap();
        let text = format!("the object could not be read: its compressed section .debug_info {reason}");
        assert_eq!(frames_of(&mut ran, &damaged), [text.as_str(); 3]);
    }
}

#[test]
fn mini_debug_information_cannot_fill_the_memory() {
    let scratch = Scratch::new();
    let program = compile(&scratch, "victim", "");
    tool("strip", "{}", &[&program]);
    let zeros = scratch.file("zeros");
    // Sparse; 10 kB of xz.
    File::create(&zeros).unwrap().set_len((64 << 20) + 1).unwrap();
    tool("xz", "-k -0 {}", &[&zeros]);
    let packed = scratch.file("zeros.xz");
    tool("objcopy", "--add-section .gnu_debugdata={} {}", &[&packed, &program]);
    let text = "the object could not be read: its .gnu_debugdata expands to more than 67108864 bytes";
    assert_eq!(brief(&run(&program).frames(&mut Symbolizer::new())), [text; 3]);
}

#[test]
fn a_sparse_file_of_any_size_is_refused() {
    let scratch = Scratch::new();
    let program = compile(&scratch, "victim", "-g");
    let mut ran = run(&program);
    let huge = scratch.file("huge");
    fs::copy(&program, &huge).unwrap();
    File::options().write(true).open(&huge).unwrap().set_len((16 << 30) + 1).unwrap();
    let frames = frames_of(&mut ran, &huge);
    let text =
        "the object could not be read: 17179869185 bytes long, more than the 17179869184 that are looked at";
    assert_eq!(frames, [text; 3]);
}

#[test]
fn files_that_an_object_names_are_never_opened_for_blazesym() {
    // A supplementary file by absolute path: blazesym would open it, and hang on this FIFO.
    let scratch = Scratch::new();
    let program = compile(&scratch, "victim", "-g");
    let fifo = scratch.file("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    for name in [".gnu_debugaltlink", ".gnu_debuglink"] {
        let hostile = scratch.file(&format!("hostile{name}"));
        let content = scratch.file("content");
        let mut bytes = fifo.to_str().unwrap().as_bytes().to_vec();
        bytes.resize((bytes.len() + 4) & !3, 0);
        bytes.extend_from_slice(&[0xab; 20]);
        fs::write(&content, bytes).unwrap();
        let path = content.to_str().unwrap();
        tool("objcopy", &format!("--add-section {name}={path} {{}} {{}}"), &[&program, &hostile]);
        let layout = Layout::read(&File::open(&hostile).unwrap()).unwrap();
        assert!(layout.names_other_files || layout.shared_link.is_some(), "{layout:?}");
        assert_eq!(layout.debug_link, None);
        let frames = run(&hostile).frames(&mut Symbolizer::new());
        assert_eq!(brief(&frames), ["outer", "hidden", "main"], "{name}");
    }
}

#[test]
fn a_panic_in_the_parser_costs_lines_but_not_names() {
    let scratch = Scratch::new();
    let (leaf, source, program) = (scratch.file("leaf.c"), scratch.file("two.c"), scratch.file("victim"));
    fs::write(&leaf, LEAF).unwrap();
    let text = "void leaf(void);\nvoid report(void);\n\
                __attribute__((noinline)) void first(void) { leaf(); __asm__ volatile(\"\"); }\n\
                # 1 \"second.c\"\nint main(void) { first(); leaf(); report(); }\n";
    fs::write(&source, text).unwrap();
    tool("cc", "-O2 -g -o {} {} {}", &[&program, &source, &leaf]);
    let mut ran = run(&program);
    let sound = fs::read(&program).unwrap();
    let (start, size) = section(&program, ".debug_line");
    let mapping = &ran.space.mappings[0];
    let offset = ran.addresses[1] - 1 - mapping.start + mapping.file_offset;
    let damaged = scratch.file("damaged");
    let mut panics = 0;
    // One of these bytes is the number of the second source file, of which there are not so many.
    for at in start..start + size {
        let mut bytes = sound.clone();
        bytes[at as usize] = 0x7f;
        fs::write(&damaged, &bytes).unwrap();
        let file = File::open(&damaged).unwrap();
        let address = Layout::read(&file).unwrap().address(offset).unwrap();
        let found = Source::lines(&file).unwrap().look_up(address);
        if matches!(&found, Found::Failed(reason) if reason.starts_with("malformed symbols")) {
            panics += 1;
            assert_eq!(frames_of(&mut ran, &damaged).last().unwrap(), "main", "byte {at:#x}");
        }
        fs::remove_file(&damaged).unwrap();
    }
    assert!(panics > 0, "blazesym no longer panics on a line of an unknown file: is the guard still needed?");
}

#[test]
fn a_second_link_to_shared_debug_information_is_not_trusted() {
    let scratch = Scratch::new();
    let program = compile(&scratch, "victim", "-g");
    let content = scratch.file("content");
    fs::write(&content, b"/nowhere\0\x01\x02\x03\x04\x05\x06\x07\x08").unwrap();
    let path = content.to_str().unwrap();
    let read = || Layout::read(&File::open(&program).unwrap()).unwrap();
    for (section, names_others) in [(".gnu_debugaltlink", false), (".second", true)] {
        tool("objcopy", &format!("--add-section {section}={path} {{}}"), &[&program]);
        tool("objcopy", "--rename-section .second=.gnu_debugaltlink {}", &[&program]);
        let layout = read();
        assert_eq!(layout.names_other_files, names_others, "{layout:?}");
        assert_eq!(layout.shared_link.unwrap().build_id, [1, 2, 3, 4, 5, 6, 7, 8]);
    }
}

#[test]
fn inlined_functions_are_bounded() {
    let scratch = Scratch::new();
    let (leaf, source, program) = (scratch.file("leaf.c"), scratch.file("deep.c"), scratch.file("victim"));
    fs::write(&leaf, LEAF).unwrap();
    let mut text = "void leaf(void);\nvoid report(void);\nstatic volatile int sink;\n".to_owned();
    text.push_str(
        "#define IN static inline __attribute__((always_inline)) void\nIN in0(void) { leaf(); sink++; }\n",
    );
    for level in 1..100 {
        text.push_str(&format!("IN in{level}(void) {{ in{}(); sink++; }}\n", level - 1));
    }
    text.push_str("int main(void) { in99(); report(); }\n");
    fs::write(&source, text).unwrap();
    tool("cc", "-O2 -g -o {} {} {}", &[&program, &source, &leaf]);
    let frames = run(&program).frames(&mut Symbolizer::new());
    let names: Vec<_> = frames.iter().map(|frame| frame.function.as_deref().unwrap()).collect();
    let innermost: Vec<_> = (0..64).map(|level| format!("in{level}")).collect();
    assert_eq!(names[..64], innermost, "those next to the allocation are kept");
    assert_eq!(names[64..], ["main"]);
}
