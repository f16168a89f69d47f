//! Which libraries have taken the place of others: the same return address is another stack then. Pure.

use std::collections::{BTreeMap, BTreeSet};

use leakprobe_common::{mix, stack_id, stack_seed, variant_hash};

use crate::target::space::{AddressSpace, Backing, FileId, Mapping};

/// Mappings that are remembered. Beyond them a library can pass for one that was in its place.
const MAX_SEEN: usize = 4096;

/// Epochs whose variants are remembered. Stacks of earlier ones are named by what was mapped before and after alike.
const MAX_EPOCHS: usize = 4096;

/// Variants of one epoch that are remembered: objects that are added to it make more.
const MAX_IN_EPOCH: usize = 16;

/// The code that a program image has had mapped, in order of appearance.
#[derive(Debug, Default)]
pub struct Variants {
    generation: u32,
    seen: Vec<Seen>,
    /// By epoch of the code: the variants of what was mapped, the latest last.
    variants: BTreeMap<u32, Vec<u32>>,
}

/// A mapping of code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    start: u64,
    end: u64,
    file: FileId,
    offset: u64,
}

impl Seen {
    fn of(mapping: &Mapping) -> Option<Self> {
        match &mapping.backing {
            Backing::Object(object) if mapping.executable => Some(Self {
                start: mapping.start,
                end: mapping.end,
                file: object.id,
                offset: mapping.file_offset,
            }),
            _ => None,
        }
    }

    /// Which file is where. A look in the midst of the dynamic linker's work can find code mapped in another length.
    fn place(&self) -> (FileId, u64) {
        (self.file, self.start.wrapping_sub(self.offset))
    }

    /// Whether an address would be of other code.
    fn contradicts(&self, other: &Self) -> bool {
        self.start < other.end && other.start < self.end && self.place() != other.place()
    }
}

impl Variants {
    /// Takes in what is mapped in an epoch; the variant of it: 0 unless something has taken another's place.
    pub fn take_in(&mut self, generation: u32, epoch: u32, mapped: &AddressSpace) -> u32 {
        if self.generation != generation {
            *self = Self { generation, ..Self::default() };
        }
        for seen in mapped.mappings.iter().filter_map(Seen::of) {
            if self.seen.len() < MAX_SEEN && !self.seen.contains(&seen) {
                self.seen.push(seen);
            }
        }
        let variant = self.variant(mapped.mappings.iter());
        let variants = self.variants.entry(epoch).or_default();
        variants.retain(|&known| known != variant);
        variants.push(variant);
        if variants.len() > MAX_IN_EPOCH {
            variants.remove(0);
        }
        if self.variants.len() > MAX_EPOCHS {
            self.variants.pop_first();
        }
        variant
    }

    /// The variant of what was mapped in an epoch, as of the last look; `None` where that was not read.
    pub fn of(&self, generation: u32, epoch: u32) -> Option<u32> {
        self.variants.get(&epoch)?.last().copied().filter(|_| self.generation == generation)
    }

    /// The ID of a stack that has `id`, and was made in an epoch in which `space` was mapped: code that the stack does not
    /// come through does not tell it from others. `None` where that is the one that it has.
    pub fn own_id(
        &self,
        id: u64,
        (tgid, generation): (u32, u32),
        epoch: u32,
        frames: &[u64],
        space: &AddressSpace,
    ) -> Option<u64> {
        let variants = self.variants.get(&epoch).filter(|_| self.generation == generation)?;
        let hash = frames.iter().fold(stack_seed(tgid, generation), |hash, &frame| mix(hash, frame));
        let with = |variant| stack_id(variant_hash(hash, variant));
        // Where it was made in other code than is known of, it stays as it is.
        variants.iter().find(|&&all| all != 0 && with(all) == id)?;
        let has_frame = |mapping: &&Mapping| {
            // A return address can be the first one behind its function's code.
            frames.iter().any(|&frame| mapping.start <= frame && frame <= mapping.end)
        };
        Some(with(self.variant(space.mappings.iter().filter(has_frame)))).filter(|&own| own != id)
    }

    /// What tells mappings from others that were in their place before; 0 when they were the first there.
    fn variant<'a>(&self, mappings: impl Iterator<Item = &'a Mapping>) -> u32 {
        let mut variant = 0;
        for seen in mappings.filter_map(Seen::of) {
            let before = self.seen.iter().take_while(|other| other.place() != seen.place());
            let others: BTreeSet<_> =
                before.filter(|other| other.contradicts(&seen)).map(Seen::place).collect();
            if !others.is_empty() {
                variant = mix(mix(variant, seen.start), others.len() as u64);
            }
        }
        // The upper half is the better mixed one. 0 would say that nothing has changed.
        if variant == 0 { 0 } else { ((variant >> 32) as u32).max(1) }
    }
}

#[cfg(test)]
mod tests {
    use std::{path::PathBuf, sync::Arc};

    use super::*;
    use crate::target::space::Object;

