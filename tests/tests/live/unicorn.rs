//! Unicorn, whose workers each serve one connection at a time: its own counts beside the profiler's.

use std::thread;

use tests::page::Page;
use tests::profiler::Profiler;
use tests::server::{Server, Told};
use tests::table::Table;
use tests::wait;

/// How long each reply is followed by work. Unicorn closes the connection in between, and looks for another one afterwards.
const AFTER_MS: u64 = 100;
/// As many as there are workers.
const CLIENTS: u64 = 2;
const REQUESTS: u64 = 12;
const TOLERANCE: f64 = 2.0;

/// Asks with as many clients as there are workers.
fn ask(unicorn: &Server, path: &str) {
    thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| (0..REQUESTS).for_each(|_| drop(unicorn.get(path).expect("an answer"))));
        }
    });
}

fn sum(page: &Page, name: &str) -> f64 {
    page.sum(&format!("profiler_{name}"), &[])
}

/// The page once it has so many requests, and what came after so many replies.
fn page(profiler: &Profiler, requests: u64, afters: u64) -> Page {
    let seen = |page: &Page| {
        let count = |name: &str| sum(page, &format!("{name}_seconds_count")) as u64;
        count("request") >= requests && count("after_reply") >= afters
    };
    wait::until_or_last(|| profiler.page(), seen)
}

/// What it has told once the work after `afters` replies is done.
fn told(unicorn: &Server, afters: u64) -> Told {
    wait::until("work after replies", || {
        let told = unicorn.told();
        if told.afters == afters { Ok(told) } else { Err(format!("{told:?}")) }
    })
}

fn nothing_lost(table: &mut Table, profiler: &Profiler) {
    let status = profiler.status();
    let losses = status.losses();
    table.holds("lost", "nothing", format!("{losses:?}"), losses.is_empty());
}

/// Check that requests are counted exactly, and that the time after replies is what the workers spend there: asleep or on a
/// CPU, in either case they are not available for the next connection.
#[test]
fn after_replies_of_unicorn() {
    let unicorn = Server::unicorn();
    let before = unicorn.told();
    let profiler = Profiler::attach_with(unicorn.pid(), &["--requests"]);
    let mut table = Table::new("Unicorn, rack.after_reply");
    let (mut requests, mut after_ns) = (0, 0);
    for how in ["sleep", "spin"] {
        let older = profiler.page();
        ask(&unicorn, &format!("/sleep/5/{how}/{AFTER_MS}"));
        requests += CLIENTS * REQUESTS;
        let told = told(&unicorn, requests);
        let page = page(&profiler, requests, requests);
        table.equal(format!("requests, {how}"), told.all() - before.all(), sum(&page, "request_seconds_count") as u64);
        table.equal(format!("replies, {how}"), told.afters, sum(&page, "after_reply_seconds_count") as u64);
        let grown = |name: &str| sum(&page, name) - sum(&older, name);
        let truth = (told.after_ns - after_ns) as f64 / 1e9;
        after_ns = told.after_ns;
        table.within(format!("after replies, s, {how}"), truth, grown("after_reply_seconds_sum"), TOLERANCE);
        // Which of both it was is told by the scheduler. A thread that computes uses a CPU, or waits for one.
        let wanted = |page: &Page| {
            let waits = page.sum("profiler_sched_off_cpu_seconds_total", &[("reason", "run_queue")]);
            waits + sum(page, "sched_on_cpu_seconds_total")
        };
        let wanted = (wanted(&page) - wanted(&older)) / truth;
        let (bar, right) = if how == "spin" { ("> 0.95", wanted > 0.95) } else { ("< 0.5", wanted < 0.5) };
        table.holds(format!("of it on a CPU or waiting for one, {how}"), bar, format!("{wanted:.2}"), right);
    }
    nothing_lost(&mut table, &profiler);
    table.finish();
}

/// Check that a worker that ends at work and the one that takes its place are counted as the others are.
#[test]
fn a_worker_of_unicorn_dies_and_returns() {
    let unicorn = Server::unicorn();
    let before = unicorn.told();
    let older = unicorn.workers();
    let profiler = Profiler::attach_with(unicorn.pid(), &["--requests"]);
    let mut table = Table::new("Unicorn, two workers, one killed");
    ask(&unicorn, &format!("/sleep/5/sleep/{AFTER_MS}"));
    told(&unicorn, CLIENTS * REQUESTS);
    // Both begin to work after a reply, which one of them never finishes.
    for _ in 0..CLIENTS {
        unicorn.get("/sleep/5/sleep/3000").expect("an answer");
    }
    unicorn.kill(older[0]);
    // The other one is still at it: this is answered by the new worker at once, before anything can be attached to it.
    unicorn.get("/sleep/5").expect("an answer");
    ask(&unicorn, &format!("/sleep/5/sleep/{AFTER_MS}"));
    let afters = CLIENTS * REQUESTS * 2 + CLIENTS - 1;
    let told = told(&unicorn, afters);
    let came: Vec<u32> = unicorn.workers().into_iter().filter(|worker| !older.contains(worker)).collect();
    table.holds("new workers", 1, format!("{came:?}"), came.len() == 1);
    let of_new: u64 = came.iter().filter_map(|worker| told.requests.get(worker)).sum();
    table.holds("its requests", "> 0", of_new, of_new > 0);
    let requests = told.all() - before.all();
    table.equal("requests, as asked for", CLIENTS * REQUESTS * 2 + CLIENTS + 1, requests);
    let page = page(&profiler, requests, afters);
    table.equal("requests", requests, sum(&page, "request_seconds_count") as u64);
    table.equal("open at the end", 0, sum(&page, "connections_open") as u64);
    table.within("after replies, s", told.after_ns as f64 / 1e9, sum(&page, "after_reply_seconds_sum"), TOLERANCE);
    table.finish();
}
