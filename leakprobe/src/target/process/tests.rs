use std::{fs, os::unix::fs::PermissionsExt, process::Command};

use nix::sys::wait::{Id, WaitPidFlag, waitid};

use super::{vitals::Status, *};
use crate::target::{
    seccomp::SeccompMode,
    testing::{Folder, Running, until},
};

fn refusal(pid: u32) -> String {
    let text = Process::open(pid).unwrap_err().to_string();
    assert!(!text.contains('\n'), "{text}");
    text
}

#[test]
fn a_running_process_is_held_and_read() {
    let child = Running::start_and_settle("sleep", &["1000"]);
    let process = Process::open(child.pid()).unwrap();
    assert_eq!(process.command_line().unwrap(), ["sleep", "1000"]);
    let vitals = process.vitals().unwrap();
    let status = fs::read_to_string(format!("/proc/{}/status", child.pid())).unwrap();
    let kib = |name: &str| -> u64 {
        let line = status.lines().find(|l| l.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    assert_eq!(vitals.vm_size_bytes, kib("VmSize:") * 1024);
    assert_eq!(vitals.vm_data_bytes, kib("VmData:") * 1024);
    assert!(vitals.vm_rss_bytes > 0 && vitals.vm_rss_bytes <= vitals.vm_size_bytes);
    assert_eq!((vitals.name.as_str(), vitals.threads, vitals.seccomp), ("sleep", 1, SeccompMode::Off));
    let files = fs::read_dir(format!("/proc/{}/fd", child.pid())).unwrap().count() as u64;
    assert_eq!(vitals.open_files, Some(files));
    assert!(files >= 3);
    assert!(!process.has_ended().unwrap());
    assert_eq!(process.root_path().unwrap(), Path::new("/"));
}

#[test]
fn a_process_that_ended_gives_errors_and_no_numbers() {
    let mut child = Running::start_and_settle("sleep", &["1000"]);
    let process = Process::open(child.pid()).unwrap();
    child.0.kill().unwrap();
    waitid(
        Id::Pid(nix::unistd::Pid::from_raw(child.pid() as i32)),
        WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT,
    )
    .unwrap();
    assert!(process.has_ended().unwrap());
    assert_eq!(process.vitals().unwrap_err().kind(), io::ErrorKind::NotFound); // a zombie
    child.0.wait().unwrap();
    for error in
        [process.vitals().unwrap_err(), process.command_line().unwrap_err(), process.seccomp().unwrap_err()]
    {
        let gone = error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH);
        assert!(gone, "{error}");
    }
}

#[test]
fn a_number_in_use_again_is_another_process() {
    let mut first = Running::start_and_settle("sleep", &["1000"]);
    let pid = first.pid();
    let process = Process::open(pid).unwrap();
    first.end();
    // The number is asked for again, in competition with whatever else starts processes on this machine.
    for _ in 0..200 {
        if let Err(e) = fs::write("/proc/sys/kernel/ns_last_pid", (pid - 1).to_string()) {
            return eprintln!("skipped: this process may not choose the next PID: {e}");
        }
        let second = Running::start_and_settle("sleep", &["1000"]);
        if second.pid() == pid {
            assert!(process.vitals().is_err());
            assert!(process.command_line().is_err());
            assert!(process.has_ended().unwrap());
            let again = Process::open(pid).unwrap();
            assert!(again.vitals().is_ok() && again.start_time() >= process.start_time());
            return;
        }
    }
    eprintln!("skipped: PID {pid} was never free in 200 attempts");
}

#[test]
fn what_is_no_process_is_refused() {
    let mut child = Running::start("true", &[]);
    child.end();
    for pid in [child.pid(), 0, u32::MAX, 1 << 31] {
        assert_eq!(
            refusal(pid),
            format!("no process {pid}: it has ended or never existed; `ps -e` lists those that run")
        );
    }
    let own = std::process::id();
    assert_eq!(
        refusal(own),
        format!("process {own} is this leakprobe itself, which it cannot profile; name another process")
    );
    let (tell, told) = std::sync::mpsc::channel();
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let thread = std::thread::Builder::new().name("a\nworker".into()).spawn(move || {
        tell.send(nix::unistd::gettid().as_raw() as u32).unwrap();
        let _ = stopped.recv();
    });
    let tid = told.recv().unwrap();
    assert_eq!(
        refusal(tid),
        format!("no process {tid}: that is a thread of process {own} (a\\nworker); use --pid {own}")
    );
    drop(stop);
    thread.unwrap().join().unwrap();
}

#[test]
fn kernel_threads_are_refused() {
    let name = fs::read_to_string("/proc/2/comm").unwrap_or_default();
    if name != "kthreadd\n" {
        return eprintln!("skipped: process 2 of this PID namespace is {name:?}, not kthreadd");
    }
    assert_eq!(
        refusal(2),
        "process 2 (kthreadd) is a kernel thread and has no heap; name a process that runs a program"
    );
}

#[test]
fn zombies_are_refused_and_their_parent_is_named() {
    let child = Running::start("true", &[]);
    let pid = child.pid();
    waitid(Id::Pid(nix::unistd::Pid::from_raw(pid as i32)), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT)
        .unwrap();
    let own = std::process::id();
    let name = fs::read_to_string("/proc/self/comm").unwrap();
    assert_eq!(
        refusal(pid),
        format!(
            "process {pid} (true) has ended and has no memory left (a zombie); it stays until its parent, process \
             {own} ({}), collects it",
            name.trim_end()
        )
    );
}

#[test]
fn a_process_whose_main_thread_has_ended_is_no_zombie() {
    let folder = Folder::new();
    let source = "#include <pthread.h>\n#include <unistd.h>\nstatic pthread_t first;\n\
        static void *rest(void *p) { pthread_join(first, 0); write(1, \"r\", 1); pause(); return p; }\n\
        int main(void) { pthread_t t; first = pthread_self(); pthread_create(&t, 0, rest, 0); pthread_exit(0); }\n";
    let child = Running::start_and_wait(&folder.compile("rest", source, &["-pthread"]), &[]);
    let pid = child.pid();
    // The kernel tells other threads of a thread's end a little before it marks it as ended.
    until("the main thread has ended", || {
        fs::read_to_string(format!("/proc/{pid}/stat")).unwrap().contains(") Z ")
    });
    assert_eq!(
        refusal(pid),
        format!(
            "the main thread of process {pid} (rest) has ended, and the kernel no longer shows the memory map of its \
             other threads; such a process cannot be profiled"
        )
    );
}

#[test]
fn names_cannot_pass_for_anything_else() {
    let folder = Folder::new();
    let name = ") Z 1\n(\u{1b}";
    let child = Running::start_and_settle(folder.sleep(name), &["1000"]);
    let process = Process::open(child.pid()).unwrap();
    let vitals = process.vitals().unwrap();
    assert_eq!((vitals.name.as_str(), vitals.threads), (name, 1));
    assert_eq!(process.command_line().unwrap()[1..], ["1000"]);
    let text = TargetError::ThirtyTwoBit { pid: 7, name: vitals.name }.to_string();
    assert!(text.starts_with("process 7 () Z 1\\n(\\u{1b}) is a 32-bit program;"), "{text}");
}

#[test]
fn status_is_read_whatever_the_name() {
    let text =
        b"Name:\t\xff\\nVmSize: 1\nTgid:\t12\nVmSize:\t    10 kB\nVmRSS:\tx kB\nThreads:\t3\nSeccomp:\t2\n\
        Seccomp_filters:\t1\nnonsense\n";
    let expected = Status {
        thread_group: Some(12),
        threads: Some(3),
        vm_size: Some(10_240),
        seccomp: SeccompMode::Filter,
        ..Status::default()
    };
    assert_eq!(Status::parse(text), expected);
}

#[test]
fn any_threads_filter_counts() {
    let folder = Folder::new();
    let source = "#include <linux/filter.h>\n#include <linux/seccomp.h>\n#include <pthread.h>\n#include <sys/prctl.h>\n\
        #include <unistd.h>\n\
        static void *filtered(void *p) {\n\
          struct sock_filter allow = BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);\n\
          struct sock_fprog program = {1, &allow};\n\
          prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);\n\
          if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program)) _exit(1);\n\
          write(1, \"r\", 1); pause(); return p; }\n\
        int main(void) { pthread_t t; pthread_create(&t, 0, filtered, 0); pthread_join(t, 0); }\n";
    let child = Running::start_and_wait(&folder.compile("filtered", source, &["-pthread"]), &[]);
    let process = Process::open(child.pid()).unwrap();
    assert_eq!(process.vitals().unwrap().seccomp, SeccompMode::Off);
    assert_eq!(process.vitals().unwrap().threads, 2);
    assert_eq!(process.seccomp().unwrap(), SeccompMode::Filter);
}

/// The smallest 32-bit x86 program: it calls pause() for ever.
fn pause_32() -> Vec<u8> {
    let code = [0xb8, 29, 0, 0, 0, 0xcd, 0x80, 0xeb, 0xf7];
    let mut elf = b"\x7fELF\x01\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x03\0\x01\0\0\0".to_vec();
    for word in [0x0804_8054u32, 52, 0, 0] {
        elf.extend(word.to_le_bytes());
    }
    for half in [52u16, 32, 1, 0, 0, 0] {
        elf.extend(half.to_le_bytes());
    }
    for word in [1u32, 0, 0x0804_8000, 0x0804_8000, 84 + 9, 84 + 9, 5, 0x1000] {
        elf.extend(word.to_le_bytes());
    }
    elf.extend(code);
    elf
}

#[test]
fn programs_of_32_bits_are_refused() {
    assert_eq!(FileHead::read(&pause_32()[..]).unwrap().kind(), ElfKind::ThirtyTwoBit);
    let folder = Folder::new();
    let path = folder.join("old");
    fs::write(&path, pause_32()).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    let attempt = Command::new(&path).spawn().map(|mut child| child.kill().and_then(|()| child.wait()));
    if attempt.is_err_and(|e| e.raw_os_error() == Some(libc::ENOEXEC)) {
        return eprintln!("skipped: this kernel does not run 32-bit programs");
    }
    let child = Running::start(&path, &[]);
    let pid = child.pid();
    until("the program runs", || fs::read_to_string(format!("/proc/{pid}/comm")).unwrap() == "old\n");
    assert_eq!(
        refusal(pid),
        format!(
            "process {pid} (old) is a 32-bit program; leakprobe profiles 64-bit ones: run its 64-bit build"
        )
    );
}

#[test]
fn programs_of_other_machines_are_told_apart() {
    let mut head = fs::read("/proc/self/exe").unwrap();
    assert!(matches!(FileHead::read(&head[..]).unwrap().kind(), ElfKind::Native(_)));
    head[18] = 243;
    assert_eq!(FileHead::read(&head[..]).unwrap().kind(), ElfKind::Foreign(243));
    let error = TargetError::OtherMachine { pid: 5, name: "qemu".into(), machine: 243 };
    let own = std::env::consts::ARCH;
    assert_eq!(
        error.to_string(),
        format!(
            "process 5 (qemu) is a program for machine 243; leakprobe profiles programs for this machine's own {own}"
        )
    );
    assert!(FileHead::read(&b"#!/bin/sh\necho hello world\n"[..]).is_err());
}

#[test]
fn without_permission_the_capabilities_are_named() {
    // What the kernel answers to somebody who may not look into a process.
    let denied = TargetError::from_io(9, "open the program of", io::Error::from_raw_os_error(libc::EACCES));
    let text = denied.to_string();
    let advice = text
        .strip_prefix("failed to open the program of process 9: Permission denied (os error 13); ")
        .expect("what was attempted, and the cause");
    // To root, to become root is no advice.
    if nix::unistd::geteuid().is_root() {
        assert!(advice.starts_with("leakprobe runs as root, but something forbids this"), "{text}");
    } else {
        assert_eq!(
            advice,
            "run leakprobe as root, or with the capabilities CAP_SYS_PTRACE and CAP_SYS_ADMIN"
        );
    }
}
