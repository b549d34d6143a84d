//! Accept queues: how long they are, what they drop, and how long connections wait in them.

use std::collections::HashMap;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::process::Command;

use serde_json::Value;
use tests::check::Check;
use tests::fixture::Fixture;
use tests::kernel;
use tests::page::Page;
use tests::place;
use tests::profiler::Profiler;
use tests::status::number;
use tests::table::Table;
use tests::wait;

/// A listener that is watched.
struct Watched {
    fixture: Fixture,
    profiler: Profiler,
    address: SocketAddr,
}

impl Watched {
    fn start(arguments: &[&str]) -> Watched {
        Watched::start_without(&[], arguments)
    }

    /// The same, where some ways to attach are not to be used.
    fn start_without(ways: &[&str], arguments: &[&str]) -> Watched {
        place::require_root();
        let fixture = Fixture::start(&place::listener(), arguments);
        let port = number(&fixture.ready["ports"][0]) as u16;
        let address = match arguments.contains(&"--v6") {
            true => (Ipv6Addr::LOCALHOST, port).into(),
            false => (Ipv4Addr::LOCALHOST, port).into(),
        };
        let flags: Vec<&str> = ways.iter().flat_map(|way| ["--without", way]).collect();
        let profiler = Profiler::attach_with(fixture.pid(), &flags);
        let status = profiler.status();
        for probe in ["accept_queue", "accept_depth", "accept_wait"] {
            let target = status.target(fixture.pid());
            assert!(target.is_attached(probe), "{probe} is {:?}", target.probe(probe));
        }
        Watched { fixture, profiler, address }
    }

    /// A connection, and when it was established.
    fn connect(&self) -> (TcpStream, u64) {
        let client = TcpStream::connect(self.address).expect("the queue has room");
        (client, kernel::monotonic_ns())
    }

    fn connect_many(&self, count: u64) -> Vec<(TcpStream, u64)> {
        (0..count).map(|_| self.connect()).collect()
    }

    /// Of the listener's `n`th socket (from 1), by the metrics.
    fn metric(&self, page: &Page, name: &str, nth: usize) -> u64 {
        let listener = match nth {
            1 => self.address.to_string(),
            n => format!("{}#{n}", self.address),
        };
        page.value(&format!("profiler_{name}"), &[("listener", &listener)]) as u64
    }

    /// The kernel's own length of a socket's queue.
    fn queue(&self, inode: &Value) -> u64 {
        let sockets = kernel::listening(self.fixture.pid());
        let socket = sockets.iter().find(|socket| socket.inode == number(inode));
        socket.expect("the kernel lists the socket").queue
    }

    /// Recv-Q, Send-Q and drops as `ss` shows them; `None` where it is not installed.
    fn ss(&self) -> Option<(u64, u64, u64)> {
        let output = Command::new("ss").args(["-H", "-l", "-t", "-n", "-m", "-O"]).output().ok()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let line = text.lines().find(|line| line.contains(&format!("{} ", self.address)))?;
        let words: Vec<&str> = line.split_whitespace().collect();
        let drops = line.split("skmem:(").nth(1)?.split(')').next()?.rsplit(",d").next()?;
        Some((words[1].parse().ok()?, words[2].parse().ok()?, drops.parse().ok()?))
    }

    fn lost_nothing(&self, table: &mut Table) {
        let status = self.profiler.status();
        let losses = status.losses();
        table.holds("lost", "nothing", format!("{losses:?}"), losses.is_empty());
    }
}

