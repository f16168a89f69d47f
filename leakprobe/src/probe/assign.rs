//! From the functions that were found in an object to the probes that go into it. Pure.

use std::collections::BTreeSet;

use leakprobe_common::{Cookie, NO_REGISTER, link_state};

use super::{
    attach::PlannedProbe,
    plan::{self, Execution, Placement},
};
use crate::{
    report::model::ProbeRow,
    target::{discovery::FoundObject, leave::Leaves, symbols::Function},
};

/// Whether probes may be moved to where the kernel emulates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freedom {
    /// At the best instruction.
    Best,
    /// At the symbol, as other tools do; for comparison.
    Symbol,
}

/// The probes of an object's functions, and how each function's is reported. `throwing`: also of those that may throw and
/// need a return probe.
pub fn assign(
    pid: u32,
    found: &FoundObject,
    freedom: Freedom,
    throwing: bool,
) -> (Vec<PlannedProbe>, Vec<ProbeRow>) {
    let (mut probes, mut rows) = (Vec::new(), Vec::new());
    let mut leaves = BTreeSet::new();
    for function in &found.functions {
        match &function.leaves {
            Leaves::Unknown(_) if !throwing => continue,
            Leaves::At(at) => leaves.extend(at),
            Leaves::AtReturnProbe | Leaves::Unknown(_) => {}
        }
        let (probe, row) = one(pid, found, function, freedom);
        probes.push(probe);
        rows.push(row);
    }
    // Functions share them.
    probes.extend(leaves.into_iter().map(|file_offset| PlannedProbe { file_offset, cookie: Cookie::LEAVE }));
    (probes, rows)
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
    let (cookie, leaves) = match &function.leaves {
        Leaves::At(at) => {
            let size = if function.size > 0 { function.size } else { function.code.len() as u64 };
            (cookie.ending_at_instructions(size.saturating_sub(offset)), at.clone())
        }
        Leaves::AtReturnProbe | Leaves::Unknown(_) => (cookie, Vec::new()),
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
        leaves,
    };
    (PlannedProbe { file_offset, cookie }, row)
}
