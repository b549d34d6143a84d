//! Puma with workers, one of which is killed under load and replaced: Puma's own counts beside the profiler's.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use serde_json::Value;
use tests::http::Connection;
use tests::profiler::Profiler;
use tests::server::{Server, Told};
use tests::status::number;
use tests::table::Table;
use tests::wait;

/// Clients at a time, every second of which keeps its connection, and requests of each.
const CLIENTS: u64 = 8;
const REQUESTS: u64 = 100;
/// How many replies there are when a worker is killed.
const BEFORE: u64 = 200;
const WORKERS: usize = 2;
/// Accepts that may not be seen before any are told as lost: as many may be on their way.
const UNTOLD: u64 = 16;
const THREADS: u64 = 2;

/// A figure of each worker that has told any, by its process id.
fn of_workers(stats: &Value, figure: &str) -> BTreeMap<u32, u64> {
    let workers = stats["worker_status"].as_array().expect("a list");
    let told = workers.iter().filter(|worker| worker["last_status"][figure].is_u64());
    told.map(|worker| (number(&worker["pid"]) as u32, number(&worker["last_status"][figure]))).collect()
}

/// What clients had.
#[derive(Default)]
struct Had {
    connections: AtomicU64,
    replies: AtomicU64,
    /// Replies that ended before they were whole: Puma writes heads and bodies by themselves.
    broken: AtomicU64,
}

