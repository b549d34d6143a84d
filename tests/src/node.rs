//! An agent on a node of which a test has some programs to itself.

use std::fs;
use std::path::PathBuf;

use crate::fixture::Fixture;
use crate::place;
use crate::profiler::{Profiler, Starting};
use crate::scratch::Folder;
use crate::status::number;
use crate::table::Table;
use crate::wait;

/// Programs of one test, so that rules can name them and nobody else's, and the file of the rules.
pub struct Node {
    folder: Folder,
}

impl Node {
    /// A node of its own for a test of this name.
    ///
    /// # Panics
    /// There is no folder for it.
    pub fn new(name: &str) -> Node {
        Node { folder: Folder::new(&format!("agent-{name}")) }
    }

    /// A copy of a program under another name.
    ///
    /// # Panics
    /// It cannot be copied.
    pub fn copy(&self, program: PathBuf, name: &str) -> PathBuf {
        let copy = self.path(name);
        fs::copy(program, &copy).expect("a program can be copied");
        copy
    }

    /// A Tokio program that runs.
    pub fn start(&self, name: &str) -> Fixture {
        let program = self.path(name);
        let program = if program.exists() { program } else { self.copy(place::tokio("latest", "release"), name) };
        Fixture::start(&program, &["tasks"])
    }

    /// A file of the test's own.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path(name)
    }

    /// Where the rules are.
    pub fn config(&self) -> String {
        self.path("rules.toml").display().to_string()
    }

    /// Writes rules: an action and a name each, where `*` stands for any.
    pub fn rules(&self, rules: &[(&str, &str)]) {
        let folder = self.folder.0.display();
        let rule = |(action, name): &(&str, &str)| {
            format!("[[rules]]\naction = \"{action}\"\nexecutable = \"{folder}/{name}\"\n\n")
        };
        self.write(&rules.iter().map(rule).collect::<String>());
    }

    /// Writes this as the file of rules.
    ///
    /// # Panics
    /// It cannot be written.
    pub fn write(&self, text: &str) {
        fs::write(self.config(), text).expect("a file of our own");
    }

    /// Starts an agent with these rules and flags.
    pub fn agent(&self, flags: &[&str]) -> Starting {
        let config = self.config();
        let arguments = ["agent", "--config.file", &config, "--budget", "off", "--settle", "100ms"];
        Starting::new(&[&arguments, flags].concat())
    }
}

/// The processes that are watched and have not ended.
pub fn watched(agent: &Profiler) -> Vec<u32> {
    let status = agent.status();
    let targets = status.0["targets"].as_array().expect("targets are a list");
    let mut pids: Vec<u32> =
        targets.iter().filter(|target| target["running"] == true).map(|target| number(&target["pid"]) as u32).collect();
    pids.sort_unstable();
    pids
}

/// Waits until exactly these are watched, and nobody waits to be looked at.
pub fn settle(agent: &Profiler, table: &mut Table, what: &str, of: &[&Fixture]) {
    let mut expected: Vec<u32> = of.iter().map(|fixture| fixture.pid()).collect();
    expected.sort_unstable();
    let state = || (watched(agent), number(&agent.status().0["discovery"]["waiting"]));
    let (seen, waiting) = wait::until_or_last(state, |(seen, waiting)| *seen == expected && *waiting == 0);
    table.equal(what, format!("{expected:?}, 0"), format!("{seen:?}, {waiting}"));
}

/// Has a target spawn tasks, and compares all that were counted since it was attached to.
pub fn compare(agent: &Profiler, table: &mut Table, what: &str, fixture: &mut Fixture) {
    let truth = fixture.ask("run 1000");
    let truth = number(&truth["tasks"]["spawned"]);
    let pid = fixture.pid();
    let seen = wait::until_or_last(
        || (agent.status().target(pid).spawned(), agent.status().target(pid).completed()),
        |seen| *seen == (truth, truth),
    );
    table.equal(format!("{what}: spawned, completed"), format!("{:?}", (truth, truth)), format!("{seen:?}"));
}
