//! Objects that come after the attach, and programs that carry their C library inside.

use leakprobe_tests::compile;
use leakprobe_tests::probe::Probe;
use leakprobe_tests::victim::Victim;

use crate::last;

#[test]
fn an_object_loaded_after_the_attach_is_counted_and_named() {
    let mut victim = Victim::start("dlopen", &[]);
    let probe = Probe::attach(victim.pid(), &[]);
    let plugin = compile::victim("plugin.so");
    victim.run(&format!("load {}", plugin.display()));
    victim.run("call 400 55");
    let reports = probe.finish();
    let report = last(&reports);
    // The loader takes blocks of its own: only the plugin's are known, and those exactly.
    let seen = report.sums_of(&["plugin_allocate", "plugin_entry", "call", "main"]);
    assert_eq!((seen.blocks, seen.bytes), (400, 22_000), "{}", report.digest());
    let site = report.sites_of(&["plugin_allocate"]).next().expect("a site in the plugin");
    let frame = &site.stack.frames[0];
    assert!(frame.object.as_deref().is_some_and(|object| object.ends_with("/plugin.so")), "{frame:?}");
    assert!(frame.file.as_deref().is_some_and(|file| file.ends_with("plugin.c")), "{frame:?}");
    victim.quit();
}

#[test]
fn an_object_that_was_unloaded_keeps_its_names() {
    let mut victim = Victim::start("dlopen", &[]);
    let mut probe = Probe::attach(victim.pid(), &["--interval", "200ms"]);
    victim.run(&format!("load {}", compile::victim("plugin.so").display()));
    victim.run("call 400 55");
    assert_eq!(probe.next_report().sums_of(&["plugin_allocate"]).blocks, 400);
    victim.run("unload");
    probe.next_report();
    let reports = probe.finish();
    assert_eq!(last(&reports).sums_of(&["plugin_allocate"]).blocks, 400, "{}", last(&reports).digest());
    victim.quit();
}

#[test]
fn a_static_program_is_as_exact() {
    let mut victim = Victim::start("leak_static", &[]);
    let probe = Probe::attach(victim.pid(), &[]);
    let truth = victim.run("leak 1000 64").then(victim.run("leak 500 16"));
    let reports = probe.finish();
    truth.check(last(&reports));
    assert_eq!(last(&reports).sums_of(&["leak", "main"]).bytes, 72_000);
    victim.run("free");
    victim.quit();
}
