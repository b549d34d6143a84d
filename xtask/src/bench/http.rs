//! What the profiler costs a server: CPU time per request with and without, in many short pairs, and a null beside it.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::{Programs, Row, spread};
use crate::target::{Fixture, Profiler, cpu_ns, number, pin};

const PAIRS: usize = 12;
const LASTS: Duration = Duration::from_secs(2);
const CONNECTIONS: usize = 16;
const SERVER_CPU: usize = 0;
const CLIENT_CPU: usize = 1;

/// Requests that are answered at once, over connections that stay open.
pub fn keep_alive(programs: &Programs) -> Result<Vec<Row>> {
    pairs(programs, "/", &[], "1.03", "HTTP keep-alive, `/`")
}

/// Requests that spawn and join four tasks each.
pub fn spawning(programs: &Programs) -> Result<Vec<Row>> {
    pairs(programs, "/spawn", &[], "-", "HTTP keep-alive, `/spawn` (4 tasks)")
}

/// The same, with parents found by probes on every poll and not in thread-local storage.
pub fn poll_stack(programs: &Programs) -> Result<Vec<Row>> {
    pairs(programs, "/spawn", &["--poll-stack"], "-", "HTTP keep-alive, `/spawn`, parents by poll probes")
}

fn pairs(programs: &Programs, path: &str, flags: &[&str], bar: &'static str, what: &str) -> Result<Vec<Row>> {
    let server = Fixture::start(&programs.fixture, &["--workers", "1", "http", "0"], Some(SERVER_CPU))?;
    pin(0, CLIENT_CPU)?;
    let mut load = Load::connect(number(&server.ready, "port")? as u16, path)?;
    load.run(server.pid())?;
    let (mut ratios, mut nulls) = (Vec::new(), Vec::new());
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for pair in 0..PAIRS {
        let mut one = |profiled: bool| -> Result<f64> {
            let profiler = profiled.then(|| Profiler::attach(&programs.profiler, server.pid(), flags)).transpose()?;
            let cost = load.run(server.pid())?;
            profiler.map(Profiler::detach).transpose()?;
            Ok(cost)
        };
        // The order is flipped on every other pair, so that a drift does not favour one.
        let (a, b, null) = if pair % 2 == 0 {
            let b = one(false)?;
            (one(true)?, b, one(false)?)
        } else {
            let null = one(false)?;
            (one(true)?, one(false)?, null)
        };
        ratios.push(a / b);
        nulls.push(null / b);
        with.push(a);
        without.push(b);
    }
    let (with, without) = (spread(with), spread(without));
    let (ratio, null) = (spread(ratios), spread(nulls));
    Ok(vec![
        Row::new(
            format!("{what}: CPU per request, with / without"),
            format!(
                "{:.3} min/min, {:.3} median of pairs ({:.2} µs / {:.2} µs)",
                with.0 / without.0,
                ratio.1,
                with.0 / 1e3,
                without.0 / 1e3
            ),
            bar,
        ),
        Row::new(
            format!("{what}: null"),
            format!("{:.3} median of pairs ({:.3} to {:.3})", null.1, null.0, null.2),
            "-",
        ),
    ])
}

/// A client on several connections that are all busy: a request on each, then an answer from each.
struct Load {
    connections: Vec<TcpStream>,
    request: Vec<u8>,
    answer: usize,
}

impl Load {
    fn connect(port: u16, path: &str) -> Result<Load> {
        let request = format!("GET {path} HTTP/1.1\r\nHost: bench\r\n\r\n").into_bytes();
        let mut connections = Vec::new();
        for _ in 0..CONNECTIONS {
            let connection = TcpStream::connect(("127.0.0.1", port))?;
            connection.set_nodelay(true)?;
            connections.push(connection);
        }
        let mut load = Load { connections, request, answer: 0 };
        let request = load.request.clone();
        let first = load.connections.first_mut().context("no connection")?;
        first.write_all(&request)?;
        let mut answer = [0; 4096];
        load.answer = first.read(&mut answer)?;
        if !answer.starts_with(b"HTTP/1.1 200") {
            bail!("the server answered {}", String::from_utf8_lossy(&answer[..load.answer]));
        }
        Ok(load)
    }

    /// The server's CPU time per request, nanoseconds.
    fn run(&mut self, server: u32) -> Result<f64> {
        let (started, before) = (Instant::now(), cpu_ns(server)?);
        let mut answers = 0;
        let mut buffer = vec![0; self.answer];
        while started.elapsed() < LASTS {
            for connection in &mut self.connections {
                connection.write_all(&self.request)?;
            }
            for connection in &mut self.connections {
                connection.read_exact(&mut buffer)?;
                answers += 1;
            }
        }
        Ok((cpu_ns(server)? - before) as f64 / f64::from(answers))
    }
}
