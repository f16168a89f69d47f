//! Records from the bytes of a map: pure, and the inverse of what the BPF programs write.

use bytes::{Buf, Bytes};
use leakprobe_common::{
    Block, BlockKey, COPY_PAGE_BYTES, COPY_PAGES, Event, EventKind, KernelBlock, KernelKey, LIFETIME_BUCKETS,
    MAX_FRAMES, RangeEvent, RangeOperation, Site, StackCopy, StackEnd,
};

use crate::unwind::walk::StackMemory;

/// Bytes of one [`BlockKey`].
pub const BLOCK_KEY_BYTES: usize = size_of::<BlockKey>();
/// Bytes of one [`Block`].
pub const BLOCK_BYTES: usize = size_of::<Block>();
/// Bytes of one [`Site`].
pub const SITE_BYTES: usize = size_of::<Site>();

/// The next key; `None` when fewer bytes are left than one has.
pub fn block_key(bytes: &mut Bytes) -> Option<BlockKey> {
    (bytes.remaining() >= BLOCK_KEY_BYTES).then(|| BlockKey {
        address: bytes.get_u64_ne(),
        tgid: bytes.get_u32_ne(),
        _pad: bytes.get_u32_ne(),
    })
}

/// The next block; `None` when fewer bytes are left than one has.
pub fn block(bytes: &mut Bytes) -> Option<Block> {
    (bytes.remaining() >= BLOCK_BYTES).then(|| Block {
        size: bytes.get_u64_ne(),
        allocated_ns: bytes.get_u64_ne(),
        stack: bytes.get_u64_ne(),
        tid: bytes.get_u32_ne(),
        generation: bytes.get_u32_ne(),
        weight: bytes.get_u32_ne(),
        family: bytes.get_u32_ne(),
    })
}

/// Bytes of one [`KernelKey`].
pub const KERNEL_KEY_BYTES: usize = size_of::<KernelKey>();

/// Bytes of one [`KernelBlock`].
pub const KERNEL_BLOCK_BYTES: usize = size_of::<KernelBlock>();

/// The next key of the kernel's memory; `None` when fewer bytes are left than one has.
pub fn kernel_key(bytes: &mut Bytes) -> Option<KernelKey> {
    (bytes.remaining() >= KERNEL_KEY_BYTES).then(|| KernelKey(bytes.get_u64_ne()))
}

/// The next piece of the kernel's memory; `None` when fewer bytes are left than one has.
pub fn kernel_block(bytes: &mut Bytes) -> Option<KernelBlock> {
    if bytes.remaining() < KERNEL_BLOCK_BYTES {
        return None;
    }
    let mut block = KernelBlock {
        size: bytes.get_u64_ne(),
        allocated_ns: bytes.get_u64_ne(),
        site: bytes.get_u64_ne(),
        tgid: bytes.get_u32_ne(),
        weight: bytes.get_u32_ne(),
        comm: [0; 16],
    };
    bytes.copy_to_slice(&mut block.comm);
    Some(block)
}

/// The next site; `None` when fewer bytes are left than one has.
pub fn site(bytes: &mut Bytes) -> Option<Site> {
    if bytes.remaining() < SITE_BYTES {
        return None;
    }
    let mut site = Site {
        allocated_blocks: bytes.get_u64_ne(),
        allocated_bytes: bytes.get_u64_ne(),
        freed_blocks: bytes.get_u64_ne(),
        freed_bytes: bytes.get_u64_ne(),
        max_lifetime_ns: bytes.get_u64_ne(),
        missed_frees: bytes.get_u64_ne(),
        undescribed_blocks: bytes.get_u64_ne(),
        lifetimes: [0; LIFETIME_BUCKETS],
    };
    for bucket in &mut site.lifetimes {
        *bucket = bytes.get_u64_ne();
    }
    Some(site)
}

