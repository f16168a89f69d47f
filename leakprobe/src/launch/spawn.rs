//! From a command line to a process that stands at its first instruction.

use std::{
    convert::Infallible,
    env,
    ffi::{CString, OsStr, OsString, c_char},
    io::{Read, Write},
    os::{
        fd::{AsRawFd, RawFd},
        unix::{ffi::OsStrExt, net::UnixStream, process::ExitStatusExt},
    },
    path::{Path, PathBuf},
    process::ExitStatus,
    ptr,
};

use libc::c_int;
use nix::{
    errno::Errno,
    sys::signal::{SigSet, SigmaskHow},
    unistd::{ForkResult, fork},
};

use super::{LaunchError, held::Held, stop::Stop, tracee::Tracee};

/// Starts `command` (a program as for `execvp`, then its arguments) and holds it before its first
/// instruction. Blocks until the kernel has loaded it. [`Held`] stays on the calling thread.
///
/// The child inherits the calling thread's signal mask; raise resource limits after this call, not before,
/// or the child inherits them too.
///
/// # Errors
/// The program could not be started or not be held; nothing is left of the child.
pub fn start(command: &[OsString]) -> Result<Held, LaunchError> {
    let program = command.first().ok_or(LaunchError::NoCommand)?;
    let name = || program.display().to_string();
    let words = command
        .iter()
        .map(|word| CString::new(word.as_bytes()))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|_| LaunchError::Nul { command: name() })?;
    let held = |action| move |cause| LaunchError::Hold { command: name(), action, cause };

    let (mut ours, mut tracee) = fork_child(&words).map_err(held("create a process"))?;
    tracee.seize().map_err(held("trace a new process"))?;
    let io = |error: std::io::Error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO));
    // A child that is already dead cannot be told to go on, and its end says more than the broken pipe.
    let _ = ours.write_all(&[1]);
    loop {
        let resumed = match tracee.wait().map_err(io).map_err(held("wait for a new process"))? {
            Stop::Exec => return Ok(Held::new(tracee)),
            Stop::Ended(status) => return Err(explain(program, status, exec_error(&mut ours))),
            Stop::Signal(signal) => tracee.run_to_event(signal),
            Stop::Group => tracee.listen(),
            Stop::SystemCall | Stop::Fork | Stop::Notice => tracee.run_to_event(0),
        };
        match resumed {
            // ESRCH: killed while it stood still; the next wait reports it.
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(cause) => return Err(held("let a new process go on")(cause)),
        }
    }
}

/// Forks a child that waits for a byte on the returned socket, then becomes the program; when it cannot, it
/// writes `execve`'s error there.
fn fork_child(words: &[CString]) -> nix::Result<(UnixStream, Tracee)> {
    let mut argv: Vec<*const c_char> = words.iter().map(|word| word.as_ptr()).collect();
    argv.push(ptr::null());
    // Both ends close on exec.
    let (ours, theirs) = UnixStream::pair().map_err(|_| Errno::last())?;
    // No handler of ours (the async runtime's write to a pipe that both processes share) may run in the child.
    let mask = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK)?;
    // SAFETY: until exec or _exit the child makes async-signal-safe calls only (execvp is one in effect:
    // glibc's and musl's search PATH on the stack, and std's Command relies on it likewise).
    let forked = unsafe { fork() };
    match forked {
        Ok(ForkResult::Child) => {
            let error = become_program(&argv, &mask, ours.as_raw_fd(), theirs.as_raw_fd());
            let bytes = (error as c_int).to_ne_bytes();
            // SAFETY: `bytes` is valid for its length; _exit runs none of the parent's exit handlers.
            unsafe {
                libc::write(theirs.as_raw_fd(), bytes.as_ptr().cast(), bytes.len());
                libc::_exit(127)
            }
        }
        Ok(ForkResult::Parent { child }) => {
            let tracee = Tracee::new(child.as_raw());
            mask.thread_set_mask()?;
            Ok((ours, tracee))
        }
        Err(error) => {
            mask.thread_set_mask()?;
            Err(error)
        }
    }
}

/// The child's side. Allocates nothing.
fn become_program(argv: &[*const c_char], mask: &SigSet, ours: RawFd, theirs: RawFd) -> Errno {
    match try_become_program(argv, mask, ours, theirs) {
        Err(error) => error,
    }
}

fn try_become_program(
    argv: &[*const c_char],
    mask: &SigSet,
    ours: RawFd,
    theirs: RawFd,
) -> nix::Result<Infallible> {
    let mut go = 0_u8;
    // SAFETY: `go` is valid for one byte; `ours` is the parent's end, which nothing in the child uses. Closing
    // it makes the read end when the parent dies.
    let read = unsafe {
        libc::close(ours);
        libc::read(theirs, (&raw mut go).cast(), 1)
    };
    if read != 1 {
        return Err(Errno::ECANCELED);
    }
    forget_handlers();
    mask.thread_set_mask()?;
    // SAFETY: `argv` is a null-terminated array of pointers to strings that the parent's frame keeps alive.
    unsafe { libc::execvp(argv[0], argv.as_ptr()) };
    Err(Errno::last())
}

/// Puts every signal that has a handler back to its default, as `execve` will (so that none runs before
/// it), and `SIGPIPE`, which Rust's runtime ignores. Signals that leakprobe was started with ignored
/// (`nohup`) stay so.
fn forget_handlers() {
    for signal in 1..=libc::SIGRTMAX() {
        let mut action = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
        // SAFETY: `action` is valid for writing, and zeroes are a valid sigaction; the call fails harmlessly
        // for the two signals that libc keeps to itself.
        unsafe {
            if libc::sigaction(signal, ptr::null(), action.as_mut_ptr()) != 0 {
                continue;
            }
            let handler = action.assume_init_ref().sa_sigaction;
            if signal == libc::SIGPIPE || (handler != libc::SIG_DFL && handler != libc::SIG_IGN) {
                libc::signal(signal, libc::SIG_DFL);
            }
        }
    }
}

/// The error that the child has written before its end.
fn exec_error(ours: &mut UnixStream) -> Option<Errno> {
    let mut bytes = [0; size_of::<c_int>()];
    // The child is dead, so what it wrote is there; a copy of its end in some other new process of ours
    // must not make us wait.
    ours.set_nonblocking(true).ok()?;
    ours.read_exact(&mut bytes).ok()?;
    Some(Errno::from_raw(c_int::from_ne_bytes(bytes)))
}

/// Names the cause of a failed start as a shell does.
fn explain(program: &OsStr, status: ExitStatus, error: Option<Errno>) -> LaunchError {
    let command = program.display().to_string();
    match error {
        Some(Errno::ENOENT) => match locate(program, env::var_os("PATH").as_deref()) {
            Some(path) => LaunchError::NoInterpreter { command, path },
            None if program.as_bytes().contains(&b'/') => LaunchError::NoSuchFile { command },
            None => LaunchError::NotInPath { command },
        },
        Some(cause) => LaunchError::NotExecutable { command, cause },
        None => LaunchError::Killed { command, signal: status.signal().unwrap_or(libc::SIGKILL) },
    }
}

/// The file that `execvp` would have tried: the program's own path, or the first of that name along `search`.
fn locate(program: &OsStr, search: Option<&OsStr>) -> Option<PathBuf> {
    if program.is_empty() {
        return None;
    }
    if program.as_bytes().contains(&b'/') {
        return Some(PathBuf::from(program)).filter(|path| path.exists());
    }
    env::split_paths(search?).map(|folder| Path::new(&folder).join(program)).find(|path| path.exists())
}
