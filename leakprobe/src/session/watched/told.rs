//! What a report tells of a process: its row, and what limits what is known of it.

use std::path::Path;

use super::{Late, Watched};
use crate::{
    report::model::{Gauge, ProbeRow, Process as ProcessRow, ProcessState, Warning},
    target::{
        discovery::FoundObject,
        family::{LINKER, OPERATOR_NEW},
        leave::Leaves,
        process::Vitals,
        space::FileId,
    },
};

impl Watched {
    /// Its row in the report's head, after one more look at what it uses.
    pub fn row(&mut self) -> ProcessRow {
        self.refresh();
        // Of a program that ended before a second look, only its first moments are known.
        let known = !(self.has_ended() && self.last == self.start);
        let gauge = |of: fn(&Vitals) -> u64| {
            if !known {
                return None;
            }
            let (now, start) = (of(&self.last), of(&self.start));
            Some(Gauge { now, change: now.cast_signed().wrapping_sub(start.cast_signed()) })
        };
        ProcessRow {
            pid: self.pid(),
            name: self.name.clone(),
            command_line: self.command_line.clone(),
            state: match &self.ended {
                None => ProcessState::Running,
                Some(how) => ProcessState::Exited(how.clone()),
            },
            programs: self.programs,
            forked_from: self.parent,
            inherited_blocks: self.kin.inherited_blocks,
            inherited_bytes: self.kin.inherited_bytes,
            inherited_freed: self.kin.inherited_freed,
            namespace_pid: self.last.namespace_pid,
            container: self.container.clone(),
            live_bytes: 0,
            live_blocks: 0,
            survivor_bytes: 0,
            survivor_blocks: 0,
            growth_bytes_per_minute: 0.0,
            vm_size_bytes: gauge(|vitals| vitals.vm_size_bytes),
            vm_rss_bytes: gauge(|vitals| vitals.vm_rss_bytes),
            vm_data_bytes: gauge(|vitals| vitals.vm_data_bytes),
            threads: gauge(|vitals| vitals.threads),
            open_files: match (self.last.open_files, self.start.open_files) {
                (Some(now), Some(start)) if known => {
                    Some(Gauge { now, change: now.cast_signed().wrapping_sub(start.cast_signed()) })
                }
                _ => None,
            },
        }
    }

    /// Allocators that were met when it ran with them already.
    pub fn late(&self) -> &[Late] {
        &self.late
    }

    /// Its programs that cannot be profiled, in words.
    pub fn refusals(&self) -> &[String] {
        &self.refusals
    }

    /// Whether its probes may have gone with a thread when it executed a program.
    pub fn is_replaced(&self) -> bool {
        self.is_replaced
    }

    /// Names of the families that were found in an object of it.
    pub fn families_in(&self, object: FileId) -> impl Iterator<Item = &'static str> {
        self.discovery
            .objects
            .iter()
            .filter(move |found| found.object.id == object)
            .map(|found| found.family.name)
    }

    /// Whether an object holds an allocator that is known.
    pub fn is_known_allocator(&self, object: FileId) -> bool {
        self.discovery.objects.iter().any(|found| found.object.id == object && found.family.known)
    }

    /// Whether an object of this file name or path was searched in it.
    pub fn has_object(&self, name: &Path) -> bool {
        self.discovery.has_object(name)
    }

    /// File names of its objects that are most like one.
    pub fn near_objects(&self, name: &Path) -> Vec<String> {
        self.discovery.near_objects(name)
    }

    /// What limits what is known of it.
    pub fn warnings(&self) -> Vec<Warning> {
        let warning = |kind: &str, text: String| Warning { kind: kind.to_owned(), text };
        let mut warnings = Vec::new();
        for failure in &self.failures {
            warnings.push(warning("probes_missing", failure.clone()));
        }
        // Of a member that comes and goes, its program's first or last moments may be all that was seen.
        let is_passing = self.is_member && self.is_brief;
        if !self.discovery.has_allocator() && !self.is_refused && !is_passing {
            warnings.push(warning("no_allocator", self.discovery.nothing_found(self.pid())));
        }
        let is_unknown = |found: &&FoundObject| !found.family.known && found.family.name != OPERATOR_NEW;
        for found in self.discovery.objects.iter().filter(is_unknown) {
            let object = crate::report::escape::visible(&found.object.path.to_string_lossy()).into_owned();
            let text = format!(
                "{object} is an allocator that leakprobe does not know: it is assumed to behave as the C standard \
                 says; distrust its numbers if they look odd"
            );
            warnings.push(warning("unknown_allocator", text));
        }
        for found in self.discovery.objects.iter().filter(|_| !self.throwing) {
            if let Some((functions, why)) = not_recorded(found) {
                let object =
                    crate::report::escape::visible(&found.object.path.to_string_lossy()).into_owned();
                let text = format!(
                    "in {object}, {functions} not recorded in process {}: where it returns is not known, because {why}, and \
                     std::bad_alloc past a return probe would end the process; --record-operator-new takes one all the same",
                    self.pid()
                );
                warnings.push(warning("operator_new", text));
            }
        }
        let is_slow = |probe: &&ProbeRow| probe.single_stepped && probe.allocator != LINKER;
        let slow: Vec<&ProbeRow> = self.probes.iter().filter(is_slow).collect();
        warnings.extend(slow_probes(&slow).map(|text| warning("slow_probe", text)));
        if let Some(cut) = &self.cut {
            warnings.push(warning("mappings_cut", format!("process {}: {cut}", self.pid())));
        }
        warnings
    }
}

/// The functions that may throw and are not recorded, as the beginning of a sentence, and why the first of them is not.
fn not_recorded(found: &FoundObject) -> Option<(String, &str)> {
    let mut left_out = found.functions.iter().filter_map(|function| match &function.leaves {
        Leaves::Unknown(why) => Some((function.symbols[0], why.as_str())),
        Leaves::AtReturnProbe | Leaves::At(_) => None,
    });
    let (first, why) = left_out.next()?;
    match left_out.count() {
        0 => Some((format!("{first} is"), why)),
        more => Some((format!("{first} and {more} more forms of operator new are"), why)),
    }
}

/// One line on those probes of a process that cost a multiple; `None` when there are none.
fn slow_probes(slow: &[&ProbeRow]) -> Option<String> {
    match slow {
        [] => None,
        [probe] => Some(format!(
            "the probe on {} of process {} is slow: the kernel single-steps {} ({})",
            probe.symbols[0],
            probe.pid,
            probe.instruction,
            probe.reason.as_deref().unwrap_or("no better instruction")
        )),
        [first, ..] => {
            let names: Vec<&str> = slow.iter().map(|probe| probe.symbols[0].as_str()).collect();
            Some(format!(
                "the probes on {} of process {} are slow: the kernel single-steps the probed instructions (--verbose \
                 shows each, and why)",
                names.join(", "),
                first.pid
            ))
        }
    }
}
