//! The planner on recorded functions of real allocators, on constructed lines, and on arbitrary bytes.

use super::{Arch, Execution, Placement, Request, at_symbol, place};

mod aarch64;
mod arbitrary;
mod leave;
mod recorded;
mod x86_64;

/// Bytes written as pairs of hexadecimal digits, with spaces wherever they help.
fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> =
        hex.chars().filter_map(|digit| digit.to_digit(16)).map(|digit| digit as u8).collect();
    digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

/// Offset, registers and the probed instruction, of a placement that is expected to be emulated.
fn emulated(placement: &Placement) -> (u64, &[u8], &str) {
    assert_eq!(placement.execution, Execution::Emulated, "{placement:?}");
    (placement.offset, &placement.registers, &placement.instruction)
}

/// Why a placement stayed at the symbol and is single-stepped.
fn stepped(placement: &Placement) -> &str {
    assert_eq!(placement.offset, 0, "{placement:?}");
    match &placement.execution {
        Execution::SingleStepped(reason) => reason,
        Execution::Emulated => panic!("{placement:?} was expected to be single-stepped"),
    }
}
