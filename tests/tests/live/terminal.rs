//! Where reports go: closed pipes and narrow terminals.

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;

use leakprobe_tests::victim::Victim;
use leakprobe_tests::{run, terminal, text};

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let mut victim = Victim::start("leak", &[]);
    victim.run("leak 10 64");
    for format in ["text", "json"] {
        let mut child =
            run::command(["--pid", &victim.pid().to_string(), "--interval", "100ms", "--format", format])
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .expect("failed to start leakprobe");
        let mut first = String::new();
        let mut lines = BufReader::new(child.stdout.take().expect("a piped output"));
        lines.read_line(&mut first).expect("failed to read a line");
        assert!(!first.is_empty(), "a first line of {format}");
        drop(lines);
        let Some(status) = run::wait(&mut child, run::patience()) else {
            let _ = child.kill();
            let _ = child.wait();
            panic!("leakprobe goes on without a reader of its {format}");
        };
        assert_eq!(status.code(), Some(0), "{format}");
        let said = std::io::read_to_string(child.stderr.take().expect("a piped error output")).expect("text");
        assert!(!said.contains("panicked") && !said.contains("roken pipe"), "{said}");
    }
    text::check_whole(victim.pid());
    victim.quit();
}

#[test]
fn a_terminal_of_40_columns_is_enough() {
    let mut victim = Victim::start("semantics", &[]);
    let pid = victim.pid();
    let number = pid.to_string();
    let words = ["--pid", &number, "--older", "0s", "--interval", "1s", "--duration", "3s", "--top", "50"];
    let mut command = run::command(words);
    let session = std::thread::spawn(move || terminal::run_in(40, 24, &mut command));
    while text::patched(pid).is_empty() {
        assert!(!session.is_finished(), "ended with no probe in: {:?}", session.join());
        std::thread::yield_now();
    }
    victim.run("rows");
    let (status, shown) = session.join().expect("a session that ends");
    assert_eq!(status.code(), Some(0), "{shown}");
    assert!(shown.contains("row_malloc"), "{shown}");
    for line in shown.lines().map(|line| plain(line.trim_end_matches('\r'))) {
        // A name or a path that is longer than what is left beside the margin can't be helped.
        let longest = line.split_whitespace().map(|word| word.chars().count()).max().unwrap_or(0);
        assert!(line.chars().count() <= 40 || longest > 30, "{} columns: {line:?}", line.chars().count());
    }
    text::check_whole(pid);
    victim.quit();
}

/// A line without the terminal's colours.
fn plain(line: &str) -> String {
    let mut text = String::new();
    let mut characters = line.chars();
    while let Some(character) = characters.next() {
        if character == '\u{1b}' {
            // ESC [ parameters letter
            characters.by_ref().skip(1).find(char::is_ascii_alphabetic);
        } else {
            text.push(character);
        }
    }
    text
}
