//! Symbol names that do not depend on the folder of the checkout.
//!
//! rustc mixes `-C metadata` into every symbol name, and cargo derives it, for a package outside the workspace
//! it builds (`leakprobe-common`, seen from leakprobe-ebpf, and `core`), from the absolute path: so two
//! checkouts gave different objects. Cargo has no setting for it, but calls `RUSTC_WRAPPER` in the compiler's
//! place. For this build that is xtask itself, which gives packages that come by path a name for metadata.

use std::{
    env,
    ffi::OsString,
    path::Path,
    process::{Command, ExitCode},
};

/// Set in the environment of the build; its value is the folder of the registries' unpacked packages.
pub const SWITCH: &str = "LEAKPROBE_XTASK_AS_RUSTC";

/// Runs the compiler when cargo called this program in its place, and gives its exit code.
pub fn run_as_rustc_wrapper() -> Option<ExitCode> {
    let registry = env::var_os(SWITCH)?;
    let mut arguments = env::args_os().skip(1);
    let rustc = arguments.next()?;
    let package = env::var_os("CARGO_MANIFEST_DIR");
    let comes_by_path = package.is_some_and(|folder| !Path::new(&folder).starts_with(&registry));
    let mut arguments: Vec<OsString> = arguments.collect();
    if comes_by_path {
        let version = env::var("CARGO_PKG_VERSION").unwrap_or_default();
        arguments = with_stable_metadata(arguments, &version);
    }
    match Command::new(&rustc).args(arguments).status() {
        Ok(status) => Some(ExitCode::from(u8::try_from(status.code().unwrap_or(1)).unwrap_or(1))),
        Err(error) => {
            eprintln!("error: failed to start {}: {error}", rustc.display());
            Some(ExitCode::FAILURE)
        }
    }
}

/// Replaces the value of `-C metadata=`, if there is one, by the crate's name and version.
fn with_stable_metadata(mut arguments: Vec<OsString>, version: &str) -> Vec<OsString> {
    let name = arguments.iter().position(|argument| argument == "--crate-name");
    let Some(name) = name.and_then(|index| arguments.get(index + 1)).cloned() else { return arguments };
    for argument in &mut arguments {
        if argument.to_string_lossy().starts_with("metadata=") {
            *argument = format!("metadata={}-{version}", name.to_string_lossy()).into();
        }
    }
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<OsString> {
        text.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn metadata_becomes_name_and_version() {
        let given =
            words("--crate-name leakprobe_common -C metadata=47aa -C extra-filename=-47aa src/lib.rs");
        let expected = "--crate-name leakprobe_common -C metadata=leakprobe_common-0.1.0 -C extra-filename=-47aa src/lib.rs";
        assert_eq!(with_stable_metadata(given, "0.1.0"), words(expected));
    }

    #[test]
    fn questions_to_the_compiler_stay_as_they_are() {
        assert_eq!(with_stable_metadata(words("-vV"), "0.1.0"), words("-vV"));
    }
}
