//! STUB until merge
use super::{image::Payload, mirror::Mirror};
use anyhow::Result;
use std::path::{Path, PathBuf};
pub fn build(_: &Path, _: &Mirror, _: PathBuf) -> Result<Payload> {
    anyhow::bail!("later")
}
