//! Libraries that were made to keep a profiler busy: good code, and call frame information that nobody would write.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use crate::compile;

/// What is wrong with a library.
#[derive(Clone, Copy, Debug)]
pub enum Flaw {
    /// Beside good call frame information, much more than its code can need.
    TooLarge,
    /// Beside good call frame information, functions of which nothing is said.
    Damaged,
    /// Beside good call frame information, some functions of which nothing is said.
    PartlyDamaged,
    /// Beside good call frame information, a million functions, all of which are the same.
    Repeated,
    /// What leads to its call frame information is damaged.
    Unreadable,
}

/// Bytes of code that it claims to have: its file is sparse.
const CODE: u64 = 8 << 20;
/// Where it claims to have them.
const ADDRESS: u64 = 0x10_0000;
const MANY: usize = 200_000;

/// A folder with libraries, removed when it goes out of scope.
#[derive(Debug)]
pub struct Hostile(PathBuf);

impl Hostile {
    /// A folder that nobody else uses.
    ///
    /// # Panics
    ///
    /// When it cannot be made.
    pub fn new() -> Self {
        let folder = compile::scratch().join(format!("hostile-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("failed to make a folder");
        Self(folder)
    }

    /// Makes a library out of the victim `plugin.so`.
    ///
    /// # Panics
    ///
    /// When it cannot be written.
    pub fn library(&self, name: &str, flaw: Flaw) -> PathBuf {
        let path = self.0.join(name);
        let mut bytes = fs::read(compile::victim("plugin.so")).expect("a victim");
        let good = record(0, &[&ADDRESS.to_le_bytes()[..], &16u64.to_le_bytes()].concat());
        let bad = record(0, &[]);
        let common = record(u32::MAX, &[1, 0, 1, 0x78, 16, 0x0c, 7, 8, 0x90, 1]);
        let functions = match flaw {
            Flaw::TooLarge => good.repeat(10_000),
            Flaw::Damaged => bad.repeat(MANY),
            Flaw::PartlyDamaged => [&good[..], &bad].concat().repeat(MANY / 2),
            Flaw::Repeated => good.repeat(MANY),
            Flaw::Unreadable => {
                let index = program_header(&bytes, 0x6474_e550);
                let at = word(&bytes, index + 8) as usize;
                bytes[at] = 77;
                Vec::new()
            }
        };
        if !functions.is_empty() {
            add_section(&mut bytes, ".debug_frame", &[common, functions].concat());
        }
        let len = bytes.len().next_multiple_of(4096) as u64;
        if !matches!(flaw, Flaw::TooLarge | Flaw::Unreadable) {
            // In the place of what says whether the stack is executable.
            let stack = program_header(&bytes, 0x6474_e551);
            let words = [0x5_0000_0001, len, ADDRESS, ADDRESS, CODE, CODE, 4096];
            for (place, word) in (stack..).step_by(8).zip(words) {
                set_word(&mut bytes, place, word);
            }
        }
        fs::write(&path, &bytes).expect("failed to write a library");
        if !matches!(flaw, Flaw::TooLarge | Flaw::Unreadable) {
            let file = File::options().write(true).open(&path).expect("what was written");
            file.set_len(len + CODE).expect("failed to make a file sparse");
        }
        path
    }

    /// Where they are.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Default for Hostile {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Hostile {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// An entry of a `.debug_frame`.
fn record(id: u32, body: &[u8]) -> Vec<u8> {
    let len = 4 + body.len() as u32;
    [&len.to_le_bytes()[..], &id.to_le_bytes(), body].concat()
}

fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

fn set_word(bytes: &mut [u8], at: usize, word: u64) {
    bytes[at..at + 8].copy_from_slice(&word.to_le_bytes());
}

fn half(bytes: &[u8], at: usize) -> usize {
    usize::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]))
}

/// Where the program header of a kind is.
fn program_header(bytes: &[u8], kind: u32) -> usize {
    let mut headers = (word(bytes, 32) as usize..).step_by(56).take(half(bytes, 56));
    headers.find(|&at| bytes[at..at + 4] == kind.to_le_bytes()).expect("a program header of the kind")
}

/// Adds a section, behind what there is: its name, its contents, and all section headers anew.
fn add_section(bytes: &mut Vec<u8>, name: &str, contents: &[u8]) {
    const HEADER: usize = 64;
    let (at, count, of_names) = (word(bytes, 40) as usize, half(bytes, 60), half(bytes, 62));
    let mut headers = bytes[at..at + count * HEADER].to_vec();
    let names = of_names * HEADER;
    let (names_at, names_len) = (word(&headers, names + 24) as usize, word(&headers, names + 32) as usize);
    let mut all_names = bytes[names_at..names_at + names_len].to_vec();
    all_names.extend(name.bytes().chain([0]));
    set_word(&mut headers, names + 24, bytes.len() as u64);
    set_word(&mut headers, names + 32, all_names.len() as u64);
    bytes.extend(all_names);
    // Name and kind (PROGBITS), flags, address, offset, length, links, alignment, length of entries.
    let kind = names_len as u64 | 1 << 32;
    for word in [kind, 0, 0, bytes.len() as u64, contents.len() as u64, 0, 1, 0] {
        headers.extend(word.to_le_bytes());
    }
    bytes.extend(contents);
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    let place = bytes.len() as u64;
    set_word(bytes, 40, place);
    bytes[60..62].copy_from_slice(&(count as u16 + 1).to_le_bytes());
    bytes.extend(headers);
}
