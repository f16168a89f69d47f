use std::{
    collections::BTreeMap,
    fs::{self, File},
    os::unix::fs::FileExt,
    path::Path,
    process::Command,
};

use super::*;
use crate::target::{
    family::{FAMILIES, with_prefixes},
    testing::Folder,
};

const PLAIN: &str = "void *malloc(unsigned long n) { return (void *)n; }\nvoid free(void *p) { (void)p; }\n";
const SHARED: &[&str] = &["-shared", "-fPIC", "-nostdlib", "-fno-builtin", "-w"];

fn find(path: &Path) -> Found {
    find_functions(&File::open(path).unwrap(), FAMILIES).unwrap()
}

/// Index of a family in the table.
fn family(name: &str) -> usize {
    FAMILIES.iter().position(|family| family.name == name).expect("a family of that name")
}

/// The functions of what must be the only allocator, of this family.
fn functions(found: Found, name: &str) -> Vec<Function> {
    let Found::Allocators(mut all) = found else { panic!("{found:?}") };
    // A static program has glibc's dynamic linker, too.
    all.retain(|found| FAMILIES[found.family].is_allocator());
    assert!(all.len() == 1 && all[0].family == family(name), "{all:?}");
    all.remove(0).functions
}

fn names(functions: &[Function]) -> Vec<Vec<&'static str>> {
    functions.iter().map(|f| f.symbols.clone()).collect()
}

/// The libc that this test itself runs on: path, and its lines of executable mappings (start, offset).
fn own_libc() -> (String, u64, u64) {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let line = maps.lines().find(|l| l.contains("r-xp") && l.ends_with("/libc.so.6")).unwrap();
    let fields: Vec<&str> = line.split_whitespace().collect();
    let number = |text: &str| u64::from_str_radix(text, 16).unwrap();
    (fields[5].into(), number(fields[0].split('-').next().unwrap()), number(fields[2]))
}

#[test]
fn libc_gives_the_functions_that_the_linker_gives() {
    let (path, start, offset) = own_libc();
    let functions = functions(find(Path::new(&path)), "glibc");
    let linked = [
        ("malloc", libc::malloc as *const () as u64),
        ("calloc", libc::calloc as *const () as u64),
        ("realloc", libc::realloc as *const () as u64),
        ("posix_memalign", libc::posix_memalign as *const () as u64),
        ("aligned_alloc", libc::aligned_alloc as *const () as u64),
        ("memalign", libc::memalign as *const () as u64),
        ("free", libc::free as *const () as u64),
    ];
    let memory = File::open("/proc/self/mem").unwrap();
    for (name, address) in linked {
        let function = functions.iter().find(|f| f.symbols.contains(&name)).unwrap();
        assert_eq!(function.file_offset, address - start + offset, "{name}");
        assert!(function.size > 0 && function.code.len() as u64 == function.size.min(MAX_CODE), "{name}");
        let mut code = vec![0; function.code.len()];
        memory.read_exact_at(&mut code, address).unwrap();
        assert!(code == function.code, "{name}");
    }
    // Each address once, frees first.
    let ranks: Vec<u8> = functions.iter().map(|f| f.role.attach_rank()).collect();
    assert!(ranks.is_sorted() && ranks[0] == 0 && ranks[ranks.len() - 1] == 2);
    let mut offsets: Vec<u64> = functions.iter().map(|f| f.file_offset).collect();
    offsets.sort_unstable();
    offsets.dedup();
    assert_eq!(offsets.len(), functions.len());
    let free = &functions[0];
    assert_eq!(free.symbols, ["__libc_free", "cfree", "free"]);
    let malloc = functions.iter().find(|f| f.symbols.contains(&"malloc")).unwrap();
    assert_eq!(malloc.symbols, ["__libc_malloc", "malloc"]);
}

