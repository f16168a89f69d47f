//! What was found out, in words: a function of the facts.

use super::facts::{Facts, ProgramFact};
use crate::{
    probe::features::{Features, Mechanism},
    report::units::count,
    target::seccomp,
};

/// Columns of the list of features.
const COLUMNS: usize = 100;

/// A property of some processors: shown only where there is danger.
const EXECUTE_ONLY: &str = "execute-only pages";

/// A property of multi-uprobe links: shown only where there are any.
const FOR_ALL_THREADS: &str = "  for all threads";

/// The whole answer, line by line.
pub fn lines(facts: &Facts) -> Vec<String> {
    let mut lines = vec![
        format!("leakprobe {} on Linux {} ({})", facts.version, facts.kernel, facts.arch),
        String::new(),
        verdict(facts),
    ];
    lines.extend(kernel_verdict(facts));
    lines.push(String::new());
    match &facts.features {
        Some(features) => {
            lines.push("What this kernel offers:".to_owned());
            lines.extend(rows(features).into_iter().flat_map(|row| row.lines()));
        }
        None => {
            lines.push("What this kernel offers was not asked: that takes the same privileges.".to_owned())
        }
    }
    lines.extend([String::new(), seccomp_line(facts.seccomp_hazard)]);
    if !facts.programs.is_empty() {
        lines.push(String::new());
        lines.push("leakprobe's BPF programs, each loaded just now:".to_owned());
        lines.push(format!("  {:<16} {:>12} {:>9}", "", "instructions", "ms"));
        lines.extend(facts.programs.iter().flat_map(program_lines));
        lines.push("  (instructions that the verifier went through; its limit is 1,000,000)".to_owned());
    }
    lines
}

fn verdict(facts: &Facts) -> String {
    let how = match facts.mechanism() {
        Some(Mechanism::Multi) => "probes go in and out many at a time",
        Some(Mechanism::PerfEvent) => "probes go in and out one by one",
        Some(Mechanism::PerfEventByAddress) => {
            "probes go in and out one by one, and are told apart by their addresses"
        }
        None => "",
    };
    match &facts.refusal {
        None => format!("leakprobe works here (--pid, -- COMMAND, demo): {how}."),
        Some(refusal) => format!("leakprobe does not work here: {refusal}"),
    }
}

/// Whether `--kernel` works; nothing where leakprobe does not work at all.
fn kernel_verdict(facts: &Facts) -> Option<String> {
    if let Some(refusal) = &facts.kernel_refusal {
        return Some(format!("leakprobe --kernel does not work here: {refusal}"));
    }
    let tracepoints = facts.kernel_tracepoints?;
    let functions = match facts.features {
        Some(features) if features.fentry && features.fexit => "bulk frees are seen by patching functions",
        Some(features) if features.kprobes => "bulk frees are seen by breakpoints",
        _ => "bulk frees are not seen, but at the reuse of addresses and in /proc/slabinfo",
    };
    Some(format!("leakprobe --kernel works here: {tracepoints} tracepoints; {functions}."))
}

/// A feature, and what follows.
struct Row {
    name: &'static str,
    there: bool,
    follows: &'static str,
}

impl Row {
    fn lines(&self) -> Vec<String> {
        let answer = if self.there { "yes" } else { "no" };
        let mut lines = vec![format!("  {:<24}{answer:<4}", self.name)];
        for word in self.follows.split(' ') {
            match lines.last_mut() {
                Some(line) if line.len() + 1 + word.len() <= COLUMNS => {
                    line.push(' ');
                    line.push_str(word);
                }
                _ => lines.push(format!("  {:<28} {word}", "")),
            }
        }
        lines.iter().map(|line| line.trim_end().to_owned()).collect()
    }
}

