//! Packages of a Debian suite that is not the machine's own, through apt itself: it checks the index's signature
//! and each package's checksum. Nothing is installed; a private folder holds lists and packages, so that the
//! machine's apt is not touched.

use std::{
    collections::BTreeSet,
    fs,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    path::{Path, PathBuf},
    process::Command,
    time::SystemTime,
};

use anyhow::{Context as _, Result, bail, ensure};

use super::{kernels::debian_name, mirror::Mirror};
use crate::{bpf::Architecture, command};

/// Debian's keys, from the package debian-archive-keyring, which every Debian has.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Some suites for one architecture.
pub struct Archive {
    name: String,
    /// apt's private state.
    state: PathBuf,
    /// Where packages lie, and what was unpacked from them.
    cache: PathBuf,
    options: Vec<String>,
}

/// A package as the signed index describes it.
struct Listed {
    file: String,
    sha256: String,
}

impl Archive {
    /// Opens the archive; its lists are fetched when they are missing or out of date. Old ones do when there is no
    /// network.
    ///
    /// # Errors
    /// When there are no lists and none can be fetched.
    pub fn open(cache: &Path, mirror: &Mirror, suites: &[&str], architecture: Architecture) -> Result<Self> {
        let architecture = debian_name(architecture);
        let name = format!("{} ({architecture})", suites.join(", "));
        let state = cache.join("apt").join(format!("{}-{architecture}", suites.join("+")));
        fs::create_dir_all(state.join("lists/partial"))
            .and_then(|()| fs::create_dir_all(state.join("cache/archives/partial")))
            .and_then(|()| fs::create_dir_all(cache.join("debs")))
            .and_then(|()| fs::write(state.join("status"), ""))
            .with_context(|| format!("failed to make {}", state.display()))?;
        let sources: String = suites
            .iter()
            .map(|suite| {
                format!("deb [signed-by={KEYRING} arch={architecture}] {} {suite} main\n", mirror.of(suite))
            })
            .collect();
        fs::write(state.join("sources.list"), sources)
            .with_context(|| format!("failed to write sources.list in {}", state.display()))?;
        let at = |what: &str| state.join(what).display().to_string();
        let options = [
            format!("Dir::State::lists={}", at("lists")),
            format!("Dir::State::status={}", at("status")),
            format!("Dir::Cache={}", at("cache")),
            format!("Dir::Etc::sourcelist={}", at("sources.list")),
            "Dir::Etc::sourceparts=/dev/null".to_owned(),
            format!("APT::Architecture={architecture}"),
            format!("APT::Architectures={architecture}"),
            // Only the index of packages: translations and icons are larger than it.
            "Acquire::Languages=none".to_owned(),
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".to_owned(),
            "Acquire::Retries=2".to_owned(),
            // Root's folder may be closed to apt's own user.
            "APT::Sandbox::User=root".to_owned(),
        ];
        let archive = Self { name, state, cache: cache.to_owned(), options: options.into() };
        archive.update()?;
        Ok(archive)
    }

    fn update(&self) -> Result<()> {
        let stamp = self.state.join("updated");
        let age = |path: &Path| {
            let changed = fs::metadata(path).and_then(|metadata| metadata.modified()).ok()?;
            SystemTime::now().duration_since(changed).ok()
        };
        let known = age(&stamp);
        // Asked each time: a mirror drops a package when the next one comes, and what has not changed costs nothing.
        // apt-get update succeeds with warnings when nothing could be reached; this option makes it fail.
        let updated =
            command::read(self.apt("apt-get").args(["-o", "APT::Update::Error-Mode=any", "update"]));
        match (updated, known) {
            (Ok(_), _) => {
                fs::write(&stamp, "").with_context(|| format!("failed to write {}", stamp.display()))
            }
            (Err(error), Some(age)) => {
                let days = age.as_secs() / 86400;
                eprintln!(
                    "note: package lists of {} are {days} days old, and failed to be renewed: {}",
                    self.name,
                    first_line(&error)
                );
                Ok(())
            }
            (Err(error), None) => bail!(
                "failed to fetch the package lists of Debian {}: {}; this needs network once: later runs find what \
                 they need in {}",
                self.name,
                first_line(&error),
                self.cache.display()
            ),
        }
    }

    fn apt(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("LC_ALL", "C").current_dir(self.cache.join("debs"));
        for option in &self.options {
            command.args(["-o", option]);
        }
        command
    }

    /// What a package depends on directly; alternatives count as well.
    pub fn depends(&self, package: &str) -> Result<Vec<String>> {
        let text = command::read(
            self.apt("apt-cache")
                .args(["depends", "--no-recommends", "--no-suggests", "--no-conflicts", "--no-breaks"])
                .args(["--no-replaces", "--no-enhances", package]),
        )
        .with_context(|| format!("failed to look {package} up in Debian {}", self.name))?;
        Ok(parse_depends(&text))
    }

    /// A package and all that it depends on, as far as their names begin with one of `prefixes`.
    pub fn closure(&self, package: &str, prefixes: &[&str]) -> Result<BTreeSet<String>> {
        let mut known = BTreeSet::from([package.to_owned()]);
        let mut to_ask = vec![package.to_owned()];
        while let Some(package) = to_ask.pop() {
            for dependency in self.depends(&package)? {
                let wanted = prefixes.iter().any(|prefix| dependency.starts_with(prefix));
                if wanted && known.insert(dependency.clone()) {
                    to_ask.push(dependency);
                }
            }
        }
        Ok(known)
    }

