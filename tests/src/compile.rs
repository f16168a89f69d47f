//! Builds the C and C++ victims, once for each change of their source.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::SystemTime;
use std::{env, fs};

/// How one victim is built.
struct Recipe {
    name: &'static str,
    source: &'static str,
    flags: &'static [&'static [&'static str]],
    /// Another victim that is linked in.
    library: Option<&'static str>,
}

const fn plain(name: &'static str, source: &'static str) -> Recipe {
    Recipe { name, source, flags: &[&["-pthread", "-ldl"]], library: None }
}

const RECIPES: &[Recipe] = &[
    plain("early", "early.c"),
    plain("semantics", "semantics.c"),
    plain("names", "names.c"),
    Recipe { flags: &[&["-shared", "-fPIC", "-DINTERNAL"]], ..plain("libinternal.so", "stand_in.c") },
    Recipe { flags: &[&["-shared", "-fPIC", "-DPREFIXED"]], ..plain("libprefixed.so", "stand_in.c") },
    Recipe { flags: &[&["-shared", "-fPIC", "-DC23"]], ..plain("libc23.so", "stand_in.c") },
    plain("pool", "pool.c"),
    plain("mismatch", "mismatch.c"),
    plain("leak", "leak.c"),
    Recipe { flags: &[&["-static"]], ..plain("leak_static", "leak.c") },
    Recipe { flags: &[&["-s"]], ..plain("leak_stripped", "leak.c") },
    plain("threads", "threads.c"),
    plain("jump", "jump.c"),
    plain("cancel", "cancel.c"),
    plain("life", "life.c"),
    Recipe { flags: &[&["-pthread"]], ..plain("follow", "follow.c") },
    Recipe { flags: &[&["-pthread"]], ..plain("leave", "leave.c") },
    Recipe { flags: &[&["-pthread", "-static"]], ..plain("follow_static", "follow.c") },
    plain("dlopen", "dlopen.c"),
    Recipe { flags: &[&["-shared", "-fPIC"]], ..plain("plugin.so", "plugin.c") },
    plain("churn", "churn.c"),
    plain("stacks", "stacks.c"),
    Recipe {
        flags: &[NO_POINTERS, &["-shared", "-fPIC", "-s", "-Wl,-soname,libsilent.so"]],
        ..plain("libsilent.so", "silent.c")
    },
    Recipe {
        flags: &[NO_POINTERS, &["-shared", "-fPIC", "-s", "-Wl,-soname,libopened.so"]],
        ..plain("libopened.so", "silent.c")
    },
    // Its code is at the very same addresses, with other frames.
    Recipe {
        flags: &[NO_POINTERS, &["-shared", "-fPIC", "-s", "-Wl,-soname,libanother.so", "-DROOM=72"]],
        ..plain("libanother.so", "silent.c")
    },
    Recipe {
        flags: &[NO_POINTERS, &["-Wl,-rpath,$ORIGIN"]],
        library: Some("libsilent.so"),
        ..plain("unwind", "unwind.c")
    },
    Recipe {
        flags: &[NO_POINTERS, &["-Wl,-rpath,$ORIGIN", "-s"]],
        library: Some("libsilent.so"),
        ..plain("unwind_stripped", "unwind.c")
    },
    Recipe {
        flags: &[NO_POINTERS, &["-static", "-DALL_IN_ONE", "-pthread"]],
        ..plain("unwind_static", "unwind.c")
    },
    Recipe { flags: &[NO_POINTERS], ..plain("unwind_cpp", "unwind.cpp") },
    Recipe { flags: &[RUST_WITHOUT_POINTERS], ..plain("unwind_rust", "unwind.rs") },
    plain("mmap", "mmap.c"),
    plain("kobjects", "kobjects.c"),
    plain("cpp", "cpp.cpp"),
    plain("operators", "operators.cpp"),
    Recipe {
        flags: &[&["-shared", "-fPIC", "-O2", "-foptimize-sibling-calls"]],
        ..plain("libown_operators.so", "own_operators.cpp")
    },
    Recipe { flags: &[&["-DOWN", "-pthread"]], ..plain("operators_own", "operators.cpp") },
    Recipe { flags: &[&["-DOWN", "-pthread", "-static"]], ..plain("operators_own_static", "operators.cpp") },
    // By its name alone it is found beside the program, wherever that is taken.
    Recipe {
        flags: &[&["-shared", "-fPIC", "-Wl,-soname,libconstructor.so"]],
        ..plain("libconstructor.so", "constructor.c")
    },
    Recipe {
        flags: &[&["-Wl,-rpath,$ORIGIN"]],
        library: Some("libconstructor.so"),
        ..plain("command", "command.c")
    },
    Recipe { flags: &[&["-nostdlib", "-static", "-fno-stack-protector"]], ..plain("bare", "bare.c") },
];

/// Frame pointers, line numbers, and a frame of its own for every call.
const FLAGS: &[&str] =
    &["-O1", "-g", "-fno-omit-frame-pointer", "-fno-optimize-sibling-calls", "-fno-builtin"];

/// What distributions build with: no frame pointers, and calls that are jumps.
const NO_POINTERS: &[&str] = &["-O2", "-fomit-frame-pointer", "-foptimize-sibling-calls"];

/// As above, for the Rust compiler.
const RUST_WITHOUT_POINTERS: &[&str] = &["-O", "-Cforce-frame-pointers=no", "--edition=2024"];

/// The folder of victims that were built beforehand, where there is no compiler: a variable's name.
pub const VICTIMS: &str = "LEAKPROBE_VICTIMS";

/// The victim in Rust, which cargo builds.
pub const RUST_VICTIM: &str = "rust_victim";

/// The programs that compile victims.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compilers {
    /// For C.
    pub c: String,
    /// For C++.
    pub cpp: String,
    /// For Rust.
    pub rust: String,
    /// What that is told besides: the target and its linker.
    pub rust_flags: Vec<String>,
}

