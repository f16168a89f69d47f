//! Which container a process lives in, by its control group.

use std::io;

use super::{Process, read_file};

/// Digits of a container's ID that are shown, as its engine shows them.
const SHOWN: usize = 12;
/// Digits of a whole one.
const WHOLE: usize = 64;

/// Characters of a name that are kept.
const MAX_NAME: usize = 64;

/// What the directories of engines that name containers by their ID begin with, and the engine's name.
const ENGINES: [(&str, &str); 5] = [
    ("docker-", "docker"),
    ("libpod-", "podman"),
    ("cri-containerd-", "containerd"),
    ("crio-", "cri-o"),
    ("nerdctl-", "containerd"),
];

impl Process {
    /// The container that it lives in: its engine, and its short ID or its name. `None` where its control group shows none.
    /// Untrusted, not escaped.
    ///
    /// # Errors
    /// When the process has ended.
    pub fn container(&self) -> io::Result<Option<String>> {
        let text = read_file(&self.directory, "cgroup")?;
        self.same_process()?;
        Ok(in_groups(&String::from_utf8_lossy(&text)))
    }
}

/// The container in the lines of `/proc/PID/cgroup`: `0::/system.slice/docker-3f...9a.scope`.
fn in_groups(text: &str) -> Option<String> {
    text.lines().filter_map(|line| line.splitn(3, ':').nth(2)).find_map(in_path)
}

/// The innermost container that a control group's path names.
fn in_path(path: &str) -> Option<String> {
    let parts: Vec<&str> = path.split('/').collect();
    (0..parts.len()).rev().find_map(|index| {
        let above = index.checked_sub(1).map_or("", |above| parts[above]);
        in_part(above, parts[index], path)
    })
}

fn in_part(above: &str, part: &str, path: &str) -> Option<String> {
    let bare = part.strip_suffix(".scope").unwrap_or(part);
    for (prefix, engine) in ENGINES {
        if let Some(id) = bare.strip_prefix(prefix).filter(|id| is_id(id)) {
            return Some(format!("{engine} {}", &id[..SHOWN]));
        }
    }
    if is_id(part) {
        let engine = match above {
            "docker" => "docker",
            _ if path.contains("kubepods") => "kubernetes",
            _ => "container",
        };
        return Some(format!("{engine} {}", &part[..SHOWN]));
    }
    let named = |engine: &str, name: &str| (!name.is_empty()).then(|| format!("{engine} {}", cut(name)));
    match above {
        "lxc" | "lxc.payload" => return named("lxc", part),
        _ => {}
    }
    if let Some(name) = part.strip_prefix("lxc.payload.") {
        return named("lxc", name);
    }
    if let Some(name) = bare.strip_prefix("machine-").filter(|_| part != bare) {
        return named("machine", name);
    }
    let name = part.strip_prefix("systemd-nspawn@")?.strip_suffix(".service")?;
    named("machine", name)
}

fn is_id(text: &str) -> bool {
    text.len() == WHOLE && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn cut(name: &str) -> String {
    name.chars().take(MAX_NAME).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_is_named_as_its_engine_names_it() {
        let id = "3f9a".repeat(16);
        for (path, expected) in [
            (format!("/system.slice/docker-{id}.scope"), Some("docker 3f9a3f9a3f9a")),
            (format!("/docker/{id}"), Some("docker 3f9a3f9a3f9a")),
            (format!("/machine.slice/libpod-{id}.scope/container"), Some("podman 3f9a3f9a3f9a")),
            (
                format!("/kubepods.slice/kubepods-pod1.slice/cri-containerd-{id}.scope"),
                Some("containerd 3f9a3f9a3f9a"),
            ),
            (format!("/kubepods/burstable/pod1-2/{id}"), Some("kubernetes 3f9a3f9a3f9a")),
            ("/lxc.payload.web/init.scope".to_owned(), Some("lxc web")),
            ("/lxc/web/system.slice/cron.service".to_owned(), Some("lxc web")),
            ("/machine.slice/machine-deb.scope/payload".to_owned(), Some("machine deb")),
            ("/machine.slice/systemd-nspawn@deb.service".to_owned(), Some("machine deb")),
            ("/system.slice/docker.service".to_owned(), None),
            ("/system.slice/docker-3f9a.scope".to_owned(), None),
            ("/user.slice/user-1000.slice".to_owned(), None),
            ("/".to_owned(), None),
        ] {
            assert_eq!(in_groups(&format!("0::{path}\n")).as_deref(), expected, "{path}");
        }
    }

    #[test]
    fn one_hierarchy_of_several_is_enough() {
        let id = "3f9a".repeat(16);
        let text = format!("9:name=systemd:/\n8:pids:/docker/{id}\n0::/\n");
        assert_eq!(in_groups(&text).as_deref(), Some("docker 3f9a3f9a3f9a"));
        assert_eq!(in_groups("nonsense"), None);
    }

    #[test]
    fn the_container_of_a_running_process_can_be_asked_for() {
        let own = Process::open(std::os::unix::process::parent_id()).expect("a parent");
        own.container().expect("readable");
    }
}
