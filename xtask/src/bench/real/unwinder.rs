//! Another unwinder: framehop, over the objects that a process has mapped.

use std::{collections::HashMap, fs, ops::Range, sync::Arc};

use anyhow::Context as _;
use framehop::{
    ExplicitModuleSectionInfo, FrameAddress, Module, Unwinder as _,
    x86_64::{CacheX86_64, UnwindRegsX86_64, UnwinderX86_64},
};
use leakprobe_common::MAX_FRAMES;
use object::{Object as _, ObjectSection as _, ObjectSegment as _};

use super::copies::Copy;

/// Bytes of a program's entry point.
const ENTRY_BYTES: u64 = 64;

type Bytes = Arc<[u8]>;

/// The unwinder of one process.
pub struct Another {
    pid: u32,
    unwinder: UnwinderX86_64<Bytes>,
    cache: CacheX86_64,
    /// Code that is mapped, by its first address.
    known: HashMap<u64, Mapped>,
    /// Where what is mapped was read last, and did not hold an address.
    strange: Vec<u64>,
}

struct Mapped {
    range: Range<u64>,
    name: String,
    /// What is added to an address in the object.
    bias: u64,
    /// Address in the object of its entry point.
    entry: u64,
}

/// How far another unwinder came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// To the stack's end, or what it takes for that.
    Ended,
    /// To the copy's.
    BeyondCopy,
}

impl Another {
    /// Of a process, of which nothing is known yet.
    pub fn new(pid: u32) -> Self {
        let (unwinder, cache) = (UnwinderX86_64::new(), CacheX86_64::new());
        Self { pid, unwinder, cache, known: HashMap::new(), strange: Vec::new() }
    }

    /// Reads what is mapped, where addresses are in nothing that is known.
    pub fn learn(&mut self, frames: &[u64]) -> anyhow::Result<()> {
        let strange: Vec<u64> = frames
            .iter()
            .copied()
            .filter(|&frame| self.mapped(frame).is_none() && !self.strange.contains(&(frame >> 12)))
            .collect();
        if strange.is_empty() {
            return Ok(());
        }
        let path = format!("/proc/{}/maps", self.pid);
        let maps = fs::read_to_string(&path).with_context(|| format!("failed to read {path}"))?;
        for line in maps.lines() {
            let mut words = line.split_whitespace();
            let (Some(range), Some(rights), Some(offset)) = (words.next(), words.next(), words.next()) else {
                continue;
            };
            let name = words.nth(2).unwrap_or_default();
            if !rights.contains('x') || (!name.starts_with('/') && name != "[vdso]") {
                continue;
            }
            let hex = |text: &str| u64::from_str_radix(text, 16).ok();
            let (start, end) =
                range.split_once('-').and_then(|(a, b)| Some((hex(a)?, hex(b)?))).unwrap_or_default();
            let offset = hex(offset).unwrap_or_default();
            if !self.known.contains_key(&start) {
                self.add(start..end, offset, name).with_context(|| format!("failed to read {name}"))?;
            }
        }
        // JIT code stays strange.
        let still =
            strange.into_iter().filter(|&frame| self.mapped(frame).is_none()).map(|frame| frame >> 12);
        self.strange.extend(still.collect::<Vec<_>>());
        Ok(())
    }