impl Default for Compilers {
    fn default() -> Self {
        let rust = env::var("RUSTC").unwrap_or_else(|_| "rustc".into());
        Compilers { c: "cc".into(), cpp: "c++".into(), rust, rust_flags: Vec::new() }
    }
}

/// Names of all victims in C and C++.
pub fn names() -> impl Iterator<Item = &'static str> {
    RECIPES.iter().map(|recipe| recipe.name)
}

/// The folder that victims are in: that of `LEAKPROBE_VICTIMS`, or one that they are built in.
pub fn folder() -> PathBuf {
    env::var_os(VICTIMS).map_or_else(|| target().join("victims"), PathBuf::from)
}

/// A folder that is there, for what tests write.
pub fn scratch() -> PathBuf {
    if env::var_os(VICTIMS).is_some() {
        return env::temp_dir();
    }
    let folder = folder();
    fs::create_dir_all(&folder).unwrap_or_else(|e| panic!("failed to make {}: {e}", folder.display()));
    folder
}

/// The workspace's target folder.
pub fn target() -> PathBuf {
    match env::var_os("CARGO_TARGET_DIR") {
        Some(folder) => PathBuf::from(folder),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../target"),
    }
}

/// The path of a victim that was built beforehand; `None` where `LEAKPROBE_VICTIMS` names no folder.
///
/// # Panics
///
/// When it names one without this victim.
pub fn prebuilt(name: &str) -> Option<PathBuf> {
    let path = PathBuf::from(env::var_os(VICTIMS)?).join(name);
    assert!(path.is_file(), "there is no {}: build the victims into {VICTIMS} anew", path.display());
    Some(path)
}

/// The path of a victim in C or C++, built where it is missing or older than what it is made of.
///
/// # Panics
///
/// When there is no such victim, or the compiler is missing or fails.
pub fn victim(name: &str) -> PathBuf {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    prebuilt(name).unwrap_or_else(|| build(name))
}

