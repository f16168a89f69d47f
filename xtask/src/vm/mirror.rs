//! Which mirror to use: the one that this machine's apt is configured for.

use std::process::Command;

use anyhow::{Context as _, Result};

use crate::command;

/// Base addresses of Debian's two archives.
#[derive(Debug, PartialEq, Eq)]
pub struct Mirror {
    main: String,
    security: String,
}

impl Mirror {
    /// Reads apt's configuration.
    ///
    /// # Errors
    /// When this machine has no apt, or its apt knows no archive of Debian.
    pub fn find() -> Result<Self> {
        let text = command::read(Command::new("apt-get").args([
            "indextargets",
            "--format",
            "$(CREATED_BY) $(RELEASE) $(COMPONENT) $(REPO_URI)",
        ]))
        .context("failed to ask apt-get for this machine's mirror; guests' kernels are packages of Debian")?;
        Self::parse(&text).context(
            "failed to find Debian's archive and its security archive in this machine's apt configuration; add \
             them to /etc/apt/sources.list.d",
        )
    }

    fn parse(text: &str) -> Option<Self> {
        let rows: Vec<Vec<&str>> = text.lines().map(|line| line.split(' ').collect()).collect();
        let find = |wanted: fn(&str) -> bool| {
            rows.iter().find_map(|row| match row[..] {
                ["Packages", release, "main", uri] if wanted(release) => Some(uri.to_owned()),
                _ => None,
            })
        };
        let main = find(|release| CODENAMES.contains(&release))?;
        let security = find(|release| release.ends_with("-security"))?;
        Some(Self { main, security })
    }

    /// The archive that has a suite.
    pub fn of(&self, suite: &str) -> &str {
        if suite.ends_with("-security") { &self.security } else { &self.main }
    }
}

/// Other archives have suites of their own names; these are Debian's.
const CODENAMES: [&str; 6] = ["bookworm", "trixie", "forky", "sid", "stable", "testing"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mirror_is_that_of_the_machine() {
        let text = "Packages cloud main http://vendor/apt\nDEP-11 bookworm main http://other/debian/\n\
                    Packages bookworm main http://mirror/debian/\nPackages bookworm-updates main http://m/u\n\
                    Packages bookworm-security main http://mirror/debian-security/\n";
        let mirror = Mirror::parse(text).expect("both archives are there");
        assert_eq!(mirror.of("sid"), "http://mirror/debian/");
        assert_eq!(mirror.of("bookworm-backports"), "http://mirror/debian/");
        assert_eq!(mirror.of("bullseye-security"), "http://mirror/debian-security/");
        assert_eq!(Mirror::parse("Packages bookworm main http://mirror/debian/\n"), None);
    }
}