fn rows(features: &Features) -> Vec<Row> {
    let row = |name, there: bool, yes, no| Row { name, there, follows: if there { yes } else { no } };
    const UNUSED: &str = "not needed by this version of leakprobe";
    const BREAKPOINTS: &str = "--kernel sets breakpoints instead";
    const UNSEEN: &str =
        "--kernel does not see what is freed in bulk or after a grace period, and says in which caches";
    let patches = features.fentry && features.fexit;
    let rows = vec![
        row("uprobes", features.uprobes, "", "nothing can be probed"),
        row("ring buffer", features.ring_buffer, "", "leakprobe does not start (Linux 5.8 has it)"),
        row(
            "map batch operations",
            features.batch,
            "",
            "maps are read key by key: reports of many blocks take longer (Linux 5.6 has them)",
        ),
        row(
            "probe cookies",
            features.cookies,
            "",
            "probes are told apart by their addresses: a little slower; where two of a process share a page \
             offset, calls right after an exec or a dlopen can be lost, and are counted (Linux 5.15 has them)",
        ),
        row(
            "perf-event links",
            features.perf_links,
            "",
            "programs are attached to perf events directly, without cookies (Linux 5.15 has them)",
        ),
        row(
            "multi-uprobe links",
            features.multi_links,
            "",
            "probes are attached one by one: about 0.1 s each to detach, though several at once (Linux 6.6 has them)",
        ),
        row(
            FOR_ALL_THREADS,
            features.multi_filters_processes,
            "",
            "such links would miss all threads but one, so probes are attached one by one (Linux 6.11 is right)",
        ),
        row(
            "inherited guards",
            features.inherited_guards,
            "",
            "with --follow, a daemon's first blocks may be missing, which reports say (Linux 6.13 has them)",
        ),
        row("tracepoints", features.tracepoints, "", "--mmap does not work"),
        row(
            "maps that grow",
            features.maps_on_demand,
            "",
            "room for blocks, stacks and threads is set aside at once, about 110 MB (--max-blocks), since this kernel \
             warns of maps that grow (Linux 6.1 does not)",
        ),
        row(
            "maps are locked memory",
            features.maps_are_locked_memory,
            "leakprobe lifts its limit on locked memory (ulimit -l), which takes CAP_SYS_RESOURCE",
            "",
        ),
        row(
            EXECUTE_ONLY,
            features.execute_only_pages,
            "a target that unwinds its stack inside its allocator while it is profiled (a thread cancelled there, a \
             backtrace in a signal handler) can crash",
            "",
        ),
        row("session uprobes", features.session_links, UNUSED, UNUSED),
        row("bpf_loop", features.bpf_loop, "", "programs take longer to load"),
        row("BTF tracepoints", features.btf_tracepoints, UNUSED, UNUSED),
        row(
            "kernel BTF",
            features.kernel_btf,
            "",
            "--kernel uses classic tracepoints, which cost more, and knows fewer caches by name; --follow uses one, whose \
             runs kernels with preemption can skip",
        ),
        row("kprobes", features.kprobes, "", if patches { "" } else { UNSEEN }),
        row("fentry", features.fentry, "", if features.kprobes { BREAKPOINTS } else { UNSEEN }),
        row("fexit", features.fexit, "", if features.kprobes { BREAKPOINTS } else { UNSEEN }),
    ];
    let apt = |row: &Row| match row.name {
        FOR_ALL_THREADS => features.multi_links,
        EXECUTE_ONLY => features.execute_only_pages,
        _ => true,
    };
    rows.into_iter().filter(apt).collect()
}

fn seccomp_line(hazard: bool) -> String {
    if hazard {
        format!(
            "Processes with a seccomp filter, as in most containers: refused, unless {} is given. A return probe \
             may kill such a process on this kernel; 6.12.14, 6.13.3 and 6.14 are the first that are right again.",
            seccomp::OVERRIDE
        )
    } else {
        "Processes with a seccomp filter, as in most containers: return probes do not endanger them on this kernel."
            .to_owned()
    }
}

