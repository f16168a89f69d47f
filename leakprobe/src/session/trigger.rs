//! Waiting, with nothing attached, until a process has grown.

use std::{
    collections::{BTreeMap, HashSet, VecDeque},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use tokio::time::{MissedTickBehavior, interval};

use super::{Begun, members::Members, watched};
use crate::{
    cli::{Growth, Options, Subject, Trigger},
    report::{
        escape::visible,
        units::{count, duration, size},
    },
    sys::signals::Ending,
    target::{
        discovery::Discovery,
        family::with_prefixes,
        object::{ObjectCache, read_address_space},
        process::{Process, TargetError},
    },
};

/// Time between two looks: one small file of /proc a process. Growth within less than four of them is looked for more often.
const BETWEEN: Duration = Duration::from_secs(1);

/// The least time between two looks.
const LEAST: Duration = Duration::from_millis(100);

/// How often to look.
fn between(trigger: Trigger) -> Duration {
    trigger.growth.map_or(BETWEEN, |growth| (growth.within / 4).clamp(LEAST, BETWEEN))
}

/// Sizes of a process that are kept, over the time in which it must grow.
const MAX_SIZES: usize = 600;

/// How the waiting ended.
pub enum Waited {
    /// Nothing was to be waited for.
    NotAtAll,
    /// A process has grown, the one of this number; the session begins now.
    Until(Begun, u32),
    /// It was told to stop, or the processes have ended.
    ForNothing,
}

/// Waits as the options say. The processes that were named one by one are checked first: what cannot be profiled is told
/// of at once, and not when it has grown. Those that end meanwhile are left out of them.
pub fn wait(options: &Options, named: &mut Vec<Process>, ending: &Ending) -> Result<Waited> {
    let Subject::Processes(selection) = &options.subject else { return Ok(Waited::NotAtAll) };
    if options.trigger.is_none() {
        return Ok(Waited::NotAtAll);
    }
    let members = Members::new(selection)?;
    members.require_some()?;
    for process in &*named {
        check(options, process)?;
    }
    let mut sizes = Sizes::default();
    for process in &*named {
        sizes.add(Process::open(process.pid())?);
    }
    let waited = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("failed to start the event loop")?
        .block_on(until(options.trigger, options.follow, members, &mut sizes, ending))?;
    named.retain(|process| sizes.0.contains_key(&process.pid()) && !process.has_ended().unwrap_or(true));
    // With --follow it can be a child, whose parents may have ended.
    if let (Waited::Until(_, pid), true) = (&waited, options.follow)
        && named.iter().all(|process| process.pid() != *pid)
        && let Some(history) = sizes.0.remove(pid)
    {
        named.push(history.process);
    }
    Ok(waited)
}

/// Refuses a process that could not be profiled later.
fn check(options: &Options, process: &Process) -> Result<()> {
    if let Some(refusal) = watched::seccomp_refusal(process)?
        && !options.allow_return_probes_under_seccomp
    {
        anyhow::bail!(refusal);
    }
    let pid = process.pid();
    let scan = read_address_space(process, &mut ObjectCache::new())
        .with_context(|| format!("failed to read the mappings of process {pid}"))?;
    let families = with_prefixes(&options.allocator_prefixes);
    let mut discovery = Discovery::new(families, options.allocator_objects.clone());
    discovery.search(&scan.space);
    if !discovery.has_allocator() && !options.mmap {
        anyhow::bail!(discovery.nothing_found(pid));
    }
    Ok(())
}

async fn until(
    trigger: Trigger,
    follow: bool,
    mut members: Members,
    sizes: &mut Sizes,
    ending: &Ending,
) -> Result<Waited> {
    let mut ending = ending.listen()?;
    let mut looks = interval(between(trigger));
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut told = false;
    loop {
        tokio::select! {
            biased;
            _ = ending.first() => break,
            _ = looks.tick() => {}
        }
        let now = Instant::now();
        if follow {
            members.search_below();
        }
        let known: Vec<u32> = sizes.0.keys().copied().collect();
        sizes.take_in(&members.find(&known)?);
        for refused in sizes.read(trigger, now) {
            if sizes.0.is_empty() && !members.are_open() {
                return Err(refused.into());
            }
            eprintln!("leakprobe: {refused}");
        }
        if let Some((pid, crossed)) = sizes.crossed(trigger) {
            eprintln!("leakprobe: {crossed}: putting probes in");
            return Ok(Waited::Until(Begun { at: Instant::now() }, pid));
        }
        if !told {
            told = true;
            eprintln!("leakprobe: {}", waiting(trigger, sizes));
        }
        if sizes.0.is_empty() && !members.are_open() {
            eprintln!(
                "leakprobe: the processes have ended before any had grown so much; nothing was attached"
            );
            return Ok(Waited::ForNothing);
        }
    }
    eprintln!("leakprobe: stopped while waiting; nothing was attached");
    Ok(Waited::ForNothing)
}

/// `waiting until the resident memory of process 1298 (redis-server, 120 MiB now) is 500 MiB; no probe is in place`.
fn waiting(trigger: Trigger, sizes: &Sizes) -> String {
    let whose = match sizes.0.values().collect::<Vec<_>>().as_slice() {
        [one] => format!("process {} ({} now)", one.named(), size(one.latest())),
        all => format!("one of {} processes", count(all.len() as u64)),
    };
    let rss = trigger.rss.map(|bytes| format!("is {}", size(bytes)));
    let grown = |Growth { bytes, within }: Growth| {
        format!("has grown by {} within {}", size(bytes), duration(within.as_secs_f64()))
    };
    let when: Vec<String> = rss.into_iter().chain(trigger.growth.map(grown)).collect();
    format!("waiting until the resident memory of {whose} {}; no probe is in place", when.join(" or "))
}

/// What each process has had.
#[derive(Default)]
struct Sizes(BTreeMap<u32, History>);

struct History {
    process: Process,
    name: String,
    /// When, and resident bytes.
    sizes: VecDeque<(Instant, u64)>,
}

impl History {
    /// It may have executed a program since it was met.
    fn named(&self) -> String {
        let name = self.process.name().unwrap_or_else(|_| self.name.clone());
        format!("{} ({})", self.process.pid(), visible(&name))
    }

    fn latest(&self) -> u64 {
        self.sizes.back().map_or(0, |&(_, bytes)| bytes)
    }

    /// Takes in a size, and forgets those that are too old to matter. `within`: the time in which it is to grow, and that
    /// between two looks: what it had when the one began is what the last look before that has seen.
    fn add(&mut self, now: Instant, bytes: u64, within: Duration) {
        let is_old = |&(at, _): &(Instant, u64)| now.duration_since(at) > within;
        while self.sizes.front().is_some_and(is_old) {
            self.sizes.pop_front();
        }
        // A time longer than a look each second fills is kept with fewer looks: the oldest one stays.
        let step = within / MAX_SIZES as u32;
        match self.sizes.len() {
            2.. if now.duration_since(self.sizes[self.sizes.len() - 2].0) < step => {
                self.sizes.pop_back();
            }
            _ => {}
        }
        self.sizes.push_back((now, bytes));
    }

    /// What it has grown since it was smallest.
    fn growth(&self) -> u64 {
        let least = self.sizes.iter().map(|&(_, bytes)| bytes).min().unwrap_or(0);
        self.latest() - least
    }
}

impl Sizes {
    fn add(&mut self, process: Process) {
        let name = process.name().unwrap_or_default();
        self.0.insert(process.pid(), History { process, name, sizes: VecDeque::new() });
    }

    /// Takes in the processes that have come. One whose number is in use again is another one.
    fn take_in(&mut self, pids: &[u32]) {
        let known: HashSet<u32> = self.0.keys().copied().collect();
        for process in
            pids.iter().filter(|pid| !known.contains(pid)).filter_map(|&pid| Process::open(pid).ok())
        {
            self.add(process);
        }
    }

    /// Reads what each has; why those that live cannot be profiled any more, which are left out from now on.
    fn read(&mut self, trigger: Trigger, now: Instant) -> Vec<TargetError> {
        let within = trigger.growth.map_or(Duration::ZERO, |growth| growth.within + between(trigger) * 3 / 2);
        let mut refused = Vec::new();
        self.0.retain(|&pid, history| match history.process.resident_bytes() {
            Ok(bytes) => {
                history.add(now, bytes, within);
                true
            }
            Err(_) if history.process.outlives_main_thread() => {
                let why = Process::open(pid).err();
                let goes_on = why.is_none();
                refused.extend(why);
                goes_on
            }
            // It has ended.
            Err(_) => false,
        });
        refused
    }

    /// The first that has crossed a line, and which, in words.
    fn crossed(&self, trigger: Trigger) -> Option<(u32, String)> {
        self.0.iter().find_map(|(&pid, history)| {
            let (latest, growth) = (history.latest(), history.growth());
            if trigger.rss.is_some_and(|bytes| latest >= bytes) {
                let text = format!("process {} has {} of resident memory", history.named(), size(latest));
                return Some((pid, text));
            }
            let grown = trigger.growth.filter(|wanted| growth >= wanted.bytes)?;
            let within = duration(grown.within.as_secs_f64());
            let text = format!("process {} has grown by {} within {within}", history.named(), size(growth));
            Some((pid, text))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history() -> History {
        let process = Process::open(std::os::unix::process::parent_id()).expect("a parent");
        History { process, name: String::new(), sizes: VecDeque::new() }
    }

    #[test]
    fn growth_is_since_it_was_smallest_within_the_time_and_few_sizes_are_kept() {
        let (mut history, begin) = (history(), Instant::now());
        let minute = Duration::from_secs(60);
        for second in 0..50 {
            history.add(begin + Duration::from_secs(second), 1000 - second, minute);
        }
        assert_eq!(history.growth(), 0, "it shrinks");
        history.add(begin + Duration::from_secs(50), 1500, minute);
        assert_eq!(history.growth(), 1500 - 951);
        history.add(begin + Duration::from_secs(115), 1600, minute);
        assert_eq!(history.growth(), 0, "all else is older than that");
        let second = Duration::from_secs(1);
        let growth = Trigger { rss: None, growth: Some(Growth { bytes: 1, within: second / 2 }) };
        assert_eq!([between(growth), between(Trigger::default())], [second / 8, second]);
        let day = minute * 60 * 24;
        for second in 0..20_000 {
            history.add(begin + Duration::from_secs(200 + second), second, day);
        }
        assert!(history.sizes.len() <= MAX_SIZES + 2, "{}", history.sizes.len());
        assert!(history.growth() >= 19_800, "{}", history.growth());
    }
}
