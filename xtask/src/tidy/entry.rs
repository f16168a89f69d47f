//! BPF entry points are one call each: what a probe does stands in a named function of a module. An empty
//! program, which is nothing but its result, passes: the benchmark measures traps with such ones.

use std::path::Path;

use super::Problem;

/// The file of the entry points, from the workspace's folder.
pub const FILE: &str = "leakprobe-ebpf/src/main.rs";

/// The attributes that make a function an entry point.
const ATTRIBUTES: [&str; 10] = [
    "uprobe",
    "uretprobe",
    "kprobe",
    "kretprobe",
    "tracepoint",
    "raw_tracepoint",
    "btf_tracepoint",
    "fentry",
    "fexit",
    "perf_event",
];

/// Checks that the body of each entry point is a single call or a number, and that there is one.
pub fn check(file: &Path, text: &str, problems: &mut Vec<Problem>) {
    let problem = |line, what| Problem { file: file.to_path_buf(), line, what };
    let mut entries = 0;
    let mut offset = 0;
    for (index, line) in text.split_inclusive('\n').enumerate() {
        offset += line.len();
        if !is_entry_attribute(line) {
            continue;
        }
        entries += 1;
        if !body(&text[offset..]).is_some_and(|body| is_single_call(body) || body.parse::<u32>().is_ok()) {
            problems.push(problem(
                index + 2,
                "this entry point is more than one call of a named function".into(),
            ));
        }
    }
    if entries == 0 {
        problems.push(problem(0, "no entry point found; is the list of attributes complete?".into()));
    }
}

/// `#[uprobe]` or `#[tracepoint(category = "...")]`.
fn is_entry_attribute(line: &str) -> bool {
    let Some(attribute) = line.trim().strip_prefix("#[").and_then(|rest| rest.strip_suffix(']')) else {
        return false;
    };
    ATTRIBUTES.contains(&attribute.split('(').next().unwrap_or(attribute))
}

/// What stands between the braces of the function that begins here.
fn body(text: &str) -> Option<&str> {
    let open = text.find('{')?;
    let mut depth = 0_usize;
    for (at, character) in text[open..].char_indices() {
        match character {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Some(text[open + 1..open + at].trim());
        }
    }
    None
}

/// `path::to(arguments)`, also in an `unsafe` block with its comment.
fn is_single_call(body: &str) -> bool {
    let body = body.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<String>();
    let body = body.trim();
    let unsafe_block = body.strip_prefix("unsafe").map(str::trim).and_then(|rest| rest.strip_prefix('{'));
    let call = unsafe_block.and_then(|rest| rest.strip_suffix('}')).unwrap_or(body).trim();
    let Some((path, arguments)) = call.split_once('(') else { return false };
    let is_path = path.split("::").all(|name| {
        !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    });
    is_path && arguments.ends_with(')') && !arguments.contains([';', '{', '}'])
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: [usize; 0] = [];

    fn lines(text: &str) -> Vec<usize> {
        let mut problems = Vec::new();
        check(Path::new(FILE), text, &mut problems);
        problems.into_iter().map(|problem| problem.line).collect()
    }

    #[test]
    fn a_single_call_passes() {
        assert_eq!(
            lines("#[uprobe]\npub fn malloc(ctx: ProbeContext) -> u32 {\n    pair::enter(&ctx, 1)\n}\n"),
            NONE
        );
        assert_eq!(lines("#[uprobe]\npub fn malloc(ctx: ProbeContext) -> u32 { enter(&ctx) }\n"), NONE);
        assert_eq!(lines("#[uprobe]\nfn floor(_ctx: ProbeContext) -> u32 {\n    0\n}\n"), NONE);
        let wrapped = "#[btf_tracepoint(function = \"x\")]\nfn f(ctx: C) -> i32 {\n    // SAFETY: y\n    unsafe { \
                       kernel::f(\n        ctx,\n    ) }\n}\n";
        assert_eq!(lines(wrapped), NONE);
    }

    #[test]
    fn logic_in_an_entry_point_is_found() {
        let condition =
            "fn other() {}\n#[uprobe]\nfn f(ctx: C) -> u32 {\n    if on() { enter(&ctx) } else { 0 }\n}\n";
        assert_eq!(lines(condition), [3]);
        let two = "#[uretprobe]\nfn f(ctx: C) -> u32 {\n    count(1);\n    leave(&ctx)\n}\n";
        assert_eq!(lines(two), [2]);
        assert_eq!(lines("#[uprobe]\nfn f(ctx: C) -> u32 {\n    let x = enter(&ctx);\n    x\n}\n"), [2]);
        assert_eq!(lines("#[uprobe]\nfn f(ctx: C) -> u32 {\n    LIMIT + 1\n}\n"), [2]);
    }

    #[test]
    fn no_entry_points_at_all_is_found() {
        assert_eq!(lines("fn other() {}\n"), [0]);
    }
}
