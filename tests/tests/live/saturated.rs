//! A server whose own figures are quiet while its clients wait where it does not look: Puma, and the kernel's accept queue.

use tests::http::Connection;
use tests::kernel;
use tests::page::Page;
use tests::profiler::Profiler;
use tests::server::Server;
use tests::status::number;
use tests::table::Table;
use tests::wait;

/// The argument of listen, and how many connections that lets in.
const BACKLOG: u64 = 4;
const WAITING: u64 = BACKLOG + 1;
/// How long the only thread is held.
const HELD_MS: u64 = 8_000;

fn sum(page: &Page, name: &str) -> f64 {
    page.sum(&format!("profiler_{name}"), &[])
}

/// Check that connections that wait are seen while Puma sees none, for how long they did, and that a diagnosis names it.
fn check(how: &str, diagnosis: &str) {
    let puma = Server::puma_with(&format!("?backlog={BACKLOG}"), &["-t", "1:1"]);
    let profiler = Profiler::attach_with(puma.pid(), &["--requests"]);
    let name = puma.address.to_string();
    let label = [("listener", name.as_str())];
    let mut table = Table::new(format!("Puma with one thread, held by {how}"));
    let mut first = Connection::open(puma.address).expect("it listens");
    first.ask(&format!("/{how}/{HELD_MS}")).expect("it is connected");
    wait::until_true("the first request", || puma.told().all() == 2);
    let mut clients: Vec<(Connection, u64)> = (0..WAITING)
        .map(|_| (Connection::open(puma.address).expect("there is room"), kernel::monotonic_ns()))
        .collect();
    clients.iter_mut().for_each(|(client, _)| client.ask("/none").expect("it is connected"));
    let found = wait::until_or_last(
        || {
            let all = profiler.status().0["diagnoses"].clone();
            all.as_array().and_then(|all| {
                all.iter().find(|found| found["name"] == diagnosis && found["subject"] == name.as_str()).cloned()
            })
        },
        |found| found.as_ref().is_some_and(|found| number(&found["evidence"]["length"]) == WAITING),
    );
    // Both sides, one after the other, while nothing changes.
    let stats = puma.stats();
    let page = profiler.page();
    table.equal("backlog, by Puma: none waits", 0, number(&stats["backlog"]));
    table.equal("requests, by Puma: that one, and one before", 2, number(&stats["requests_count"]));
    table.equal("accept queue, by the kernel", WAITING, page.value("profiler_accept_queue_length", &label) as u64);
    table.equal("its limit", BACKLOG, page.value("profiler_accept_queue_limit", &label) as u64);
    let said = found.as_ref().and_then(|found| found["summary"].as_str()).unwrap_or("none");
    table.holds("diagnosis", diagnosis, said, found.is_some());
    first.answer().expect("an answer");
    drop(first);
    let waited: u64 = clients
        .into_iter()
        .map(|(mut client, connected)| {
            client.answer().expect("an answer");
            kernel::monotonic_ns() - connected
        })
        .sum();
    let seen = |page: &Page| page.value("profiler_accept_wait_seconds_count", &label) as u64 == WAITING + 1;
    let page = wait::until_or_last(|| profiler.page(), seen);
    // What clients waited for is all in front of accept, and nothing of it in Puma's requests.
    let waits = page.value("profiler_accept_wait_seconds_sum", &label);
    table.within("clients waited, s; before accept", waited as f64 / 1e9, waits, 2.0);
    let requests = sum(&page, "request_seconds_sum") - HELD_MS as f64 / 1e3;
    table.holds("in their requests, s", "< 10 % of it", format!("{requests:.3}"), requests < waits / 10.0);
    table.finish();
}

#[test]
fn puma_waits() {
    check("sleep", "accept_queue_full_runtime_idle");
}

#[test]
fn puma_computes() {
    check("spin", "accept_queue_full_runtime_busy");
}
