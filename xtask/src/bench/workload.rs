//! What is measured in pairs: servers under a client's load, and programs that do all by themselves.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::pairs::{Subject, TARGET_CPU};
use crate::target::{Fixture, number};

/// Enough that the server has requests left while its client is held up.
const CONNECTIONS: usize = 32;
/// Requests per second to a server that has next to nothing to do.
const QUIET_RATE: u32 = 20;
/// Tasks per command.
const STORM_BATCH: u32 = 200_000;
/// Work of each poll, so that one worker does about a million a second.
const WORK: &str = "--work 900";

/// An HTTP server that is asked as fast as it answers, over connections that stay open. An operation is a request.
pub fn http(program: &Path, arguments: &[&str], path: &str) -> Result<Box<dyn Subject>> {
    http_over(CONNECTIONS, program, arguments, path)
}

/// The same over so many connections.
pub fn http_over(connections: usize, program: &Path, arguments: &[&str], path: &str) -> Result<Box<dyn Subject>> {
    let mut http = Http::start(program, arguments, path, connections)?;
    (0..connections).try_for_each(|connection| http.ask(connection))?;
    Ok(Box::new(Saturated(http)))
}

/// The fixture's HTTP server, with one worker.
pub const HTTP: [&str; 4] = ["--workers", "1", "http", "0"];

/// An HTTP server that is asked now and then. An operation is a second.
pub fn quiet(program: &Path) -> Result<Box<dyn Subject>> {
    Ok(Box::new(Quiet(Http::start(program, &HTTP, "/", 1)?)))
}

/// Two tasks that wake each other, some million times a second. An operation is a poll.
pub fn ping_pong(program: &Path) -> Result<Box<dyn Subject>> {
    Ok(Box::new(PingPong(Fixture::start(program, &["--workers", "1", "tasks"], Some(TARGET_CPU))?)))
}

/// Tasks that are spawned and joined as fast as can be. An operation is a task.
pub fn storm(program: &Path) -> Result<Box<dyn Subject>> {
    Ok(Box::new(Storm(Fixture::start(program, &["--workers", "1", "storm"], Some(TARGET_CPU))?)))
}

struct Http {
    server: Fixture,
    connections: Vec<TcpStream>,
    request: Vec<u8>,
    /// An answer, to be overwritten by the next of the same length.
    answer: Vec<u8>,
}

impl Http {
    fn start(program: &Path, arguments: &[&str], path: &str, connections: usize) -> Result<Http> {
        let server = Fixture::start(program, arguments, Some(TARGET_CPU))?;
        let port = number(&server.ready, "port")? as u16;
        let request = format!("GET {path} HTTP/1.1\r\nHost: bench\r\n\r\n").into_bytes();
        let mut http = Http { server, connections: Vec::new(), request, answer: Vec::new() };
        for _ in 0..connections {
            let mut connection = TcpStream::connect(("127.0.0.1", port))?;
            connection.set_nodelay(true)?;
            connection.write_all(&http.request)?;
            let answer = answer(&mut connection)?;
            if !answer.starts_with(b"HTTP/1.1 200") {
                bail!("the server answered {}", String::from_utf8_lossy(&answer));
            }
            http.answer = answer;
            http.connections.push(connection);
        }
        Ok(http)
    }

    fn ask(&mut self, connection: usize) -> Result<()> {
        Ok(self.connections[connection].write_all(&self.request)?)
    }

    fn receive(&mut self, connection: usize) -> Result<()> {
        Ok(self.connections[connection].read_exact(&mut self.answer)?)
    }
}

/// A whole answer, which may come in pieces: head and body.
fn answer(connection: &mut TcpStream) -> Result<Vec<u8>> {
    const LENGTH: &str = "content-length: ";
    let mut answer = Vec::new();
    loop {
        let mut piece = [0; 4096];
        let length = connection.read(&mut piece)?;
        answer.extend_from_slice(&piece[..length]);
        let text = String::from_utf8_lossy(&answer).to_lowercase();
        let whole = text.split_once("\r\n\r\n").map(|(head, body)| {
            let told = head.lines().find_map(|line| line.strip_prefix(LENGTH)?.parse().ok());
            body.len() >= told.unwrap_or(0)
        });
        if length == 0 || whole == Some(true) {
            return Ok(answer);
        }
    }
}

/// Each connection has a request under way at all times, so that the server never waits for its client: how often it
/// falls asleep would otherwise decide what a request costs.
struct Saturated(Http);

impl Subject for Saturated {
    fn pid(&self) -> u32 {
        self.0.server.pid()
    }

    fn drive(&mut self, lasts: Duration) -> Result<f64> {
        let started = Instant::now();
        let mut answers = 0;
        while started.elapsed() < lasts {
            for connection in 0..self.0.connections.len() {
                self.0.receive(connection)?;
                self.0.ask(connection)?;
                answers += 1;
            }
        }
        Ok(f64::from(answers))
    }
}

struct Quiet(Http);

impl Subject for Quiet {
    fn pid(&self) -> u32 {
        self.0.server.pid()
    }

    fn drive(&mut self, lasts: Duration) -> Result<f64> {
        let started = Instant::now();
        let mut next = Duration::ZERO;
        while next < lasts {
            self.0.ask(0)?;
            self.0.receive(0)?;
            next += Duration::from_secs(1) / QUIET_RATE;
            thread::sleep(next.saturating_sub(started.elapsed()));
        }
        Ok(started.elapsed().as_secs_f64())
    }
}

struct PingPong(Fixture);

impl Subject for PingPong {
    fn pid(&self) -> u32 {
        self.0.pid()
    }

    fn drive(&mut self, lasts: Duration) -> Result<f64> {
        number(&self.0.ask(&format!("pingpong {} {WORK}", lasts.as_secs_f64()))?, "polled")
    }
}

struct Storm(Fixture);

impl Subject for Storm {
    fn pid(&self) -> u32 {
        self.0.pid()
    }

    fn drive(&mut self, lasts: Duration) -> Result<f64> {
        let started = Instant::now();
        let mut tasks = 0;
        while started.elapsed() < lasts {
            self.0.ask(&format!("storm {STORM_BATCH}"))?;
            tasks += STORM_BATCH;
        }
        Ok(f64::from(tasks))
    }
}
