//! Finding an allocator's functions in an object's symbol tables.
//!
//! A table is searched in two passes, each over a stream of chunks: first the names, for those of the
//! families (linkers store `malloc` as the tail of `__libc_malloc`, so any position may be one); then the
//! symbols, for those whose name is at one of these positions. Nothing is kept but the hits.

pub mod hidden;
mod operators;
pub mod prefixes;
#[cfg(test)]
mod tests;

use leakprobe_common::Call;
use object::{
    LittleEndian as LE,
    elf::{SHN_ABS, SHN_UNDEF, STB_LOCAL, STT_FUNC, Sym64},
    pod::from_bytes,
};

use super::{
    elf::{CHUNK, Elf, MAX_STRINGS, MAX_SYMBOLS, ObjectError, ReadAt, Table, stream},
    family::{Family, LINK_STATE, NOT_ALLOCATORS, Role, wanted_names},
    forward,
    leave::{self, Leaves},
};
use crate::probe::plan::{Arch, Request};

/// Bytes of code kept of a function, for placing its probe.
pub const MAX_CODE: u64 = 4096;
/// Hits in one table; a real one has about 30, and a hostile one could have any number.
const MAX_HITS: usize = 4096;
/// Names in one table that end like a wanted one; those of the largest programs are some thousands.
const MAX_NAMES: usize = 1 << 20;

/// A function that is to be probed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    /// Its names in the family's table, sorted: all that share this address.
    pub symbols: Vec<&'static str>,
    /// What it does, and with which arguments.
    pub role: Role,
    /// Instruction set of `code`.
    pub arch: Arch,
    /// Virtual address as the object's own symbol table counts.
    pub address: u64,
    /// Offset of its first byte in the object's file.
    pub file_offset: u64,
    /// Bytes of it, as its symbol says; 0 when the symbol doesn't.
    pub size: u64,
    /// Of the dynamic linker's: address in the object of the state that it tells of.
    pub state: Option<u64>,
    /// Where it returns.
    pub leaves: Leaves,
    /// Its code from the first byte on; at most [`MAX_CODE`] bytes, and none that belong to the next symbol
    /// or lie outside of its segment.
    pub code: Vec<u8>,
}

impl Function {
    /// What the search for a place to probe wants to know.
    /// `arguments` is [`Role::arguments`] of [`Function::role`].
    pub fn request<'a>(&'a self, arguments: &'a [u8]) -> Request<'a> {
        Request {
            arch: self.arch,
            code: &self.code,
            address: self.address,
            arguments,
            returns: self.role.returns(),
            null_may_leave: self.role.null_may_leave(),
        }
    }
}

/// The allocator of one family in an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allocator {
    /// Index of the family in the table searched for.
    pub family: usize,
    /// At least one, in the order in which probes must be attached (frees first), then by offset.
    pub functions: Vec<Function>,
    /// Whether some of its frees are nothing but a jump to a function of another object, and its blocks another's to free.
    pub freed_elsewhere: bool,
}

/// What an object was found to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// One that holds allocators, at least one, in order of the families.
    Allocators(Vec<Allocator>),
    /// No allocator, and why.
    Nothing(Nothing),
}

/// Why there is no allocator in an object that could be searched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nothing {
    /// It defines no `malloc` and `free`: the ordinary object.
    NoAllocator,
    /// It has no symbol table left.
    Stripped,
    /// It defines them and is known to be nobody's allocator.
    NotOne(&'static str),
}

impl std::fmt::Display for Nothing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NoAllocator => f.write_str("defines no malloc and free"),
            Self::Stripped => f.write_str(
                "stripped: it has no symbol table, so a statically linked malloc in it has no name",
            ),
            Self::NotOne(why) => f.write_str(why),
        }
    }
}

/// A defined function with a wanted name.
#[derive(Clone, Copy, Debug)]
struct Hit {
    name: &'static str,
    address: u64,
    size: u64,
    /// Whether it is a function that can be probed; a mark that is data only tells what the object is.
    function: bool,
    /// A program's own `static void free()` is nobody's allocator. But a linker may have made a global name
    /// local (`malloc` of a static PIE): it counts where a global one, `__malloc`, has its address.
    local: bool,
}