    fn space(mappings: &[(u64, u64, u64)]) -> AddressSpace {
        let mapping = |&(start, end, inode): &(u64, u64, u64)| Mapping {
            start,
            end,
            file_offset: 0,
            executable: true,
            backing: Backing::Object(Arc::new(Object {
                id: FileId { device: 1, inode },
                path: PathBuf::new(),
                file: Err(String::new()),
                deleted: false,
                root: None,
            })),
        };
        AddressSpace { mappings: mappings.iter().map(mapping).collect() }
    }

    fn id(frames: &[u64], variant: u32) -> u64 {
        let hash = frames.iter().fold(stack_seed(5, 0), |hash, &frame| mix(hash, frame));
        stack_id(variant_hash(hash, variant))
    }

    #[test]
    fn what_takes_anothers_place_is_a_variant_and_what_comes_back_is_the_first_again() {
        let mut variants = Variants::default();
        let (one, other) = (space(&[(0, 10, 1), (50, 60, 2)]), space(&[(0, 10, 1), (55, 80, 3)]));
        assert_eq!(variants.take_in(0, 0, &one), 0);
        let variant = variants.take_in(0, 0, &other);
        assert_ne!(variant, 0);
        assert_eq!(variants.take_in(0, 0, &one), 0);
        assert_eq!(variants.take_in(0, 0, &other), variant);
        assert_eq!(variants.take_in(0, 0, &space(&[(0, 10, 1)])), 0);
        // A library beside all others changes nothing, and a new program has no past.
        assert_eq!(variants.take_in(0, 0, &space(&[(0, 10, 1), (90, 95, 4)])), 0);
        assert_eq!(variants.take_in(1, 0, &other), 0);
    }

    #[test]
    fn code_that_is_seen_while_it_is_being_mapped_is_the_same() {
        // The whole file with the rights of its first segment, as the dynamic linker maps it at first.
        let (half, one) = (space(&[(0, 10, 1), (50, 90, 2)]), space(&[(0, 10, 1), (50, 60, 2)]));
        let (half_other, other) = (space(&[(0, 10, 1), (50, 95, 3)]), space(&[(0, 10, 1), (50, 80, 3)]));
        let mut variants = Variants::default();
        assert_eq!([&half, &one].map(|space| variants.take_in(0, 0, space)), [0, 0]);
        let variant = variants.take_in(0, 2, &half_other);
        assert_ne!(variant, 0);
        assert_eq!(variants.take_in(0, 2, &other), variant);
        assert_eq!([&one, &half].map(|space| variants.take_in(0, 4, space)), [0, 0]);
        assert_eq!(variants.take_in(0, 6, &space(&[(0, 10, 1), (50, 70, 3)])), variant, "in any length");
    }

    #[test]
    fn a_stack_made_before_more_code_was_added_has_its_own_id_still() {
        let mut variants = Variants::default();
        variants.take_in(0, 0, &space(&[(0, 10, 1), (50, 60, 2), (70, 80, 4)]));
        let first = variants.take_in(0, 2, &space(&[(0, 10, 1), (50, 60, 3)]));
        let now = space(&[(0, 10, 1), (50, 60, 3), (70, 80, 5)]);
        assert_ne!(variants.take_in(0, 2, &now), first);
        let beside = [5, 7];
        assert_eq!(variants.own_id(id(&beside, first), (5, 0), 2, &beside, &now), Some(id(&beside, 0)));
    }

    #[test]
    fn only_stacks_that_come_through_the_code_in_anothers_place_are_others() {
        let mut variants = Variants::default();
        variants.take_in(0, 0, &space(&[(0, 10, 1), (50, 60, 2)]));
        let now = space(&[(0, 10, 1), (50, 60, 3)]);
        let variant = variants.take_in(0, 0, &now);
        let (through, beside) = ([55, 5], [7, 5]);
        assert_eq!(variants.own_id(id(&through, variant), (5, 0), 0, &through, &now), None);
        assert_eq!(variants.own_id(id(&beside, variant), (5, 0), 0, &beside, &now), Some(id(&beside, 0)));
        assert_eq!(variants.own_id(id(&beside, 0), (5, 0), 0, &beside, &now), None, "made before");
        assert_eq!(variants.own_id(id(&beside, variant), (5, 1), 0, &beside, &now), None, "another program");
    }

    #[test]
    fn of_two_in_others_places_the_one_that_a_stack_comes_through_counts() {
        let mut variants = Variants::default();
        variants.take_in(0, 0, &space(&[(0, 10, 1), (50, 60, 2), (70, 80, 4)]));
        let one = space(&[(0, 10, 1), (50, 60, 3), (70, 80, 4)]);
        let first = variants.take_in(0, 0, &one);
        let both = space(&[(0, 10, 1), (50, 60, 3), (70, 80, 5)]);
        let second = variants.take_in(0, 0, &both);
        assert_ne!(first, second);
        let frames = [55, 5];
        assert_eq!(variants.own_id(id(&frames, second), (5, 0), 0, &frames, &both), Some(id(&frames, first)));
    }
}
