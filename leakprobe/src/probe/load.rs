//! Loading the BPF object: aya makes the maps and the tracepoint programs; the uprobe programs are loaded
//! for multi-uprobe links where the kernel has them, which aya 0.14 does not do.

mod births;
pub mod object;
pub mod preallocate;

use std::{
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::Path,
    time::Duration,
};

use self::{
    births::{BORN, BornLink, NEW_TASK, NewTask},
    object::Relocated,
};
use super::{
    cookies,
    features::{self, Mechanism},
    inherited::Definitions,
    tables,
};
use crate::sys::{bpf::program::UPROBE_MULTI, limits::LockedMemory};
use anyhow::{Context as _, Result, anyhow};
use aya::{
    Ebpf, EbpfLoader, VerifierLogLevel,
    maps::{Map, MapData},
    programs::{Program, ProgramError, RawTracePoint, UProbe},
};
use leakprobe_common::Unwinding;

#[cfg(target_arch = "x86_64")]
static OBJECT: &[u8] = aya::include_bytes_aligned!("../../ebpf/leakprobe.x86_64.bpf.o");
#[cfg(target_arch = "aarch64")]
static OBJECT: &[u8] = aya::include_bytes_aligned!("../../ebpf/leakprobe.aarch64.bpf.o");

/// The programs that follow the life of processes, and the raw tracepoint of each.
const LIFECYCLE: [(&str, &str); 3] = [
    ("process_exec", "sched_process_exec"),
    ("process_fork", NEW_TASK),
    ("thread_exit", "sched_process_exit"),
];

/// The program at the end of each system call of the mmap family.
const RANGE_EXIT: &str = "range_exit";

/// The system calls of the mmap family, those that give ranges back first, and the program at each one's entry. Walking a
/// stack by tables there takes the thread's registers, which the kernel hands out where it has BTF.
fn range_programs() -> [(&'static str, &'static str); 4] {
    let looped = features::has_loop() && Path::new("/sys/kernel/btf/vmlinux").exists();
    let either = |looped_name, name| if looped { looped_name } else { name };
    [
        ("munmap", "munmap_enter"),
        ("mremap", either("mremap_looped", "mremap_enter")),
        ("brk", either("brk_looped", "brk_enter")),
        ("mmap", either("mmap_looped", "mmap_enter")),
    ]
}

/// Bytes of the ring buffer of copied stacks: 27 of them, which come when a program opens a library.
const FEW_COPIES: u32 = 1 << 20;
/// The same where a share of all stacks is copied, and where programs begin that are not described yet: with `--follow`.
const MANY_COPIES: u32 = 1 << 24;

/// Processes that the programs have room for: `TARGETS`.
const MAX_TARGETS: u32 = 4096;

/// What the user may set before loading.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Smallest block recorded, bytes.
    pub min_size: u64,
    /// Largest block recorded, bytes.
    pub max_size: u64,
    /// Capacity of the map of outstanding blocks.
    pub max_blocks: u32,
    /// Whether maps must not grow while programs run: see [`super::features::maps_on_demand`].
    pub preallocate: bool,
    /// Capacity of the stack table.
    pub max_stacks: u32,
    /// How stacks are unwound.
    pub unwinding: Unwinding,
    /// Where not 0: one stack in so many is copied.
    pub copied_one_in: u32,
    /// Chunks of unwind rows that there is room for.
    pub row_chunks: u32,
    /// Processes that may be profiled.
    pub targets: u32,
    /// Whether the mmap family is followed.
    pub ranges: bool,
    /// Whether children are.
    pub follow: bool,
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
    /// At return instructions of those that have no return probe.
    pub allocate_leave: T,
    /// At the entry of functions that take one back.
    pub free_enter: T,
}

impl<T: Copy> UprobePrograms<T> {
    /// All of them.
    fn all(&self) -> [T; 4] {
        [self.allocate_enter, self.allocate_return, self.allocate_leave, self.free_enter]
    }
}

