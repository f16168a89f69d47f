//! A kernel module that leaks, found by `leakprobe --kernel`; and one that does not.

use leakprobe_tests::module::{self, Module, leaky, tick};
use leakprobe_tests::probe::Probe;
use leakprobe_tests::report::{Report, Site};

const ALL: [&str; 4] = ["--top", "100000", "--interval", "2s"];

/// The site of a function of the module's; its place in the ranking, from 0.
fn of_module<'a>(report: &'a Report, function: &str) -> Option<(usize, &'a Site)> {
    report.sites.iter().enumerate().find(|(_, site)| {
        site.stack.frames.first().is_some_and(|frame| {
            frame.function.as_deref() == Some(function) && frame.object.as_deref() == Some("[leaky]")
        })
    })
}

/// All that the module's functions hold; what the kernel holds for the module is its own.
fn held(report: &Report) -> u64 {
    let is_modules = |site: &&Site| {
        site.stack.frames.first().is_some_and(|frame| frame.object.as_deref() == Some("[leaky]"))
    };
    report.sites.iter().filter(is_modules).map(|site| site.live_blocks).sum()
}

fn finds_both_leaks(extra: &[&str]) {
    let Some(path) = leaky() else { return };
    // Larger than what a small machine with nothing to do allocates meanwhile.
    let module =
        Module::load(&path, "leaky", "blocks=64 interval_ms=10 buffer_bytes=700 object_bytes=600 held=1");
    let mut probe = Probe::attach_to_kernel(&[&ALL[..], extra].concat());
    module.set("held", "0");
    // Two reports of which every part was read after the leak began.
    let first = probe.next_report();
    assert!(first.sequence <= 2, "{}", first.digest());
    let names: Vec<_> =
        first.sites.iter().take(2).map(|site| site.stack.frames[0].function.clone()).collect();
    for function in ["leaky_forget_buffer", "leaky_forget_object"] {
        let (place, _) =
            of_module(&first, function).unwrap_or_else(|| panic!("no {function}{}", first.digest()));
        assert!(place < 2, "{function} is not among the first two, {names:?}{}", first.digest());
    }
    let truth = tick(&module, 50);
    let report = probe.next_report();
    for (function, cache, object_bytes) in
        [("leaky_forget_buffer", "kmalloc-", 1024), ("leaky_forget_object", "leaky_object", 600)]
    {
        let (place, site) =
            of_module(&report, function).unwrap_or_else(|| panic!("no {function}{}", report.digest()));
        assert!(place < 2, "{function} is at {place}{}", report.digest());
        assert!(site.allocator.starts_with(cache), "{function} takes from {}", site.allocator);
        assert_eq!(site.kind, "slab");
        let blocks = truth.number(function, "blocks");
        // Exact, but for what the report itself says was skipped.
        let lost = report.ledger.skipped();
        let is_exact = (blocks.saturating_sub(lost)..=blocks).contains(&site.live_blocks);
        assert!(is_exact && site.freed_blocks == 0, "{function}: {blocks}, {lost} lost{}", report.digest());
        assert!(site.live_bytes >= site.live_blocks * object_bytes, "{function}: {} bytes", site.live_bytes);
        let rate =
            blocks as f64 * (site.live_bytes / site.live_blocks) as f64 / report.elapsed_seconds * 60.0;
        let off = (site.growth_bytes_per_minute - rate).abs() / rate;
        assert!(off < 0.05, "{function}: {} a minute, not {rate}", site.growth_bytes_per_minute);
        assert_eq!(site.contradiction, None);
    }
    let cache =
        report.kernel.as_ref().expect("the kernel").caches.iter().find(|row| row.name == "leaky_object");
    let cache = cache.expect("the module's cache");
    let row = module::cache("leaky_object").expect("its row");
    assert_eq!(cache.object_bytes, Some(row.bytes));
    let not_traced = cache.slabinfo_change.map(|change| change - cache.live_objects.cast_signed());
    let lost = report.ledger.skipped().cast_signed();
    assert!(not_traced.is_some_and(|objects| (0..=lost).contains(&objects)), "{cache:?}, {lost} lost");
    assert_eq!(cache.untraced_frees, 0, "{cache:?}");
    module.unload();
    let report = probe.next_report();
    assert_eq!(held(&report), 0, "{}", report.digest());
    probe.finish();
}

#[test]
fn a_leaking_module_is_found() {
    finds_both_leaks(&[]);
}

#[test]
fn a_leaking_module_is_found_with_functions_probed_by_breakpoints() {
    finds_both_leaks(&["--probe-functions", "breakpoint"]);
}

#[test]
fn a_leaking_module_is_found_with_no_function_probed() {
    finds_both_leaks(&["--probe-functions", "not"]);
}

#[test]
fn a_clean_module_leaves_nothing_and_its_names_are_known_after_it_has_gone() {
    let Some(path) = leaky() else { return };
    let mut probe = Probe::attach_to_kernel(&ALL);
    let module = Module::load(&path, "leaky", "blocks=9 interval_ms=2 leak=0 held=1");
    tick(&module, 30);
    let report = probe.next_report();
    assert_eq!(held(&report), 18, "one tick's buffers and objects{}", report.digest());
    for function in ["leaky_forget_buffer", "leaky_forget_object"] {
        let (_, site) =
            of_module(&report, function).unwrap_or_else(|| panic!("no {function}{}", report.digest()));
        assert_eq!(site.live_blocks, 9);
        assert_eq!(site.allocated_blocks - site.freed_blocks, 9);
    }
    module.unload();
    assert_eq!(held(&probe.next_report()), 0);
    probe.finish();
}

#[test]
fn what_a_module_forgets_for_good_stays_with_its_name() {
    let Some(path) = leaky() else { return };
    let mut probe = Probe::attach_to_kernel(&ALL);
    let module = Module::load(&path, "leaky", "blocks=5 interval_ms=2 forget=1 held=1");
    let truth = tick(&module, 20);
    let before = probe.next_report();
    let (_, site) = of_module(&before, "leaky_forget_buffer").expect("a leak");
    assert_eq!(site.live_blocks, truth.number("leaky_forget_buffer", "blocks"));
    module.unload();
    let after = probe.next_report();
    let (_, site) = of_module(&after, "leaky_forget_buffer")
        .unwrap_or_else(|| panic!("its name is forgotten{}", after.digest()));
    assert_eq!(site.live_blocks, truth.number("leaky_forget_buffer", "blocks"));
    probe.finish();
}
