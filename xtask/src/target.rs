//! Programs under measurement: fixtures that answer commands, and the profiler on them.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::process::Ended;

/// Where the measured profiler serves.
pub const LISTEN: &str = "127.0.0.1:19909";

/// A fixture, one command line at a time.
pub struct Fixture {
    child: Ended,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    /// The line that it printed when it was ready.
    pub ready: String,
}

impl Fixture {
    /// Starts one, on one CPU where `cpu` says so.
    pub fn start(program: &Path, arguments: &[&str], cpu: Option<usize>) -> Result<Fixture> {
        let mut command = Command::new(program);
        // Ctrl-C at the terminal is for us: it ends with its input.
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).process_group(0);
        if let Some(cpu) = cpu {
            // SAFETY: between fork and exec only this async-signal-safe call is made.
            unsafe { command.pre_exec(move || pin(0, cpu)) };
        }
        let mut child = command.spawn().with_context(|| format!("failed to start `{}`", program.display()))?;
        let input = child.stdin.take().context("no input")?;
        let output = BufReader::new(child.stdout.take().context("no output")?);
        let mut fixture = Fixture { child: Ended(child), input, output, ready: String::new() };
        fixture.ready = fixture.line()?;
        Ok(fixture)
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.0.id()
    }

    /// Sends a command and returns the answer.
    pub fn ask(&mut self, command: &str) -> Result<String> {
        writeln!(self.input, "{command}")?;
        self.line()
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        if line.is_empty() {
            bail!("the fixture has ended");
        }
        Ok(line)
    }
}

/// A number in a line of JSON, by its key.
pub fn number(json: &str, key: &str) -> Result<f64> {
    let (_, rest) = json.split_once(&format!("\"{key}\":")).with_context(|| format!("no {key} in {json}"))?;
    let text: String = rest.trim_start().chars().take_while(|c| c.is_ascii_digit() || *c == '.').collect();
    text.parse().with_context(|| format!("{key} is no number in {json}"))
}

/// The profiler on one process.
pub struct Profiler {
    child: Option<Child>,
    log: BufReader<ChildStderr>,
    /// Milliseconds that it took to attach, as it says itself.
    pub attach_ms: f64,
}

impl Profiler {
    /// Attaches, and returns once everything is attached.
    pub fn attach(program: &Path, pid: u32, flags: &[&str]) -> Result<Profiler> {
        let mut child = Command::new(program)
            .args(["attach", "--pid", &pid.to_string(), "--web.listen-address", LISTEN])
            .args(flags)
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("failed to start `{}`", program.display()))?;
        let log = BufReader::new(child.stderr.take().context("no log")?);
        let mut profiler = Profiler { child: Some(child), log, attach_ms: 0.0 };
        profiler.attach_ms = profiler.wait_for("attached in ")?;
        Ok(profiler)
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().map_or(0, Child::id)
    }

    /// Detaches, and returns the milliseconds that it took, as it says itself.
    pub fn detach(mut self) -> Result<f64> {
        // SAFETY: signals our own, living child.
        unsafe { libc::kill(self.pid() as i32, libc::SIGINT) };
        let ms = self.wait_for("detached in ")?;
        if let Some(mut child) = self.child.take() {
            child.wait()?;
        }
        Ok(ms)
    }

    /// The number behind `words` in its log.
    fn wait_for(&mut self, words: &str) -> Result<f64> {
        let mut seen = String::new();
        loop {
            let mut line = String::new();
            if self.log.read_line(&mut line)? == 0 {
                bail!("the profiler has ended:\n{seen}");
            }
            if let Some((_, rest)) = line.split_once(words) {
                let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
                return digits.parse().with_context(|| format!("no number in {line}"));
            }
            seen.push_str(&line);
        }
    }
}

impl Drop for Profiler {
    fn drop(&mut self) {
        if let Some(child) = self.child.take() {
            drop(Ended(child));
        }
    }
}

