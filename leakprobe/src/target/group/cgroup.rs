//! The processes of a control group.

use std::{
    fs, io,
    path::{Component, Path, PathBuf},
};

use nix::sys::statfs::{CGROUP_SUPER_MAGIC, CGROUP2_SUPER_MAGIC, statfs};
use procfs::{FromRead as _, process::MountInfos};

use crate::target::{near::near, text::printable};

/// The file that lists the processes of a group.
const PROCESSES: &str = "cgroup.procs";

/// Groups looked into, below one that was named or for names that may have been meant.
const MAX_GROUPS: usize = 4096;

/// Bytes of a list of processes that are read: half a million of them.
const MAX_LIST: u64 = 4 << 20;

/// Mounts that are named; the first version of control groups has one for each controller.
const MOUNTS: usize = 3;

/// Characters of a path that are shown.
const SHOWN: usize = 128;

/// Why a control group cannot be watched.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// There is none of that name.
    #[error(
        "no control group {}: looked for {} as a path and below {}{}; `systemd-cgls` lists those that there are",
        show(.wanted), PROCESSES, places(.searched), meant(.near)
    )]
    Missing {
        /// What was asked for.
        wanted: PathBuf,
        /// Where control groups are mounted.
        searched: Vec<PathBuf>,
        /// Names that may have been meant.
        near: Vec<String>,
    },
    /// It has threads only.
    #[error(
        "the control group {} is of threads: whole processes are in the group above it, {}; name that one",
        show(.path), show(.above)
    )]
    Threaded {
        /// Its directory.
        path: PathBuf,
        /// The next group above whose processes can be read.
        above: PathBuf,
    },
    /// Its processes cannot be read.
    #[error("failed to read the processes of the control group {}: {cause}", show(.path))]
    Read {
        /// Its directory.
        path: PathBuf,
        /// The kernel's answer. In the text, and so not a source of its own.
        cause: io::Error,
    },
}

fn show(path: &Path) -> String {
    printable(path.as_os_str().as_encoded_bytes(), SHOWN)
}

fn places(searched: &[PathBuf]) -> String {
    match searched {
        [] => "nothing, as no control groups are mounted".to_owned(),
        some if some.len() <= MOUNTS => some.iter().map(|path| show(path)).collect::<Vec<_>>().join(", "),
        [first, others @ ..] => format!("{} and {} other mounts", show(first), others.len()),
    }
}

fn meant(near: &[String]) -> String {
    if near.is_empty() { String::new() } else { format!("; there are: {}", near.join(", ")) }
}

/// A control group, with all below it.
#[derive(Clone, Debug)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// Finds a control group: by its directory, or by its path as `/proc/PID/cgroup` shows it.
    ///
    /// # Errors
    /// When there is none, with names that may have been meant.
    pub fn find(wanted: &Path) -> Result<Self, CgroupError> {
        Self::find_below(wanted, &mounts(), is_kernels)
    }

    /// `is_kernels`: whether a file is one of a file system of control groups.
    fn find_below(
        wanted: &Path,
        mounts: &[PathBuf],
        is_kernels: impl Fn(&Path) -> bool,
    ) -> Result<Self, CgroupError> {
        if wanted.is_absolute() && is_kernels(&wanted.join(PROCESSES)) {
            return Ok(Self { path: wanted.to_owned() });
        }
        // What leads up is no path of a control group.
        let names: PathBuf =
            wanted.components().filter(|part| matches!(part, Component::Normal(_))).collect();
        let found = mounts.iter().map(|mount| mount.join(&names)).find(|path| path.join(PROCESSES).is_file());
        match found {
            Some(path) if !names.as_os_str().is_empty() || wanted.is_absolute() => Ok(Self { path }),
            _ => {
                let last = wanted.file_name().unwrap_or(wanted.as_os_str()).to_string_lossy().into_owned();
                Err(CgroupError::Missing {
                    wanted: wanted.to_owned(),
                    searched: mounts.to_vec(),
                    near: near_groups(&last, mounts),
                })
            }
        }
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its processes and those of the groups below it, as this PID namespace numbers them; none where it has been removed.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn processes(&self) -> Result<Vec<u32>, CgroupError> {
        let mut pids = Vec::new();
        let mut groups = vec![self.path.clone()];
        let mut looked = 0;
        while let Some(group) = groups.pop() {
            looked += 1;
            match read_list(&group.join(PROCESSES)) {
                Ok(list) => pids.extend(list),
                // It has been removed meanwhile.
                Err(error) if is_gone(&error) => continue,
                // A group of threads: its processes are listed further up.
                Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                    if group == self.path {
                        let has_processes = |path: &&Path| read_list(&path.join(PROCESSES)).is_ok();
                        if let Some(above) = group.ancestors().skip(1).find(has_processes) {
                            return Err(CgroupError::Threaded { above: above.to_owned(), path: group });
                        }
                        return Err(CgroupError::Read { path: group, cause: error });
                    }
                }
                Err(cause) => return Err(CgroupError::Read { path: group, cause }),
            }
            groups.extend(below(&group).take(MAX_GROUPS.saturating_sub(looked + groups.len())));
        }
        pids.sort_unstable();
        pids.dedup();
        Ok(pids)
    }
}

