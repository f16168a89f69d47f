//! What `--kernel` can be asked for, and what it refuses.

use leakprobe_tests::kobjects::{self, Kind, digest, made, report_in_which};
use leakprobe_tests::probe::Probe;
use leakprobe_tests::report::{Report, Site};
use leakprobe_tests::run;

const ALL: [&str; 4] = ["--top", "100000", "--interval", "1s"];
const CONTEXT: Kind = Kind { cache: "kmalloc-", function: "^eventfd" };

fn all_and<'a>(extra: &[&'a str]) -> Vec<&'a str> {
    [&ALL[..], extra].concat()
}

fn refused(words: &[&str]) -> (Option<i32>, String) {
    let ended = run::to_end(&mut run::command(words));
    (ended.status.code(), ended.stderr)
}

#[test]
fn a_cache_that_matches_nothing_is_answered_with_near_names() {
    let (code, text) = refused(&["--kernel", "--cache", "dentri"]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("failed to find a cache that matches 'dentri'"), "{text}");
    assert!(text.contains("near names: dentry"), "{text}");
}

#[test]
fn what_does_not_go_together_is_refused_with_the_reason() {
    for (words, reason) in [
        (&["--kernel", "--pid", "1"][..], "--kernel records what the kernel allocates for itself"),
        (&["--kernel", "--mmap"], "--pages records pages"),
        (&["--cache", "dentry", "--pid", "1"], "--cache says what is recorded of the kernel's memory"),
        (&["--pages", "--pid", "1"], "it needs --kernel"),
        (&["--kernel", "demo"], "--kernel does not go with demo"),
        (&["--kernel", "--sample", "0"], "0"),
    ] {
        let (code, text) = refused(words);
        assert_eq!(code, Some(2), "{words:?}: {text}");
        assert!(text.contains(reason), "{words:?}: {text}");
    }
}

#[test]
fn what_leakprobe_itself_makes_the_kernel_allocate_is_left_out_and_counted() {
    let mut probe = Probe::attach_to_kernel(&ALL);
    let own = |report: &Report| report.ledger.count("own");
    let report = report_in_which(&mut probe, |report| own(report) > 0);
    assert!(own(&report) > 0, "{:?}", report.ledger);
    let makers = report.sites.iter().flat_map(|site| &site.made_by);
    let pid = probe.id();
    assert!(makers.clone().all(|maker| maker.pid != pid), "{}", report.digest());
    probe.finish();
}

#[test]
fn a_full_map_loses_and_says_so_first() {
    let (mut victim, _folder) = kobjects::start();
    let mut probe = Probe::attach_to_kernel(&all_and(&["--max-blocks", "100", "--max-stacks", "5"]));
    victim.run("eventfds 500");
    let lost = |report: &Report| {
        let kinds: Vec<&str> = report.warnings.iter().take(2).map(|warning| warning.kind.as_str()).collect();
        kinds == ["block_map_full", "stack_map_full"]
    };
    let report = report_in_which(&mut probe, lost);
    assert!(lost(&report), "{:?}", report.warnings);
    assert!(report.warnings[0].text.contains("raise --max-blocks"), "{:?}", report.warnings);
    let last = probe.finish().pop().expect("a report");
    assert!(last.totals.live_blocks <= 100, "{:?}", last.totals);
    assert!(last.ledger.count("block_map_full") >= 1000, "{:?}", last.ledger);
}

