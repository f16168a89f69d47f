//! The kernel's description of its own types (BTF), as far as shapes of tracepoints and offsets of members go.
//!
//! Format: the kernel's Documentation/bpf/btf.rst. aya-obj reads it too, but gives no access to members or parameters.

use std::{fs, io::Read as _};

use anyhow::{Context as _, Result, bail};

/// Where the kernel shows it.
const PATH: &str = "/sys/kernel/btf/vmlinux";

/// Far above any kernel's (5 MB): a file that claims more is none.
const MAX_BYTES: u64 = 256 << 20;

/// Anonymous members are looked into so deep.
const MAX_DEPTH: u32 = 16;

/// Typedefs and qualifiers are followed so far.
const MAX_LINKS: u32 = 64;

/// What a type is; numbers of the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// An integer.
    Int = 1,
    /// A structure.
    Struct = 4,
    /// A union.
    Union = 5,
    /// An enumeration.
    Enum = 6,
    /// A name for another type.
    Typedef = 8,
    /// A function.
    Func = 12,
    /// What a function takes and returns.
    FuncProto = 13,
}

/// Number of a type; 0 is `void`.
pub type TypeId = u32;

/// The types of a kernel.
#[derive(Debug)]
pub struct Btf {
    bytes: Vec<u8>,
    strings: std::ops::Range<usize>,
    /// Where each type begins; the first is type 1.
    starts: Vec<u32>,
}

/// The head of a type, and where its own data begins.
#[derive(Clone, Copy)]
struct Head {
    name: u32,
    kind: u8,
    count: usize,
    /// Size in bytes, or another type.
    value: u32,
    flag: bool,
    data: usize,
}

