//! `leakprobe doctor`: what this machine offers, and what follows from that.
//!
//! What is found out and how it is told are apart: [`facts`] asks the kernel, [`text`] is a function of its
//! answers.

pub mod facts;
pub mod text;

use std::{fs::File, io::Write, path::Path};

use anyhow::{Context as _, Result};

use self::facts::Facts;
use crate::cli::Format;

/// Examines this machine and tells; returns whether leakprobe can work here.
///
/// # Errors
/// When the answer cannot be written.
pub fn run(format: Format, output: Option<&Path>) -> Result<bool> {
    // First, as for reports: nobody should wait for an answer that cannot be written.
    let mut stream: Box<dyn Write> = match output {
        Some(path) => {
            let failed =
                || format!("failed to open {} for the answer; choose another --output", path.display());
            Box::new(File::create(path).with_context(failed)?)
        }
        None => Box::new(std::io::stdout()),
    };
    let facts = Facts::gather();
    let answer = match format {
        Format::Text => text::lines(&facts).join("\n"),
        Format::Json => serde_json::to_string(&facts).context("failed to write the answer as JSON")?,
    };
    match writeln!(stream, "{answer}").and_then(|()| stream.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(error).context("failed to write the answer")
        }
        _ => Ok(facts.usable),
    }
}
