//! How the stacks of a session are made: which object has tables, and where each process has it mapped.

mod learn;
mod told;

use std::{
    collections::{HashMap, HashSet},
    fs::{self, File},
    hash::{BuildHasher as _, RandomState},
    io,
    os::unix::fs::FileExt as _,
    sync::{Arc, atomic::AtomicBool},
};

use anyhow::Result;
use leakprobe_common::{CodeRange, MAX_RANGES, NO_TABLE, PAGE_BITS, Rule, STAYS, UNUSED};

use self::learn::Prepared;
use super::budget::Budget;
use crate::{
    cli::Unwind,
    probe::tables::{Code, Image, MAX_PAGES, Tables},
    target::{
        elf::CodeSegment,
        needed,
        space::{AddressSpace, Backing, FileId, Mapping, Object},
    },
    unwind::{
        object::{NoTable, Source},
        sections::Refused,
    },
};

/// Bytes of the vDSO that are read; it has two to four pages.
const MAX_VDSO: u64 = 1 << 20;

/// The tables of a session's objects.
pub struct ObjectTables {
    how: Unwind,
    tables: Tables,
    objects: HashMap<FileId, Known>,
    /// What is mapped and waits for its tables, by process.
    pending: HashMap<u32, HashMap<FileId, String>>,
    budget: Budget,
    /// Set when the session is to end.
    stop: Arc<AtomicBool>,
    /// Whether this is the last look.
    hurried: bool,
    /// By a hash of what they are made of, and not by build ID, which whoever builds a file can choose.
    placed: HashMap<u64, Placed>,
    /// The hash's key, which nobody knows: no file can be made to pass for another.
    key: RandomState,
    /// The same in all processes; `None` while it was not looked for.
    vdso: Option<Result<Placed, Without>>,
    /// Mappings that there was no room for, by process.
    cut: HashMap<u32, usize>,
    /// Whether there is code that is in no file.
    has_other_code: bool,
    links: needed::Known,
}

/// An object that was looked at.
struct Known {
    path: String,
    opened: bool,
    outcome: Result<Placed, Without>,
    /// Processes that had no more room for it; others may have.
    without_room: HashSet<u32>,
}

/// Why an object has no tables.
#[derive(Clone)]
struct Without {
    reason: String,
    /// Whether it simply has nothing that they could be made of.
    is_plain: bool,
    /// Whether that is so because its process has taken what it may.
    is_own_share: bool,
}

impl Known {
    /// Whether nothing else is to be found when the object is met in a process.
    fn is_final(&self, object: &Object, target: u32) -> bool {
        let is_own_share = matches!(&self.outcome, Err(without) if without.is_own_share);
        // One that could not be opened is tried again.
        (self.opened || object.file.is_err()) && (!is_own_share || self.without_room.contains(&target))
    }
}

impl From<NoTable> for Without {
    fn from(why: NoTable) -> Self {
        Self { reason: why.to_string(), is_plain: matches!(why, NoTable::Missing), is_own_share: false }
    }
}

impl From<String> for Without {
    fn from(reason: String) -> Self {
        Self { reason, is_plain: false, is_own_share: false }
    }
}

/// Tables in the kernel.
#[derive(Clone)]
struct Placed {
    /// Address in the object of the first page.
    base: u64,
    /// Number of the first page.
    first_page: u32,
    pages: u32,
    rows: usize,
    bytes: u64,
    unknown_bytes: u64,
    left_out: usize,
    /// Functions that were read.
    read: usize,
    refused: Vec<Refused>,
    segments: Vec<CodeSegment>,
}

impl ObjectTables {
    /// Nothing known yet. `is_alone`: whether no more than one process is profiled.
    pub fn new(how: Unwind, tables: Tables, is_alone: bool) -> Self {
        Self {
            how,
            // Half of the room is one object's, at first.
            budget: Budget::new(tables.share() * 2, MAX_PAGES, is_alone),
            tables,
            objects: HashMap::new(),
            pending: HashMap::new(),
            stop: Arc::default(),
            hurried: false,
            placed: HashMap::new(),
            key: RandomState::new(),
            vdso: None,
            cut: HashMap::new(),
            has_other_code: false,
            links: needed::Known::default(),
        }
    }

