//! `cargo xtask demo`: a small Tokio server under a bounded load, and what the profiler shows of it.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::target::{Fixture, number};
use crate::{build, fixtures, setup};

/// Connections that send requests.
const CLIENTS: usize = 8;
/// Pause between two requests of one connection: bounds the load to some 1,500 requests a second.
const PAUSE: Duration = Duration::from_millis(5);
/// What probing may cost the server: all of it is to be seen.
const BUDGET: &str = "off";
/// What is asked for, in turn.
const PATHS: [&str; 4] = ["/", "/spawn", "/", "/work?us=300"];

/// Runs until Ctrl-C, or for `duration`.
pub fn run(duration: Option<Duration>, listen: &str) -> Result<()> {
    setup::run(false)?;
    let profiler = build::profiler()?;
    let fixture = fixtures::tokio("latest", "release")?;
    // Its standard input is its leash: it ends when this process does.
    let server = Fixture::start(&fixture, &["http", "0"], None)?;
    let (pid, port) = (server.pid(), number(&server.ready, "port")? as u16);
    eprintln!("\ndemo: a Tokio server runs as process {pid} on 127.0.0.1:{port}, with {CLIENTS} clients");
    eprintln!("demo: its metrics are on http://{listen}/metrics, and a summary follows every 2 s; Ctrl-C ends it\n");
    let stop = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|n| {
            let stop = Arc::clone(&stop);
            thread::spawn(move || client(port, n, &stop))
        })
        .collect();
    let mut command = Command::new(profiler);
    command.args(["attach", "--pid", &pid.to_string(), "--watch", "2s", "--web.listen-address", listen]);
    // So small a server does little else than what is measured.
    command.args(["--budget", BUDGET]);
    if let Some(duration) = duration {
        command.args(["--duration", &humantime::format_duration(duration).to_string().replace(' ', "")]);
    }
    // Ctrl-C reaches the profiler too, as it is in the foreground with us: we stay to clean up after it.
    // SAFETY: ignoring a signal has no precondition.
    unsafe { libc::signal(libc::SIGINT, libc::SIG_IGN) };
    let status = with_default_interrupt(&mut command).status().context("failed to run the profiler")?;
    stop.store(true, Ordering::Relaxed);
    let failures: usize = clients.into_iter().map(|client| client.join().unwrap_or(1)).sum();
    if !status.success() {
        bail!("the profiler failed: {status}");
    }
    if failures > 0 {
        bail!("{failures} requests failed while the profiler was attached");
    }
    Ok(())
}

/// A child inherits ignored signals: it gets the default back.
fn with_default_interrupt(command: &mut Command) -> &mut Command {
    use std::os::unix::process::CommandExt as _;
    // SAFETY: between fork and exec only this async-signal-safe call is made.
    unsafe {
        command.pre_exec(|| {
            libc::signal(libc::SIGINT, libc::SIG_DFL);
            Ok(())
        })
    }
}

/// Sends requests over one connection until told to stop; returns how many failed.
fn client(port: u16, offset: usize, stop: &AtomicBool) -> usize {
    let mut failures = 0;
    while !stop.load(Ordering::Relaxed) {
        let Ok(mut connection) = TcpStream::connect(("127.0.0.1", port)) else {
            failures += 1;
            thread::sleep(PAUSE);
            continue;
        };
        // A connection serves a hundred requests, so that accepts are seen too.
        for n in 0..100 {
            if stop.load(Ordering::Relaxed) {
                return failures;
            }
            if request(&mut connection, PATHS[(n + offset) % PATHS.len()]).is_err() {
                failures += 1;
                break;
            }
            thread::sleep(PAUSE);
        }
    }
    failures
}

fn request(connection: &mut TcpStream, path: &str) -> Result<()> {
    write!(connection, "GET {path} HTTP/1.1\r\nHost: demo\r\n\r\n")?;
    let mut response = Vec::new();
    let mut buffer = [0; 4096];
    while !response.windows(4).any(|w| w == b"\r\n\r\n") {
        let n = connection.read(&mut buffer)?;
        if n == 0 {
            bail!("the server closed the connection");
        }
        response.extend_from_slice(&buffer[..n]);
    }
    if !response.starts_with(b"HTTP/1.1 200") {
        bail!("the server answered {}", String::from_utf8_lossy(&response));
    }
    Ok(())
}
