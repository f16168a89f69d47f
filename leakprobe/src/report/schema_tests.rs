//! The JSON form, to the letter, and that its documentation says what it is.

use super::json::{MAX_ARGUMENTS, MAX_CHARS, json};
use super::model::{Report, StackQuality};
use super::sample;
use leakprobe_common::Counter;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

const SCHEMA: &str = include_str!("../../../docs/report-schema.md");

/// The type of each field by its path, as the documentation's tables have it.
fn documented() -> BTreeMap<String, String> {
    let mut fields = BTreeMap::new();
    let mut paths = vec![String::new()];
    for line in SCHEMA.lines() {
        if line.starts_with('#') {
            paths = vec![String::new()];
        } else if let Some(list) = line.strip_prefix("Path: ") {
            paths = list.split(", ").map(|path| format!("{}.", path.trim_matches('`'))).collect();
        }
        let cells: Vec<_> = line.trim_matches('|').split('|').map(str::trim).collect();
        if let [field, kind, _] = cells.as_slice()
            && let Some(field) = field.strip_prefix('`').and_then(|field| field.strip_suffix('`'))
            && Counter::ALL.iter().all(|counter| counter.key() != field)
        {
            fields.extend(paths.iter().map(|path| (format!("{path}{field}"), (*kind).to_owned())));
        }
    }
    fields
}

/// The JSON types of each field by its path.
fn written(value: &Value, path: &str, fields: &mut BTreeMap<String, BTreeSet<&'static str>>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                // The one object whose key is a value: which state.
                if path == "processes[].state.exited" {
                    continue;
                }
                fields.entry(path.clone()).or_default().insert(type_name(value));
                written(value, &path, fields);
            }
        }
        Value::Array(values) => values.iter().for_each(|value| written(value, &format!("{path}[]"), fields)),
        _ => {}
    }
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// The JSON types that a documented type stands for.
fn type_names(kind: &str) -> BTreeSet<&'static str> {
    let one = |kind: &str| match kind {
        "null" => "null",
        "boolean" => "boolean",
        "number" => "number",
        "integer" => "integer",
        "string" => "string",
        kind if kind.starts_with("array of ") => "array",
        _ => "object",
    };
    kind.trim_end_matches(", optional").split(" or ").map(one).collect()
}

/// Reports that together have each field.
fn samples() -> [Value; 4] {
    use sample::{full, kernel, kernel_hostile, losses};
    [full(), losses(), kernel(), kernel_hostile()]
        .map(|report| serde_json::from_str(&json(&report).unwrap()).unwrap())
}

#[test]
fn the_schema_documents_each_field_and_no_other() {
    let mut fields = BTreeMap::new();
    samples().iter().for_each(|report| written(report, "", &mut fields));
    let documented = documented();
    assert_eq!(
        fields.keys().collect::<Vec<_>>(),
        documented.keys().collect::<Vec<_>>(),
        "left: what is written; right: what docs/report-schema.md says"
    );
    for (field, types) in &fields {
        let allowed = type_names(&documented[field]);
        assert!(types.is_subset(&allowed), "{field}: {types:?} is written, {allowed:?} is documented");
    }
}

/// The objects of a report by the path of what holds them.
fn objects<'a>(value: &'a Value, path: &str, found: &mut Vec<(String, &'a serde_json::Map<String, Value>)>) {
    match value {
        Value::Object(map) => {
            found.push((path.to_owned(), map));
            map.iter().for_each(|(key, value)| objects(value, &format!("{path}{key}."), found));
        }
        Value::Array(values) => {
            let path = format!("{}[].", path.trim_end_matches('.'));
            values.iter().for_each(|value| objects(value, &path, found));
        }
        _ => {}
    }
}

#[test]
fn a_key_that_can_be_missing_is_documented_as_optional() {
    let documented = documented();
    for report in &samples() {
        let mut found = Vec::new();
        objects(report, "", &mut found);
        for (path, map) in found {
            let of_it =
                documented.iter().filter_map(|(field, kind)| Some((field.strip_prefix(&path)?, kind)));
            for (key, kind) in of_it.filter(|(key, _)| !key.contains('.')) {
                assert!(map.contains_key(key) || kind.ends_with(", optional"), "{path}{key} is missing");
            }
        }
    }
}

