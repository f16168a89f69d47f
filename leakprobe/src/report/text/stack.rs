//! A stack: one frame a line, what repeats cut short, what is missing said.

use super::page::{Page, Tone};
use crate::report::escape::{Cut, columns, fit, visible};
use crate::report::model::{Frame, StackQuality, StackRow};
use crate::report::units::{count, counted};

/// Blanks before a frame, and before what follows it on lines of its own.
const INDENT: usize = 6;
const DEEPER: usize = 10;

/// Columns of one function's name; the middle of a longer one is left out.
const NAME: usize = 200;

/// A group of frames that comes more often than this in a row is shown once.
const REPEATS: usize = 4;

/// The largest group that is looked for; mutual recursion seldom goes through more functions.
const GROUP: usize = 8;

/// Lines of a stack that is not asked for as a whole: the innermost ones and the outermost ones.
const INNERMOST: usize = 30;
const OUTERMOST: usize = 8;

/// What one line of a stack stands for.
enum Step<'a> {
    Frame(Line<'a>),
    /// The frames just shown follow so many times more.
    Again {
        frames: usize,
        times: usize,
    },
    /// Frames left out of a report that is not verbose.
    LeftOut(usize),
    /// Frames of Rust's own library, likewise: so many, and what they are.
    Rust(usize, &'static str),
}

/// Where the sources of Rust's library are said to lie, in every program built with a released compiler.
const RUST_SOURCES: &str = "/rustc/";

/// The function of Rust's library that calls the program's `main` or a thread's closure: what is outward of it
/// starts the program. The standard library ends its own backtraces there.
const RUST_BEGIN: &str = "__rust_begin_short_backtrace";

/// A frame in words.
struct Line<'a> {
    frame: &'a Frame,
    name: String,
    place: String,
    note: String,
}

pub(super) fn stack(page: &mut Page, stack: &StackRow, whole: bool) {
    if stack.quality == StackQuality::NotKept {
        let text = "      no stack was kept: the stack table was full; raise --max-stacks";
        return page.prose(Tone::Warning, INDENT, text);
    }
    if stack.frames.is_empty() {
        page.prose(Tone::Plain, INDENT, "      no frame could be read");
    }
    let steps = steps(&stack.frames, whole);
    let column = name_column(&steps, page.width());
    let mut before: Option<&Frame> = None;
    for step in &steps {
        match step {
            Step::Frame(line) => {
                write_frame(page, line, column, before);
                before = Some(line.frame);
            }
            Step::Again { frames: 1, times } => {
                note(page, &format!("... {} more of the same", count(*times as u64)))
            }
            Step::Again { frames, times } => {
                note(page, &format!("... {} more of these {frames} frames", counted(*times as u64, "round")))
            }
            Step::Rust(frames, what) => {
                note(page, &format!("... {} {what}", counted(*frames as u64, "frame")))
            }
            Step::LeftOut(frames) => {
                note(page, &format!("... {}, shown by --verbose", counted(*frames as u64, "frame")))
            }
        }
    }
    match stack.quality {
        StackQuality::Whole | StackQuality::NotKept => {}
        StackQuality::Guessed => note(
            page,
            "... frames may be missing: in part by frame pointers, through code without call frame information",
        ),
        StackQuality::Caller => note(page, "... the caller alone: no stack was taken"),
        StackQuality::Truncated => note(page, "... cut here: the stack is deeper than the limit of frames"),
        StackQuality::Partial => note(
            page,
            "... frames may be missing: the walk lost its way, in code without call frame information or frame pointers",
        ),
    }
}

fn note(page: &mut Page, text: &str) {
    page.prose(Tone::Plain, DEEPER, &format!("{:INDENT$}{text}", ""));
}

/// The frames with recursions cut short, and without the middle where the whole is not wanted.
fn steps(frames: &[Frame], whole: bool) -> Vec<Step<'_>> {
    let mut steps = Vec::new();
    let mut at = 0;
    while at < frames.len() {
        let (group, repeats) = repetition(&frames[at..]);
        steps.extend(frames[at..at + group].iter().map(|frame| Step::Frame(line(frame))));
        if repeats > 1 {
            steps.push(Step::Again { frames: group, times: repeats - 1 });
        }
        at += group * repeats;
    }
    if !whole {
        steps = without_rust(steps);
    }
    // One line more is not worth a line that says so.
    if !whole && steps.len() > INNERMOST + OUTERMOST + 1 {
        let left_out: Vec<_> = steps.splice(INNERMOST..steps.len() - OUTERMOST, [Step::LeftOut(0)]).collect();
        let sizes = left_out.iter().map(|step| match step {
            Step::Frame(_) => 1,
            Step::Again { frames, times } => frames * times,
            Step::LeftOut(frames) | Step::Rust(frames, _) => *frames,
        });
        steps[INNERMOST] = Step::LeftOut(sizes.sum());
    }
    steps
}