impl Btf {
    /// Reads the running kernel's; `None` where it shows none.
    ///
    /// # Errors
    /// When there is one that cannot be read.
    pub fn of_this_kernel() -> Result<Option<Self>> {
        let file = match fs::File::open(PATH) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("failed to open {PATH}")),
        };
        let mut bytes = Vec::new();
        file.take(MAX_BYTES).read_to_end(&mut bytes).with_context(|| format!("failed to read {PATH}"))?;
        Self::parse(bytes).with_context(|| format!("failed to read {PATH}")).map(Some)
    }

    /// Reads types from bytes in this machine's own byte order.
    ///
    /// # Errors
    /// When they are cut, or of no known form.
    pub fn parse(bytes: Vec<u8>) -> Result<Self> {
        let word =
            |at: usize| bytes.get(at..at + 4).and_then(|word| word.try_into().ok()).map(u32::from_ne_bytes);
        if bytes.get(..2) != Some(&0xeb9fu16.to_ne_bytes()[..]) {
            bail!("it does not begin as BTF does");
        }
        let header = word(4).context("its header is cut")? as usize;
        let part = |offset: usize, length: usize| -> Result<std::ops::Range<usize>> {
            let start = header.checked_add(word(offset).context("its header is cut")? as usize);
            let start = start.context("its header is wrong")?;
            let end = start.checked_add(word(length).context("its header is cut")? as usize);
            let end = end.filter(|&end| end <= bytes.len()).context("it is shorter than its header says")?;
            Ok(start..end)
        };
        let (types, strings) = (part(8, 12)?, part(16, 20)?);
        let mut starts = Vec::new();
        let mut at = types.start;
        while at < types.end {
            starts.push(u32::try_from(at)?);
            let head = head(&bytes, at).filter(|head| head.data <= types.end).context("a type is cut")?;
            at = head.data + data_bytes(head)?;
        }
        Ok(Self { strings, starts, bytes })
    }

    fn head(&self, id: TypeId) -> Option<Head> {
        let start = *self.starts.get((id as usize).checked_sub(1)?)?;
        head(&self.bytes, start as usize)
    }

    fn text(&self, offset: u32) -> &[u8] {
        let strings = &self.bytes[self.strings.clone()];
        let rest = strings.get(offset as usize..).unwrap_or_default();
        &rest[..rest.iter().position(|&byte| byte == 0).unwrap_or(0)]
    }

    fn word(&self, at: usize) -> Option<u32> {
        self.bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes)
    }

    /// The first type of a kind and a name.
    pub fn find(&self, kind: Kind, name: &str) -> Option<TypeId> {
        let is_it = |id: &TypeId| {
            self.head(*id)
                .is_some_and(|head| head.kind == kind as u8 && self.text(head.name) == name.as_bytes())
        };
        (1..=self.starts.len() as TypeId).find(is_it)
    }

    /// Bytes of a structure.
    pub fn size(&self, id: TypeId) -> Option<u64> {
        self.head(id).map(|head| u64::from(head.value))
    }

    /// Where a member is in a structure, in bytes; members of anonymous members count as its own. `None` for
    /// one that begins within a byte.
    pub fn member(&self, id: TypeId, name: &str) -> Option<u64> {
        self.member_bits(id, name, MAX_DEPTH).filter(|bits| bits % 8 == 0).map(|bits| bits / 8)
    }

    fn member_bits(&self, id: TypeId, name: &str, depth: u32) -> Option<u64> {
        let head = self.head(id)?;
        if depth == 0 || ![Kind::Struct as u8, Kind::Union as u8].contains(&head.kind) {
            return None;
        }
        for index in 0..head.count {
            let at = head.data + index * 12;
            let (text, kind, offset) = (self.word(at)?, self.word(at + 4)?, self.word(at + 8)?);
            // With the flag, the upper byte is the width of a bit field.
            let bits = u64::from(if head.flag { offset & 0xff_ffff } else { offset });
            if self.text(text) == name.as_bytes() {
                return Some(bits);
            }
            if self.text(text).is_empty()
                && let Some(inner) = self.member_bits(self.plain(kind), name, depth - 1)
            {
                return Some(bits + inner);
            }
        }
        None
    }

    /// A type without its typedefs and qualifiers.
    fn plain(&self, mut id: TypeId) -> TypeId {
        for _ in 0..MAX_LINKS {
            match self.head(id) {
                // Typedef, volatile, const, restrict, type tag.
                Some(head) if matches!(head.kind, 8..=11 | 18) => id = head.value,
                _ => break,
            }
        }
        id
    }

    /// Names of a function's parameters.
    pub fn parameters(&self, function: &str) -> Option<Vec<String>> {
        let head = self.prototype(function)?;
        let name =
            |index| Some(String::from_utf8_lossy(self.text(self.word(head.data + index * 8)?)).into_owned());
        (0..head.count).map(name).collect()
    }

    /// Bytes of what a function returns; 0 for nothing.
    pub fn returned_bytes(&self, function: &str) -> Option<u32> {
        let result = self.plain(self.prototype(function)?.value);
        if result == 0 {
            return Some(0);
        }
        let head = self.head(result)?;
        match head.kind {
            2 => Some(8), // a pointer
            kind if kind == Kind::Int as u8 || kind == Kind::Enum as u8 => Some(head.value),
            _ => None,
        }
    }

    fn prototype(&self, function: &str) -> Option<Head> {
        let function = self.head(self.find(Kind::Func, function)?)?;
        self.head(function.value).filter(|head| head.kind == Kind::FuncProto as u8)
    }

    /// The value of an enumeration's constant.
    pub fn constant(&self, name: &str) -> Option<u32> {
        for id in 1..=self.starts.len() as TypeId {
            let head = self.head(id)?;
            if head.kind != Kind::Enum as u8 {
                continue;
            }
            for index in 0..head.count {
                let at = head.data + index * 8;
                if self.text(self.word(at)?) == name.as_bytes() {
                    return self.word(at + 4);
                }
            }
        }
        None
    }
}

fn head(bytes: &[u8], at: usize) -> Option<Head> {
    let word =
        |at: usize| bytes.get(at..at + 4).and_then(|word| word.try_into().ok()).map(u32::from_ne_bytes);
    let info = word(at + 4)?;
    Some(Head {
        name: word(at)?,
        kind: (info >> 24 & 0x1f) as u8,
        count: (info & 0xffff) as usize,
        value: word(at + 8)?,
        flag: info >> 31 == 1,
        data: at + 12,
    })
}

