//! Connections and requests, whatever their protocol is: a server that knows how long each took.

use std::net::{Ipv4Addr, TcpStream};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::thread;

use serde_json::Value;
use tests::fixture::Fixture;
use tests::page::Page;
use tests::place;
use tests::profiler::Profiler;
use tests::status::number;
use tests::table::Table;
use tests::wait;

/// Connections that are used at the same time, and requests on each.
const CONNECTIONS: u64 = 4;
const REQUESTS: u64 = 20;
/// What a time may differ by, per cent. A reader of a unix socket wakes its writer before it has its data, and may lose
/// the CPU to it: the kernel's half sees that time, and the server does not.
const TOLERANCE: f64 = 2.0;
const UNIX_TOLERANCE: f64 = 5.0;

/// A stream to the server.
trait Stream: std::io::Read + std::io::Write + Send {}
impl<T: std::io::Read + std::io::Write + Send> Stream for T {}

/// A server that is watched.
struct Watched {
    fixture: Fixture,
    profiler: Profiler,
    unix: Option<String>,
    port: u16,
}

impl Watched {
    /// `before` connections are open when it is attached to.
    fn start(kind: &str, unix: Option<String>, before: u64) -> (Watched, Vec<Box<dyn Stream>>) {
        place::require_root();
        let name: Vec<&str> = unix.iter().flat_map(|name| ["--unix", name]).collect();
        let mut fixture = Fixture::start(&place::listener(), &[&["--backlog", "128"], &name[..]].concat());
        fixture.ask(&format!("answer {kind}"));
        let port = number(&fixture.ready["ports"][0]) as u16;
        let mut open: Vec<Box<dyn Stream>> = (0..before).map(|_| connect(unix.as_deref(), port)).collect();
        // One request on each: it has been accepted then.
        open.iter_mut().for_each(|stream| ask(stream.as_mut(), 0, 0, "spin"));
        let profiler = Profiler::attach_with(fixture.pid(), &["--requests"]);
        let status = profiler.status();
        let target = status.target(fixture.pid());
        assert!(target.is_attached("requests"), "requests is {:?}", target.probe("requests"));
        (Watched { fixture, profiler, unix, port }, open)
    }

    fn connect(&self) -> Box<dyn Stream> {
        connect(self.unix.as_deref(), self.port)
    }

    /// What the server did, once it has `open` connections.
    fn truth(&mut self, open: u64) -> Value {
        wait::until("connections that are open", || {
            let truth = self.fixture.ask("answered");
            if number(&truth["open"]) == open { Ok(truth) } else { Err(truth.to_string()) }
        })
    }
}

fn connect(unix: Option<&str>, port: u16) -> Box<dyn Stream> {
    let Some(name) = unix else {
        return Box::new(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("it listens"));
    };
    let address = SocketAddr::from_abstract_name(name.trim_start_matches('@')).expect("a name");
    Box::new(UnixStream::connect_addr(&address).expect("it listens"))
}

/// One request, and its whole reply.
fn ask(stream: &mut dyn Stream, service_us: u64, after_us: u64, how: &str) {
    stream.write_all(format!("{service_us} {after_us} {how}\n").as_bytes()).expect("it reads");
    let mut reply = [0; 10];
    stream.read_exact(&mut reply).expect("it replies");
    assert_eq!(&reply, b"half done\n");
}

fn sum(page: &Page, name: &str) -> f64 {
    page.value(&format!("profiler_{name}_sum"), &[])
}

