//! Any bytes may stand where a symbol points: nothing may panic, and what is placed must be a place.

use iced_x86::{Decoder, DecoderOptions};

use super::{Arch, Execution, Request, place, recorded};

/// xorshift64* (Vigna 2016): the same sequence in each run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }
}

/// Noise, or a recorded function with a few bytes changed and some cut off either end.
fn code(random: &mut Random, recorded: &[Vec<u8>]) -> Vec<u8> {
    if random.next() & 1 == 0 {
        let length = random.below(80);
        return (0..length).map(|_| random.next() as u8).collect();
    }
    let mut code = recorded[random.below(recorded.len())].clone();
    code.drain(..random.below(24).min(code.len()));
    code.truncate(random.below(160));
    for _ in 0..random.below(4) {
        if !code.is_empty() {
            let at = random.below(code.len());
            code[at] = random.next() as u8;
        }
    }
    code
}

/// Whether an instruction begins at `offset` when they are decoded one after another from the symbol.
fn on_the_line(arch: Arch, code: &[u8], offset: usize) -> bool {
    if arch == Arch::Aarch64 {
        return offset.is_multiple_of(4) && offset + 4 <= code.len();
    }
    let mut decoder = Decoder::new(64, code, DecoderOptions::NONE);
    while decoder.position() < offset {
        let _ = decoder.decode();
    }
    decoder.position() == offset && !decoder.decode().is_invalid()
}

fn check(arch: Arch, register_count: u8) -> (usize, usize) {
    let recorded: Vec<Vec<u8>> = recorded::codes(arch);
    let mut random = Random(0x6c65_616b_7072_6f62);
    let (mut moved, mut stepped) = (0, 0);
    for _ in 0..100_000 {
        let code = code(&mut random, &recorded);
        let arguments: Vec<u8> = (0..random.below(4)).map(|_| random.below(9) as u8).collect();
        let flags = random.next();
        // Addresses where adding to them wraps, too.
        let address = if flags & 4 == 0 { flags >> 20 } else { u64::MAX - (flags >> 57) };
        let (returns, null_may_leave) = (flags & 1 != 0, flags & 2 != 0);
        let request = Request { arch, code: &code, address, arguments: &arguments, returns, null_may_leave };
        let placement = place(&request);

        assert_eq!(placement.registers.len(), arguments.len());
        let passed = if arch == Arch::X86_64 { 6 } else { 8 };
        for (argument, register) in arguments.iter().zip(&placement.registers) {
            assert_eq!(*register == leakprobe_common::NO_REGISTER, *argument >= passed, "{code:02x?}");
            assert!(*argument >= passed || *register < register_count, "{code:02x?}");
        }
        let offset = placement.offset as usize;
        if offset > 0 {
            moved += 1;
            assert!(offset < 64 && on_the_line(arch, &code, offset), "{placement:?} in {code:02x?}");
            assert_eq!(placement.execution, Execution::Emulated);
            // The instruction alone, at its own symbol, is emulated as well.
            let alone = Request { code: &code[offset..], arguments: &[], null_may_leave: false, ..request };
            let alone = place(&alone);
            assert_eq!((alone.offset, alone.execution), (0, Execution::Emulated), "{code:02x?}");
        }
        stepped += usize::from(placement.execution != Execution::Emulated);
    }
    (moved, stepped)
}

#[test]
fn arbitrary_x86_64_code_gets_a_sound_place() {
    let (moved, stepped) = check(Arch::X86_64, 16);
    assert!(moved > 10_000 && stepped > 10_000, "{moved} moved, {stepped} stepped: too few to mean much");
}

#[test]
fn arbitrary_aarch64_code_gets_a_sound_place() {
    let (moved, stepped) = check(Arch::Aarch64, 31);
    assert!(moved > 1_000 && stepped > 10_000, "{moved} moved, {stepped} stepped: too few to mean much");
}
