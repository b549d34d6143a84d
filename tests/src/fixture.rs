//! A running fixture: commands in, its own truth out.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::place;
use crate::program::Program;

/// A fixture that is ready; dropped, it is ended.
pub struct Fixture {
    program: Program,
    /// What it said when it was ready.
    pub ready: Value,
}

impl Fixture {
    /// Starts a fixture, and waits until it may be watched.
    ///
    /// # Panics
    /// It does not become ready.
    pub fn start(path: &Path, arguments: &[&str]) -> Fixture {
        let mut fixture = Fixture { program: Program::start(Command::new(path).args(arguments)), ready: Value::Null };
        fixture.ready = fixture.answer();
        assert_eq!(fixture.ready["ready"], true, "{}", fixture.ready);
        fixture
    }

    /// The Tokio fixture.
    pub fn tokio(version: &str, profile: &str, arguments: &[&str]) -> Fixture {
        Fixture::start(&place::tokio(version, profile), arguments)
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.program.pid()
    }

    /// Gives a command without waiting for its answer.
    pub fn tell(&mut self, command: &str) {
        self.program.send(command);
    }

    /// The next answer.
    ///
    /// # Panics
    /// None comes, or it is no JSON.
    pub fn answer(&mut self) -> Value {
        let line = self.program.line();
        serde_json::from_str(&line).unwrap_or_else(|e| panic!("`{line}` is no answer: {e}"))
    }

    /// Gives a command, and returns its answer.
    ///
    /// # Panics
    /// It fails.
    pub fn ask(&mut self, command: &str) -> Value {
        self.tell(command);
        let answer = self.answer();
        assert!(answer.get("error").is_none(), "`{command}`: {answer}");
        answer
    }

    /// Whether it still answers.
    pub fn answers(&mut self) -> bool {
        self.program.is_running() && self.ask("truth").is_object()
    }

    /// The program itself.
    pub fn program(&mut self) -> &mut Program {
        &mut self.program
    }

    /// Lets it end by itself, and returns its exit code.
    pub fn quit(mut self) -> Option<i32> {
        self.program.close();
        self.program.wait().code()
    }
}