/// Searches an object for the functions of `families`, first in its dynamic symbols, and, when they name no family that
/// is known, in its full symbol table (a static executable has nothing else; one that exports its `malloc` alone says only
/// there whose it is).
///
/// # Errors
/// When it is no object for this machine, is damaged, exceeds the bounds in [`super::elf`], or can't be read.
pub fn find_functions<R: ReadAt + ?Sized>(file: &R, families: &[Family]) -> Result<Found, ObjectError> {
    let elf = Elf::parse(file)?;
    let names = wanted_names(families);
    let dynamic = elf.dynamic_symbols()?;
    let mut searched = false;
    let mut found = None;
    if let Some(table) = dynamic {
        searched |= table.count > 1;
        found = search(&elf, table, &names, families)?;
        if found.as_ref().is_some_and(|found| found.is_settled(families)) {
            return Ok(found.unwrap_or(Found::Nothing(Nothing::NoAllocator)));
        }
    }
    // The program runs without this table: nobody has checked it yet.
    let more = match elf.full_symbols() {
        Ok(Some(table)) => {
            searched |= table.count > 1;
            search(&elf, table, &names, families)
        }
        Ok(None) => Ok(None),
        Err(error) => Err(error),
    };
    match (found, more) {
        (Some(found), Ok(Some(more))) => Ok(if more.says_more(&found, families) { more } else { found }),
        (Some(found), _) | (None, Ok(Some(found))) => Ok(found),
        (None, Ok(None)) if searched => Ok(Found::Nothing(Nothing::NoAllocator)),
        (None, Ok(None)) => Ok(Found::Nothing(Nothing::Stripped)),
        (None, Err(error)) => Err(error),
    }
}

impl Found {
    /// Whether it names more of the families that are known than another table has.
    fn says_more(&self, other: &Self, families: &[Family]) -> bool {
        let known = |found: &Self| match found {
            Self::Allocators(all) => (
                all.iter().filter(|allocator| families[allocator.family].known).count(),
                all.iter().map(|allocator| allocator.functions.len()).sum(),
            ),
            Self::Nothing(_) => (0, 0),
        };
        matches!(self, Self::Nothing(_)) || known(self) > known(other)
    }

    /// Whether another table could not say better whose allocator it is.
    fn is_settled(&self, families: &[Family]) -> bool {
        match self {
            Self::Allocators(allocators) => {
                let has = |index: usize| allocators.iter().any(|allocator| allocator.family == index);
                allocators.iter().all(|allocator| families[allocator.family].known)
                    && families.iter().enumerate().all(|(index, family)| !family.local_too || has(index))
            }
            Self::Nothing(_) => true,
        }
    }
}

