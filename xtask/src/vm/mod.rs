//! `cargo xtask vm`: the live tests on the kernels that users run, each booted under QEMU.
//!
//! What is fetched is checked by apt and kept between runs; what a guest runs is built here; only the guest's own
//! init says whether it passed.

mod accelerator;
mod archive;
mod boot;
mod cache;
mod cross;
mod guest;
mod image;
mod kernels;
mod mirror;
mod module;
mod payload;
mod qemu;
mod selftest;
mod table;
mod verdict;

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    process,
    sync::Mutex,
    thread,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result, bail};

use self::{
    boot::Boot,
    guest::{Accelerator, Guest},
    image::Payload,
    kernels::{KERNELS, Kernel},
    mirror::Mirror,
    verdict::Run,
};
use crate::bpf::Architecture;

/// Options of `vm`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Kernels of the matrix: 5.10, 6.1, 6.12, 7.x, arm64-6.1 [default: all]
    #[arg(value_name = "KERNEL", value_parser = Kernel::named)]
    kernels: Vec<&'static Kernel>,
    /// A shell in a guest with this kernel, with leakprobe, its tests and their victims
    #[arg(long, value_name = "KERNEL", value_parser = Kernel::named, conflicts_with = "kernels")]
    shell: Option<&'static Kernel>,
    /// Only live tests whose name contains this
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
    /// Show that a refused BPF program, a panic and a hang fail a run, on the first of the kernels
    #[arg(long, conflicts_with_all = ["shell", "filter"])]
    self_test: bool,
    /// Longest time for one guest, s
    #[arg(long, value_name = "SECONDS", default_value_t = 3600)]
    limit: u64,
    /// Guests that run at the same time [default: one for each two processors, at least two]
    #[arg(long, value_name = "N")]
    jobs: Option<usize>,
}

/// A guest, prepared.
struct Prepared {
    boot: Boot,
    payload: Payload,
    module: PathBuf,
    accelerator: Accelerator,
}

/// Fetches, builds, boots, and prints the table.
///
/// # Errors
/// When something is missing, or any guest fails.
pub fn run(arguments: &Arguments) -> Result<()> {
    if !cfg!(target_arch = "x86_64") {
        bail!(
            "failed to make guests: what runs in them is built on x86_64 machines only, and this is another"
        );
    }
    let kernels: Vec<&'static Kernel> = match (&arguments.shell, &arguments.kernels[..]) {
        (Some(kernel), _) => vec![kernel],
        (None, []) if arguments.self_test => vec![&KERNELS[0]],
        (None, []) => KERNELS.iter().collect(),
        (None, some) => some.to_vec(),
    };
    // Given twice, a kernel is run once.
    let mut once: Vec<&'static Kernel> = Vec::new();
    for kernel in kernels {
        if !once.contains(&kernel) {
            once.push(kernel);
        }
    }
    let prepared = prepare(&once)?;
    if arguments.shell.is_some() {
        return prepared.iter().try_for_each(shell);
    }
    let limit = Duration::from_secs(arguments.limit);
    if arguments.self_test {
        return prepared.iter().take(1).try_for_each(|one| selftest::run(one, limit));
    }
    let filter = arguments.filter.as_deref().unwrap_or_default();
    if filter.contains(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != ':') {
        bail!("failed to use the filter {filter:?}: names of tests have letters, digits, _ and : only");
    }
    let runs = run_all(&prepared, filter, limit, arguments.jobs)?;
    let rows: Vec<table::Row<'_>> =
        prepared.iter().zip(&runs).map(|(one, (run, took))| (one.boot.kernel.name, run, *took)).collect();
    print!("\n{}", table::print(&rows));
    let failed: Vec<&str> =
        rows.iter().filter(|(_, run, _)| !run.is_good()).map(|(name, ..)| *name).collect();
    if !failed.is_empty() {
        let folders: Vec<String> = failed.iter().map(|name| folder(name).display().to_string()).collect();
        bail!("failed on {}; all that the guests said is in {}", failed.join(", "), folders.join(", "));
    }
    Ok(())
}

