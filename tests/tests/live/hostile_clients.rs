//! Clients of the endpoint that are too many, too slow, or speak something else.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Instant;

use tests::fixture::Fixture;
use tests::kernel;
use tests::place;
use tests::profiler::Profiler;
use tests::table::Table;
use tests::wait;

/// Idle connections, and descriptors for all.
const IDLE: usize = 10_000;
const DESCRIPTORS: libc::rlim_t = 12_000;
/// Clients that ask and do not read, or do not finish asking.
const SLOW: usize = 100;
/// Connections that the profiler has at most, and what else it has open.
const MOST_OPEN: usize = 512 + 200;
const SCRAPES: usize = 20;

/// Check that pages are served, and nothing grows, beside 10,000 idle connections, slow readers and nonsense.
#[test]
fn scrapes_beside_hostile_clients() {
    place::require_root();
    let mut table = Table::new("hostile clients");
    let fixture = Fixture::start(&place::forker(), &[]);
    let mut profiler = Profiler::attach(fixture.pid());
    let pid = profiler.program().pid();
    allow_descriptors();
    for (what, nonsense) in NONSENSE {
        let answer = answer_to(profiler.address, nonsense);
        let right = answer.is_empty() || answer.starts_with("HTTP/1.1 4");
        table.holds(*what, "4xx, or closed", answer.lines().next().unwrap_or_default(), right);
    }
    let long = format!("GET / HTTP/1.1\r\nLong: {}\r\n\r\n", "a".repeat(1 << 20));
    let answer = answer_to(profiler.address, long.as_bytes());
    let right = answer.is_empty() || answer.starts_with("HTTP/1.1 4");
    table.holds("a head of a megabyte", "4xx, or closed", answer.lines().next().unwrap_or_default(), right);
    let before = kernel::resident_kib(pid);
    let connect = || TcpStream::connect(profiler.address).expect("the profiler accepts");
    let ask = |request: &str| {
        let mut stream = connect();
        stream.write_all(request.as_bytes()).expect("a request is sent");
        stream
    };
    let mut held: Vec<TcpStream> = (0..SLOW).map(|_| ask("GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n")).collect();
    held.extend((0..SLOW).map(|_| ask("GET /metrics HTTP/1.1\r\nHo")));
    held.extend((0..IDLE).map(|_| connect()));
    let mut fastest = f64::INFINITY;
    for _ in 0..SCRAPES {
        let began = Instant::now();
        table.equal("a scrape", 200, profiler.get("/metrics").status);
        fastest = fastest.min(began.elapsed().as_secs_f64());
    }
    println!("the fastest of {SCRAPES} scrapes beside {} connections: {:.1} ms", held.len(), fastest * 1e3);
    table.equal("healthz", 200, profiler.get("/healthz").status);
    let open = wait::until("the oldest connections are closed", || {
        let open = fs::read_dir(format!("/proc/{pid}/fd")).map_err(|e| e.to_string())?.count();
        if open <= MOST_OPEN { Ok(open) } else { Err(format!("{open} descriptors")) }
    });
    table.holds("descriptors of the profiler", format!("at most {MOST_OPEN}"), open, open <= MOST_OPEN);
    let grown = kernel::resident_kib(pid).saturating_sub(before);
    table.holds("memory for them, KiB", "at most 32,768", grown, grown <= 32 << 10);
    drop(held);
    table.equal("a scrape afterwards", 200, profiler.get("/metrics").status);
    profiler.stop();
    table.finish();
}

/// What is no request.
const NONSENSE: &[(&str, &[u8])] = &[
    ("a TLS client hello", &[0x16, 3, 1, 0, 5, 1, 0, 0, 1, 3, 13, 10, 13, 10]),
    ("no method", b" / HTTP/1.1\r\n\r\n"),
    ("no version", b"GET /metrics\r\n\r\n"),
    ("HTTP/2 at once", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    ("two lengths", b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n"),
    ("a zero in the head", b"GET / HTTP/1.1\r\nHo\0st: a\r\n\r\n"),
];

/// Sends it all, and reads until the profiler closes.
fn answer_to(address: SocketAddr, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).expect("the profiler accepts");
    stream.set_read_timeout(Some(wait::LIMIT)).expect("a timeout");
    // It may have closed before all was sent.
    let sent = stream.write_all(request).and_then(|()| stream.shutdown(std::net::Shutdown::Write));
    let mut answer = Vec::new();
    let read: io::Result<usize> = stream.read_to_end(&mut answer);
    let is_reset = |e: &io::Error| matches!(e.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe);
    for e in [sent.err(), read.err()].into_iter().flatten().filter(|e| !is_reset(e)) {
        if e.kind() != io::ErrorKind::NotConnected {
            panic!("neither answered nor closed: {e}");
        }
    }
    String::from_utf8_lossy(&answer).into_owned()
}

fn allow_descriptors() {
    let limit = libc::rlimit { rlim_cur: DESCRIPTORS, rlim_max: DESCRIPTORS.max(hard_limit()) };
    // SAFETY: a live struct; only this process's own limit is raised.
    let done = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
    assert_eq!(done, 0, "failed to raise the limit of descriptors: {}", io::Error::last_os_error());
}

fn hard_limit() -> libc::rlim_t {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: a live struct of that type.
    unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    limit.rlim_max
}
