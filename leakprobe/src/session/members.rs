//! Who belongs to what was asked for: processes by number, by control group and by name.

use std::collections::HashSet;

use anyhow::{Context as _, Result, bail};

use crate::{
    cli::Selection,
    target::group::{cgroup::Cgroup, names, tree},
};

/// The processes that were asked for, which can come and go.
#[derive(Debug, Default)]
pub struct Members {
    cgroups: Vec<Cgroup>,
    names: Vec<String>,
    /// How many more times those below the ones that are profiled are looked for.
    searches: u32,
    /// Those that cannot be profiled, as long as they are there.
    left_out: HashSet<u32>,
}

impl Members {
    /// Finds what was asked for.
    ///
    /// # Errors
    /// When a control group does not exist.
    pub fn new(selection: &Selection) -> Result<Self> {
        let cgroups = selection.cgroups.iter().map(|path| Cgroup::find(path)).collect::<Result<_, _>>()?;
        Ok(Self { cgroups, names: selection.names.clone(), searches: 0, left_out: HashSet::new() })
    }

    /// Whether processes can come.
    pub fn are_open(&self) -> bool {
        !self.cgroups.is_empty() || !self.names.is_empty()
    }

    /// Has those below the processes that are profiled found too, the next times: they were there before. What comes later is
    /// told of as it is made; what is made meanwhile may not be.
    pub fn search_below(&mut self) {
        const SEARCHES: u32 = 4;
        self.searches = SEARCHES;
    }

    /// All that belong to the control groups and have the names now, or are below `profiled` where these are looked for, by
    /// number; not leakprobe itself.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn find(&mut self, profiled: &[u32]) -> Result<Vec<u32>> {
        let mut pids = Vec::new();
        if self.searches > 0 {
            self.searches -= 1;
            pids = tree::below(profiled).context("failed to read the parents of the processes in /proc")?;
        }
        for cgroup in &self.cgroups {
            pids.extend(cgroup.processes()?);
        }
        for name in &self.names {
            pids.extend(names::named(name).context("failed to read the names of the processes in /proc")?);
        }
        pids.sort_unstable();
        pids.dedup();
        pids.retain(|&pid| pid != std::process::id());
        self.left_out.retain(|pid| pids.binary_search(pid).is_ok());
        Ok(pids)
    }

    /// Refuses what has nobody in it, when a session begins.
    ///
    /// # Errors
    /// Says where nobody was found.
    pub fn require_some(&self) -> Result<()> {
        for cgroup in &self.cgroups {
            if cgroup.processes()?.is_empty() {
                bail!(
                    "no process is in the control group {}, nor in those below it: start the service first",
                    crate::report::escape::visible(&cgroup.path().to_string_lossy())
                );
            }
        }
        for name in &self.names {
            if names::named(name).context("failed to read the names of the processes in /proc")?.is_empty() {
                bail!(names::none_named(name));
            }
        }
        Ok(())
    }

    /// Whether a process has not been left out.
    pub fn may_come(&self, pid: u32) -> bool {
        !self.left_out.contains(&pid)
    }

    /// Leaves a process out as long as it is there; whether that is new.
    pub fn leave_out(&mut self, pid: u32) -> bool {
        self.left_out.insert(pid)
    }
}
