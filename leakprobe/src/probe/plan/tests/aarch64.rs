//! Each rule on lines that were made for it.

use super::{Arch, Execution, Placement, Request, emulated, place, stepped};

const ADDRESS: u64 = 0x1000;

const MOV_X19_X0: u32 = 0xaa00_03f3;
const MOV_X0_X1: u32 = 0xaa01_03e0;
const MOV_X0_0: u32 = 0xd280_0000;
const CMP_X0_0: u32 = 0xf100_001f;
const B_EQ_32: u32 = 0x5400_0100;
const B_NE_32: u32 = 0x5400_0101;
const CBZ_X0_32: u32 = 0xb400_0100;
const ADR_X1_8: u32 = 0x1000_0041;
const ADRP_X1_2: u32 = 0xd000_0001;
const STP_X19_X20: u32 = 0xa901_53f3;
const BTI_C: u32 = 0xd503_245f;
const NOP: u32 = 0xd503_201f;
const RET: u32 = 0xd65f_03c0;

fn bytes(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// A probe with a return probe.
fn allocation(words: &[u32], arguments: &[u8]) -> Placement {
    let (arch, address, code) = (Arch::Aarch64, ADDRESS, bytes(words));
    place(&Request { arch, code: &code, address, arguments, returns: true, null_may_leave: false })
}

/// A probe of `free`.
fn free(words: &[u32]) -> Placement {
    let (arch, address, code) = (Arch::Aarch64, ADDRESS, bytes(words));
    place(&Request { arch, code: &code, address, arguments: &[0], returns: false, null_may_leave: true })
}

#[test]
fn what_every_kernel_simulates_counts_as_emulated() {
    let simulated = [
        (0x1400_0008, "b 0x1020"),
        (0x17ff_fffe, "b 0xff8"),
        (0x9400_0010, "bl 0x1040"),
        (B_EQ_32, "b.eq 0x1020"),
        (CBZ_X0_32, "cbz x0, 0x1020"),
        (0x3400_0100, "cbz w0, 0x1020"),
        (0xb500_0100, "cbnz x0, 0x1020"),
        (0x3618_0040, "tbz w0, #3, 0x1008"),
        (0xb7ff_ffe0, "tbnz x0, #63, 0xffc"),
        (0xd61f_0020, "br x1"),
        (0xd63f_0020, "blr x1"),
        (RET, "ret x30"),
        (ADR_X1_8, "adr x1, 0x1008"),
        (0x10ff_ffe1, "adr x1, 0xffc"),
        (ADRP_X1_2, "adrp x1, 0x3000"),
        (0xf0ff_ffe1, "adrp x1, 0x0"),
    ];
    for (word, text) in simulated {
        assert_eq!(emulated(&allocation(&[word], &[0])), (0, &[0][..], text));
    }
    // Among them nop (from 6.13), literal loads (refused), and what is only alike: retaa, svc.
    for word in [NOP, 0x5800_0041, 0xd65f_0bff, 0xd400_0001, BTI_C, STP_X19_X20, MOV_X0_X1, CMP_X0_0] {
        stepped(&allocation(&[word], &[0]));
    }
}

#[test]
fn a_copy_of_all_64_bits_keeps_an_argument() {
    let placement = allocation(&[MOV_X19_X0, MOV_X0_X1, ADRP_X1_2], &[0, 1]);
    assert_eq!(emulated(&placement), (8, &[19, 1][..], "adrp x1, 0x3000"));
    // mov w19, w0 does not; nor does mov xzr, x0.
    for copy in [0x2a00_03f3, 0xaa00_03ff] {
        let placement = allocation(&[copy, MOV_X0_0, ADRP_X1_2], &[0]);
        assert!(stepped(&placement).contains("overwrites argument 1"), "{placement:?}");
    }
}

#[test]
fn writes_lose_an_argument() {
    // ldr x0, [x1, #8]; ldr x2, [x0], #8; ldr x0, [x2], #8; add x0, x0, #1; ldp x2, x0, [x1];
    // mrs x0, tpidr_el0
    for word in [0xf940_0420, 0xf840_8402, 0xf840_8440, 0x9100_0400, 0xa940_0022, 0xd53b_d040] {
        let placement = allocation(&[word, ADRP_X1_2], &[0]);
        assert!(stepped(&placement).contains("overwrites argument 1"), "{placement:?}");
    }
    // str x0, [x1] only reads it.
    assert_eq!(allocation(&[0xf900_0020, ADRP_X1_2], &[0]).offset, 4);
}

#[test]
fn a_return_probe_needs_x30_untouched_and_the_stack_unmoved() {
    assert_eq!(allocation(&[BTI_C, STP_X19_X20, ADRP_X1_2], &[0]).offset, 8);
    // stp x29, x30, [sp, #-16]!; stp x29, x30, [sp]; paciasp; mov x9, x30; sub sp, sp, #32; ldr x30, [x1, #8]
    for word in [0xa9bf_7bfd, 0xa900_7bfd, 0xd503_233f, 0xaa1e_03e9, 0xd100_83ff, 0xf940_043e] {
        let placement = allocation(&[word, ADRP_X1_2], &[0]);
        let reason = "saves the return address or moves the stack pointer before any instruction";
        assert!(stepped(&placement).contains(reason), "{placement:?}");
        // Without a return probe it does not matter.
        assert_eq!(free(&[word, ADRP_X1_2]).offset, 4);
    }
}

#[test]
fn nothing_may_lead_back_to_the_place() {
    let with_jump = |jump: u32| allocation(&[MOV_X19_X0, ADRP_X1_2, RET, jump], &[0]);
    // b, bl, cbz, b.ne and tbnz to +4, which is 8 before them.
    for jump in [0x17ff_fffe, 0x97ff_fffe, 0xb4ff_ffc0, 0x54ff_ffc1, 0xb7ff_ffc0] {
        assert!(stepped(&with_jump(jump)).contains("a jump leads back to +4"), "{jump:#x}");
    }
    // To the symbol; behind the place; out of the function.
    for jump in [0x17ff_fffd, 0x17ff_ffff, 0x1400_1000, 0x17ff_ff00] {
        assert_eq!(with_jump(jump).offset, 4, "{jump:#x}");
    }
}

#[test]
fn calls_with_null_may_leave() {
    let place_of = |words: &[u32]| free(words).offset;
    assert_eq!(place_of(&[CBZ_X0_32, ADRP_X1_2]), 4);
    assert_eq!(place_of(&[CMP_X0_0, B_EQ_32, ADRP_X1_2]), 8);
    assert_eq!(place_of(&[MOV_X19_X0, 0xb400_0113, ADRP_X1_2]), 8); // cbz x19
    // Not for these: cbz w0; cbz x1; cbnz x0; cmp and b.ne; cmp w0 and b.eq; cmp x0, #1 and b.eq.
    assert_eq!(place_of(&[0x3400_0100, ADRP_X1_2]), 0);
    assert_eq!(place_of(&[0xb400_0101, ADRP_X1_2]), 0);
    assert_eq!(place_of(&[0xb500_0100, ADRP_X1_2]), 0);
    assert_eq!(place_of(&[CMP_X0_0, B_NE_32, ADRP_X1_2]), 4);
    assert_eq!(place_of(&[0x7100_001f, B_EQ_32, ADRP_X1_2]), 4);
    assert_eq!(place_of(&[0xf100_041f, B_EQ_32, ADRP_X1_2]), 4);
    // ccmp between sets the flags.
    assert_eq!(place_of(&[CMP_X0_0, 0xfa40_1804, B_EQ_32, ADRP_X1_2]), 8);
    // Not at the price of a moved stack: stp x29, x30, [sp, #-16]!
    assert_eq!(place_of(&[CBZ_X0_32, 0xa9bf_7bfd, ADRP_X1_2]), 0);
}

#[test]
fn exclusive_loads_and_unknown_instructions_end_the_line() {
    // ldxr x1, [x0]; retaa; autiasp; fmov d0, x0
    for word in [0xc85f_7c01, 0xd65f_0bff, 0xd503_23bf, 0x9e67_0000] {
        let placement = allocation(&[word, ADRP_X1_2], &[0]);
        let expected = format!("`.inst {word:#010x}` at +0 cannot be followed to any instruction");
        assert!(stepped(&placement).contains(&expected), "{placement:?}");
    }
}

#[test]
fn code_that_ends_ends_the_line() {
    let mut code = bytes(&[MOV_X19_X0, ADRP_X1_2]);
    code.pop();
    let request = Request {
        arch: Arch::Aarch64,
        code: &code,
        address: ADDRESS,
        arguments: &[7, 8],
        returns: true,
        null_may_leave: false,
    };
    let placement = place(&request);
    assert!(stepped(&placement).contains("`(end of the code)` at +4"), "{placement:?}");
    assert_eq!(placement.registers, [7, leakprobe_common::NO_REGISTER]);
    assert_ne!(placement.execution, Execution::Emulated);
}
