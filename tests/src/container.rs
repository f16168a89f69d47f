//! A container without an engine: a folder that becomes the root of a victim in namespaces of its own.

use std::ffi::{CStr, CString};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::{fs, io, ptr};

use object::elf::FileHeader64;
use object::read::elf::{FileHeader as _, ProgramHeader as _};

use crate::compile;

/// A root; removed when it goes out of scope.
#[derive(Debug)]
pub struct Container {
    root: PathBuf,
}

impl Container {
    /// An empty root.
    ///
    /// # Panics
    ///
    /// When it can't be made.
    pub fn make() -> Container {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let root = compile::scratch().join(format!("root-{}-{number}", std::process::id()));
        fs::create_dir_all(&root).unwrap_or_else(|e| panic!("failed to make {}: {e}", root.display()));
        let root = root.canonicalize().expect("a folder that was just made");
        Container { root }
    }

    /// Where a path of the container lies outside of it.
    pub fn outside(&self, path: &Path) -> PathBuf {
        self.root.join(path.strip_prefix("/").expect("an absolute path"))
    }

    /// Copies a file to a path of the container.
    ///
    /// # Panics
    ///
    /// When it can't.
    pub fn copy(&self, file: &Path, path: &Path) {
        let to = self.outside(path);
        let folder = to.parent().expect("a folder");
        fs::create_dir_all(folder).unwrap_or_else(|e| panic!("failed to make {}: {e}", folder.display()));
        fs::copy(file, &to)
            .unwrap_or_else(|e| panic!("failed to copy {} to {}: {e}", file.display(), to.display()));
    }

    /// Has a command begin in namespaces of its own with this root, as their process 1. The process that the caller gets to
    /// know is that one's parent, and ends as it does.
    pub fn enter(&self, command: &mut Command) {
        let root = CString::new(self.root.as_os_str().as_bytes()).expect("a path without zeros");
        // SAFETY: between fork and exec there are system calls alone, on memory from before the fork.
        unsafe { command.pre_exec(move || enter(&root)) };
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.root);
    }
}

/// The path of the dynamic linker that a program names.
///
/// # Panics
///
/// When the program can't be read, or names none.
pub fn interpreter(program: &Path) -> PathBuf {
    let bytes = fs::read(program).unwrap_or_else(|e| panic!("failed to read {}: {e}", program.display()));
    let header = FileHeader64::<object::Endianness>::parse(&*bytes).expect("an ELF file");
    let endian = header.endian().expect("an ELF file");
    let headers = header.program_headers(endian, &*bytes).expect("program headers");
    let name = headers.iter().find_map(|header| header.interpreter(endian, &*bytes).expect("a name"));
    let name = name.unwrap_or_else(|| panic!("{} names no interpreter", program.display()));
    PathBuf::from(String::from_utf8(name.to_vec()).expect("a plain path"))
}

/// The child of a process, which has one.
///
/// # Panics
///
/// When it has none.
pub fn child_of(parent: u32) -> u32 {
    let parent_of = |pid: u32| -> Option<u32> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The state, then the parent, behind the name in parentheses.
        stat.rsplit(')').next()?.split_ascii_whitespace().nth(1)?.parse().ok()
    };
    let entries = fs::read_dir("/proc").expect("failed to list processes").flatten();
    let mut pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.find(|&pid| parent_of(pid) == Some(parent))
        .unwrap_or_else(|| panic!("process {parent} has no child"))
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Runs between fork and exec: nothing here may allocate.
fn enter(root: &CStr) -> io::Result<()> {
    // SAFETY: system calls on strings that end with zeros and outlive them.
    unsafe {
        check(libc::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNS | libc::CLONE_NEWPID))?;
        write(c"/proc/self/setgroups", b"deny")?;
        write(c"/proc/self/uid_map", b"0 0 1")?;
        write(c"/proc/self/gid_map", b"0 0 1")?;
        let none: *const libc::c_void = ptr::null();
        check(libc::mount(none.cast(), c"/".as_ptr(), none.cast(), libc::MS_REC | libc::MS_PRIVATE, none))?;
        check(libc::mount(root.as_ptr(), root.as_ptr(), none.cast(), libc::MS_BIND | libc::MS_REC, none))?;
        check(libc::chdir(root.as_ptr()))?;
        // The kernel's first root, an initial RAM disk, can't be left in this way.
        if libc::syscall(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr()) == 0 {
            check(libc::umount2(c".".as_ptr(), libc::MNT_DETACH))?;
        } else {
            check(libc::chroot(c".".as_ptr()))?;
        }
        check(libc::chdir(c"/".as_ptr()))?;
        // Only children are in the new PID namespace.
        match check(libc::fork())? {
            0 => check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL)).map(drop),
            child => {
                // The caller waits until no copy of its pipes is left.
                for descriptor in 0..1024 {
                    libc::close(descriptor);
                }
                let mut status = 0;
                while libc::waitpid(child, &raw mut status, 0) < 0 {}
                libc::_exit(if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { 99 })
            }
        }
    }
}

/// Writes to a file that is there, without allocating.
///
/// # Safety
///
/// None is needed but for the system calls.
unsafe fn write(path: &CStr, text: &[u8]) -> io::Result<()> {
    // SAFETY: the string ends with a zero; the buffer is as long as is said.
    unsafe {
        let file = check(libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC))?;
        let written = libc::write(file, text.as_ptr().cast(), text.len());
        let error = io::Error::last_os_error();
        libc::close(file);
        if written == text.len() as isize { Ok(()) } else { Err(error) }
    }
}
