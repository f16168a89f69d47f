//! What a victim says that it did, and the comparison with a report.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::report::{Report, Sums};

/// How the name of a site begins whose blocks no function can be held to: they count in the totals alone.
pub const NO_SITE: &str = "-";

/// Name of numbers that say nothing about blocks.
pub const NOTE: &str = "note";

/// What one site holds, by name: `blocks`, `bytes`, `allocated`, `freed`, or a number of the victim's own.
pub type Values = BTreeMap<String, u64>;

/// The truth after one phase or several: for each site (a pattern of [`crate::glob`]) its values.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Truth {
    sites: BTreeMap<String, Values>,
}

impl Truth {
    /// Takes in one line, `truth SITE key=number ...`; a site that is already known is replaced.
    ///
    /// # Errors
    ///
    /// In words, when the line has another shape.
    pub fn read(&mut self, line: &str) -> Result<(), String> {
        let mut words = line.split(' ');
        let (Some("truth"), Some(site)) = (words.next(), words.next()) else {
            return Err(format!("failed to read a truth from {line:?}: want `truth SITE key=number ...`"));
        };
        let mut values = Values::new();
        for word in words {
            let (key, number) =
                word.split_once('=').ok_or_else(|| format!("no `=` in {word:?} of {line:?}"))?;
            let number = number.parse().map_err(|e| format!("failed to read {word:?} of {line:?}: {e}"))?;
            values.insert(key.to_owned(), number);
        }
        self.sites.insert(site.to_owned(), values);
        Ok(())
    }

    /// Takes in what a later phase said; sites that both know are replaced.
    pub fn then(mut self, later: Truth) -> Truth {
        self.sites.extend(later.sites);
        self
    }

    /// A number of the victim's own.
    ///
    /// # Panics
    ///
    /// When the victim never said it.
    pub fn number(&self, site: &str, key: &str) -> u64 {
        *self
            .sites
            .get(site)
            .and_then(|values| values.get(key))
            .unwrap_or_else(|| panic!("the victim said no {key} of {site}: {self:?}"))
    }

    /// The sum over all sites; a site that doesn't say `key` counts as 0.
    pub fn sum(&self, key: &str) -> u64 {
        self.sites.values().filter_map(|values| values.get(key)).sum()
    }

    /// Compares each site, and the totals, with `report`.
    ///
    /// `allocated` and `freed` are compared in total only when every site says them.
    ///
    /// # Panics
    ///
    /// With a line for each difference.
    pub fn check(&self, report: &Report) {
        let differences = self.differences(report);
        assert!(differences.is_empty(), "the report is not the truth:\n{differences}{}", report.digest());
    }

    fn differences(&self, report: &Report) -> String {
        let mut differences = String::new();
        let mut compare = |what: &str, values: &Values, seen: Sums| {
            for (key, seen) in [
                ("blocks", seen.blocks),
                ("bytes", seen.bytes),
                ("allocated", seen.allocated),
                ("freed", seen.freed),
            ] {
                if let Some(&truth) = values.get(key)
                    && truth != seen
                {
                    let _ = writeln!(differences, "  {what}: {key} is {truth}, reported is {seen}");
                }
            }
        };
        for (site, values) in
            self.sites.iter().filter(|(site, _)| !site.starts_with(NO_SITE) && *site != NOTE)
        {
            // A report has no row for a site without survivors: what it ever took is in the totals alone.
            let mut values = values.clone();
            if values.get("blocks") == Some(&0) {
                values.retain(|key, _| matches!(key.as_str(), "blocks" | "bytes"));
            }
            compare(site, &values, report.sums_of(&[site]));
        }
        let holders = self.sites.iter().filter(|(site, _)| *site != NOTE).map(|(_, values)| values);
        if self.sites.keys().all(|site| site == NOTE) {
            return differences;
        }
        let said_by_all = |key: &str| holders.clone().all(|values| values.contains_key(key));
        let totals = ["blocks", "bytes", "allocated", "freed"]
            .into_iter()
            .filter(|key| said_by_all(key))
            .map(|key| (key.to_owned(), self.sum(key)))
            .collect();
        compare("total", &totals, report.totals.sums());
        differences
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::report_of;

    fn truth_of(lines: &[&str]) -> Truth {
        let mut truth = Truth::default();
        for line in lines {
            truth.read(line).expect("a good line");
        }
        truth
    }

    #[test]
    fn lines_are_read_and_later_ones_replace_earlier_ones() {
        let early = truth_of(&["truth a blocks=1 bytes=10", "truth b blocks=2"]);
        let truth = early.then(truth_of(&["truth a blocks=5", "truth note churned=7"]));
        assert_eq!(truth.number("a", "blocks"), 5);
        assert_eq!(truth.number(NOTE, "churned"), 7);
        assert_eq!(truth.sum("blocks"), 7);
        assert_eq!(truth.sum("bytes"), 0);
        for bad in ["truth", "other a b=1", "truth a blocks", "truth a blocks=-1", "truth a blocks=x"] {
            assert!(Truth::default().read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_site_that_differs_in_one_block_is_a_difference() {
        // Two stacks of `leak`, one of `other`: 3 + 4 blocks and 1.
        let report = report_of(&[(&["leak", "main"], 3, 30), (&["leak", "x"], 4, 40), (&["other"], 1, 5)]);
        let right = ["truth leak blocks=7 bytes=70", "truth other blocks=1 bytes=5"];
        assert_eq!(truth_of(&right).differences(&report), "");
        let wrong = truth_of(&["truth leak blocks=6 bytes=70", right[1]]);
        assert_eq!(
            wrong.differences(&report),
            "  leak: blocks is 6, reported is 7\n  total: blocks is 7, reported is 8\n"
        );
        // A block of nobody counts in the total.
        let nobody = truth_of(&[right[0], "truth - blocks=1 bytes=5"]);
        assert_eq!(nobody.differences(&report), "");
        // A note is no truth about blocks.
        assert_eq!(truth_of(&[right[0], right[1], "truth note jumps=9"]).differences(&report), "");
        assert_eq!(truth_of(&["truth note jumps=9"]).differences(&report), "");
        // A site that gave everything back has no row.
        let gone = truth_of(&[right[0], right[1], "truth gone blocks=0 bytes=0 allocated=5 freed=5"]);
        assert_eq!(gone.differences(&report), "");
        // A row that doesn't say its blocks keeps the total of blocks from being compared.
        let silent = truth_of(&[right[0], "truth other bytes=5"]);
        assert_eq!(silent.differences(&report), "");
    }
}
