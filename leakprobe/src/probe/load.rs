//! Loading the BPF object: aya makes the maps and the tracepoint programs; the uprobe programs are loaded
//! for multi-uprobe links where the kernel has them, which aya 0.14 does not do.

use std::{
    collections::HashMap,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
};

use super::features::Mechanism;
use crate::sys::bpf::{self, UprobeProgram};
use anyhow::{Context as _, Result, anyhow};
use aya::{
    Ebpf, EbpfLoader, VerifierLogLevel,
    maps::{Map, MapData},
    programs::{Program, RawTracePoint, UProbe},
};

#[cfg(target_arch = "x86_64")]
static OBJECT: &[u8] = aya::include_bytes_aligned!("../../ebpf/leakprobe.x86_64.bpf.o");
#[cfg(target_arch = "aarch64")]
static OBJECT: &[u8] = aya::include_bytes_aligned!("../../ebpf/leakprobe.aarch64.bpf.o");

/// What the user may set before loading.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Smallest block recorded, bytes.
    pub min_size: u64,
    /// Largest block recorded, bytes.
    pub max_size: u64,
    /// Capacity of the map of outstanding blocks.
    pub max_blocks: u32,
    /// Capacity of the stack table.
    pub max_stacks: u32,
    /// Whether BPF programs write diagnostics.
    pub diagnostics: bool,
    /// Empty programs in place of the real ones: what the traps alone cost.
    pub floor: bool,
}

/// The uprobe programs, by role.
#[derive(Debug)]
pub struct UprobePrograms<T> {
    /// At the entry of functions that hand out a block.
    pub allocate_enter: T,
    /// At their return.
    pub allocate_return: T,
    /// At the entry of functions that take one back.
    pub free_enter: T,
}

/// The loaded object.
pub struct Loaded {
    /// Maps, and the programs that aya attaches.
    pub ebpf: Ebpf,
    /// The uprobe programs loaded for multi-uprobe links; `None` where aya's own are used.
    pub multi: Option<UprobePrograms<OwnedFd>>,
}

impl Loaded {
    /// The uprobe programs that are attached, with their names.
    pub fn uprobe_programs(&self, floor: bool) -> Vec<(&'static str, BorrowedFd<'_>)> {
        let names = program_names(floor);
        let names = [names.allocate_enter, names.allocate_return, names.free_enter];
        match &self.multi {
            Some(fds) => {
                let fds = [&fds.allocate_enter, &fds.allocate_return, &fds.free_enter];
                names.into_iter().zip(fds.map(|fd| fd.as_fd())).collect()
            }
            None => names
                .into_iter()
                .filter_map(|name| match self.ebpf.program(name)? {
                    Program::UProbe(program) => Some((name, program.fd().ok()?.as_fd())),
                    _ => None,
                })
                .collect(),
        }
    }
}

/// Names of the uprobe programs in the object.
pub fn program_names(floor: bool) -> UprobePrograms<&'static str> {
    if floor {
        UprobePrograms {
            allocate_enter: "floor_enter",
            allocate_return: "floor_return",
            free_enter: "floor_enter",
        }
    } else {
        UprobePrograms {
            allocate_enter: "allocate_enter",
            allocate_return: "allocate_return",
            free_enter: "free_enter",
        }
    }
}

/// Creates the maps and loads the programs.
///
/// # Errors
/// What the kernel or its verifier said.
pub fn load(settings: &Settings, mechanism: Mechanism) -> Result<Loaded> {
    let globals = Globals::new(settings);
    let mut loader = EbpfLoader::new();
    loader
        // No program uses kernel types, and parsing the kernel's BTF takes longer than all the rest.
        .btf(None)
        .verifier_log_level(VerifierLogLevel::DISABLE)
        .override_global("MIN_SIZE", &globals.min_size, true)
        .override_global("MAX_SIZE", &globals.max_size, true)
        .override_global("AYA_LOG_LEVEL", &globals.log_level, true)
        .map_max_entries("BLOCKS", settings.max_blocks)
        .map_max_entries("STACKS", settings.max_stacks)
        // One more: blocks whose stack was not kept have a site, too.
        .map_max_entries("SITES", settings.max_stacks.saturating_add(1));
    // The error's text holds those of its sources already.
    let mut ebpf = loader.load(OBJECT).map_err(|error| {
        anyhow!(
            "failed to load the BPF object: {error}; if the kernel has too little memory for its maps, lower \
             --max-blocks ({}) or --max-stacks ({})",
            settings.max_blocks,
            settings.max_stacks
        )
    })?;
    for name in ["process_exec", "thread_exit"] {
        let tracepoint = if name == "process_exec" { "sched_process_exec" } else { "sched_process_exit" };
        let program: &mut RawTracePoint = program(&mut ebpf, name)?;
        program.load().with_context(|| format!("failed to load the BPF program {name}"))?;
        program
            .attach(tracepoint)
            .with_context(|| format!("failed to attach {name} to the raw tracepoint {tracepoint}"))?;
    }
    let names = program_names(settings.floor);
    let multi = match mechanism {
        Mechanism::Multi => Some(load_multi(&ebpf, &globals, &names)?),
        Mechanism::PerfEvent => {
            for name in [names.allocate_enter, names.allocate_return, names.free_enter] {
                let program: &mut UProbe = program(&mut ebpf, name)?;
                if program.fd().is_err() {
                    program.load().with_context(|| format!("failed to load the BPF program {name}"))?;
                }
            }
            None
        }
    };
    Ok(Loaded { ebpf, multi })
}