#[test]
fn a_static_program_has_its_own_glibc_unless_stripped() {
    let folder = Folder::new();
    let source = "#include <stdlib.h>\nint main(int c, char **v) { free(realloc(malloc(c), c)); }\n";
    for (name, arguments) in [("fixed", &["-static"][..]), ("pie", &["-static-pie"])] {
        let program = folder.compile(name, source, arguments);
        let functions = functions(find(&program), "glibc");
        // The same addresses as the linker's own table has them.
        let nm = Command::new("nm").arg(&program).output().unwrap();
        let table: BTreeMap<String, u64> = String::from_utf8(nm.stdout)
            .unwrap()
            .lines()
            .filter_map(|l| Some((l.get(19..)?.to_owned(), u64::from_str_radix(l.get(..16)?, 16).ok()?)))
            .collect();
        for name in ["malloc", "calloc", "realloc", "free", "cfree", "__libc_memalign", "__posix_memalign"] {
            let ours = functions.iter().find(|f| f.symbols.contains(&name)).map(|f| f.address);
            assert_eq!(ours, table.get(name).copied(), "{name}");
        }
        // What is local in one of the two (malloc in a PIE) counts as well, each address once.
        let own = functions.iter().find(|f| f.symbols.contains(&"malloc")).unwrap();
        assert_eq!(own.symbols, ["__libc_malloc", "__malloc", "malloc"], "{name}");
        let stripped = folder.join(format!("{name}-stripped"));
        assert!(Command::new("strip").arg("-o").arg(&stripped).arg(&program).status().unwrap().success());
        assert_eq!(find(&stripped), Found::Nothing(Nothing::Stripped), "{name}");
    }
}

#[test]
fn ordinary_objects_have_no_allocator() {
    // It uses malloc and defines none.
    assert_eq!(find(Path::new("/bin/ls")), Found::Nothing(Nothing::NoAllocator));
    let folder = Folder::new();
    // Local functions of that name are the program's own business.
    let local = "static __attribute__((used)) void *malloc(unsigned long n) { return (void *)n; }\n\
        static __attribute__((used)) void free(void *p) { (void)p; }\nint main(void) { return 0; }\n";
    for (name, source) in [
        ("local", local.to_owned()),
        ("half", local.replace("static __attribute__((used)) void free", "void free")),
    ] {
        let program = folder.compile(name, &source, &["-fno-builtin", "-w", "-rdynamic"]);
        assert_eq!(find(&program), Found::Nothing(Nothing::NoAllocator), "{name}");
    }
}

#[test]
fn an_allocator_that_nobody_knows_is_named_so() {
    let folder = Folder::new();
    let source = format!("{PLAIN}void *__libc_malloc(unsigned long n) {{ return (void *)n; }}");
    let functions = functions(find(&folder.compile("own.so", &source, SHARED)), "unknown allocator");
    assert_eq!(names(&functions), [["free"], ["malloc"]]);
    assert!(!FAMILIES[family("unknown allocator")].known);
}

/// What a program exports does not tell of its static functions.
#[test]
fn static_functions_of_a_prefix_are_found_beside_an_exported_allocator() {
    let folder = Folder::new();
    let source = "#define A __attribute__((visibility(\"default\"), noinline))\n\
        A void *mi_malloc(long n) { return (void *)n; } A void mi_free(void *p) { __asm__ volatile(\"\" ::\"r\"(p)); }\n\
        __attribute__((noinline)) static void *pool_malloc(long n) { __asm__ volatile(\"\"); return (void *)n; }\n\
        __attribute__((noinline)) static void pool_free(void *p) { __asm__ volatile(\"\" ::\"r\"(p)); }\n\
        int main(int c, char **v) { pool_free(pool_malloc(c)); mi_free(mi_malloc(c)); return 0; }\n";
    let file = fs::File::open(folder.compile("exports", source, &["-O1", "-rdynamic"])).unwrap();
    let families = with_prefixes(&["pool_".to_owned()]);
    let Ok(Found::Allocators(found)) = find_functions(&file, families) else { panic!("nothing was found") };
    let names: Vec<_> = found.iter().map(|allocator| families[allocator.family].name).collect();
    assert_eq!(names, ["pool_*", "mimalloc"]);
}

