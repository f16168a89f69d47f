//! The little of an ELF file that discovery needs, read piece by piece.
//!
//! Reads go through `pread`, never through a mapping: the file's owner may cut it short at any moment. Sizes
//! come from the file, so each read here has a bound of its own, and tables are streamed in chunks. (The
//! `object` crate's `ReadCache` allocates whatever the headers claim, and keeps it; its type definitions are
//! used, its readers are not.)

use std::{fs::File, io, os::unix::fs::FileExt};

use object::{
    LittleEndian as LE, U32,
    elf::{
        DT_GNU_HASH, DT_HASH, DT_STRSZ, DT_STRTAB, DT_SYMTAB, Dyn64, ELFCLASS32, ELFCLASS64, ELFDATA2LSB,
        ELFMAG, EM_386, EM_AARCH64, EM_ARM, EM_X86_64, ET_DYN, ET_EXEC, FileHeader64, PF_X, PT_DYNAMIC,
        PT_GNU_EH_FRAME, PT_LOAD, ProgramHeader64, SHT_PROGBITS, SHT_SYMTAB, SHT_X86_64_UNWIND,
        SectionHeader64, Sym64,
    },
    pod::{Pod, bytes_of_mut, bytes_of_slice_mut, from_bytes},
};

use crate::probe::plan::Arch;

/// Symbols looked at in one table: 16 Mi, 384 MB of them. The largest unstripped browser has about 5 Mi.
pub const MAX_SYMBOLS: u64 = 16 << 20;
/// Bytes of names looked at in one table.
pub const MAX_STRINGS: u64 = 512 << 20;
/// Entries of the dynamic segment; real ones have 30.
const MAX_DYNAMIC: u64 = 4096;
/// Section headers; 64-bit kernels and `-ffunction-sections` builds stay far below.
const MAX_SECTIONS: u64 = 1 << 20;
/// Bytes read at a time: a multiple of every entry's size (4, 16, 24, 56 and 64).
pub const CHUNK: usize = 146 * 1344;

/// Why an object could not be searched.
#[derive(Debug, thiserror::Error)]
pub enum ObjectError {
    /// Not an ELF file at all: a data file or code without one.
    #[error("not an ELF file")]
    NotElf,
    /// An ELF file of a kind that is not searched.
    #[error("{0}")]
    Unsupported(&'static str),
    /// A table that lies outside of the file, or contradicts itself.
    #[error("damaged ELF file: {0}")]
    Damaged(&'static str),
    /// Larger than what is searched.
    #[error("too large to search: {0}")]
    TooLarge(&'static str),
    /// The kernel could not read it.
    #[error("failed to read it: {0}")]
    Io(#[from] io::Error),
}

/// What is read at an offset: a file, or bytes in a test.
pub trait ReadAt {
    /// Reads up to `buffer.len()` bytes from `offset` on; fewer only at the end.
    ///
    /// # Errors
    /// When the kernel can't read them.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
}

impl ReadAt for File {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut done = 0;
        while done < buffer.len() {
            let Some(at) = offset.checked_add(done as u64) else { break };
            match FileExt::read_at(self, &mut buffer[done..], at) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                // Offsets beyond what a file can have: there is nothing there.
                Err(e) if e.kind() == io::ErrorKind::InvalidInput => break,
                Err(e) => return Err(e),
            }
        }
        Ok(done)
    }
}

impl ReadAt for [u8] {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let rest = usize::try_from(offset).ok().and_then(|o| self.get(o..)).unwrap_or(&[]);
        let n = rest.len().min(buffer.len());
        buffer[..n].copy_from_slice(&rest[..n]);
        Ok(n)
    }
}

/// Whether a program can be profiled here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ElfKind {
    /// 64-bit, for this machine.
    Native(Arch),
    /// 32-bit of whatever kind (x32 included).
    ThirtyTwoBit,
    /// For another machine: `e_machine`.
    Foreign(u16),
}

