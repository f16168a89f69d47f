//! Whether guests can run on the machine's own processor: only a guest that does shows it.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context as _, Result};

use super::{
    boot::Boot,
    guest::{self, Accelerator, Guest},
    image::{self, Payload},
    plan,
    verdict::End,
};
use crate::bpf::Architecture;

/// How long a guest that only says hello may take. Emulated, it takes 5 s.
const PATIENCE: Duration = Duration::from_secs(10);

/// KVM where a guest reaches its init with it; some virtual machines have a /dev/kvm on which none does. The
/// answer holds until the machine boots again.
///
/// # Errors
/// When the image cannot be made.
pub fn choose(cache: &Path, folder: &Path, boot: &Boot, payload: &Payload) -> Result<Accelerator> {
    let can = boot.kernel.architecture == Architecture::X86_64
        && cfg!(target_arch = "x86_64")
        && fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").is_ok();
    if !can {
        return Ok(Accelerator::Tcg);
    }
    let machine = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let known = cache.join(format!("kvm-{}", machine.trim()));
    if let Ok(answer) = fs::read_to_string(&known) {
        return Ok(if answer == "yes" { Accelerator::Kvm } else { Accelerator::Tcg });
    }
    let image = folder.join("hello.cpio");
    let (plan, number) = plan("hello", Architecture::X86_64, "");
    image::write(payload, &plan, None, &image)?;
    let guest = Guest {
        architecture: Architecture::X86_64,
        kernel: &boot.image,
        image: &image,
        accelerator: Accelerator::Kvm,
    };
    let works = guest.run(folder, PATIENCE).is_ok_and(|left: guest::Left| {
        left.end == End::PoweredOff && left.report.contains(&format!("{number} verdict 0"))
    });
    eprintln!("{}", if works { "guests run with KVM" } else { "no guest boots with KVM here: emulating" });
    fs::write(&known, if works { "yes" } else { "no" })
        .with_context(|| format!("failed to write {}", known.display()))?;
    Ok(if works { Accelerator::Kvm } else { Accelerator::Tcg })
}
