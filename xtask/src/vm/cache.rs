//! Where packages are kept between runs: outside the checkout, so that a clean clone finds them.

use std::{env, fs, path::PathBuf};

use anyhow::{Context as _, Result};

/// The folder: `LEAKPROBE_CACHE`, else `leakprobe` in the user's cache folder.
///
/// # Errors
/// When there is no such place, or it cannot be made.
pub fn folder() -> Result<PathBuf> {
    let folder = match (env::var_os("LEAKPROBE_CACHE"), env::var_os("XDG_CACHE_HOME"), env::var_os("HOME")) {
        (Some(folder), ..) => PathBuf::from(folder),
        (None, Some(cache), _) => PathBuf::from(cache).join("leakprobe"),
        (None, None, Some(home)) => PathBuf::from(home).join(".cache/leakprobe"),
        (None, None, None) => anyhow::bail!("failed to find a cache folder: set LEAKPROBE_CACHE or HOME"),
    };
    fs::create_dir_all(&folder).with_context(|| format!("failed to make the cache {}", folder.display()))?;
    Ok(folder)
}