fn search<R: ReadAt + ?Sized>(
    elf: &Elf<'_, R>,
    table: Table,
    names: &[&'static str],
    families: &[Family],
) -> Result<Option<Found>, ObjectError> {
    if table.count > MAX_SYMBOLS {
        return Err(ObjectError::TooLarge("more than 16777216 symbols"));
    }
    if table.strings_len > MAX_STRINGS {
        return Err(ObjectError::TooLarge("more than 512 MiB of symbol names"));
    }
    let positions = find_names(elf.file, table, names)?;
    let hits = find_hits(elf.file, table, &positions)?;
    let defines = |name: &str| hits.iter().any(|h| h.name == name && !h.local);
    let mut allocators: Vec<Allocator> = Vec::new();
    let mut not_one = None;
    for (index, family) in families.iter().enumerate() {
        let taken =
            |address: u64| allocators.iter().any(|a| a.functions.iter().any(|f| f.address == address));
        // A name that another family has taken is that one's.
        let tells = |name: &str| {
            let counts = |hit: &&Hit| hit.name == name && (!hit.local || family.local_too);
            let mut defined = hits.iter().filter(counts).peekable();
            defined.peek().is_some() && !defined.any(|hit| hit.function && taken(hit.address))
        };
        if !family.recognised_by.iter().any(|names| names.iter().all(|name| tells(name))) {
            continue;
        }
        if family.is_allocator()
            && let Some((_, why)) = NOT_ALLOCATORS.iter().find(|(mark, _)| defines(mark))
        {
            not_one = Some(Found::Nothing(Nothing::NotOne(why)));
            continue;
        }
        let functions = functions(elf, table, &hits, family, taken)?;
        if !functions.is_empty() {
            allocators.push(Allocator { family: index, functions, freed_elsewhere: false });
        }
    }
    leave_to_others(elf, &mut allocators)?;
    operators::leave_to_malloc(&mut allocators, families);
    leave::find(elf, &mut allocators)?;
    if allocators.is_empty() { Ok(not_one) } else { Ok(Some(Found::Allocators(allocators))) }
}

/// Takes those frees out that are nothing but a jump to another one, where both would be hit: one free, seen twice. Where a
/// jump goes by a linkage table, the other one is known by its name, as all of an allocator's are.
fn leave_to_others<R: ReadAt + ?Sized>(
    elf: &Elf<'_, R>,
    allocators: &mut [Allocator],
) -> Result<(), ObjectError> {
    let all: Vec<u64> = allocators.iter().flat_map(|a| &a.functions).map(|f| f.address).collect();
    for allocator in allocators {
        let mut kept = Vec::with_capacity(allocator.functions.len());
        for function in allocator.functions.drain(..) {
            let target = (function.role.call == Call::Free)
                .then(|| forward::target(function.arch, function.address, &function.code))
                .flatten();
            let is_left = match target {
                Some(target) if all.contains(&target) => target != function.address,
                Some(target) => {
                    let mut code = [0; 16];
                    let at = elf.code_offset(target);
                    let n = at.map_or(Ok(0), |(offset, _)| elf.file.read_at(&mut code, offset))?;
                    let is_elsewhere = forward::is_linkage_table(function.arch, &code[..n]);
                    allocator.freed_elsewhere |= is_elsewhere;
                    is_elsewhere
                }
                None => false,
            };
            if !is_left {
                kept.push(function);
            }
        }
        allocator.functions = kept;
    }
    Ok(())
}

/// Positions of the wanted names in the table's strings, ascending.
fn find_names<R: ReadAt + ?Sized>(
    file: &R,
    table: Table,
    names: &[&'static str],
) -> Result<Vec<(u32, &'static str)>, ObjectError> {
    let longest = names.iter().map(|n| n.len()).max().unwrap_or(0);
    let mut last_bytes = [false; 256];
    names.iter().filter_map(|n| n.as_bytes().last()).for_each(|&b| last_bytes[usize::from(b)] = true);

    let mut hits: Vec<(u32, &'static str)> = Vec::new();
    let mut window: Vec<u8> = Vec::with_capacity(longest + CHUNK);
    let mut window_start = 0; // position of window[0] in the strings
    let mut too_many = false;
    stream(file, table.strings, table.strings_len, |chunk| {
        // The end of the chunk before stays in front: a name may lie across.
        let keep = window.len().min(longest);
        window_start += (window.len() - keep) as u64;
        window.drain(..window.len() - keep);
        let fresh = window.len();
        window.extend_from_slice(chunk);
        let mut end = fresh;
        while let Some(n) = window[end..].iter().position(|&b| b == 0) {
            end += n;
            if end > 0 && last_bytes[usize::from(window[end - 1])] {
                for name in names.iter().filter(|name| window[..end].ends_with(name.as_bytes())) {
                    // MAX_STRINGS is below 4 GiB.
                    hits.push(((window_start + (end - name.len()) as u64) as u32, name));
                }
            }
            end += 1;
        }
        too_many = hits.len() > MAX_NAMES;
        !too_many
    })?;
    if too_many {
        return Err(ObjectError::TooLarge("more than 1048576 symbol names that end like an allocator's"));
    }
    hits.sort_unstable();
    Ok(hits)
}

/// The defined symbols at these positions.
fn find_hits<R: ReadAt + ?Sized>(
    file: &R,
    table: Table,
    positions: &[(u32, &'static str)],
) -> Result<Vec<Hit>, ObjectError> {
    let mut hits = Vec::new();
    let mut too_many = false;
    if positions.is_empty() {
        return Ok(hits);
    }
    each_symbol(file, table, |symbol| {
        if !is_defined(symbol) {
            return true;
        }
        let Ok(at) = positions.binary_search_by_key(&symbol.st_name.get(LE), |&(position, _)| position)
        else {
            return true;
        };
        // Not STT_GNU_IFUNC: its address that of the resolver, which runs once and allocates nothing.
        let function = symbol.st_info & 0xf == STT_FUNC;
        let (address, size) = (symbol.st_value.get(LE), symbol.st_size.get(LE));
        let local = symbol.st_info >> 4 == STB_LOCAL;
        hits.push(Hit { name: positions[at].1, address, size, function, local });
        too_many = hits.len() > MAX_HITS;
        !too_many
    })?;
    if too_many { Err(ObjectError::Damaged("thousands of allocator functions")) } else { Ok(hits) }
}

fn is_defined(symbol: &Sym64<LE>) -> bool {
    !matches!(symbol.st_shndx.get(LE), SHN_UNDEF | SHN_ABS) && symbol.st_value.get(LE) != 0
}

fn each_symbol<R: ReadAt + ?Sized>(
    file: &R,
    table: Table,
    mut visit: impl FnMut(&Sym64<LE>) -> bool,
) -> Result<(), ObjectError> {
    let size = size_of::<Sym64<LE>>();
    stream(file, table.symbols, table.count * size as u64, |chunk| {
        chunk
            .chunks_exact(size)
            .filter_map(|b| from_bytes::<Sym64<LE>>(b).ok())
            .all(|(symbol, _)| visit(symbol))
    })
}

fn functions<R: ReadAt + ?Sized>(
    elf: &Elf<'_, R>,
    table: Table,
    hits: &[Hit],
    family: &Family,
    taken: impl Fn(u64) -> bool,
) -> Result<Vec<Function>, ObjectError> {
    let mut functions: Vec<Function> = Vec::new();
    let of = |name, local| hits.iter().filter(move |h| h.function && h.name == name && h.local == local);
    let state = hits.iter().find(|hit| hit.name == LINK_STATE).map(|hit| hit.address);
    // In the family's order: where names share an address, the first one's role counts.
    for &(name, role) in family.functions {
        let local = of(name, true).filter(|_| family.local_too);
        for hit in of(name, false).chain(local).filter(|hit| !taken(hit.address)) {
            let Some((file_offset, _)) = elf.code_offset(hit.address) else { continue };
            match functions.iter_mut().find(|f| f.file_offset == file_offset) {
                Some(known) => {
                    known.size = known.size.max(hit.size);
                    known.symbols.push(name);
                }
                None => functions.push(Function {
                    symbols: vec![name],
                    role,
                    arch: elf.arch,
                    address: hit.address,
                    file_offset,
                    size: hit.size,
                    state: state.filter(|_| role.call == Call::CodeChange),
                    leaves: Leaves::AtReturnProbe,
                    code: Vec::new(),
                }),
            }
        }
    }
    for &(name, _) in family.functions {
        for hit in of(name, true) {
            functions.iter_mut().filter(|f| f.address == hit.address).for_each(|f| f.symbols.push(name));
        }
    }
    let ends = code_ends(elf.file, table, &functions)?;
    for (function, end) in functions.iter_mut().zip(ends) {
        function.symbols.sort_unstable();
        function.symbols.dedup();
        let segment = elf.code_offset(function.address).map_or(0, |(_, rest)| rest);
        let mut code = vec![0; segment.min(end - function.address).min(MAX_CODE) as usize];
        let n = elf.file.read_at(&mut code, function.file_offset)?;
        code.truncate(n);
        function.code = code;
    }
    functions.retain(|f| !f.code.is_empty());
    functions.sort_by_key(|f| (f.role.attach_rank(), f.file_offset));
    Ok(functions)
}

/// Where each function's code ends at the latest: by its own size, or, for symbols without one (hand-written
/// assembly), at the next symbol.
fn code_ends<R: ReadAt + ?Sized>(
    file: &R,
    table: Table,
    functions: &[Function],
) -> Result<Vec<u64>, ObjectError> {
    let end = |f: &Function| if f.size > 0 { f.address.saturating_add(f.size) } else { u64::MAX };
    let mut ends: Vec<u64> = functions.iter().map(end).collect();
    if functions.iter().any(|f| f.size == 0) {
        each_symbol(file, table, |symbol| {
            let value = symbol.st_value.get(LE);
            for (function, end) in functions.iter().zip(&mut ends) {
                if function.size == 0 && is_defined(symbol) && value > function.address {
                    *end = (*end).min(value);
                }
            }
            true
        })?;
    }
    Ok(ends)
}
