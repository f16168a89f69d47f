//! The machine's registers as a probe finds them: the only code that differs between architectures.

#[cfg_attr(bpf_target_arch = "aarch64", path = "aarch64.rs")]
#[cfg_attr(not(bpf_target_arch = "aarch64"), path = "x86_64.rs")]
mod machine;

pub use machine::{RETURN_ADDRESS_BYTES, RETURN_ADDRESS_ON_STACK, Registers};
