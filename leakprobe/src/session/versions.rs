//! What a process has had mapped, version by version: libraries take each other's place, and a stack's frames are named by
//! what was there when it was made. Pure.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
};

use crate::target::space::AddressSpace;

/// Versions that are kept: the first one, which most stacks are of, and the latest.
const MAX_VERSIONS: usize = 64;

/// The versions of a process's mappings, by program image and epoch of its code (see [`leakprobe_common::next_epoch`]).
#[derive(Debug, Default)]
pub struct Versions {
    spaces: BTreeMap<(u32, u32), AddressSpace>,
    /// By program image and variant of its code (see [`leakprobe_common::variant_hash`]): libraries that take turns in one
    /// place make few of these, however often they do.
    variants: HashMap<(u32, u32), AddressSpace>,
    /// By stack: the epoch that it was made in first.
    made_in: HashMap<u64, u32>,
}

impl Versions {
    /// Takes in what is mapped in an epoch. What has been unmapped since the one before, and not replaced, keeps its
    /// names.
    pub fn take_in(&mut self, generation: u32, epoch: u32, variant: u32, mapped: AddressSpace) {
        if self.variants.len() < MAX_VERSIONS || self.variants.contains_key(&(generation, variant)) {
            self.variants.entry((generation, variant)).or_default().merge(mapped.clone());
        }
        let version = (generation, epoch);
        if !self.spaces.contains_key(&version) {
            let before = self.latest(generation).cloned().unwrap_or_default();
            self.spaces.insert(version, before);
            let second = self.spaces.keys().nth(1).copied().filter(|_| self.spaces.len() > MAX_VERSIONS);
            if let Some(second) = second {
                self.spaces.remove(&second);
            }
        }
        if let Some(space) = self.spaces.get_mut(&version) {
            space.merge(mapped);
        }
    }

    /// What a program image has had mapped, as of the last look.
    pub fn latest(&self, generation: u32) -> Option<&AddressSpace> {
        self.spaces.range((generation, 0)..=(generation, u32::MAX)).next_back().map(|(_, space)| space)
    }

    /// Notes in which epoch a stack was made first.
    pub fn made_in(&mut self, stack: u64, epoch: u32) {
        self.made_in.entry(stack).or_insert(epoch);
    }

    /// In which epoch a stack was made first.
    pub fn epoch_of(&self, stack: u64) -> u32 {
        self.made_in.get(&stack).copied().unwrap_or(0)
    }

    /// Forgets in which epoch a stack was made.
    pub fn forget(&mut self, stack: u64) {
        self.made_in.remove(&stack);
    }

    /// What was mapped when a stack was made. Where that is not kept: what was mapped in the same variant of the code, where
    /// that is known, else what was mapped before and after.
    pub fn of(&self, stack: u64, generation: u32, variant: Option<u32>) -> Option<Cow<'_, AddressSpace>> {
        let epoch = self.epoch_of(stack);
        let mut until = self.spaces.range((generation, 0)..=(generation, epoch));
        let mut from = self.spaces.range((generation, epoch)..=(generation, u32::MAX));
        match (until.next_back(), from.next()) {
            (Some((before, space)), Some((after, _))) if before == after => Some(Cow::Borrowed(space)),
            (Some((_, before)), Some((_, after))) => {
                let alike = variant.and_then(|variant| self.variants.get(&(generation, variant)));
                Some(alike.map_or_else(|| Cow::Owned(before.common(after)), Cow::Borrowed))
            }
            (Some((_, space)), None) | (None, Some((_, space))) => Some(Cow::Borrowed(space)),
            (None, None) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::target::space::{Backing, Mapping};

    fn space(names: &[(u64, &str)]) -> AddressSpace {
        let mapping = |&(start, name): &(u64, &str)| Mapping {
            start,
            end: start + 10,
            file_offset: 0,
            executable: true,
            backing: Backing::Named(name.to_owned()),
        };
        AddressSpace { mappings: names.iter().map(mapping).collect() }
    }

    fn name(versions: &Versions, stack: u64, address: u64) -> Option<String> {
        let space = versions.of(stack, 0, None)?;
        match &space.find(address)?.backing {
            Backing::Named(name) => Some(name.clone()),
            Backing::Object(_) | Backing::Anonymous => None,
        }
    }

    #[test]
    fn a_frame_is_named_by_what_was_there() {
        let mut versions = Versions::default();
        versions.take_in(0, 0, 0, space(&[(0, "main"), (50, "one")]));
        versions.take_in(0, 2, 0, space(&[(0, "main")]));
        versions.take_in(0, 2, 0, space(&[(0, "main"), (50, "other")]));
        versions.made_in(7, 0);
        versions.made_in(8, 2);
        // Which is not the first time that they are met.
        versions.made_in(7, 2);
        versions.made_in(8, 4);
        assert_eq!(name(&versions, 7, 55).as_deref(), Some("one"));
        assert_eq!(name(&versions, 8, 55).as_deref(), Some("other"));
        assert_eq!(name(&versions, 8, 5).as_deref(), Some("main"));
    }

    #[test]
    fn what_was_unmapped_keeps_its_name_until_its_place_is_taken() {
        let mut versions = Versions::default();
        versions.take_in(0, 0, 0, space(&[(0, "main"), (50, "one")]));
        versions.take_in(0, 2, 0, space(&[(0, "main")]));
        versions.made_in(8, 2);
        assert_eq!(name(&versions, 8, 55).as_deref(), Some("one"));
        assert_eq!(versions.latest(0).map(|space| space.mappings.len()), Some(2));
    }

    #[test]
    fn of_a_version_that_is_not_kept_only_what_stayed_has_a_name() {
        let mut versions = Versions::default();
        for round in 0..=100 {
            versions.take_in(
                0,
                2 * round,
                round % 2,
                space(&[(0, "main"), (50, if round % 2 == 0 { "one" } else { "other" })]),
            );
            versions.made_in(round.into(), 2 * round);
        }
        assert_eq!(versions.spaces.len(), MAX_VERSIONS);
        assert_eq!(name(&versions, 0, 55).as_deref(), Some("one"), "the first one is kept");
        assert_eq!(name(&versions, 99, 55).as_deref(), Some("other"), "the latest ones are");
        assert_eq!(name(&versions, 3, 5).as_deref(), Some("main"));
        let between = (1..36).filter(|&round| name(&versions, round, 55).is_some_and(|name| name != "one"));
        assert_eq!(between.count(), 0, "no library has another's name");
        let of_variant = |stack: u64, variant| {
            let space = versions.of(stack, 0, Some(variant)).expect("known");
            match &space.find(55).expect("there").backing {
                Backing::Named(name) => name.clone(),
                Backing::Object(_) | Backing::Anonymous => String::new(),
            }
        };
        assert_eq!([of_variant(2, 0), of_variant(3, 1)], ["one", "other"], "those that take turns are known");
    }
}
