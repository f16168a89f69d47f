//! A return address is not the address of a call.

/// An address that a call pushed for its return: every frame of a recorded stack is one of these, the
/// innermost included, because stacks are taken at an allocator function's entry or return.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ReturnAddress(pub u64);

impl ReturnAddress {
    /// The address to look names and lines up at: the last byte of the call instruction.
    ///
    /// The return address itself is the instruction *behind* the call. That often belongs to the next
    /// source line, to another inlined function, or (behind a call that never returns, which the compiler
    /// may put last) to the next function. One byte before it lies inside the call on every architecture.
    pub fn lookup(self) -> u64 {
        self.0.saturating_sub(1)
    }
}
