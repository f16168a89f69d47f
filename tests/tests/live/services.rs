//! Programs as people run them, from packages and with allocators from crates.io: a leak of known size in each.
//!
//! They do more than leak. So a leak is known by its blocks' size, which nothing else in them has.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, fs, thread};

use leakprobe_tests::probe::Probe;
use leakprobe_tests::report::{Report, Site};
use leakprobe_tests::victim::Victim;
use leakprobe_tests::{compile, pace, skip};

use crate::last;

/// The sites whose blocks have this size on average: in what follows, all of them have it.
fn sites_of_size(report: &Report, size: u64) -> Vec<&Site> {
    report
        .sites
        .iter()
        .filter(|site| site.live_blocks > 0 && site.live_bytes == site.live_blocks * size)
        .collect()
}

/// All blocks of a size are one site's, and it is of this allocator.
fn check_site<'report>(report: &'report Report, allocator: &str, blocks: u64, size: u64) -> &'report Site {
    let sites = sites_of_size(report, size);
    let [site] = sites[..] else { panic!("{} sites, not one{}", sites.len(), report.digest()) };
    assert_eq!((site.live_blocks, site.live_bytes), (blocks, blocks * size), "{}", report.digest());
    assert_eq!(site.allocator, allocator, "{}", report.digest());
    site
}

/// Nothing was lost, and nothing was freed by way of another allocator.
fn check_nothing_lost(report: &Report) {
    assert_eq!(report.ledger.lost(), 0, "{}", report.digest());
    assert!(report.mismatches.is_empty(), "{:?}{}", report.mismatches, report.digest());
}

/// A redis-server that writes nothing to a disk; killed when it goes out of scope.
struct Redis {
    server: Child,
    client: Option<UnixStream>,
    folder: PathBuf,
}

impl Redis {
    fn start(program: &Path) -> Redis {
        // The path of a socket has 107 bytes at most: not below the workspace, which may be deep.
        let folder = env::temp_dir().join(format!("leakprobe-redis.{}", std::process::id()));
        fs::create_dir_all(&folder).expect("failed to make a folder");
        let mut command = Command::new(program);
        command.args([
            "--port",
            "0",
            "--save",
            "",
            "--appendonly",
            "no",
            "--unixsocket",
            "socket",
            "--dir",
            ".",
        ]);
        let server = command.current_dir(&folder).stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        let server = server.expect("failed to start redis-server");
        let mut redis = Redis { server, client: None, folder };
        let deadline = Instant::now() + pace::patience(Duration::from_secs(60));
        while redis.client.is_none() {
            let ended = redis.server.try_wait().expect("failed to look at redis-server");
            assert!(ended.is_none() && Instant::now() < deadline, "redis-server does not listen: {ended:?}");
            thread::sleep(Duration::from_millis(10));
            redis.client = UnixStream::connect(redis.folder.join("socket")).ok();
        }
        redis
    }