    /// No tables are made any more once `stop` is set.
    pub fn heed(&mut self, stop: Arc<AtomicBool>) {
        self.stop = stop;
    }

    /// Another turn of the loop: see [`Budget`].
    pub fn begin_turn(&mut self) {
        self.budget.begin_turn();
    }

    /// The loop has ended: what is new since, and can be had quickly, has its tables made still.
    pub fn end_loop(&mut self) {
        self.stop = Arc::default();
        self.hurried = true;
        self.budget.begin_turn();
    }

    /// Epoch of a process's code: to be asked for before its mappings are read.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn epoch(&self, target: u32) -> Result<u32> {
        self.tables.epoch(target)
    }

    /// Begins with another process in a target's place.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn begin_anew(&mut self, target: u32, epoch: u32) -> Result<()> {
        self.budget.begin_anew(target);
        self.pending.remove(&target);
        self.tables.begin_anew(target, epoch)
    }

    /// Tells the BPF programs of a process's code, before they meet it. `target` is its number, `space` what it has mapped
    /// now, `variant` what tells that from what was there before, `program` the file that it runs, where that is known.
    /// Whether all of it is described; else the rest is when this is called in another turn.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn describe(
        &mut self,
        target: u32,
        image: Image,
        space: &AddressSpace,
        variant: u32,
        program: Option<FileId>,
    ) -> Result<bool> {
        if self.how == Unwind::Fp {
            self.note_frame_pointers(space);
        }
        if !matches!(self.how, Unwind::Auto | Unwind::Dwarf) {
            return Ok(true);
        }
        self.learn(target, space)?;
        let staying = program.map_or_else(HashSet::new, |program| self.links.staying(space, program));
        let stays = |mapping: &Mapping| match &mapping.backing {
            Backing::Object(object) => staying.contains(&object.id),
            Backing::Named(name) => name == "[vdso]",
            Backing::Anonymous => false,
        };
        let mut ranges = Vec::new();
        for mapping in space.mappings.iter().filter(|mapping| mapping.executable && mapping.start < UNUSED) {
            let flag = if stays(mapping) { STAYS } else { 0 };
            ranges.extend(
                self.range(target, mapping)?.map(|range| CodeRange { pages: range.pages | flag, ..range }),
            );
            self.has_other_code |= matches!(&mapping.backing, Backing::Anonymous);
        }
        if ranges.len() > MAX_RANGES {
            join_without_tables(&mut ranges);
        }
        self.cut.insert(target, ranges.len().saturating_sub(MAX_RANGES));
        self.tables.describe(target, image, Code { variant, ranges })?;
        Ok(!self.pending.contains_key(&target))
    }

    /// The variant of a process's code.
    pub fn variant(&self, target: u32, image: Image) -> u32 {
        self.tables.variant(target, image)
    }

    /// The rule of an address in a process's code.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn rule(&self, target: u32, image: Image, address: u64) -> Result<Rule> {
        self.tables.rule(target, image, address)
    }

    /// Notes the objects of a process, in all of which frame pointers are followed.
    fn note_frame_pointers(&mut self, space: &AddressSpace) {
        for mapping in space.mappings.iter().filter(|mapping| mapping.executable) {
            let Backing::Object(object) = &mapping.backing else { continue };
            let path = object.path.to_string_lossy().into_owned();
            let outcome = Err("--unwind fp says so".to_owned().into());
            self.objects.entry(object.id).or_insert(Known {
                path,
                opened: true,
                outcome,
                without_room: HashSet::new(),
            });
        }
    }

    /// A mapping as the programs look it up; `None` where stacks are to end in it, and where it is not described yet.
    fn range(&mut self, target: u32, mapping: &Mapping) -> Result<Option<CodeRange>> {
        let guess = (self.how == Unwind::Auto).then_some(CodeRange {
            start: mapping.start,
            end: mapping.end,
            offset: 0,
            pages: NO_TABLE,
        });
        let (placed, from) = match &mapping.backing {
            Backing::Object(object)
                if self.pending.get(&target).is_some_and(|them| them.contains_key(&object.id)) =>
            {
                return Ok(None);
            }
            Backing::Object(object) => (self.object(object), mapping.file_offset),
            Backing::Named(name) if name == "[vdso]" => (self.vdso(target)?, 0),
            // Return addresses in it are not those that unwinding wants.
            Backing::Named(_) if mapping.is_trampoline() => return Ok(None),
            Backing::Named(_) | Backing::Anonymous => return Ok(guess),
        };
        Ok(placed.and_then(|placed| placed.range(mapping, from)).or(guess))
    }

    /// Where an object's tables are; `None` where it has none.
    fn object(&self, object: &Object) -> Option<Placed> {
        self.objects.get(&object.id)?.outcome.as_ref().ok().cloned()
    }

    fn vdso(&mut self, target: u32) -> Result<Option<Placed>> {
        if self.vdso.is_none() {
            let source = own_vdso()
                .map_err(|error| error.to_string().into())
                .and_then(|bytes| Source::read_vdso(&bytes).map_err(Without::from));
            let outcome = match source {
                Ok(source) => {
                    let compiled = source.compile(self.tables.share(), &AtomicBool::new(false));
                    self.place(
                        target,
                        Prepared::New(self.key.hash_one(&source), compiled.map_err(Without::from)),
                    )?
                }
                Err(without) => Err(without),
            };
            self.vdso = Some(outcome);
        }
        Ok(self.vdso.as_ref().and_then(|outcome| outcome.as_ref().ok().cloned()))
    }
}