#[test]
fn a_sample_estimates_what_there_is() {
    const COUNT: u64 = 4000;
    let (mut victim, _folder) = kobjects::start();
    let mut probe = Probe::attach_to_kernel(&all_and(&["--sample", "8"]));
    victim.run(&format!("eventfds {COUNT}"));
    // One in 8 of 4,000: 500, give or take 21; six times that are 25%.
    let near = |report: &Report| made(report, CONTEXT).abs_diff(COUNT) <= COUNT / 4;
    let report = report_in_which(&mut probe, near);
    assert!(near(&report), "{} of {COUNT}{}", made(&report, CONTEXT), digest(&report));
    assert_eq!(made(&report, CONTEXT) % 8, 0, "each stands for 8");
    assert_eq!(report.kernel.as_ref().map(|kernel| kernel.sampled_one_in), Some(8));
    assert!(report.warnings.iter().any(|warning| warning.kind == "sampled"), "{:?}", report.warnings);
    victim.run("release");
    let gone = report_in_which(&mut probe, |report| made(report, CONTEXT) == 0);
    assert_eq!(made(&gone, CONTEXT), 0, "{}", digest(&gone));
    probe.finish();
}

#[test]
fn only_the_caches_that_are_named_are_recorded() {
    let (mut victim, _folder) = kobjects::start();
    let mut probe = Probe::attach_to_kernel(&all_and(&["--cache", "fil?", "--cache", "kmalloc-*"]));
    victim.run("eventfds 300");
    let files = Kind { cache: "filp", function: "" };
    let report = report_in_which(&mut probe, |report| made(report, files) == 300);
    assert_eq!((made(&report, files), made(&report, CONTEXT)), (300, 300), "{}", digest(&report));
    let others: Vec<&str> = report
        .sites
        .iter()
        .map(|site| site.allocator.as_str())
        .filter(|name| *name != "filp" && !name.starts_with("kmalloc-"))
        .collect();
    assert!(others.is_empty(), "{others:?}");
    assert!(report.ledger.count("cache_filtered") >= 300, "the dentries: {:?}", report.ledger);
    probe.finish();
}

#[test]
fn sizes_are_filtered_by_what_was_asked_for() {
    let (mut victim, _folder) = kobjects::start();
    let mut probe = Probe::attach_to_kernel(&all_and(&["--min-size", "500", "--max-size", "4k"]));
    victim.run("pipes 300");
    let buffers = Kind { cache: "kmalloc-", function: "^alloc_pipe_info" };
    let report = report_in_which(&mut probe, |report| made(report, buffers) == 300);
    assert_eq!(made(&report, buffers), 300, "the buffers, not the pipe{}", digest(&report));
    assert!(report.ledger.count("filtered") > 300, "{:?}", report.ledger);
    probe.finish();
}

#[test]
fn without_stacks_sites_are_callers() {
    let (mut victim, _folder) = kobjects::start();
    let mut probe = Probe::attach_to_kernel(&all_and(&["--no-stacks"]));
    victim.run("eventfds 300");
    let report = report_in_which(&mut probe, |report| made(report, CONTEXT) == 300);
    assert_eq!(made(&report, CONTEXT), 300, "{}", digest(&report));
    for site in &report.sites {
        assert_eq!((site.stack.frames.len(), site.stack.quality.as_str()), (1, "caller"), "{site:?}");
    }
    probe.finish();
}

#[test]
fn classic_tracepoints_tell_the_same() {
    let (mut victim, _folder) = kobjects::start();
    let mut probe = Probe::attach_to_kernel(&all_and(&["--attach-with", "perf-event"]));
    victim.run("eventfds 300");
    let report = report_in_which(&mut probe, |report| made(report, CONTEXT) == 300);
    assert_eq!(made(&report, CONTEXT), 300, "{}", digest(&report));
    assert_eq!(report.kernel.as_ref().map(|kernel| kernel.tracepoints.as_str()), Some("classic"));
    assert!(
        report.warnings.iter().any(|warning| warning.kind == "classic_tracepoints"),
        "{:?}",
        report.warnings
    );
    // From 6.18 on the record has the cache's name.
    let files = Kind { cache: "filp|dentry|a cache of ", function: "eventfd" };
    assert!(made(&report, files) >= 600, "files and dentries{}", digest(&report));
    victim.run("release");
    let gone = report_in_which(&mut probe, |report| made(report, CONTEXT) + made(report, files) == 0);
    assert_eq!(made(&gone, CONTEXT) + made(&gone, files), 0, "{}", digest(&gone));
    probe.finish();
}