impl Had {
    /// Asks until it has had its replies, on a new connection after each or after one that broke.
    fn ask(&self, address: SocketAddr, keeps: bool) {
        let mut kept = None;
        let mut left = REQUESTS;
        while left > 0 {
            let mut connection = kept.take().unwrap_or_else(|| {
                self.connections.fetch_add(1, Ordering::Relaxed);
                Connection::open(address).expect("it listens all the time")
            });
            if connection.ask("/sleep/5").and_then(|()| connection.answer()).is_ok() {
                self.replies.fetch_add(1, Ordering::Relaxed);
                left -= 1;
                kept = keeps.then_some(connection);
            } else if connection.has_begun() {
                self.broken.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

/// Check that no request is missed or counted twice, of workers that were there, of one that is killed, and of the one that
/// takes its place.
#[test]
fn a_worker_is_killed() {
    let puma = Server::puma(&["-w", "2", "--preload", "-t", "2:2"]);
    let before = puma.told();
    let profiler = Profiler::attach_with(puma.pid(), &["--requests"]);
    assert!(profiler.status().target(puma.pid()).is_attached("requests"));
    let mut table = Table::new("Puma, two workers, one killed");
    let threads = |of: &str| profiler.page().sum(&format!("profiler_sched_threads{of}"), &[]);
    let older_threads = threads("");
    let had = Had::default();
    let older = puma.workers();
    // One reply has begun when its worker is killed.
    let mut half = Connection::open(puma.address).expect("it listens");
    half.ask("/halves/600000").expect("it is connected");
    let begun = || puma.told().halves.first().copied();
    let killed = wait::until("one half of a reply", || begun().ok_or_else(|| "none".to_owned()));
    thread::scope(|scope| {
        for client in 0..CLIENTS {
            let (had, address) = (&had, puma.address);
            scope.spawn(move || had.ask(address, client % 2 == 0));
        }
        wait::until_true("replies", || had.replies.load(Ordering::Relaxed) >= BEFORE);
        puma.kill(killed);
    });
    had.connections.fetch_add(1, Ordering::Relaxed);
    half.answer().expect_err("its worker was killed");
    had.broken.fetch_add(u64::from(half.has_begun()), Ordering::Relaxed);
    let told = puma.told();
    let [connections, replies, broken] = [had.connections, had.replies, had.broken].map(AtomicU64::into_inner);
    table.equal("replies", CLIENTS * REQUESTS, replies);
    table.holds("replies that were cut off", format!("1 to {THREADS}"), broken, (1..=THREADS).contains(&broken));
    table.holds("workers", WORKERS, format!("{:?}", puma.workers()), puma.workers().len() == WORKERS);
    let came = puma.workers().into_iter().find(|worker| !older.contains(worker)).expect("a worker that is new");
    let of = |worker: u32| told.requests.get(&worker).copied().unwrap_or_default();
    // It is Puma that says when; every question is a request to its first process.
    let mut questions = 0;
    let stats = wait::until("what all workers have counted", || {
        let stats = puma.stats();
        questions += 1;
        let counts = of_workers(&stats, "requests_count");
        let all = counts.values().sum::<u64>() + of(killed) == told.all();
        if all { Ok(counts) } else { Err(format!("{counts:?}, told {told:?}")) }
    });
    for (worker, count) in &stats {
        let which = if *worker == came { "the new worker" } else { "the other worker" };
        table.equal(format!("requests of {which}, by itself and by Puma"), of(*worker), *count);
        table.holds("some of it", "> 0", count, *count > 0);
    }
    table.holds("some of the killed", "> 0", of(killed), of(killed) > 0);
    let began = told.all() - before.all();
    table.holds(
        "requests that ended with their worker",
        format!("<= {THREADS}"),
        began - replies,
        began - replies <= THREADS,
    );
    let truth = replies + broken + questions;
    let seen = || profiler.page().sum("profiler_request_seconds_count", &[]) as u64;
    table.equal("requests", truth, wait::until_or_last(seen, |seen| *seen >= truth));
    let open = || profiler.page().sum("profiler_connections_open", &[]) as u64;
    table.equal("open at the end", 0, wait::until_or_last(open, |open| *open == 0));
    // Those of the dead worker have ended, and as many have started, or as are there now.
    let balance = || (threads("") - older_threads, threads("_started_total") - threads("_ended_total"));
    let (more, came) = wait::until_or_last(balance, |(more, came)| more == came);
    table.equal("threads: more than before; started less ended", more, came);
    let ended = threads("_ended_total") as u64;
    table.holds("threads that have ended, one worker's", "> 2", ended, ended > THREADS);
    // Until the new worker has probes of its own its accepts are not seen. They are told as lost, once they are many.
    let name = puma.address.to_string();
    let accepts = || {
        let accepted = profiler.page().value("profiler_accepted_total", &[("listener", &name)]) as u64;
        let status = profiler.status();
        let losses: Vec<String> = status.losses().into_keys().map(str::to_owned).collect();
        (accepted, status.losses().get("accept_unseen").copied().unwrap_or_default(), losses)
    };
    let is_near = |accepted: u64, lost: u64| (connections - UNTOLD..=connections).contains(&(accepted + lost));
    let (accepted, lost, losses) = wait::until_or_last(accepts, |(accepted, lost, _)| is_near(*accepted, *lost));
    let both = format!("{accepted} + {lost}");
    table.holds("accepts that were seen, and told as lost", connections, both, is_near(accepted, lost));
    let nothing_else = losses.iter().all(|reason| reason == "accept_unseen");
    table.holds("lost", "accept_unseen at most", format!("{losses:?}"), nothing_else);
    table.finish();
}

/// Check that what Puma and the kernel know of connections at the same moment adds up: those that Puma has, in its threads
/// and in its own backlog, are those that are open, and all others wait in the kernel, where Puma does not see them.
#[test]
fn puma_and_the_kernel_at_one_moment() {
    const HELD_MS: u64 = 15_000;
    const CONNECTIONS: u64 = 10;
    let puma = Server::puma(&["-w", "2", "--preload", "-t", "2:2"]);
    let profiler = Profiler::attach_with(puma.pid(), &["--requests"]);
    let mut table = Table::new("Puma, two workers of two threads, ten slow requests");
    let mut clients: Vec<Connection> =
        (0..CONNECTIONS).map(|_| Connection::open(puma.address).expect("it listens")).collect();
    for client in &mut clients {
        client.ask(&format!("/sleep/{HELD_MS}")).expect("it is connected");
    }
    let name = puma.address.to_string();
    let at_once = || {
        let stats = puma.stats();
        let page = profiler.page();
        let sum = |figure: &str| of_workers(&stats, figure).values().sum::<u64>();
        let [running, capacity, backlog, most] = ["running", "pool_capacity", "backlog", "max_threads"].map(sum);
        let open = page.sum("profiler_connections_open", &[]) as u64;
        let queued = page.value("profiler_accept_queue_length", &[("listener", &name)]) as u64;
        let of = |state: &str| page.sum("profiler_requests_open", &[("state", state)]) as u64;
        (running, capacity, backlog, most, open, queued, of("in_progress"), of("unread"))
    };
    let (running, capacity, backlog, most, open, queued, served, unread) = wait::until_or_last(at_once, |now| {
        now.1 == 0 && now.3 - now.1 + now.2 == now.4 && now.4 + now.5 == CONNECTIONS && now.6 + now.7 == now.4
    });
    table.equal("running threads, by Puma", THREADS * WORKERS as u64, running);
    table.equal("room for more, by Puma", 0, capacity);
    table.equal("open connections: Puma's busy threads and its backlog", most - capacity + backlog, open);
    // One in its backlog may have been read already, by its reactor.
    let busy = most - capacity;
    table.equal("requests that are open: Puma's busy threads and its backlog", busy + backlog, served + unread);
    table.holds("of them in progress", format!(">= {busy}"), served, served >= busy);
    // How many it takes in before it finds all its threads busy is its own affair.
    table.equal("accept queue: all others", CONNECTIONS - open, queued);
    table.finish();
}

/// Check that workers that are attached to by themselves are counted by themselves.
#[test]
fn each_worker_by_itself() {
    const ASKED: u64 = 60;
    let puma = Server::puma(&["-w", "2", "--preload", "-t", "2:2"]);
    let workers = puma.workers();
    let ids: Vec<String> = workers.iter().map(u32::to_string).collect();
    let before = puma.told();
    let profiler = Profiler::attach_with(workers[0], &["--pid", &ids[1], "--requests"]);
    thread::scope(|scope| {
        for _ in 0..CLIENTS / 2 {
            let ask = || (0..2 * ASKED / CLIENTS).for_each(|_| drop(puma.get("/sleep/5").expect("an answer")));
            scope.spawn(ask);
        }
    });
    let told = puma.told();
    let mut table = Table::new("Puma, two workers, each by itself");
    for (worker, pid) in workers.iter().zip(&ids) {
        let of = |told: &Told| told.requests.get(worker).copied().unwrap_or_default();
        let truth = of(&told) - of(&before);
        let seen = || profiler.page().sum("profiler_request_seconds_count", &[("pid", pid)]) as u64;
        table.equal("requests of a worker", truth, wait::until_or_last(seen, |seen| *seen >= truth));
        table.holds("some of it", "> 0", truth, truth > 0);
    }
    table.equal("of both", ASKED, told.all() - before.all());
    table.finish();
}
