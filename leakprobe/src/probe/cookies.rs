//! Cookies by address, for kernels whose probes carry none (before 5.15). Pure: what goes into the map.

use std::collections::{BTreeMap, HashMap};

use leakprobe_common::{Cookie, PAGE_OFFSET, ProbeKey};

use super::attach::PlannedProbe;
use crate::target::space::{AddressSpace, Backing, FileId};

/// Room for probes in the kernel's map, of all processes together.
pub const ROOM: u32 = 16_384;

/// Every probe that was planned, by process.
#[derive(Debug, Default)]
pub struct Cookies(HashMap<u32, Vec<(FileId, PlannedProbe)>>);

impl Cookies {
    /// Takes in the probes of an object of a process, before they are attached: those whose program asks for its cookie.
    pub fn learn(&mut self, tgid: u32, object: FileId, probes: &[PlannedProbe]) {
        let known = self.0.entry(tgid).or_default();
        let asking = probes.iter().filter(|probe| probe.cookie != Cookie::LEAVE);
        known.extend(asking.map(|&probe| (object, probe)));
    }

    /// Forgets what a process had, whose number another one has now.
    pub fn forget(&mut self, tgid: u32) {
        self.0.remove(&tgid);
    }

    /// What the map must hold for a process, in the order in which it is to be written: an offset is marked as
    /// ambiguous after the whole addresses of its probes are known, as far as `space` has them.
    pub fn entries(&self, tgid: u32, space: &AddressSpace) -> Vec<(ProbeKey, Cookie)> {
        let key = |address| ProbeKey { address, tgid, _pad: 0 };
        let mut by_offset: BTreeMap<u64, Vec<&(FileId, PlannedProbe)>> = BTreeMap::new();
        for probe in self.0.get(&tgid).into_iter().flatten() {
            by_offset.entry(probe.1.file_offset & PAGE_OFFSET).or_default().push(probe);
        }
        let mut entries = Vec::new();
        for (offset, probes) in by_offset {
            let first = probes[0].1.cookie;
            if probes.iter().all(|(_, probe)| probe.cookie == first) {
                entries.push((key(offset), first));
                continue;
            }
            for (object, probe) in probes {
                let addresses = addresses(space, *object, probe.file_offset);
                entries.extend(addresses.map(|address| (key(address), probe.cookie)));
            }
            entries.push((key(offset), Cookie::AMBIGUOUS));
        }
        entries
    }
}

/// Where a byte of a file is mapped as code.
fn addresses(space: &AddressSpace, object: FileId, file_offset: u64) -> impl Iterator<Item = u64> {
    let mappings = space.mappings.iter().filter(move |mapping| {
        mapping.executable && matches!(&mapping.backing, Backing::Object(mapped) if mapped.id == object)
    });
    mappings.filter_map(move |mapping| {
        let address = mapping.start.checked_add(file_offset.checked_sub(mapping.file_offset)?)?;
        (address < mapping.end).then_some(address)
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::target::space::{Mapping, Object};

    const LIBC: FileId = FileId { device: 1, inode: 2 };
    const OTHER: FileId = FileId { device: 1, inode: 3 };

    fn probe(file_offset: u64, cookie: u64) -> PlannedProbe {
        PlannedProbe { file_offset, cookie: Cookie(cookie) }
    }

    fn space(mappings: &[(u64, u64, u64, FileId)]) -> AddressSpace {
        let object = |id| Object {
            id,
            path: "/lib/x.so".into(),
            file: Err("not opened".into()),
            deleted: false,
            root: None,
        };
        let mapping = |&(start, end, file_offset, id): &(u64, u64, u64, FileId)| Mapping {
            start,
            end,
            file_offset,
            executable: true,
            backing: Backing::Object(Arc::new(object(id))),
        };
        AddressSpace { mappings: mappings.iter().map(mapping).collect() }
    }

    fn entries(cookies: &Cookies, tgid: u32, space: &AddressSpace) -> Vec<(u64, u64)> {
        let entries = cookies.entries(tgid, space);
        assert!(entries.iter().all(|(key, _)| key.tgid == tgid));
        entries.into_iter().map(|(key, cookie)| (key.address, cookie.0)).collect()
    }

    #[test]
    fn a_page_offset_of_one_probe_needs_no_mapping() {
        let mut cookies = Cookies::default();
        cookies.learn(7, LIBC, &[probe(0x9_9123, 11), probe(0x9_8456, 22)]);
        assert_eq!(entries(&cookies, 7, &space(&[])), [(0x123, 11), (0x456, 22)]);
        assert_eq!(entries(&cookies, 8, &space(&[])), []);
    }

    #[test]
    fn probes_that_share_one_are_told_apart_by_whole_addresses_which_come_first() {
        let mut cookies = Cookies::default();
        cookies.learn(7, LIBC, &[probe(0x2123, 11)]);
        cookies.learn(7, OTHER, &[probe(0x5123, 33)]);
        let space = space(&[
            (0x10_0000, 0x10_3000, 0x1000, LIBC),
            (0x20_0000, 0x20_1000, 0x1000, LIBC), // ends before the probe
            (0x30_0000, 0x30_1000, 0x3000, LIBC), // begins behind it
            (0x40_0000, 0x40_6000, 0x2000, OTHER),
            (0x50_0000, 0x50_6000, 0x2000, OTHER), // a second mapping
        ]);
        assert_eq!(
            entries(&cookies, 7, &space),
            [(0x10_1123, 11), (0x40_3123, 33), (0x50_3123, 33), (0x123, 0)]
        );
    }

    #[test]
    fn return_instructions_need_none() {
        let mut cookies = Cookies::default();
        cookies.learn(7, LIBC, &[probe(0x2123, 11), probe(0x5123, Cookie::LEAVE.0)]);
        assert_eq!(entries(&cookies, 7, &space(&[])), [(0x123, 11)]);
    }

    #[test]
    fn the_same_cookie_is_not_ambiguous() {
        let mut cookies = Cookies::default();
        cookies.learn(7, LIBC, &[probe(0x2123, 11)]);
        cookies.learn(7, OTHER, &[probe(0x5123, 11)]);
        assert_eq!(entries(&cookies, 7, &space(&[])), [(0x123, 11)]);
    }
}
