//! Things that several test modules need: a folder of their own, compiled programs, children.

use std::{
    ffi::OsStr,
    fs,
    io::Read,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

/// A folder that goes away with the test.
pub struct Folder(pub PathBuf);

impl Folder {
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name =
            format!("leakprobe-target-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).unwrap();
        // As the kernel will print it.
        Self(path.canonicalize().unwrap())
    }

    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.0.join(name)
    }

    /// Compiles C (or assembly in it) into the file `name` of this folder.
    pub fn compile(&self, name: &str, source: &str, arguments: &[&str]) -> PathBuf {
        let (code, out) = (self.join(format!("{name}.c")), self.join(name));
        fs::write(&code, source).unwrap();
        let done = Command::new("cc").arg("-o").arg(&out).arg(&code).args(arguments).output().unwrap();
        assert!(done.status.success(), "cc failed: {}", String::from_utf8_lossy(&done.stderr));
        out
    }

    /// A copy of the `sleep` program under another name.
    pub fn sleep(&self, name: impl AsRef<OsStr>) -> PathBuf {
        let path = self.join(Path::new(name.as_ref()));
        fs::copy("/bin/sleep", &path).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A child that ends with the test.
pub struct Running(pub Child);

impl Running {
    pub fn start(program: impl AsRef<OsStr>, arguments: &[&str]) -> Self {
        Self::spawn(Command::new(program).args(arguments))
    }

    pub fn spawn(command: &mut Command) -> Self {
        let mut running = None;
        // A program that was just copied is busy while a child of another test, between its fork and its exec,
        // still holds the copy open for writing.
        until("the program can be started", || match command.stdin(Stdio::null()).spawn() {
            Ok(child) => running.insert(child).id() > 0,
            Err(e) if e.raw_os_error() == Some(libc::ETXTBSY) => false,
            Err(e) => panic!("failed to start {command:?}: {e}"),
        });
        Self(running.unwrap())
    }

    /// Starts a program that writes one byte when it is ready.
    pub fn start_and_wait(program: &Path, arguments: &[&str]) -> Self {
        let mut running = Self::spawn(Command::new(program).args(arguments).stdout(Stdio::piped()));
        let mut byte = [0];
        running.0.stdout.as_mut().unwrap().read_exact(&mut byte).unwrap();
        running
    }

    /// Starts a program that sleeps as soon as it is ready, and waits for that.
    pub fn start_and_settle(program: impl AsRef<OsStr>, arguments: &[&str]) -> Self {
        let running = Self::start(program, arguments);
        running.settle();
        running
    }

    /// Waits until it sleeps: a child is handed to its parent before the kernel has mapped its program.
    pub fn settle(&self) {
        let proc = PathBuf::from(format!("/proc/{}", self.pid()));
        until("the program sleeps", || {
            let stat = String::from_utf8_lossy(&fs::read(proc.join("stat")).unwrap()).into_owned();
            let asleep = stat.rsplit(')').next().unwrap().starts_with(" S ");
            asleep && !fs::read(proc.join("cmdline")).unwrap().is_empty()
        });
    }

    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    pub fn end(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end();
    }
}

/// Waits for something that is sure to happen.
pub fn until(what: &str, mut happened: impl FnMut() -> bool) {
    let start = Instant::now();
    while !happened() {
        assert!(start.elapsed() < Duration::from_secs(30), "waited in vain: {what}");
        thread::yield_now();
    }
}

pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}
