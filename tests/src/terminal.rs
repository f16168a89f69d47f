//! A terminal for a program to print to.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{FromRawFd as _, OwnedFd};
use std::process::{Command, ExitStatus};
use std::{ptr, thread};

use crate::run;

/// Runs a command to its end in a terminal of `columns` times `rows` characters: its status, and what it
/// showed.
///
/// # Panics
///
/// When there is no terminal, or the command can't be started or does not end within [`run::patience`].
pub fn run_in(columns: u16, rows: u16, command: &mut Command) -> (ExitStatus, String) {
    let (ours, theirs) = open(columns, rows).unwrap_or_else(|e| panic!("failed to open a terminal: {e}"));
    let another = || theirs.try_clone().expect("failed to duplicate a descriptor");
    let mut child = command
        .stdin(another())
        .stdout(another())
        .stderr(another())
        .spawn()
        .unwrap_or_else(|e| panic!("failed to start {command:?}: {e}"));
    // The reader comes to its end when nobody holds the other side any more.
    drop(theirs);
    command.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::null());
    command.stderr(std::process::Stdio::null());
    let reader = thread::spawn(move || read(ours));
    let Some(status) = run::wait(&mut child, run::patience()) else {
        let _ = child.kill();
        let _ = child.wait();
        panic!("{command:?} did not end in its terminal");
    };
    (status, reader.join().expect("a reader that does not panic"))
}

/// Both sides of a new terminal: the user's, and the program's.
fn open(columns: u16, rows: u16) -> io::Result<(File, OwnedFd)> {
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    let (mut ours, mut theirs) = (-1, -1);
    // SAFETY: openpty writes two descriptors and reads a size, all of which live in this frame; the name and
    // the modes may be null.
    let result =
        unsafe { libc::openpty(&mut ours, &mut theirs, ptr::null_mut(), ptr::null(), &raw const size) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call has just returned these descriptors, which nobody else owns.
    Ok(unsafe { (File::from_raw_fd(ours), OwnedFd::from_raw_fd(theirs)) })
}

/// Everything until the last program has closed the terminal, which this side sees as an error.
fn read(mut terminal: File) -> String {
    let mut shown = Vec::new();
    let mut piece = [0; 4096];
    while let Ok(length @ 1..) = terminal.read(&mut piece) {
        shown.extend_from_slice(&piece[..length]);
    }
    String::from_utf8_lossy(&shown).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_sees_a_terminal_of_the_size_that_was_asked_for() {
        let (status, shown) = run_in(57, 13, Command::new("stty").arg("size"));
        assert_eq!((status.code(), shown.trim()), (Some(0), "13 57"));
    }
}