/// The path of a victim of `victims/crates`, which cargo builds with the versions that its lock file has.
///
/// # Panics
///
/// When cargo fails: the crates' sources have to be there, or crates.io.
pub fn crate_victim(name: &str) -> PathBuf {
    let folder = folder().join("crates");
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--quiet", "--release", "--locked", "--manifest-path"]);
    cargo.arg(sources().join("crates/Cargo.toml")).arg("--target-dir").arg(&folder);
    // With a target, even this machine's own, the products would be elsewhere.
    let status = cargo.env_remove("CARGO_BUILD_TARGET").status();
    let status = status.unwrap_or_else(|e| panic!("failed to run {cargo:?}: {e}"));
    assert!(status.success(), "{cargo:?} failed: {status}");
    folder.join("release").join(name)
}

/// Builds every victim in C and C++ anew into `folder`, for a machine without a compiler.
///
/// # Panics
///
/// When a compiler is missing or fails.
pub fn build_all(folder: &Path, compilers: &Compilers) {
    for recipe in RECIPES {
        let library = recipe.library.map(|name| folder.join(name));
        compile(recipe, library.as_deref(), folder, compilers);
    }
}

fn recipe(name: &str) -> &'static Recipe {
    let recipe = RECIPES.iter().find(|recipe| recipe.name == name);
    recipe.unwrap_or_else(|| panic!("there is no victim {name}: add it to RECIPES in {}", file!()))
}

fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("victims")
}

fn build(name: &str) -> PathBuf {
    let recipe = recipe(name);
    let library = recipe.library.map(build);
    let source = sources().join(recipe.source);
    let headers = ["victim.h", "rows.h", "stacks.h", "mimalloc.h", "own_operators.h", "silent.c"]
        .map(|name| sources().join(name));
    let product = folder().join(name);
    // The test program carries the recipes: a newer one may have others.
    let this = env::current_exe().expect("failed to find this test program");
    let made_of = headers.iter().chain([&source, &this]).chain(library.as_ref());
    let newest = made_of.filter_map(|path| changed(path)).max();
    if changed(&product).is_none_or(|built| Some(built) < newest) {
        compile(recipe, library.as_deref(), &folder(), &Compilers::default());
    }
    product
}

fn compile(recipe: &Recipe, library: Option<&Path>, folder: &Path, compilers: &Compilers) {
    let (name, source) = (recipe.name, sources().join(recipe.source));
    fs::create_dir_all(folder).unwrap_or_else(|e| panic!("failed to make {}: {e}", folder.display()));
    // Renamed when it is whole: a test program beside this one never sees half a victim.
    let draft = folder.join(format!(".{name}.{}", std::process::id()));
    let is_rust = recipe.source.ends_with(".rs");
    let compiler = match recipe.source.rsplit('.').next() {
        Some("rs") => &compilers.rust,
        Some("cpp") => &compilers.cpp,
        _ => &compilers.c,
    };
    let mut command = Command::new(compiler);
    if is_rust {
        command.args(&compilers.rust_flags);
    } else {
        command.args(FLAGS).args(signs_returns(compiler));
    }
    command.arg(&source).args(library).args(recipe.flags.iter().copied().flatten()).arg("-o").arg(&draft);
    let output = command.output().unwrap_or_else(|e| {
        panic!("failed to run {compiler} on {}: {e}; install a C and C++ compiler", source.display())
    });
    assert!(
        output.status.success(),
        "failed to compile {}: {}",
        source.display(),
        String::from_utf8_lossy(&output.stderr)
    );
    let product = folder.join(name);
    fs::rename(&draft, &product).unwrap_or_else(|e| panic!("failed to place {}: {e}", product.display()));
}

/// For Arm's processors: return addresses are signed where the processor can, as in what newer distributions
/// build, and these instructions do nothing elsewhere. No return address on the stack is then a plain one.
fn signs_returns(compiler: &str) -> &'static [&'static str] {
    let output = Command::new(compiler).arg("-dumpmachine").output();
    match output {
        Ok(output) if output.stdout.starts_with(b"aarch64") => &["-mbranch-protection=standard"],
        _ => &[],
    }
}

fn changed(path: &Path) -> Option<SystemTime> {
    fs::metadata(path).and_then(|metadata| metadata.modified()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_victim_compiles_and_is_built_once() {
        for name in names() {
            let path = victim(name);
            let first = changed(&path);
            assert_eq!((victim(name), changed(&path)), (path.clone(), first), "{name}");
        }
    }
}