/// One of aya's programs by name.
pub fn program<'a, P>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut P>
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program, Error = aya::programs::ProgramError>,
{
    Ok(ebpf.program_mut(name).ok_or_else(|| anyhow!("the BPF object has no program {name}"))?.try_into()?)
}

struct Globals {
    min_size: u64,
    max_size: u64,
    log_level: u8,
}

impl Globals {
    fn new(settings: &Settings) -> Self {
        Self {
            min_size: settings.min_size,
            max_size: settings.max_size,
            // 0 switches aya-log off before the verifier sees it: the programs then contain no trace of it.
            log_level: if settings.diagnostics { aya_log::Level::Debug as u8 } else { 0 },
        }
    }
}

/// Loads the uprobe programs a second way: parsed by aya, their maps the ones that aya made, but loaded
/// with the attach type that multi-uprobe links demand.
fn load_multi(
    ebpf: &Ebpf,
    globals: &Globals,
    names: &UprobePrograms<&'static str>,
) -> Result<UprobePrograms<OwnedFd>> {
    let mut object = aya_obj::Object::parse(OBJECT).context("failed to parse the BPF object")?;
    let (min_size, max_size) = (globals.min_size.to_ne_bytes(), globals.max_size.to_ne_bytes());
    object.patch_map_data(HashMap::from([
        ("MIN_SIZE", (&min_size[..], true)),
        ("MAX_SIZE", (&max_size[..], true)),
        ("AYA_LOG_LEVEL", (std::slice::from_ref(&globals.log_level), true)),
    ]))?;
    let definitions = std::mem::take(&mut object.maps);
    let fds: HashMap<&str, i32> =
        ebpf.maps().filter_map(|(name, map)| Some((name, map_data(map)?.fd().as_fd().as_raw_fd()))).collect();
    let text_sections = object.functions.keys().map(|(section, _)| *section).collect();
    object
        .relocate_maps(
            definitions.iter().filter_map(|(name, map)| Some((name.as_str(), *fds.get(name.as_str())?, map))),
            &text_sections,
        )
        .context("failed to relocate the BPF object's maps")?;
    object.relocate_calls(&text_sections).context("failed to relocate the BPF object's calls")?;
    object.sanitize_functions(aya::features());
    let load = |name: &'static str| -> Result<OwnedFd> {
        let program =
            object.programs.get(name).ok_or_else(|| anyhow!("the BPF object has no program {name}"))?;
        let function = &object.functions[&program.function_key()];
        bpf::load_uprobe_multi(&UprobeProgram {
            name,
            instructions: &function.instructions,
            license: &program.license,
        })
        .with_context(|| format!("failed to load the BPF program {name}"))
    };
    Ok(UprobePrograms {
        allocate_enter: load(names.allocate_enter)?,
        allocate_return: load(names.allocate_return)?,
        free_enter: load(names.free_enter)?,
    })
}

/// The data behind a map of any kind that the object has.
pub fn map_data(map: &Map) -> Option<&MapData> {
    match map {
        Map::Array(data) | Map::HashMap(data) | Map::PerCpuArray(data) | Map::RingBuf(data) => Some(data),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use leakprobe_common::ABI_VERSION;
    use object::{Endianness, Object as _, ObjectSection as _, ObjectSymbol as _, elf, read::elf::ElfFile64};

    /// The version that an object was compiled with.
    fn version(object: &[u8]) -> u32 {
        let object: ElfFile64<'_, Endianness> = ElfFile64::parse(object).expect("an ELF file");
        assert_eq!(object.elf_header().e_machine.get(Endianness::Little), elf::EM_BPF);
        let symbol = object.symbol_by_name("LEAKPROBE_ABI").expect("the version");
        let section = object.section_by_index(symbol.section_index().expect("defined")).expect("there");
        let bytes = section.data_range(symbol.address(), 4).expect("readable").expect("within the section");
        u32::from_le_bytes(bytes.try_into().expect("4 bytes"))
    }

    #[test]
    fn the_committed_objects_speak_this_version() {
        for object in [
            include_bytes!("../../ebpf/leakprobe.x86_64.bpf.o").as_slice(),
            include_bytes!("../../ebpf/leakprobe.aarch64.bpf.o").as_slice(),
        ] {
            assert_eq!(version(object), ABI_VERSION, "rebuild them: cargo xtask build-ebpf");
        }
    }
}