/// Bytes behind a type's head.
fn data_bytes(head: Head) -> Result<usize> {
    Ok(match head.kind {
        2 | 7..=12 | 16 | 18 => 0,
        1 | 14 | 17 => 4,
        3 => 12,
        4 | 5 | 15 | 19 => 12 * head.count,
        6 | 13 => 8 * head.count,
        kind => bail!("it has types of kind {kind}, which this version of leakprobe does not know"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `struct outer { int a; union { char b[4]; struct { int c; int d; }; }; }` and
    /// `bool probe(void *data, unsigned long ptr)`.
    fn sample() -> Vec<u8> {
        let mut strings = vec![0u8];
        let mut text = |name: &str| {
            let at = strings.len() as u32;
            strings.extend_from_slice(name.as_bytes());
            strings.push(0);
            at
        };
        let (a, b, c, d, outer) = (text("a"), text("b"), text("c"), text("d"), text("outer"));
        let (probe, data, ptr, boolean, bit) =
            (text("probe"), text("data"), text("ptr"), text("bool"), text("A_BIT"));
        let info = |kind: u32, count: u32| kind << 24 | count;
        let types: Vec<u32> = vec![
            a,
            info(1, 0),
            4,
            32, // 1: int
            0,
            info(4, 2),
            8,
            c,
            1,
            0,
            d,
            1,
            32, // 2: struct { c, d }
            0,
            info(5, 2),
            8,
            b,
            1,
            0,
            0,
            2,
            0, // 3: union { b, struct }
            outer,
            info(4, 2),
            12,
            a,
            1,
            0,
            0,
            3,
            32, // 4
            boolean,
            info(1, 0),
            1,
            8, // 5: _Bool
            boolean,
            info(8, 0),
            5, // 6: typedef bool
            0,
            info(13, 2),
            6,
            data,
            0,
            ptr,
            1, // 7: prototype
            probe,
            info(12, 0),
            7, // 8
            0,
            info(6, 1),
            4,
            bit,
            22, // 9: enum
        ];
        let types: Vec<u8> = types.into_iter().flat_map(u32::to_ne_bytes).collect();
        let mut bytes = 0xeb9fu16.to_ne_bytes().to_vec();
        bytes.extend([1, 0]);
        for word in [24, 0, types.len() as u32, types.len() as u32, strings.len() as u32] {
            bytes.extend(word.to_ne_bytes());
        }
        bytes.extend(types);
        bytes.extend(strings);
        bytes
    }

    #[test]
    fn members_of_anonymous_members_are_the_structures_own() {
        let btf = Btf::parse(sample()).expect("types");
        let outer = btf.find(Kind::Struct, "outer").expect("there");
        assert_eq!(btf.size(outer), Some(12));
        let at: Vec<_> = ["a", "b", "c", "d", "e"].iter().map(|name| btf.member(outer, name)).collect();
        assert_eq!(at, [Some(0), Some(4), Some(4), Some(8), None]);
    }

    #[test]
    fn functions_and_constants_are_found() {
        let btf = Btf::parse(sample()).expect("types");
        assert_eq!(btf.parameters("probe"), Some(vec!["data".to_owned(), "ptr".to_owned()]));
        assert_eq!(btf.returned_bytes("probe"), Some(1));
        assert_eq!(btf.parameters("outer"), None);
        assert_eq!((btf.constant("A_BIT"), btf.constant("B_BIT")), (Some(22), None));
    }

    #[test]
    fn what_is_cut_or_changed_is_refused_or_harmless() {
        let whole = sample();
        for length in 0..whole.len() {
            assert!(Btf::parse(whole[..length].to_vec()).is_err(), "cut at {length}");
        }
        for at in 0..whole.len() {
            let mut changed = whole.clone();
            changed[at] ^= 0xff;
            if let Ok(btf) = Btf::parse(changed) {
                let outer = btf.find(Kind::Struct, "outer").unwrap_or(4);
                let _ = (btf.member(outer, "d"), btf.parameters("probe"), btf.returned_bytes("probe"));
                let _ = btf.constant("A_BIT");
            }
        }
    }
}
