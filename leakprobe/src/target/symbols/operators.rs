//! C++'s operators where they are not a known allocator's: a program's own, or those of the C++ library, which come to `malloc`.

use super::Allocator;
use crate::target::family::{Family, OPERATOR_NEW};

/// Leaves those to `malloc` that come to it and to `free`, where their blocks are seen at less cost: where the plain delete is
/// nothing but a jump to `free`, and has been left to that, as the C++ libraries have it.
pub(super) fn leave_to_malloc(allocators: &mut Vec<Allocator>, families: &[Family]) {
    let has_own_delete = |allocator: &Allocator| {
        allocator.functions.iter().any(|function| function.symbols.contains(&"_ZdlPv"))
    };
    allocators
        .retain(|allocator| families[allocator.family].name != OPERATOR_NEW || has_own_delete(allocator));
}
