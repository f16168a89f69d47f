//! Each rule on lines that were made for it.

use super::{Arch, Execution, Placement, Request, at_symbol, bytes, emulated, place, stepped};

const ADDRESS: u64 = 0x1000;

/// A probe with a return probe.
fn allocation(code: &str, arguments: &[u8]) -> Placement {
    let code = bytes(code);
    let (arch, address) = (Arch::X86_64, ADDRESS);
    place(&Request { arch, code: &code, address, arguments, returns: true, null_may_leave: false })
}

/// A probe of `free`.
fn free(code: &str) -> Placement {
    let code = bytes(code);
    let (arch, address, arguments) = (Arch::X86_64, ADDRESS, &[0][..]);
    place(&Request { arch, code: &code, address, arguments, returns: false, null_may_leave: true })
}

#[test]
fn only_exact_encodings_count_as_emulated() {
    let emulated = [
        "50",
        "55",
        "57",
        "4150",
        "4157",
        "eb00",
        "e900000000",
        "7000",
        "7f00",
        "0f8000000000",
        "0f8f00000000",
        "e800000000",
        "90",
    ];
    for code in emulated {
        assert_eq!(allocation(code, &[0]).execution, Execution::Emulated, "{code}");
    }
    let stepped_ones = [
        "6655",
        "4855",
        "4955",
        "fff5",
        "6aff",
        "6690",
        "f390",
        "4190",
        "4990",
        "f2e900000000",
        "66e900000000",
        "4874 00",
        "f30f1efa",
        "0f1f00",
        "0f1f440000",
        "ffe0",
        "ff2500000000",
        "ffd0",
        "c3",
        "e300",
        "e200",
        "4885ff",
        "4889f8",
        "4883ec18",
        "4881ff00100000",
        "58",
        "0f0b",
        "cc",
    ];
    for code in stepped_ones {
        stepped(&allocation(code, &[0]));
    }
}

#[test]
fn a_copy_of_all_64_bits_keeps_an_argument() {
    // mov %rdi,%rbx; xor %edi,%edi; push %rbp
    assert_eq!(emulated(&allocation("4889fb 31ff 55", &[0])), (5, &[3][..], "push %rbp"));
    // The other encoding of the same mov.
    assert_eq!(emulated(&allocation("488bdf 31ff 55", &[0])), (5, &[3][..], "push %rbp"));
    // mov %rdi,%rax; mov %rsi,%rdi; push %rbp: both arguments have moved, one into the other's place.
    assert_eq!(emulated(&allocation("4889f8 4889f7 31f6 55", &[0, 1])), (8, &[0, 7][..], "push %rbp"));
    // mov %rdi,%r12; mov %r12,%r13; xor %r12d,%r12d; xor %edi,%edi; push %rbp
    assert_eq!(emulated(&allocation("4989fc 4d89e5 4531e4 31ff 55", &[0])), (11, &[13][..], "push %rbp"));
}

#[test]
fn the_register_it_was_passed_in_is_preferred() {
    // mov %rdi,%rax; push %rbp
    assert_eq!(emulated(&allocation("4889f8 55", &[0])), (3, &[7][..], "push %rbp"));
}

#[test]
fn any_other_write_loses_an_argument() {
    let lost = |code: &str, by: &str| {
        let expected =
            format!("`{by}` overwrites argument 1 before any instruction that the kernel emulates");
        assert_eq!(stepped(&allocation(code, &[0])), expected);
    };
    lost("89fb 31ff 55", "xor %edi,%edi"); // after a copy of the lower half
    lost("40b701 55", "mov $1,%dil");
    lost("66bf0100 55", "mov $1,%di");
    lost("4883c710 55", "add $0x10,%rdi");
    lost("4887f7 55", "xchg %rsi,%rdi");
    lost("480f44fe 55", "cmove %rsi,%rdi"); // perhaps
    lost("480fb1f7 55", "cmpxchg %rsi,%rdi"); // perhaps
    lost("4889fb 31ff 31db 55", "xor %ebx,%ebx"); // the copy as well
    lost("f348ab 55", "rep stos %rax,(%rdi)"); // without naming it as an operand
    // It is only lost to those who need it.
    assert_eq!(emulated(&allocation("31ff 55", &[1])), (2, &[6][..], "push %rbp"));
}