/// CPU time of a process, also of its threads that have ended, nanoseconds.
pub fn cpu_ns(pid: u32) -> Result<u64> {
    let (mut clock, mut time) = (0, libc::timespec { tv_sec: 0, tv_nsec: 0 });
    // SAFETY: both places live through the calls.
    let failed = unsafe {
        libc::clock_getcpuclockid(pid as i32, &raw mut clock) != 0 || libc::clock_gettime(clock, &raw mut time) != 0
    };
    if failed {
        bail!("process {pid} has ended");
    }
    Ok(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
}

/// Resident memory of a process, KiB.
pub fn resident_kib(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

/// A page of the endpoint, and how long it took.
pub fn get(path: &str) -> Result<(String, Duration)> {
    let started = Instant::now();
    let mut connection = TcpStream::connect(LISTEN)?;
    write!(connection, "GET {path} HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n")?;
    let mut response = String::new();
    connection.read_to_string(&mut response)?;
    Ok((response, started.elapsed()))
}

/// The series of a metric: labels as on the page, and the value.
fn series<'p>(page: &'p str, name: &'p str) -> impl Iterator<Item = (&'p str, f64)> {
    let of_name = move |line: &'p str| line.strip_prefix(name).filter(|rest| rest.starts_with(['{', ' ']));
    page.lines().filter_map(of_name).filter_map(|rest| {
        let (labels, value) = rest.rsplit_once(' ')?;
        Some((labels, value.trim().parse().ok()?))
    })
}

/// The sum of a metric over its series.
pub fn metric(page: &str, name: &str) -> f64 {
    series(page, name).map(|(_, value)| value).sum()
}

/// The same; `None` without any series.
pub fn metric_if_any(page: &str, name: &str) -> Option<f64> {
    series(page, name).map(|(_, value)| value).reduce(|a, b| a + b)
}

/// The sum of a metric over its series with `word` in a label.
pub fn metric_of(page: &str, name: &str, word: &str) -> f64 {
    series(page, name).filter(|(labels, _)| labels.contains(word)).map(|(_, value)| value).sum()
}

/// An array in a JSON document as it stands there, by its key.
pub fn array<'j>(json: &'j str, key: &str) -> Option<&'j str> {
    let (_, rest) = json.split_once(&format!("\"{key}\":"))?;
    let rest = rest.trim_start();
    let (mut depth, mut is_quoted, mut is_escaped) = (0, false, false);
    for (at, letter) in rest.char_indices() {
        match letter {
            _ if is_escaped => is_escaped = false,
            '\\' => is_escaped = is_quoted,
            '"' => is_quoted = !is_quoted,
            '[' if !is_quoted => depth += 1,
            ']' if !is_quoted => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return rest.starts_with('[').then(|| &rest[..=at]);
        }
    }
    None
}

/// Keeps a thread (0: this one) on one CPU.
pub fn pin(tid: i32, cpu: usize) -> std::io::Result<()> {
    // SAFETY: an all-zero set is an empty one; `cpu` is bounded by the set's size in CPU_SET.
    let result = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        libc::sched_setaffinity(tid, size_of::<libc::cpu_set_t>(), &raw const set)
    };
    if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Check that an array ends where it ends, whatever its strings contain.
    #[test]
    fn arrays_end_where_they_end() {
        let json = r#"{"a":1,"list": [{"text":"]\"]","more":[1]}],"rest":[2]}"#;
        assert_eq!(array(json, "list"), Some(r#"[{"text":"]\"]","more":[1]}]"#));
        assert_eq!(array(json, "rest"), Some("[2]"));
        assert_eq!(array(json, "a"), None);
        assert_eq!(array(json, "none"), None);
    }

    /// Check that we tell a metric without a series from one that is zero.
    #[test]
    fn metrics_are_summed_over_their_series() {
        let page = "# TYPE a counter\na{task=\"x\"} 1\na{task=\"y z\"} 2\nab 5\nzero 0\n";
        assert_eq!(metric(page, "a"), 3.0);
        assert_eq!(metric_of(page, "a", "z"), 2.0);
        assert_eq!(metric_if_any(page, "zero"), Some(0.0));
        assert_eq!(metric_if_any(page, "none"), None);
    }
}