/// The first bytes of an ELF file.
#[derive(Clone, Copy, Debug)]
pub struct FileHead(FileHeader64<LE>);

impl FileHead {
    /// Reads the head of an ELF file.
    ///
    /// # Errors
    /// [`ObjectError::NotElf`], or what reading gives.
    pub fn read(file: &(impl ReadAt + ?Sized)) -> Result<Self, ObjectError> {
        // Words, because the header's type wants their alignment. The first 20 bytes are the same in 32-bit files.
        let mut words = [0u64; 8];
        let bytes = bytes_of_mut(&mut words);
        if file.read_at(bytes, 0)? < 20 {
            return Err(ObjectError::NotElf);
        }
        let (header, _) = from_bytes::<FileHeader64<LE>>(bytes).map_err(|()| ObjectError::NotElf)?;
        if header.e_ident.magic == ELFMAG { Ok(Self(*header)) } else { Err(ObjectError::NotElf) }
    }

    /// Whether it is a program for this machine.
    pub fn kind(&self) -> ElfKind {
        let machine = self.0.e_machine.get(LE);
        let native = if cfg!(target_arch = "aarch64") { EM_AARCH64 } else { EM_X86_64 };
        match (self.0.e_ident.class, self.0.e_ident.data, machine) {
            (ELFCLASS32, ..) => ElfKind::ThirtyTwoBit,
            (ELFCLASS64, ELFDATA2LSB, m) if m == native => {
                ElfKind::Native(if m == EM_AARCH64 { Arch::Aarch64 } else { Arch::X86_64 })
            }
            (_, ELFDATA2LSB, m) => ElfKind::Foreign(m),
            (.., m) => ElfKind::Foreign(m.swap_bytes()),
        }
    }
}

/// A machine as people call it.
pub fn machine_name(machine: u16) -> String {
    match machine {
        EM_386 => "i386".into(),
        EM_X86_64 => "x86_64".into(),
        EM_ARM => "arm".into(),
        EM_AARCH64 => "aarch64".into(),
        other => format!("machine {other}"),
    }
}

/// Where a section is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Section {
    /// Address in the object.
    pub address: u64,
    /// Offset in the file, bytes.
    pub offset: u64,
    /// Length in the file, bytes.
    pub len: u64,
    /// Whether it is compressed, behind a head that says how.
    pub compressed: bool,
}

/// A segment that is mapped as code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CodeSegment {
    /// Where it begins in the file.
    pub file_offset: u64,
    /// Its address in the object.
    pub address: u64,
    /// Bytes of it that are in the file.
    pub bytes: u64,
}

/// A symbol table and its names, as ranges of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Table {
    /// Offset of the first symbol.
    pub symbols: u64,
    /// Number of symbols.
    pub count: u64,
    /// Offset of the names.
    pub strings: u64,
    /// Bytes of names.
    pub strings_len: u64,
}

/// An ELF file whose headers were read.
#[derive(Debug)]
pub struct Elf<'a, R: ?Sized> {
    /// The file.
    pub file: &'a R,
    /// What its code is for.
    pub arch: Arch,
    header: FileHeader64<LE>,
    segments: Vec<ProgramHeader64<LE>>,
}

impl<'a, R: ReadAt + ?Sized> Elf<'a, R> {
    /// Reads the headers.
    ///
    /// # Errors
    /// When this is not an executable or shared object for this machine, or when its headers are damaged.
    pub fn parse(file: &'a R) -> Result<Self, ObjectError> {
        let head = FileHead::read(file)?;
        let arch = match head.kind() {
            ElfKind::Native(arch) => arch,
            ElfKind::ThirtyTwoBit => return Err(ObjectError::Unsupported("a 32-bit object")),
            ElfKind::Foreign(_) => return Err(ObjectError::Unsupported("an object for another machine")),
        };
        let header = head.0;
        if !matches!(header.e_type.get(LE), ET_EXEC | ET_DYN) {
            return Err(ObjectError::Unsupported("neither an executable nor a shared object"));
        }
        // At most 65,535 of 56 bytes. (PN_XNUM's escape exists for core files only.)
        let count = u64::from(header.e_phnum.get(LE));
        let segments = array(file, header.e_phoff.get(LE), count)?;
        if segments.is_empty() {
            return Err(ObjectError::Damaged("no program headers"));
        }
        Ok(Self { file, arch, header, segments })
    }

