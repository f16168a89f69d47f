//! What has to be known of an ELF file before it is handed to blazesym: where its code is mapped, which
//! other files it refers to, and that none of its sections grows out of proportion.
//!
//! blazesym maps the file and follows its links by itself. This reads the headers first, with plain
//! bounded reads, and refuses what an honest file never has.

use std::{
    fs::File,
    os::unix::fs::{FileExt, MetadataExt},
};

use object::elf;

use super::expand::{self, Format};

/// Largest file that is looked at, bytes. A sparse file can claim any size.
const MAX_FILE: u64 = 16 << 30;
/// Largest table of section headers: e_shnum counts to 65,279 (SHN_LORESERVE), 64 bytes each.
const MAX_SECTIONS: u64 = 0xfeff;
/// Largest table of section names, bytes.
const MAX_SECTION_NAMES: u64 = 16 << 20;
/// Largest symbol table, bytes: 22 million symbols.
const MAX_SYMBOL_TABLE: u64 = 512 << 20;
/// Largest note section and largest section that holds a link, bytes.
const MAX_SMALL_SECTION: u64 = 64 << 10;
/// Most bytes that a file's compressed sections may expand to: they are expanded in our memory.
const MAX_EXPANDED: u64 = 1 << 30;
/// The same for `.gnu_debugdata`, which holds function symbols only (2 MB for a large browser).
const MAX_MINI_DEBUG: u64 = 64 << 20;

/// A loaded part of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    /// Offset in the file.
    pub(super) offset: u64,
    /// Bytes in the file.
    pub(super) size: u64,
    /// Virtual address of its first byte, as the symbol table counts.
    pub(super) address: u64,
    /// Whether it is mapped as code.
    pub(super) executable: bool,
}

/// A link to a file with the debug information: `.gnu_debuglink`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct DebugLink {
    /// A bare file name: without `/`, not `.` or `..`, at most 255 bytes.
    pub(super) name: Vec<u8>,
    /// CRC32 of the whole file meant.
    pub(super) crc: u32,
}

/// A link to a file that several debug files share (`dwz -m`): `.gnu_debugaltlink`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SharedLink {
    /// Absolute, or relative to the file with the link.
    pub(super) path: Vec<u8>,
    /// Build ID of the file meant, 8 to 64 bytes.
    pub(super) build_id: Vec<u8>,
}

/// What an ELF file's headers say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Layout {
    /// PT_LOAD.
    pub(super) segments: Vec<Segment>,
    /// The build ID, 1 to 64 bytes.
    pub(super) build_id: Option<Vec<u8>>,
    /// The link to the debug information, where there is a valid one.
    pub(super) debug_link: Option<DebugLink>,
    /// Whether it has symbols beyond the exported ones: `.symtab` or `.gnu_debugdata`.
    pub(super) has_symbols: bool,
    /// Whether it has debug information.
    pub(super) has_dwarf: bool,
    /// The link to what its debug information shares with other files'.
    pub(super) shared_link: Option<SharedLink>,
    /// Whether blazesym would open files that it names and that cannot be chosen here: any
    /// `.gnu_debuglink` and `.debug_sup`, and a `.gnu_debugaltlink` that is not `shared_link`.
    pub(super) names_other_files: bool,
}

impl Layout {
    /// Reads the headers of an executable, a shared library or the debug file of one. The error says in
    /// words what is wrong with it.
    pub(super) fn read(file: &File) -> Result<Self, String> {
        Self::read_type(file, &[elf::ET_EXEC, elf::ET_DYN])
    }

    /// Reads the headers of a file that debug files share, which dwz calls relocatable.
    pub(super) fn read_shared(file: &File) -> Result<Self, String> {
        Self::read_type(file, &[elf::ET_REL])
    }

    fn read_type(file: &File, types: &[u16]) -> Result<Self, String> {
        let metadata = file.metadata().map_err(|error| format!("failed to read its metadata: {error}"))?;
        if !metadata.is_file() {
            return Err("not a regular file".to_owned());
        }
        if metadata.size() > MAX_FILE {
            return Err(format!(
                "{} bytes long, more than the {MAX_FILE} that are looked at",
                metadata.size()
            ));
        }
        let header = Reader { file }.read(0, 64, 64).map_err(|_| "not an ELF file".to_owned())?;
        if header[..4] != elf::ELFMAG {
            return Err("not an ELF file".to_owned());
        }
        if header[4] != elf::ELFCLASS64 || header[5] != elf::ELFDATA2LSB {
            return Err("not a 64-bit little-endian ELF file".to_owned());
        }
        if !types.contains(&half(&header, 16)) {
            return Err("not of the type that is looked for here".to_owned());
        }
        let mut layout = Self { segments: segments(file, &header)?, ..Self::default() };
        let sections = sections(file, &header)?;
        layout.take_in(file, &sections)?;
        Ok(layout)
    }

