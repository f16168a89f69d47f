//! Builds every victim into a folder, for a machine that has no compiler: `victims --to FOLDER`.
//!
//! `--cc`, `--cxx` and `--rustc` name other compilers, `--rustc-flag` tells the last one more, and `--rust` is another build of the Rust victim than that beside
//! this program (`cargo build -p leakprobe-tests --bins` makes both). `LEAKPROBE_VICTIMS=FOLDER` then lets
//! the live tests run from these.

use std::path::PathBuf;
use std::{env, fs};

use anyhow::{Context as _, bail};
use leakprobe_tests::compile::{self, Compilers};

#[derive(Debug, Default, PartialEq, Eq)]
struct Arguments {
    to: Option<PathBuf>,
    compilers: Compilers,
    rust: Option<PathBuf>,
}

fn parse(mut words: impl Iterator<Item = String>) -> anyhow::Result<Arguments> {
    let mut arguments = Arguments::default();
    while let Some(word) = words.next() {
        let mut value = || words.next().with_context(|| format!("failed to read {word}: it wants a value"));
        match word.as_str() {
            "--to" => arguments.to = Some(value()?.into()),
            "--cc" => arguments.compilers.c = value()?,
            "--cxx" => arguments.compilers.cpp = value()?,
            "--rust" => arguments.rust = Some(value()?.into()),
            "--rustc" => arguments.compilers.rust = value()?,
            "--rustc-flag" => arguments.compilers.rust_flags.push(value()?),
            _ => bail!(
                "failed to read {word:?}: want --to FOLDER [--cc CC] [--cxx CXX] [--rust PROGRAM] [--rustc RUSTC] [--rustc-flag FLAG]"
            ),
        }
    }
    Ok(arguments)
}

fn main() -> anyhow::Result<()> {
    let Arguments { to, compilers, rust } = parse(env::args().skip(1))?;
    let folder = to.context("failed to build victims: --to names no folder")?;
    compile::build_all(&folder, &compilers);
    let this = env::current_exe().context("failed to find this program")?;
    let rust = rust.unwrap_or_else(|| this.with_file_name(compile::RUST_VICTIM));
    let place = folder.join(compile::RUST_VICTIM);
    fs::copy(&rust, &place).with_context(|| {
        format!(
            "failed to copy {} to {}; run `cargo build -p leakprobe-tests --bins`",
            rust.display(),
            place.display()
        )
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> anyhow::Result<Arguments> {
        parse(line.split_ascii_whitespace().map(str::to_owned))
    }

    #[test]
    fn each_option_has_its_place() {
        let line = "--to out --cxx b --cc a --rust r --rustc d --rustc-flag e --rustc-flag f";
        let given = parsed(line).expect("arguments");
        let compilers = Compilers {
            c: "a".into(),
            cpp: "b".into(),
            rust: "d".into(),
            rust_flags: vec!["e".into(), "f".into()],
        };
        assert_eq!(given, Arguments { to: Some("out".into()), compilers, rust: Some("r".into()) });
        assert_eq!(parsed("").expect("no arguments"), Arguments::default());
        assert!(parsed("--to").expect_err("no value").to_string().contains("--to"));
        assert!(parsed("--form x").expect_err("no option").to_string().contains("--form"));
    }
}
