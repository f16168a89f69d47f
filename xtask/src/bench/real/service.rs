//! Programs from packages, each with something to do.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};

use crate::{
    bench::victim,
    command,
    debian::{Evidence, Need},
};

/// What must be installed.
pub const NEEDS: &[Need] = &[
    need("redis-server", "redis-server"),
    need("redis-benchmark", "redis-tools"),
    need("nginx", "nginx"),
    need("ab", "apache2-utils"),
    need("mariadbd", "mariadb-server"),
    need("mariadb-slap", "mariadb-client"),
    need("node", "nodejs"),
    need("python3", "python3"),
];

const fn need(program: &'static str, package: &'static str) -> Need {
    Need { evidence: Evidence::Program(program), package, purpose: "a program whose stacks are looked at" }
}

/// A program under load.
pub struct Service {
    /// Its name.
    pub name: &'static str,
    /// One of so many stacks is looked at.
    pub one_in: u32,
    /// Prepares its folder, and gives the command that starts it there.
    command: fn(&Path) -> anyhow::Result<Command>,
    /// Succeeds when it is there; `None` where it has nothing to wait for.
    ready: Option<fn(&Path) -> Command>,
    /// Keeps it busy until it is stopped; `None` where it does so itself.
    load: Option<fn(&Path) -> Command>,
}

/// All of them.
pub const SERVICES: [Service; 5] = [
    Service {
        name: "redis-server",
        one_in: 64,
        command: |folder| {
            let mut redis = words("redis-server --port 0 --daemonize no --save 30 100 --appendonly yes");
            redis.args(["--dir".as_ref(), folder, "--unixsocket".as_ref(), &folder.join("socket")]);
            Ok(redis)
        },
        ready: Some(|folder| {
            let mut ping = with_socket(words("redis-cli"), "-s", folder);
            ping.arg("ping");
            ping
        }),
        load: Some(|folder| {
            with_socket(
                words(
                    "redis-benchmark -q -l -n 3000 -c 20 -r 100000 -t set,get,lpush,lrange_100,sadd,zadd,hset,mset",
                ),
                "-s",
                folder,
            )
        }),
    },
    Service {
        name: "nginx",
        one_in: 16,
        command: |folder| {
            let text = format!(
                "daemon off; master_process off; error_log {0}/error.log; pid {0}/pid; events {{}}\n\
                 http {{ access_log {0}/access.log; gzip on; gzip_min_length 1; gzip_types *;\n\
                 server {{ listen 127.0.0.1:{NGINX_PORT}; root {0}/files; }} }}\n",
                folder.display()
            );
            fs::create_dir_all(folder.join("files"))?;
            fs::write(folder.join("files/index.html"), "hello, world\n".repeat(2000))?;
            fs::write(folder.join("nginx.conf"), text)?;
            let mut nginx = words("nginx -c");
            nginx.arg(folder.join("nginx.conf"));
            Ok(nginx)
        },
        ready: Some(|_| words(&format!("ab -n 1 http://127.0.0.1:{NGINX_PORT}/"))),
        load: Some(|_| {
            let url = format!("http://127.0.0.1:{NGINX_PORT}/");
            words(&format!("ab -q -r -c 16 -t 600 -n 100000000 -H Accept-Encoding:gzip {url}"))
        }),
    },
    Service {
        name: "mariadbd",
        one_in: 32,
        command: |folder| {
            let mut install = words(
                "mariadb-install-db --no-defaults --auth-root-authentication-method=normal --user=root",
            );
            command::run(
                install.stdout(Stdio::null()).arg(format!("--datadir={}", folder.join("data").display())),
            )?;
            let mut mariadb = words("mariadbd --no-defaults --user=root --skip-networking");
            mariadb.arg(format!("--datadir={}", folder.join("data").display()));
            Ok(with_socket(mariadb, "--socket", folder))
        },
        ready: Some(|folder| {
            with_socket(words("mariadb-admin --no-defaults --user=root ping"), "--socket", folder)
        }),
        load: Some(|folder| {
            let slap = words(
                "mariadb-slap --no-defaults --user=root --auto-generate-sql --auto-generate-sql-load-type=mixed \
                 --auto-generate-sql-add-autoincrement --concurrency=8 --iterations=100000 --number-of-queries=4000",
            );
            with_socket(slap, "--socket", folder)
        }),
    },
    Service {
        name: "python3",
        one_in: 256,
        command: |folder| {
            fs::write(folder.join("load.py"), PYTHON)?;
            // Debian's own, not one that comes first on the PATH.
            let mut python = Command::new("/usr/bin/python3");
            python.arg(folder.join("load.py"));
            Ok(python)
        },
        ready: None,
        load: None,
    },
    Service {
        name: "node",
        one_in: 64,
        command: |folder| {
            fs::write(folder.join("load.js"), NODE)?;
            let mut node = words("node");
            node.arg(folder.join("load.js"));
            Ok(node)
        },
        ready: None,
        load: None,
    },
];

