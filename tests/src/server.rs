//! Servers of Ruby, Puma and Unicorn, that tell in a file what they did. They end with the test, and their workers too.

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;

use crate::http;
use crate::place;
use crate::program::Program;
use crate::ruby;
use crate::scratch::Scratch;
use crate::wait;

/// What Puma's control server wants to be asked with.
const TOKEN: &str = "live";

/// A running server.
pub struct Server {
    program: Program,
    pub address: SocketAddr,
    /// Of Puma's control server.
    control: Option<SocketAddr>,
    told: Scratch,
}

/// What the server has told.
#[derive(Clone, Debug, Default)]
pub struct Told {
    /// Requests that have begun, by process id.
    pub requests: BTreeMap<u32, u64>,
    /// How often there was work after a reply.
    pub afters: u64,
    /// How long it was in all, nanoseconds.
    pub after_ns: u64,
    /// Who has written one half of a reply, by process id.
    pub halves: Vec<u32>,
}

impl Told {
    /// Requests of all processes.
    pub fn all(&self) -> u64 {
        self.requests.values().sum()
    }
}

impl Server {
    /// Starts Puma with a control server.
    ///
    /// # Panics
    /// There is none.
    pub fn puma(flags: &[&str]) -> Server {
        Server::puma_with("", flags)
    }

    /// The same, with a query in the address that it listens on.
    ///
    /// # Panics
    /// There is none.
    pub fn puma_with(query: &str, flags: &[&str]) -> Server {
        let (address, control) = (free_address(), free_address());
        let mut command = ruby::program("puma");
        command.args(["-e", "production", "-C"]).arg(fixture("puma.rb")).args(flags);
        command.args(["-b", &format!("tcp://{address}{query}")]);
        command.args(["--control-url", &format!("tcp://{control}"), "--control-token", TOKEN]);
        Server::start(command, address, Some(control))
    }

    /// Starts Unicorn.
    ///
    /// # Panics
    /// There is none.
    pub fn unicorn() -> Server {
        let address = free_address();
        let mut command = ruby::program("unicorn");
        command.args(["-E", "production", "-l", &address.to_string(), "-c"]).arg(fixture("unicorn.rb"));
        Server::start(command, address, None)
    }

    fn start(mut command: Command, address: SocketAddr, control: Option<SocketAddr>) -> Server {
        place::require_root();
        let (place, told) = ruby::told(&format!("requests-{}", address.port()));
        command.arg(fixture("server.ru")).env("REQUESTS", place);
        // It ends with its stdin, for a test that is killed.
        command.env("RUBYOPT", format!("-r{}", fixture("leash.rb").display())).process_group(0);
        let server = Server { program: Program::start(&mut command), address, control, told };
        wait::until("a server", || {
            server.get("/none").map(drop).map_err(|e| format!("{e}: {:?}", server.program.errors()))
        });
        server
    }

    /// The id of its first process.
    pub fn pid(&self) -> u32 {
        self.program.pid()
    }

    /// The ids of its workers.
    pub fn workers(&self) -> Vec<u32> {
        self.program.children()
    }

    /// Ends a worker by SIGKILL.
    ///
    /// # Panics
    /// It is none.
    pub fn kill(&self, worker: u32) {
        assert!(self.workers().contains(&worker), "{worker} is no worker of it");
        // SAFETY: a system call without memory; a child that its parent has not waited for keeps its id.
        unsafe { libc::kill(worker as i32, libc::SIGKILL) };
    }

    /// Gets a page over a connection of its own.
    ///
    /// # Errors
    /// There is no answer.
    pub fn get(&self, path: &str) -> std::io::Result<http::Response> {
        http::get(self.address, path)
    }

    /// What Puma says of itself.
    ///
    /// # Panics
    /// It does not.
    pub fn stats(&self) -> Value {
        let control = self.control.expect("Puma has a control server");
        let answer = http::get(control, &format!("/stats?token={TOKEN}")).expect("it answers");
        serde_json::from_str(&answer.body).unwrap_or_else(|e| panic!("{e}: {}", answer.body))
    }

    /// What it has told so far.
    ///
    /// # Panics
    /// It has told something else.
    pub fn told(&self) -> Told {
        let mut told = Told::default();
        for line in fs::read_to_string(&self.told.0).expect("a file of our own").lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            match words[..] {
                [pid, "request"] => *told.requests.entry(pid.parse().expect("an id")).or_default() += 1,
                [pid, "half"] => told.halves.push(pid.parse().expect("an id")),
                [_, "after", ns] => {
                    told.afters += 1;
                    told.after_ns += ns.parse::<u64>().expect("a time");
                }
                _ => panic!("it told `{line}`"),
            }
        }
        told
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // SAFETY: a system call without memory; the child, which leads its group, was not waited for: the id is its own.
        unsafe { libc::kill(-(self.pid() as i32), libc::SIGKILL) };
    }
}

fn fixture(name: &str) -> PathBuf {
    ruby::place_of(&format!("tests/fixtures/ruby/{name}"))
}

/// One that was free a moment ago.
fn free_address() -> SocketAddr {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|l| l.local_addr()).expect("a free port")
}
