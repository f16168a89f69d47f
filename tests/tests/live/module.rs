//! A kernel module that leaks at a known rate: it does what it says, by its own books and by the kernel's.
//!
//! `LEAKPROBE_MODULE` names leaky.ko, built from modules/leaky for the kernel that runs.

use std::path::Path;

use leakprobe_tests::module::{self, Module, leaky, tick};

#[test]
fn a_leaking_module_leaks_at_its_rate_and_leaves_nothing_when_it_goes() {
    let Some(path) = leaky() else { return };
    let module =
        Module::load(&path, "leaky", "blocks=7 interval_ms=2 buffer_bytes=300 object_bytes=104 held=1");
    assert_eq!(module.truth().number("note", "ticks"), 0, "held from the start");
    let mut before = 0;
    for _ in 0..3 {
        let truth = tick(&module, 20);
        let ticks = truth.number("note", "ticks");
        assert!(ticks >= before + 20, "{truth:?}");
        before = ticks;
        for (site, bytes) in [("leaky_forget_buffer", 300), ("leaky_forget_object", 104)] {
            let seen = ["blocks", "bytes", "allocated", "freed"].map(|key| truth.number(site, key));
            assert_eq!(seen, [7 * ticks, 7 * ticks * bytes, 7 * ticks, 0], "{site} after {ticks} ticks");
        }
        for site in ["leaky_churn_buffer", "leaky_churn_object"] {
            let seen = ["blocks", "bytes", "allocated", "freed"].map(|key| truth.number(site, key));
            assert_eq!(seen, [0, 0, 7 * ticks, 7 * ticks], "{site} after {ticks} ticks");
        }
        // The kernel's own count, with the size that was asked for at least.
        let row = module::cache("leaky_object").expect("the cache's row");
        assert_eq!(row.active, 7 * ticks, "{row:?}");
        assert!(row.bytes >= 104, "{row:?}");
        // Nothing happens while it is held.
        assert_eq!(module.truth(), truth);
    }
    module.unload();
    assert_eq!(module::cache("leaky_object"), None, "the cache went with the module");
    assert!(!Path::new("/proc/leaky").exists());
}

#[test]
fn a_clean_module_holds_one_ticks_blocks() {
    let Some(path) = leaky() else { return };
    let module = Module::load(&path, "leaky", "blocks=5 interval_ms=2 leak=0 held=1");
    for _ in 0..2 {
        let truth = tick(&module, 10);
        let ticks = truth.number("note", "ticks");
        for site in ["leaky_forget_buffer", "leaky_forget_object"] {
            let seen = ["blocks", "allocated", "freed"].map(|key| truth.number(site, key));
            assert_eq!(seen, [5, 5 * ticks, 5 * (ticks - 1)], "{site} after {ticks} ticks");
        }
        assert_eq!(module::cache("leaky_object").expect("the cache's row").active, 5);
    }
    module.unload();
    assert_eq!(module::cache("leaky_object"), None, "the cache went with the module");
}

#[test]
fn a_module_with_bad_parameters_is_refused() {
    let Some(path) = leaky() else { return };
    for parameters in ["buffer_bytes=8", "object_bytes=4000000", "blocks=200000"] {
        let error = Module::try_load(&path, "leaky", parameters).expect_err("a module that can't work");
        assert_eq!(error.raw_os_error(), Some(libc::EINVAL), "{parameters}: {error}");
        assert!(!Path::new("/proc/leaky").exists());
        assert_eq!(module::cache("leaky_object"), None);
    }
}
