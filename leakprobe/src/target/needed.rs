//! Which objects stay mapped as long as a program runs: the program itself and what the dynamic linker loads for it before
//! it begins. `dlclose` unmaps what `dlopen` has mapped, and never those.

use std::collections::{HashMap, HashSet};

use object::elf::{DT_NEEDED, DT_SONAME, DT_STRTAB};

use super::{
    elf::{Elf, ObjectError, ReadAt},
    space::{AddressSpace, Backing, FileId, Mapping, Object},
};

/// Names that are read of one object; real ones need fewer than 300.
const MAX_NEEDED: usize = 1024;

/// Bytes of such a name.
const MAX_NAME: usize = 256;

/// What an object is called, and what it needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Links {
    /// The name that others need it by, where it says one.
    name: Option<Vec<u8>>,
    /// Names of the objects that it needs.
    needed: Vec<Vec<u8>>,
}

impl Links {
    /// Reads those of an object.
    ///
    /// # Errors
    /// When it is damaged.
    pub fn read<R: ReadAt + ?Sized>(file: &R) -> Result<Self, ObjectError> {
        let elf = Elf::parse(file)?;
        let entries = elf.dynamic()?;
        let value = |wanted: i64| entries.iter().find(|&&(tag, _)| tag == wanted).map(|&(_, value)| value);
        let Some((strings, len)) = value(DT_STRTAB).and_then(|address| elf.file_offset(address)) else {
            return Ok(Self::default());
        };
        let name = |at: u64| -> Result<Option<Vec<u8>>, ObjectError> {
            if at >= len {
                return Ok(None);
            }
            let mut bytes = [0; MAX_NAME];
            let read = file.read_at(&mut bytes, strings + at)?;
            let end = bytes[..read].iter().position(|&byte| byte == 0);
            Ok(end.filter(|&end| end > 0).map(|end| bytes[..end].to_vec()))
        };
        let mut links = Self { name: value(DT_SONAME).map_or(Ok(None), name)?, needed: Vec::new() };
        for &(_, at) in entries.iter().filter(|&&(tag, _)| tag == DT_NEEDED).take(MAX_NEEDED) {
            links.needed.extend(name(at)?);
        }
        Ok(links)
    }
}

/// The links of the objects of a session, each read once.
#[derive(Debug, Default)]
pub struct Known(HashMap<FileId, Links>);

impl Known {
    /// Those of the mapped objects that stay as long as the program `program` runs. An object that cannot be told for sure,
    /// since it has no name of its own (`DT_SONAME`), another one has the same, or it is mapped twice (`dlmopen`), is not among
    /// them.
    pub fn staying(&mut self, space: &AddressSpace, program: FileId) -> HashSet<FileId> {
        let mut places: HashMap<(FileId, u64), usize> = HashMap::new();
        let mut objects: HashMap<FileId, &Object> = HashMap::new();
        for mapping in space.mappings.iter().filter(|mapping| mapping.executable) {
            if let Mapping { backing: Backing::Object(object), file_offset, .. } = mapping {
                *places.entry((object.id, *file_offset)).or_default() += 1;
                objects.insert(object.id, object);
            }
        }
        for (&id, object) in &objects {
            if let (Ok(file), false) = (&object.file, self.0.contains_key(&id)) {
                // What cannot be read needs nothing and has no name.
                self.0.insert(id, Links::read(file).unwrap_or_default());
            }
        }
        let twice: HashSet<FileId> =
            places.into_iter().filter(|&(_, count)| count > 1).map(|((id, _), _)| id).collect();
        let mut by_name: HashMap<&[u8], Vec<FileId>> = HashMap::new();
        for &id in objects.keys() {
            // The name of the file says nothing: the linker may have come to it by a link of another name.
            if let Some(name) = self.0.get(&id).and_then(|links| links.name.as_deref()) {
                by_name.entry(name).or_default().push(id);
            }
        }
        let mut staying = HashSet::new();
        let mut next = vec![program];
        while let Some(id) = next.pop() {
            if !objects.contains_key(&id) || twice.contains(&id) || !staying.insert(id) {
                continue;
            }
            for needed in self.0.get(&id).into_iter().flat_map(|links| &links.needed) {
                // A path is needed by what is behind its last slash.
                let name = needed.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
                if let Some(&[only]) = by_name.get(name).map(Vec::as_slice) {
                    next.push(only);
                }
            }
        }
        staying
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, path::PathBuf, sync::Arc};

