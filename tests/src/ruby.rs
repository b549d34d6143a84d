//! A program of Ruby's that counts its fibers; of the distribution's Ruby, or of another one's in a directory.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::place;
use crate::program::Program;
use crate::scratch::Scratch;

/// Names a directory with another distribution in it, whose Ruby is to be used.
pub const ROOT: &str = "PROFILER_RUBY_ROOT";
/// Where the program is.
pub const FIXTURE: &str = "tests/fixtures/ruby/fibers.rb";
const WAITS: &str = "tests/fixtures/ruby/waits.rb";
const LOCKS: &str = "tests/fixtures/ruby/locks.rb";
const DEFERRED: &str = "tests/fixtures/ruby/deferred.rb";

/// The running program.
pub struct Fibers {
    pub program: Program,
    /// Its version, as `3.1`, and in full.
    pub version: String,
    pub full_version: String,
}

impl Fibers {
    /// Starts it.
    ///
    /// # Panics
    /// There is no Ruby.
    pub fn start() -> Fibers {
        Fibers::start_program(FIXTURE)
    }

    /// Starts the one whose fibers wait for known reasons.
    ///
    /// # Panics
    /// There is no Ruby.
    pub fn that_wait() -> Fibers {
        Fibers::start_program(WAITS)
    }

    /// Starts the one whose threads wait for Ruby's lock.
    ///
    /// # Panics
    /// There is no Ruby.
    pub fn that_lock() -> Fibers {
        Fibers::start_program(LOCKS)
    }

    /// Starts the one that defers blocks by an extension, in this file.
    ///
    /// # Panics
    /// There is no Ruby.
    pub fn that_defer(extension: &str) -> Fibers {
        Fibers::start_command(command(DEFERRED).env("EXTENSION", place_of(extension)))
    }

    /// Starts it with this host's Ruby, whichever the others are of.
    ///
    /// # Panics
    /// There is no Ruby.
    pub fn of_this_host() -> Fibers {
        Fibers::start_command(Command::new("ruby").arg(place::root().join(FIXTURE)))
    }

    /// Starts it with this host's Ruby, and the libraries of a directory.
    ///
    /// # Panics
    /// There is no Ruby.
    pub fn with_libraries(folder: &Path) -> Fibers {
        let mut ruby = Command::new("ruby");
        ruby.arg("--disable-gems").arg(place::root().join(FIXTURE)).env("LD_LIBRARY_PATH", folder);
        Fibers::start_command(&mut ruby)
    }

    fn start_program(fixture: &str) -> Fibers {
        Fibers::start_command(&mut command(fixture))
    }

    fn start_command(command: &mut Command) -> Fibers {
        place::require_root();
        let mut program = Program::start(command);
        let full_version = introduction(&mut program);
        let version = full_version.rsplit_once('.').map_or(&*full_version, |(release, _)| release).to_owned();
        Fibers { program, version, full_version }
    }

    /// The file of the interpreter that it has loaded.
    ///
    /// # Panics
    /// It has ended.
    pub fn library(&self) -> PathBuf {
        let maps = fs::read_to_string(format!("/proc/{}/maps", self.pid())).expect("it runs");
        let path =
            maps.lines().filter_map(|line| line.split_whitespace().nth(5)).find(|path| path.contains("/libruby"));
        PathBuf::from(path.expect("the interpreter is a library"))
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.program.pid()
    }

    /// Has it do something, and returns the numbers that it answers.
    ///
    /// # Panics
    /// It answers something else.
    pub fn tell(&mut self, command: &str) -> Vec<u64> {
        self.program.send(command);
        let answer = self.program.line();
        let numbers = answer.split_whitespace().map(str::parse);
        numbers.collect::<Result<_, _>>().unwrap_or_else(|_| panic!("{command}: it answered `{answer}`"))
    }

    /// Has it replace its image by itself.
    pub fn exec(&mut self) {
        self.program.send("exec");
        introduction(&mut self.program);
    }
}

/// The full version that it says it is of.
fn introduction(program: &mut Program) -> String {
    let line = program.line();
    line.split_whitespace().nth(2).unwrap_or_else(|| panic!("it said `{line}`")).to_owned()
}

fn command(fixture: &str) -> Command {
    let mut command = program("ruby");
    command.arg(place_of(fixture));
    command
}

/// The directory with the other distribution, where there is one.
pub fn other_root() -> Option<PathBuf> {
    env::var_os(ROOT).map(PathBuf::from)
}

/// What starts a program of the distribution whose Ruby is used.
pub fn program(name: &str) -> Command {
    let Some(root) = other_root() else { return Command::new(name) };
    let mut command = Command::new("chroot");
    // Puma looks at where it says that it was started.
    command.arg(root).arg(name).env("PWD", "/");
    command
}

/// Where such a program finds a fixture, or another file that is a fixture's.
///
/// # Panics
/// The directory of the other distribution cannot be written to.
pub fn place_of(fixture: &str) -> PathBuf {
    let fixture = place::root().join(fixture);
    let Some(root) = other_root() else { return fixture };
    let name = fixture.file_name().expect("a file");
    fs::copy(&fixture, root.join(name)).expect("the directory can be written to");
    Path::new("/").join(name)
}

/// An empty file that such a program writes to: as it sees it, and as we do.
///
/// # Panics
/// It cannot be made.
pub fn told(name: &str) -> (PathBuf, Scratch) {
    let file = Scratch::new(name);
    let Some(root) = other_root() else {
        fs::write(&file.0, "").expect("a file of our own");
        return (file.0.clone(), file);
    };
    let name = Path::new("/tmp").join(file.0.file_name().expect("a file"));
    let within = Scratch(root.join(name.strip_prefix("/").expect("it begins so")));
    fs::write(&within.0, "").expect("a file of our own");
    (name, within)
}