/// Check that requests are counted exactly, that they take what they took, and that the same holds for what follows the
/// reply, asleep and on a CPU.
fn check_requests(kind: &str, unix: bool, before: u64) {
    let name = unix.then(|| format!("@profiler requests {kind} {}", std::process::id()));
    let (mut watched, mut older) = Watched::start(kind, name, before);
    let mut table = Table::new(format!("requests to a server of {kind}{}", if unix { ", unix socket" } else { "" }));
    let base = watched.truth(before);
    let mut streams: Vec<_> = (0..CONNECTIONS).map(|_| watched.connect()).collect();
    thread::scope(|scope| {
        for (n, stream) in (0u64..).zip(streams.iter_mut().chain(&mut older)) {
            scope.spawn(move || {
                for request in 0..REQUESTS {
                    // More that spin would wait for a CPU, at places which only one of both sides sees.
                    let how = if n == 0 { "spin" } else { "sleep" };
                    ask(stream.as_mut(), 8000 + 200 * n, 4000 + 300 * request, how);
                }
            });
        }
    });
    watched.truth(before + CONNECTIONS);
    let open = |page: &Page| page.value("profiler_connections_open", &[]) as u64;
    table.equal("open", before + CONNECTIONS, open(&watched.profiler.page()));
    drop(streams.pop());
    watched.truth(before + CONNECTIONS - 1);
    table.equal("open, one closed", before + CONNECTIONS - 1, open(&watched.profiler.page()));
    if let Some(stream) = older.pop() {
        drop(stream);
        watched.truth(before + CONNECTIONS - 2);
        table.equal("open, an older one closed", before + CONNECTIONS - 2, open(&watched.profiler.page()));
    }
    // A request is over at the latest when its connection is.
    drop((streams, older));
    let truth = watched.truth(0);
    let page = watched.profiler.page();
    let did = |name: &str| number(&truth[name]) - number(&base[name]);
    table.equal("open at the end", 0, open(&page));
    for name in ["request_seconds", "after_reply_seconds"] {
        table.equal(name, did("requests"), page.value(&format!("profiler_{name}_count"), &[]) as u64);
    }
    let tolerance = if unix { UNIX_TOLERANCE } else { TOLERANCE };
    table.within("requests, s", did("request_ns") as f64 / 1e9, sum(&page, "request_seconds"), tolerance);
    table.within("after replies, s", did("after_ns") as f64 / 1e9, sum(&page, "after_reply_seconds"), TOLERANCE);
    wait::until("three hits a request", || {
        let hits = watched.profiler.page().sum("profiler_probe_hits_total", &[("probe", "socket")]);
        if hits >= 3.0 * did("requests") as f64 { Ok(()) } else { Err(hits.to_string()) }
    });
    let status = watched.profiler.status();
    let losses = status.losses();
    table.holds("lost", "nothing", format!("{losses:?}"), losses.is_empty());
    table.finish();
}

#[test]
fn requests_threads() {
    check_requests("threads", false, 3);
}

#[test]
fn requests_loop() {
    check_requests("loop", false, 0);
}

#[test]
fn requests_unix() {
    check_requests("threads", true, 3);
}

/// Where the requests are that are open: not read, in progress, answered by a thread that is not available yet.
type Open = (u64, u64, u64);

/// Check that it is told where requests are, while a loop is held by one of them.
fn check_open(unix: bool) {
    const HELD_US: u64 = 6_000_000;
    let name = unix.then(|| format!("@profiler open {}", std::process::id()));
    let (mut watched, _) = Watched::start("loop", name, 0);
    let mut table = Table::new(format!("requests that are open{}", if unix { ", unix socket" } else { "" }));
    let mut streams: Vec<_> = (0..3).map(|_| watched.connect()).collect();
    watched.truth(3);
    let profiler = &watched.profiler;
    let open = || {
        let page = profiler.page();
        let of = |state: &str| page.value("profiler_requests_open", &[("state", state)]) as u64;
        (of("unread"), of("in_progress"), of("after_reply"))
    };
    let mut check = |what: &str, truth: Open| {
        let seen = wait::until_or_last(open, |seen| *seen == truth);
        table.equal(what, format!("{truth:?}"), format!("{seen:?}"));
    };
    check("three connections that say nothing", (0, 0, 0));
    let tell = |stream: &mut Box<dyn Stream>, line: String| stream.write_all(line.as_bytes()).expect("it is connected");
    tell(&mut streams[0], format!("{HELD_US} 0 sleep\n"));
    check("one is served", (0, 1, 0));
    tell(&mut streams[1], "0 0 sleep\n".to_owned());
    check("and one waits", (1, 1, 0));
    streams[..2].iter_mut().for_each(|stream| stream.read_exact(&mut [0; 10]).expect("it replies"));
    tell(&mut streams[2], format!("0 {} sleep\n", HELD_US / 2));
    streams[2].read_exact(&mut [0; 10]).expect("it replies");
    check("answered, and not available", (0, 0, 1));
    check("available", (0, 0, 0));
    table.finish();
}

#[test]
fn open_requests() {
    check_open(false);
}

#[test]
fn open_requests_unix() {
    check_open(true);
}

/// Check that nothing is attached, and nothing shown, where nobody asked for it.
#[test]
fn requests_are_not_asked_for() {
    place::require_root();
    let fixture = Fixture::start(&place::listener(), &["--backlog", "128"]);
    let profiler = Profiler::attach(fixture.pid());
    assert!(!profiler.page().has("profiler_connections_open", &[]));
    let status = profiler.status();
    let row = status.target(fixture.pid()).probe("requests").map(|(state, _)| state.to_owned());
    assert_eq!(row.as_deref(), Some("not_applicable"));
}
