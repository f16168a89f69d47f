//! From the functions that were found in an object to the probes that go into it. Pure.

use leakprobe_common::{Cookie, NO_REGISTER, link_state};

use super::{
    attach::PlannedProbe,
    plan::{self, Execution, Placement},
};
use crate::{
    report::model::ProbeRow,
    target::{discovery::FoundObject, symbols::Function},
};

/// Whether probes may be moved to where the kernel emulates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freedom {
    /// At the best instruction.
    Best,
    /// At the symbol, as other tools do; for comparison.
    Symbol,
}

/// The probe of each function, and how it is reported. `throwing`: of those that may throw, too.
pub fn assign(
    pid: u32,
    found: &FoundObject,
    freedom: Freedom,
    throwing: bool,
) -> Vec<(PlannedProbe, ProbeRow)> {
    let functions = found.functions.iter().filter(|function| throwing || !function.role.throws);
    functions.map(|function| one(pid, found, function, freedom)).collect()
}

fn one(pid: u32, found: &FoundObject, function: &Function, freedom: Freedom) -> (PlannedProbe, ProbeRow) {
    let arguments = function.role.arguments();
    let request = function.request(&arguments);
    let placement = match freedom {
        Freedom::Best => plan::place(&request),
        Freedom::Symbol => plan::at_symbol(&request),
    };
    let register = |argument: Option<u8>| {
        argument
            .and_then(|wanted| arguments.iter().position(|&argument| argument == wanted))
            .map_or(NO_REGISTER, |position| placement.registers[position])
    };
    let role = function.role;
    let cookie = Cookie::new(
        role.call,
        register(role.size),
        register(role.count),
        register(role.pointer),
        found.family_index,
        found.family.zero_frees,
    );
    let cookie = if placement.return_displaced { cookie.return_displaced() } else { cookie };
    let cookie = if found.freed_elsewhere { cookie.freed_elsewhere() } else { cookie };
    let Placement { offset, execution, instruction, .. } = placement;
    let cookie = match function.state {
        Some(state) => {
            let place = state.wrapping_add(link_state::OFFSET);
            let behind = place.wrapping_sub(function.address.wrapping_add(offset)).cast_signed();
            // An object's code and data are within 2 GiB: instructions refer to one from the other.
            Cookie::code_change(i32::try_from(behind).unwrap_or(0))
        }
        None => cookie,
    };
    let file_offset = function.file_offset + offset;
    let (single_stepped, reason) = match execution {
        Execution::Emulated => (false, None),
        Execution::SingleStepped(reason) => (true, Some(reason)),
    };
    let row = ProbeRow {
        pid,
        allocator: found.family.name.to_owned(),
        symbols: function.symbols.iter().map(|&symbol| symbol.to_owned()).collect(),
        object: found.object.path.to_string_lossy().into_owned(),
        file_offset,
        symbol_offset: offset,
        instruction,
        single_stepped,
        reason,
        returns: role.returns(),
    };
    (PlannedProbe { file_offset, cookie }, row)
}
