//! Lines that fit a terminal: wrapping, tones, and no blanks at their ends.

use crate::report::escape::{columns, prefix};

/// Narrower terminals are written to as if they were this wide.
const MIN_WIDTH: usize = 20;

/// How a line is set off, where colors are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tone {
    Plain,
    Strong,
    Warning,
}

impl Tone {
    /// The "select graphic rendition" sequence that starts it; `""` where none is needed.
    const fn start(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Strong => "\x1b[1m",
            Self::Warning => "\x1b[1;33m",
        }
    }
}

/// The text written so far.
pub(super) struct Page {
    text: String,
    width: usize,
    color: bool,
}

impl Page {
    pub(super) fn new(width: usize, color: bool) -> Self {
        Self { text: String::new(), width: width.max(MIN_WIDTH), color }
    }

    pub(super) fn finish(self) -> String {
        self.text
    }

    /// Columns of a line.
    pub(super) fn width(&self) -> usize {
        self.width
    }

    pub(super) fn blank(&mut self) {
        self.text.push('\n');
    }

    /// One line, as it is: the caller has made it fit.
    pub(super) fn line(&mut self, tone: Tone, line: &str) {
        let line = line.trim_end();
        let start = if self.color && !line.is_empty() { tone.start() } else { "" };
        self.text.push_str(start);
        self.text.push_str(line);
        if !start.is_empty() {
            self.text.push_str("\x1b[0m");
        }
        self.text.push('\n');
    }

    /// Pieces side by side, `gap` apart, on as many lines as they need; the lines after the first are
    /// indented by `indent` blanks. A piece is broken only where it does not fit on a line of its own.
    pub(super) fn flow<S: AsRef<str>>(&mut self, tone: Tone, indent: usize, gap: &str, pieces: &[S]) {
        let indent = indent.min(self.width / 4);
        let mut line = String::new();
        let mut used = 0;
        for piece in pieces.iter().map(AsRef::as_ref) {
            let wide = columns(piece);
            let gap = if used == 0 || line.trim_end().is_empty() { "" } else { gap };
            if used + gap.len() + wide <= self.width {
                line.push_str(gap);
                line.push_str(piece);
                used += gap.len() + wide;
            } else if indent + wide <= self.width {
                self.turn(tone, indent, &mut line);
                line.push_str(piece);
                used = indent + wide;
            } else {
                line.push_str(gap);
                self.words(tone, indent, &mut line, piece);
                used = columns(&line);
            }
        }
        if !line.trim_end().is_empty() {
            self.line(tone, &line);
        }
    }

    /// Running text, broken at blanks.
    pub(super) fn prose(&mut self, tone: Tone, indent: usize, text: &str) {
        let mut line = String::new();
        let indent = indent.min(self.width / 4);
        // Blanks before the first word are the first line's indentation.
        let first = text.len() - text.trim_start().len();
        line.push_str(&" ".repeat(first.min(indent)));
        self.words(tone, indent, &mut line, text.trim_start());
        if !line.trim_end().is_empty() {
            self.line(tone, &line);
        }
    }

    /// Appends words to an unfinished line, turning to a new one where needed.
    fn words(&mut self, tone: Tone, indent: usize, line: &mut String, text: &str) {
        let mut first = true;
        for word in text.split_whitespace() {
            let gap = if first || line.trim_end().is_empty() { "" } else { " " };
            first = false;
            if columns(line) + gap.len() + columns(word) <= self.width {
                line.push_str(gap);
                line.push_str(word);
                continue;
            }
            if !line.trim_end().is_empty() {
                self.turn(tone, indent, line);
            }
            self.hard_break(tone, indent, line, word);
        }
    }

    /// Appends a word that may be wider than a line to an empty line.
    fn hard_break(&mut self, tone: Tone, indent: usize, line: &mut String, word: &str) {
        let mut rest = word;
        loop {
            let room = self.width - columns(line);
            let end = prefix(rest.char_indices(), room).map_or(0, |(index, c)| index + c.len_utf8());
            line.push_str(&rest[..end]);
            rest = &rest[end..];
            if rest.is_empty() {
                return;
            }
            self.turn(tone, indent, line);
        }
    }

    /// Ends an unfinished line and begins the next one.
    fn turn(&mut self, tone: Tone, indent: usize, line: &mut String) {
        self.line(tone, line);
        line.clear();
        line.push_str(&" ".repeat(indent));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(width: usize, write: impl FnOnce(&mut Page)) -> String {
        let mut page = Page::new(width, false);
        write(&mut page);
        page.finish()
    }

    #[test]
    fn pieces_stay_whole_where_they_can() {
        let flow =
            |width| page(width, |page| page.flow(Tone::Plain, 2, "  ", &["one two", "three four", "five"]));
        assert_eq!(flow(40), "one two  three four  five\n");
        assert_eq!(flow(24), "one two  three four\n  five\n");
        assert_eq!(flow(20), "one two  three four\n  five\n");
    }

    #[test]
    fn a_piece_wider_than_a_line_is_broken_at_blanks_and_a_word_anywhere() {
        let wide = "a piece of more than twenty columns";
        assert_eq!(
            page(20, |page| page.flow(Tone::Plain, 2, " ", &["#1", wide])),
            "#1 a piece of more\n  than twenty\n  columns\n"
        );
        assert_eq!(
            page(20, |page| page.prose(Tone::Plain, 2, "see /a/path/that/has/no/blank/in/it now")),
            "see\n  /a/path/that/has/n\n  o/blank/in/it now\n"
        );
    }

    #[test]
    fn the_first_line_keeps_its_indentation() {
        assert_eq!(
            page(20, |page| page.prose(Tone::Plain, 4, "    one two three four")),
            "    one two three\n    four\n"
        );
    }

    #[test]
    fn tones_are_written_only_where_colors_are_wanted() {
        let write = |color| {
            let mut page = Page::new(30, color);
            page.line(Tone::Warning, "careful  ");
            page.line(Tone::Plain, "plain");
            page.line(Tone::Strong, "");
            page.finish()
        };
        assert_eq!(write(false), "careful\nplain\n\n");
        assert_eq!(write(true), "\x1b[1;33mcareful\x1b[0m\nplain\n\n");
    }
}