    /// The virtual address of a file offset, or `None` where no segment loads it.
    pub(super) fn address(&self, offset: u64) -> Option<u64> {
        let holds = |segment: &&Segment| {
            offset.checked_sub(segment.offset).is_some_and(|within| within < segment.size)
        };
        // A page that straddles two segments is mapped twice; code is in the executable one.
        let found = self
            .segments
            .iter()
            .filter(|segment| segment.executable)
            .find(holds)
            .or_else(|| self.segments.iter().find(holds))?;
        found.address.checked_add(offset - found.offset)
    }

    fn take_in(&mut self, file: &File, sections: &[Section]) -> Result<(), String> {
        let reader = Reader { file };
        let mut left = MAX_EXPANDED;
        for section in sections.iter().filter(|section| section.kind != elf::SHT_NOBITS) {
            if section.flags & u64::from(elf::SHF_COMPRESSED) != 0 {
                left -= expanded_size(file, section, left)?;
            }
            match section.name.as_slice() {
                b".symtab" | b".dynsym" if section.size > MAX_SYMBOL_TABLE => {
                    return Err(format!("its symbol table claims {} bytes", section.size));
                }
                b".symtab" => self.has_symbols |= section.size > 0,
                b".gnu_debugdata" => {
                    expand::size(file, section.offset, section.size, Format::Xz, MAX_MINI_DEBUG)
                        .map_err(|reason| format!("its .gnu_debugdata {reason}"))?;
                    self.has_symbols = true;
                }
                b".debug_info" => self.has_dwarf |= section.size > 0,
                b".gnu_debuglink" => {
                    self.names_other_files = true;
                    let bytes = reader.read(section.offset, section.size, MAX_SMALL_SECTION)?;
                    self.debug_link = self.debug_link.take().or_else(|| debug_link(&bytes));
                }
                b".gnu_debugaltlink" => {
                    let bytes = reader.read(section.offset, section.size, MAX_SMALL_SECTION)?;
                    let compressed = section.flags & u64::from(elf::SHF_COMPRESSED) != 0;
                    // blazesym reads the first one, expanded; what is not that is not followed.
                    let link = shared_link(&bytes).filter(|_| !compressed && self.shared_link.is_none());
                    self.names_other_files |= link.is_none();
                    self.shared_link = self.shared_link.take().or(link);
                }
                b".debug_sup" => self.names_other_files = true,
                _ => {}
            }
            if section.kind == elf::SHT_NOTE && self.build_id.is_none() && section.size <= MAX_SMALL_SECTION {
                let bytes = reader.read(section.offset, section.size, MAX_SMALL_SECTION)?;
                self.build_id = build_id(&bytes);
            }
        }
        Ok(())
    }
}

/// Expands a compressed section to find out how large it really is: blazesym allocates what the section
/// claims, where a false claim would end the program, and then expands whatever comes.
fn expanded_size(file: &File, section: &Section, limit: u64) -> Result<u64, String> {
    let name = String::from_utf8_lossy(&section.name).into_owned();
    // Elf64_Chdr: type, reserved, size, alignment.
    let header = Reader { file }.read(section.offset, section.size.min(24), 24)?;
    if header.len() < 24 {
        return Err(format!("its compressed section {name} is cut off"));
    }
    let format = match word(&header, 0) {
        elf::ELFCOMPRESS_ZLIB => Format::Zlib,
        elf::ELFCOMPRESS_ZSTD => Format::Zstd,
        // blazesym refuses it before it allocates anything.
        _ => return Ok(0),
    };
    let claimed = long(&header, 8);
    if claimed > limit {
        return Err(format!("its compressed section {name} claims {claimed} bytes"));
    }
    let size = expand::size(file, section.offset + 24, section.size - 24, format, claimed)
        .map_err(|reason| format!("its compressed section {name} {reason}"))?;
    if size != claimed {
        return Err(format!("its compressed section {name} claims {claimed} bytes and has {size}"));
    }
    Ok(size)
}

struct Section {
    name: Vec<u8>,
    kind: u32,
    flags: u64,
    offset: u64,
    size: u64,
}

