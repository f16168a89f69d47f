//! How the stacks of a session are made: which object has tables, and where each process has it mapped.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    fs::{self, File},
    hash::{BuildHasher as _, RandomState},
    io,
    num::NonZero,
    os::unix::fs::FileExt as _,
    panic::resume_unwind,
    thread,
};

use anyhow::Result;
use leakprobe_common::{CodeRange, MAX_RANGES, NO_TABLE, PAGE_BITS, Rule, STAYS, UNUSED};

use crate::{
    cli::Unwind,
    probe::tables::{Code, Image, NoRoom, Tables},
    report::{
        escape::visible,
        model::{ObjectStacks, StackMethod, Warning},
    },
    target::{
        elf::CodeSegment,
        needed,
        space::{AddressSpace, Backing, FileId, Mapping, Object},
    },
    unwind::object::{Compiled, Source},
};

/// Bytes of the vDSO that are read; it has two to four pages.
const MAX_VDSO: u64 = 1 << 20;

/// Objects that are compiled at a time, at most. A hostile one can take what [`Source`] and its limits allow, so the number
/// multiplies the memory that they may take in all.
const MAX_THREADS: usize = 2;

/// The tables of a session's objects.
pub struct ObjectTables {
    how: Unwind,
    tables: Tables,
    objects: HashMap<FileId, Known>,
    /// By a hash of what they are made of, and not by build ID, which whoever builds a file can choose.
    placed: HashMap<u64, Result<Placed, String>>,
    /// The hash's key, which nobody knows: no file can be made to pass for another.
    key: RandomState,
    /// The same in all processes; `None` while it was not looked for.
    vdso: Option<Result<Placed, String>>,
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
    outcome: Result<Placed, String>,
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
    segments: Vec<CodeSegment>,
}

