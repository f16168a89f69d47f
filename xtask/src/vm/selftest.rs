//! The harness, put to the test: guests that must fail, and how they must.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use object::{Endianness, Object as _, ObjectSymbol as _, read::elf::ElfFile64};

use super::{Prepared, folder, image::Payload, run_one};
use crate::command;

/// How long a guest that hangs is waited for.
const HANG: Duration = Duration::from_secs(20);

/// `bpf_get_current_pid_tgid`, which the program calls on every kernel. (Other calls are in branches that the verifier
/// drops where the kernel lacks what they need.)
const KNOWN_HELPER: i32 = 14;

/// A helper's number that 5.10 does not know (`bpf_loop`, of 5.17), and that no later kernel lets a program call
/// with what is in its registers here.
const UNKNOWN_HELPER: i32 = 181;

/// A guest that must fail.
struct Case<'a> {
    what: &'static str,
    payload: &'a Payload,
    mode: &'static str,
    filter: &'static str,
    limit: Duration,
    /// What it must say.
    words: &'static [&'static str],
}

/// Boots a guest whose BPF program the verifier refuses, one with a live test that fails, one whose kernel
/// complains, one that panics and one that hangs.
///
/// # Errors
/// When one of them passes, or does not say why it failed.
pub fn run(one: &Prepared, limit: Duration) -> Result<()> {
    let folder = folder("self-test");
    fs::create_dir_all(&folder).with_context(|| format!("failed to make {}", folder.display()))?;
    let name = one.boot.kernel.name;
    let sound = &one.payload;
    let refused = Payload { leakprobe: folder.join("leakprobe"), ..sound.clone() };
    break_program(&sound.leakprobe, &refused.leakprobe)?;
    let mute = Payload { victims: folder.join("victims"), ..sound.clone() };
    break_victim(&sound.victims, &mute.victims, &sound.busybox)?;
    let case = |what, payload, mode, filter, words| Case { what, payload, mode, filter, limit, words };
    let doctor = "doctor::";
    let cases = [
        case(
            "a refused BPF program",
            &refused,
            "test",
            doctor,
            &["doctor failed", "allocate_enter", "unknown#181"],
        ),
        case(
            "a live test that fails",
            &mute,
            "test",
            "attach::a_second_session",
            &["ended with status 101", "failed: attach::a_second_session", "no word from victim"],
        ),
        case(
            "a kernel that complains",
            sound,
            "complain",
            "doctor::",
            &["the kernel complained", "made for the harness's own test"],
        ),
        case("a panic", sound, "panic", doctor, &["ended without a verdict", "Kernel panic"]),
        Case { limit: HANG, ..case("a hang", sound, "hang", doctor, &["no verdict within 20 s"]) },
    ];
    for Case { what, payload, mode, filter, limit, words } in cases {
        eprintln!("+ {name}: booting a guest with {what}");
        let (run, _) = run_one(one, payload, mode, filter, &folder, limit)?;
        let said = run.failures.join("\n");
        ensure!(!run.is_good(), "failed: a guest with {what} passed");
        if let Some(missing) = words.iter().find(|word| !said.contains(**word)) {
            bail!("failed: a guest with {what} does not say {missing:?}, but: {said}");
        }
        println!("{name}: {what} fails the run: {said}\n");
    }
    fs::remove_dir_all(&folder).with_context(|| format!("failed to remove {}", folder.display()))
}

/// Copies the victims, with one that ends without a word in the place of `leak`.
fn break_victim(from: &Path, to: &Path, other: &Path) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("failed to make {}", to.display()))?;
    for entry in fs::read_dir(from).with_context(|| format!("failed to read {}", from.display()))? {
        let entry = entry.context("failed to read the folder of victims")?;
        let source = if entry.file_name() == "leak" { other.to_owned() } else { entry.path() };
        if source.is_file() {
            fs::copy(&source, to.join(entry.file_name()))
                .with_context(|| format!("failed to copy {}", source.display()))?;
        }
    }
    Ok(())
}

/// Copies the executable `from` with one instruction of the BPF program `allocate_enter` changed: a call of one
/// helper is one of another.
fn break_program(from: &Path, to: &Path) -> Result<()> {
    let object = fs::read(command::workspace().join("leakprobe/ebpf/leakprobe.x86_64.bpf.o"))
        .context("failed to read the committed BPF object")?;
    let at = first_call(&object).context("failed to find a call in the BPF program allocate_enter")?;
    let mut executable = fs::read(from).with_context(|| format!("failed to read {}", from.display()))?;
    // The object is in the executable as it is.
    let mark = &object[..4096.min(object.len())];
    let start = executable
        .windows(mark.len())
        .position(|window| window == mark)
        .with_context(|| format!("failed to find the BPF object in {}", from.display()))?;
    executable[start + at + 4..start + at + 8].copy_from_slice(&UNKNOWN_HELPER.to_le_bytes());
    fs::write(to, executable).with_context(|| format!("failed to write {}", to.display()))?;
    fs::set_permissions(to, fs::metadata(from)?.permissions())
        .with_context(|| format!("failed to make {} executable", to.display()))
}

/// Offset in the file of the first call of [`KNOWN_HELPER`] in `allocate_enter`.
fn first_call(object: &[u8]) -> Option<usize> {
    const CALL: u8 = 0x85;
    let file: ElfFile64<'_, Endianness> = ElfFile64::parse(object).ok()?;
    let symbol = file.symbols().find(|symbol| symbol.name() == Ok("allocate_enter"))?;
    let section = object::ObjectSection::file_range(&file.section_by_index(symbol.section_index()?).ok()?)?;
    let start = (section.0 + symbol.address()) as usize;
    let code = object.get(start..start + symbol.size() as usize)?;
    // A call of a helper has 0 for its source register; a call of another function has 1.
    let known = KNOWN_HELPER.to_le_bytes();
    let wanted = [CALL, 0, 0, 0, known[0], known[1], known[2], known[3]];
    let position = code.chunks_exact(8).position(|instruction| *instruction == wanted)?;
    Some(start + position * 8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_found_in_the_committed_object() {
        let object = fs::read(command::workspace().join("leakprobe/ebpf/leakprobe.x86_64.bpf.o")).unwrap();
        let at = first_call(&object).expect("allocate_enter calls helpers");
        assert_eq!(object[at], 0x85);
        assert_eq!(object[at + 4..at + 8], KNOWN_HELPER.to_le_bytes());
    }
}
