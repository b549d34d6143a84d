//! A program that is started for a test, is talked to by lines, and never outlives it.

use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;

use crate::wait;

/// A running program; dropped, it is ended.
pub struct Program {
    name: String,
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: Lines,
    stderr: Lines,
    /// Lines of stdout that were taken.
    taken: usize,
}

/// How a program ended, and all that it said.
#[derive(Debug)]
pub struct Ended {
    pub status: ExitStatus,
    pub stdout: Vec<String>,
    pub stderr: Vec<String>,
}

impl Ended {
    /// The exit code; `None` if a signal ended it.
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }
}

impl Program {
    /// Starts it with pipes.
    ///
    /// # Panics
    /// It cannot be started.
    pub fn start(command: &mut Command) -> Program {
        let name = command.get_program().to_string_lossy().into_owned();
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("failed to run `{name}`: {e}"));
        let stdout = Lines::of(child.stdout.take());
        let stderr = Lines::of(child.stderr.take());
        Program { name, stdin: child.stdin.take(), child, stdout, stderr, taken: 0 }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Writes a line to its stdin.
    ///
    /// # Panics
    /// It has ended.
    pub fn send(&mut self, line: &str) {
        let stdin = self.stdin.as_mut().expect("stdin is open");
        if let Err(e) = writeln!(stdin, "{line}") {
            panic!("failed to tell {} `{line}`: {e}; it said {:?}", self.name, self.stderr.all());
        }
    }

    /// Closes its stdin.
    pub fn close(&mut self) {
        self.stdin = None;
    }

    /// The next line of stdout.
    ///
    /// # Panics
    /// None comes.
    pub fn line(&mut self) -> String {
        let Some(line) = self.stdout.nth(self.taken) else {
            panic!("{} said nothing more; on stderr {:?}", self.name, self.stderr.all());
        };
        self.taken += 1;
        line
    }

    /// The first line of stderr for which `wanted` holds; `None` when it ended without one.
    pub fn error_line(&self, wanted: impl Fn(&str) -> bool) -> Option<String> {
        (0..).map_while(|n| self.stderr.nth(n)).find(|line| wanted(line))
    }

    /// What it said on stderr so far.
    pub fn errors(&self) -> Vec<String> {
        self.stderr.all()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: i32) {
        // SAFETY: the child was not waited for: the id is still its own.
        unsafe { libc::kill(self.pid() as i32, signal) };
    }

    /// The processes that its first thread has started and that live.
    ///
    /// # Panics
    /// It has ended.
    pub fn children(&self) -> Vec<u32> {
        let path = format!("/proc/{0}/task/{0}/children", self.pid());
        let children = std::fs::read_to_string(path).expect("a living process tells its children");
        children.split_whitespace().map(|pid| pid.parse().expect("a number")).collect()
    }

    /// Whether it runs.
    ///
    /// # Panics
    /// It cannot be waited for.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("a child can be waited for").is_none()
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// It does not end.
    pub fn wait(mut self) -> Ended {
        let name = self.name.clone();
        let status = wait::until(&format!("the end of {name}"), || {
            let status = self.child.try_wait().map_err(|e| e.to_string())?;
            status.ok_or_else(|| format!("it still runs, and said {:?}", self.stderr.all()))
        });
        Ended { status, stdout: self.stdout.rest(), stderr: self.stderr.rest() }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The lines of a pipe, read by a thread so that the program never waits for its reader.
#[derive(Clone)]
struct Lines(Arc<(Mutex<Heard>, Condvar)>);

#[derive(Default)]
struct Heard {
    lines: Vec<String>,
    ended: bool,
}

impl Lines {
    fn of(pipe: Option<impl Read + Send + 'static>) -> Lines {
        let lines = Lines(Arc::default());
        let writer = lines.clone();
        thread::spawn(move || {
            for line in pipe.into_iter().flat_map(|pipe| BufReader::new(pipe).lines()).map_while(Result::ok) {
                writer.change(|read| read.lines.push(line));
            }
            writer.change(|read| read.ended = true);
        });
        lines
    }

    fn change(&self, change: impl FnOnce(&mut Heard)) {
        change(&mut self.0.0.lock().unwrap_or_else(PoisonError::into_inner));
        self.0.1.notify_all();
    }

    fn waited<T>(&self, wanted: impl Fn(&Heard) -> Option<T>) -> Option<T> {
        let read = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (read, _) = self
            .0
            .1
            .wait_timeout_while(read, wait::LIMIT, |read| wanted(read).is_none() && !read.ended)
            .unwrap_or_else(PoisonError::into_inner);
        wanted(&read)
    }

    /// Waits for the line of this number; `None` when there will be none, or none comes.
    fn nth(&self, n: usize) -> Option<String> {
        self.waited(|read| read.lines.get(n).cloned())
    }

    fn all(&self) -> Vec<String> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner).lines.clone()
    }

    /// All lines, once the pipe was closed.
    fn rest(&self) -> Vec<String> {
        self.waited(|read| read.ended.then_some(()));
        self.all()
    }
}