    fn add(&mut self, range: Range<u64>, offset: u64, name: &str) -> anyhow::Result<()> {
        let bytes: Bytes = if name == "[vdso]" {
            use std::os::unix::fs::FileExt as _;
            let mut bytes = vec![0; usize::try_from(range.end - range.start)?];
            fs::File::open(format!("/proc/{}/mem", self.pid))?.read_exact_at(&mut bytes, range.start)?;
            bytes.into()
        } else {
            fs::read(format!("/proc/{}/map_files/{:x}-{:x}", self.pid, range.start, range.end))?.into()
        };
        let file = object::File::parse(&bytes[..])?;
        let segment = file.segments().find(|segment| {
            let (from, len) = segment.file_range();
            (from & !0xfff..from + len).contains(&offset)
        });
        let segment = segment.context("a mapping of no segment")?;
        let bias = range
            .start
            .wrapping_sub(offset)
            .wrapping_add(segment.file_range().0)
            .wrapping_sub(segment.address());
        let data = |name: &str| {
            let section = file.section_by_name(name)?;
            Some((section.address()..section.address() + section.size(), Bytes::from(section.data().ok()?)))
        };
        let (frame, index, text) = (data(".eh_frame"), data(".eh_frame_hdr"), data(".text"));
        let info = ExplicitModuleSectionInfo {
            base_svma: 0,
            text_svma: text.as_ref().map(|text| text.0.clone()),
            eh_frame_svma: frame.as_ref().map(|frame| frame.0.clone()),
            eh_frame: frame.map(|frame| frame.1),
            eh_frame_hdr_svma: index.as_ref().map(|index| index.0.clone()),
            eh_frame_hdr: index.map(|index| index.1),
            ..ExplicitModuleSectionInfo::default()
        };
        let entry = file.entry();
        self.unwinder.add_module(Module::new(name.to_owned(), range.clone(), bias, info));
        self.known.insert(range.start, Mapped { range, name: name.to_owned(), bias, entry });
        Ok(())
    }

    fn mapped(&self, address: u64) -> Option<&Mapped> {
        self.known.values().find(|mapped| mapped.range.contains(&address))
    }

    /// Unwinds a copy.
    pub fn unwind(&mut self, copy: &Copy) -> (Vec<u64>, Outcome) {
        let mut registers = UnwindRegsX86_64::new(copy.frames[0], copy.sp, copy.fp);
        let mut frames = vec![copy.frames[0]];
        let mut outcome = Outcome::Ended;
        let mut read = |address| copy.word(address).ok_or(());
        // The first address, too, is behind a call.
        while frames.len() < MAX_FRAMES
            && let Some(at) = frames.last().copied().and_then(FrameAddress::from_return_address)
        {
            match self.unwinder.unwind_frame(at, &mut registers, &mut self.cache, &mut read) {
                Ok(Some(caller)) if caller != 0 => frames.push(caller),
                Ok(_) => break,
                Err(framehop::Error::CouldNotReadStack(address)) if address > copy.sp => {
                    outcome = Outcome::BeyondCopy;
                    break;
                }
                Err(_) => break,
            }
        }
        (frames, outcome)
    }

    /// Follows frame pointers over a copy.
    pub fn by_frame_pointers(&self, copy: &Copy) -> Vec<u64> {
        let mut frames = vec![copy.frames[0]];
        let (mut fp, mut least) = (copy.fp, copy.sp);
        while frames.len() < MAX_FRAMES && fp >= least && fp % 8 == 0 {
            let (Some(next), Some(caller)) = (copy.word(fp), copy.word(fp + 8)) else { break };
            if caller == 0 {
                break;
            }
            frames.push(caller);
            (least, fp) = (fp + 16, next);
        }
        frames
    }

    /// Whether an address is in a function where a program or a thread begins: a program's or the loader's entry point,
    /// or one that the other unwinder takes for the outermost one of libc.
    pub fn is_start(&mut self, address: u64) -> bool {
        let Some(mapped) = self.mapped(address) else { return false };
        let within = address.wrapping_sub(mapped.bias);
        if mapped.entry != 0 && (mapped.entry..mapped.entry + ENTRY_BYTES).contains(&within) {
            return true;
        }
        let file = mapped.name.rsplit('/').next().unwrap_or_default();
        if !["libc.so", "libc-2.", "libpthread", "ld-musl"].iter().any(|name| file.starts_with(name)) {
            return false;
        }
        // Of a function that has a caller, it would read the return address.
        let mut registers = UnwindRegsX86_64::new(address, 0x1000, 0x2000);
        let mut read = |_| Err(());
        let Some(at) = FrameAddress::from_return_address(address) else { return false };
        matches!(self.unwinder.unwind_frame(at, &mut registers, &mut self.cache, &mut read), Ok(None))
    }

    /// `libc.so.6+0x1234`
    pub fn place(&self, address: u64) -> String {
        match self.mapped(address) {
            Some(mapped) => {
                let file = mapped.name.rsplit('/').next().unwrap_or_default();
                format!("{file}+{:#x}", address.wrapping_sub(mapped.bias))
            }
            None => format!("{address:#x}"),
        }
    }
}
