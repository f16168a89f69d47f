//! Functions of Debian's C libraries and allocators, as recorded in `testdata/recorded.txt`. Where a place is
//! not the symbol, both were also probed at once in a running program (glibc 2.36 and the three others, on
//! x86_64 with kernel 6.18): hits, arguments and returns were the same at both.

use super::{Arch, Execution, Request, bytes, place};

struct Function {
    object: &'static str,
    names: &'static str,
    arch: Arch,
    address: u64,
    code: Vec<u8>,
}

fn functions() -> Vec<Function> {
    let (mut functions, mut object, mut arch) = (Vec::new(), "", Arch::X86_64);
    for line in include_str!("../testdata/recorded.txt").lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        match fields[..] {
            ["object", package, version, architecture, _] => {
                object = line.strip_prefix("object ").unwrap().split_at(package.len() + version.len() + 1).0;
                arch = if architecture == "arm64" { Arch::Aarch64 } else { Arch::X86_64 };
            }
            [names, address, code] if !line.starts_with('#') => {
                let address = u64::from_str_radix(address.trim_start_matches("0x"), 16).unwrap();
                functions.push(Function { object, names, arch, address, code: bytes(code) });
            }
            _ => assert!(line.is_empty() || line.starts_with('#'), "{line}"),
        }
    }
    functions
}

/// What leakprobe's probes need of each function: arguments, whether it has a return probe.
fn needs(name: &str) -> (&'static [u8], bool) {
    match name {
        "malloc" | "valloc" | "pvalloc" => (&[0], true),
        "calloc" | "realloc" => (&[0, 1], true),
        "reallocarray" => (&[0, 1, 2], true),
        "posix_memalign" => (&[0, 2], true),
        "aligned_alloc" | "memalign" => (&[1], true),
        "free" => (&[0], false),
        _ => panic!("{name}"),
    }
}

/// One line for each name: offset, registers, instruction, and a reason if it is single-stepped.
fn plan(object: &str, arch: Arch) -> Vec<String> {
    let mut lines = Vec::new();
    for function in functions().iter().filter(|function| function.object == object && function.arch == arch) {
        for name in function.names.split(',') {
            let (arguments, returns) = needs(name);
            let placement = place(&Request {
                arch,
                code: &function.code,
                address: function.address,
                arguments,
                returns,
                null_may_leave: name == "free",
            });
            let (offset, registers) = (placement.offset, placement.registers);
            let reason = match placement.execution {
                Execution::Emulated => String::new(),
                Execution::SingleStepped(reason) => format!(": {reason}"),
            };
            lines.push(format!("{name}+{offset} {registers:?} {}{reason}", placement.instruction));
        }
    }
    lines
}

/// The bytes of all functions of an architecture, as material for other tests.
pub(super) fn codes(arch: Arch) -> Vec<Vec<u8>> {
    functions().into_iter().filter(|function| function.arch == arch).map(|function| function.code).collect()
}

#[test]
fn glibc_2_36() {
    let expected = [
        "malloc+0 [7] push %r12",
        "calloc+0 [7, 6] push %r13",
        "realloc+0 [7, 6] push %r15",
        "reallocarray+0 [7, 6, 2] mov %rsi,%rax: `mul %rdx` overwrites argument 3 before any instruction \
         that the kernel emulates",
        "free+9 [7] push %rbp",
        "posix_memalign+7 [7, 2] push %r12",
        "aligned_alloc+7 [6] je 0x99620",
        "memalign+7 [6] je 0x99620",
        "valloc+7 [7] push %rbx",
        "pvalloc+7 [7] push %rbx",
    ];
    assert_eq!(plan("libc6 2.36-9+deb12u14", Arch::X86_64), expected);
}

/// Its allocation functions begin with a look at a hook; `free` makes room on the stack before that.
#[test]
fn glibc_2_31() {
    let expected = [
        "malloc+7 [7] push %r12",
        "calloc+0 [7, 6] push %r13",
        "realloc+0 [7, 6] push %r15",
        "reallocarray+0 [7, 6, 2] mov %rsi,%rax: `mul %rdx` overwrites argument 3 before any instruction \
         that the kernel emulates",
        "free+17 [7] jne 0x864a8",
        "posix_memalign+0 [7, 2] push %rbx",
        "aligned_alloc+4 [6] jmp 0x86110",
        "memalign+4 [6] jmp 0x86110",
        "valloc+6 [7] push %rbp",
        "pvalloc+6 [7] push %rbx",
    ];
    assert_eq!(plan("libc6 2.31-13+deb11u11", Arch::X86_64), expected);
}

