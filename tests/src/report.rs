//! leakprobe's JSON reports, as far as the tests look at them.

use std::fmt::Write as _;

use serde::Deserialize;

use crate::glob;

/// The version of the JSON form that this was written for.
pub const VERSION: u32 = 1;

/// One report; fields as in leakprobe's own schema.
#[derive(Clone, Debug, Deserialize)]
#[expect(missing_docs, reason = "the fields are documented in leakprobe's schema")]
pub struct Report {
    pub version: u32,
    pub sequence: u64,
    pub is_final: bool,
    pub elapsed_seconds: f64,
    pub warnings: Vec<Warning>,
    pub processes: Vec<Process>,
    #[serde(default)]
    pub kernel: Option<Kernel>,
    pub totals: Totals,
    pub sites: Vec<Site>,
    pub sites_with_survivors: u64,
    #[serde(default)]
    pub mismatches: Vec<Mismatch>,
    pub ledger: Ledger,
    #[serde(default)]
    pub probes: Vec<Place>,
    #[serde(default)]
    pub stacks: Vec<ObjectStacks>,
}

/// How stacks are made in an object's code.
#[derive(Clone, Debug, Deserialize)]
#[expect(missing_docs, reason = "the fields are documented in leakprobe's schema")]
pub struct ObjectStacks {
    pub object: String,
    pub method: String,
    pub functions_left_out: u64,
    pub sections_refused: Vec<String>,
    pub reason: Option<String>,
}

/// Blocks of one allocator that came to another one's free.
#[derive(Clone, Debug, Deserialize)]
#[expect(missing_docs, reason = "the fields are documented in leakprobe's schema")]
pub struct Mismatch {
    pub blocks: u64,
    pub bytes: u64,
    pub allocator: String,
    pub stack: Stack,
    pub freed_by: String,
    pub freed_stack: Stack,
}

/// Something that limits what the report can be trusted for.
#[derive(Clone, Debug, Deserialize)]
#[expect(missing_docs, reason = "the fields are documented in leakprobe's schema")]
pub struct Warning {
    pub kind: String,
    pub text: String,
}

/// Whether a process is still there.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It runs.
    Running,
    /// It has ended, with its status where leakprobe started it.
    Exited(Option<String>),
}

/// One profiled process.
#[derive(Clone, Debug, Deserialize)]
#[expect(missing_docs, reason = "the fields are documented in leakprobe's schema")]
pub struct Process {
    pub pid: u32,
    pub name: String,
    pub state: State,
    pub programs: u32,
    #[serde(default)]
    pub namespace_pid: Option<u32>,
    #[serde(default)]
    pub container: Option<String>,
    #[serde(default)]
    pub forked_from: Option<u32>,
    #[serde(default)]
    pub inherited_blocks: u64,
    #[serde(default)]
    pub inherited_bytes: u64,
    #[serde(default)]
    pub inherited_freed: u64,
    #[serde(default)]
    pub live_bytes: u64,
    #[serde(default)]
    pub live_blocks: u64,
}

/// Where a probe was put; only with `--verbose`.
#[derive(Clone, Debug, Deserialize)]
#[expect(missing_docs, reason = "the fields are documented in leakprobe's schema")]
pub struct Place {
    pub pid: u32,
    pub allocator: String,
    pub symbols: Vec<String>,
    pub object: String,
}

/// Sums over all sites.
#[derive(Clone, Debug, Deserialize)]
#[expect(missing_docs, reason = "the fields are documented in leakprobe's schema")]
pub struct Totals {
    pub live_bytes: u64,
    pub live_blocks: u64,
    pub survivor_bytes: u64,
    pub survivor_blocks: u64,
    pub allocated_blocks: u64,
    pub freed_blocks: u64,
}

/// The kernel's own memory.
#[derive(Clone, Debug, Deserialize)]
#[expect(missing_docs, reason = "the fields are documented in leakprobe's schema")]
pub struct Kernel {
    pub caches: Vec<Cache>,
    pub sampled_one_in: u32,
    pub tracepoints: String,
    pub probed_functions: Vec<ProbedFunction>,
    pub unprobed_functions: Vec<String>,
    pub slab_pages: Option<SlabPages>,
}

/// A function without a tracepoint.
#[derive(Clone, Debug, Deserialize)]
#[expect(missing_docs, reason = "the fields are documented in leakprobe's schema")]
pub struct ProbedFunction {
    pub name: String,
    pub how: String,
}

/// Pages that slabs took.
#[derive(Clone, Copy, Debug, Deserialize)]
#[expect(missing_docs, reason = "the fields are documented in leakprobe's schema")]
pub struct SlabPages {
    pub blocks: u64,
    pub bytes: u64,
}

