//! Where the functions of an object return that may throw: what the search wants to read of the object's file.

mod parts;

use std::collections::HashMap;

use object::{
    LittleEndian as LE,
    elf::{
        DT_JMPREL, DT_PLTRELSZ, DT_RELA, DT_RELASZ, R_X86_64_GLOB_DAT, R_X86_64_JUMP_SLOT, Rela64, SHN_UNDEF,
        STT_FUNC, Sym64,
    },
    pod::{bytes_of_mut, from_bytes},
};

use self::parts::Parts;
use super::{
    elf::{Elf, ObjectError, ReadAt, stream},
    symbols::{Allocator, Function},
};
use crate::probe::plan::leave::{self, Image};

/// Where a function returns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Leaves {
    /// At its return probe: it does not throw.
    AtReturnProbe,
    /// At the instructions at these offsets in the object's file.
    At(Vec<u64>),
    /// That is not known, and why.
    Unknown(String),
}

/// Code read at a time, bytes.
const PIECE: usize = 256;
/// Symbols to which pointers of an object lead; the largest have some 10,000.
const MAX_POINTERS: usize = 1 << 18;

/// Finds out where those functions return that may throw.
pub(super) fn find<R: ReadAt + ?Sized>(
    elf: &Elf<'_, R>,
    allocators: &mut [Allocator],
) -> Result<(), ObjectError> {
    let functions = || allocators.iter().flat_map(|allocator| &allocator.functions);
    if !functions().any(|function| function.role.throws) {
        return Ok(());
    }
    let returning = functions().filter(|function| function.role.returns() && !function.role.throws);
    let returning = returning.map(|function| function.address).collect();
    let image = ObjectImage { elf, pointers: pointers(elf)?, parts: Parts::of(elf)?, returning };
    for function in allocators.iter_mut().flat_map(|allocator| &mut allocator.functions) {
        if function.role.throws {
            function.leaves = image.leaves(function);
        }
    }
    Ok(())
}

struct ObjectImage<'a, R: ?Sized> {
    elf: &'a Elf<'a, R>,
    pointers: HashMap<u64, u64>,
    parts: Option<Parts>,
    /// Functions with a return probe.
    returning: Vec<u64>,
}

impl<R: ReadAt + ?Sized> ObjectImage<'_, R> {
    fn leaves(&self, function: &Function) -> Leaves {
        if self.parts.is_none() {
            return Leaves::Unknown("the object does not say where functions end (.eh_frame)".to_owned());
        }
        let offset = |&address: &u64| self.elf.code_offset(address).map(|(offset, _)| offset);
        match leave::leaves(function.arch, function.address, self) {
            Ok(leaves) => Leaves::At(leaves.iter().filter_map(offset).collect()),
            Err(why) => Leaves::Unknown(why),
        }
    }
}

impl<R: ReadAt + ?Sized> Image for ObjectImage<'_, R> {
    fn end(&self, address: u64) -> u64 {
        self.parts.as_ref().map_or(address, |parts| parts.end(self.elf, address))
    }

    fn code(&self, address: u64, end: u64) -> Vec<u8> {
        let Some((offset, rest)) = self.elf.code_offset(address) else { return Vec::new() };
        let mut code = vec![0; rest.min(end.saturating_sub(address)).min(PIECE as u64) as usize];
        let read = self.elf.file.read_at(&mut code, offset).unwrap_or(0);
        code.truncate(read);
        code
    }

    fn pointer(&self, address: u64) -> Option<u64> {
        self.pointers.get(&address).copied()
    }

    fn has_return_probe(&self, address: u64) -> bool {
        self.returning.contains(&address)
    }
}

/// The functions of this object to which its own pointers lead, by the pointer's address. Another object that comes first
/// and defines the same name would have them lead there; the ends of such calls are not seen, and they are counted as such.
fn pointers<R: ReadAt + ?Sized>(elf: &Elf<'_, R>) -> Result<HashMap<u64, u64>, ObjectError> {
    let mut pointers = HashMap::new();
    let Some(symbols) = elf.dynamic_symbols()? else { return Ok(pointers) };
    let mut wanted: Vec<(u64, u32)> = Vec::new();
    for (start, bytes) in [(DT_JMPREL, DT_PLTRELSZ), (DT_RELA, DT_RELASZ)] {
        let Some((offset, len)) = elf.dynamic_range(start, bytes)? else { continue };
        let size = size_of::<Rela64<LE>>();
        stream(elf.file, offset, len, |chunk| {
            let entries = chunk.chunks_exact(size).filter_map(|bytes| from_bytes::<Rela64<LE>>(bytes).ok());
            for (entry, _) in entries {
                let kind = entry.r_type(LE, false);
                if [R_X86_64_JUMP_SLOT, R_X86_64_GLOB_DAT].contains(&kind) {
                    wanted.push((entry.r_offset.get(LE), entry.r_sym(LE, false)));
                }
            }
            wanted.len() < MAX_POINTERS
        })?;
    }
    for (slot, index) in wanted {
        let mut words = [0u64; size_of::<Sym64<LE>>() / 8];
        let bytes = bytes_of_mut(&mut words);
        if u64::from(index) >= symbols.count {
            continue;
        }
        let at = symbols.symbols.saturating_add(u64::from(index) * bytes.len() as u64);
        if elf.file.read_at(bytes, at)? < bytes.len() {
            continue;
        }
        let Ok((symbol, _)) = from_bytes::<Sym64<LE>>(bytes) else { continue };
        if symbol.st_shndx.get(LE) != SHN_UNDEF && symbol.st_info & 0xf == STT_FUNC {
            pointers.insert(slot, symbol.st_value.get(LE));
        }
    }
    Ok(pointers)
}