#[test]
fn pages_are_those_that_no_slab_took() {
    const COUNT: u64 = 3000;
    let (mut victim, _folder) = kobjects::start();
    let mut probe = Probe::attach_to_kernel(&all_and(&["--pages"]));
    victim.run(&format!("anonymous {COUNT}"));
    let touched = Kind { cache: "pages", function: "handle_mm_fault" };
    let report = report_in_which(&mut probe, |report| made(report, touched) >= COUNT);
    let seen = made(&report, touched);
    assert!((COUNT..COUNT + 40).contains(&seen), "{seen}{}", digest(&report));
    // Files and dentries take slabs meanwhile; their pages are objects already.
    victim.run("eventfds 4000");
    let report = probe.next_report();
    let pages = || report.sites.iter().filter(|site| site.kind == "pages");
    assert!(pages().count() > 0 && pages().all(|site| site.allocator == "pages"), "{}", report.digest());
    for site in pages() {
        let names: Vec<&str> =
            site.stack.frames.iter().filter_map(|frame| frame.function.as_deref()).collect();
        assert!(!names.iter().any(|name| name.contains("slab_alloc") || name.contains("_slab")), "{names:?}");
    }
    let slabs = report.kernel.as_ref().and_then(|kernel| kernel.slab_pages).expect("pages of slabs");
    assert!(slabs.bytes > 0, "{slabs:?}");
    victim.run("release");
    let gone = report_in_which(&mut probe, |report| made(report, touched) < 40);
    assert!(made(&gone, touched) < 40, "{}", digest(&gone));
    probe.finish();
}

#[test]
fn per_cpu_memory_is_counted_on_every_cpu() {
    let (mut victim, _folder) = kobjects::start();
    let mut probe = Probe::attach_to_kernel(&all_and(&["--percpu"]));
    victim.run("mounts 50");
    let freezing = Kind { cache: "per-CPU", function: "^__percpu_init_rwsem" };
    let report = report_in_which(&mut probe, |report| made(report, freezing) >= 150);
    assert_eq!(made(&report, freezing), 150, "{}", digest(&report));
    victim.run("release");
    let gone = report_in_which(&mut probe, |report| made(report, freezing) == 0);
    assert_eq!(made(&gone, freezing), 0, "{}", digest(&gone));
    probe.finish();
}

#[test]
fn a_tree_of_mappings_is_what_slabinfo_says_or_marked() {
    // By how many nodes slabinfo may be behind: CPUs keep free ones.
    let slack = 300 * std::thread::available_parallelism().expect("processors").get() as u64;
    let (mut victim, _folder) = kobjects::start();
    let mut probe = Probe::attach_to_kernel(&ALL);
    victim.run("remappings 2000");
    let report = probe.next_report();
    let caches = &report.kernel.as_ref().expect("the kernel").caches;
    let Some(nodes) = caches.iter().find(|cache| cache.name == "maple_node") else {
        // Before 6.1 mappings are in a tree of another kind, which has no nodes of its own.
        return;
    };
    let change = nodes.slabinfo_change.expect("a row of slabinfo");
    let near = nodes.live_objects.cast_signed().abs_diff(change) < slack;
    assert!(near || nodes.untraced_free_share > 0.01 || nodes.contradicted, "{nodes:?}");
    if nodes.contradicted {
        // Nodes wait for a grace period, and are slabinfo's as long: what the cache has grown by may be one site's.
        let supported = change.max(0).cast_unsigned() + slack;
        let unsupported = |site: &&Site| {
            site.allocator == "maple_node" && site.live_blocks / 2 > supported && site.contradiction.is_none()
        };
        assert_eq!(report.sites.iter().find(unsupported).map(|site| site.live_blocks), None, "{nodes:?}");
        // However few sites there are beside them.
        assert!(report.sites.is_sorted_by_key(|site| site.contradiction.is_some()), "{}", report.digest());
    }
    probe.finish();
}
