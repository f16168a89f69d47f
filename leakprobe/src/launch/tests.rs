//! Real children, compiled here. None waits on a clock: a child shows how far it has come by appending
//! letters to a file, and waits on a FIFO where it must.

use std::{
    cell::RefCell,
    ffi::OsString,
    fs,
    io::Write,
    os::unix::{fs::PermissionsExt, process::ExitStatusExt},
    path::{Path, PathBuf},
    process::Command,
    thread,
};

use nix::{
    errno::Errno,
    sys::signal::{SigSet, Signal, kill},
    unistd::Pid,
};

use super::{LaunchError, Started, exit_code, start};

/// What every C program here begins with: `mark` appends a letter to the test's marker file.
const PRELUDE: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
static void mark(char letter) {
    int fd = open(FOLDER "/marker", O_WRONLY | O_APPEND | O_CREAT, 0600);
    if (write(fd, &letter, 1) != 1) abort();
    close(fd);
}
#define CONSTRUCTOR __attribute__((constructor)) static void
"#;

/// A folder of one test, removed at its end.
struct Folder(PathBuf);

impl Folder {
    fn new(test: &str) -> Self {
        let path = std::env::temp_dir().join(format!("leakprobe-launch-{}-{test}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Compiles C behind the prelude to `name`; the compiler's complaint when it fails.
    fn try_compile(&self, name: &str, source: &str, arguments: &[&str]) -> Result<PathBuf, String> {
        let file = self.path(&format!("{name}.c"));
        fs::write(&file, format!("#define FOLDER \"{}\"\n{PRELUDE}{source}", self.0.display())).unwrap();
        let output = Command::new("cc")
            .current_dir(&self.0)
            .args(["-Wall", "-Werror", "-Wno-unused-function", "-pthread", "-o", name])
            .arg(file)
            .args(arguments)
            .output()
            .expect("a C compiler (cc) is needed to run the tests");
        let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
        if output.status.success() { Ok(self.path(name)) } else { Err(complaint) }
    }

    fn compile(&self, name: &str, source: &str, arguments: &[&str]) -> PathBuf {
        self.try_compile(name, source, arguments).unwrap()
    }

    /// A program whose constructor lies in a shared library: those run before the entry point, and the
    /// executable's own behind it (since glibc 2.34).
    fn program(&self, name: &str, library: &str, main: &str) -> PathBuf {
        self.compile(&format!("lib{name}.so"), library, &["-shared", "-fPIC"]);
        let link = format!("-l{name}");
        self.compile(name, main, &["-L.", "-Wl,-rpath,$ORIGIN", "-Wl,--no-as-needed", &link])
    }

    /// The letters that the child has written so far.
    fn marker(&self) -> String {
        fs::read_to_string(self.path("marker")).unwrap_or_default()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn words(command: &[&str]) -> Vec<OsString> {
    command.iter().map(OsString::from).collect()
}

/// Runs a command to its entry point with a callback that does nothing.
fn launch(program: &Path) -> Started {
    start(&[program.into()]).unwrap().run_to_entry(|| Ok(())).unwrap()
}

/// The names of the files that a process has mapped as code, in order of appearance.
fn mapped_code(pid: u32) -> Vec<String> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let mut names = Vec::new();
    for line in maps.lines().filter(|line| line.contains("r-xp")) {
        let Some((_, name)) = line.rsplit_once('/') else { continue };
        if !names.iter().any(|known| known == name) {
            names.push(name.to_owned());
        }
    }
    names
}

#[test]
fn each_library_is_seen_before_any_constructor_and_nothing_of_main() {
    let folder = Folder::new("libraries");
    let plugin =
        folder.compile("libplugin.so", "CONSTRUCTOR begin(void) { mark('P'); }", &["-shared", "-fPIC"]);
    let constructor = format!(
        "CONSTRUCTOR begin(void) {{ mark('C'); free(malloc(64)); if (!dlopen(\"{}\", RTLD_NOW)) abort(); }}",
        plugin.display()
    );
    let program = folder.program(
        "first",
        &constructor,
        "int main(void) { char byte; alarm(60); int fd = open(FOLDER \"/gate\", O_RDONLY);
             if (read(fd, &byte, 1) != 1) abort();
             mark('M'); return 3; }",
    );
    nix::unistd::mkfifo(&folder.path("gate"), nix::sys::stat::Mode::S_IRWXU).unwrap();

    let held = start(&[program.into()]).unwrap();
    let pid = held.pid();
    let seen: RefCell<Vec<(String, String)>> = RefCell::default();
    let mut known = Vec::new();
    let mut started = held
        .run_to_entry(|| {
            let now = mapped_code(pid);
            let new: Vec<_> = now.iter().filter(|name| !known.contains(*name)).cloned().collect();
            seen.borrow_mut().push((new.join(" "), folder.marker()));
            known = now;
            Ok(())
        })
        .unwrap();

    let seen = seen.into_inner();
    assert!(seen[0].0.starts_with("first ld-"), "first the executable and its loader: {seen:?}");
    let expected = [("libfirst.so", ""), ("libc.so.6", ""), ("libplugin.so", "C")];
    let rest: Vec<_> = seen[1..].iter().map(|(new, marker)| (new.as_str(), marker.as_str())).collect();
    assert_eq!(rest, expected, "(newly mapped, what had run by then)");
    assert_eq!(folder.marker(), "CP", "the constructors have run and main is at the gate");
    fs::OpenOptions::new().write(true).open(folder.path("gate")).unwrap().write_all(b"x").unwrap();
    assert_eq!(exit_code(started.wait().unwrap()), 3);
    assert_eq!(folder.marker(), "CPM");
}

#[test]
fn a_static_program_is_seen_once_before_it_runs() {
    let folder = Folder::new("static");
    let source = "CONSTRUCTOR begin(void) { mark('C'); } int main(void) { mark('M'); return 4; }";
    let program = match folder.try_compile("program", source, &["-static"]) {
        Ok(program) => program,
        Err(complaint) => {
            assert!(complaint.contains("cannot find -l"), "{complaint}");
            return eprintln!("skipped: no static C library is installed: {complaint}");
        }
    };
    let held = start(&[program.into()]).unwrap();
    let pid = held.pid();
    let mut seen = Vec::new();
    let mut started = held
        .run_to_entry(|| {
            seen.push((mapped_code(pid), folder.marker()));
            Ok(())
        })
        .unwrap();
    assert_eq!(exit_code(started.wait().unwrap()), 4);
    assert_eq!(seen, [(vec!["program".to_owned()], String::new())]);
    assert_eq!(folder.marker(), "CM");
}

#[test]
fn scripts_and_path_and_arguments_are_a_shells() {
    let folder = Folder::new("script");
    let script = folder.path("script");
    fs::write(&script, "#!/bin/sh\n[ \"$1\" = \"two words\" ] && exit 7\n").unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let command = [script.into(), "two words".into()];
    let mut started = start(&command).unwrap().run_to_entry(|| Ok(())).unwrap();
    assert_eq!(exit_code(started.wait().unwrap()), 7);

    let path = std::env::var("PATH").unwrap();
    let script = format!("[ \"$0\" = sh ] && [ \"$PATH\" = '{path}' ] && exit 9");
    let mut started = start(&words(&["sh", "-c", &script])).unwrap().run_to_entry(|| Ok(())).unwrap();
    assert_eq!(exit_code(started.wait().unwrap()), 9, "argv[0] as typed, the environment as here");
}

#[test]
fn what_cannot_be_started_says_why_with_a_shells_exit_code() {
    let folder = Folder::new("errors");
    let refused = |program: &Path| {
        let error = start(&[program.into()]).unwrap_err();
        (error.exit_code(), error.to_string().replace(&format!("{}/", folder.0.display()), ""))
    };
    let (code, text) = refused(Path::new("leakprobe-no-such-command"));
    assert_eq!(code, 127);
    assert!(
        text.starts_with(
            "failed to start `leakprobe-no-such-command`: no such file or directory (searched PATH)"
        ),
        "{text}"
    );
    let missing = refused(&folder.path("missing"));
    assert_eq!(missing, (127, "failed to start `missing`: no such file or directory".to_owned()));

    fs::write(folder.path("plain"), "#!/bin/sh\n").unwrap();
    let (code, text) = refused(&folder.path("plain"));
    assert_eq!((code, text.contains("EACCES")), (126, true), "{text}");

    fs::write(folder.path("orphan"), "#!/no/such/interpreter\n").unwrap();
    fs::set_permissions(folder.path("orphan"), fs::Permissions::from_mode(0o755)).unwrap();
    let (code, text) = refused(&folder.path("orphan"));
    assert_eq!((code, text.contains("loader that orphan asks for")), (127, true), "{text}");

    assert!(matches!(start(&[]), Err(LaunchError::NoCommand)));
    assert!(matches!(start(&words(&["true", "a\0b"])), Err(LaunchError::Nul { .. })));
}

#[test]
fn an_end_is_passed_on_wherever_it_comes() {
    let folder = Folder::new("ends");
    const NOTHING: &str = "";
    for (name, library, main, code) in [
        ("status", NOTHING, "int main(void) { return 3; }", 3),
        ("signal", NOTHING, "int main(void) { raise(SIGTERM); return 0; }", 128 + 15),
        ("early", "CONSTRUCTOR begin(void) { _exit(5); }", "int main(void) { return 0; }", 5),
        ("killed", "CONSTRUCTOR begin(void) { raise(SIGKILL); }", "int main(void) { return 0; }", 128 + 9),
        ("trap", "CONSTRUCTOR begin(void) { raise(SIGTRAP); }", "int main(void) { return 0; }", 128 + 5),
    ] {
        let program = folder.program(name, library, main);
        let mut started = launch(&program);
        assert_eq!(exit_code(started.wait().unwrap()), code, "{name}");
        assert_eq!(started.try_wait().unwrap().map(exit_code), Some(code), "{name}, asked again");
    }
}

#[test]
fn signals_and_threads_in_a_constructor_work_as_untraced() {
    let folder = Folder::new("signals");
    let program = folder.program(
        "program",
        "static void *work(void *p) { for (int i = 0; i < 1000; i++) free(malloc(i)); mark('T'); return p; }
         static void handle(int signal) {
             mark(signal == SIGUSR1 ? 'U' : signal == SIGTRAP ? 'B' : signal == SIGRTMIN ? 'R' : '?'); }
         CONSTRUCTOR begin(void) {
             signal(SIGUSR1, handle); signal(SIGTRAP, handle); signal(SIGRTMIN, handle);
             raise(SIGUSR1); raise(SIGTRAP); raise(SIGRTMIN);
             #ifdef __x86_64__
             __asm__(\"int3\"); /* a breakpoint of the program's own */
             #else
             raise(SIGTRAP);
             #endif
             pthread_t threads[4];
             for (int i = 0; i < 4; i++) pthread_create(&threads[i], 0, work, 0);
             setgid(getgid()); /* with threads, libc tells each of them by a real-time signal of its own */
             for (int i = 0; i < 4; i++) pthread_join(threads[i], 0);
             mark('C'); }",
        "int main(void) { mark('M'); return 6; }",
    );
    assert_eq!(exit_code(launch(&program).wait().unwrap()), 6);
    assert_eq!(folder.marker(), "UBRBTTTTCM");
}

#[test]
fn a_process_forked_by_a_constructor_reaches_main_too() {
    let folder = Folder::new("fork");
    let program = folder.program(
        "program",
        "pid_t child; CONSTRUCTOR begin(void) { child = fork(); }",
        "extern pid_t child;
         int main(void) {
             if (child == 0) { mark('F'); return 8; }
             int status; waitpid(child, &status, 0);
             mark('M'); return WIFEXITED(status) ? WEXITSTATUS(status) : 100; }",
    );
    assert_eq!(exit_code(launch(&program).wait().unwrap()), 8);
    assert_eq!(folder.marker(), "FM");
}

#[test]
fn an_exec_in_a_constructor_is_followed() {
    let folder = Folder::new("exec");
    let second = folder.program(
        "second",
        "CONSTRUCTOR begin(void) { mark('2'); }",
        "int main(void) { mark('M'); return 2; }",
    );
    let first = folder.program(
        "first",
        &format!(
            "CONSTRUCTOR begin(void) {{ mark('1'); execl(\"{0}\", \"{0}\", (char *)0); }}",
            second.display()
        ),
        "int main(void) { return 1; }",
    );
    let held = start(&[first.into()]).unwrap();
    let pid = held.pid();
    let mut seen = Vec::new();
    let mut started = held
        .run_to_entry(|| {
            seen.push((mapped_code(pid)[0].clone(), mapped_code(pid).len(), folder.marker()));
            Ok(())
        })
        .unwrap();
    assert_eq!(exit_code(started.wait().unwrap()), 2);
    let images = |name, marker| [2, 3, 4].map(|files| (name, files, marker));
    let expected = [images("first", ""), images("second", "1")].concat();
    let seen: Vec<_> =
        seen.iter().map(|(name, files, marker)| (name.as_str(), *files, marker.as_str())).collect();
    assert_eq!(seen, expected, "(executable, files mapped as code, what had run by then)");
    assert_eq!(folder.marker(), "12M");
}

/// The constructor's untraced second thread shows when the stop is in effect; a forked process looks, then
/// sends `SIGCONT`.
#[test]
fn a_stop_by_job_control_lasts_until_sigcont() {
    let folder = Folder::new("stop");
    let program = folder.program(
        "program",
        "static volatile pid_t idle;
         static void *wait_forever(void *p) { idle = gettid(); for (;;) pause(); return p; }
         static void continue_when_stopped(pid_t pid) {
             char path[64], state = 0;
             sprintf(path, \"/proc/%d/task/%d/stat\", pid, idle);
             while (state != 'T' && getppid() == pid) {
                 FILE *file = fopen(path, \"r\");
                 if (!file || fscanf(file, \"%*d %*s %c\", &state) != 1) abort();
                 fclose(file); }
             for (int i = 0; i < 1000; i++) sched_yield(); /* a stop that does not hold has ended by now */
             mark('S'); kill(pid, SIGCONT); _exit(0); }
         CONSTRUCTOR begin(void) {
             pthread_t thread; pid_t self = getpid();
             pthread_create(&thread, 0, wait_forever, 0);
             while (!idle) sched_yield();
             if (fork() == 0) continue_when_stopped(self);
             mark('C'); raise(SIGSTOP); mark('D'); }",
        "int main(void) { return 3; }",
    );
    assert_eq!(exit_code(launch(&program).wait().unwrap()), 3);
    assert_eq!(folder.marker(), "CSD");
}

#[test]
fn the_child_has_the_signals_of_its_caller_but_a_default_sigpipe() {
    let folder = Folder::new("mask");
    let program = folder.compile(
        "program",
        "int main(void) {
             sigset_t mask; struct sigaction pipe; int blocked = 0;
             sigprocmask(0, 0, &mask); sigaction(SIGPIPE, 0, &pipe);
             for (int i = 1; i < 65; i++) blocked += sigismember(&mask, i) == 1;
             return (pipe.sa_handler == SIG_DFL) | sigismember(&mask, SIGUSR2) << 1 | blocked << 2; }",
        &[],
    );
    assert_eq!(exit_code(launch(&program).wait().unwrap()), 1, "nothing is blocked");
    let mut usr2 = SigSet::empty();
    usr2.add(Signal::SIGUSR2);
    usr2.thread_block().unwrap();
    assert_eq!(exit_code(launch(&program).wait().unwrap()), 1 | 2 | 1 << 2, "SIGUSR2 alone is blocked");
    assert_eq!(SigSet::thread_get_mask().unwrap(), usr2, "ours is as before");
}

/// Whether a process is gone for good: neither running nor waiting to be reaped.
fn is_gone(pid: u32) -> bool {
    kill(Pid::from_raw(pid.cast_signed()), None) == Err(Errno::ESRCH)
}

#[test]
fn a_failed_callback_and_a_dropped_hold_leave_no_process() {
    let folder = Folder::new("failure");
    let program = folder.program("program", "CONSTRUCTOR begin(void) { mark('C'); }", "int main() {}");
    let held = start(&[program.clone().into()]).unwrap();
    let pid = held.pid();
    let mut calls = 0;
    let error = held
        .run_to_entry(|| {
            calls += 1;
            if calls == 2 { anyhow::bail!("failed to attach") } else { Ok(()) }
        })
        .unwrap_err();
    assert_eq!((error.to_string().as_str(), is_gone(pid)), ("failed to attach", true));

    let held = start(&[program.into()]).unwrap();
    let pid = held.pid();
    drop(held);
    assert_eq!((is_gone(pid), folder.marker().as_str()), (true, ""));
}

#[test]
fn a_breakpoint_that_is_there_already_is_refused() {
    let folder = Folder::new("occupied");
    let program = folder.compile(
        "program",
        "#ifdef __x86_64__
         __asm__(\".globl first\\nfirst: int3\");
         #else
         __asm__(\".globl first\\nfirst: brk #0\");
         #endif
         int main(void) { return 0; }",
        &["-Wl,-e,first"],
    );
    let held = start(&[program.into()]).unwrap();
    let pid = held.pid();
    let error = held.run_to_entry(|| Ok(())).unwrap_err().to_string();
    assert!(
        error.contains("failed to set a breakpoint at its entry point") && error.contains("(EBUSY)"),
        "{error}"
    );
    assert!(is_gone(pid));
}

#[test]
fn a_kill_from_elsewhere_is_an_end_not_an_error() {
    let killing = |fails: bool| {
        let held = start(&words(&["true"])).unwrap();
        let pid = Pid::from_raw(held.pid().cast_signed());
        let mut started = held
            .run_to_entry(|| {
                kill(pid, Signal::SIGKILL).unwrap();
                // Its end is there to be seen, and not taken from the one who waits.
                nix::sys::wait::waitid(
                    nix::sys::wait::Id::Pid(pid),
                    nix::sys::wait::WaitPidFlag::WEXITED | nix::sys::wait::WaitPidFlag::WNOWAIT,
                )
                .unwrap();
                if fails { anyhow::bail!("no such process") } else { Ok(()) }
            })
            .unwrap();
        exit_code(started.wait().unwrap())
    };
    assert_eq!((killing(false), killing(true)), (128 + 9, 128 + 9));
}

#[test]
fn a_child_whose_tracer_dies_does_not_run_on() {
    let pid = thread::spawn(|| {
        let held = start(&words(&["true"])).unwrap();
        let pid = held.pid();
        std::mem::forget(held);
        pid
    })
    .join()
    .unwrap();
    let status = super::tracee::wait_status(pid.cast_signed(), 0).unwrap().unwrap();
    assert_eq!(std::process::ExitStatus::from_raw(status).signal(), Some(libc::SIGKILL));
}
