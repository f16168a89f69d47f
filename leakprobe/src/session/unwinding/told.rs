//! What a report says of how stacks are made.

use leakprobe_common::MAX_RANGES;

use super::{Known, ObjectTables, Placed};
use crate::{
    cli::Unwind,
    report::{
        escape::visible,
        model::{ObjectStacks, StackMethod, Warning},
    },
    unwind::{object::NoTable, sections::Refused},
};

/// Of an object's functions, one in so many may be left out without a warning; and so many whatever their share.
const FEW: usize = 100;
const MANY: usize = 1000;

impl ObjectTables {
    /// How each object's stacks are made, in order of path.
    pub fn rows(&self) -> Vec<ObjectStacks> {
        let without = |object: &str, reason: String| ObjectStacks {
            object: object.to_owned(),
            method: match self.how {
                Unwind::Auto | Unwind::Fp => StackMethod::FramePointers,
                Unwind::Dwarf | Unwind::Kernel | Unwind::Caller => StackMethod::Ended,
            },
            rows: 0,
            bytes: 0,
            unknown_bytes: 0,
            functions_left_out: 0,
            sections_refused: Vec::new(),
            reason: Some(reason),
        };
        let known = |known: &Known| match &known.outcome {
            Ok(placed) => ObjectStacks {
                object: known.path.clone(),
                method: StackMethod::Tables,
                rows: placed.rows,
                bytes: placed.bytes,
                unknown_bytes: placed.unknown_bytes,
                functions_left_out: placed.left_out,
                sections_refused: placed.refused.iter().map(Refused::to_string).collect(),
                reason: None,
            },
            Err(why) => without(&known.path, why.reason.clone()),
        };
        let mut rows: Vec<ObjectStacks> = self.objects.values().map(known).collect();
        rows.extend(self.pending().map(|path| without(path, NoTable::Stopped.to_string())));
        rows.sort_by(|a, b| a.object.cmp(&b.object));
        if self.has_other_code {
            rows.push(without("code in no file", "it was made while the program ran".to_owned()));
        }
        rows
    }

    /// Paths of what waits for its tables.
    fn pending(&self) -> impl Iterator<Item = &str> {
        let all = self.pending.values().flatten();
        all.filter(|(id, _)| !self.objects.contains_key(id)).map(|(_, path)| path.as_str())
    }

    /// What limits the stacks.
    pub fn warnings(&self) -> Vec<Warning> {
        let mut warnings = Vec::new();
        warnings.extend(self.without_tables());
        warnings.extend(self.left_out());
        warnings.extend(self.refused());
        let cut: usize = self.cut.values().sum();
        if cut > 0 {
            let text = format!(
                "{cut} mappings of code are beyond the {MAX_RANGES} of a process that stacks are unwound through: frame \
                 pointers are followed there, if there are any"
            );
            warnings.push(Warning { kind: "code_mappings_cut".to_owned(), text });
        }
        warnings
    }

    fn without_tables(&self) -> Option<Warning> {
        if self.how == Unwind::Fp {
            return None;
        }
        let why = |known: &Known| known.outcome.as_ref().err().map(|why| (why.is_plain, why.reason.clone()));
        let known = self.objects.values().filter_map(|known| Some((why(known)?, known.path.as_str())));
        let pending = self.pending().map(|path| ((false, NoTable::Stopped.to_string()), path));
        let mut without: Vec<_> = known.chain(pending).collect();
        // One that has something which is not used says more than one that has nothing.
        without.sort_by(|((a, _), one), ((b, _), other)| (a, one).cmp(&(b, other)));
        let ((_, reason), path) = without.first()?;
        let what = match self.how {
            Unwind::Auto => "follow frame pointers, which it may not have",
            _ => "end there",
        };
        let others = others(without.len() - 1);
        let text = format!(
            "stacks through {} {what}: {}{others}; --verbose names all",
            visible(path),
            visible(reason)
        );
        Some(Warning { kind: "no_unwind_tables".to_owned(), text })
    }

    /// Objects of which many functions are left out.
    fn left_out(&self) -> Option<Warning> {
        let is_considerable =
            |placed: &Placed| placed.left_out >= MANY || placed.left_out > placed.read / FEW;
        let mut objects: Vec<_> =
            self.placed_by_path().filter(|(_, placed)| is_considerable(placed)).collect();
        objects.sort_by_key(|(path, placed)| (usize::MAX - placed.left_out, *path));
        let (path, placed) = objects.first()?;
        let what = self.where_nothing_is_known();
        let text = format!(
            "stacks through {} of {} functions of {} {what}: their call frame information is damaged or of an unknown kind{}; \
             --verbose names all",
            placed.left_out,
            placed.read,
            visible(path),
            others(objects.len() - 1)
        );
        Some(Warning { kind: "functions_left_out".to_owned(), text })
    }

    /// Objects of which one section is used, and another is not.
    fn refused(&self) -> Option<Warning> {
        let mut objects: Vec<_> = self
            .placed_by_path()
            .filter_map(|(path, placed)| Some((path, placed.refused.first()?.to_string())))
            .collect();
        objects.sort();
        let (path, refused) = objects.first()?;
        let what = self.where_nothing_is_known();
        let text = format!(
            "stacks through functions of {} that one section alone describes {what}: {}{}; --verbose names all",
            visible(path),
            visible(refused),
            others(objects.len() - 1)
        );
        Some(Warning { kind: "call_frames_refused".to_owned(), text })
    }

    /// What becomes of stacks in code that an object's tables say nothing of.
    fn where_nothing_is_known(&self) -> &'static str {
        match self.how {
            Unwind::Auto => "are guessed, or end there",
            _ => "end there",
        }
    }

    fn placed_by_path(&self) -> impl Iterator<Item = (&str, &Placed)> {
        self.objects.values().filter_map(|known| Some((known.path.as_str(), known.outcome.as_ref().ok()?)))
    }
}

fn others(count: usize) -> String {
    match count {
        0 => String::new(),
        1 => " (and 1 more object)".to_owned(),
        more => format!(" (and {more} more objects)"),
    }
}