    /// Where in the file the code at `address` lies, and how many bytes of its segment follow; `None` where
    /// no executable segment holds it.
    pub fn code_offset(&self, address: u64) -> Option<(u64, u64)> {
        self.offset(address, |flags| flags & PF_X != 0)
    }

    /// Address of the first instruction; 0 where there is none.
    pub fn entry(&self) -> u64 {
        self.header.e_entry.get(LE)
    }

    /// The segments that are mapped as code.
    pub fn code_segments(&self) -> Vec<CodeSegment> {
        let code = |segment: &&ProgramHeader64<LE>| {
            segment.p_type.get(LE) == PT_LOAD && segment.p_flags.get(LE) & PF_X != 0
        };
        let segment = |segment: &ProgramHeader64<LE>| CodeSegment {
            file_offset: segment.p_offset.get(LE),
            address: segment.p_vaddr.get(LE),
            bytes: segment.p_filesz.get(LE),
        };
        self.segments.iter().filter(code).map(segment).collect()
    }

    /// What `PT_GNU_EH_FRAME` points to: the index of the call frame information, its address and its place in the file.
    pub fn frame_index(&self) -> Option<(u64, u64)> {
        let segment = self.segments.iter().find(|segment| segment.p_type.get(LE) == PT_GNU_EH_FRAME)?;
        Some((segment.p_vaddr.get(LE), segment.p_offset.get(LE)))
    }

    /// Where in the file an address of any segment lies, and how many bytes of the segment follow.
    pub fn file_offset(&self, address: u64) -> Option<(u64, u64)> {
        self.offset(address, |_| true)
    }

    fn offset(&self, address: u64, flags: impl Fn(u32) -> bool) -> Option<(u64, u64)> {
        self.segments.iter().find_map(|segment| {
            let wanted = segment.p_type.get(LE) == PT_LOAD && flags(segment.p_flags.get(LE));
            let within = address.checked_sub(segment.p_vaddr.get(LE)).filter(|_| wanted)?;
            let rest = segment.p_filesz.get(LE).checked_sub(within).filter(|&rest| rest > 0)?;
            Some((segment.p_offset.get(LE).checked_add(within)?, rest))
        })
    }

    /// The dynamic symbols, found as the dynamic linker finds them: through the dynamic segment, so that an
    /// object without section headers has them too. `None` for a static executable.
    ///
    /// # Errors
    /// When the tables contradict themselves or the file is cut short.
    pub fn dynamic_symbols(&self) -> Result<Option<Table>, ObjectError> {
        let entries = self.dynamic()?;
        let find = |wanted: i64| entries.iter().find(|&&(tag, _)| tag == wanted).map(|&(_, value)| value);
        let place =
            |tag| find(tag).and_then(|address| self.offset(address, |_| true)).map(|(offset, _)| offset);
        let (Some(symbols), Some(strings), Some(strings_len)) =
            (place(DT_SYMTAB), place(DT_STRTAB), find(DT_STRSZ))
        else {
            return Ok(None);
        };
        // The dynamic segment does not say how many there are; the hash tables do.
        let count = match (place(DT_HASH), place(DT_GNU_HASH)) {
            (Some(hash), _) => words(self.file, hash, 2)?[1].into(),
            (None, Some(hash)) => self.gnu_hash_count(hash)?,
            (None, None) => return Err(ObjectError::Damaged("dynamic symbols without a hash table")),
        };
        Ok(Some(Table { symbols, count, strings, strings_len }))
    }

