//! What /proc tells of a running process.

use std::fs;

use anyhow::Context as _;

/// The most memory that a process has had resident so far, bytes.
pub fn peak_resident_bytes(pid: u32) -> anyhow::Result<u64> {
    let path = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&path).with_context(|| format!("failed to read {path}"))?;
    let kib = number_after(&text, "VmHWM:").with_context(|| format!("failed to find VmHWM in {path}"))?;
    Ok(kib * 1024)
}

/// The CPU time that all threads of a process have used so far, in user and kernel mode, seconds.
pub fn cpu_seconds(pid: u32) -> anyhow::Result<f64> {
    let path = format!("/proc/{pid}/stat");
    let text = fs::read_to_string(&path).with_context(|| format!("failed to read {path}"))?;
    let ticks = cpu_ticks(&text).with_context(|| format!("failed to find CPU times in {path}"))?;
    // SAFETY: sysconf has no preconditions.
    let per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    Ok(ticks as f64 / per_second as f64)
}

/// What the kernel says of each open file of a process, as /proc/PID/fdinfo has it.
pub fn open_file_facts(pid: u32) -> anyhow::Result<Vec<String>> {
    let folder = format!("/proc/{pid}/fdinfo");
    let entries = fs::read_dir(&folder).with_context(|| format!("failed to read {folder}"))?;
    // A file that was closed meanwhile is none.
    Ok(entries.filter_map(|entry| fs::read_to_string(entry.ok()?.path()).ok()).collect())
}

/// Objects of which a process has mapped code.
pub fn mapped_objects(pid: u32) -> anyhow::Result<usize> {
    let path = format!("/proc/{pid}/maps");
    let text = fs::read_to_string(&path).with_context(|| format!("failed to read {path}"))?;
    let mut objects: Vec<&str> = text
        .lines()
        .filter(|line| line.split(' ').nth(1).is_some_and(|rights| rights.contains('x')))
        .filter_map(|line| line.find('/').map(|at| &line[at..]))
        .collect();
    objects.sort_unstable();
    objects.dedup();
    Ok(objects.len())
}

/// The number that follows a name at the beginning of a line.
pub fn number_after(text: &str, name: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    rest.split_whitespace().next()?.parse().ok()
}

/// `utime` + `stime`: the 14th and 15th fields, the second of which may contain blanks and brackets.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let mut after_name = stat.rsplit_once(')')?.1.split_whitespace();
    let user: u64 = after_name.nth(11)?.parse().ok()?;
    let system: u64 = after_name.next()?.parse().ok()?;
    Some(user + system)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_found_behind_any_name() {
        let stat = "12 (a) b (c) S 1 12 12 0 -1 4194304 90 0 1 0 250 17 4 3 20 0 1 0 100 0 0";
        assert_eq!(cpu_ticks(stat), Some(267));
        assert_eq!(cpu_ticks("12 (a"), None);
    }

    #[test]
    fn a_number_is_found_by_the_name_of_its_line() {
        let status = "VmPeak:\t  12 kB\nVmHWM:\t   66892 kB\nmemlock:\t7\n";
        assert_eq!(number_after(status, "VmHWM:"), Some(66_892));
        assert_eq!(number_after(status, "VmRSS:"), None);
    }
}
