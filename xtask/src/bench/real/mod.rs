//! Whether the stacks of real programs are whole, and those that another unwinder finds.
//!
//! leakprobe copies one stack in so many, with the registers and the memory that it was made from. Each is unwound anew by
//! framehop, and along its frame pointers.

mod copies;
mod service;
mod unwinder;

use std::{
    collections::{HashMap, HashSet},
    fs::File,
    io::BufReader,
    thread,
};

use anyhow::{Context as _, ensure};

use self::{
    copies::Copies,
    service::{SERVICES, Service},
    unwinder::{Another, Outcome},
};
use super::{
    profiler::{NO_INTERVAL, Profiler},
    table::{Bar, Table, percent, thousands},
    victim,
};
use crate::debian;

/// Stacks that are looked at, of each program.
const STACKS: usize = 10_000;

/// Shares of them that must reach a start, and be the other unwinder's.
const REACHING: f64 = 0.995;
const AGREEING: f64 = 0.999;

/// Stacks that differ, of which the frames are shown.
const SHOWN: usize = 5;

/// What was seen of one program's stacks.
#[derive(Default)]
struct Seen {
    all: usize,
    /// That reach `_start` or a thread's.
    reaching: usize,
    /// Where frame pointers lead to the start, or to one of the two functions that it calls first.
    reaching_by_pointers: usize,
    /// Where they have met each frame on the way there.
    whole_by_pointers: usize,
    different: HashSet<Vec<u64>>,
    /// Cut at 128 frames.
    truncated: usize,
    /// Through code that was not described when they were walked.
    undescribed: usize,
    /// Where frame pointers were followed through code that may have none.
    guessed: usize,
    /// Larger than the copy: up to its end the other unwinder has the same frames.
    beyond: usize,
    agreeing: usize,
    frames: usize,
    /// Where those that do not reach a start end: functions' objects and addresses.
    ends: HashMap<String, usize>,
    differing: Vec<String>,
}

/// Looks at each program under load.
pub fn measure(quick: bool, table: &mut Table) -> anyhow::Result<()> {
    ensure!(
        cfg!(target_arch = "x86_64"),
        "failed to compare stacks: the other unwinder is set up for x86_64 alone"
    );
    debian::ensure(service::NEEDS)?;
    let wanted = if quick { STACKS / 10 } else { STACKS };
    table.title(format!("stacks of real programs under load ({} of each)", thousands(wanted as f64)));
    for service in &SERVICES {
        let seen = look(service, wanted).with_context(|| format!("failed to look at {}", service.name))?;
        let share = |count: usize| count as f64 / seen.all as f64;
        let name = service.name;
        let detail = |what: &str, count: usize| match count {
            0 => String::new(),
            count => format!(", {} {what}", thousands(count as f64)),
        };
        table.row(
            format!("{name}: frames a stack"),
            format!(
                "{:.1}{}{}{}{}",
                seen.frames as f64 / seen.all as f64,
                detail("cut", seen.truncated),
                detail("guessed", seen.guessed),
                detail("undescribed", seen.undescribed),
                detail("beyond the copy", seen.beyond),
            ),
        );
        table.row(format!("{name}: different stacks"), thousands(seen.different.len() as f64));
        let reaching = share(seen.reaching);
        table.barred(
            format!("{name}: reach a start"),
            percent(reaching),
            reaching,
            Bar::AtLeast(REACHING),
            percent,
        );
        table.row(
            format!("{name}: the same by frame pointers (with all frames)"),
            format!(
                "{} ({})",
                percent(share(seen.reaching_by_pointers)),
                percent(share(seen.whole_by_pointers))
            ),
        );
        let agreeing = share(seen.agreeing);
        table.barred(
            format!("{name}: framehop finds the same"),
            percent(agreeing),
            agreeing,
            Bar::AtLeast(AGREEING),
            percent,
        );
        let mut ends: Vec<_> = seen.ends.into_iter().collect();
        ends.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        for (end, count) in ends.into_iter().take(SHOWN) {
            table.row(format!("{name}: end at {end}"), thousands(count as f64));
        }
        for text in seen.differing {
            eprintln!("{name}: {text}");
        }
    }
    Ok(())
}

