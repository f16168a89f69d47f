//! The unwind tables in the kernel: written once for each object, and shared by all targets that map it.

use std::{
    cell::RefCell,
    collections::{HashMap, hash_map::Entry},
};

use anyhow::{Context as _, Result, anyhow};
use aya::{
    Ebpf, Pod,
    maps::{Array, MapData},
};
use leakprobe_common::{
    CHUNK_ROWS, Chunk, CodePage, CodeRange, FRAME_POINTERS, MAX_RANGES, MAX_RULES, NO_RULE, NO_TABLE,
    PAGE_BITS, Rule, STAYS, Space, UNDESCRIBED, UNUSED, cfa, guess, row, saved,
};

use crate::unwind::table::{GUESS, Table};

/// Pages of code that there is room for: 4 GiB.
pub const MAX_PAGES: u32 = 65_536;

/// The maps, and what they hold.
pub struct Tables {
    spaces: Array<MapData, Space>,
    space_of: Array<MapData, u32>,
    epochs: Array<MapData, u32>,
    pages: Array<MapData, CodePage>,
    rows: Array<MapData, Chunk>,
    rules: Array<MapData, Rule>,
    numbers: HashMap<Rule, u16>,
    used_pages: u32,
    /// The chunk that is being filled, its index, and how many of its rows are.
    chunk: Box<Chunk>,
    chunk_index: u32,
    filled: usize,
    /// Room for chunks.
    chunks: u32,
    /// By target: what its code was described as.
    described: HashMap<u32, Described>,
    /// Chunks that were read, since the last one was written.
    read: RefCell<HashMap<u32, Box<Chunk>>>,
}

/// Chunks that are kept of those that were read: 2 MiB.
const MAX_READ: usize = 32;

/// Which code of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Image {
    /// Program image.
    pub generation: u32,
    /// Epoch of its code, see [`leakprobe_common::next_epoch`].
    pub epoch: u32,
}

/// Code of a process, as it is described.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Code {
    /// Tells it from other code that was there before, see [`leakprobe_common::variant_hash`].
    pub variant: u32,
    /// Its ranges, sorted by address.
    pub ranges: Vec<CodeRange>,
}

impl Image {
    /// The epoch that its code can be described in. Of a stack that was made while objects were unmapped, the next one:
    /// what was unmapped is gone, and the rest is where it was.
    pub fn settled_epoch(self) -> u32 {
        self.epoch + (self.epoch & 1)
    }
}

#[derive(Default)]
struct Described {
    generation: u32,
    epoch: u32,
    code: Code,
    second: bool,
    serial: u32,
}

/// An object's table in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadedTable {
    /// Number of its first page.
    pub first_page: u32,
    /// Bytes that it takes, beside the rules.
    pub bytes: u64,
}

/// Why an object's tables are not in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoRoom {
    /// More rows than half of the room that is left: one object must not take that of all others.
    #[error("its unwind tables would take more than half of the room that is left; raise --max-unwind-rows")]
    Rows,
    /// More pages.
    #[error("there is no room for its pages of code")]
    Pages,
    /// More different rules.
    #[error("there is no room for its unwind rules")]
    Rules,
}

impl Tables {
    /// Takes the maps out of a loaded object. `guess`: whether frame pointers are followed in code that is not described.
    ///
    /// # Errors
    /// When it does not have them.
    pub fn take(ebpf: &mut Ebpf, chunks: u32, guess: bool) -> Result<Self> {
        fn map<T: Pod>(ebpf: &mut Ebpf, name: &str) -> Result<Array<MapData, T>> {
            let map = ebpf.take_map(name).ok_or_else(|| anyhow!("the BPF object has no map {name}"))?;
            Ok(Array::try_from(map)?)
        }
        let mut tables = Self {
            spaces: map(ebpf, "SPACES")?,
            space_of: map(ebpf, "SPACE_OF")?,
            epochs: map(ebpf, "EPOCHS")?,
            pages: map(ebpf, "PAGES")?,
            rows: map(ebpf, "ROWS")?,
            rules: map(ebpf, "RULES")?,
            numbers: HashMap::new(),
            used_pages: 0,
            chunk: blank(),
            chunk_index: 0,
            filled: 0,
            chunks,
            described: HashMap::new(),
            read: RefCell::default(),
        };
        let nothing = Rule::default();
        let frame_pointers = Rule {
            cfa_offset: 16,
            fp_offset: -16,
            ra_offset: -8,
            cfa: cfa::FRAME_POINTER,
            fp: saved::AT_CFA,
            ra: saved::AT_CFA,
            is_guess: guess::FRAME_POINTER,
            ..Rule::default()
        };
        let undescribed = if guess { frame_pointers } else { nothing };
        let undescribed = Rule { is_guess: undescribed.is_guess | guess::UNDESCRIBED, ..undescribed };
        for (number, rule) in
            [(NO_RULE, nothing), (FRAME_POINTERS, frame_pointers), (UNDESCRIBED, undescribed)]
        {
            tables.rules.set(number.into(), rule, 0)?;
            tables.numbers.insert(rule, number);
        }
        Ok(tables)
    }

