//! leakprobe's development tasks: `cargo xtask --help`.

fn main() {}