/// Check that length and depth follow each connection, that waits are those that were made, and that all are accepted.
fn check_queue(arguments: &[&str]) {
    const CONNECTIONS: u64 = 12;
    let mut watched = Watched::start(arguments);
    let mut table = Table::new(format!("accept queue of listener {}", arguments.join(" ")));
    let inode = watched.fixture.ready["inodes"][0].clone();
    let mut clients = HashMap::new();
    for n in 1..=CONNECTIONS {
        let (client, ns) = watched.connect();
        clients.insert(client.local_addr().expect("it is connected").port(), (client, ns));
        let page = watched.profiler.page();
        table.equal(format!("length with {n}"), watched.queue(&inode), watched.metric(&page, "accept_queue_length", 1));
    }
    let page = watched.profiler.page();
    if let Some((length, limit, drops)) = watched.ss() {
        table.equal("length by ss", length, watched.metric(&page, "accept_queue_length", 1));
        table.equal("limit by ss", limit, watched.metric(&page, "accept_queue_limit", 1));
        table.equal("drops by ss", drops, watched.metric(&page, "accept_overflows_total", 1));
    } else {
        println!("ss is not installed: not compared with it");
    }
    table.equal("accepted so far", 0, watched.metric(&page, "accepted_total", 1));
    watched.fixture.ask("sleep 400");
    let accepted = watched.fixture.ask(&format!("accept {CONNECTIONS}"));
    let waits: Vec<u64> = accepted["accepted"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|connection| {
            let (_, established) = &clients[&(number(&connection["peer_port"]) as u16)];
            number(&connection["ns"]) - established
        })
        .collect();
    let page = watched.profiler.page();
    table.equal("accepted", waits.len() as u64, watched.metric(&page, "accepted_total", 1));
    table.equal("length afterwards", watched.queue(&inode), watched.metric(&page, "accept_queue_length", 1));
    table.equal("depths", CONNECTIONS, watched.metric(&page, "accept_queue_depth_count", 1));
    let depths = CONNECTIONS * (CONNECTIONS + 1) / 2;
    table.equal("sum of depths", depths, watched.metric(&page, "accept_queue_depth_sum", 1));
    table.equal("waits", CONNECTIONS, watched.metric(&page, "accept_wait_seconds_count", 1));
    let sum = page.value("profiler_accept_wait_seconds_sum", &[]);
    table.within("sum of waits, s", waits.iter().sum::<u64>() as f64 / 1e9, sum, 2.0);
    watched.lost_nothing(&mut table);
    table.finish();
}

#[test]
fn queue_v4() {
    check_queue(&["--backlog", "64"]);
}

#[test]
fn queue_v6() {
    check_queue(&["--backlog", "64", "--v6"]);
}

/// Check that a full queue is seen as full while the loop idles, and that what the kernel drops is counted as it does.
#[test]
fn full_and_overflowing() {
    const BACKLOG: u64 = 511;
    let mut watched = Watched::start(&["--backlog", "511"]);
    let pid = watched.fixture.pid();
    let inode = watched.fixture.ready["inodes"][0].clone();
    let mut table = Table::new("full accept queue, backlog 511");
    watched.fixture.ask("idle");
    let mut clients = watched.connect_many(BACKLOG);
    let page = watched.profiler.page();
    table.equal("length", watched.queue(&inode), watched.metric(&page, "accept_queue_length", 1));
    table.equal("length, as constructed", BACKLOG, watched.metric(&page, "accept_queue_length", 1));
    table.equal("limit", BACKLOG, watched.metric(&page, "accept_queue_limit", 1));
    // Linux calls a queue full when it is longer than its limit (sk_acceptq_is_full in include/net/sock.h).
    clients.push(watched.connect());
    let page = watched.profiler.page();
    table.equal("length over the limit", watched.queue(&inode), watched.metric(&page, "accept_queue_length", 1));
    table.equal("the same, as constructed", BACKLOG + 1, watched.metric(&page, "accept_queue_length", 1));
    table.equal("overflows before", 0, watched.metric(&page, "accept_overflows_total", 1));
    let before = kernel::tcp_counter(pid, "ListenOverflows");
    let waiting: Vec<_> = (0..7).map(|_| connect_without_waiting(watched.address)).collect();
    // Clients try again after a second, and again: the count is compared between two equal readings of the kernel's.
    let (truth, seen) = wait::until("overflows that rest while the page is read", || {
        let truth = kernel::tcp_counter(pid, "ListenOverflows") - before;
        let seen = watched.metric(&watched.profiler.page(), "accept_overflows_total", 1);
        let after = kernel::tcp_counter(pid, "ListenOverflows") - before;
        if truth >= 14 && truth == after { Ok((truth, seen)) } else { Err(format!("{truth}, then {after}")) }
    });
    table.equal("overflows", truth, seen);
    drop(waiting);
    table.equal("depths", BACKLOG + 1, watched.metric(&watched.profiler.page(), "accept_queue_depth_count", 1));
    let sum = (BACKLOG + 1) * (BACKLOG + 2) / 2;
    table.equal("sum of depths", sum, watched.metric(&watched.profiler.page(), "accept_queue_depth_sum", 1));
    table.equal("idle loop accepted", 0, number(&watched.fixture.ask("halt")["accepted"]));
    watched.fixture.ask(&format!("accept {}", BACKLOG + 1));
    let page = watched.profiler.page();
    let truth = number(&watched.fixture.ask("truth")["accepted"][0]);
    table.equal("accepted", truth, watched.metric(&page, "accepted_total", 1));
    table.equal("length afterwards", watched.queue(&inode), watched.metric(&page, "accept_queue_length", 1));
    watched.lost_nothing(&mut table);
    table.finish();
}

