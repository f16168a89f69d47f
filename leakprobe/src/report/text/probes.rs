//! Where each probe was put: for whoever wonders what it costs.

use super::page::{Page, Tone};
use crate::report::escape::{Cut, fit, visible};
use crate::report::model::{ObjectStacks, ProbeRow, Report, StackMethod};
use crate::report::units::{count, counted, size};
use crate::target::family::LINKER;

pub(super) fn probes(page: &mut Page, report: &Report) {
    let is_slow = |probe: &&ProbeRow| probe.single_stepped && probe.allocator != LINKER;
    let slow = report.probes.iter().filter(is_slow).count() as u64;
    let cost = match slow {
        0 => "all emulated".to_owned(),
        slow => format!("{} single-stepped, which is slow", count(slow)),
    };
    let title = format!("{} ({cost})", counted(report.probes.len() as u64, "probe"));
    page.prose(Tone::Strong, 2, &title);
    let mut before: Option<&ProbeRow> = None;
    for probe in &report.probes {
        let of = |probe: &ProbeRow| (probe.pid, probe.object.clone(), probe.allocator.clone());
        if before.map(of) != Some(of(probe)) {
            object(page, probe);
        }
        before = Some(probe);
        row(page, probe);
    }
}

fn object(page: &mut Page, probe: &ProbeRow) {
    let lead = format!("  [{}] in process {}: ", visible(&probe.allocator), probe.pid);
    let object = visible(&probe.object);
    let room = page.width().saturating_sub(4);
    page.flow(Tone::Plain, 4, " ", &[lead.trim_end(), &fit(&object, room, Cut::Start)]);
}

fn row(page: &mut Page, probe: &ProbeRow) {
    let symbols: Vec<_> = probe.symbols.iter().map(|symbol| visible(symbol)).collect();
    let symbols = fit(&symbols.join(", "), 40, Cut::End).into_owned();
    let pieces = vec![
        format!("    {symbols} +{}:", probe.symbol_offset),
        format!("{},", visible(&probe.instruction)),
        if probe.single_stepped { "single-stepped," } else { "emulated," }.to_owned(),
        match probe.leaves.len() as u64 {
            0 if probe.returns => "entry and return,".to_owned(),
            0 => "entry,".to_owned(),
            leaves => format!("entry and {},", counted(leaves, "return instruction")),
        },
        format!("file offset {:#x}", probe.file_offset),
    ];
    let tone = if probe.single_stepped { Tone::Warning } else { Tone::Plain };
    page.flow(tone, 8, " ", &pieces);
    if let Some(reason) = &probe.reason {
        page.prose(tone, 8, &format!("        because {}", visible(reason)));
    }
}

/// How stacks are made in each object.
pub(super) fn stacks(page: &mut Page, report: &Report) {
    page.prose(Tone::Strong, 2, "stacks through");
    for object in &report.stacks {
        let path = visible(&object.object);
        let name = fit(&path, page.width().saturating_sub(4), Cut::Start);
        let (tone, how) = how(object);
        page.flow(tone, 8, " ", &[format!("    {name}:"), how]);
        for refused in &object.sections_refused {
            page.prose(Tone::Warning, 12, &format!("        {}", visible(refused)));
        }
    }
}

fn how(object: &ObjectStacks) -> (Tone, String) {
    let reason = object.reason.as_deref().map(visible).unwrap_or_default();
    match object.method {
        StackMethod::Tables if object.functions_left_out > 0 => (
            Tone::Warning,
            format!(
                "unwind tables of {}; they end in {} with damaged call frame information",
                counted(object.rows as u64, "row"),
                counted(object.functions_left_out as u64, "function")
            ),
        ),
        StackMethod::Tables if object.unknown_bytes > 0 => (
            Tone::Plain,
            format!(
                "unwind tables of {}, and nothing of {} of its code",
                counted(object.rows as u64, "row"),
                size(object.unknown_bytes)
            ),
        ),
        StackMethod::Tables => {
            (Tone::Plain, format!("unwind tables of {}", counted(object.rows as u64, "row")))
        }
        StackMethod::FramePointers => (Tone::Warning, format!("frame pointers, a guess: {reason}")),
        StackMethod::Ended => (Tone::Warning, format!("they end there: {reason}")),
    }
}