#[test]
fn jemalloc() {
    let expected = [
        "malloc+7 [7] ja 0x239b0",
        "calloc+0 [7, 6] push %r15",
        "realloc+0 [7, 6] push %r15",
        "free+48 [7] jne 0x27d20",
        "posix_memalign+0 [7, 2] push %r15",
        "aligned_alloc+0 [6] push %r15",
        "memalign+0 [6] push %r15",
        "valloc+0 [7] push %r15",
    ];
    assert_eq!(plan("libjemalloc2 5.3.0-1", Arch::X86_64), expected);
}

#[test]
fn tcmalloc() {
    let expected = [
        "malloc+10 [7] jne 0x1edc1",
        "calloc+0 [7, 6] push %r13",
        "realloc+0 [7, 6] push %r15",
        "free+10 [7] jne 0x1d1a0",
        "posix_memalign+11 [7, 2] jne 0x1efe8",
        "aligned_alloc+10 [6] ja 0x1ef38",
        "memalign+10 [6] ja 0x1ef38",
        "valloc+0 [7] push %rbp",
        "pvalloc+0 [7] push %rbx",
    ];
    assert_eq!(plan("libtcmalloc-minimal4 2.10-1", Arch::X86_64), expected);
}

/// It moves its arguments on to make room for one more before the first branch.
#[test]
fn mimalloc() {
    let expected = [
        "malloc+21 [6] ja 0x10bb0",
        "calloc+18 [0, 6] je 0x1120c",
        "realloc+20 [6, 2] jmp 0x6580",
        "reallocarray+0 [7, 6, 2] jmp 0x6530",
        "free+6 [7] je 0x10f45",
        "posix_memalign+0 [7, 2] jmp 0x6510",
        "aligned_alloc+0 [6] jmp 0x62a0",
        "memalign+0 [6] jmp 0x63f0",
        "valloc+0 [7] jmp 0x6100",
        "pvalloc+0 [7] jmp 0x6470",
    ];
    assert_eq!(plan("libmimalloc2.0 2.0.9+ds-2", Arch::X86_64), expected);
}

#[test]
fn behind_endbr64() {
    let expected = [
        "malloc+4 [7] push %rbx",
        "calloc+0 [7, 6] endbr64: `mov %rax,%rsi` overwrites argument 2 before any instruction that the \
         kernel emulates",
        "free+25 [7] js 0x1210",
        "memalign+4 [6] jmp 0x1040",
        "valloc+4 [7] push %rbx",
    ];
    assert_eq!(plan("gcc 4:12.2.0-3", Arch::X86_64), expected);
}

/// Most functions save x30 first, and a return probe can only sit before that.
#[test]
fn glibc_2_36_on_aarch64() {
    let saved = |name: &str, word: &str| {
        format!(
            "{name} stp ({word}): `stp ({word})` saves the return address or moves the stack pointer before \
             any instruction that the kernel emulates"
        )
    };
    let expected = [
        saved("malloc+0 [0]", "0xa9bc7bfd"),
        saved("calloc+0 [0, 1]", "0xa9bb7bfd"),
        saved("realloc+0 [0, 1]", "0xa9b97bfd"),
        "reallocarray+0 [0, 1, 2] madd/umulh (0x9bc27c23): `madd/umulh (0x9b027c21)` overwrites argument 2 \
         before any instruction that the kernel emulates"
            .to_owned(),
        "free+0 [0] cbz x0, 0x92ad4".to_owned(),
        saved("posix_memalign+0 [0, 2]", "0xa9bd7bfd"),
        saved("aligned_alloc+0 [1]", "0xa9bd7bfd"),
        saved("memalign+0 [1]", "0xa9bd7bfd"),
        saved("valloc+0 [0]", "0xa9be7bfd"),
        saved("pvalloc+0 [0]", "0xa9be7bfd"),
    ];
    assert_eq!(plan("libc6 2.36-9+deb12u14", Arch::Aarch64), expected);
}

#[test]
fn jemalloc_on_aarch64() {
    let plan = plan("libjemalloc2 5.3.0-1", Arch::Aarch64);
    let emulated: Vec<&String> = plan.iter().filter(|line| !line.contains(": ")).collect();
    let expected =
        ["malloc+4 [0] b.hi 0x1a724", "realloc+0 [0, 1] adrp x2, 0x9f000", "free+0 [0] adrp x1, 0x9f000"];
    assert_eq!(emulated, expected);
    assert_eq!(plan.len(), 8);
}