    /// Sends a command and waits for the answer: what it does is done then.
    fn ask(&mut self, words: &[&str], answer: &str) {
        let mut text = format!("*{}\r\n", words.len());
        for word in words {
            text += &format!("${}\r\n{word}\r\n", word.len());
        }
        let client = self.client.as_mut().expect("a connection");
        client.write_all(text.as_bytes()).expect("failed to send a command");
        let mut said = vec![0; answer.len()];
        client.read_exact(&mut said).expect("failed to read an answer");
        assert_eq!(String::from_utf8_lossy(&said), answer, "{}", words[0]);
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

#[test]
fn values_in_redis_are_counted_as_they_come_and_go() {
    let Some(program) = skip::unless_installed("redis-server", "redis-server") else { return };
    let mut redis = Redis::start(&program);
    let mut probe = Probe::attach(redis.server.id(), &[]);
    let value = "v".repeat(3000);
    for number in 0..1000 {
        redis.ask(&["SET", &format!("key:{number:06}"), &value], "+OK\r\n");
    }
    // A string of redis (sds): a head of 5 bytes (its length and its room, 2 bytes each, and its kind), the
    // text, and a zero.
    let size = 5 + 3000 + 1;
    let report = probe.next_report();
    let site = check_site(&report, "jemalloc", 1000, size);
    assert_eq!((site.allocated_blocks, site.freed_blocks), (1000, 0), "{}", report.digest());
    for number in 0..400 {
        redis.ask(&["DEL", &format!("key:{number:06}")], ":1\r\n");
    }
    let reports = probe.finish();
    let site = check_site(last(&reports), "jemalloc", 600, size);
    assert_eq!((site.allocated_blocks, site.freed_blocks), (1000, 400), "{}", last(&reports).digest());
    check_nothing_lost(last(&reports));
}

/// Speaks the victims' protocol.
const PYTHON: &str = "\
import os, sys
kept = []
def keep(count, size):
    for _ in range(count):
        kept.append(bytearray(size))
print('ready', os.getpid(), flush=True)
for line in sys.stdin:
    words = line.split()
    if words[0] == 'quit':
        break
    elif words[0] == 'keep':
        keep(int(words[1]), int(words[2]))
    elif words[0] == 'drop':
        del kept[:int(words[1])]
    print('done', flush=True)
";

#[test]
fn byte_arrays_of_python_are_counted_as_they_come_and_go() {
    // Debian's own, not one that comes first on the PATH: with a path, PATH is not looked at.
    let Some(program) = skip::unless_installed("/usr/bin/python3", "python3") else { return };
    let mut victim = Victim::start_at(&program, &["-c", PYTHON]);
    let mut probe = Probe::attach(victim.pid(), &[]);
    victim.run("keep 700 5003");
    // A zero is behind the bytes. Above 512 bytes, Python asks malloc; its objects come from arenas of its own.
    let size = 5003 + 1;
    check_site(&probe.next_report(), "glibc", 700, size);
    victim.run("drop 300");
    let reports = probe.finish();
    let site = check_site(last(&reports), "glibc", 400, size);
    assert_eq!((site.allocated_blocks, site.freed_blocks), (700, 300), "{}", last(&reports).digest());
    check_nothing_lost(last(&reports));
    victim.quit();
}

/// Speaks the victims' protocol.
const NODE: &str = "\
const kept = [];
console.log('ready ' + process.pid);
require('readline').createInterface({ input: process.stdin }).on('line', (line) => {
  const [word, count, size] = line.split(' ');
  if (word === 'quit') process.exit(0);
  for (let i = 0; i < +count; i++) kept.push(Buffer.alloc(+size));
  console.log('done');
});
";

/// Keeps 300 buffers of 20,011 bytes, which nothing else in node has. Their bytes lie outside of V8's heap.
fn buffers_of_node(options: &[&str], check: impl FnOnce(&Report)) {
    let Some(program) = skip::unless_installed("node", "nodejs") else { return };
    let mut victim = Victim::start_at(&program, &[options, &["-e", NODE]].concat());
    let probe = Probe::attach(victim.pid(), &[]);
    victim.run("keep 300 20011");
    let reports = probe.finish();
    check(last(&reports));
    check_nothing_lost(last(&reports));
    victim.quit();
}

#[test]
fn buffers_of_interpreted_javascript_are_one_site() {
    buffers_of_node(&["--jitless", "--no-expose-wasm"], |report| {
        check_site(report, "glibc", 300, 20_011);
    });
}

/// The loop is compiled while it runs: the buffers come by way of several stacks, and nobody says how many.
#[test]
fn buffers_of_compiled_javascript_are_exact_in_sum() {
    buffers_of_node(&[], |report| {
        let sites = sites_of_size(report, 20_011);
        assert!(sites.iter().all(|site| site.allocator == "glibc"), "{}", report.digest());
        let blocks: u64 = sites.iter().map(|site| site.live_blocks).sum();
        assert_eq!(blocks, 300, "{}", report.digest());
    });
}

/// A C++ program that is linked to tcmalloc.
fn with_tcmalloc() -> Option<PathBuf> {
    let library = skip::unless_library("libtcmalloc_minimal.so.4", "libtcmalloc-minimal4")?;
    let program = compile::scratch().join(format!("objects-{}", std::process::id()));
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("victims/objects.cpp");
    let mut command = Command::new("c++");
    command.args(["-O1", "-g", "-fno-builtin", "-o"]).arg(&program).arg(source).arg(library);
    let status = command.status().expect("failed to run c++");
    assert!(status.success(), "failed to compile objects.cpp");
    Some(program)
}

#[test]
fn objects_from_a_linked_tcmalloc_are_exact() {
    let Some(program) = with_tcmalloc() else { return };
    let mut victim = Victim::start_at(&program, &[]);
    let probe = Probe::attach(victim.pid(), &[]);
    let truth = victim.run("objects 500").then(victim.run("plain 40"));
    let reports = probe.finish();
    let report = last(&reports);
    truth.check(report);
    assert!(report.sites.iter().all(|site| site.allocator == "tcmalloc"), "{}", report.digest());
    assert!(!report.warnings.iter().any(|warning| warning.kind == "operator_new"), "{:?}", report.warnings);
    check_nothing_lost(report);
    victim.quit();
    fs::remove_file(program).expect("failed to remove a victim");
}

/// As the crate names its functions, so that they stand beside the C library's.
const JEMALLOC: &str = "jemalloc (_rjem_)";

/// A victim of crates.io, at its start.
fn of_crates(name: &str) -> Option<Victim> {
    skip::unless_installed("cargo", "cargo")?;
    // jemalloc's build is one of make.
    skip::unless_installed("make", "make")?;
    Some(Victim::start_at(&compile::crate_victim(name), &[]))
}

/// What was taken from the C library is its own, and all else is the allocator's.
fn check_two(report: &Report, allocator: &str) {
    for site in &report.sites {
        let of_c = site.stack.has(&["*leak_from_the_c_library"]);
        assert_eq!(site.allocator, if of_c { "glibc" } else { allocator }, "{}", report.digest());
    }
    for lost in ["free_unknown", "missed_free", "abandoned"] {
        assert_eq!(report.ledger.count(lost), 0, "{lost}{}", report.digest());
    }
    check_nothing_lost(report);
}

fn check_crate(victim: &str, allocator: &str) {
    let Some(mut victim) = of_crates(victim) else { return };
    let probe = Probe::attach(victim.pid(), &[]);
    let truth = victim.run("rows");
    let reports = probe.finish();
    let report = last(&reports);
    truth.check(report);
    assert_eq!((truth.sum("blocks"), truth.sum("bytes")), (147, 710_886), "the victim's own books");
    check_two(report, allocator);
    victim.quit();
}

#[test]
fn rust_with_mimalloc_is_exact_beside_glibc() {
    check_crate("mimalloc_victim", "mimalloc");
}

#[test]
fn rust_with_jemalloc_is_exact_beside_glibc() {
    check_crate("jemalloc_victim", JEMALLOC);
}

/// jemalloc takes the memory for its blocks from glibc, in the midst of the call: the blocks are counted, and
/// what they lie in is not.
#[test]
fn blocks_of_jemalloc_inside_blocks_of_glibc_are_counted_once() {
    let Some(mut victim) = of_crates("jemalloc_victim") else { return };
    let probe = Probe::attach(victim.pid(), &[]);
    let truth = victim.run("nested").then(victim.run("rows"));
    let reports = probe.finish();
    let report = last(&reports);
    assert!(truth.number("note", "extents") > 0, "the victim's own books: {truth:?}");
    truth.check(report);
    check_two(report, JEMALLOC);
    victim.quit();
}
