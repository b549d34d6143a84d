//! Diagnoses of programs that have what is diagnosed.

use std::net::{Ipv4Addr, TcpStream};

use serde_json::Value;
use tests::fixture::Fixture;
use tests::place;
use tests::profiler::Profiler;
use tests::status::number;
use tests::wait;

/// Waits for a diagnosis of a target whose subject ends in `subject`.
fn found(profiler: &Profiler, name: &str, subject: &str) -> Value {
    wait::until(name, || {
        let all = profiler.status().0["diagnoses"].clone();
        let is_it =
            |found: &&Value| found["name"] == name && found["subject"].as_str().is_some_and(|of| of.ends_with(subject));
        all.as_array().and_then(|all| all.iter().find(is_it).cloned()).ok_or_else(|| all.to_string())
    })
}

/// How often the log says that it was found, once it does: a line may arrive after the status that it belongs to.
fn said(profiler: &mut Profiler, name: &str, subject: &str) -> usize {
    wait::until("the line in the log", || {
        let lines = profiler.program().errors();
        let count = lines.iter().filter(|line| line.contains(name) && line.contains(subject)).count();
        if count > 0 { Ok(count) } else { Err(format!("{lines:?}")) }
    })
}

/// Check that a task that holds its thread is told, with a length that it may really have had.
#[test]
fn a_task_that_blocks_its_worker_is_named() {
    place::require_root();
    let mut fixture = Fixture::tokio("latest", "release", &["tasks"]);
    let mut profiler = Profiler::attach(fixture.pid());
    fixture.ask("busy 8 400000");
    let diagnosis = found(&profiler, "task_blocks_worker", "spinning");
    assert_eq!(diagnosis["target"], fixture.pid(), "{diagnosis}");
    assert_eq!(diagnosis["severity"], "warning", "{diagnosis}");
    assert_eq!(said(&mut profiler, "task_blocks_worker", "spinning"), 1);
    let status = profiler.status();
    let kind = status.target(fixture.pid()).kinds().find(|kind| kind.name().ends_with("spinning")).expect("the type");
    let runs = &kind.0["long_runs"];
    // By the wall clock it may have been longer than it wanted, on a busy host.
    assert!((40..=4_000).contains(&(number(&runs["longest_at_least_ns"]) / 1_000_000)), "{runs}");
    assert!((1..=8).contains(&number(&runs["count"])), "{runs}");
}

/// Check that a queue that nobody empties is told, although nothing of the program's own is measured.
#[test]
fn an_accept_queue_that_is_full_is_named() {
    place::require_root();
    let fixture = Fixture::start(&place::listener(), &["--backlog", "4"]);
    let port = u16::try_from(number(&fixture.ready["ports"][0])).expect("a port");
    let mut profiler = Profiler::attach(fixture.pid());
    // One more than the limit is let in.
    let _waiting: Vec<TcpStream> =
        (0..5).map(|_| TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("a connection")).collect();
    let diagnosis = wait::until("all five connections", || {
        // It is found with four already, if it is looked for between two of them.
        let found = found(&profiler, "accept_queue_full_runtime_idle", &port.to_string());
        if number(&found["evidence"]["length"]) == 5 { Ok(found) } else { Err(found.to_string()) }
    });
    assert_eq!(diagnosis["severity"], "critical", "{diagnosis}");
    assert_eq!(number(&diagnosis["evidence"]["limit"]), 4, "{diagnosis}");
    assert_eq!(said(&mut profiler, "accept_queue_full_runtime_idle", &port.to_string()), 1);
}
