//! Control groups that a test makes, and removes when it ends.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use std::{fs, io, ptr, thread};

use crate::{compile, pace, skip};

/// How long a group may stay busy after its last process was waited for.
const PATIENCE: Duration = Duration::from_secs(20);

/// A control group; removed when it goes out of scope, after the groups below it. Victims in it must be gone by then: they
/// are to be declared after it.
#[derive(Debug)]
pub struct Group {
    path: PathBuf,
    /// Below its mount.
    name: String,
    made: Vec<PathBuf>,
    mount: Option<PathBuf>,
}

impl Group {
    /// A new and empty group right below a mount of control groups: of version 2, else of a hierarchy of version 1, else
    /// below a mount that the test makes. `None` after a skip, where there is none that processes can be put into.
    ///
    /// # Panics
    ///
    /// When the mounts can't be read.
    pub fn make() -> Option<Group> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("leakprobe-test-{}-{number}", std::process::id());
        let infos =
            fs::read_to_string("/proc/self/mountinfo").expect("failed to read where groups are mounted");
        let mut refusals = Vec::new();
        for mount in mounts(&infos) {
            match Self::make_below(&mount, &name) {
                Ok(group) => return Some(group),
                Err(e) => refusals.push(format!("{}: {e}", mount.display())),
            }
        }
        match Self::mount_one(&name) {
            Ok(group) => return Some(group),
            Err(e) => refusals.push(format!("mounting cgroup2: {e}")),
        }
        skip::because("no control group takes processes here", refusals.join("; "));
        None
    }

    fn make_below(mount: &Path, name: &str) -> io::Result<Group> {
        let path = mount.join(name);
        fs::create_dir(&path)?;
        let group =
            Group { path: path.clone(), name: name.to_owned(), made: vec![path.clone()], mount: None };
        // Some hierarchies take no processes before more was set up.
        let mut child = Command::new("sleep").arg("1000").stdin(Stdio::null()).spawn()?;
        let taken = fs::write(path.join("cgroup.procs"), child.id().to_string());
        let _ = child.kill();
        let _ = child.wait();
        taken.map(|()| group)
    }

    fn mount_one(name: &str) -> io::Result<Group> {
        let folder = compile::scratch().join(format!("{name}-mount"));
        fs::create_dir(&folder)?;
        let place = CString::new(folder.as_os_str().as_bytes()).expect("a path without zeros");
        // SAFETY: mount reads three strings that end with zeros and outlive the call; it is given no data.
        let result =
            unsafe { libc::mount(c"none".as_ptr(), place.as_ptr(), c"cgroup2".as_ptr(), 0, ptr::null()) };
        if result != 0 {
            let error = io::Error::last_os_error();
            fs::remove_dir(&folder)?;
            return Err(error);
        }
        match Self::make_below(&folder, name) {
            Ok(mut group) => {
                group.mount = Some(folder);
                Ok(group)
            }
            Err(e) => {
                unmount(&folder);
                Err(e)
            }
        }
    }

    /// A group below this one, with all that are between them; removed together with it.
    ///
    /// # Panics
    ///
    /// When it can't be made.
    pub fn below(&mut self, names: &str) -> PathBuf {
        let mut path = self.path.clone();
        for name in names.split('/') {
            path.push(name);
            if !path.is_dir() {
                fs::create_dir(&path).unwrap_or_else(|e| panic!("failed to make {}: {e}", path.display()));
                self.made.push(path.clone());
            }
        }
        path
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its directory, as an argument.
    pub fn argument(&self) -> &str {
        self.path.to_str().expect("a plain path")
    }

    /// Its path as `/proc/PID/cgroup` shows it, without the slash.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Puts a process into it.
    ///
    /// # Panics
    ///
    /// When the kernel refuses.
    pub fn take(&self, pid: u32) {
        take(&self.path, pid);
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for path in self.made.iter().rev() {
            let deadline = Instant::now() + pace::patience(PATIENCE);
            while let Err(e) = fs::remove_dir(path) {
                if Instant::now() > deadline {
                    println!("failed to remove {}: {e}", path.display());
                    break;
                }
                thread::sleep(Duration::from_millis(10));
            }
        }
        if let Some(mount) = &self.mount {
            unmount(mount);
        }
    }
}

/// Puts a process into the group of this directory.
///
/// # Panics
///
/// When the kernel refuses.
pub fn take(group: &Path, pid: u32) {
    fs::write(group.join("cgroup.procs"), pid.to_string())
        .unwrap_or_else(|e| panic!("failed to put process {pid} into {}: {e}", group.display()));
}

fn unmount(folder: &Path) {
    let place = CString::new(folder.as_os_str().as_bytes()).expect("a path without zeros");
    // SAFETY: umount2 reads a string that ends with a zero and outlives the call.
    unsafe { libc::umount2(place.as_ptr(), libc::MNT_DETACH) };
    let _ = fs::remove_dir(folder);
}

/// Where control groups are mounted, those of version 2 first, by lines of /proc/self/mountinfo:
/// `41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw`.
fn mounts(infos: &str) -> Vec<PathBuf> {
    let of = |version: &str| -> Vec<PathBuf> {
        let lines = infos.lines().filter_map(|line| line.split_once(" - "));
        let ours = lines.filter(|(_, filesystem)| filesystem.split(' ').next() == Some(version));
        ours.filter_map(|(mount, _)| mount.split(' ').nth(4)).map(PathBuf::from).collect()
    };
    [of("cgroup2"), of("cgroup")].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_of_version_2_come_first() {
        let infos = "32 31 0:29 / /sys/fs/cgroup/cpu rw shared:9 - cgroup cgroup rw,cpu\n\
                     31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
                     41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        assert_eq!(
            mounts(infos),
            [PathBuf::from("/sys/fs/cgroup/unified"), PathBuf::from("/sys/fs/cgroup/cpu")]
        );
    }
}