fn program_lines(program: &ProgramFact) -> Vec<String> {
    let ProgramFact { name, instructions, load_ms, error } = program;
    match (load_ms, error) {
        (Some(load_ms), None) => {
            let instructions = instructions.map_or_else(|| "not known".to_owned(), count);
            vec![format!("  {name:<16} {instructions:>12} {load_ms:>9.1}")]
        }
        (_, error) => {
            let error = error.as_deref().unwrap_or("not loaded");
            let mut lines = vec![format!("  {name:<16} refused")];
            lines.extend(error.lines().map(|line| format!("    {line}")));
            lines
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(features: Features) -> Facts {
        Facts {
            version: "0.1.0".into(),
            kernel: "6.1.0-56-cloud-amd64".into(),
            arch: "x86_64".into(),
            features: Some(features),
            usable: true,
            refusal: None,
            seccomp_hazard: false,
            kernel_refusal: None,
            kernel_tracepoints: Some("raw"),
            programs: vec![ProgramFact {
                name: "free_enter".into(),
                instructions: Some(4711),
                load_ms: Some(1.25),
                error: None,
            }],
        }
    }

    /// Linux 6.1's.
    const OLDER: Features = Features {
        uprobes: true,
        ring_buffer: true,
        batch: true,
        cookies: true,
        perf_links: true,
        multi_links: false,
        multi_filters_processes: false,
        session_links: false,
        tracepoints: true,
        kernel_btf: true,
        btf_tracepoints: true,
        kprobes: true,
        fentry: true,
        fexit: true,
        bpf_loop: true,
        maps_on_demand: true,
        inherited_guards: false,
        execute_only_pages: false,
        maps_are_locked_memory: false,
    };

    #[test]
    fn an_older_kernel_gets_a_reason_for_what_is_slower() {
        insta::assert_snapshot!(lines(&facts(OLDER)).join("\n"), @r"
leakprobe 0.1.0 on Linux 6.1.0-56-cloud-amd64 (x86_64)

leakprobe works here (--pid, -- COMMAND, demo): probes go in and out one by one.
leakprobe --kernel works here: raw tracepoints; bulk frees are seen by patching functions.

What this kernel offers:
  uprobes                 yes
  ring buffer             yes
  map batch operations    yes
  probe cookies           yes
  perf-event links        yes
  multi-uprobe links      no   probes are attached one by one: about 0.1 s each to detach, though
                               several at once (Linux 6.6 has them)
  inherited guards        no   with --follow, a daemon's first blocks may be missing, which reports
                               say (Linux 6.13 has them)
  tracepoints             yes
  maps that grow          yes
  maps are locked memory  no
  session uprobes         no   not needed by this version of leakprobe
  bpf_loop                yes
  BTF tracepoints         yes  not needed by this version of leakprobe
  kernel BTF              yes
  kprobes                 yes
  fentry                  yes
  fexit                   yes

Processes with a seccomp filter, as in most containers: return probes do not endanger them on this kernel.

leakprobe's BPF programs, each loaded just now:
                   instructions        ms
  free_enter              4,711       1.2
  (instructions that the verifier went through; its limit is 1,000,000)
");
    }

    #[test]
    fn the_oldest_kernel_is_told_what_can_be_lost() {
        let features = Features {
            cookies: false,
            perf_links: false,
            maps_on_demand: false,
            execute_only_pages: true,
            maps_are_locked_memory: true,
            ..OLDER
        };
        let text = lines(&facts(features)).join("\n");
        for part in [
            "one by one, and are told apart by their addresses.",
            "probe cookies           no   probes are told apart by their addresses: a little slower;",
            "execute-only pages      yes  a target that unwinds its stack",
            "maps that grow          no   room for blocks, stacks and threads is set aside",
            "maps are locked memory  yes  leakprobe lifts its limit",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    #[test]
    fn links_that_miss_threads_are_not_used() {
        let features = Features { multi_links: true, ..OLDER };
        let text = lines(&facts(features)).join("\n");
        assert!(text.contains("    for all threads       no   such links would miss"), "{text}");
        assert!(
            text.contains("works here (--pid, -- COMMAND, demo): probes go in and out one by one."),
            "{text}"
        );
        let features = Features { multi_filters_processes: true, ..features };
        let text = lines(&facts(features)).join("\n");
        assert!(text.contains("demo): probes go in and out many at a time."), "{text}");
    }

    #[test]
    fn a_refused_program_is_told_in_the_verifiers_words() {
        let mut facts = facts(OLDER);
        let error = "failed to load the BPF program free_enter: EINVAL; the verifier said:\n0: (95) exit\nR0 !read_ok";
        facts.programs[0] = ProgramFact {
            name: "free_enter".into(),
            instructions: None,
            load_ms: None,
            error: Some(error.into()),
        };
        (facts.usable, facts.refusal) = (false, Some(error.into()));
        facts.seccomp_hazard = true;
        let text = lines(&facts).join("\n");
        assert!(
            text.contains("leakprobe does not work here: failed to load the BPF program free_enter"),
            "{text}"
        );
        assert!(text.contains("  free_enter       refused\n    failed to load"), "{text}");
        assert!(text.contains("\n    R0 !read_ok"), "{text}");
        assert!(text.contains("refused, unless --allow-return-probes-under-seccomp"), "{text}");
    }

    #[test]
    fn who_may_not_ask_is_told_so() {
        let mut facts = facts(OLDER);
        facts.programs.clear();
        (facts.features, facts.usable, facts.refusal) = (None, false, Some("failed to start: root".into()));
        let text = lines(&facts).join("\n");
        assert!(text.contains("does not work here: failed to start: root\n"), "{text}");
        assert!(text.contains("was not asked"), "{text}");
        let json = serde_json::to_value(&facts).expect("JSON");
        assert_eq!((json["usable"].as_bool(), json["features"].is_null()), (Some(false), true));
    }
}