    /// Entries of the dynamic segment, tag and value; none where there is no such segment.
    ///
    /// # Errors
    /// When the file is cut short.
    pub fn dynamic(&self) -> Result<Vec<(i64, u64)>, ObjectError> {
        let Some(dynamic) = self.segments.iter().find(|s| s.p_type.get(LE) == PT_DYNAMIC) else {
            return Ok(Vec::new());
        };
        let count = (dynamic.p_filesz.get(LE) / 16).min(MAX_DYNAMIC);
        let entries: Vec<Dyn64<LE>> = array(self.file, dynamic.p_offset.get(LE), count)?;
        Ok(entries.iter().map(|entry| (entry.d_tag.get(LE), entry.d_val.get(LE))).collect())
    }

    /// A table that the dynamic segment names by the tags of its address and of its length, as a range of the file: offset
    /// and bytes. `None` where there is none.
    ///
    /// # Errors
    /// When the file is cut short.
    pub fn dynamic_range(&self, address: i64, len: i64) -> Result<Option<(u64, u64)>, ObjectError> {
        let entries = self.dynamic()?;
        let find = |wanted: i64| entries.iter().find(|&&(tag, _)| tag == wanted).map(|&(_, value)| value);
        let place = find(address).and_then(|address| self.file_offset(address));
        Ok(place.zip(find(len)).map(|((offset, rest), len)| (offset, len.min(rest))))
    }

    /// One more than the highest index in a `DT_GNU_HASH` table: the chains are in order of index, so the
    /// last one starts at the highest bucket and ends at the first entry whose lowest bit is set.
    fn gnu_hash_count(&self, hash: u64) -> Result<u64, ObjectError> {
        let head = words(self.file, hash, 4)?;
        let [buckets, first, bloom] = [head[0], head[1], head[2]].map(u64::from);
        if buckets > MAX_SYMBOLS {
            return Err(ObjectError::TooLarge("a hash table of more than 16777216 buckets"));
        }
        let start = hash.saturating_add(16).saturating_add(bloom * 8);
        let mut highest = 0;
        stream(self.file, start, buckets * 4, |chunk| {
            for word in chunk.chunks_exact(4) {
                highest = highest.max(u32::from_le_bytes([word[0], word[1], word[2], word[3]]));
            }
            true
        })?;
        let highest = u64::from(highest);
        if highest < first {
            return Ok(first); // no defined symbols at all
        }
        let mut count = highest;
        let mut ended = false;
        let chain = start.saturating_add(buckets * 4).saturating_add((highest - first) * 4);
        stream(self.file, chain, MAX_SYMBOLS * 4, |chunk| {
            for word in chunk.chunks_exact(4) {
                count += 1;
                ended = word[0] & 1 != 0;
                if ended {
                    break;
                }
            }
            !ended
        })?;
        if ended { Ok(count) } else { Err(ObjectError::Damaged("a hash chain without an end")) }
    }

    /// A section by name, as a range of the file; `None` where there is none, or it is compressed.
    ///
    /// # Errors
    /// When the section headers are damaged.
    pub fn section(&self, name: &str) -> Result<Option<Section>, ObjectError> {
        const SHF_COMPRESSED: u64 = 0x800;
        let sections = self.sections()?;
        let Some(names) = sections.get(usize::from(self.header.e_shstrndx.get(LE))) else { return Ok(None) };
        let mut wanted = name.as_bytes().to_vec();
        wanted.push(0);
        for section in &sections {
            // Some linkers say of what kind `.eh_frame` is.
            let kind = section.sh_type.get(LE);
            if ![SHT_PROGBITS, SHT_X86_64_UNWIND].contains(&kind) {
                continue;
            }
            let at = names.sh_offset.get(LE).saturating_add(section.sh_name.get(LE).into());
            let mut found = vec![0; wanted.len()];
            if self.file.read_at(&mut found, at)? == found.len() && found == wanted {
                return Ok(Some(Section {
                    address: section.sh_addr.get(LE),
                    offset: section.sh_offset.get(LE),
                    len: section.sh_size.get(LE),
                    compressed: section.sh_flags.get(LE) & SHF_COMPRESSED != 0,
                }));
            }
        }
        Ok(None)
    }