/// Begins to connect; the socket is closed when it is dropped.
fn connect_without_waiting(address: SocketAddr) -> std::os::fd::OwnedFd {
    use std::os::fd::{AsRawFd as _, FromRawFd as _};
    let SocketAddr::V4(address) = address else { panic!("only IPv4 is used here") };
    let name = libc::sockaddr_in {
        sin_family: libc::AF_INET as u16,
        sin_port: address.port().to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from(*address.ip()).to_be() },
        sin_zero: [0; 8],
    };
    // SAFETY: the descriptor is new and nobody else's; the address is live, and of the size that is passed.
    unsafe {
        let fd = libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_NONBLOCK, 0);
        assert!(fd >= 0, "no socket is left");
        let socket = std::os::fd::OwnedFd::from_raw_fd(fd);
        libc::connect(socket.as_raw_fd(), (&raw const name).cast(), size_of_val(&name) as u32);
        socket
    }
}

/// Check that two sockets of one address are told apart.
#[test]
fn reuseport() {
    const CONNECTIONS: u64 = 60;
    let mut watched = Watched::start(&["--backlog", "128", "--reuseport", "2"]);
    let mut table = Table::new("two listeners of one address");
    let _clients = watched.connect_many(CONNECTIONS);
    let inodes: Vec<Value> = watched.fixture.ready["inodes"].as_array().expect("a list").clone();
    // The profiler numbers them in the order of their inodes.
    let mut order: Vec<usize> = (0..inodes.len()).collect();
    order.sort_by_key(|&index| number(&inodes[index]));
    let page = watched.profiler.page();
    for (nth, &index) in order.iter().enumerate() {
        let seen = watched.metric(&page, "accept_queue_length", nth + 1);
        table.equal(format!("length of socket {index}"), watched.queue(&inodes[index]), seen);
        table.equal(
            format!("depths of socket {index}"),
            seen,
            watched.metric(&page, "accept_queue_depth_count", nth + 1),
        );
    }
    // One socket alone, then all that is left.
    watched.fixture.ask("accept-on 0 5");
    watched.fixture.ask(&format!("accept {}", CONNECTIONS - 5));
    let truth = watched.fixture.ask("truth");
    let page = watched.profiler.page();
    for name in ["accepted_total", "accept_wait_seconds_count", "accept_queue_depth_count"] {
        let sum = page.sum(&format!("profiler_{name}"), &[]) as u64;
        table.equal(format!("{name} of both"), CONNECTIONS, sum);
    }
    for (nth, &index) in order.iter().enumerate() {
        let seen = watched.metric(&page, "accepted_total", nth + 1);
        table.equal(format!("accepted on socket {index}"), number(&truth["accepted"][index]), seen);
        let waits = watched.metric(&page, "accept_wait_seconds_count", nth + 1);
        table.equal(format!("waits of socket {index}"), number(&truth["accepted"][index]), waits);
    }
    watched.lost_nothing(&mut table);
    table.finish();
}

/// Check that every connection of an event loop is counted, by the best way that this kernel has.
#[test]
fn serving() {
    check_serving(&[], 10_000);
}

/// The same by each of the other ways: what is better is left out, one after the other.
#[test]
fn serving_by_other_ways() {
    let check = Check::run(&[]);
    for signal in ["accept_depth", "accept_wait"] {
        let ways = check.ways(signal);
        for (n, way) in ways.iter().enumerate().skip(1) {
            let without: Vec<String> = ways[..n].iter().map(|better| format!("{signal}:{better}")).collect();
            let without: Vec<&str> = without.iter().map(String::as_str).collect();
            assert_eq!(Check::run(&without).way(signal), Some(way.as_str()));
            check_serving(&without, 1_000);
        }
    }
}

