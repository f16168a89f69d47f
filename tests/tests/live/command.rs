//! `leakprobe [options] -- COMMAND ARGUMENTS`.

use std::fs;
use std::os::unix::process::CommandExt as _;

use leakprobe_tests::report::State;
use leakprobe_tests::{compile, probe, run};

use crate::last;

/// Runs a command line under leakprobe; its reports go to a file.
fn profile(command: &[&str]) -> (run::Ended, Vec<leakprobe_tests::report::Report>) {
    let output = probe::fresh_output();
    let mut arguments = probe::arguments(&output, &["--interval", "200ms", "--"]);
    arguments.extend(command.iter().map(|word| word.to_string()));
    let path = std::env::var("PATH").unwrap_or_default();
    let ended =
        run::to_end(run::command(&arguments).env("PATH", format!("{}:{path}", compile::folder().display())));
    // A command that could not be started leaves the file empty.
    let wrote = fs::metadata(&output).is_ok_and(|file| file.len() > 0);
    let reports = if wrote { probe::final_reports(&output) } else { Vec::new() };
    let _ = fs::remove_file(&output);
    (ended, reports)
}

#[test]
fn a_command_is_profiled_from_its_first_allocation() {
    let program = compile::victim("command").display().to_string();
    let (ended, reports) = profile(&[&program, "one", "--two", "three words", ""]);
    assert_eq!(ended.status.code(), Some(3), "the command's own exit status: {ended:?}");
    assert_eq!(ended.stdout, "[one][--two][three words][]\n", "the command's own output, and nothing else");
    let report = last(&reports);
    // What a constructor takes before main is there, and so is the rest.
    let early = report.sums_of(&["library_constructor"]);
    assert_eq!((early.blocks, early.bytes), (3, 333), "{}", report.digest());
    let late = report.sums_of(&["command_allocates", "main"]);
    assert_eq!((late.blocks, late.bytes), (20, 1000), "{}", report.digest());
    assert_eq!((report.totals.live_blocks, report.totals.live_bytes), (23, 1333), "{}", report.digest());
    assert_eq!(report.processes[0].state, State::Exited(Some("exit status 3".into())));
    assert_eq!(report.ledger.lost(), 0, "{}", report.digest());
}

#[test]
fn a_command_is_found_in_the_path() {
    compile::victim("command");
    let (ended, reports) = profile(&["command"]);
    assert_eq!(ended.status.code(), Some(3), "{ended:?}");
    assert_eq!(last(&reports).totals.live_blocks, 23, "{}", last(&reports).digest());
}

#[test]
fn a_command_that_is_killed_passes_on_its_signal() {
    let program = compile::victim("command").display().to_string();
    let (ended, _) = profile(&["/bin/sh", "-c", "kill -9 $$"]);
    assert_eq!(ended.status.code(), Some(128 + 9), "as a shell says it: {ended:?}");
    // And another one after it is as well as ever.
    assert_eq!(profile(&[&program]).0.status.code(), Some(3));
}

/// As under nohup: neither leakprobe nor the program minds a hangup.
#[test]
fn a_hangup_that_is_ignored_stays_so() {
    let script = "while read name value; do [ $name = SigIgn: ] && echo $value; done < /proc/self/status; \
                  kill -HUP $PPID; kill -HUP $$; exit 5";
    let output = probe::fresh_output();
    let arguments = probe::arguments(&output, &["--", "/bin/sh", "-c", script]);
    let mut command = run::command(&arguments);
    let ignore = || {
        // SAFETY: signal takes two numbers.
        unsafe { libc::signal(libc::SIGHUP, libc::SIG_IGN) };
        Ok(())
    };
    // SAFETY: what is done there may be done between fork and exec.
    unsafe { command.pre_exec(ignore) };
    let ended = run::to_end(&mut command);
    assert_eq!(ended.status.code(), Some(5), "{ended:?}");
    let mask = u64::from_str_radix(ended.stdout.trim(), 16).expect("a mask");
    assert_eq!(mask & 1 << (libc::SIGHUP - 1), 1 << (libc::SIGHUP - 1), "{ended:?}");
    // It has seen the end, and not a signal before.
    let reports = probe::final_reports(&output);
    assert_eq!(last(&reports).processes[0].state, State::Exited(Some("exit status 5".into())));
    let _ = fs::remove_file(&output);
}

#[test]
fn a_command_that_is_not_there_is_named() {
    let (ended, _) = profile(&["no-such-command-anywhere", "x"]);
    ended.check_error(127, &["no-such-command-anywhere"]);
}

#[test]
fn a_file_that_cannot_be_run_is_named() {
    let path = compile::scratch().join(format!("no_program.{}", std::process::id()));
    fs::write(&path, "no program").expect("failed to write a file");
    let path = path.display().to_string();
    let (ended, _) = profile(&[&path]);
    fs::remove_file(&path).expect("failed to remove a file");
    ended.check_error(126, &[&path]);
}

#[test]
fn a_command_that_maps_first_thing_is_seen() {
    let program = compile::victim("early").display().to_string();
    let output = probe::fresh_output();
    let mut arguments = probe::arguments(&output, &["--mmap", "--", &program]);
    let ended = run::to_end(run::command(arguments.drain(..)).stdin(std::process::Stdio::null()));
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    let reports = probe::final_reports(&output);
    let left = last(&reports).sites.iter().filter(|site| site.live_bytes == 254 * 4096);
    let left: Vec<_> =
        left.map(|site| (site.kind.as_str(), site.live_blocks, site.allocated_blocks)).collect();
    assert_eq!(left, [("mapping", 1, 1)], "{}", last(&reports).digest());
    let _ = fs::remove_file(&output);
}