    /// Writes an object's table. `guess`: whether frame pointers are followed
    /// where the table says nothing of much code.
    ///
    /// # Errors
    /// [`NoRoom`], or what the kernel said.
    pub fn load(&mut self, table: &Table, guess: bool) -> Result<LoadedTable> {
        let first_page = self.used_pages;
        let before = self.used_rows();
        let pages = u32::try_from(table.pages.len()).map_err(|_| NoRoom::Pages)?;
        if first_page + pages > MAX_PAGES {
            return Err(NoRoom::Pages.into());
        }
        let left = self.chunks - self.chunk_index;
        let is_too_large = table.rows.len() > self.share() && table.rows.len() > CHUNK_ROWS / 2;
        if is_too_large || self.chunks_for(table) > left {
            return Err(NoRoom::Rows.into());
        }
        self.check_rules(&table.rules)?;
        let numbers = self.number(&table.rules)?;
        for (page, rows) in (first_page..).zip(&table.pages) {
            if self.filled + rows.len() > CHUNK_ROWS {
                self.next_chunk()?;
            }
            let (first, len) = (self.filled, rows.len());
            for (place, &(low, rule)) in
                self.chunk.rows[first..first + len].iter_mut().zip(&table.rows[rows.clone()])
            {
                let number = match rule {
                    GUESS if guess => FRAME_POINTERS,
                    0 | GUESS => NO_RULE,
                    rule => numbers[usize::from(rule) - 1],
                };
                *place = row(low, number);
            }
            self.filled += len;
            let entry = CodePage { chunk: self.chunk_index, first: first as u16, rows: len as u16 };
            self.pages.set(page, entry, 0).context("failed to write an unwind table's pages")?;
        }
        self.write_chunk()?;
        self.used_pages += pages;
        let rows = self.used_rows() - before;
        let bytes = (rows * size_of::<u32>() + table.pages.len() * size_of::<CodePage>()) as u64;
        Ok(LoadedTable { first_page, bytes })
    }

    /// Rows that one object's table may have: half of the room that is left.
    pub fn share(&self) -> usize {
        (self.chunks as usize * CHUNK_ROWS).saturating_sub(self.used_rows()) / 2
    }

    /// The same of rules; half of them is more than any object has, while there are any.
    fn check_rules(&self, rules: &[Rule]) -> Result<(), NoRoom> {
        let new = rules.iter().filter(|rule| !self.numbers.contains_key(rule)).count();
        let left = MAX_RULES - self.numbers.len();
        if new > left / 2 { Err(NoRoom::Rules) } else { Ok(()) }
    }

    /// Rows that are taken, those among them that a page did not fit in.
    fn used_rows(&self) -> usize {
        self.chunk_index as usize * CHUNK_ROWS + self.filled
    }