#[test]
fn a_return_probe_needs_an_unmoved_stack() {
    // sub $0x18,%rsp; jmp
    let moves = "`sub $0x18,%rsp` moves the stack pointer before any instruction that the kernel emulates";
    assert_eq!(stepped(&allocation("4883ec18 eb00", &[0])), moves);
    assert_eq!(emulated(&free("4883ec18 eb00")), (4, &[7][..], "jmp 0x1006"));
    // A push in an encoding that is single-stepped moves it as well; enter does; lea does.
    for code in ["fff5 55", "c8100000 55", "488d6424f8 55", "5d 55"] {
        let placement = allocation(code, &[0]);
        assert!(stepped(&placement).contains("moves the stack pointer"), "{placement:?}");
    }
}

#[test]
fn nothing_may_lead_back_to_the_place() {
    // mov %rdi,%rax; push %rbp; test %eax,%eax; ret; and then a jump to each of the offsets.
    let with_jump = |to: i8| {
        let distance = (to - 9) as u8;
        allocation(&format!("4889f8 55 85c0 c3 eb{distance:02x} 90"), &[0])
    };
    let reason = "a jump leads back to +3 before any instruction that the kernel emulates";
    assert_eq!(stepped(&with_jump(3)), reason);
    // Not to the place, but to before it; even between two instructions.
    assert!(stepped(&with_jump(1)).contains("leads back to +1"));
    // Behind it, or to the symbol, which is another call.
    for harmless in [0, 4, 6] {
        assert_eq!(emulated(&with_jump(harmless)), (3, &[7][..], "push %rbp"));
    }
    // A call and a conditional jump lead there as well: call +3; jne +3.
    assert!(stepped(&allocation("4889f8 55 c3 e8f9ffffff", &[0])).contains("leads back to +3"));
    assert!(stepped(&allocation("4889f8 55 c3 75fc", &[0])).contains("leads back to +3"));
    // It is found behind bytes that are no instruction (06).
    assert!(stepped(&allocation("4889f8 55 c3 06 06 eb fa", &[0])).contains("leads back to +3"));
}

#[test]
fn jumps_in_vex_encoded_code_are_found() {
    // mov %rdi,%rax; push %rbp; ret; vpxor %xmm0,%xmm0,%xmm0; vpxorq %zmm0,%zmm0,%zmm0; jmp +3
    let placement = allocation("4889f8 55 c3 c5f9efc0 62f1fd48efc0 ebf2", &[0]);
    assert!(stepped(&placement).contains("leads back to +3"), "{placement:?}");
}

#[test]
fn a_branch_is_a_place_but_not_passed() {
    // cmp $0x1000,%rdi; ja; push %rbp
    assert_eq!(emulated(&allocation("4881ff00100000 7710 55", &[0])), (7, &[7][..], "ja 0x1019"));
    // jrcxz is not emulated; what follows is not executed by every call.
    let leaves = "`jrcxz 0x1012` leaves before any instruction that the kernel emulates";
    assert_eq!(stepped(&allocation("e310 55", &[0])), leaves);
    for code in ["c3 55", "ffe0 55", "ffd0 55", "0f0b 55", "cc 55", "0f05 55"] {
        let placement = allocation(code, &[0]);
        assert!(stepped(&placement).contains("leaves"), "{placement:?}");
    }
}

#[test]
fn calls_with_null_may_leave() {
    // test %rdi,%rdi; je; push %rbp
    assert_eq!(emulated(&free("4885ff 7410 55")), (5, &[7][..], "push %rbp"));
    // cmp $0,%rdi; mov %rdi,%rax; je with 32 bits; push %rbp: a mov between changes nothing.
    assert_eq!(emulated(&free("4883ff00 4889f8 0f8410000000 55")), (13, &[7][..], "push %rbp"));
    // mov %rdi,%rbx; test %rbx,%rbx; je; push %rbp
    assert_eq!(emulated(&free("4889fb 4885db 7410 55")), (8, &[7][..], "push %rbp"));
    // For a probe that must not miss them, the branch itself.
    let code = bytes("4885ff 7410 55");
    let (arch, address, arguments) = (Arch::X86_64, ADDRESS, &[0][..]);
    let all = Request { arch, code: &code, address, arguments, returns: false, null_may_leave: false };
    assert_eq!(emulated(&place(&all)), (3, &[7][..], "je 0x1015"));
}

