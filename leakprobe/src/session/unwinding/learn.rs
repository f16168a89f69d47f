//! The tables of objects that are new: compiled, as far as there is time, and written into the kernel.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    fs::File,
    hash::{BuildHasher as _, RandomState},
    num::NonZero,
    panic::resume_unwind,
    sync::{Arc, atomic::Ordering},
    thread,
};

use anyhow::Result;

use super::{Known, ObjectTables, Placed, Without};
use crate::{
    cli::Unwind,
    probe::tables::NoRoom,
    session::budget::Grant,
    target::space::{AddressSpace, Backing, Object},
    unwind::{
        allowance::Allowance,
        object::{Compiled, NoTable, Source},
    },
};

/// Objects that are compiled at a time, at most. A hostile one can take what [`Source`] and its limits allow, so the number
/// multiplies the memory that they may take in all.
const MAX_THREADS: usize = 2;

impl ObjectTables {
    /// Makes the tables of the objects that are new in a process, as far as there is time. Several are compiled at a time,
    /// since probes wait for them, and written in the order of the mappings, so that the same ones find room each time.
    pub(super) fn learn(&mut self, target: u32, space: &AddressSpace) -> Result<()> {
        self.pending.remove(&target);
        let mut seen = HashSet::new();
        let mut new: VecDeque<&Object> = VecDeque::new();
        for mapping in space.mappings.iter().filter(|mapping| mapping.executable) {
            let Backing::Object(object) = &mapping.backing else { continue };
            let is_final = |known: &Known| known.is_final(object, target);
            if seen.insert(object.id) && !self.objects.get(&object.id).is_some_and(is_final) {
                new.push_back(object.as_ref());
            }
        }
        if new.is_empty() {
            return Ok(());
        }
        let (key, placed, max_rows) = (self.key.clone(), self.placed.clone(), self.tables.share());
        let (stop, hurried) = (Arc::clone(&self.stop), self.hurried);
        let prepare_object = |object: &Object, grant: Grant| -> (Prepared, u64, bool) {
            let mut allowance = Allowance::new(grant.bytes, &stop);
            let max_rows = max_rows.min(grant.rows);
            let prepared = match &object.file {
                Ok(file) => prepare(file, max_rows, &mut allowance, &key, &placed),
                Err(reason) => Prepared::Known(Err(reason.clone().into())),
            };
            (prepared, allowance.spent(), allowance.is_exceeded())
        };
        let at_a_time = thread::available_parallelism().map_or(1, NonZero::get).min(MAX_THREADS);
        let mut pending = HashMap::new();
        thread::scope(|scope| {
            let prepare_object = &prepare_object;
            let mut begun = VecDeque::new();
            loop {
                while begun.len() < at_a_time && !self.budget.is_over() && !stop.load(Ordering::Relaxed) {
                    let Some(object) = new.pop_front() else { break };
                    let grant = self.budget.grant(target, hurried);
                    let thread = scope.spawn(move || prepare_object(object, grant));
                    begun.push_back((object, grant, thread));
                }
                let Some((object, grant, thread)) = begun.pop_front() else { break };
                let (prepared, spent, exceeded) = thread.join().unwrap_or_else(|panic| resume_unwind(panic));
                self.budget.settle(target, grant, spent);
                let path = object.path.to_string_lossy().into_owned();
                if matches!(prepared, Prepared::Stopped) || exceeded && grant.is_cut {
                    pending.insert(object.id, path);
                } else {
                    let mut outcome = self.place(target, prepared)?;
                    let is_limited = exceeded || grant.rows < max_rows;
                    let before = self.objects.remove(&object.id);
                    let mut without_room = before.map_or_else(HashSet::new, |known| known.without_room);
                    if let Err(without) = &mut outcome {
                        without.is_own_share |= is_limited && !without.is_plain;
                        if without.is_own_share {
                            without_room.insert(target);
                        }
                    }
                    let opened = object.file.is_ok();
                    self.objects.insert(object.id, Known { path, opened, outcome, without_room });
                }
            }
            anyhow::Ok(())
        })?;
        pending.extend(new.iter().map(|object| (object.id, object.path.to_string_lossy().into_owned())));
        if !pending.is_empty() {
            self.pending.insert(target, pending);
        }
        Ok(())
    }

    /// Writes tables into the kernel, once for all files that hold the same (those of two containers, say); that there is
    /// no room for them is no error of the session's.
    pub(super) fn place(&mut self, target: u32, prepared: Prepared) -> Result<Result<Placed, Without>> {
        let (key, compiled) = match prepared {
            Prepared::Stopped => return Ok(Err(NoTable::Stopped.into())),
            Prepared::Known(outcome) => return Ok(outcome),
            Prepared::New(key, compiled) => (key, compiled),
        };
        // Two files of one process may hold the same.
        if let Some(placed) = self.placed.get(&key) {
            return Ok(Ok(placed.clone()));
        }
        let outcome = match compiled {
            Ok(compiled) => self.load(target, compiled)?,
            Err(reason) => Err(reason),
        };
        // What is refused may be no more than what one process has no room for.
        if let Ok(placed) = &outcome {
            self.placed.insert(key, placed.clone());
        }
        Ok(outcome)
    }

    fn load(&mut self, target: u32, compiled: Compiled) -> Result<Result<Placed, Without>> {
        let Compiled { segments, table, refused } = compiled;
        if let Err(exhausted) = self.budget.take_room(target, table.rows.len(), table.pages.len()) {
            return Ok(Err(Without { is_own_share: true, ..exhausted.to_string().into() }));
        }
        match self.tables.load(&table, self.how == Unwind::Auto) {
            Ok(loaded) => Ok(Ok(Placed {
                base: table.base,
                first_page: loaded.first_page,
                bytes: loaded.bytes,
                unknown_bytes: table.unknown_bytes,
                pages: table.pages.len() as u32,
                rows: table.rows.len(),
                left_out: table.left_out,
                read: table.read,
                refused,
                segments,
            })),
            Err(error) => match error.downcast::<NoRoom>() {
                Ok(no_room) => Ok(Err(no_room.to_string().into())),
                Err(error) => Err(error),
            },
        }
    }
}

/// What was made of a file.
pub(super) enum Prepared {
    /// Nothing: the session is to end.
    Stopped,
    /// Equal tables are placed already, or it has none.
    Known(Result<Placed, Without>),
    /// By a hash of what they are made of: the tables, or why they cannot be made.
    New(u64, Result<Compiled, Without>),
}

/// Compiles tables, unless equal ones are placed.
fn prepare(
    file: &File,
    max_rows: usize,
    allowance: &mut Allowance<'_>,
    key: &RandomState,
    placed: &HashMap<u64, Placed>,
) -> Prepared {
    let source = match Source::read(file, allowance) {
        Ok(source) => source,
        Err(NoTable::Stopped) => return Prepared::Stopped,
        Err(why) => return Prepared::Known(Err(why.into())),
    };
    let hash = key.hash_one(&source);
    if let Some(placed) = placed.get(&hash) {
        return Prepared::Known(Ok(placed.clone()));
    }
    match source.compile(max_rows, allowance.stop()) {
        Err(NoTable::Stopped) => Prepared::Stopped,
        compiled => Prepared::New(hash, compiled.map_err(Without::from)),
    }
}
