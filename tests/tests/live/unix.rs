//! Accept queues of unix sockets: how long they are, and how long connections wait in them.

use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::path::PathBuf;
use std::process::Command;

use tests::fixture::Fixture;
use tests::kernel;
use tests::page::Page;
use tests::place;
use tests::profiler::Profiler;
use tests::status::number;
use tests::table::Table;
use tests::wait;

/// A unix listener that is watched.
struct Watched {
    fixture: Fixture,
    profiler: Profiler,
    /// Its path, or its abstract name with `@` before it.
    name: String,
}

impl Watched {
    fn start(name: String, arguments: &[&str]) -> Watched {
        place::require_root();
        let fixture = Fixture::start(&place::listener(), &[arguments, &["--unix", &name]].concat());
        let profiler = Profiler::attach(fixture.pid());
        let status = profiler.status();
        for probe in ["accept_queue", "accept_unix", "accept_depth", "accept_wait"] {
            let target = status.target(fixture.pid());
            assert!(target.is_attached(probe), "{probe} is {:?}", target.probe(probe));
        }
        Watched { fixture, profiler, name }
    }

    /// A connection, and when it was established.
    fn connect(&self) -> (UnixStream, u64) {
        let address = match self.name.strip_prefix('@') {
            Some(name) => SocketAddr::from_abstract_name(name),
            None => SocketAddr::from_pathname(&self.name),
        };
        let client = UnixStream::connect_addr(&address.expect("a name")).expect("the queue has room");
        (client, kernel::monotonic_ns())
    }

    fn metric(&self, page: &Page, name: &str) -> u64 {
        page.value(&format!("profiler_{name}"), &[("listener", &format!("unix:{}", self.name))]) as u64
    }

    /// Recv-Q and Send-Q as `ss` shows them; `None` where it is not installed.
    fn ss(&self) -> Option<(u64, u64)> {
        let output = Command::new("ss").args(["-H", "-l", "-x", "-n"]).output().ok()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let mut rows = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let row = rows.find(|row| row.get(4) == Some(&self.name.as_str()))?;
        Some((row[2].parse().ok()?, row[3].parse().ok()?))
    }

    fn lost_nothing(&self, table: &mut Table) {
        let status = self.profiler.status();
        let losses = status.losses();
        table.holds("lost", "nothing", format!("{losses:?}"), losses.is_empty());
    }
}

fn path(what: &str) -> PathBuf {
    std::env::temp_dir().join(format!("profiler-test-{what}-{}", std::process::id()))
}

/// Check that length and depth follow each connection, and that waits are those that were made.
fn check_queue(name: String) {
    const CONNECTIONS: u64 = 12;
    let mut watched = Watched::start(name, &["--backlog", "64"]);
    let mut table = Table::new(format!("accept queue of unix socket {}", watched.name));
    let mut clients = Vec::new();
    for n in 1..=CONNECTIONS {
        clients.push(watched.connect());
        let page = watched.profiler.page();
        table.equal(format!("length with {n}"), n, watched.metric(&page, "accept_queue_length"));
        if let Some((length, limit)) = watched.ss() {
            table.equal("length by ss", length, watched.metric(&page, "accept_queue_length"));
            table.equal("limit by ss", limit, watched.metric(&page, "accept_queue_limit"));
        }
    }
    let page = watched.profiler.page();
    table.equal("limit", 64, watched.metric(&page, "accept_queue_limit"));
    table.equal("accepted so far", 0, watched.metric(&page, "accepted_total"));
    watched.fixture.ask("sleep 400");
    let accepted = watched.fixture.ask(&format!("accept {CONNECTIONS}"));
    // They are accepted in the order in which they were made.
    let accepted = accepted["accepted"].as_array().expect("a list").iter().map(|connection| number(&connection["ns"]));
    let waits: Vec<u64> = accepted.zip(&clients).map(|(accepted, (_, established))| accepted - established).collect();
    let page = watched.profiler.page();
    table.equal("accepted", waits.len() as u64, watched.metric(&page, "accepted_total"));
    table.equal("length afterwards", 0, watched.metric(&page, "accept_queue_length"));
    table.equal("depths", CONNECTIONS, watched.metric(&page, "accept_queue_depth_count"));
    table.equal("sum of depths", CONNECTIONS * (CONNECTIONS + 1) / 2, watched.metric(&page, "accept_queue_depth_sum"));
    table.equal("waits", CONNECTIONS, watched.metric(&page, "accept_wait_seconds_count"));
    let sum = page.value("profiler_accept_wait_seconds_sum", &[]);
    table.within("sum of waits, s", waits.iter().sum::<u64>() as f64 / 1e9, sum, 2.0);
    table.equal("overflows", 0, page.sum("profiler_accept_overflows_total", &[]) as u64);
    watched.lost_nothing(&mut table);
    table.finish();
}

#[test]
fn queue_path() {
    let path = path("queue");
    check_queue(path.to_string_lossy().into_owned());
    std::fs::remove_file(path).expect("the socket's file");
}

#[test]
fn queue_abstract() {
    check_queue(format!("@profiler test {}", std::process::id()));
}

/// Check that every connection of an event loop is matched, also those that are accepted before they are announced.
#[test]
fn serving_unix() {
    const CONNECTIONS: u64 = 10_000;
    let mut watched = Watched::start(format!("@profiler serving {}", std::process::id()), &["--backlog", "511"]);
    let mut table = Table::new("an event loop that serves a unix socket");
    watched.fixture.ask("serve");
    for _ in 0..CONNECTIONS {
        drop(watched.connect());
    }
    wait::until("an empty queue", || {
        let accepted = number(&watched.fixture.ask("truth")["accepted"][0]);
        if accepted == CONNECTIONS { Ok(()) } else { Err(format!("{accepted} accepted")) }
    });
    let page = watched.profiler.page();
    for name in ["accepted_total", "accept_wait_seconds_count", "accept_queue_depth_count"] {
        table.equal(name, CONNECTIONS, watched.metric(&page, name));
    }
    watched.lost_nothing(&mut table);
    table.finish();
}
