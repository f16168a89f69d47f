//! A kernel's package, unpacked: its image and its release.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use super::{archive::Archive, kernels::Kernel, mirror::Mirror};

/// A kernel that can be booted.
#[derive(Debug)]
pub struct Boot {
    /// Which.
    pub kernel: &'static Kernel,
    /// The compressed image.
    pub image: PathBuf,
    /// Its release, such as `6.1.0-56-cloud-amd64`.
    pub release: String,
}

/// Fetches a kernel. Since 7.x, its files are in packages beside an empty `linux-image-`.
///
/// # Errors
/// When it cannot be fetched, or holds no kernel.
pub fn fetch(cache: &Path, mirror: &Mirror, kernel: &'static Kernel) -> Result<Boot> {
    let archive = Archive::open(cache, mirror, &[kernel.suite], kernel.architecture)?;
    let prefixes = ["linux-image-", "linux-binary-", "linux-modules-", "linux-base-"];
    let mut packages = archive.closure(&kernel.image_package(), &prefixes)?;
    // It only points at the others; archives have been seen to lack it while its index has it.
    packages.remove(&kernel.image_package());
    let folder = archive.unpacked(&packages)?;
    let (image, release) = find(&folder)
        .with_context(|| format!("failed to find a kernel in {}, of {packages:?}", folder.display()))?;
    Ok(Boot { kernel, image, release })
}

/// `boot/vmlinuz-RELEASE`, or `usr/lib/modules/RELEASE/vmlinuz`.
fn find(folder: &Path) -> Option<(PathBuf, String)> {
    let names = |folder: PathBuf| {
        fs::read_dir(folder)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| (entry.path(), entry.file_name().to_string_lossy().into_owned()))
    };
    let in_boot = names(folder.join("boot"))
        .find_map(|(path, name)| Some((path, name.strip_prefix("vmlinuz-")?.to_owned())));
    in_boot.or_else(|| {
        ["usr/lib/modules", "lib/modules"].iter().flat_map(|modules| names(folder.join(modules))).find_map(
            |(path, release)| {
                let image = path.join("vmlinuz");
                image.is_file().then_some((image, release))
            },
        )
    })
}
