//! The BPF object loaded without aya's programs: parsed by aya, its maps the ones that aya made, its programs
//! loaded by bpf(2) for whatever they are to be attached to.

use std::{
    collections::HashMap,
    ffi::CString,
    io,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
};

use anyhow::{Context as _, Result, anyhow, bail};
use aya::Ebpf;
use aya_obj::{Object, ProgramSection, generated::bpf_prog_type};

use super::map_data;
use crate::probe::features::lockdown_hint;
use crate::sys::bpf::program::{self, Cost, FunctionTypes, Program};

/// The object, its references to maps and functions resolved.
pub struct Relocated {
    object: Object,
    /// Types of its functions; `None` where the kernel does not take them.
    types: Option<OwnedFd>,
}

/// How the names of programs end that hand one of their functions to a helper.
const LOOPED: &str = "_looped";

/// Loads the types of an object's functions; `None` where the kernel does not take them.
fn types(object: &mut Object) -> Option<OwnedFd> {
    let btf = object.fixup_and_sanitize_btf(aya::features().btf()?).ok()??;
    program::load_types(&btf.to_bytes())
        .inspect_err(|error| log::debug!("failed to load types: {error}"))
        .ok()
}

impl Relocated {
    /// Parses an object anew, with the maps of `ebpf`, which was made of it, and with its globals by name.
    pub fn new(object: &[u8], ebpf: &Ebpf, globals: &[(&'static str, Vec<u8>)]) -> Result<Self> {
        let mut object = Object::parse(object).context("failed to parse the BPF object")?;
        object.patch_map_data(globals.iter().map(|(name, bytes)| (*name, (&bytes[..], true))).collect())?;
        let definitions = std::mem::take(&mut object.maps);
        let fd_of = |(name, map)| {
            let data =
                map_data(map).with_context(|| format!("the map {name} is of a kind that is not known"))?;
            Ok((name, data.fd().as_fd().as_raw_fd()))
        };
        let fds: HashMap<&str, i32> = ebpf.maps().map(fd_of).collect::<Result<_>>()?;
        let text_sections = object.functions.keys().map(|(section, _)| *section).collect();
        object
            .relocate_maps(
                definitions
                    .iter()
                    .filter_map(|(name, map)| Some((name.as_str(), *fds.get(name.as_str())?, map))),
                &text_sections,
            )
            .context("failed to relocate the BPF object's maps")?;
        object.relocate_calls(&text_sections).context("failed to relocate the BPF object's calls")?;
        object.sanitize_functions(aya::features());
        let types = types(&mut object);
        Ok(Self { object, types })
    }

    /// Loads a program for `attach_type` (0 where that does not matter).
    ///
    /// # Errors
    /// What the kernel said, with the verifier's last words.
    pub fn load(&self, name: &str, attach_type: u32) -> Result<OwnedFd> {
        self.with(name, attach_type, 0, program::load)
    }

    /// Loads a program for a function of the kernel's, as its BTF numbers it.
    ///
    /// # Errors
    /// As [`Relocated::load`].
    pub fn load_for_function(&self, name: &str, attach_type: u32, function: u32) -> Result<OwnedFd> {
        self.with(name, attach_type, function, program::load)
    }

    /// As [`Relocated::load`], and says what it took.
    ///
    /// # Errors
    /// As there.
    pub fn load_measured(&self, name: &str, attach_type: u32) -> Result<(OwnedFd, Cost)> {
        self.with(name, attach_type, 0, program::load_measured)
    }

    /// As [`Relocated::load_for_function`], and says what it took.
    ///
    /// # Errors
    /// As there.
    pub fn load_measured_for_function(
        &self,
        name: &str,
        attach_type: u32,
        function: u32,
    ) -> Result<(OwnedFd, Cost)> {
        self.with(name, attach_type, function, program::load_measured)
    }

    fn with<T>(
        &self,
        name: &str,
        attach_type: u32,
        kernel_type: u32,
        load: impl FnOnce(&Program<'_>) -> io::Result<T>,
    ) -> Result<T> {
        let found =
            self.object.programs.get(name).ok_or_else(|| anyhow!("the BPF object has no program {name}"))?;
        let kind = match found.section {
            ProgramSection::UProbe { .. }
            | ProgramSection::URetProbe { .. }
            | ProgramSection::KProbe
            | ProgramSection::KRetProbe => bpf_prog_type::BPF_PROG_TYPE_KPROBE,
            ProgramSection::FEntry { .. } | ProgramSection::FExit { .. } => {
                bpf_prog_type::BPF_PROG_TYPE_TRACING
            }
            ProgramSection::TracePoint => bpf_prog_type::BPF_PROG_TYPE_TRACEPOINT,
            ProgramSection::RawTracePoint => bpf_prog_type::BPF_PROG_TYPE_RAW_TRACEPOINT,
            ref other => bail!("the BPF program {name} is of a kind that is not loaded here: {other:?}"),
        };
        let license: &CString = &found.license;
        let function = &self.object.functions[&found.function_key()];
        let instructions = &function.instructions;
        let functions = function.func_info.func_info_bytes();
        let types = self.types.as_ref().filter(|_| name.ends_with(LOOPED));
        let types = types.map(|btf| FunctionTypes { btf: btf.as_fd(), functions: &functions });
        load(&Program { name, kind, attach_type, kernel_type, instructions, license, types })
            .with_context(|| format!("failed to load the BPF program {name}{}", lockdown_hint()))
    }
}