    /// The section headers; none where they were stripped.
    fn sections(&self) -> Result<Vec<SectionHeader64<LE>>, ObjectError> {
        let at = self.header.e_shoff.get(LE);
        let mut count = u64::from(self.header.e_shnum.get(LE));
        if at == 0 {
            return Ok(Vec::new());
        }
        if count == 0 {
            // More than 65,279: the number is in the first header.
            count =
                array::<SectionHeader64<LE>, _>(self.file, at, 1)?.first().map_or(0, |s| s.sh_size.get(LE));
        }
        if count > MAX_SECTIONS {
            return Err(ObjectError::TooLarge("more than 1048576 sections"));
        }
        array(self.file, at, count)
    }

    /// The full symbol table (`.symtab`), which stripping removes; `None` when it is gone.
    ///
    /// # Errors
    /// When the section headers are damaged.
    pub fn full_symbols(&self) -> Result<Option<Table>, ObjectError> {
        let sections = self.sections()?;
        let Some(symbols) = sections.iter().find(|s| s.sh_type.get(LE) == SHT_SYMTAB) else {
            return Ok(None);
        };
        let strings =
            sections.get(symbols.sh_link.get(LE) as usize).ok_or(ObjectError::Damaged("no symbol names"))?;
        Ok(Some(Table {
            symbols: symbols.sh_offset.get(LE),
            count: symbols.sh_size.get(LE) / size_of::<Sym64<LE>>() as u64,
            strings: strings.sh_offset.get(LE),
            strings_len: strings.sh_size.get(LE),
        }))
    }
}

/// Hands `len` bytes from `offset` on to `visit`, in chunks of [`CHUNK`] (the last may be shorter), until it
/// answers false. Each chunk is aligned to 8 bytes.
///
/// # Errors
/// When the file is shorter than that, or cannot be read.
pub fn stream<R: ReadAt + ?Sized>(
    file: &R,
    offset: u64,
    len: u64,
    mut visit: impl FnMut(&[u8]) -> bool,
) -> Result<(), ObjectError> {
    let mut words = vec![0u64; len.min(CHUNK as u64).div_ceil(8) as usize];
    let buffer = bytes_of_slice_mut(&mut words);
    let mut done = 0;
    while done < len {
        let want = (len - done).min(CHUNK as u64) as usize;
        let at = offset.checked_add(done).ok_or(ObjectError::Damaged("an offset beyond any file"))?;
        let n = file.read_at(&mut buffer[..want], at)?;
        if !visit(&buffer[..n]) {
            return Ok(());
        }
        if n < want {
            return Err(ObjectError::Damaged("a table reaches beyond the file's end"));
        }
        done += n as u64;
    }
    Ok(())
}

/// Reads `count` entries; the callers bound it.
fn array<T: Pod, R: ReadAt + ?Sized>(file: &R, offset: u64, count: u64) -> Result<Vec<T>, ObjectError> {
    let size = size_of::<T>();
    let mut entries = Vec::new();
    stream(file, offset, count.saturating_mul(size as u64), |chunk| {
        entries.extend(
            chunk.chunks_exact(size).filter_map(|bytes| from_bytes::<T>(bytes).ok()).map(|(e, _)| *e),
        );
        true
    })?;
    Ok(entries)
}

fn words<R: ReadAt + ?Sized>(file: &R, offset: u64, count: u64) -> Result<Vec<u32>, ObjectError> {
    let words: Vec<U32<LE>> = array(file, offset, count)?;
    Ok(words.iter().map(|w| w.get(LE)).collect())
}
