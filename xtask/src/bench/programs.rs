//! How large the BPF programs are, by the kernel's account.

use std::process::Command;

use serde_json::Value;

use super::{
    process::{self, number_after},
    profiler::{NO_INTERVAL, Profiler},
    table::{Table, thousands},
    victim::Victim,
};
use crate::command;

/// Lists the programs of an attached leakprobe with the instructions that the verifier went through for each.
pub fn measure(table: &mut Table) -> anyhow::Result<()> {
    let victim = Victim::start()?;
    let profiler = Profiler::start(victim.pid(), &NO_INTERVAL)?;
    let mut programs: Vec<(u64, Option<u64>)> = process::open_file_facts(profiler.pid())?
        .iter()
        .filter(|facts| number_after(facts, "prog_type:").is_some())
        .filter_map(|facts| Some((number_after(facts, "prog_id:")?, number_after(facts, "verified_insns:"))))
        .collect();
    programs.sort_unstable();
    programs.dedup();
    let names = names();
    profiler.stop()?;
    table.title("instructions that the verifier went through (its limit is 1,000,000)");
    for (id, verified) in programs {
        let name = names
            .iter()
            .find(|program| program["id"].as_u64() == Some(id))
            .and_then(|program| program["name"].as_str());
        let name = name.map_or_else(|| format!("program {id}"), str::to_owned);
        // Kernels before 5.16 do not say.
        table.row(name, verified.map_or_else(|| "not known".into(), |count| thousands(count as f64)));
    }
    Ok(())
}

/// All BPF programs of the machine as bpftool lists them; none where it is not installed.
fn names() -> Vec<Value> {
    let listed = command::read(Command::new("bpftool").args(["--json", "prog", "show"]));
    listed.ok().and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default()
}