fn look(service: &Service, wanted: usize) -> anyhow::Result<Seen> {
    let running = service.start()?;
    let pipe = victim::folder().join(format!("stacks-of-{}", service.name));
    copies::make_pipe(&pipe)?;
    let path = pipe.clone();
    // Opening it waits for the one that writes.
    let opening = thread::spawn(move || File::open(path));
    let one_in = service.one_in.to_string();
    let pipe = pipe.to_str().context("a path that is no text")?.to_owned();
    let options = [&NO_INTERVAL[..], &["--stack-copies", &pipe, "--stack-copies-one-in", &one_in]].concat();
    let profiler = Profiler::start(running.pid(), &options)?;
    let file =
        opening.join().ok().context("failed to wait for the copies")?.context("failed to open the copies")?;
    let mut copies = Copies::new(BufReader::with_capacity(1 << 20, file));
    let mut another = Another::new(running.pid());
    let mut seen = Seen::default();
    while seen.all < wanted {
        let copy = copies.next()?.context("failed to get enough stacks: there are no more")?;
        if copy.sampled {
            seen.take(&copy, &mut another)?;
        }
    }
    // Nobody writes into a pipe that nobody reads.
    let drain = thread::spawn(move || while matches!(copies.next(), Ok(Some(_))) {});
    profiler.stop()?;
    ensure!(drain.join().is_ok(), "failed to read the rest of the copies");
    std::fs::remove_file(&pipe).with_context(|| format!("failed to remove {pipe}"))?;
    Ok(seen)
}

impl Seen {
    fn take(&mut self, copy: &copies::Copy, another: &mut Another) -> anyhow::Result<()> {
        another.learn(&copy.frames)?;
        self.all += 1;
        self.frames += copy.frames.len();
        self.truncated += usize::from(copy.end == copies::TRUNCATED);
        self.undescribed += usize::from(copy.undescribed);
        self.guessed += usize::from(copy.guessed);
        let outermost = *copy.frames.last().context("a stack without frames")?;
        let (theirs, outcome) = another.unwind(copy);
        let reaches = copy.end == copies::BASE && another.is_start(outermost);
        if reaches {
            self.reaching += 1;
        } else {
            *self.ends.entry(another.place(outermost)).or_default() += 1;
        }
        let pointers = another.by_frame_pointers(copy);
        let near_start = &theirs[theirs.len().saturating_sub(3)..];
        let ends_there = another.is_start(theirs[theirs.len() - 1])
            && pointers.last().is_some_and(|last| near_start.contains(last));
        self.reaching_by_pointers += usize::from(ends_there);
        self.whole_by_pointers += usize::from(ends_there && theirs.starts_with(&pointers));
        self.different.insert(copy.frames.clone());
        let same = match outcome {
            Outcome::Ended => theirs == copy.frames,
            // The copy's end is not the stack's.
            Outcome::BeyondCopy => copy.frames.starts_with(&theirs),
        };
        self.beyond += usize::from(outcome == Outcome::BeyondCopy);
        if same {
            self.agreeing += 1;
        } else if self.differing.len() < SHOWN {
            let at = theirs.iter().zip(&copy.frames).take_while(|(a, b)| a == b).count();
            let show = |frames: &[u64]| {
                frames
                    .iter()
                    .skip(at.saturating_sub(2))
                    .take(6)
                    .map(|&frame| format!(" {}", another.place(frame)))
                    .collect::<String>()
            };
            self.differing.push(format!(
                "differ from frame {at} on ({} frames, framehop {}):\n  ours:{}\n  framehop:{}",
                copy.frames.len(),
                theirs.len(),
                show(&copy.frames),
                show(&theirs)
            ));
        }
        Ok(())
    }
}
