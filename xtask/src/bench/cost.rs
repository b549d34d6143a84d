//! What the profiler costs a target, on workloads from idle to the worst: under its default budget, and without one.

use anyhow::Result;

use super::pairs::{Start, profiled};
use super::{FULL, Programs, Row, workload};
use crate::fixtures;

/// What a cost under the default budget should be at most.
const BAR: &str = "1.03";

fn budgeted(programs: &Programs, start: Start<'_>, what: &str, operation: &str) -> Result<Vec<Row>> {
    Ok(profiled(programs, start, &[])?.rows(what, operation, BAR))
}

/// Requests that are answered at once, over connections that stay open.
pub fn keep_alive(programs: &Programs) -> Result<Vec<Row>> {
    let start = || workload::http(&programs.fixture, &workload::HTTP, "/");
    budgeted(programs, &start, "HTTP keep-alive, `/`", "request")
}

/// Requests that spawn and join four tasks each.
pub fn spawning(programs: &Programs) -> Result<Vec<Row>> {
    let start = || workload::http(&programs.fixture, &workload::HTTP, "/spawn");
    budgeted(programs, &start, "HTTP keep-alive, `/spawn` (4 tasks)", "request")
}

/// A million polls a second, each of which wakes another task.
pub fn ping_pong(programs: &Programs) -> Result<Vec<Row>> {
    budgeted(programs, &|| workload::ping_pong(&programs.fixture), "ping-pong, 1M polls/s", "poll")
}

/// As many tasks as one worker can run.
pub fn storm(programs: &Programs) -> Result<Vec<Row>> {
    budgeted(programs, &|| workload::storm(&programs.fixture), "spawn storm", "task")
}

/// A server that is asked twenty times a second.
pub fn quiet(programs: &Programs) -> Result<Vec<Row>> {
    budgeted(programs, &|| workload::quiet(&programs.fixture), "idle server, 20 requests/s", "second")
}

/// The same, with parents found by probes on every poll and not in thread-local storage.
pub fn poll_stack(programs: &Programs) -> Result<Vec<Row>> {
    let start = || workload::http(&programs.fixture, &workload::HTTP, "/spawn");
    let outcome = profiled(programs, &start, &["--poll-stack"])?;
    Ok(outcome.rows("HTTP keep-alive, `/spawn`, parents by poll probes", "request", "-"))
}

/// Without a budget: the cost of everything, and whether it is what the profiler says that it is.
pub fn full(programs: &Programs) -> Result<Vec<Row>> {
    let http = |path: &'static str| move || workload::http(&programs.fixture, &workload::HTTP, path);
    let axum = fixtures::compared("axum")?;
    let workloads: [(Start<'_>, &str, &str, &'static str); 5] = [
        (&|| workload::http(&axum, &[], "/yield"), "no budget, axum, 2 polls a request", "request", "1.75"),
        (&http("/yield"), "no budget, HTTP `/yield` (2 polls)", "request", "-"),
        (&http("/"), "no budget, HTTP `/`", "request", "-"),
        (&http("/spawn"), "no budget, HTTP `/spawn`", "request", "-"),
        (&|| workload::ping_pong(&programs.fixture), "no budget, ping-pong", "poll", "-"),
    ];
    let mut rows = Vec::new();
    for (start, what, operation, bar) in workloads {
        let outcome = profiled(programs, start, FULL)?;
        rows.extend(outcome.rows(what, operation, bar));
        rows.push(outcome.estimate(what, operation));
    }
    Ok(rows)
}