#[test]
fn other_branches_may_not() {
    let stays = |code: &str, offset: u64| assert_eq!(free(code).offset, offset, "{code}");
    stays("85ff 7410 55", 2); // test %edi,%edi: also for 4 GiB
    stays("4885f6 7410 55", 3); // another argument
    stays("4885ff 7510 55", 3); // jne: for all but NULL
    stays("4885f7 7410 55", 3); // test %rsi,%rdi
    stays("4883ff01 7410 55", 4); // cmp $1,%rdi
    stays("4885ff 31c0 7410 55", 5); // xor between sets the flags
    stays("89fb 4885db 7410 55", 5); // a copy of the lower half
    stays("4885ff 31ff 4885ff 7410 55", 0); // lost before
}

#[test]
fn the_branch_for_null_is_the_place_when_nothing_better_follows() {
    // test %rdi,%rdi; je; then: sub $8,%rsp; jmp -- xor %edi,%edi; push -- ret -- the end
    for rest in ["4883ec08 eb00", "31ff 55", "c3", ""] {
        assert_eq!(emulated(&free(&format!("4885ff 7410 {rest}"))), (3, &[7][..], "je 0x1015"));
    }
}

/// See `movable` in the decoder.
#[test]
fn no_probe_is_moved_to_a_call() {
    // endbr64; call
    let reason = "`call 0x1009` leaves before any instruction that the kernel emulates";
    assert_eq!(stepped(&allocation("f30f1efa e800000000", &[0])), reason);
    assert_eq!(emulated(&allocation("e810000000", &[0])), (0, &[7][..], "call 0x1015"));
}

#[test]
fn the_line_is_followed_for_64_bytes_and_16_instructions() {
    let nops = |nop: &str, count: usize| allocation(&format!("{} 55", nop.repeat(count)), &[0]);
    let nop9 = "660f1f840000000000";
    assert_eq!(nops(nop9, 7).offset, 63);
    assert_eq!(stepped(&nops(nop9, 8)), "its first 72 bytes hold no instruction that the kernel emulates");
    assert_eq!(nops("0f1f00", 15).offset, 45);
    assert_eq!(
        stepped(&nops("0f1f00", 16)),
        "its first 48 bytes hold no instruction that the kernel emulates"
    );
}

#[test]
fn code_that_ends_or_makes_no_sense_ends_the_line() {
    let reason = "`(end of the code)` at +0 cannot be followed to any instruction that the kernel emulates";
    let empty = allocation("", &[0]);
    assert_eq!(
        (stepped(&empty), &empty.registers[..], &*empty.instruction),
        (reason, &[7][..], "(end of the code)")
    );
    // Half a jmp; a byte that is no instruction in 64-bit mode.
    assert!(stepped(&allocation("4889f8 e90000", &[0])).contains("`(no instruction: 0xe9)` at +3"));
    assert!(stepped(&allocation("4889f8 06 55", &[0])).contains("`(no instruction: 0x06)` at +3"));
}

#[test]
fn an_argument_that_is_not_in_a_register_has_none() {
    let placement = allocation("4889f8 55", &[5, 6, 0]);
    assert_eq!(emulated(&placement), (3, &[9, leakprobe_common::NO_REGISTER, 7][..], "push %rbp"));
}

#[test]
fn a_probe_asked_for_at_the_symbol_stays_there_and_says_what_that_costs() {
    let at_symbol = |code: &str| {
        let (code, arguments) = (bytes(code), &[0][..]);
        let (arch, address) = (Arch::X86_64, ADDRESS);
        at_symbol(&Request { arch, code: &code, address, arguments, returns: false, null_may_leave: true })
    };
    // test %rdi,%rdi; push %rbp
    let slow = at_symbol("4885ff 55");
    assert_eq!(stepped(&slow), "it was asked for at the symbol");
    assert_eq!((&slow.registers[..], &slow.instruction[..]), (&[7][..], "test %rdi,%rdi"));
    assert_eq!(emulated(&at_symbol("4154 55")), (0, &[7][..], "push %r12"));
}