fn check_serving(without: &[&str], connections: u64) {
    let mut watched = Watched::start_without(without, &["--backlog", "511"]);
    let mut table = Table::new(format!("a serving event loop, without {without:?}"));
    watched.fixture.ask("serve");
    for _ in 0..connections {
        drop(watched.connect());
    }
    wait::until("an empty queue", || {
        let accepted = number(&watched.fixture.ask("truth")["accepted"][0]);
        if accepted == connections { Ok(()) } else { Err(format!("{accepted} accepted")) }
    });
    let page = watched.profiler.page();
    for name in ["accepted_total", "accept_wait_seconds_count", "accept_queue_depth_count"] {
        table.equal(name, connections, watched.metric(&page, name, 1));
    }
    watched.lost_nothing(&mut table);
    table.finish();
}

/// Check that a program which has an io_uring is seen to accept by it from the start.
#[test]
fn accepting_by_io_uring() {
    const CONNECTIONS: u64 = 60;
    place::require_root();
    let mut fixture = Fixture::start(&place::listener(), &["--backlog", "128"]);
    fixture.ask("ring");
    let address = (Ipv4Addr::LOCALHOST, number(&fixture.ready["ports"][0]) as u16).into();
    let profiler = Profiler::attach(fixture.pid());
    assert!(profiler.status().target(fixture.pid()).is_attached("accept_uring"));
    let mut watched = Watched { fixture, profiler, address };
    let mut table = Table::new("accepts by an io_uring that was there");
    let _clients = watched.connect_many(CONNECTIONS);
    watched.fixture.ask(&format!("accept-uring {CONNECTIONS} many"));
    let page = watched.profiler.page();
    for name in ["accepted_total", "accept_wait_seconds_count", "accept_queue_depth_count"] {
        table.equal(name, CONNECTIONS, watched.metric(&page, name, 1));
    }
    watched.lost_nothing(&mut table);
    table.finish();
}

/// Check that accepts by io_uring are not passed over in silence, and are seen from then on.
#[test]
fn accepted_by_io_uring() {
    const SEEN: u64 = 40;
    const UNSEEN: u64 = 50;
    let mut watched = Watched::start(&["--backlog", "128"]);
    let mut table = Table::new("accepts by io_uring");
    let _seen = watched.connect_many(SEEN);
    watched.fixture.ask(&format!("accept {SEEN}"));
    // What left the queue before it was looked at twice is no evidence.
    wait::until("a look at the queue", || match watched.metric(&watched.profiler.page(), "accepted_total", 1) {
        SEEN => Ok(()),
        accepted => Err(format!("{accepted} accepted")),
    });
    watched.profiler.page();
    let _unseen = watched.connect_many(UNSEEN);
    watched.fixture.ask(&format!("accept-uring {UNSEEN}"));
    let lost = wait::until("a loss", || {
        let page = watched.profiler.page();
        let lost = page.value("profiler_events_lost_total", &[("reason", "accept_unseen")]) as u64;
        if lost > 0 { Ok(lost) } else { Err("none".to_owned()) }
    });
    table.equal("unseen", UNSEEN, lost);
    let page = watched.profiler.page();
    table.equal("accepted, as seen", SEEN, watched.metric(&page, "accepted_total", 1));
    table.equal("depths", SEEN + UNSEEN, watched.metric(&page, "accept_queue_depth_count", 1));
    let status = watched.profiler.status();
    let row = status.target(watched.fixture.pid()).probe("accept_unseen").map(|(state, why)| format!("{state}: {why}"));
    let row = row.unwrap_or_default();
    table.holds("row", "broken, io_uring", &row, row.starts_with("broken") && row.contains("io_uring"));
    assert!(status.target(watched.fixture.pid()).is_attached("accept_uring"), "{row}");
    let mut accepted = SEEN;
    let mut clients = Vec::new();
    for way in ["", " many"] {
        clients.push(watched.connect_many(UNSEEN));
        watched.fixture.ask(&format!("accept-uring {UNSEEN}{way}"));
        accepted += UNSEEN;
        let page = watched.profiler.page();
        table.equal(format!("accepted by io_uring{way}"), accepted, watched.metric(&page, "accepted_total", 1));
        let waits = watched.metric(&page, "accept_wait_seconds_count", 1);
        table.equal(format!("waits by io_uring{way}"), accepted, waits);
    }
    let losses =
        watched.profiler.status().losses().into_iter().map(|(why, n)| format!("{why} {n}")).collect::<Vec<_>>();
    table.equal("lost", format!("accept_unseen {UNSEEN}"), losses.join(", "));
    table.finish();
}