/// The words that a field can have are in its row.
#[test]
fn the_schema_documents_each_word() {
    let samples = samples();
    let mut objects_of = Vec::new();
    samples.iter().for_each(|report| objects(report, "", &mut objects_of));
    let fields = [
        ("sites[].", "kind", 5),
        ("sites[].stack.", "quality", 5),
        ("kernel.", "tracepoints", 1),
        ("kernel.probed_functions[].", "how", 2),
        ("kernel.memory[].", "name", 7),
    ];
    for (path, field, words) in fields {
        let of_it = objects_of.iter().filter(|(of, _)| of == path);
        let values: BTreeSet<_> = of_it.filter_map(|(_, map)| map[field].as_str()).collect();
        let values: Vec<_> = values.into_iter().filter(|value| !value.contains('\u{1b}')).collect();
        assert_eq!(values.len(), words, "{field}: {values:?}");
        for value in values {
            let row = |line: &str| line.starts_with(&format!("| `{field}` | string |"));
            let is_documented = |line: &str| row(line) && line.contains(&format!("`{value}`"));
            assert!(SCHEMA.lines().any(is_documented), "{path}{field}: {value}");
        }
    }
}

#[test]
fn the_schema_documents_each_counter() {
    for counter in Counter::ALL {
        let row = format!("\n| `{}` | ", counter.key());
        assert_eq!(SCHEMA.matches(&row).count(), 1, "{row}");
    }
}

#[test]
fn the_schema_names_its_version_and_limits() {
    assert!(SCHEMA.contains(&format!("**version {}**", super::model::SCHEMA_VERSION)));
    for limit in [MAX_CHARS, MAX_ARGUMENTS] {
        assert!(SCHEMA.contains(&super::units::count(limit as u64)), "{limit}");
    }
}

#[test]
fn what_is_written_is_read_back_the_same() {
    for report in [sample::full(), sample::everyday(), sample::idle(), sample::kernel()] {
        let line = json(&report).unwrap();
        assert_eq!(serde_json::from_str::<Report>(&line).unwrap(), report);
        assert!(!line.contains('\n'));
    }
}

#[test]
fn strings_are_whole_but_bounded_and_control_characters_escaped() {
    let line = json(&sample::hostile()).unwrap();
    assert!(!line.contains(char::is_control));
    let read: Report = serde_json::from_str(&line).unwrap();
    assert_eq!(read.processes[0].name, "\x1b[31mred\n");
    assert_eq!(read.processes[0].command_line[1].chars().count(), MAX_CHARS);
    let frame = &read.sites[0].stack.frames[1];
    assert_eq!(frame.function.as_ref().unwrap().chars().count(), MAX_CHARS);
    assert_eq!(frame.file.as_ref().unwrap().chars().count(), MAX_CHARS);
    assert_eq!(read.sites[0].stack.frames[4].address, u64::MAX);
}

#[test]
fn strings_of_the_kernels_are_bounded_too_and_numbers_have_ends() {
    let mut report = sample::kernel_hostile();
    report.sites[1].contradiction = Some("c".repeat(MAX_CHARS + 1));
    let line = json(&report).unwrap();
    assert!(!line.contains(char::is_control));
    let read: Report = serde_json::from_str(&line).unwrap();
    let caches = &read.kernel.as_ref().unwrap().caches;
    let growth = (caches[2].growth_bytes_per_minute, caches[2].slabinfo_bytes_per_minute);
    assert_eq!(growth, (0.0, Some(0.0)));
    assert_eq!((caches[2].live_objects, caches[2].slabinfo_change), (u64::MAX, Some(i64::MIN)));
    assert_eq!(caches[0].name, report.sites[0].allocator);
    let site = &read.sites[1];
    for text in [&caches[1].name, &site.made_by[0].name, site.contradiction.as_ref().unwrap()] {
        assert_eq!(text.chars().count(), MAX_CHARS);
    }
}

#[test]
fn what_is_only_for_the_text_or_not_there_is_not_written() {
    let mut report = sample::everyday();
    report.verbose = true;
    let line = json(&report).unwrap();
    for key in ["verbose", "kernel", "made_by", "contradiction", "probes"] {
        assert!(!line.contains(&format!("\"{key}\":")), "{key}");
    }
}

#[test]
fn the_kernels_sample_balances() {
    assert!(sample::kernel().ledger.balanced());
    assert_eq!(sample::kernel().ledger.lost(), 0);
}