/// One of the kernel's caches.
#[derive(Clone, Debug, Deserialize)]
#[expect(missing_docs, reason = "the fields are documented in leakprobe's schema")]
pub struct Cache {
    pub name: String,
    pub object_bytes: Option<u64>,
    pub live_objects: u64,
    pub live_bytes: u64,
    pub growth_bytes_per_minute: f64,
    pub slabinfo_objects: Option<u64>,
    pub slabinfo_change: Option<i64>,
    pub slabinfo_bytes_per_minute: Option<f64>,
    pub allocated_objects: u64,
    pub freed_objects: u64,
    pub untraced_frees: u64,
    pub untraced_free_share: f64,
    pub contradicted: bool,
}

/// Who was running when an object was made.
#[derive(Clone, Debug, Deserialize)]
#[expect(missing_docs, reason = "the fields are documented in leakprobe's schema")]
pub struct Maker {
    pub name: String,
    pub blocks: u64,
    pub processes: u64,
    pub pid: u32,
}

/// One allocating stack.
#[derive(Clone, Debug, Deserialize)]
#[expect(missing_docs, reason = "the fields are documented in leakprobe's schema")]
pub struct Site {
    pub pid: u32,
    pub kind: String,
    pub allocator: String,
    pub live_bytes: u64,
    pub live_blocks: u64,
    pub survivor_bytes: u64,
    pub survivor_blocks: u64,
    #[serde(default)]
    pub growth_bytes_per_minute: f64,
    pub allocated_blocks: u64,
    pub freed_blocks: u64,
    #[serde(default)]
    pub made_by: Vec<Maker>,
    #[serde(default)]
    pub contradiction: Option<String>,
    pub stack: Stack,
}

/// A symbolized stack, innermost first.
#[derive(Clone, Debug, Deserialize)]
#[expect(missing_docs, reason = "the fields are documented in leakprobe's schema")]
pub struct Stack {
    pub quality: String,
    pub frames: Vec<Frame>,
}

/// One frame.
#[derive(Clone, Debug, Deserialize)]
#[expect(missing_docs, reason = "the fields are documented in leakprobe's schema")]
pub struct Frame {
    #[serde(default)]
    pub address: u64,
    pub function: Option<String>,
    pub file: Option<String>,
    pub line: Option<u32>,
    pub inlined: bool,
    pub object: Option<String>,
    pub unknown: Option<String>,
}

/// What was hit, recorded and lost.
#[derive(Clone, Debug, Deserialize)]
#[expect(missing_docs, reason = "the fields are documented in leakprobe's schema")]
pub struct Ledger {
    pub allocations: Account,
    pub frees: Account,
    pub records: Account,
    pub ranges: Option<Account>,
    #[serde(default)]
    pub remarks: Vec<Entry>,
    #[serde(default)]
    pub recursion_misses: Vec<Entry>,
}

/// One balance.
#[derive(Clone, Debug, Deserialize)]
#[expect(missing_docs, reason = "the fields are documented in leakprobe's schema")]
pub struct Account {
    pub hits: u64,
    pub outcomes: Vec<Entry>,
    pub in_flight: u64,
}

/// A named count.
#[derive(Clone, Debug, Deserialize)]
#[expect(missing_docs, reason = "the fields are documented in leakprobe's schema")]
pub struct Entry {
    pub name: String,
    pub count: u64,
    #[serde(default)]
    pub lost: bool,
}

/// Blocks and bytes that are there, and blocks that ever were taken and given back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "named in the line above")]
pub struct Sums {
    pub blocks: u64,
    pub bytes: u64,
    pub allocated: u64,
    pub freed: u64,
}

impl Totals {
    /// As the sites' sums are given.
    pub fn sums(&self) -> Sums {
        Sums {
            blocks: self.live_blocks,
            bytes: self.live_bytes,
            allocated: self.allocated_blocks,
            freed: self.freed_blocks,
        }
    }
}

impl Account {
    /// Hits minus everything that is said to have become of them; 0 when the books balance.
    pub fn gap(&self) -> i128 {
        let explained: i128 = self.outcomes.iter().map(|entry| i128::from(entry.count)).sum();
        i128::from(self.hits) - explained - i128::from(self.in_flight)
    }
}

impl Ledger {
    /// The accounts by name.
    pub fn accounts(&self) -> impl Iterator<Item = (&'static str, &Account)> {
        let always = [("allocations", &self.allocations), ("frees", &self.frees), ("records", &self.records)];
        always.into_iter().chain(self.ranges.as_ref().map(|ranges| ("ranges", ranges)))
    }