/// Whether a file is the kernel's own: a folder can hold one of the name.
fn is_kernels(file: &Path) -> bool {
    let is_of_groups = |kind| kind == CGROUP_SUPER_MAGIC || kind == CGROUP2_SUPER_MAGIC;
    statfs(file).is_ok_and(|system| is_of_groups(system.filesystem_type()))
}

fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV)
}

/// The numbers in a list; 0 stands for a process that this PID namespace does not see.
fn read_list(path: &Path) -> io::Result<Vec<u32>> {
    let mut text = String::new();
    io::Read::read_to_string(&mut io::Read::take(fs::File::open(path)?, MAX_LIST), &mut text)?;
    Ok(text.split_ascii_whitespace().filter_map(|word| word.parse().ok()).filter(|&pid| pid != 0).collect())
}

/// The groups right below one.
fn below(group: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(group).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path())
}

/// Names of groups that are like a name, as paths below their mount.
fn near_groups(name: &str, mounts: &[PathBuf]) -> Vec<String> {
    let mut names = Vec::new();
    let mut paths = Vec::new();
    for mount in mounts {
        let mut groups = vec![mount.clone()];
        while let Some(group) = groups.pop() {
            if paths.len() >= MAX_GROUPS {
                break;
            }
            groups.extend(below(&group));
            if let (Some(last), Ok(path)) = (group.file_name(), group.strip_prefix(mount))
                && group != *mount
            {
                names.push(last.to_string_lossy().into_owned());
                paths.push(show(path));
            }
        }
    }
    let alike = near(name, names.iter().cloned());
    let mut found: Vec<String> = alike
        .iter()
        .filter_map(|alike| names.iter().position(|name| name == alike))
        .map(|index| paths[index].clone())
        .collect();
    found.dedup();
    found
}

/// Where control groups are mounted, those of version 2 first.
fn mounts() -> Vec<PathBuf> {
    let Ok(infos) = MountInfos::from_file("/proc/self/mountinfo") else { return Vec::new() };
    let of = |version: &str| -> Vec<PathBuf> {
        infos.iter().filter(|mount| mount.fs_type == version).map(|mount| mount.mount_point.clone()).collect()
    };
    [of("cgroup2"), of("cgroup")].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::target::testing::Folder;

    /// A tree like that of control groups, of files.
    fn tree(groups: &[(&str, &str)]) -> Folder {
        let directory = Folder::new();
        for (group, list) in groups {
            let path = directory.join(group);
            fs::create_dir_all(&path).expect("created");
            fs::write(path.join(PROCESSES), list).expect("written");
        }
        directory
    }

    #[test]
    fn a_group_is_found_by_its_directory_and_by_its_name_with_all_below_it() {
        let groups = [("", "1\n"), ("system.slice", ""), ("system.slice/web.service", "12\n7\n0\n")];
        let nested = ("system.slice/web.service/worker", "30\n7\n");
        let tree = tree(&[&groups[..], &[nested]].concat());
        let mounts = [tree.0.clone()];
        let whole = tree.join("system.slice/web.service");
        for wanted in
            [whole.as_path(), Path::new("/system.slice/web.service"), Path::new("system.slice/web.service")]
        {
            let found = Cgroup::find_below(wanted, &mounts, Path::is_file).expect("there");
            assert_eq!(found.path(), whole);
            assert_eq!(found.processes().expect("readable"), [7, 12, 30]);
        }
        let root = Cgroup::find_below(Path::new("/"), &mounts, Path::is_file).expect("there");
        assert_eq!(root.processes().expect("readable"), [1, 7, 12, 30]);
    }

    #[test]
    fn what_is_missing_is_told_with_what_may_have_been_meant() {
        let tree = tree(&[("", ""), ("system.slice/web.service", "")]);
        let mounts = [tree.0.clone()];
        let find = |wanted: &str| Cgroup::find_below(Path::new(wanted), &mounts, is_kernels);
        let error = find("wbe.service").expect_err("missing").to_string();
        assert!(error.contains("no control group wbe.service"), "{error}");
        assert!(error.contains("there are: system.slice/web.service"), "{error}");
        let error = find("../../etc").expect_err("missing").to_string();
        assert!(error.contains("no control group ../../etc"), "{error}");
        let error = find(&tree.0.to_string_lossy()).expect_err("no more than a folder").to_string();
        assert!(error.contains("no control group"), "{error}");
    }

    #[test]
    fn a_group_that_was_removed_has_no_processes() {
        let tree = tree(&[("web.service", "5\n")]);
        let mounts = [tree.0.clone()];
        let group = Cgroup::find_below(Path::new("web.service"), &mounts, Path::is_file).expect("there");
        fs::remove_dir_all(group.path()).expect("removed");
        assert_eq!(group.processes().expect("nothing"), Vec::<u32>::new());
    }
}