#[test]
fn too_many_arguments_and_numbers_without_end_do_not_get_through() {
    let mut report = sample::everyday();
    report.processes[0].command_line = vec!["a".to_owned(); MAX_ARGUMENTS + 1];
    report.processes[0].name = "x".repeat(MAX_CHARS + 1);
    report.elapsed_seconds = f64::NAN;
    report.totals.growth_bytes_per_minute = f64::INFINITY;
    report.sites[0].growth_bytes_per_minute = f64::NEG_INFINITY;
    report.sites[0].median_seconds = f64::NAN;
    let read: Report = serde_json::from_str(&json(&report).unwrap()).unwrap();
    assert_eq!(read.processes[0].command_line.len(), MAX_ARGUMENTS);
    assert_eq!(read.processes[0].name.chars().count(), MAX_CHARS);
    let site = &read.sites[0];
    assert_eq!(
        [
            read.elapsed_seconds,
            read.totals.growth_bytes_per_minute,
            site.growth_bytes_per_minute,
            site.median_seconds
        ],
        [0.0; 4]
    );
}

/// A report in JSON, with a line break before each key for the eye.
#[test]
fn a_report_in_json() {
    let mut report = sample::losses();
    report.sites = sample::everyday().sites;
    report.sites.truncate(1);
    report.sites[0].stack.quality = StackQuality::Partial;
    report.sites[0].stack.frames.truncate(1);
    insta::assert_snapshot!(json(&report).unwrap().replace(",\"", ",\n\""), @r#"
{"version":1,
"generator":"leakprobe 0.1.0",
"sequence":61,
"is_final":true,
"time":"2026-01-12T03:12:04Z",
"elapsed_seconds":300.4,
"since_last_seconds":5.0,
"older_seconds":30.0,
"warnings":[{"kind":"block_map_full",
"text":"812 allocations not recorded: the map of outstanding blocks was full; raise --max-blocks, or leave out small ones with --min-size"},{"kind":"stack_map_full",
"text":"40 blocks recorded without a stack: the stack table was full; raise --max-stacks"},{"kind":"recursion_misses",
"text":"6 runs of the BPF program free_enter skipped by the kernel: another one was running on that CPU; stop other tracers of this process"}],
"processes":[{"pid":1298,
"name":"api-server",
"command_line":["/usr/local/bin/api-server",
"--listen",
"0.0.0.0:8080",
"--motd",
"it's up",
"--workers",
"8"],
"state":{"exited":"signal 9"},
"programs":1,
"live_bytes":35756441,
"live_blocks":8704,
"survivor_bytes":32610713,
"survivor_blocks":7936,
"growth_bytes_per_minute":7151288.0,
"vm_size_bytes":{"now":1299227607,
"change":67108864},
"vm_rss_bytes":null,
"vm_data_bytes":{"now":421527552,
"change":67108864},
"threads":{"now":12,
"change":4},
"open_files":{"now":87,
"change":0}}],
"totals":{"live_bytes":36805017,
"live_blocks":8705,
"survivor_bytes":33659289,
"survivor_blocks":7937,
"growth_bytes":524288,
"growth_bytes_per_minute":6279168.0,
"allocated_blocks":9990,
"allocated_bytes":41104178,
"freed_blocks":1285,
"freed_bytes":4299161},
"sites":[{"rank":1,
"pid":1298,
"kind":"heap",
"allocator":"glibc",
"live_bytes":31457280,
"live_blocks":7680,
"survivor_bytes":28311552,
"survivor_blocks":6912,
"growth_bytes":524288,
"growth_bytes_per_minute":6291456.0,
"oldest_seconds":299.0,
"median_seconds":151.5,
"allocated_blocks":7680,
"allocated_bytes":31457280,
"freed_blocks":0,
"freed_bytes":0,
"stack":{"id":"00000000000a11ce",
"quality":"partial",
"frames":[{"address":94355077409296,
"function":"string_copy",
"function_offset":42,
"file":"src/string.h",
"line":31,
"inlined":true,
"object":"/usr/local/bin/api-server",
"object_address":76304,
"unknown":null}]}}],
"sites_with_survivors":87,
"ledger":{"allocations":{"hits":10814,
"outcomes":[{"name":"recorded",
"count":9990,
"lost":false},{"name":"failed",
"count":10,
"lost":false},{"name":"nested",
"count":0,
"lost":false},{"name":"block_map_full",
"count":812,
"lost":true}],
"in_flight":2},
"frees":{"hits":1303,
"outcomes":[{"name":"freed",
"count":1285,
"lost":false},{"name":"free_null",
"count":5,
"lost":false},{"name":"free_unknown",
"count":10,
"lost":false}],
"in_flight":0},
"records":{"hits":9990,
"outcomes":[{"name":"outstanding",
"count":8705,
"lost":false},{"name":"freed",
"count":1285,
"lost":false}],
"in_flight":0},
"remarks":[{"name":"stack_truncated",
"count":2048,
"lost":false},{"name":"stack_map_full",
"count":40,
"lost":true}],
"recursion_misses":[{"name":"free_enter",
"count":6,
"lost":true}]}}
"#);
}
