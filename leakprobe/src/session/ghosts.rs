//! With `--follow`: children that had ended when they were told of. What they have made lives on: a daemon's first child makes
//! it, and is gone at once.

use std::{collections::HashMap, sync::Arc};

use super::watched::Seed;
use crate::probe::attach::{self, Attachment};

/// Ghosts that are kept: those that they have made are told of in the same breath.
const MAX_GHOSTS: usize = 256;

/// What a process has that another one has made.
pub struct Inheritance {
    /// What is known of it.
    pub seed: Arc<Seed>,
    /// Its probes.
    pub probes: Vec<Attachment>,
    /// Whether those that it makes at that moment have events of their own.
    pub is_guarded: bool,
}

/// By number.
#[derive(Default)]
pub struct Ghosts(HashMap<u32, Ghost>);

struct Ghost {
    seed: Arc<Seed>,
    probes: Vec<Attachment>,
    parent: u32,
}

impl Ghosts {
    /// Keeps what one had from its parent.
    pub fn keep(&mut self, pid: u32, parent: u32, had: Inheritance) {
        if self.0.len() >= MAX_GHOSTS {
            self.0.clear();
        }
        let Inheritance { seed, probes, is_guarded: _ } = had;
        self.0.insert(pid, Ghost { seed, probes, parent });
    }

    /// What one that it has made has from it.
    pub fn inheritance(&self, pid: u32) -> Option<Inheritance> {
        self.0.get(&pid).map(|ghost| Inheritance {
            seed: Arc::clone(&ghost.seed),
            probes: attach::share(&ghost.probes),
            // It never had a guard of its own.
            is_guarded: false,
        })
    }

    /// Which process has made it.
    pub fn parent(&self, pid: u32) -> Option<u32> {
        self.0.get(&pid).map(|ghost| ghost.parent)
    }

    /// Its number is another one's.
    pub fn forget(&mut self, pid: u32) {
        self.0.remove(&pid);
    }

    /// Lets go of all.
    pub fn clear(&mut self) {
        self.0.clear();
    }
}