const NGINX_PORT: u16 = 18_473;

const PYTHON: &str = "\
import collections, json, random, re, threading, zlib
kept = collections.deque(maxlen=2000)
def work(depth):
    rows = [{'a': i, 'b': str(i) * 5, 'c': [i] * 9} for i in range(50)]
    text = json.dumps(rows)
    rows = sorted(json.loads(text), key=lambda row: -row['a'])
    re.sub(r'(\\d+)', lambda match: match.group(1) + 'x', text[:500])
    zlib.compress(text.encode())
    return rows if depth == 0 else work(depth - 1)
def forever():
    while True:
        kept.append(work(random.randint(0, 15)))
threading.Thread(target=forever, daemon=True).start()
forever()
";

const NODE: &str = "\
const kept = [];
const zlib = require('zlib');
function work(depth) {
  const o = {};
  for (let i = 0; i < 50; i++) o['k' + i] = Buffer.alloc(1000, i);
  const parsed = JSON.parse(JSON.stringify(o));
  return depth ? work(depth - 1) : parsed;
}
setInterval(() => {
  kept.push(work(Math.random() * 10 | 0));
  if (kept.length > 500) kept.shift();
  zlib.gzipSync(JSON.stringify(kept[0]));
  zlib.gzip(JSON.stringify(kept[0]), () => {});
  require('fs').readFile(__filename, () => {});
}, 1);
";

/// How long a program may take until it is there.
const PATIENCE: Duration = Duration::from_secs(60);
const BETWEEN_TRIES: Duration = Duration::from_millis(100);

/// A running program, and what keeps it busy; both are killed when this goes.
pub struct Running {
    program: Child,
    load: Option<Child>,
    folder: PathBuf,
}

impl Service {
    /// Starts it, and its load.
    pub fn start(&self) -> anyhow::Result<Running> {
        let folder = victim::folder().join(self.name);
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).with_context(|| format!("failed to create {}", folder.display()))?;
        let mut program = (self.command)(&folder)?;
        let log = fs::File::create(folder.join("log")).context("failed to create a log")?;
        let program = program.current_dir(&folder).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let shown = command::show(program);
        eprintln!("+ {shown}");
        let program = program.spawn().with_context(|| format!("failed to start `{shown}`"))?;
        let mut running = Running { program, load: None, folder };
        if let Some(ready) = self.ready {
            running.wait(ready)?;
        }
        if let Some(load) = self.load {
            let mut load = load(&running.folder);
            let load = load.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            eprintln!("+ {}", command::show(load));
            running.load = Some(load.spawn().context("failed to start the load")?);
        }
        Ok(running)
    }
}

impl Running {
    /// Its process ID.
    pub fn pid(&self) -> u32 {
        self.program.id()
    }

    fn wait(&mut self, ready: fn(&Path) -> Command) -> anyhow::Result<()> {
        let begun = Instant::now();
        while command::read(&mut ready(&self.folder)).is_err() {
            if let Some(status) = self.program.try_wait()? {
                bail!("it ended: {status}; see {}", self.folder.join("log").display());
            }
            if begun.elapsed() > PATIENCE {
                bail!("it does not answer `{}`", command::show(&ready(&self.folder)));
            }
            thread::sleep(BETWEEN_TRIES);
        }
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        for child in self.load.iter_mut().chain([&mut self.program]) {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A command of words without blanks; daemons are found where Debian puts them.
fn words(text: &str) -> Command {
    let mut words = text.split_whitespace();
    let program = words.next().unwrap_or_default();
    let daemon = Path::new("/usr/sbin").join(program);
    let mut command = if daemon.is_file() { Command::new(daemon) } else { Command::new(program) };
    command.args(words);
    command
}

/// Adds an option for the socket in a folder.
fn with_socket(mut command: Command, option: &str, folder: &Path) -> Command {
    command.arg(option).arg(folder.join("socket"));
    command
}