/// Everything that guests with these kernels need.
fn prepare(kernels: &[&'static Kernel]) -> Result<Vec<Prepared>> {
    let cache = cache::folder()?;
    let mut architectures: Vec<Architecture> = Vec::new();
    for kernel in kernels {
        if !architectures.contains(&kernel.architecture) {
            architectures.push(kernel.architecture);
        }
    }
    qemu::ensure(&cache, &architectures)?;
    let mirror = Mirror::find()?;
    let mut payloads: HashMap<&'static str, Payload> = HashMap::new();
    let mut prepared = Vec::new();
    for &kernel in kernels {
        let boot = boot::fetch(&cache, &mirror, kernel)?;
        let folder = folder(kernel.name);
        fs::create_dir_all(&folder).with_context(|| format!("failed to make {}", folder.display()))?;
        let name = kernel.architecture.name();
        if !payloads.contains_key(name) {
            payloads.insert(name, payload::build(&cache, &mirror, kernel.architecture)?);
        }
        let payload = payloads[name].clone();
        // After the payload, which has seen to it that there is a compiler.
        let module = module::fetch_and_build(&cache, &mirror, &boot, &folder)?;
        let accelerator = accelerator::choose(&cache, &folder, &boot, &payload)?;
        prepared.push(Prepared { boot, payload, module, accelerator });
    }
    Ok(prepared)
}

/// Where a guest's files and logs are.
fn folder(kernel: &str) -> PathBuf {
    payload::target().join("vm").join(kernel)
}

/// What a guest's init is told, and the number before each line of its answers: new in each run, so that nothing
/// that a test prints can be an answer.
fn plan(mode: &str, architecture: Architecture, filter: &str) -> (String, String) {
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_nanos();
    let number = format!("leakprobe-vm-{}-{now}", process::id());
    let report = guest::report_device(architecture);
    (format!("MODE={mode}\nNUMBER={number}\nREPORT={report}\nFILTER={filter}\n"), number)
}

/// Runs one guest to its verdict.
fn run_one(
    one: &Prepared,
    payload: &Payload,
    mode: &str,
    filter: &str,
    folder: &Path,
    limit: Duration,
) -> Result<(Run, Duration)> {
    fs::create_dir_all(folder).with_context(|| format!("failed to make {}", folder.display()))?;
    let (plan, number) = plan(mode, one.boot.kernel.architecture, filter);
    let image = folder.join("image.cpio");
    image::write(payload, &plan, Some(&one.module), &image)?;
    let left = guest(one, &image).run(folder, limit)?;
    fs::remove_file(&image).with_context(|| format!("failed to remove {}", image.display()))?;
    let run = verdict::read(&left.report, &number, &left.console, left.end);
    Ok((run, left.took))
}

fn guest<'a>(one: &'a Prepared, image: &'a Path) -> Guest<'a> {
    Guest {
        architecture: one.boot.kernel.architecture,
        kernel: &one.boot.image,
        image,
        accelerator: one.accelerator,
    }
}

/// Runs all guests, some at the same time; results in their order.
fn run_all(
    prepared: &[Prepared],
    filter: &str,
    limit: Duration,
    jobs: Option<usize>,
) -> Result<Vec<(Run, Duration)>> {
    let processors = thread::available_parallelism().map_or(1, usize::from);
    let jobs = jobs.unwrap_or((processors / 2).max(2)).clamp(1, prepared.len().max(1));
    let waiting = Mutex::new((0..prepared.len()).rev().collect::<Vec<_>>());
    let done = Mutex::new(HashMap::new());
    thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                loop {
                    let Some(index) = lock(&waiting).pop() else { return };
                    let one = &prepared[index];
                    let name = one.boot.kernel.name;
                    eprintln!("+ {name}: booting {}", one.boot.release);
                    let begun = Instant::now();
                    // One guest's trouble does not hide what the others have found.
                    let (run, took) = run_one(one, &one.payload, "test", filter, &folder(name), limit)
                        .unwrap_or_else(|error| (Run::failed(&error), begun.elapsed()));
                    let verdict = if run.is_good() { "ok" } else { "FAILED" };
                    eprintln!("  {name}: {verdict} after {} s", took.as_secs());
                    lock(&done).insert(index, (run, took));
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
    (0..prepared.len()).map(|index| done.remove(&index).context("a guest was not run")).collect()
}

/// A thread that panicked leaves nothing half done behind these locks.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn shell(one: &Prepared) -> Result<()> {
    let folder = folder(one.boot.kernel.name);
    let (plan, _) = plan("shell", one.boot.kernel.architecture, "");
    let image = folder.join("image.cpio");
    image::write(&one.payload, &plan, Some(&one.module), &image)?;
    guest(one, &image).run_here()
}
