//! All elements of a hash map, in chunks: by batch operations, or key by key where the kernel has none.

use std::{collections::HashSet, io, os::fd::BorrowedFd};

use bytes::{Bytes, BytesMut};

use crate::sys::bpf::{self, Batch};

/// `ENOTSUPP`, which is not in libc: what kernels say of maps without batches.
const ENOTSUPP: i32 = 524;

/// Elements asked for at once. Their keys and values are below 512 KiB for outstanding blocks.
const ROOM: usize = 8192;

/// Ceiling for a single hash bucket's elements; a bucket beyond this is a broken map.
const MOST_ROOM: usize = 1 << 20;

/// A hash map's elements as bytes.
#[derive(Clone, Copy)]
pub struct Elements<'a> {
    /// The map.
    pub map: BorrowedFd<'a>,
    /// Bytes of a key.
    pub key_size: usize,
    /// Bytes of a value, a multiple of 8.
    pub value_size: usize,
    /// The map's capacity: no reading goes far beyond it, whatever programs do meanwhile.
    pub max_entries: usize,
}

impl Elements<'_> {
    /// Calls `chunk(keys, values)` for all elements, several at a time. An element that is there from
    /// beginning to end is seen exactly once; one that comes or goes meanwhile, at most once.
    ///
    /// # Errors
    /// What the kernel said, if it was not that it has no batches.
    pub fn read(self, chunk: impl FnMut(Bytes, Bytes)) -> io::Result<()> {
        let mut chunk = chunk;
        match self.read_in_batches(&mut chunk) {
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | ENOTSUPP)) => {
                self.read_by_key(&mut chunk)
            }
            result => result,
        }
    }

    /// As [`Elements::read`], by `BPF_MAP_LOOKUP_BATCH` (Linux 5.6).
    pub fn read_in_batches(self, chunk: &mut impl FnMut(Bytes, Bytes)) -> io::Result<()> {
        let mut room = ROOM.min(self.max_entries.max(1));
        let mut position = None;
        loop {
            let mut keys = BytesMut::zeroed(room * self.key_size);
            let mut values = BytesMut::zeroed(room * self.value_size);
            let batch = bpf::lookup_batch(
                self.map,
                position,
                (&mut keys, self.key_size),
                (&mut values, self.value_size),
                room,
            )?;
            let (count, next) = match batch {
                Batch::More(count, next) => (count, Some(next)),
                Batch::End(count) => (count, None),
                Batch::TooSmall if room < MOST_ROOM => {
                    room *= 2;
                    continue;
                }
                Batch::TooSmall => {
                    return Err(io::Error::other("one hash bucket holds over a million elements"));
                }
            };
            if count > 0 {
                keys.truncate(count * self.key_size);
                values.truncate(count * self.value_size);
                chunk(keys.freeze(), values.freeze());
            }
            match next {
                Some(next) => position = Some(next),
                None => return Ok(()),
            }
        }
    }

    /// As [`Elements::read`], with two system calls an element.
    pub fn read_by_key(self, chunk: &mut impl FnMut(Bytes, Bytes)) -> io::Result<()> {
        // When the key that was read last is gone, the kernel starts again from the first.
        let mut seen: HashSet<Vec<u8>> = HashSet::new();
        let mut steps = 0;
        let mut key: Option<Vec<u8>> = None;
        let mut next = vec![0; self.key_size];
        let (mut keys, mut values) = (BytesMut::new(), BytesMut::new());
        let mut value = vec![0; self.value_size];
        while steps < 4 * self.max_entries && bpf::next_key(self.map, key.as_deref(), &mut next)? {
            steps += 1;
            if seen.insert(next.clone()) && bpf::lookup(self.map, &next, &mut value)? {
                keys.extend_from_slice(&next);
                values.extend_from_slice(&value);
                if keys.len() >= ROOM * self.key_size {
                    chunk(keys.split().freeze(), values.split().freeze());
                }
            }
            key = Some(next.clone());
        }
        if !keys.is_empty() {
            chunk(keys.freeze(), values.freeze());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, os::fd::AsFd as _};

    use aya::maps::{HashMap, Map, MapData};

    use super::*;

    fn pairs(keys: &[u8], values: &[u8]) -> Vec<(u64, u64)> {
        let word = |bytes: &[u8]| u64::from_ne_bytes(bytes.try_into().expect("8 bytes"));
        keys.chunks(8).zip(values.chunks(8)).map(|(key, value)| (word(key), word(value))).collect()
    }

    /// A real map of the kernel's, whose truth this test knows.
    #[test]
    fn both_ways_of_reading_find_every_element_once() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: creating a BPF map needs root, and this is uid {}", nix::unistd::geteuid());
            return;
        }
        let entries = 20_000u64;
        let truth: BTreeMap<u64, u64> = (0..entries).map(|n| (n * 0x1_0001, n * n)).collect();
        let definition = aya_obj::Map::new_from_params(1, 8, 8, entries as u32, 0);
        let mut map = Map::HashMap(MapData::create(definition, "batch_test", None).expect("a map"));
        let mut typed = HashMap::<_, u64, u64>::try_from(&mut map).expect("its types");
        for (key, value) in &truth {
            typed.insert(key, value, 0).expect("room");
        }
        let Map::HashMap(data) = &map else { unreachable!() };
        let elements =
            Elements { map: data.fd().as_fd(), key_size: 8, value_size: 8, max_entries: entries as usize };
        let truth: Vec<_> = truth.into_iter().collect();
        let mut found = Vec::new();
        elements.read_in_batches(&mut |keys, values| found.extend(pairs(&keys, &values))).expect("batches");
        found.sort_unstable();
        assert_eq!(found, truth);
        found.clear();
        elements.read_by_key(&mut |keys, values| found.extend(pairs(&keys, &values))).expect("keys");
        found.sort_unstable();
        assert_eq!(found, truth);
    }
}
