//! Ages of a site's survivors.

use crate::drain::snapshot::Survivor;

/// What is shown of a site's survivors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ages {
    /// Survivors, weighted.
    pub blocks: u64,
    /// Their bytes, weighted.
    pub bytes: u64,
    /// Age of the oldest, nanoseconds.
    pub oldest_ns: u64,
    /// Median age, nanoseconds; of an even number the lower of the two in the middle.
    pub median_ns: u64,
}

impl Ages {
    /// Of the survivors at the moment `at_ns`. Reorders them.
    pub fn of(survivors: &mut [Survivor], at_ns: u64) -> Self {
        let Some(last) = survivors.len().checked_sub(1) else { return Self::default() };
        let age = |survivor: &Survivor| at_ns.saturating_sub(survivor.allocated_ns);
        // Ascending by time is descending by age: of an even number this is the younger one in the middle.
        let middle = survivors.len() / 2;
        let (_, median, _) = survivors.select_nth_unstable_by_key(middle.min(last), |s| s.allocated_ns);
        let median_ns = age(median);
        Self {
            blocks: survivors.iter().map(|s| u64::from(s.weight)).sum(),
            bytes: survivors.iter().map(|s| s.bytes).sum(),
            oldest_ns: survivors.iter().map(age).max().unwrap_or_default(),
            median_ns,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn survivors(times: &[u64]) -> Vec<Survivor> {
        times.iter().map(|&allocated_ns| Survivor { allocated_ns, bytes: 10, weight: 1 }).collect()
    }

    #[test]
    fn oldest_and_median_are_of_the_ages() {
        let ages = Ages::of(&mut survivors(&[400, 100, 900]), 1_000);
        assert_eq!(ages, Ages { blocks: 3, bytes: 30, oldest_ns: 900, median_ns: 600 });
        let ages = Ages::of(&mut survivors(&[400, 100, 900, 200]), 1_000);
        assert_eq!(ages.median_ns, 600, "of 100, 600, 800 and 900");
    }

    #[test]
    fn no_survivors_have_no_age() {
        assert_eq!(Ages::of(&mut [], 1_000), Ages::default());
    }
}
