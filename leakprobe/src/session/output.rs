//! Where reports go.

use std::{
    fs::File,
    io::{self, IsTerminal as _, Write},
};

use anyhow::{Context as _, Result};

use crate::{
    cli::{Destination, Format, Options},
    report::{json, model::Report, text},
};

/// Columns when the reports do not go to a terminal.
const COLUMNS: usize = 100;

/// The stream of reports.
pub struct Output {
    stream: Box<dyn Write>,
    name: String,
    format: Format,
    terminal: Option<Terminal>,
}

#[derive(Clone, Copy)]
enum Terminal {
    Stdout,
    Stderr,
}

/// Whether the reader still reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reader {
    /// It does.
    Listens,
    /// It has closed the pipe: it has seen enough, which is success.
    Gone,
}

impl Output {
    /// Opens it, before anything else is done: whoever profiles for an hour should not learn at the end
    /// that the file cannot be written.
    pub fn open(options: &Options) -> Result<Self> {
        let terminal = |terminal, is_one: bool| is_one.then_some(terminal);
        let (stream, name, terminal): (Box<dyn Write>, _, _) = match options.destination() {
            Destination::Stdout => {
                let stdout = io::stdout();
                let terminal = terminal(Terminal::Stdout, stdout.is_terminal());
                (Box::new(stdout), "standard output".to_owned(), terminal)
            }
            Destination::Stderr => {
                let stderr = io::stderr();
                let terminal = terminal(Terminal::Stderr, stderr.is_terminal());
                (Box::new(stderr), "standard error".to_owned(), terminal)
            }
            Destination::File(path) => {
                let file = File::create(&path).with_context(|| {
                    format!("failed to open {} for the reports; choose another --output", path.display())
                })?;
                (Box::new(file), path.display().to_string(), None)
            }
        };
        Ok(Self { stream, name, format: options.format, terminal })
    }

    /// Writes one report.
    ///
    /// # Errors
    /// When the stream takes no more, other than because its reader has gone.
    pub fn write(&mut self, report: &Report) -> Result<Reader> {
        let mut text = match self.format {
            Format::Json => json::json(report)?,
            Format::Text => text::text(
                report,
                self.columns(),
                self.terminal.is_some() && std::env::var_os("NO_COLOR").is_none(),
            ),
        };
        if !text.ends_with('\n') {
            text.push('\n');
        }
        let written = self.stream.write_all(text.as_bytes()).and_then(|()| self.stream.flush());
        match written {
            Ok(()) => Ok(Reader::Listens),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Reader::Gone),
            Err(error) => Err(error).with_context(|| format!("failed to write a report to {}", self.name)),
        }
    }

    fn columns(&self) -> usize {
        let size = match self.terminal {
            Some(Terminal::Stdout) => terminal_size::terminal_size_of(io::stdout()),
            Some(Terminal::Stderr) => terminal_size::terminal_size_of(io::stderr()),
            None => None,
        };
        size.map_or(COLUMNS, |(width, _)| usize::from(width.0))
    }
}
