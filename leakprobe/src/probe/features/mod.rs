//! What this kernel offers, found by trying it: what a vendor's kernel can do does not follow from its version.
//!
//! Each feature is a function, asked for where it is needed; [`Features::probe`] asks for all of them, which
//! only `leakprobe doctor` does.

mod filter;
mod probes;
mod refusal;

use std::{
    fs,
    thread::{self, JoinHandle},
};

pub use self::{
    probes::{Features, execute_only_pages, has_loop, maps_on_demand},
    refusal::{capability_refusal, lockdown_hint, namespace_refusal, own_capabilities, refusal_here},
};

/// How probes are put into a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mechanism {
    /// One link for many probes of an object: attaches and detaches at once (Linux 6.6; used where its process
    /// filter works, see [`Features::multi_filters_processes`]).
    Multi,
    /// One perf event a probe, linked to the program with a cookie (Linux 5.15).
    PerfEvent,
    /// One perf event a probe, without a cookie: the programs look it up by address. See [`super::cookies`].
    PerfEventByAddress,
}

/// The kernel's release, such as `6.18.44`.
pub fn release() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned()
}

/// A mechanism that is being chosen. Asks the kernel for no more than that takes.
pub struct Choice {
    likely: Mechanism,
    filter: Option<JoinHandle<bool>>,
}

impl Choice {
    /// Begins: most kernels that have multi-uprobe links filter processes rightly, and whether this one does takes
    /// a grace period to find out (some 15 ms), during which programs can be loaded for what is likely.
    pub fn begin() -> Self {
        let experiment = || filter::compares_processes().unwrap_or(false);
        let filter = probes::multi_links().then(|| thread::Builder::new().spawn(experiment).ok()).flatten();
        Self { likely: if filter.is_some() { Mechanism::Multi } else { without_multi_links() }, filter }
    }

    /// What it will most likely be.
    pub fn likely(&self) -> Mechanism {
        self.likely
    }

    /// What it is.
    pub fn settle(self) -> Mechanism {
        match self.filter.map(|filter| filter.join().unwrap_or(false)) {
            Some(false) => without_multi_links(),
            Some(true) | None => self.likely,
        }
    }
}

fn without_multi_links() -> Mechanism {
    if probes::cookies() && probes::perf_links() {
        Mechanism::PerfEvent
    } else {
        Mechanism::PerfEventByAddress
    }
}

impl Features {
    /// What [`Choice`] comes to where these are the features.
    pub fn mechanism(&self) -> Mechanism {
        if self.multi_links && self.multi_filters_processes {
            Mechanism::Multi
        } else if self.cookies && self.perf_links {
            Mechanism::PerfEvent
        } else {
            Mechanism::PerfEventByAddress
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mechanism_follows_from_the_features() {
        let mut features = Features::default();
        assert_eq!(features.mechanism(), Mechanism::PerfEventByAddress);
        features.cookies = true;
        assert_eq!(
            features.mechanism(),
            Mechanism::PerfEventByAddress,
            "a cookie needs a link to be given by"
        );
        features.perf_links = true;
        assert_eq!(features.mechanism(), Mechanism::PerfEvent);
        features.multi_links = true;
        assert_eq!(features.mechanism(), Mechanism::PerfEvent, "a filter by thread would miss the others");
        features.multi_filters_processes = true;
        assert_eq!(features.mechanism(), Mechanism::Multi);
    }

    /// What a session chooses and what the doctor says must not differ.
    #[test]
    fn both_ways_of_asking_give_the_same_answer_here() {
        if capability_refusal(own_capabilities()).is_some() {
            eprintln!("skipped: this process may not load BPF programs");
            return;
        }
        assert_eq!(Features::probe().mechanism(), Choice::begin().settle());
    }
}