/// Makes one range of those without tables that none with tables lies between: what is in the gaps of JIT code, should
/// something be, is walked in the same way.
fn join_without_tables(ranges: &mut Vec<CodeRange>) {
    ranges.dedup_by(|next, before| {
        let joins = next.pages == NO_TABLE && before.pages == NO_TABLE;
        if joins {
            before.end = next.end;
        }
        joins
    });
}

impl Placed {
    /// A mapping of the object from a file offset on; `None` where that is in no segment of code.
    fn range(&self, mapping: &Mapping, from: u64) -> Option<CodeRange> {
        let page = procfs::page_size();
        let segment = self.segments.iter().find(|segment| {
            let start = segment.file_offset / page * page;
            (start..segment.file_offset.saturating_add(segment.bytes)).contains(&from)
        })?;
        let address = segment.address.wrapping_add(from).wrapping_sub(segment.file_offset);
        let offset = address.checked_sub(self.base)?;
        let covered = (u64::from(self.pages) << PAGE_BITS).checked_sub(offset)?;
        let end = mapping.end.min(mapping.start.saturating_add(covered));
        Some(CodeRange { start: mapping.start, end, offset: offset.try_into().ok()?, pages: self.first_page })
    }
}

/// The vDSO of this process; the kernel maps the same one into all of the same kind.
fn own_vdso() -> io::Result<Vec<u8>> {
    let maps = fs::read_to_string("/proc/self/maps")?;
    let parse = |line: &str| {
        let (start, end) = line.split_whitespace().next()?.split_once('-')?;
        Some((u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?))
    };
    let range = maps.lines().find(|line| line.ends_with("[vdso]")).and_then(parse);
    let (start, end) =
        range.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "this kernel maps no vDSO"))?;
    let mut bytes = vec![0; (end - start).min(MAX_VDSO) as usize];
    File::open("/proc/self/mem")?.read_exact_at(&mut bytes, start)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_without_tables_are_joined_across_nothing_but_gaps() {
        let range = |start, end, pages| CodeRange { start, end, offset: 0, pages };
        let mut ranges = vec![
            range(10, 20, NO_TABLE),
            range(30, 40, NO_TABLE),
            range(50, 60, 7),
            range(70, 80, NO_TABLE),
            range(90, 95, NO_TABLE),
        ];
        join_without_tables(&mut ranges);
        assert_eq!(ranges, [range(10, 40, NO_TABLE), range(50, 60, 7), range(70, 95, NO_TABLE)]);
    }
}