    /// Downloads packages, those that are not there yet, and unpacks them into one folder, which is returned.
    ///
    /// # Errors
    /// When one is not in the archive, cannot be fetched, or is not what the index says.
    pub fn unpacked(&self, packages: &BTreeSet<String>) -> Result<PathBuf> {
        let listed = self.listed(packages)?;
        let mut hasher = DefaultHasher::new();
        listed.iter().for_each(|package| package.sha256.hash(&mut hasher));
        let first = packages.first().map_or("nothing", String::as_str);
        let folder = self.cache.join("unpacked").join(format!("{first}-{:016x}", hasher.finish()));
        if folder.is_dir() {
            return Ok(folder);
        }
        let draft = folder.with_extension(format!("draft{}", std::process::id()));
        fs::create_dir_all(&draft).with_context(|| format!("failed to make {}", draft.display()))?;
        for package in &listed {
            let deb = self.fetch(package)?;
            command::read(Command::new("dpkg-deb").arg("-x").arg(&deb).arg(&draft))
                .with_context(|| format!("failed to unpack {}", deb.display()))?;
        }
        fs::rename(&draft, &folder).with_context(|| format!("failed to place {}", folder.display()))?;
        Ok(folder)
    }

    fn listed(&self, packages: &BTreeSet<String>) -> Result<Vec<Listed>> {
        // In a folder without packages: apt-get says nothing of one that lies there already.
        let mut ask = self.apt("apt-get");
        ask.current_dir(&self.state).args(["download", "--print-uris"]).args(packages);
        let text = command::read(&mut ask)
            .with_context(|| format!("failed to look packages up in Debian {}", self.name))?;
        let listed: Vec<Listed> = text.lines().filter_map(parse_uri).collect();
        ensure!(
            listed.len() == packages.len(),
            "failed to read what apt-get says of {} packages of Debian {}: {text}",
            packages.len(),
            self.name
        );
        Ok(listed)
    }

    /// The package's file, fetched when it is missing or damaged.
    fn fetch(&self, package: &Listed) -> Result<PathBuf> {
        let deb = self.cache.join("debs").join(&package.file);
        if deb.is_file() && sha256(&deb)? == package.sha256 {
            return Ok(deb);
        }
        let _ = fs::remove_file(&deb);
        // The file's name begins with the package's.
        let name = package.file.split('_').next().unwrap_or_default();
        eprintln!("+ fetching {}", package.file);
        if let Err(error) = command::read(self.apt("apt-get").args(["download", name])) {
            bail!("failed to fetch {} of Debian {}: {}", package.file, self.name, first_line(&error));
        }
        let sum = sha256(&deb)?;
        ensure!(
            sum == package.sha256,
            "failed to verify {}: SHA-256 {sum} is not {}, as the signed index says",
            deb.display(),
            package.sha256
        );
        Ok(deb)
    }
}

/// apt's own words, without the command line before them: one line.
fn first_line(error: &anyhow::Error) -> String {
    let text = format!("{error:#}");
    let said = text.find("E: ").or_else(|| text.find("W: ")).map_or(&*text, |at| &text[at + 3..]);
    said.lines().next().unwrap_or_default().trim().to_owned()
}

fn sha256(file: &Path) -> Result<String> {
    let text = command::read(Command::new("sha256sum").arg("--").arg(file))?;
    // A name with special characters is marked by a backslash before the sum.
    Ok(text.trim_start_matches('\\').split(' ').next().unwrap_or_default().to_owned())
}

/// `'URI' file size SHA256:sum`.
fn parse_uri(line: &str) -> Option<Listed> {
    let mut words = line.rsplit(' ');
    let sha256 = words.next()?.strip_prefix("SHA256:")?;
    let _size = words.next()?;
    let file = words.next()?;
    let is_plain = !file.contains('/') && file.ends_with(".deb");
    is_plain.then(|| Listed { file: file.to_owned(), sha256: sha256.to_owned() })
}

/// Lines `  Depends: name`, ` |Depends: name`, `  PreDepends: name`; virtual packages are in angle brackets.
fn parse_depends(text: &str) -> Vec<String> {
    text.lines()
        .filter_map(|line| line.trim_start_matches([' ', '|']).split_once("Depends: "))
        .filter(|(kind, name)| matches!(*kind, "" | "Pre") && !name.starts_with('<'))
        .map(|(_, name)| name.split(':').next().unwrap_or(name).trim().to_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_apt_prints_is_read() {
        let text = "linux-image-cloud-amd64\n  Depends: linux-image-7.2.13+deb14-cloud-amd64\n |Depends: kmod\n  \
                    PreDepends: dpkg:any\n  Depends: <virtual>\n    provider\n  Recommends: apparmor\n";
        assert_eq!(parse_depends(text), ["linux-image-7.2.13+deb14-cloud-amd64", "kmod", "dpkg"]);
        let listed =
            parse_uri("'http://mirror/pool/a_1%3a2_all.deb' a_1%3a2_all.deb 1416 SHA256:c8a6").unwrap();
        assert_eq!((listed.file.as_str(), listed.sha256.as_str()), ("a_1%3a2_all.deb", "c8a6"));
        assert!(parse_uri("'http://mirror/pool/a.deb' ../../etc/a.deb 1 SHA256:00").is_none());
        assert!(parse_uri("'http://mirror/pool/a.deb' a.deb 1 MD5Sum:00").is_none());
    }

    #[test]
    fn errors_are_cut_to_what_apt_said() {
        let error =
            anyhow::anyhow!("`apt-get -o x update` failed: exit status: 100: W: old\nE: no route\nE: more");
        assert_eq!(first_line(&error), "no route");
    }
}