/// What a ring-buffer record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// A stack was seen for the first time, in this process.
    NewStack {
        /// Process.
        tgid: u32,
        /// Its ID.
        stack: u64,
    },
    /// The process has forked: its child has its breakpoints.
    Fork {
        /// Process.
        tgid: u32,
    },
    /// With `--follow`: the process has made another one, which is a target already.
    Born {
        /// Process.
        tgid: u32,
        /// The other one.
        child: u32,
        /// The number of its program image.
        born: u32,
        /// When, `CLOCK_MONOTONIC` nanoseconds.
        at_ns: u64,
    },
    /// A process has replaced its program.
    Exec {
        /// Process.
        tgid: u32,
        /// When, `CLOCK_MONOTONIC` nanoseconds.
        at_ns: u64,
        /// Its new generation.
        generation: u32,
        /// Whether its probes may have gone with one of its threads: those of the kernel's links are the first one's, and events
        /// that are inherited can be any one's.
        is_replaced: bool,
    },
    /// The dynamic linker has mapped or unmapped objects.
    CodeChange {
        /// Process.
        tgid: u32,
        /// Epoch of its code from then on.
        epoch: u32,
    },
    /// Its mappings changed.
    Range(RangeOperation, RangeEvent),
}

/// Decodes a ring-buffer record; `None` for one that no program of ours writes.
pub fn message(record: &[u8]) -> Option<Message> {
    let mut bytes = record;
    if bytes.remaining() < size_of::<Event>() {
        return None;
    }
    let head = Event {
        kind: bytes.get_u32_ne(),
        tgid: bytes.get_u32_ne(),
        at_ns: bytes.get_u64_ne(),
        a: bytes.get_u64_ne(),
    };
    match head.kind {
        kind if kind == EventKind::NewStack as u32 => {
            Some(Message::NewStack { tgid: head.tgid, stack: head.a })
        }
        kind if kind == EventKind::Fork as u32 => Some(Message::Fork { tgid: head.tgid }),
        kind if kind == EventKind::Born as u32 => Some(Message::Born {
            tgid: head.tgid,
            child: head.a as u32,
            born: (head.a >> 32) as u32,
            at_ns: head.at_ns,
        }),
        kind if kind == EventKind::Exec as u32 => Some(Message::Exec {
            tgid: head.tgid,
            at_ns: head.at_ns,
            generation: head.a as u32,
            is_replaced: head.a >> 32 != 0,
        }),
        kind if kind == EventKind::CodeChange as u32 => {
            Some(Message::CodeChange { tgid: head.tgid, epoch: u32::try_from(head.a).ok()? })
        }
        kind if kind == EventKind::Range as u32 => {
            if bytes.remaining() < size_of::<RangeEvent>() - size_of::<Event>() {
                return None;
            }
            let event = RangeEvent {
                head,
                address: bytes.get_u64_ne(),
                bytes: bytes.get_u64_ne(),
                operation: bytes.get_u32_ne(),
                tid: bytes.get_u32_ne(),
                generation: bytes.get_u32_ne(),
                _pad: bytes.get_u32_ne(),
            };
            Some(Message::Range(RangeOperation::from_raw(event.operation)?, event))
        }
        _ => None,
    }
}

/// A [`StackCopy`] without what is not valid of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopiedStack {
    /// Process.
    pub tgid: u32,
    /// Which of its programs.
    pub generation: u32,
    /// The stack's ID, by the walk that the programs made.
    pub id: u64,
    /// The frames that it found.
    pub frames: Vec<u64>,
    /// How it ended.
    pub end: StackEnd,
    /// Whether it followed frame pointers.
    pub guessed: bool,
    /// Whether it came through code that was not described yet.
    pub undescribed: bool,
    /// Epoch of the code, see [`leakprobe_common::next_epoch`].
    pub epoch: u32,
    /// What it was made from.
    pub memory: StackMemory,
}