fn segments(file: &File, header: &[u8]) -> Result<Vec<Segment>, String> {
    let (offset, count) = (long(header, 32), u64::from(half(header, 56)));
    if count == u64::from(elf::PN_XNUM) {
        return Err("it has more than 65,534 program headers".to_owned());
    }
    let table = Reader { file }.read(offset, count * 56, u64::from(elf::PN_XNUM) * 56)?;
    let load = table.chunks_exact(56).filter(|entry| word(entry, 0) == elf::PT_LOAD);
    Ok(load
        .map(|entry| Segment {
            offset: long(entry, 8),
            size: long(entry, 32),
            address: long(entry, 16),
            executable: word(entry, 4) & elf::PF_X != 0,
        })
        .collect())
}

fn sections(file: &File, header: &[u8]) -> Result<Vec<Section>, String> {
    let reader = Reader { file };
    let (offset, count) = (long(header, 40), u64::from(half(header, 60)));
    if offset == 0 {
        return Ok(Vec::new());
    }
    // A count of 0 stands for a count kept elsewhere, which only objects of a compiler's one huge
    // translation unit need.
    if count == 0 || count > MAX_SECTIONS {
        return Err("it has more than 65,279 section headers".to_owned());
    }
    let table = reader.read(offset, count * 64, MAX_SECTIONS * 64)?;
    let entries: Vec<&[u8]> = table.chunks_exact(64).collect();
    let names = match entries.get(usize::from(half(header, 62))) {
        Some(names) if word(names, 4) != elf::SHT_NOBITS => {
            reader.read(long(names, 24), long(names, 32), MAX_SECTION_NAMES)?
        }
        _ => return Err("its section names are missing".to_owned()),
    };
    let name_at = |at: u32| {
        let rest = names.get(at as usize..).unwrap_or_default();
        // Longer names are none of those that matter here.
        rest.iter().take(64).copied().take_while(|&byte| byte != 0).collect()
    };
    Ok(entries
        .iter()
        .map(|entry| Section {
            name: name_at(word(entry, 0)),
            kind: word(entry, 4),
            flags: long(entry, 8),
            offset: long(entry, 24),
            size: long(entry, 32),
        })
        .collect())
}

/// The content of `.gnu_debuglink`: a name, zeros up to a multiple of 4 bytes, a CRC32.
fn debug_link(bytes: &[u8]) -> Option<DebugLink> {
    let end = bytes.iter().position(|&byte| byte == 0)?;
    let name = bytes[..end].to_vec();
    let crc = bytes.get((end + 4) & !3..)?.first_chunk().copied().map(u32::from_le_bytes)?;
    let bare = !name.contains(&b'/') && ![&b""[..], b".", b".."].contains(&name.as_slice());
    (bare && name.len() <= 255).then_some(DebugLink { name, crc })
}

/// The content of `.gnu_debugaltlink`: a path, a zero, a build ID.
fn shared_link(bytes: &[u8]) -> Option<SharedLink> {
    let end = bytes.iter().position(|&byte| byte == 0)?;
    let (path, build_id) = (bytes[..end].to_vec(), bytes[end + 1..].to_vec());
    (!path.is_empty() && (8..=64).contains(&build_id.len())).then_some(SharedLink { path, build_id })
}

/// The build ID among the notes of one section.
pub(super) fn build_id(mut notes: &[u8]) -> Option<Vec<u8>> {
    while notes.len() >= 12 {
        let (name_size, size, kind) = (word(notes, 0) as usize, word(notes, 4) as usize, word(notes, 8));
        let name = notes.get(12..12usize.checked_add(name_size)?)?;
        let start = 12 + name_size.next_multiple_of(4);
        let value = notes.get(start..start.checked_add(size)?)?;
        if kind == elf::NT_GNU_BUILD_ID && name == b"GNU\0" {
            return (1..=64).contains(&size).then(|| value.to_vec());
        }
        notes = notes.get(start.checked_add(size.checked_next_multiple_of(4)?)?..)?;
    }
    None
}

struct Reader<'a> {
    file: &'a File,
}

impl Reader<'_> {
    /// Reads `size` bytes; refuses more than `limit` before it allocates them.
    fn read(&self, offset: u64, size: u64, limit: u64) -> Result<Vec<u8>, String> {
        if size > limit {
            return Err(format!("it has a table of {size} bytes where at most {limit} make sense"));
        }
        let mut bytes = vec![0; usize::try_from(size).map_err(|error| error.to_string())?];
        self.file
            .read_exact_at(&mut bytes, offset)
            .map_err(|error| format!("failed to read {size} bytes at {offset:#x}: {error}"))?;
        Ok(bytes)
    }
}