/// The loaded object.
pub struct Loaded {
    /// Maps, and the programs that aya attaches.
    pub ebpf: Ebpf,
    /// The uprobe programs loaded for multi-uprobe links; `None` where aya's own are used.
    pub multi: Option<UprobePrograms<OwnedFd>>,
    /// With `--follow`: what defines events that are inherited.
    pub inherited: Option<Definitions>,
    born: Option<BornLink>,
    /// How probes are attached.
    pub mechanism: Mechanism,
    /// Whether the kernel calls each step of a walk.
    looped: bool,
    /// On the mmap family; `None` where that is not followed.
    pub ranges: Option<RangePrograms>,
}

/// The programs on the tracepoints of the mmap family.
pub struct RangePrograms {
    /// By system call, those that give ranges back first: at its entry.
    pub entries: Vec<(&'static str, OwnedFd)>,
    /// At the end of each.
    pub exit: OwnedFd,
}

impl Loaded {
    /// Names of the uprobe programs that are attached.
    pub fn names(&self, floor: bool) -> UprobePrograms<&'static str> {
        program_names(floor, self.looped)
    }

    /// The programs that are attached, with their names.
    pub fn programs(&self, floor: bool) -> Vec<(&'static str, BorrowedFd<'_>)> {
        let lifecycle = LIFECYCLE.into_iter().filter_map(|(name, _)| match self.ebpf.program(name)? {
            Program::RawTracePoint(program) => Some((name, program.fd().ok()?.as_fd())),
            _ => None,
        });
        let born = self.born.iter().map(|born| (BORN, born.program.as_fd()));
        let ranges = self.ranges.iter().flat_map(|ranges| {
            let entries = range_programs().into_iter().zip(&ranges.entries);
            let entries = entries.map(|((_, name), (_, program))| (name, program.as_fd()));
            entries.chain([(RANGE_EXIT, ranges.exit.as_fd())])
        });
        self.uprobe_programs(floor).into_iter().chain(lifecycle).chain(born).chain(ranges).collect()
    }

