//! Starting a guest under QEMU, and waiting for its end.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use super::verdict::End;
use crate::bpf::Architecture;

/// How instructions of the guest are executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accelerator {
    /// In software: works everywhere, ten to twenty times slower than the machine.
    Tcg,
    /// By the machine's processor.
    Kvm,
}

/// Memory of a guest, MiB; the image lives in it.
const MEMORY: u32 = 1536;

/// A guest, ready to start.
#[derive(Debug)]
pub struct Guest<'a> {
    /// Its processor.
    pub architecture: Architecture,
    /// Its kernel's image.
    pub kernel: &'a Path,
    /// Its initial file system.
    pub image: &'a Path,
    /// How it is run.
    pub accelerator: Accelerator,
}

/// The device of a guest's second serial port, as its init knows it.
pub fn report_device(architecture: Architecture) -> &'static str {
    match architecture {
        Architecture::X86_64 => "/dev/ttyS1",
        Architecture::Aarch64 => "/dev/ttyAMA1",
    }
}

/// QEMU's program for guests of an architecture.
pub fn program(architecture: Architecture) -> &'static str {
    match architecture {
        Architecture::X86_64 => "qemu-system-x86_64",
        Architecture::Aarch64 => "qemu-system-aarch64",
    }
}

/// What a guest left.
pub struct Left {
    /// How the machine ended.
    pub end: End,
    /// What its init reported on the second serial port.
    pub report: String,
    /// What its kernel printed on the first.
    pub console: String,
    /// How long it ran.
    pub took: Duration,
}

impl Guest<'_> {
    fn command(&self) -> Command {
        // Whatever ends this task ends its guests too.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", program(self.architecture)]);
        // `max` boots four times slower on arm64 than a processor with less.
        let (machine, cpu, console) = match (self.architecture, self.accelerator) {
            (Architecture::X86_64, Accelerator::Kvm) => ("q35", "host", "ttyS0"),
            (Architecture::X86_64, Accelerator::Tcg) => ("q35", "max", "ttyS0"),
            (Architecture::Aarch64, _) => ("virt", "cortex-a72", "ttyAMA0"),
        };
        let accelerator = match self.accelerator {
            Accelerator::Tcg => "tcg,thread=multi",
            Accelerator::Kvm => "kvm",
        };
        command
            .args(["-machine", machine, "-cpu", cpu, "-accel", accelerator, "-smp", "2"])
            .args(["-m", &MEMORY.to_string(), "-no-reboot", "-nic", "none", "-display", "none"])
            .arg("-kernel")
            .arg(self.kernel)
            .arg("-initrd")
            .arg(self.image)
            .args(["-append", &format!("console={console} quiet panic=-1 rdinit=/init")]);
        command
    }

    /// Runs the guest to its end, or for `limit`. Its ports are kept as files in `folder`.
    ///
    /// # Errors
    /// When QEMU cannot be started, or refuses.
    pub fn run(&self, folder: &Path, limit: Duration) -> Result<Left> {
        let (console, report) = (folder.join("console.log"), folder.join("report.log"));
        let port = |file: &PathBuf| format!("file:{}", file.display());
        let began = Instant::now();
        let errors = folder.join("qemu.log");
        let mut child = self
            .command()
            .args(["-monitor", "none", "-serial", &port(&console), "-serial", &port(&report)])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(
                fs::File::create(&errors)
                    .with_context(|| format!("failed to create {}", errors.display()))?,
            )
            .spawn()
            .with_context(|| format!("failed to start {}", program(self.architecture)))?;
        let deadline = began + limit;
        let end = loop {
            if let Some(status) = child.try_wait().context("failed to wait for QEMU")? {
                anyhow::ensure!(
                    status.success(),
                    "failed to run {}: {status}: {}",
                    program(self.architecture),
                    read(&errors).trim()
                );
                break End::PoweredOff;
            }
            if Instant::now() >= deadline {
                child.kill().and_then(|()| child.wait()).context("failed to end QEMU")?;
                break End::TimedOut(limit.as_secs());
            }
            thread::sleep(Duration::from_millis(50));
        };
        Ok(Left { end, report: read(&report), console: read(&console), took: began.elapsed() })
    }

    /// Runs the guest with its console on this terminal, until it ends.
    ///
    /// # Errors
    /// When QEMU cannot be started.
    pub fn run_here(&self) -> Result<()> {
        // Ctrl-C belongs to the guest's shell.
        let status = self
            .command()
            .args(["-serial", "mon:stdio", "-serial", "null"])
            .status()
            .with_context(|| format!("failed to start {}", program(self.architecture)))?;
        anyhow::ensure!(status.success(), "failed to run {}: {status}", program(self.architecture));
        Ok(())
    }
}

/// A file's text; what is no UTF-8 is marked.
fn read(path: &Path) -> String {
    fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}
