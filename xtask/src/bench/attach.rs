//! How long it takes until the probes are in place, in programs that have many objects mapped.

use std::{
    fs,
    io::Read as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, ensure};

use super::{
    process,
    profiler::{NO_INTERVAL, Profiler},
    table::{Bar, Samples, Table, megabytes, milliseconds, seconds},
    victim::{self, Victim},
};

/// Objects that are mapped besides the program's own.
const OBJECTS: usize = 50;

/// From its start to its probes in place leakprobe may take this long, seconds.
const WITHIN: f64 = 0.5;

/// A program with certain objects.
struct Case {
    what: String,
    victim: Victim,
    outside: Samples,
    own: Samples,
}

impl Case {
    fn new(what: String, victim: Victim) -> Self {
        Self { what, victim, outside: Samples::default(), own: Samples::default() }
    }
}

/// Measures attaching to a small program, to one with small libraries, and to one with the machine's largest, in
/// turns.
pub fn measure(rounds: usize, table: &mut Table) -> anyhow::Result<()> {
    let mut cases = vec![
        Case::new("a program without libraries of its own".into(), Victim::start()?),
        with_small_libraries()?,
        with_large_libraries()?,
    ];
    for round in 0..=rounds {
        for case in &mut cases {
            let profiler = Profiler::start(case.victim.pid(), &NO_INTERVAL)?;
            // The first round brings files into the page cache.
            if round > 0 {
                case.outside.push((profiler.in_place - profiler.started).as_secs_f64());
                case.own.push(profiler.own_account.as_secs_f64());
            }
            profiler.stop()?;
        }
    }
    table.title(format!("from leakprobe's start to its probes in place (median of {rounds} starts)"));
    for (index, case) in cases.iter().enumerate() {
        let figure = case.outside.show(milliseconds);
        if index == 0 {
            table.row(&case.what, figure);
        } else {
            table.barred(&case.what, figure, case.outside.median(), Bar::AtMost(WITHIN), seconds);
        }
        table.row("  by its own account", case.own.show(milliseconds));
    }
    Ok(())
}

/// Libraries of some functions each, linked for the occasion.
fn with_small_libraries() -> anyhow::Result<Case> {
    let folder = victim::folder().join("objects");
    fs::create_dir_all(&folder).with_context(|| format!("failed to create {}", folder.display()))?;
    eprintln!("+ making {OBJECTS} shared libraries in {}", folder.display());
    let mut victim = Victim::start()?;
    for number in 0..OBJECTS {
        let library = folder.join(format!("libbench{number}.so"));
        if !library.exists() {
            build_library(number, &library)?;
        }
        victim.load_library(&library)?;
    }
    let mapped = process::mapped_objects(victim.pid())?;
    ensure!(mapped >= OBJECTS, "failed to map {OBJECTS} objects into the victim: it has {mapped}");
    Ok(Case::new(format!("{mapped} objects, {OBJECTS} of them small libraries"), victim))
}

fn build_library(number: usize, library: &Path) -> anyhow::Result<()> {
    let functions: Vec<String> = (0..40)
        .map(|function| {
            format!("int bench_{number}_{function}(int n) {{ return n * {number} + {function}; }}\n")
        })
        .collect();
    let source = library.with_extension("c");
    fs::write(&source, functions.concat())
        .with_context(|| format!("failed to write {}", source.display()))?;
    crate::command::read(victim::compiler().args(["-shared", "-fPIC", "-o"]).arg(library).arg(&source))
        .map(drop)
}

/// The largest libraries of this machine, mapped as code but never run: finding allocators reads their symbols,
/// and does not care.
fn with_large_libraries() -> anyhow::Result<Case> {
    let mut victim = Victim::start()?;
    let libraries = largest_libraries();
    for (library, _) in &libraries {
        victim.map(library)?;
    }
    let bytes: u64 = libraries.iter().map(|(_, bytes)| bytes).sum();
    let mapped = process::mapped_objects(victim.pid())?;
    let what = format!("{mapped} objects, the machine's largest, {}", megabytes(bytes as f64));
    Ok(Case::new(what, victim))
}

/// ELF files where Debian puts shared libraries, with their sizes.
fn largest_libraries() -> Vec<(PathBuf, u64)> {
    let folder = format!("/usr/lib/{}-linux-gnu", std::env::consts::ARCH);
    let mut found: Vec<(PathBuf, u64)> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let is_library = entry.file_name().to_string_lossy().contains(".so");
            let metadata = entry.metadata().ok().filter(|metadata| metadata.is_file() && is_library)?;
            is_elf(&entry.path()).then(|| (entry.path(), metadata.len()))
        })
        .collect();
    found.sort_by(|a, b| (b.1, &a.0).cmp(&(a.1, &b.0)));
    found.truncate(OBJECTS);
    found
}

fn is_elf(file: &Path) -> bool {
    let mut magic = [0; 4];
    fs::File::open(file).and_then(|mut file| file.read_exact(&mut magic)).is_ok() && magic == *b"\x7fELF"
}
