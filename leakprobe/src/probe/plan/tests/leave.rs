//! Return instructions, found in code written by hand.

use std::collections::HashMap;

use super::Arch;
use crate::probe::plan::leave::{Image, leaves};

/// Parts of functions, pointers, and functions whose return is probed.
#[derive(Default)]
struct Parts {
    parts: Vec<(u64, Vec<u8>)>,
    pointers: HashMap<u64, u64>,
    returning: Vec<u64>,
}

impl Parts {
    fn with(mut self, address: u64, code: &[u8]) -> Self {
        self.parts.push((address, code.to_vec()));
        self
    }

    fn part(&self, address: u64) -> Option<&(u64, Vec<u8>)> {
        self.parts.iter().find(|(start, code)| (*start..start + code.len() as u64).contains(&address))
    }
}

impl Image for Parts {
    fn end(&self, address: u64) -> u64 {
        self.part(address).map_or(address, |(start, code)| start + code.len() as u64)
    }

    fn code(&self, address: u64, end: u64) -> Vec<u8> {
        // As many as an instruction may have: the search asks again for each.
        let at = |address: u64| self.part(address).map(|(start, code)| code[(address - start) as usize]);
        (address..end).take(15).map_while(at).collect()
    }

    fn pointer(&self, address: u64) -> Option<u64> {
        self.pointers.get(&address).copied()
    }

    fn has_return_probe(&self, address: u64) -> bool {
        self.returning.contains(&address)
    }
}

fn of(parts: &Parts) -> Result<Vec<u64>, String> {
    leaves(Arch::X86_64, 0x1000, parts)
}

fn alone(code: &[u8]) -> Result<Vec<u64>, String> {
    of(&Parts::default().with(0x1000, code))
}

#[test]
fn each_way_out_is_found() {
    // push %rbx; test %rdi,%rdi; je 0x1008; pop %rbx; ret; pop %rbx; rep ret
    let code = [0x53, 0x48, 0x85, 0xff, 0x74, 0x02, 0x5b, 0xc3, 0x5b, 0xf3, 0xc3];
    assert_eq!(alone(&code), Ok(vec![0x1007, 0x1009]));
    // A loop: jmp 0x1000
    assert_eq!(alone(&[0xeb, 0xfe]), Ok(vec![]));
    assert_eq!(alone(&[0xc2, 0x08, 0x00]), Ok(vec![0x1000]));
    assert_eq!(alone(&[0xf2, 0xc3]), Ok(vec![0x1000]));
}

#[test]
fn what_a_function_goes_on_in_returns_for_it() {
    let ret = [0x90, 0xc3];
    // jmp 0x2000
    let jump = Parts::default().with(0x1000, &[0xe9, 0xfb, 0x0f, 0, 0]).with(0x2000, &ret);
    assert_eq!(of(&jump), Ok(vec![0x2001]));
    // jne 0x2000; ret
    let branch = Parts::default().with(0x1000, &[0x0f, 0x85, 0xfa, 0x0f, 0, 0, 0xc3]).with(0x2000, &ret);
    assert_eq!(of(&branch), Ok(vec![0x1006, 0x2001]));
    // jmp 0x1800, where a linkage table has: endbr64; bnd jmp *0x3000(%rip)
    let mut table = Parts::default()
        .with(0x1000, &[0xe9, 0xfb, 0x07, 0, 0])
        .with(0x1800, &[0xf3, 0x0f, 0x1e, 0xfa, 0xf2, 0xff, 0x25, 0xf5, 0x17, 0, 0])
        .with(0x2000, &ret);
    assert_eq!(of(&table), Err("an indirect jump at 0x1804 cannot be followed".to_owned()));
    table.pointers.insert(0x3000, 0x2000);
    assert_eq!(of(&table), Ok(vec![0x2001]));
    table.returning.push(0x2000);
    assert_eq!(of(&table), Ok(vec![]), "its return is probed");
}

#[test]
fn behind_a_call_code_may_end_but_not_elsewhere() {
    // call 0x2000, which comes back, or not
    let call = [0xe8, 0xfb, 0x0f, 0, 0];
    assert_eq!(alone(&[&call[..], &[0xc3]].concat()), Ok(vec![0x1005]));
    assert_eq!(alone(&call), Ok(vec![]));
    assert_eq!(alone(&[&call[..], &[0x06]].concat()), Ok(vec![]), "no instruction");
    // Not into the part that follows.
    let next = Parts::default().with(0x1000, &call).with(0x1005, &[0xc3]);
    assert_eq!(of(&next), Ok(vec![]));
    assert_eq!(alone(&[0x0f, 0x0b]), Ok(vec![]), "ud2");
    assert_eq!(alone(&[0x90]), Err("its code is not known at 0x1001".to_owned()));
    assert_eq!(alone(&[0x90, 0x06]), Err("its code is not known at 0x1001".to_owned()));
    assert_eq!(alone(&[]), Err("its code is not known at 0x1000".to_owned()));
}

#[test]
fn what_cannot_be_followed_is_refused() {
    let indirect = Err("an indirect jump at 0x1000 cannot be followed".to_owned());
    assert_eq!(alone(&[0xff, 0xe0]), indirect, "jmp *%rax");
    assert_eq!(alone(&[0xff, 0x24, 0xc5, 0, 0x30, 0, 0]), indirect, "jmp *0x3000(,%rax,8)");
    assert_eq!(alone(&[0x64, 0xff, 0x25, 0, 0, 0, 0]), indirect, "jmp *%fs:0(%rip)");
    assert_eq!(alone(&[0xcb]), Err("an unusual return at 0x1000 cannot be followed".to_owned()));
    assert_eq!(alone(&[0x66, 0xc3]), Err("an unusual return at 0x1000 cannot be followed".to_owned()));
    let long = [&[0x90; 5000][..], &[0xc3]].concat();
    assert_eq!(alone(&long), Err("it has more than 4096 instructions".to_owned()));
    let many: Vec<u8> = std::iter::repeat_n([0x74, 0x01, 0xc3], 200).flatten().chain([0xc3]).collect();
    assert_eq!(alone(&many), Err("it has more than 128 return instructions".to_owned()));
    assert!(leaves(Arch::Aarch64, 0x1000, &Parts::default()).is_err());
}

#[test]
fn any_bytes_will_do() {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for _ in 0..2000 {
        let code: Vec<u8> = (0..96)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state as u8
            })
            .collect();
        for leave in alone(&code).unwrap_or_default() {
            assert!(matches!(code[(leave - 0x1000) as usize], 0xc2 | 0xc3 | 0xf2 | 0xf3), "{code:x?}");
        }
    }
}