impl ObjectTables {
    /// Nothing known yet.
    pub fn new(how: Unwind, tables: Tables) -> Self {
        let (objects, placed, cut) = (HashMap::new(), HashMap::new(), HashMap::new());
        Self {
            how,
            tables,
            objects,
            placed,
            key: RandomState::new(),
            vdso: None,
            cut,
            has_other_code: false,
            links: needed::Known::default(),
        }
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
    pub fn begin_anew(&mut self, target: u32) -> Result<()> {
        self.tables.begin_anew(target)
    }

    /// Tells the BPF programs of a process's code, before they meet it. `target` is its number, `space` what it has mapped
    /// now, `variant` what tells that from what was there before, `program` the file that it runs, where that is known.
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
    ) -> Result<()> {
        if self.how == Unwind::Fp {
            self.note_frame_pointers(space);
        }
        if !matches!(self.how, Unwind::Auto | Unwind::Dwarf) {
            return Ok(());
        }
        self.learn(space)?;
        let staying = program.map_or_else(HashSet::new, |program| self.links.staying(space, program));
        let stays = |mapping: &Mapping| match &mapping.backing {
            Backing::Object(object) => staying.contains(&object.id),
            Backing::Named(name) => name == "[vdso]",
            Backing::Anonymous => false,
        };
        let mut ranges = Vec::new();
        for mapping in space.mappings.iter().filter(|mapping| mapping.executable && mapping.start < UNUSED) {
            let flag = if stays(mapping) { STAYS } else { 0 };
            ranges.extend(self.range(mapping)?.map(|range| CodeRange { pages: range.pages | flag, ..range }));
            self.has_other_code |= matches!(&mapping.backing, Backing::Anonymous);
        }
        if ranges.len() > MAX_RANGES {
            join_without_tables(&mut ranges);
        }
        self.cut.insert(target, ranges.len().saturating_sub(MAX_RANGES));
        self.tables.describe(target, image, Code { variant, ranges })
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
            let outcome = Err("--unwind fp says so".to_owned());
            self.objects.entry(object.id).or_insert(Known { path, opened: true, outcome });
        }
    }

    /// How each object's stacks are made, in order of path.
    pub fn rows(&self) -> Vec<ObjectStacks> {
        let mut rows: Vec<ObjectStacks> = self
            .objects
            .values()
            .map(|known| match &known.outcome {
                Ok(placed) => ObjectStacks {
                    object: known.path.clone(),
                    method: StackMethod::Tables,
                    rows: placed.rows,
                    bytes: placed.bytes,
                    unknown_bytes: placed.unknown_bytes,
                    functions_left_out: placed.left_out,
                    reason: None,
                },
                Err(reason) => ObjectStacks {
                    object: known.path.clone(),
                    method: self.without_tables(),
                    rows: 0,
                    bytes: 0,
                    unknown_bytes: 0,
                    functions_left_out: 0,
                    reason: Some(reason.clone()),
                },
            })
            .collect();
        rows.sort_by(|a, b| a.object.cmp(&b.object));
        if self.has_other_code {
            rows.push(ObjectStacks {
                object: "code in no file".to_owned(),
                method: self.without_tables(),
                rows: 0,
                bytes: 0,
                unknown_bytes: 0,
                functions_left_out: 0,
                reason: Some("it was made while the program ran".to_owned()),
            });
        }
        rows
    }

    /// What is done where there are no tables.
    fn without_tables(&self) -> StackMethod {
        match self.how {
            Unwind::Auto | Unwind::Fp => StackMethod::FramePointers,
            Unwind::Dwarf | Unwind::Kernel | Unwind::Caller => StackMethod::Ended,
        }
    }

    /// What limits the stacks.
    pub fn warnings(&self) -> Vec<Warning> {
        let mut warnings = Vec::new();
        let without: Vec<(&str, &str)> = self
            .objects
            .values()
            .filter_map(|known| Some((known.path.as_str(), known.outcome.as_ref().err()?.as_str())))
            .collect();
        if let [(path, reason), others @ ..] = &without[..]
            && self.how != Unwind::Fp
        {
            let others = match others.len() {
                0 => String::new(),
                1 => " (and 1 more object)".to_owned(),
                more => format!(" (and {more} more objects)"),
            };
            let what = match self.how {
                Unwind::Auto => "follow frame pointers, which it may not have",
                _ => "end there",
            };
            let text =
                format!("stacks through {} {what}: {reason}{others}; --verbose names all", visible(path));
            warnings.push(Warning { kind: "no_unwind_tables".to_owned(), text });
        }
        let cut: usize = self.cut.values().sum();
        if cut > 0 {
            let text = format!(
                "{cut} mappings of code are beyond the {MAX_RANGES} of a process that stacks are unwound through: frame \
                 pointers are followed there, if there are any"
            );
            warnings.push(Warning { kind: "code_mappings_cut".to_owned(), text });
        }
        warnings
    }

    /// A mapping as the programs look it up; `None` where stacks are to end in it.
    fn range(&mut self, mapping: &Mapping) -> Result<Option<CodeRange>> {
        let guess = (self.how == Unwind::Auto).then_some(CodeRange {
            start: mapping.start,
            end: mapping.end,
            offset: 0,
            pages: NO_TABLE,
        });
        let (placed, from) = match &mapping.backing {
            Backing::Object(object) => (self.object(object), mapping.file_offset),
            Backing::Named(name) if name == "[vdso]" => (self.vdso()?, 0),
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

    fn vdso(&mut self) -> Result<Option<Placed>> {
        if self.vdso.is_none() {
            let source = own_vdso()
                .map_err(|error| error.to_string())
                .and_then(|bytes| Source::read_vdso(&bytes).map_err(|error| error.to_string()));
            let prepared = prepare(source, self.tables.share(), &self.key, &self.placed);
            self.vdso = Some(self.place(prepared)?);
        }
        Ok(self.vdso.as_ref().and_then(|outcome| outcome.as_ref().ok().cloned()))
    }

    /// Makes the tables of the objects that are new in a process. Several are compiled at a time, since probes wait for
    /// them, and written in the order of the mappings, so that the same ones find room each time.
    fn learn(&mut self, space: &AddressSpace) -> Result<()> {
        let mut seen = HashSet::new();
        let mut new: Vec<&Object> = Vec::new();
        for mapping in space.mappings.iter().filter(|mapping| mapping.executable) {
            let Backing::Object(object) = &mapping.backing else { continue };
            // One that could not be opened is tried again.
            let is_final = |known: &Known| known.opened || object.file.is_err();
            if seen.insert(object.id) && !self.objects.get(&object.id).is_some_and(is_final) {
                new.push(object.as_ref());
            }
        }
        if new.is_empty() {
            return Ok(());
        }
        let (key, placed, max_rows) = (self.key.clone(), self.placed.clone(), self.tables.share());
        let prepare_object = |object: &Object| -> Prepared {
            let source = object.file.as_ref().map_err(Clone::clone);
            let source = source.and_then(|file| Source::read(file).map_err(|error| error.to_string()));
            prepare(source, max_rows, &key, &placed)
        };
        let at_a_time = thread::available_parallelism().map_or(1, NonZero::get).min(MAX_THREADS);
        thread::scope(|scope| {
            let prepare_object = &prepare_object;
            let mut threads = new.into_iter().map(|object| (object, scope.spawn(|| prepare_object(object))));
            let mut begun: VecDeque<_> = threads.by_ref().take(at_a_time).collect();
            while let Some((object, thread)) = begun.pop_front() {
                let prepared = thread.join().unwrap_or_else(|panic| resume_unwind(panic));
                begun.extend(threads.next());
                let outcome = self.place(prepared)?;
                let path = object.path.to_string_lossy().into_owned();
                self.objects.insert(object.id, Known { path, opened: object.file.is_ok(), outcome });
            }
            Ok(())
        })
    }

    /// Writes tables into the kernel, once for all files that hold the same (those of two containers, say); that there is
    /// no room for them is no error of the session's.
    fn place(&mut self, prepared: Prepared) -> Result<Result<Placed, String>> {
        let (key, compiled) = match prepared {
            Prepared::Known(outcome) => return Ok(outcome),
            Prepared::New(key, compiled) => (key, compiled),
        };
        // Two files of one process may hold the same.
        if let Some(outcome) = self.placed.get(&key) {
            return Ok(outcome.clone());
        }
        let outcome = match compiled {
            Ok(compiled) => self.load(compiled)?,
            Err(reason) => Err(reason),
        };
        self.placed.insert(key, outcome.clone());
        Ok(outcome)
    }

    fn load(&mut self, compiled: Compiled) -> Result<Result<Placed, String>> {
        let Compiled { segments, table } = compiled;
        match self.tables.load(&table, self.how == Unwind::Auto) {
            Ok(loaded) => Ok(Ok(Placed {
                base: table.base,
                first_page: loaded.first_page,
                bytes: loaded.bytes,
                unknown_bytes: table.unknown_bytes,
                pages: table.pages.len() as u32,
                rows: table.rows.len(),
                left_out: table.left_out,
                segments,
            })),
            Err(error) => match error.downcast::<NoRoom>() {
                Ok(no_room) => Ok(Err(no_room.to_string())),
                Err(error) => Err(error),
            },
        }
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

/// What was made of a file.
enum Prepared {
    /// Equal tables are placed already, or it has none.
    Known(Result<Placed, String>),
    /// By a hash of what they are made of: the tables, or why they cannot be made.
    New(u64, Result<Compiled, String>),
}

/// Compiles tables, unless equal ones are placed.
fn prepare(
    source: Result<Source, String>,
    max_rows: usize,
    key: &RandomState,
    placed: &HashMap<u64, Result<Placed, String>>,
) -> Prepared {
    let source = match source {
        Ok(source) => source,
        Err(reason) => return Prepared::Known(Err(reason)),
    };
    let hash = key.hash_one(&source);
    match placed.get(&hash) {
        Some(outcome) => Prepared::Known(outcome.clone()),
        None => Prepared::New(hash, source.compile(max_rows).map_err(|error| error.to_string())),
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
