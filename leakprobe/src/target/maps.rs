//! `/proc/PID/maps`, line by line.

use std::io::{self, BufRead, Read};

/// Executable mappings kept of one process. The kernel's default limit for all mappings is 65,530.
pub const MAX_MAPPINGS: usize = 65_536;
/// Lines looked at: several times what the largest databases raise `vm.max_map_count` to.
const MAX_LINES: usize = 4 << 20;
/// The kernel cuts paths at 4096 bytes, each of which may be escaped as four.
const MAX_LINE: u64 = 20 * 1024;

/// A line that stands for an executable mapping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// First address.
    pub start: u64,
    /// First address behind it.
    pub end: u64,
    /// Offset in the file.
    pub file_offset: u64,
    /// Device of the file, as `st_dev` counts; 0 where there is no file.
    pub device: u64,
    /// Inode of the file; 0 where there is no file.
    pub inode: u64,
    /// The last column without the escapes: a path (possibly with ` (deleted)` behind it), a name such as
    /// `[vdso]`, or nothing. Untrusted.
    pub name: Vec<u8>,
}

/// What a mapping's last column says it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind<'a> {
    /// A file: its path, and whether the kernel put ` (deleted)` behind it (or the file is called so).
    File {
        /// The path, without that mark.
        path: &'a [u8],
        /// Whether the mark was there.
        marked_deleted: bool,
    },
    /// The kernel's name for it: `[vdso]`, `[uprobes]`, `[anon:...]`, `anon_inode:...`.
    Named(&'a [u8]),
    /// Nothing.
    Anonymous,
}

impl Line {
    /// What is mapped there.
    pub fn kind(&self) -> Kind<'_> {
        let name = self.name.as_slice();
        if self.inode != 0 && name.starts_with(b"/") {
            let unmarked = name.strip_suffix(b" (deleted)");
            Kind::File { path: unmarked.unwrap_or(name), marked_deleted: unmarked.is_some() }
        } else if name.is_empty() || name.starts_with(b"//anon") {
            Kind::Anonymous
        } else {
            Kind::Named(name)
        }
    }
}

/// The executable mappings in a text, in its order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parsed {
    /// Executable mappings; at most [`MAX_MAPPINGS`].
    pub lines: Vec<Line>,
    /// All lines, of executable mappings and others.
    pub total: usize,
    /// Lines that could not be understood.
    pub malformed: usize,
    /// Whether a limit ended the reading early.
    pub cut: bool,
}

/// Reads a maps text (bytes, or the file itself).
///
/// # Errors
/// When reading fails.
pub fn parse(mut text: impl BufRead) -> io::Result<Parsed> {
    let mut parsed = Parsed::default();
    let mut line = Vec::new();
    loop {
        line.clear();
        if text.by_ref().take(MAX_LINE).read_until(b'\n', &mut line)? == 0 {
            return Ok(parsed);
        }
        if parsed.total == MAX_LINES || parsed.lines.len() == MAX_MAPPINGS {
            parsed.cut = true;
            return Ok(parsed);
        }
        parsed.total += 1;
        match parse_line(line.strip_suffix(b"\n").unwrap_or(&line)) {
            Some((line, true)) => parsed.lines.push(line),
            Some((_, false)) => {}
            None => parsed.malformed += 1,
        }
    }
}

/// Where the mapping with this name ends; the highest where there are several, `None` where there is none.
///
/// # Errors
/// When reading fails.
pub fn end_of(mut text: impl BufRead, name: &[u8]) -> io::Result<Option<u64>> {
    let mut line = Vec::new();
    let mut end = None;
    for _ in 0..MAX_LINES {
        line.clear();
        if text.by_ref().take(MAX_LINE).read_until(b'\n', &mut line)? == 0 {
            break;
        }
        if let Some((line, _)) = parse_line(line.strip_suffix(b"\n").unwrap_or(&line))
            && line.name == name
        {
            end = end.max(Some(line.end));
        }
    }
    Ok(end)
}

/// One line, and whether code may run there.
///
/// `55d0-55d1 r-xp 00002000 fe:01 1234    /usr/bin/with spaces`
fn parse_line(line: &[u8]) -> Option<(Line, bool)> {
    let mut rest = line;
    let mut field = || -> Option<&[u8]> {
        let end = rest.iter().position(|&b| b == b' ').unwrap_or(rest.len());
        let (field, tail) = rest.split_at(end);
        rest = tail.get(1..).unwrap_or_default();
        (!field.is_empty()).then_some(field)
    };
    let (start, end) = pair(field()?, b'-')?;
    let permissions = field()?;
    let file_offset = hexadecimal(field()?)?;
    let (major, minor) = pair(field()?, b':')?;
    let inode = std::str::from_utf8(field()?).ok()?.parse().ok()?;
    let padding = rest.iter().take_while(|&&b| b == b' ').count();
    if start >= end || permissions.len() != 4 {
        return None;
    }
    let device = libc::makedev(major.try_into().ok()?, minor.try_into().ok()?);
    let name = unescape(&rest[padding..]);
    Some((Line { start, end, file_offset, device, inode, name }, permissions[2] == b'x'))
}

fn pair(field: &[u8], separator: u8) -> Option<(u64, u64)> {
    let at = field.iter().position(|&b| b == separator)?;
    Some((hexadecimal(&field[..at])?, hexadecimal(&field[at + 1..])?))
}

fn hexadecimal(field: &[u8]) -> Option<u64> {
    // from_str_radix would take a sign.
    if field.iter().any(|b| !b.is_ascii_hexdigit()) {
        return None;
    }
    u64::from_str_radix(std::str::from_utf8(field).ok()?, 16).ok()
}