    /// Epoch of a target's code. What is described must have been read after it was asked for.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn epoch(&self, target: u32) -> Result<u32> {
        self.epochs.get(&target, 0).context("failed to read the epoch of a process's code")
    }

    /// Begins with another process in a target's place, in an epoch of its code: 0 where nothing has been unmapped yet.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn begin_anew(&mut self, target: u32, epoch: u32) -> Result<()> {
        self.epochs.set(target, epoch, 0).context("failed to reset the epoch of a process's code")
    }

    /// Describes a target's code, as it was in an epoch. Nothing is written where it is what it was.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn describe(&mut self, target: u32, image: Image, code: Code) -> Result<()> {
        let Image { generation, epoch } = image;
        let known = self.described.entry(target).or_default();
        let is_same = (known.generation, known.epoch) == (generation, epoch) && known.code == code;
        if is_same && !code.ranges.is_empty() {
            return Ok(());
        }
        let mut space = Box::new(Space {
            generation,
            epoch,
            variant: code.variant,
            serial: known.serial.wrapping_add(1),
            ranges: [CodeRange { start: UNUSED, ..CodeRange::default() }; MAX_RANGES],
            cache: [0; leakprobe_common::CACHE_ENTRIES],
        });
        let len = code.ranges.len().min(MAX_RANGES);
        space.ranges[..len].copy_from_slice(&code.ranges[..len]);
        let (second, serial) = (!known.second, space.serial);
        *known = Described { generation, epoch, code, second, serial };
        let index = 1 + target * 2 + u32::from(second);
        self.spaces
            .set(index, space.as_ref(), 0)
            .context("failed to describe a process's code to the BPF programs")?;
        self.space_of.set(target, index, 0).context("failed to describe a process's code to the BPF programs")
    }

    /// The variant of a target's code, as it is described; 0 where it is not.
    pub fn variant(&self, target: u32, image: Image) -> u32 {
        self.known(target, image).map_or(0, |known| known.code.variant)
    }

    fn known(&self, target: u32, image: Image) -> Option<&Described> {
        let is_of_it =
            |known: &&Described| (known.generation, known.epoch) == (image.generation, image.settled_epoch());
        self.described.get(&target).filter(is_of_it)
    }

    /// The rule of an address in a target's code, as the programs find it.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn rule(&self, target: u32, image: Image, address: u64) -> Result<Rule> {
        let number = self.rule_number(target, image, address)?;
        self.rules.get(&number.into(), 0).context("failed to read an unwind rule")
    }

    fn rule_number(&self, target: u32, image: Image, address: u64) -> Result<u16> {
        let ranges = self.known(target, image).map_or(&[][..], |known| &known.code.ranges);
        let ranges = &ranges[..ranges.len().min(MAX_RANGES)];
        let after = ranges.partition_point(|range| range.start <= address);
        let range = after.checked_sub(1).map(|index| ranges[index]).filter(|range| address < range.end);
        let Some(range) = range else { return Ok(UNDESCRIBED) };
        let first = range.pages & !STAYS;
        if first == NO_TABLE {
            return Ok(FRAME_POINTERS);
        }
        let offset = address - range.start + u64::from(range.offset);
        let page = first + (offset >> PAGE_BITS) as u32;
        let page = self.pages.get(&page, 0).context("failed to read an unwind table's pages")?;
        let mut read = self.read.borrow_mut();
        if read.len() >= MAX_READ && !read.contains_key(&page.chunk) {
            read.clear();
        }
        let chunk = match read.entry(page.chunk) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(place) => {
                let chunk = self.rows.get(&page.chunk, 0).context("failed to read an unwind table's rows")?;
                place.insert(Box::new(chunk))
            }
        };
        let rows = &chunk.rows[usize::from(page.first)..usize::from(page.first) + usize::from(page.rows)];
        let low = offset as u16;
        let after = rows.partition_point(|&entry| (entry >> 16) as u16 <= low);
        Ok(after.checked_sub(1).map_or(NO_RULE, |index| rows[index] as u16))
    }

    /// Chunks that a table's pages begin or fill, the present one among them; a page is in one.
    fn chunks_for(&self, table: &Table) -> u32 {
        let (mut chunks, mut filled) = (1, self.filled);
        for rows in &table.pages {
            if filled + rows.len() > CHUNK_ROWS {
                (chunks, filled) = (chunks + 1, 0);
            }
            filled += rows.len();
        }
        chunks
    }

    /// The numbers of rules, new ones written.
    fn number(&mut self, rules: &[Rule]) -> Result<Vec<u16>> {
        let mut numbers = Vec::with_capacity(rules.len());
        for rule in rules {
            let number = match self.numbers.get(rule) {
                Some(&number) => number,
                None => {
                    let next = self.numbers.len();
                    let number =
                        u16::try_from(next).ok().filter(|_| next < MAX_RULES).ok_or(NoRoom::Rules)?;
                    self.rules.set(number.into(), *rule, 0).context("failed to write an unwind rule")?;
                    self.numbers.insert(*rule, number);
                    number
                }
            };
            numbers.push(number);
        }
        Ok(numbers)
    }

    fn next_chunk(&mut self) -> Result<()> {
        self.write_chunk()?;
        self.chunk = blank();
        self.chunk_index += 1;
        self.filled = 0;
        Ok(())
    }

    fn write_chunk(&mut self) -> Result<()> {
        self.read.borrow_mut().clear();
        self.rows
            .set(self.chunk_index, self.chunk.as_ref(), 0)
            .context("failed to write an unwind table's rows")
    }
}

fn blank() -> Box<Chunk> {
    Box::new(Chunk { rows: [0; CHUNK_ROWS] })
}
