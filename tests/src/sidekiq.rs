//! Sidekiq with a store of its own, whose jobs tell in a file what they did. Both end with the test.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use serde_json::json;

use crate::place;
use crate::program::Program;
use crate::ruby;
use crate::scratch::Scratch;
use crate::wait;

/// A running Sidekiq.
pub struct Sidekiq {
    program: Program,
    store: Store,
    told: Scratch,
    pushed: u64,
}

/// A job that is done, as its middleware saw it. Nanoseconds of the monotonic clock.
#[derive(Clone, Copy, Debug)]
pub struct Done {
    pub thread: u64,
    pub begin_ns: u64,
    pub end_ns: u64,
}

/// Redis on a port of its own.
struct Store {
    _program: Program,
    address: SocketAddr,
}

impl Store {
    fn start() -> Store {
        // Free a moment ago.
        let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|l| l.local_addr()).expect("a free port");
        let port = address.port().to_string();
        // It ends with the test, also with one that is killed.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "redis-server", "--port", &port, "--bind", "127.0.0.1"]);
        command.args(["--save", "", "--appendonly", "no"]);
        let store = Store { _program: Program::start(&mut command), address };
        wait::until("a store", || store.tell(&["PING"]));
        store
    }

    /// Has it do something, over a connection of its own, and returns the first line of its answer.
    fn tell(&self, command: &[&str]) -> Result<String, String> {
        let mut stream = TcpStream::connect(self.address).map_err(|e| e.to_string())?;
        let mut text = format!("*{}\r\n", command.len());
        command.iter().for_each(|part| text.push_str(&format!("${}\r\n{part}\r\n", part.len())));
        stream.write_all(text.as_bytes()).map_err(|e| e.to_string())?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).map_err(|e| e.to_string())?;
        if line.starts_with(['+', ':']) { Ok(line) } else { Err(line) }
    }
}

impl Sidekiq {
    /// Starts it with so many threads that take jobs.
    ///
    /// # Panics
    /// There is none.
    pub fn start(threads: u64) -> Sidekiq {
        place::require_root();
        let store = Store::start();
        let (place, told) = ruby::told(&format!("jobs-{}", store.address.port()));
        let fixture = |name: &str| ruby::place_of(&format!("tests/fixtures/ruby/{name}"));
        let mut command = ruby::program("sidekiq");
        command.args(["-e", "production", "-c", &threads.to_string(), "-r"]).arg(fixture("sidekiq.rb"));
        command.env("REDIS", format!("redis://{}/0", store.address)).env("JOBS", place);
        command.env("RUBYOPT", format!("-r{}", fixture("leash.rb").display())).process_group(0);
        let program = Program::start(&mut command);
        Sidekiq { program, store, told, pushed: 0 }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.program.pid()
    }

    /// Has it do jobs, each of which takes so many milliseconds, `sleep` or `spin`.
    ///
    /// # Panics
    /// The store does not take them.
    pub fn push(&mut self, how: &str, milliseconds: &[u64]) {
        for ms in milliseconds {
            self.pushed += 1;
            let job = json!({
                "class": "Job", "args": [how, ms], "retry": false, "queue": "default",
                "jid": format!("{:024x}", self.pushed), "created_at": 1.0, "enqueued_at": 1.0,
            });
            self.store.tell(&["LPUSH", "queue:default", &job.to_string()]).expect("the store takes jobs");
        }
    }

    /// The jobs that are done, in the order of their ends.
    ///
    /// # Panics
    /// It has told something else.
    pub fn done(&self) -> Vec<Done> {
        let of = |line: &str| {
            let numbers: Vec<u64> = line.split(' ').map(|word| word.parse().expect("a number")).collect();
            Done { thread: numbers[0], begin_ns: numbers[1], end_ns: numbers[2] }
        };
        fs::read_to_string(&self.told.0).expect("a file of our own").lines().map(of).collect()
    }

    /// Waits until all that it was told is done.
    pub fn settle(&self) -> Vec<Done> {
        wait::until("all jobs", || {
            let done = self.done();
            if done.len() as u64 == self.pushed {
                return Ok(done);
            }
            Err(format!("{} of {}: {:?}", done.len(), self.pushed, self.program.errors()))
        })
    }
}

impl Drop for Sidekiq {
    fn drop(&mut self) {
        // SAFETY: a system call without memory; the child, which leads its group, was not waited for: the id is its own.
        unsafe { libc::kill(-(self.pid() as i32), libc::SIGKILL) };
    }
}

/// How long threads were without a job between two, all together, before each of those after the first `earlier`.
///
/// # Panics
/// A thread did no job before.
pub fn between(jobs: &[Done], earlier: usize) -> u64 {
    let mut ends: BTreeMap<u64, u64> = BTreeMap::new();
    let mut between = 0;
    let mut in_order: Vec<(usize, &Done)> = jobs.iter().enumerate().collect();
    in_order.sort_by_key(|(_, job)| job.begin_ns);
    for (place, job) in in_order {
        let before = ends.insert(job.thread, job.end_ns);
        if place >= earlier {
            between += job.begin_ns - before.expect("a job before");
        }
    }
    between
}