    use super::*;

    fn object(inode: u64, path: &str) -> Arc<Object> {
        Arc::new(Object {
            id: FileId { device: 1, inode },
            path: PathBuf::from(path),
            file: Err("not opened".to_owned()),
            deleted: false,
            root: None,
        })
    }

    fn space(objects: &[(u64, &str)]) -> AddressSpace {
        let mapping = |(at, &(inode, path)): (u64, &(u64, &str))| Mapping {
            start: at * 10,
            end: at * 10 + 10,
            file_offset: 0,
            executable: true,
            backing: Backing::Object(object(inode, path)),
        };
        AddressSpace { mappings: (0..).zip(objects).map(mapping).collect() }
    }

    fn known(links: &[(u64, Option<&str>, &[&str])]) -> Known {
        let of = |&(inode, name, needed): &(u64, Option<&str>, &[&str])| {
            let needed = needed.iter().map(|name| name.as_bytes().to_vec()).collect();
            (FileId { device: 1, inode }, Links { name: name.map(|name| name.as_bytes().to_vec()), needed })
        };
        Known(links.iter().map(of).collect())
    }

    fn staying(known: &mut Known, space: &AddressSpace) -> Vec<u64> {
        let ids = known.staying(space, FileId { device: 1, inode: 1 });
        let mut inodes: Vec<u64> = ids.into_iter().map(|id| id.inode).collect();
        inodes.sort_unstable();
        inodes
    }

    #[test]
    fn what_a_program_needs_and_what_that_needs_stays() {
        let mut known = known(&[
            (1, None, &["libc.so.6", "/opt/lib/libb.so"]),
            (2, Some("libc.so.6"), &["ld.so"]),
            (3, Some("libb.so"), &[]),
            (4, Some("plugin.so"), &["libc.so.6"]),
            (5, Some("ld.so"), &[]),
        ]);
        let all = [
            (1, "/bin/a"),
            (2, "/lib/libc-2.36.so"),
            (3, "/opt/lib/libb.so"),
            (4, "/x/plugin.so"),
            (5, "/lib/ld.so"),
        ];
        assert_eq!(staying(&mut known, &space(&all)), [1, 2, 3, 5]);
        assert!(staying(&mut known, &space(&all[1..])).is_empty(), "another program");
    }

    #[test]
    fn what_cannot_be_told_for_sure_does_not() {
        let mut known = known(&[
            (1, None, &["libc.so.6", "libb.so"]),
            (2, Some("libc.so.6"), &[]),
            (3, Some("libc.so.6"), &[]),
            (4, Some("libb.so"), &[]),
            (5, None, &[]),
        ]);
        let two_of_a_name = [(1, "/a"), (2, "/lib/libc.so.6"), (3, "/other/libc.so.6"), (4, "/lib/libb.so")];
        assert_eq!(staying(&mut known, &space(&two_of_a_name)), [1, 4]);
        // Nor what has no name but its file's, as the one that is meant may have.
        let nameless = [(1, "/a"), (5, "/plugins/libb.so")];
        assert_eq!(staying(&mut known, &space(&nameless)), [1]);
        let mapped_twice = [(1, "/a"), (4, "/lib/libb.so"), (4, "/lib/libb.so")];
        assert_eq!(staying(&mut known, &space(&mapped_twice)), [1]);
    }

    #[test]
    fn a_real_program_says_what_it_needs() {
        let links = Links::read(&File::open("/proc/self/exe").expect("own program")).expect("ELF");
        let names: Vec<String> =
            links.needed.iter().map(|name| String::from_utf8_lossy(name).into_owned()).collect();
        assert!(names.iter().any(|name| name.starts_with("libc.")), "{names:?}");
        assert!(matches!(Links::read(&b"no program"[..]), Err(ObjectError::NotElf)));
    }
}