    /// A counter by name, in whichever account or remark; 0 where it isn't printed.
    pub fn count(&self, name: &str) -> u64 {
        let outcomes = self.accounts().flat_map(|(_, account)| &account.outcomes);
        outcomes.chain(&self.remarks).find(|entry| entry.name == name).map_or(0, |entry| entry.count)
    }

    /// Runs of programs that the kernel skipped.
    pub fn skipped(&self) -> u64 {
        self.recursion_misses.iter().map(|entry| entry.count).sum()
    }

    /// Everything that should have been recorded and was not.
    pub fn lost(&self) -> u64 {
        let outcomes = self.accounts().flat_map(|(_, account)| &account.outcomes);
        outcomes.filter(|entry| entry.lost).map(|entry| entry.count).sum()
    }
}

impl Stack {
    /// Whether these functions (patterns of [`crate::glob`]) are among the frames, in this order,
    /// innermost first; other frames may stand between them.
    pub fn has(&self, functions: &[&str]) -> bool {
        let mut names = self.frames.iter().filter_map(|frame| frame.function.as_deref());
        functions.iter().all(|pattern| names.any(|name| glob::matches(pattern, name)))
    }
}

impl Report {
    /// The sites whose stack has these functions in this order.
    pub fn sites_of(&self, functions: &[&str]) -> impl Iterator<Item = &Site> {
        self.sites.iter().filter(|site| site.stack.has(functions))
    }

    /// The sum over those sites.
    pub fn sums_of(&self, functions: &[&str]) -> Sums {
        self.sites_of(functions).fold(Sums::default(), |sums, site| Sums {
            blocks: sums.blocks + site.live_blocks,
            bytes: sums.bytes + site.live_bytes,
            allocated: sums.allocated + site.allocated_blocks,
            freed: sums.freed + site.freed_blocks,
        })
    }

    /// A process's row.
    ///
    /// # Panics
    ///
    /// When there is none, or more than one.
    pub fn process(&self, pid: u32) -> &Process {
        let mut rows = self.processes.iter().filter(|process| process.pid == pid);
        match (rows.next(), rows.next()) {
            (Some(row), None) => row,
            _ => panic!("not one row of process {pid}: {:?}", self.processes),
        }
    }

    /// Compares the table by process, the sites of each and the totals with what each process holds: its number, blocks
    /// and bytes. No other process is in the table.
    ///
    /// # Panics
    ///
    /// With both, when they differ.
    pub fn check_processes(&self, truth: &[(u32, u64, u64)]) {
        let mut truth = truth.to_vec();
        truth.sort_unstable();
        let row = |process: &Process| (process.pid, process.live_blocks, process.live_bytes);
        let mut rows: Vec<(u32, u64, u64)> = self.processes.iter().map(row).collect();
        rows.sort_unstable();
        assert_eq!(rows, truth, "the table by process, and the truth{}", self.digest());
        let of_sites = |&(pid, ..): &(u32, u64, u64)| {
            let sites = self.sites.iter().filter(|site| site.pid == pid);
            sites.fold((pid, 0, 0), |sums, site| (pid, sums.1 + site.live_blocks, sums.2 + site.live_bytes))
        };
        assert_eq!(
            truth.iter().map(of_sites).collect::<Vec<_>>(),
            truth,
            "sites by process, and the truth{}",
            self.digest()
        );
        let sums = truth.iter().fold((0, 0), |sums, row| (sums.0 + row.1, sums.1 + row.2));
        assert_eq!((self.totals.live_blocks, self.totals.live_bytes), sums, "totals{}", self.digest());
        self.check_sums();
    }

    /// Whether a warning of this kind is there.
    pub fn warns(&self, kind: &str) -> bool {
        self.warnings.iter().any(|warning| warning.kind == kind)
    }

    /// What must hold of every report.
    ///
    /// # Panics
    ///
    /// When an account of the ledger doesn't balance, or the schema is another one.
    pub fn check_books(&self) {
        assert_eq!(self.version, VERSION, "the schema's version");
        for (name, account) in self.ledger.accounts() {
            assert_eq!(
                account.gap(),
                0,
                "the ledger's {name} do not balance in report {}: hits - outcomes - in flight{}",
                self.sequence,
                self.digest()
            );
        }
    }

    /// What must hold besides while nothing of the target runs: the sites add up to the totals.
    ///
    /// # Panics
    ///
    /// When they don't, or when `--top` left sites out.
    pub fn check_sums(&self) {
        let survivors = |sum: fn(&Site) -> u64| self.sites.iter().map(sum).sum::<u64>();
        assert!(self.sites_with_survivors <= self.sites.len() as u64, "sites are left out: raise --top");
        let sums = (survivors(|site| site.survivor_blocks), survivors(|site| site.survivor_bytes));
        let totals = (self.totals.survivor_blocks, self.totals.survivor_bytes);
        assert_eq!(sums, totals, "survivors: blocks and bytes over the sites, and in total{}", self.digest());
    }

