//! The kernels of the matrix, and what Debian calls them.

use crate::bpf::Architecture;

/// A kernel that users run, as Debian packages it for virtual machines.
#[derive(Debug, PartialEq, Eq)]
pub struct Kernel {
    /// What it is called on the command line and in the table. The last number of `7.x` moves with Debian's
    /// development release.
    pub name: &'static str,
    /// The processor it is built for.
    pub architecture: Architecture,
    /// The suite of Debian that has it.
    pub suite: &'static str,
}

/// Oldest first, and the other processor last.
pub const KERNELS: &[Kernel] = &[
    Kernel { name: "5.10", architecture: Architecture::X86_64, suite: "bullseye-security" },
    Kernel { name: "6.1", architecture: Architecture::X86_64, suite: "bookworm-security" },
    Kernel { name: "6.12", architecture: Architecture::X86_64, suite: "bookworm-backports" },
    Kernel { name: "7.x", architecture: Architecture::X86_64, suite: "sid" },
    Kernel { name: "arm64-6.1", architecture: Architecture::Aarch64, suite: "bookworm-security" },
];

impl Kernel {
    /// The kernel of that name.
    ///
    /// # Errors
    /// When there is none: with those that there are.
    pub fn named(name: &str) -> Result<&'static Self, String> {
        KERNELS.iter().find(|kernel| kernel.name == name).ok_or_else(|| {
            let names: Vec<&str> = KERNELS.iter().map(|kernel| kernel.name).collect();
            format!("there is no kernel {name} in the matrix; there are {}", names.join(", "))
        })
    }

    /// The package that depends on the newest kernel of its suite.
    pub fn image_package(&self) -> String {
        format!("linux-image-cloud-{}", debian_name(self.architecture))
    }
}

/// Debian's name of an architecture.
pub fn debian_name(architecture: Architecture) -> &'static str {
    match architecture {
        Architecture::X86_64 => "amd64",
        Architecture::Aarch64 => "arm64",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_found_by_name() {
        assert_eq!(Kernel::named("6.12").map(|kernel| kernel.suite), Ok("bookworm-backports"));
        let error = Kernel::named("4.19").expect_err("there is none");
        assert_eq!(error, "there is no kernel 4.19 in the matrix; there are 5.10, 6.1, 6.12, 7.x, arm64-6.1");
        assert_eq!(KERNELS[4].image_package(), "linux-image-cloud-arm64");
    }
}