    fn uprobe_programs(&self, floor: bool) -> Vec<(&'static str, BorrowedFd<'_>)> {
        let names = program_names(floor, self.looped);
        let names = names.all();
        match self.multi.as_ref().or_else(|| Some(self.inherited.as_ref()?.programs())) {
            Some(fds) => {
                let UprobePrograms { allocate_enter, allocate_return, allocate_leave, free_enter } = fds;
                let fds = [allocate_enter, allocate_return, allocate_leave, free_enter];
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
pub fn program_names(floor: bool, looped: bool) -> UprobePrograms<&'static str> {
    if floor {
        UprobePrograms {
            allocate_enter: "floor_enter",
            allocate_return: "floor_return",
            allocate_leave: "floor_enter",
            free_enter: "floor_enter",
        }
    } else {
        UprobePrograms {
            allocate_enter: "allocate_enter",
            allocate_return: if looped { "allocate_looped" } else { "allocate_return" },
            allocate_leave: if looped { "leave_looped" } else { "allocate_leave" },
            free_enter: "free_enter",
        }
    }
}

/// Creates the maps and loads the programs.
///
/// # Errors
/// What the kernel or its verifier said.
pub fn load(settings: &Settings, mechanism: Mechanism) -> Result<Loaded> {
    let _limit = LockedMemory::unlimited();
    let globals = Globals::new(settings, mechanism)?;
    let mut ebpf = create(settings, &globals)?;
    let is_born_by_record = matches!(globals.new_task, Some(NewTask::Record { .. }));
    for (name, tracepoint) in LIFECYCLE.into_iter().filter(|(_, at)| !(is_born_by_record && *at == NEW_TASK))
    {
        load_one::<RawTracePoint>(&mut ebpf, &globals, name, RawTracePoint::load)?;
        program::<RawTracePoint>(&mut ebpf, name)?
            .attach(tracepoint)
            .with_context(|| format!("failed to attach {name} to the raw tracepoint {tracepoint}"))?;
    }
    let looped = features::has_loop();
    let names = program_names(settings.floor, looped);
    let relocated = || Relocated::new(OBJECT, &ebpf, &globals.bytes());
    let ranges = settings.ranges.then(|| load_ranges(&relocated()?)).transpose()?;
    let with_cookies = mechanism != Mechanism::PerfEventByAddress;
    let inherited = settings.follow.then(|| {
        let object = relocated()?;
        let programs = UprobePrograms {
            allocate_enter: object.load(names.allocate_enter, 0)?,
            allocate_return: object.load(names.allocate_return, 0)?,
            allocate_leave: object.load(names.allocate_leave, 0)?,
            free_enter: object.load(names.free_enter, 0)?,
        };
        Definitions::new(programs, with_cookies)
    });
    let inherited = inherited.transpose()?;
    let born = is_born_by_record.then(|| BornLink::attach(relocated()?.load(BORN, 0)?, with_cookies));
    let born = born.transpose()?;
    let multi = match mechanism {
        _ if settings.follow => None,
        Mechanism::Multi => {
            let object = relocated()?;
            Some(UprobePrograms {
                allocate_enter: object.load(names.allocate_enter, UPROBE_MULTI)?,
                allocate_return: object.load(names.allocate_return, UPROBE_MULTI)?,
                allocate_leave: object.load(names.allocate_leave, UPROBE_MULTI)?,
                free_enter: object.load(names.free_enter, UPROBE_MULTI)?,
            })
        }
        Mechanism::PerfEvent | Mechanism::PerfEventByAddress => {
            for name in names.all() {
                if program::<UProbe>(&mut ebpf, name)?.fd().is_err() {
                    load_one::<UProbe>(&mut ebpf, &globals, name, UProbe::load)?;
                }
            }
            None
        }
    };
    Ok(Loaded { ebpf, multi, inherited, born, mechanism, looped, ranges })
}

/// Loads the programs of the mmap family.
fn load_ranges(object: &Relocated) -> Result<RangePrograms> {
    let entries = range_programs().into_iter().map(|(call, program)| Ok((call, object.load(program, 0)?)));
    Ok(RangePrograms { entries: entries.collect::<Result<_>>()?, exit: object.load(RANGE_EXIT, 0)? })
}

/// Creates the maps.
fn create(settings: &Settings, globals: &Globals) -> Result<Ebpf> {
    let with_tables = matches!(settings.unwinding, Unwinding::Auto | Unwinding::Tables);
    let (child_offset, flags_offset) = globals.child_offsets();
    let mut loader = EbpfLoader::new();
    loader
        // No program uses kernel types, and aya takes longer to parse the kernel's BTF than for all the rest.
        .btf(None)
        // A program that is refused is loaded once more by `Relocated`, for the verifier's words.
        .verifier_log_level(VerifierLogLevel::DISABLE)
        .override_global("MIN_SIZE", &globals.min_size, true)
        .override_global("MAX_SIZE", &globals.max_size, true)
        .override_global("COOKIES_BY_ADDRESS", &globals.cookies_by_address, true)
        .override_global("AYA_LOG_LEVEL", &globals.log_level, true)
        .override_global("FOLLOW", &globals.follow, true)
        .override_global("CHILD_OFFSET", &child_offset, true)
        .override_global("FLAGS_OFFSET", &flags_offset, true)
        .map_max_entries(
            "COOKIES",
            if globals.cookies_by_address != 0 || settings.follow { cookies::ROOM } else { 1 },
        )
        .map_max_entries("KIN", if settings.follow { MAX_TARGETS } else { 1 })
        .map_max_entries("BLOCKS", settings.max_blocks)
        .map_max_entries("STACKS", settings.max_stacks)
        .override_global("UNWINDING", &globals.unwinding, true)
        .override_global("COPIED_ONE_IN", &globals.copied_one_in, true)
        .map_max_entries(
            "COPIES",
            if globals.copied_one_in != 0 || settings.follow { MANY_COPIES } else { FEW_COPIES },
        )
        .map_max_entries("SPACES", if with_tables { settings.targets * 2 + 1 } else { 1 })
        .map_max_entries("SPACE_OF", settings.targets)
        .map_max_entries("EPOCHS", settings.targets)
        .map_max_entries("PAGES", if with_tables { tables::MAX_PAGES } else { 1 })
        .map_max_entries("ROWS", if with_tables { settings.row_chunks } else { 1 })
        // One more: blocks whose stack was not kept have a site, too.
        .map_max_entries("SITES", settings.max_stacks.saturating_add(1));
    let preallocating = settings.preallocate.then(|| preallocate::object(OBJECT)).transpose()?;
    if settings.preallocate {
        loader.map_max_entries("THREADS", preallocate::THREADS);
    }
    let object = preallocating.as_ref().map_or(OBJECT, |object| object.bytes());
    // The error's text holds those of its sources already.
    loader.load(object).map_err(|error| {
        anyhow!(
            "failed to load the BPF object: {error}; if the kernel has too little memory for its maps \
             (before Linux 5.11, may lock too little: `ulimit -l`), lower --max-blocks ({}) or --max-stacks ({})",
            settings.max_blocks,
            settings.max_stacks
        )
    })
}

/// Has aya load a program; when it is refused, the error has the verifier's words.
fn load_one<P>(
    ebpf: &mut Ebpf,
    globals: &Globals,
    name: &str,
    load: impl Fn(&mut P) -> Result<(), ProgramError>,
) -> Result<()>
where
    for<'a> &'a mut P: TryFrom<&'a mut Program, Error = ProgramError>,
{
    match load(program::<P>(ebpf, name)?) {
        Ok(()) => Ok(()),
        Err(_) => {
            Relocated::new(OBJECT, ebpf, &globals.bytes())?.load(name, 0)?;
            // It is not refused: a signal has broken the verifier off, and of that aya says "invalid argument".
            load(program::<P>(ebpf, name)?).with_context(|| format!("failed to load the BPF program {name}"))
        }
    }
}

/// What the kernel makes of one program.
#[derive(Debug)]
pub struct Trial {
    /// Its name in the object.
    pub name: &'static str,
    /// Instructions that the verifier went through, and the time that loading took; or why it was refused.
    pub outcome: Result<(Option<u64>, Duration)>,
}

/// Loads each program that a session may need, one after the other, and attaches none.
///
/// # Errors
/// When the maps could not be made.
pub fn try_all(settings: &Settings, mechanism: Mechanism) -> Result<Vec<Trial>> {
    let _limit = LockedMemory::unlimited();
    let globals = Globals::new(settings, mechanism)?;
    let ebpf = create(settings, &globals)?;
    let object = Relocated::new(OBJECT, &ebpf, &globals.bytes())?;
    let names = program_names(settings.floor, features::has_loop());
    let uprobes = if mechanism == Mechanism::Multi { UPROBE_MULTI } else { 0 };
    let all = names.all().map(|name| (name, uprobes));
    let all = all.into_iter().chain(LIFECYCLE.map(|(name, _)| (name, 0))).chain([(BORN, 0)]);
    let ranges = range_programs().map(|(_, name)| name).into_iter().chain([RANGE_EXIT]);
    let all = all.chain(ranges.map(|name| (name, 0)));
    Ok(all
        .map(|(name, attach_type)| {
            let loaded = object.load_measured(name, attach_type);
            Trial { name, outcome: loaded.map(|(_, cost)| (cost.instructions, cost.time)) }
        })
        .collect())
}

/// One of aya's programs by name.
pub fn program<'a, P>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut P>
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program, Error = aya::programs::ProgramError>,
{
    Ok(ebpf.program_mut(name).ok_or_else(|| anyhow!("the BPF object has no program {name}"))?.try_into()?)
}

/// The constants that the verifier sees.
struct Globals {
    min_size: u64,
    max_size: u64,
    cookies_by_address: u32,
    unwinding: u32,
    copied_one_in: u32,
    log_level: u8,
    follow: u32,
    /// With `--follow`.
    new_task: Option<NewTask>,
}

impl Globals {
    fn new(settings: &Settings, mechanism: Mechanism) -> Result<Self> {
        Ok(Self {
            follow: settings.follow.into(),
            new_task: settings.follow.then(NewTask::find).transpose()?,
            min_size: settings.min_size,
            max_size: settings.max_size,
            cookies_by_address: (mechanism == Mechanism::PerfEventByAddress).into(),
            unwinding: settings.unwinding as u32,
            copied_one_in: settings.copied_one_in,
            // 0 switches aya-log off before the verifier sees it: the programs then contain no trace of it.
            log_level: if settings.diagnostics { aya_log::Level::Debug as u8 } else { 0 },
        })
    }

    fn child_offsets(&self) -> (u64, u64) {
        self.new_task.map_or((0, 0), NewTask::offsets)
    }

    fn bytes(&self) -> [(&'static str, Vec<u8>); 9] {
        let (child_offset, flags_offset) = self.child_offsets();
        [
            ("FOLLOW", self.follow.to_ne_bytes().to_vec()),
            ("CHILD_OFFSET", child_offset.to_ne_bytes().to_vec()),
            ("FLAGS_OFFSET", flags_offset.to_ne_bytes().to_vec()),
            ("MIN_SIZE", self.min_size.to_ne_bytes().to_vec()),
            ("MAX_SIZE", self.max_size.to_ne_bytes().to_vec()),
            ("COOKIES_BY_ADDRESS", self.cookies_by_address.to_ne_bytes().to_vec()),
            ("UNWINDING", self.unwinding.to_ne_bytes().to_vec()),
            ("COPIED_ONE_IN", self.copied_one_in.to_ne_bytes().to_vec()),
            ("AYA_LOG_LEVEL", vec![self.log_level]),
        ]
    }
}

/// The data behind a map of any kind that the object has.
pub fn map_data(map: &Map) -> Option<&MapData> {
    match map {
        Map::Array(data)
        | Map::HashMap(data)
        | Map::LruHashMap(data)
        | Map::PerCpuArray(data)
        | Map::RingBuf(data) => Some(data),
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

    const COMMITTED: [&[u8]; 2] = [
        include_bytes!("../../ebpf/leakprobe.x86_64.bpf.o"),
        include_bytes!("../../ebpf/leakprobe.aarch64.bpf.o"),
    ];

    /// Whether a program has a call of bpf_tail_call among its instructions, reached or not.
    fn has_tail_call(object: &[u8], program: &str) -> bool {
        let object: ElfFile64<'_, Endianness> = ElfFile64::parse(object).expect("an ELF file");
        let symbol = object.symbol_by_name(program).expect("the program");
        let section = object.section_by_index(symbol.section_index().expect("defined")).expect("there");
        let code = section.data_range(symbol.address(), symbol.size()).expect("readable").expect("within");
        code.chunks_exact(8).any(|instruction| instruction == [0x85, 0, 0, 0, 12, 0, 0, 0])
    }

    /// Without it, the kernel lets threads share such a program's stack (leakprobe-ebpf/src/private_stack.rs).
    #[test]
    fn programs_on_uprobes_refuse_a_private_stack() {
        for object in COMMITTED {
            for program in [
                "allocate_enter",
                "allocate_return",
                "allocate_looped",
                "allocate_leave",
                "leave_looped",
                "free_enter",
            ] {
                assert!(has_tail_call(object, program), "{program}");
            }
            assert!(!has_tail_call(object, "floor_enter"), "which has no stack");
        }
    }

    #[test]
    fn the_committed_objects_speak_this_version() {
        for object in COMMITTED {
            assert_eq!(version(object), ABI_VERSION, "rebuild them: cargo xtask build-ebpf");
        }
    }
}