#[test]
fn the_dynamic_linkers_malloc_is_nobodys_allocator() {
    let folder = Folder::new();
    let object = folder.compile("ld.so", &format!("{PLAIN}int _rtld_global = 1;"), SHARED);
    assert_eq!(find(&object), Found::Nothing(Nothing::NotOne(NOT_ALLOCATORS[0].1)));
}

#[test]
fn a_resolver_is_not_the_function() {
    let folder = Folder::new();
    let source = "void *real(unsigned long n) { return (void *)n; }\nstatic void *choose(void) { return real; }\n\
        void *malloc(unsigned long n) __attribute__((ifunc(\"choose\")));\nvoid free(void *p) { (void)p; }\n";
    let functions = functions(find(&folder.compile("ifunc.so", source, SHARED)), "unknown allocator");
    assert_eq!(names(&functions), [["free"]]);
}

#[test]
fn every_hash_table_and_none_of_the_section_headers_will_do() {
    let folder = Folder::new();
    for style in ["gnu", "sysv", "both"] {
        let style_argument = format!("-Wl,--hash-style={style}");
        let arguments: Vec<&str> = SHARED.iter().copied().chain([style_argument.as_str()]).collect();
        let object = folder.compile(&format!("{style}.so"), PLAIN, &arguments);
        let whole = functions(find(&object), "unknown allocator");
        assert_eq!(names(&whole), [["free"], ["malloc"]], "{style}");
        let mut bytes = fs::read(&object).unwrap();
        bytes[0x28..0x30].fill(0); // e_shoff
        bytes[0x3c..0x3e].fill(0); // e_shnum
        assert_eq!(
            functions(find_functions(&bytes[..], FAMILIES).unwrap(), "unknown allocator"),
            whole,
            "{style}"
        );
    }
}

#[test]
fn code_without_a_size_ends_at_the_next_symbol() {
    let folder = Folder::new();
    let source = "__asm__(\".globl malloc, free, after\\n.type malloc, @function\\n.type free, @function\\n\
        .type after, @function\\nmalloc: .byte 1, 2, 3\\nfree: .byte 4, 5, 6, 7\\nafter: .byte 8\\n\");\n";
    let functions = functions(find(&folder.compile("asm.so", source, SHARED)), "unknown allocator");
    let code: Vec<&[u8]> = functions.iter().map(|f| &f.code[..]).collect();
    assert_eq!(code, [&[4, 5, 6, 7][..], &[1, 2, 3]]);
    assert_eq!(functions[0].size, 0);
    assert_eq!(functions[0].address, functions[1].address + 3);
}

#[test]
fn names_are_found_wherever_they_lie() {
    // Around the border between two chunks, as the tail of a longer name, and not within one.
    for shift in 0..24 {
        let mut strings = vec![b'x'; CHUNK + 64];
        strings[0] = 0;
        let at = CHUNK - 16 + shift;
        strings[at - 1] = 0;
        strings[at..at + 14].copy_from_slice(b"__libc_malloc\0");
        strings[100..108].copy_from_slice(b"mallocx\0");
        let table = Table { symbols: 0, count: 0, strings: 0, strings_len: strings.len() as u64 };
        let found = find_names(&strings[..], table, &["__libc_malloc", "free", "malloc"]).unwrap();
        assert_eq!(found, [(at as u32, "__libc_malloc"), (at as u32 + 7, "malloc")], "{shift}");
    }
}