/// The steps without what Rust's library inlined (an allocation goes through half a dozen such functions)
/// and without its start of the program.
fn without_rust(steps: Vec<Step<'_>>) -> Vec<Step<'_>> {
    let mut kept = Vec::with_capacity(steps.len());
    let mut steps = steps.into_iter().peekable();
    while let Some(step) = steps.next() {
        if is_frame(&step, |frame| frame.function.as_deref().is_some_and(|name| name.contains(RUST_BEGIN))) {
            kept.push(Step::Rust(1 + steps.by_ref().count(), "of Rust's start of the program"));
            break;
        }
        let inlined = |step: &Step| {
            is_frame(step, |frame| {
                frame.inlined && frame.file.as_deref().is_some_and(|file| file.starts_with(RUST_SOURCES))
            })
        };
        if !inlined(&step) {
            kept.push(step);
            continue;
        }
        let mut frames = 1;
        while steps.next_if(inlined).is_some() {
            frames += 1;
        }
        kept.push(Step::Rust(frames, "inlined from Rust's library"));
    }
    kept
}

fn is_frame(step: &Step, is: impl Fn(&Frame) -> bool) -> bool {
    matches!(step, Step::Frame(line) if is(line.frame))
}

/// The smallest group of frames at the start that comes more than [`REPEATS`] times, and how many times;
/// one frame, once, where there is none.
fn repetition(frames: &[Frame]) -> (usize, usize) {
    for group in 1..=GROUP.min(frames.len()) {
        let same = |pair: (&Frame, &Frame)| alike(pair.0, pair.1);
        // As long as each frame is like the one a group further on, the group goes on repeating.
        let matching = frames.iter().zip(&frames[group..]).take_while(|&pair| same(pair)).count();
        let repeats = 1 + matching / group;
        if repeats > REPEATS {
            return (group, repeats);
        }
    }
    (1, 1)
}

/// Whether two frames would be shown alike, but for their address.
fn alike(a: &Frame, b: &Frame) -> bool {
    let of = |frame: &Frame| (frame.function.is_some(), frame.line, frame.inlined, frame.object_address);
    of(a) == of(b) && a.function == b.function && a.file == b.file && a.object == b.object
}

fn line(frame: &Frame) -> Line<'_> {
    let object = frame.object.as_deref().map(visible);
    let name = match (&frame.function, frame.function_offset) {
        (Some(function), offset) => {
            let mut name = fit(&visible(function), NAME, Cut::Middle).into_owned();
            if let (None, Some(offset)) = (&frame.file, offset) {
                name.push_str(&format!("+{offset:#x}"));
            }
            if frame.inlined {
                name.push_str(" (inlined)");
            }
            name
        }
        (None, _) => format!("{:#x}", frame.address),
    };
    let place = match (&frame.file, frame.line, object) {
        (Some(file), Some(line), _) => format!("{}:{line}", visible(file)),
        (Some(file), None, _) => visible(file).into_owned(),
        (None, _, Some(object)) => match frame.object_address {
            Some(address) if frame.function.is_none() => format!("in {object}+{address:#x}"),
            _ => format!("in {object}"),
        },
        (None, _, None) => String::new(),
    };
    let note = match (&frame.function, &frame.unknown) {
        (None, Some(reason)) => format!("({})", visible(reason)),
        _ => String::new(),
    };
    Line { frame, name, place, note }
}

/// The column where places begin: right of all names, of those whose place fits beside them and that take
/// no more than half of the line.
fn name_column(steps: &[Step], width: usize) -> usize {
    let names = steps.iter().filter_map(|step| match step {
        Step::Frame(line) if !line.place.is_empty() => Some((columns(&line.name), columns(&line.place))),
        _ => None,
    });
    let room = width.saturating_sub(INDENT + 2);
    let widest =
        names.filter(|(name, place)| *name <= room / 2 && name + place <= room).map(|(name, _)| name).max();
    INDENT + widest.unwrap_or(0) + 2
}

fn write_frame(page: &mut Page, line: &Line, column: usize, before: Option<&Frame>) {
    let width = page.width();
    let mut text = format!("{:INDENT$}{}", "", fit(&line.name, width.saturating_sub(INDENT), Cut::Middle));
    let name_end = columns(&text);
    if !line.place.is_empty() {
        let place = columns(&line.place);
        if name_end + 2 <= column && column + place <= width {
            text.push_str(&" ".repeat(column - name_end));
            text.push_str(&line.place);
        } else if name_end + 2 + place <= width {
            text.push_str("  ");
            text.push_str(&line.place);
        } else {
            page.line(Tone::Plain, &text);
            let room = width.saturating_sub(DEEPER);
            text = format!("{:DEEPER$}{}", "", fit_place(&line.place, room));
        }
    }
    if !line.note.is_empty() {
        // The same reason for a whole run of frames is read once.
        let again = before.is_some_and(|before| {
            before.function.is_none()
                && (&before.unknown, &before.object) == (&line.frame.unknown, &line.frame.object)
        });
        let note = if again { "(as above)" } else { &line.note };
        if columns(&text) + 1 + columns(note) <= width {
            text = format!("{text} {note}");
        } else {
            page.line(Tone::Plain, &text);
            return page.prose(Tone::Plain, DEEPER, &format!("{:DEEPER$}{note}", ""));
        }
    }
    page.line(Tone::Plain, &text);
}

/// A place cut at its start, so that file name and line stay; `in` stays too.
fn fit_place(place: &str, room: usize) -> String {
    match place.strip_prefix("in ") {
        Some(object) => format!("in {}", fit(object, room.saturating_sub(3), Cut::Start)),
        None => fit(place, room, Cut::Start).into_owned(),
    }
}
