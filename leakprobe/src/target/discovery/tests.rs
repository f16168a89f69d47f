use std::fs::File;

use super::*;
use crate::target::{
    family::{FAMILIES, LINKER},
    object::{ObjectCache, read_address_space},
    process::Process,
    space::Mapping,
    symbols::MAX_CODE,
    testing::{Folder, Running},
};

fn mapped(path: PathBuf, inode: u64, file: Result<File, String>) -> Mapping {
    let object = Object { id: FileId { device: 1, inode }, path, file, deleted: false, root: None };
    let (start, end) = (inode * 0x1000, (inode + 1) * 0x1000);
    Mapping { start, end, file_offset: 0, executable: true, backing: Backing::Object(Arc::new(object)) }
}

const ALLOCATOR: &str = "void *malloc(unsigned long n) { return (void *)n; }\nvoid free(void *p) { (void)p; }\n\
    void *realloc(void *p, unsigned long n) { return p; }\n";
const SHARED: &[&str] = &["-shared", "-fPIC", "-nostdlib", "-fno-builtin", "-w"];

#[test]
fn a_program_has_glibc_and_each_object_is_searched_once() {
    let child = Running::start_and_settle("sleep", &["1000"]);
    let process = Process::open(child.pid()).unwrap();
    let mut discovery = Discovery::new(FAMILIES, Vec::new());
    let mut cache = ObjectCache::new();
    discovery.search(&read_address_space(&process, &mut cache).unwrap().space);
    let found = &discovery.objects[0];
    assert_eq!((found.family.name, found.family_index), ("glibc", 0));
    // Which is told of libraries that come and go.
    let others: Vec<&str> = discovery.objects[1..].iter().map(|found| found.family.name).collect();
    assert_eq!(others, [LINKER]);
    assert!(discovery.has_allocator());
    assert!(found.object.path.ends_with("libc.so.6"), "{:?}", found.object.path);
    assert!(found.functions.iter().all(|f| !f.code.is_empty() && f.code.len() as u64 <= MAX_CODE));

    let searched = discovery.searched.clone();
    let mut paths: Vec<_> = searched.iter().map(|s| &s.path).collect();
    paths.sort();
    paths.dedup();
    assert_eq!(paths.len(), searched.len());
    assert!(searched.iter().all(|s| !s.doubtful), "{searched:?}");
    let space = read_address_space(&process, &mut cache).unwrap().space;
    assert_eq!(discovery.search(&space).len(), 0);
    assert_eq!(discovery.searched, searched);
}

#[test]
fn what_is_mapped_later_is_found_and_what_cannot_be_opened_is_tried_again() {
    let folder = Folder::new();
    let own = folder.compile("own.so", ALLOCATOR, SHARED);
    let mut space = AddressSpace {
        mappings: vec![mapped("/bin/ls".into(), 1, File::open("/bin/ls").map_err(|_| "".into()))],
    };
    let mut discovery = discover(&space, FAMILIES);
    assert_eq!(discovery.objects.len(), 0);
    space.mappings.push(mapped(own.clone(), 2, Err("no permission".into())));
    assert_eq!(discovery.search(&space).len(), 0);
    assert_eq!(discovery.searched[1].outcome, "no permission");
    space.mappings[1] = mapped(own.clone(), 2, File::open(&own).map_err(|e| e.to_string()));
    let new = discovery.search(&space);
    assert_eq!((new.len(), new[0].family.name, &new[0].object.path), (1, "unknown allocator", &own));
    assert_eq!(FAMILIES[usize::from(new[0].family_index)].name, "unknown allocator");
    assert_eq!(discovery.searched.len(), 2);
    assert_eq!(discovery.searched[1].outcome, "unknown allocator, 3 functions");
    assert_eq!(discovery.search(&space).len(), 0);
}

#[test]
fn the_frees_of_all_objects_come_first() {
    let folder = Folder::new();
    let open = |name: &str| {
        let path = folder.compile(name, ALLOCATOR, SHARED);
        (path.clone(), File::open(path).map_err(|e| e.to_string()))
    };
    let (a, b) = (open("a.so"), open("b.so"));
    let space = AddressSpace { mappings: vec![mapped(a.0, 1, a.1), mapped(b.0, 2, b.1)] };
    let discovery = discover(&space, FAMILIES);
    let order: Vec<(&str, u64)> =
        discovery.attach_order().iter().map(|(o, f)| (f.symbols[0], o.object.id.inode)).collect();
    assert_eq!(
        order,
        [("free", 1), ("free", 2), ("realloc", 1), ("realloc", 2), ("malloc", 1), ("malloc", 2)]
    );
}

#[test]
fn a_vain_search_says_where_it_looked() {
    let empty = discover(&AddressSpace::default(), FAMILIES);
    assert_eq!(empty.nothing_found(7), "found no allocator in process 7: it has no file mapped as code");

    let folder = Folder::new();
    let program = folder.compile("quiet", "int main(void) { return 0; }", &["-static", "-s"]);
    let data = folder.join("a\nfile");
    std::fs::write(&data, "no code").unwrap();
    let open = |path: &PathBuf| File::open(path).map_err(|e| e.to_string());
    let mut mappings = vec![
        mapped("/bin/ls".into(), 1, open(&"/bin/ls".into())),
        mapped(program.clone(), 2, open(&program)),
        mapped(data.clone(), 3, open(&data)),
    ];
    let text = discover(&AddressSpace { mappings: mappings.clone() }, FAMILIES).nothing_found(7);
    let program = program.display();
    let folder = folder.0.display();
    assert_eq!(
        text,
        format!(
            "found no allocator in process 7: searched 3 mapped objects ({program}: stripped: it has no symbol table, \
             so a statically linked malloc in it has no name; {folder}/a\\nfile: not an ELF file; /bin/ls: defines no \
             malloc and free); leakprobe knows the allocators of glibc, musl, jemalloc, tcmalloc and mimalloc, in a shared library \
             or linked into a program that is not stripped; --allocator-prefix names another; of a stripped program, profile \
             a build that keeps its symbols (strip --strip-debug leaves them), or its mmap and brk calls alone (--mmap)"
        )
    );
    mappings
        .extend((10..17).map(|inode| mapped(format!("/lib/{inode}").into(), inode, open(&"/bin/ls".into()))));
    let text = discover(&AddressSpace { mappings }, FAMILIES).nothing_found(7);
    assert!(text.contains("searched 10 mapped objects") && text.contains("; and 2 more)"), "{text}");
}

#[test]
fn an_object_that_nobody_has_mapped_is_told_with_what_may_have_been_meant() {
    let file = |path: &str| File::open("/bin/ls").map_err(|error| format!("{path}: {error}"));
    let mappings = vec![
        mapped("/lib/libjemalloc.so.2".into(), 1, file("one")),
        mapped("/bin/ls".into(), 2, file("other")),
    ];
    let named = ["libjemaloc.so.2", "/bin/ls", "nothing"].map(PathBuf::from);
    let mut discovery = Discovery::new(FAMILIES, named.to_vec());
    discovery.search(&AddressSpace { mappings });
    assert_eq!(named.each_ref().map(|name| discovery.has_object(name)), [false, true, false]);
    assert_eq!(discovery.near_objects(&named[0]), ["libjemalloc.so.2"]);
    let text = discovery.nothing_found(7);
    assert!(
        text.contains(
            "; none of them is called libjemaloc.so.2, as --allocator-object says; there are: libjemalloc.so.2; none \
             of them is called nothing, as --allocator-object says); leakprobe knows"
        ),
        "{text}"
    );
}