/// Newlines are the only bytes that the kernel escapes here, as `\012`. It leaves backslashes alone, so that a
/// file whose name holds these four characters looks the same; whoever opens the path must compare inodes.
fn unescape(name: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(name.len());
    let mut rest = name;
    while let Some((&first, tail)) = rest.split_first() {
        if let Some(tail) = rest.strip_prefix(b"\\012") {
            out.push(b'\n');
            rest = tail;
        } else {
            out.push(first);
            rest = tail;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Recorded from several programs and put together.
    const TEXT: &[u8] = b"\
55d0a4c00000-55d0a4c02000 r--p 00000000 fe:01 130861                     /usr/bin/sleep
55d0a4c02000-55d0a4c06000 r-xp 00002000 fe:01 130861                     /usr/bin/sleep
55d0a5d4c000-55d0a5d6d000 rw-p 00000000 00:00 0                          [heap]
7f0000000000-7f0000001000 r-xp 00000000 00:01 2051                       /memfd:jit cache (deleted)
7f0000002000-7f0000003000 r-xp 00000000 103:0a 77                        /srv/a dir/lib new.so (deleted)
7f0000004000-7f0000005000 r-xp 00001000 00:2f 18446744073709551615       /merged/lib/od\\012d.so
7f0000006000-7f0000007000 rwxp 00000000 00:00 0 
7f0000008000-7f0000009000 rwxp 00000000 00:00 0                          [anon:js jit]
7f000000a000-7f000000b000 rwxs 00000000 00:01 9                          /dev/zero (deleted)
7f000000c000-7f000000d000 r-xs 00000000 00:0e 1061                       anon_inode:[perf_event]
7f000000e000-7f000000f000 r-xp 00000000 00:00 0                          //anon
7ffd5b5f4000-7ffd5b5f6000 r-xp 00000000 00:00 0                          [vdso]
7fffffffe000-7ffffffff000 --xp 00000000 00:00 0                          [uprobes]
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
";

    #[test]
    fn executable_lines_are_read_in_full() {
        let parsed = parse(TEXT).unwrap();
        assert_eq!((parsed.total, parsed.malformed, parsed.cut), (14, 0, false));
        let starts: Vec<u64> = parsed.lines.iter().map(|l| l.start & 0xf_ffff).collect();
        assert_eq!(
            starts,
            [0x2000, 0, 0x2000, 0x4000, 0x6000, 0x8000, 0xa000, 0xc000, 0xe000, 0xf4000, 0xfe000, 0]
        );
        assert_eq!(
            parsed.lines[0],
            Line {
                start: 0x55d0_a4c0_2000,
                end: 0x55d0_a4c0_6000,
                file_offset: 0x2000,
                device: libc::makedev(0xfe, 1),
                inode: 130_861,
                name: b"/usr/bin/sleep".to_vec(),
            }
        );
        assert_eq!(parsed.lines[2].device, libc::makedev(0x103, 0xa));
        assert_eq!(parsed.lines[3].inode, u64::MAX);
        assert_eq!(parsed.lines[11].end, 0xffff_ffff_ff60_1000);
    }

    #[test]
    fn names_tell_files_from_the_kernels_own() {
        let parsed = parse(TEXT).unwrap();
        let kinds: Vec<Kind> = parsed.lines.iter().map(Line::kind).collect();
        let file = |path: &'static [u8], marked_deleted| Kind::File { path, marked_deleted };
        assert_eq!(
            kinds,
            [
                file(b"/usr/bin/sleep", false),
                file(b"/memfd:jit cache", true),
                file(b"/srv/a dir/lib new.so", true),
                file(b"/merged/lib/od\nd.so", false),
                Kind::Anonymous,
                Kind::Named(b"[anon:js jit]"),
                file(b"/dev/zero", true),
                Kind::Named(b"anon_inode:[perf_event]"),
                Kind::Anonymous,
                Kind::Named(b"[vdso]"),
                Kind::Named(b"[uprobes]"),
                Kind::Named(b"[vsyscall]"),
            ]
        );
    }

    #[test]
    fn nonsense_is_counted_and_skipped() {
        let text = b"\nzz\n1-2\n2-1 r-xp 0 0:0 0\n1-2 r-xp 0 0:0 x\n+1-2 r-xp 0 0:0 0\n1-2 rx 0 0:0 0\n1-2 r-xp 0 0:0 0\n\
            1-2 r-xp 0 0:0 0 \xff\xfe";
        let parsed = parse(&text[..]).unwrap();
        assert_eq!((parsed.total, parsed.malformed, parsed.lines.len()), (9, 7, 2));
        assert_eq!(parsed.lines[1].name, b"\xff\xfe");
    }

    #[test]
    fn the_number_of_mappings_is_bounded_and_the_cut_is_told() {
        let text: Vec<u8> = (1..=MAX_MAPPINGS as u64 + 1)
            .flat_map(|i| format!("{:x}-{:x} r-xp 0 0:0 0\n", i * 4096, (i + 1) * 4096).into_bytes())
            .collect();
        let parsed = parse(&text[..]).unwrap();
        assert_eq!((parsed.lines.len(), parsed.cut), (MAX_MAPPINGS, true));
        let one_less = text[..text.len() - 1].rsplitn(2, |&b| b == b'\n').nth(1).unwrap();
        let parsed = parse(one_less).unwrap();
        assert_eq!((parsed.lines.len(), parsed.cut), (MAX_MAPPINGS, false));
    }
}