    /// The report in few lines, for a test's failure.
    pub fn digest(&self) -> String {
        let mut text = format!("\nreport {}: {:?}\n", self.sequence, self.totals);
        for site in &self.sites {
            let names: Vec<&str> = site
                .stack
                .frames
                .iter()
                .map(|frame| frame.function.as_deref().or(frame.unknown.as_deref()).unwrap_or("?"))
                .collect();
            let (blocks, bytes) = (site.live_blocks, site.live_bytes);
            let (allocated, freed, kind) = (site.allocated_blocks, site.freed_blocks, &site.kind);
            let quality = &site.stack.quality;
            let _ = writeln!(
                text,
                "  {kind} {blocks} blocks {bytes} bytes {allocated}-{freed} {quality}: {}",
                names.join(" < ")
            );
        }
        let entries = |entries: &[Entry]| {
            let shown = entries.iter().filter(|entry| entry.count > 0);
            shown.map(|entry| format!(" {}={}", entry.name, entry.count)).collect::<String>()
        };
        for (name, account) in self.ledger.accounts() {
            let (hits, in_flight) = (account.hits, account.in_flight);
            let _ =
                writeln!(text, "  {name}: {hits} hits,{}, in flight {in_flight}", entries(&account.outcomes));
        }
        let (remarks, misses) = (entries(&self.ledger.remarks), entries(&self.ledger.recursion_misses));
        let _ =
            writeln!(text, "  remarks:{remarks}; recursion misses:{misses}; warnings: {:?}", self.warnings);
        text
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// A report of sites given as (functions, blocks, bytes).
    pub(crate) fn report_of(sites: &[(&[&str], u64, u64)]) -> Report {
        let frame = |name: &&str| json!({"function": name, "inlined": false, "address": 1});
        let row = |(functions, blocks, bytes): &(&[&str], u64, u64)| {
            json!({
                "pid": 1, "kind": "heap", "allocator": "glibc", "live_bytes": bytes, "live_blocks": blocks,
                "survivor_bytes": bytes, "survivor_blocks": blocks, "allocated_blocks": blocks,
                "freed_blocks": 0,
                "stack": {"quality": "whole", "frames": functions.iter().map(frame).collect::<Vec<Value>>()},
            })
        };
        let blocks: u64 = sites.iter().map(|site| site.1).sum();
        let bytes: u64 = sites.iter().map(|site| site.2).sum();
        let account = json!({"hits": 3, "in_flight": 1, "outcomes": [{"name": "recorded", "count": 2}]});
        serde_json::from_value(json!({
            "version": 1, "sequence": 1, "is_final": true, "elapsed_seconds": 1.0, "warnings": [],
            "processes": [{"pid": 1, "name": "x", "state": {"exited": null}, "programs": 1}],
            "totals": {
                "live_bytes": bytes, "live_blocks": blocks, "survivor_bytes": bytes,
                "survivor_blocks": blocks, "allocated_blocks": blocks, "freed_blocks": 0,
            },
            "sites": sites.iter().map(row).collect::<Vec<Value>>(),
            "sites_with_survivors": sites.len(),
            "ledger": {"allocations": account, "frees": account, "records": account},
        }))
        .expect("a report of this shape")
    }

    #[test]
    fn a_stack_has_functions_in_order_only() {
        let report = report_of(&[(&["malloc", "leak", "work", "main"], 1, 1)]);
        let stack = &report.sites[0].stack;
        assert!(stack.has(&["leak", "main"]));
        assert!(stack.has(&[]));
        assert!(!stack.has(&["main", "leak"]));
        assert!(!stack.has(&["leak", "leak"]));
    }

    #[test]
    fn books_that_balance_pass() {
        let report = report_of(&[(&["leak"], 2, 20)]);
        report.check_books();
        report.check_sums();
        assert_eq!(report.processes[0].state, State::Exited(None));
        assert_eq!(report.ledger.count("recorded"), 2);
    }

    #[test]
    #[should_panic(expected = "the ledger's frees do not balance")]
    fn books_with_a_hole_fail() {
        let mut report = report_of(&[]);
        report.ledger.frees.hits += 1;
        report.check_books();
    }

    #[test]
    #[should_panic(expected = "over the sites, and in total")]
    fn sites_that_do_not_add_up_fail() {
        let mut report = report_of(&[(&["leak"], 2, 20)]);
        report.totals.survivor_bytes += 1;
        report.check_sums();
    }
}