// The callers have checked the length: a header or a whole entry of a table.
fn half(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from(half(bytes, at)) | u32::from(half(bytes, at + 2)) << 16
}

fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from(word(bytes, at)) | u64::from(word(bytes, at + 4)) << 32
}

#[cfg(test)]
mod tests {
    use super::{DebugLink, Layout, Segment, SharedLink, build_id, debug_link, shared_link};

    #[test]
    fn an_offset_is_looked_up_in_the_code_first() {
        let data = Segment { offset: 0, size: 0x1100, address: 0x40_0000, executable: false };
        let code = Segment { offset: 0x1000, size: 0x500, address: 0x40_2000, executable: true };
        let last = Segment { offset: 0x2000, size: 8, address: u64::MAX - 3, executable: true };
        let layout = Layout { segments: vec![data, code, last], ..Layout::default() };
        let table = [
            (0x0fff, Some(0x40_0fff)),
            (0x1000, Some(0x40_2000)),
            (0x10ff, Some(0x40_20ff)),
            (0x14ff, Some(0x40_24ff)),
            (0x1500, None),
            (0x2003, Some(u64::MAX)),
            (0x2004, None),
        ];
        for (offset, address) in table {
            assert_eq!(layout.address(offset), address, "{offset:#x}");
        }
    }

    #[test]
    fn only_bare_names_are_followed() {
        let link = |name: &[u8]| {
            let mut bytes = name.to_vec();
            bytes.resize((name.len() + 4) & !3, 0);
            bytes.extend_from_slice(&0x1234_5678_u32.to_le_bytes());
            debug_link(&bytes)
        };
        let good = |name: &[u8]| Some(DebugLink { name: name.to_vec(), crc: 0x1234_5678 });
        assert_eq!(link(b"a.debug"), good(b"a.debug"));
        assert_eq!(link(b"abc"), good(b"abc"));
        assert_eq!(link(b"abcd"), good(b"abcd"));
        for hostile in [&b""[..], b".", b"..", b"/dev/watchdog", b"../x", b"a/b"] {
            assert_eq!(link(hostile), None, "{}", String::from_utf8_lossy(hostile));
        }
        assert_eq!(link(&[b'a'; 255]), good(&[b'a'; 255]));
        assert_eq!(link(&[b'a'; 256]), None);
        assert_eq!(debug_link(b"abc\0\x01\x02\x03"), None);
        assert_eq!(debug_link(b"no end"), None);
    }

    #[test]
    fn shared_links_need_a_path_and_a_build_id_of_sensible_length() {
        // Below 8 bytes blazesym would not look for the build ID, but open the path.
        for (length, good) in [(0, false), (7, false), (8, true), (64, true), (65, false)] {
            let bytes = [b"/dwz\0".to_vec(), vec![9; length]].concat();
            let link = SharedLink { path: b"/dwz".to_vec(), build_id: vec![9; length] };
            assert_eq!(shared_link(&bytes), good.then_some(link), "{length}");
        }
        assert_eq!(shared_link(&[0; 21]), None);
        assert_eq!(shared_link(b"no end"), None);
    }

    #[test]
    fn the_build_id_is_found_among_notes() {
        let note = |kind: u32, name: &[u8], value: &[u8]| {
            let mut bytes = Vec::new();
            for number in [name.len() as u32, value.len() as u32, kind] {
                bytes.extend_from_slice(&number.to_le_bytes());
            }
            for part in [name, value] {
                bytes.extend_from_slice(part);
                bytes.resize(bytes.len().next_multiple_of(4), 0);
            }
            bytes
        };
        let id = note(3, b"GNU\0", &[0xab; 20]);
        assert_eq!(build_id(&id), Some(vec![0xab; 20]));
        assert_eq!(build_id(&[note(1, b"stapsdt\0", b"odd"), id.clone()].concat()), Some(vec![0xab; 20]));
        assert_eq!(build_id(&note(3, b"GNU\0", &[])), None);
        assert_eq!(build_id(&note(3, b"GNU\0", &[1; 65])), None);
        assert_eq!(build_id(&id[..id.len() - 1]), None);
        assert_eq!(build_id(&[0xff; 64]), None);
    }
}
