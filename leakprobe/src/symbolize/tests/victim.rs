//! Programs that are compiled for a test, run once, and print their mappings and return addresses.

use std::{
    ffi::OsStr,
    fs::{self, File},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use crate::{
    report::model::Frame,
    symbolize::Symbolizer,
    target::space::{AddressSpace, Backing, FileId, Mapping, Object},
};

/// The victims' source files.
pub(super) const LEAF: &str = include_str!("inputs/leaf.c");
pub(super) const INLINED: &str = include_str!("inputs/inlined.c");
pub(super) const CLASSES: &str = include_str!("inputs/classes.cc");
pub(super) const TRAITS: &str = include_str!("inputs/traits.rs");

/// A directory that goes away with the test.
pub(super) struct Scratch(PathBuf);

impl Scratch {
    pub(super) fn new() -> Self {
        let template = std::env::temp_dir().join("leakprobe-symbolize-XXXXXX");
        Self(nix::unistd::mkdtemp(&template).expect("failed to make a temporary directory"))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// Where `name` lies; its directories are made.
    pub(super) fn file(&self, name: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What is left over is in the temporary directory.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Runs a program that the tests need, and returns whether it succeeded and what it printed.
pub(super) fn try_tool<A: AsRef<OsStr>>(name: &str, arguments: &[A]) -> Result<String, String> {
    let package = match name {
        "cc" => "gcc and libc6-dev",
        "c++" => "g++",
        "objcopy" | "strip" | "nm" | "readelf" => "binutils",
        "xz" => "xz-utils",
        other => other,
    };
    let output = Command::new(name)
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("failed to run {name}: {error}; install the package {package}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    match output.status.success() {
        true => Ok(text),
        false => Err(format!("{name} failed: {}", String::from_utf8_lossy(&output.stderr))),
    }
}

/// Runs a program that must succeed; its arguments are separated by blanks, `{}` stands for the paths.
pub(super) fn tool(name: &str, arguments: &str, paths: &[&Path]) -> String {
    let mut paths = paths.iter();
    let mut next = || paths.next().expect("more {} than paths").to_str().unwrap();
    let arguments: Vec<String> = arguments
        .split_whitespace()
        .map(|argument| match argument.contains("{}") {
            true => argument.replace("{}", next()),
            false => argument.to_owned(),
        })
        .collect();
    try_tool(name, &arguments).unwrap_or_else(|error| panic!("{error}"))
}

/// Compiles the C victim to `name` in `scratch`, with more options for the compiler.
pub(super) fn compile(scratch: &Scratch, name: &str, options: &str) -> PathBuf {
    let (leaf, source) = (scratch.file("src/leaf.c"), scratch.file("src/inlined.c"));
    fs::write(&leaf, LEAF).unwrap();
    fs::write(&source, INLINED).unwrap();
    let program = scratch.file(name);
    let outer = if options.contains("-DOUTER=") { "" } else { " -DOUTER=outer" };
    tool("cc", &format!("-O2{outer} {options} -o {{}} {{}} {{}}"), &[&program, &source, &leaf]);
    program
}

/// The number of the source line marked `line: name`.
pub(super) fn line(source: &str, name: &str) -> u32 {
    let marker = format!("line: {name}");
    let found = source.lines().position(|line| {
        line.split_once(&marker).is_some_and(|(_, rest)| !rest.starts_with(|c: char| c.is_alphanumeric()))
    });
    u32::try_from(found.unwrap_or_else(|| panic!("no {marker}"))).unwrap() + 1
}

/// A program's address space as it was while it ran, and the return addresses that it recorded.
pub(super) struct Ran {
    pub(super) space: AddressSpace,
    pub(super) addresses: Vec<u64>,
}

/// Runs a victim; its own file gets the path `shown` and `root`, as if seen in a container.
pub(super) fn run_in(program: &Path, shown: &Path, root: Option<&Path>) -> Ran {
    let output = tool(program.to_str().unwrap(), "run", &[]);
    let root = root.map(|root| Arc::new(File::open(root).unwrap()));
    let object = object(program, shown, root);
    let mut ran = Ran { space: AddressSpace::default(), addresses: Vec::new() };
    for line in output.lines() {
        if let Some(address) = line.strip_prefix("return 0x") {
            ran.addresses.push(u64::from_str_radix(address, 16).unwrap());
        } else if let Some((mapping, path)) = mapping(line)
            && Path::new(path) == program
        {
            ran.space.mappings.push(Mapping { backing: Backing::Object(Arc::clone(&object)), ..mapping });
        }
    }
    assert!(!ran.space.mappings.is_empty(), "{} is not in its own maps:\n{output}", program.display());
    ran
}

/// Runs a victim in the host's root.
pub(super) fn run(program: &Path) -> Ran {
    run_in(program, program, None)
}

/// An open object.
pub(super) fn object(file: &Path, shown: &Path, root: Option<Arc<File>>) -> Arc<Object> {
    let file = File::open(file).unwrap();
    let metadata = file.metadata().unwrap();
    Arc::new(Object {
        id: FileId { device: metadata.dev(), inode: metadata.ino() },
        path: shown.to_owned(),
        file: Ok(file),
        deleted: false,
        root,
    })
}

/// An executable mapping of one line of `/proc/PID/maps`, still without its backing, and its path.
pub(super) fn mapping(line: &str) -> Option<(Mapping, &str)> {
    let mut fields = line.splitn(6, ' ');
    let (start, end) = fields.next()?.split_once('-')?;
    let number = |text: &str| u64::from_str_radix(text, 16).ok();
    let executable = fields.next()?.contains('x');
    let file_offset = number(fields.next()?)?;
    let path = fields.nth(2)?.trim_start();
    let (start, end) = (number(start)?, number(end)?);
    executable.then_some((Mapping { start, end, file_offset, executable, backing: Backing::Anonymous }, path))
}

impl Ran {
    pub(super) fn frames(&self, symbolizer: &mut Symbolizer) -> Vec<Frame> {
        symbolizer.stack(&self.space, &self.addresses)
    }
}

/// What tests compare of a frame: function, file's name with line, inlined.
pub(super) fn brief(frames: &[Frame]) -> Vec<String> {
    let one = |frame: &Frame| {
        let name = frame.function.clone().or_else(|| frame.unknown.clone()).unwrap();
        let file = frame.file.as_ref().map_or(String::new(), |file| {
            let base = Path::new(file).file_name().unwrap().to_str().unwrap();
            format!(" {base}:{}", frame.line.unwrap_or(0))
        });
        format!("{name}{file}{}", if frame.inlined { " inlined" } else { "" })
    };
    frames.iter().map(one).collect()
}

/// The C victim's frames when all is known.
pub(super) fn full() -> Vec<String> {
    let at = |function: &str, place: &str, rest: &str| {
        format!("{function} inlined.c:{}{rest}", line(INLINED, place))
    };
    vec![
        at("inner", "inner", " inlined"),
        at("middle", "middle", " inlined"),
        at("outer", "outer", ""),
        at("hidden", "hidden", ""),
        at("main", "main", ""),
    ]
}

/// The C victim's frames when only symbols are known.
pub(super) fn symbols_only() -> Vec<String> {
    ["outer", "hidden", "main"].map(String::from).to_vec()
}