/// Decodes a copy of a stack; `None` for a record that no program of ours writes. `record` is cut to what is valid of it.
pub fn copied_stack(record: &mut &[u8]) -> Option<CopiedStack> {
    let mut bytes = *record;
    if bytes.len() != size_of::<StackCopy>() {
        return None;
    }
    let (tgid, generation) = (bytes.get_u32_ne(), bytes.get_u32_ne());
    let (len, end, guessed, _pad) =
        (bytes.get_u32_ne(), bytes.get_u32_ne(), bytes.get_u32_ne(), bytes.get_u32_ne());
    let mut frames: Vec<u64> = (0..MAX_FRAMES).map(|_| bytes.get_u64_ne()).collect();
    frames.truncate(len as usize);
    let id = bytes.get_u64_ne();
    let (ip, sp, fp) = (bytes.get_u64_ne(), bytes.get_u64_ne(), bytes.get_u64_ne());
    let (link, mask) = (bytes.get_u64_ne(), bytes.get_u64_ne());
    let undescribed = bytes.get_u64_ne() != 0;
    let _sampled = bytes.get_u64_ne();
    let epoch = u32::try_from(bytes.get_u64_ne()).ok()?;
    let pages = usize::try_from(bytes.get_u64_ne()).ok().filter(|&pages| pages <= COPY_PAGES)?;
    let memory = bytes.get(..pages * COPY_PAGE_BYTES)?.to_vec();
    *record = &record[..record.len() - (COPY_PAGES - pages) * COPY_PAGE_BYTES];
    let base = sp & !(COPY_PAGE_BYTES as u64 - 1);
    let memory = StackMemory { ip, sp, fp, link, mask, base, memory };
    let (end, guessed) = (StackEnd::from_raw(end), guessed != 0);
    Some(CopiedStack { tgid, generation, id, frames, end, guessed, undescribed, epoch, memory })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[u64]) -> Bytes {
        words.iter().flat_map(|word| word.to_ne_bytes()).collect()
    }

    #[test]
    fn a_block_is_read_field_by_field() {
        let two = |low: u64, high: u64| low | high << 32;
        let mut bytes = words(&[100, 7, 42, two(11, 2), two(1, 3), 0xdead]);
        let read = block(&mut bytes);
        let truth =
            Block { size: 100, allocated_ns: 7, stack: 42, tid: 11, generation: 2, weight: 1, family: 3 };
        assert_eq!(read, Some(truth));
        assert_eq!(block(&mut bytes), None, "8 bytes are no block");
    }

    #[test]
    fn a_piece_of_the_kernels_memory_is_read_field_by_field() {
        let mut bytes = words(&[64, 7, 42, 11 | 2 << 32, u64::from_ne_bytes(*b"kworker/"), 0, 1]);
        let read = kernel_block(&mut bytes).expect("whole");
        assert_eq!((read.size, read.allocated_ns, read.site, read.tgid, read.weight), (64, 7, 42, 11, 2));
        assert_eq!(&read.comm, b"kworker/\0\0\0\0\0\0\0\0");
        assert_eq!(kernel_block(&mut bytes), None, "8 bytes are no block");
    }

    #[test]
    fn a_site_keeps_its_histogram_in_order() {
        let mut numbers: Vec<u64> = (1..=7).collect();
        numbers.extend(100..100 + LIFETIME_BUCKETS as u64);
        let site = site(&mut words(&numbers)).expect("whole");
        assert_eq!(
            (site.allocated_blocks, site.freed_bytes, site.max_lifetime_ns, site.undescribed_blocks),
            (1, 4, 5, 7)
        );
        assert_eq!(site.lifetimes[39], 139);
    }

    #[test]
    fn a_copied_stack_has_the_pages_that_are_valid() {
        let mut numbers = vec![11 | 2 << 32, 1 | 2 << 32, 0, 0x40];
        numbers.resize(size_of::<leakprobe_common::Stack>() / 8, 0);
        numbers.extend([42, 0x40, 0x7010, 9, 0, u64::MAX, 1, 0, 6, 1, 0xabc]);
        numbers.resize(size_of::<StackCopy>() / 8, u64::MAX);
        let bytes = words(&numbers);
        let mut record = &bytes[..];
        let copied = copied_stack(&mut record).expect("whole");
        assert_eq!(
            (copied.tgid, copied.generation, copied.id, copied.undescribed, copied.epoch),
            (11, 2, 42, true, 6)
        );
        assert_eq!((copied.end, copied.guessed, &copied.frames[..]), (StackEnd::Lost, false, &[0x40][..]));
        let StackMemory { ip, sp, fp, base, ref memory, .. } = copied.memory;
        assert_eq!((ip, sp, fp, base, memory.len()), (0x40, 0x7010, 9, 0x7000, 4096));
        assert_eq!((memory[0], memory[1]), (0xbc, 0x0a));
        assert_eq!(record.len(), size_of::<StackCopy>() - 8 * 4096);
        assert_eq!(copied_stack(&mut &bytes[8..]), None, "cut short");
    }

    #[test]
    fn a_record_of_unknown_kind_or_cut_short_is_none() {
        assert_eq!(message(&words(&[99, 0, 0])), None);
        assert_eq!(message(&words(&[1])), None);
        assert_eq!(message(&words(&[3, 0, 0, 0])), None);
        assert_eq!(message(&words(&[1 | 5 << 32, 0, 77])), Some(Message::NewStack { tgid: 5, stack: 77 }));
    }
}
