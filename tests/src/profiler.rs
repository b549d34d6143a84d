//! A running profiler: the program itself, seen through what it serves and prints.

use std::net::SocketAddr;
use std::process::Command;

use rustix::thread::CapabilitySet;

use crate::http::{self, Response};
use crate::nobody;
use crate::page::Page;
use crate::place;
use crate::program::{Ended, Program};
use crate::status::Status;

/// A profiler that has attached and serves; dropped, it is ended.
pub struct Profiler {
    program: Program,
    pub address: SocketAddr,
}

/// What it says once it has attached.
const SERVING: &str = "serving http://";
/// Any free port.
const LISTEN: [&str; 2] = ["--web.listen-address", "127.0.0.1:0"];

impl Profiler {
    /// Attaches to a process at full fidelity, and waits until that is done.
    pub fn attach(pid: u32) -> Profiler {
        Profiler::attach_with(pid, &[])
    }

    /// The same, with flags.
    pub fn attach_with(pid: u32, flags: &[&str]) -> Profiler {
        Profiler::attach_within("off", pid, flags)
    }

    /// The same, within a budget.
    pub fn attach_within(budget: &str, pid: u32, flags: &[&str]) -> Profiler {
        let pid = pid.to_string();
        Starting::new(&[&["attach", "--pid", &pid, "--budget", budget], flags].concat()).serving()
    }

    /// Starts a program under the profiler, at full fidelity.
    pub fn run(command: &[&str]) -> Profiler {
        Profiler::start(&[&["run", "--budget", "off"], &LISTEN[..], &["--"], command].concat())
    }

    /// Starts it with any arguments, and waits until it serves.
    pub fn start(arguments: &[&str]) -> Profiler {
        Starting(launch(arguments)).serving()
    }

    /// Gets a page.
    ///
    /// # Panics
    /// There is no answer.
    pub fn get(&self, path: &str) -> Response {
        http::get(self.address, path)
            .unwrap_or_else(|e| panic!("failed to get {path}: {e}; the profiler said {:?}", self.program.errors()))
    }

    /// The metrics.
    pub fn page(&self) -> Page {
        let response = self.get("/metrics");
        assert_eq!(response.status, 200, "{response:?}");
        Page::parse(&response.body)
    }

    /// The status.
    ///
    /// # Panics
    /// It is no JSON.
    pub fn status(&self) -> Status {
        let response = self.get("/status");
        assert_eq!(response.status, 200, "{response:?}");
        Status(serde_json::from_str(&response.body).unwrap_or_else(|e| panic!("{e}: {}", response.body)))
    }

    /// The program itself.
    pub fn program(&mut self) -> &mut Program {
        &mut self.program
    }

    /// Ends it as Ctrl-C does.
    ///
    /// # Panics
    /// It fails.
    pub fn stop(self) -> Ended {
        let ended = self.end(libc::SIGINT);
        assert_eq!(ended.code(), Some(0), "{ended:?}");
        ended
    }

    /// Ends it by a signal.
    pub fn end(self, signal: i32) -> Ended {
        self.program.signal(signal);
        self.program.wait()
    }

    /// Waits for its own end.
    pub fn wait(self) -> Ended {
        self.program.wait()
    }
}

/// A profiler that may not have attached yet; dropped, it is ended.
pub struct Starting(Program);

impl Starting {
    /// Starts it to serve on any free port.
    pub fn new(arguments: &[&str]) -> Starting {
        Starting(launch(&[arguments, &LISTEN].concat()))
    }

    /// Starts it to serve on any free port, as a user without privileges but for these capabilities.
    pub fn as_nobody(capabilities: CapabilitySet, arguments: &[&str]) -> Starting {
        let mut command = nobody::command(&place::profiler(), capabilities);
        Starting(Program::start(command.args(arguments).args(LISTEN)))
    }

    /// Whether it has attached, and serves.
    pub fn serves(&self) -> bool {
        self.0.errors().iter().any(|line| line.contains(SERVING))
    }

    /// Waits until it serves.
    ///
    /// # Panics
    /// It does not.
    pub fn serving(self) -> Profiler {
        let Some(line) = self.0.error_line(|line| line.contains(SERVING)) else {
            panic!("the profiler does not serve: {:?}", self.0.errors());
        };
        let address = line.split_once("http://").and_then(|(_, rest)| rest.split('/').next());
        let address = address.and_then(|address| address.parse().ok());
        Profiler { program: self.0, address: address.unwrap_or_else(|| panic!("no address in `{line}`")) }
    }

    /// The program itself.
    pub fn into_program(self) -> Program {
        self.0
    }
}

/// Runs it to its end as a user without privileges but for these capabilities.
pub fn run_to_end_as_nobody(capabilities: CapabilitySet, arguments: &[&str]) -> Ended {
    Program::start(nobody::command(&place::profiler(), capabilities).args(arguments)).wait()
}

/// Starts it, and waits for nothing.
pub fn launch(arguments: &[&str]) -> Program {
    Program::start(Command::new(place::profiler()).args(arguments))
}

/// Runs it to its end.
pub fn run_to_end(arguments: &[&str]) -> Ended {
    launch(arguments).wait()
}