#[test]
fn claims_beyond_the_bounds_are_refused_before_anything_is_read() {
    let table = Table { symbols: 0, count: MAX_SYMBOLS + 1, strings: 0, strings_len: 1 };
    let bytes = fs::read("/proc/self/exe").unwrap();
    let elf = Elf::parse(&bytes[..]).unwrap();
    assert!(matches!(search(&elf, table, &["free"], FAMILIES), Err(ObjectError::TooLarge(_))));
    let table = Table { symbols: 0, count: 1, strings: 0, strings_len: MAX_STRINGS + 1 };
    assert!(matches!(search(&elf, table, &["free"], FAMILIES), Err(ObjectError::TooLarge(_))));
    let many = b"free\0".repeat(MAX_NAMES + 1);
    let table = Table { symbols: 0, count: 1, strings: 0, strings_len: many.len() as u64 };
    assert!(matches!(find_names(&many[..], table, &["free"]), Err(ObjectError::TooLarge(_))));
}

/// A file that claims to be far larger than its few bytes: everything else reads as `fill`.
struct Endless {
    head: Vec<u8>,
    fill: u8,
}

impl ReadAt for Endless {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> std::io::Result<usize> {
        buffer.fill(self.fill);
        let n = self.head[..].read_at(buffer, offset)?;
        buffer[n..].fill(self.fill);
        Ok(buffer.len())
    }
}

#[test]
fn hostile_tables_end() {
    let folder = Folder::new();
    let object = folder.compile("gnu.so", PLAIN, &[SHARED, &["-Wl,--hash-style=gnu"]].concat());
    let mut head = fs::read(object).unwrap();
    // A hash table whose size alone would mean 16 GiB, and a chain that goes on for ever.
    let hash = {
        let elf = Elf::parse(&head[..]).unwrap();
        let whole = elf.dynamic_symbols().unwrap().unwrap();
        (0..whole.symbols as usize)
            .step_by(8)
            .rev()
            .find(|&at| head[at + 4..at + 8] == [1, 0, 0, 0] && head[at] > 0)
            .unwrap()
    };
    let mut wide = head.clone();
    wide[hash..hash + 4].fill(0xff);
    let found = find_functions(&Endless { head: wide, fill: 0 }, FAMILIES);
    assert!(matches!(found, Err(ObjectError::TooLarge(_))), "{found:?}");
    head.truncate(0x200); // headers only: the hash chain never ends, all counts are 0xfefefefe
    for fill in [0xfe, 0xff, 0] {
        assert!(!matches!(
            find_functions(&Endless { head: head.clone(), fill }, FAMILIES),
            Ok(Found::Allocators(_))
        ));
    }
}

#[test]
fn damaged_files_never_panic() {
    let folder = Folder::new();
    let plain =
        fs::read(folder.compile("both.so", PLAIN, &[SHARED, &["-Wl,--hash-style=both"]].concat())).unwrap();
    let own = fs::read("/lib64/ld-linux-x86-64.so.2").or_else(|_| fs::read("/bin/true")).unwrap();
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = move |below: usize| {
        // xorshift64
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    };
    let (mut found, mut refused) = (0, 0);
    for round in 0..2000 {
        let mut bytes = if round % 4 == 3 { own.clone() } else { plain.clone() };
        for _ in 0..=random(8) {
            // Mostly where the headers and tables are.
            let near = if random(3) > 0 { 2048 } else { bytes.len() };
            let at = random(near.min(bytes.len()));
            bytes[at] = match random(3) {
                0 => 0xff,
                1 => bytes[at] ^ (1 << random(8)),
                _ => random(256) as u8,
            };
        }
        if random(4) == 0 {
            bytes.truncate(random(bytes.len()));
        }
        match find_functions(&bytes[..], FAMILIES) {
            Ok(Found::Allocators(allocators)) => {
                let functions: Vec<_> = allocators.into_iter().flat_map(|found| found.functions).collect();
                found += 1;
                assert!(functions.iter().all(|f| !f.code.is_empty() && f.code.len() as u64 <= MAX_CODE));
            }
            Ok(Found::Nothing(_)) => {}
            Err(_) => refused += 1,
        }
    }
    assert!(found > 100 && refused > 100, "{found} found, {refused} refused: the damage is of no use");
}
