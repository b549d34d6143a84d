//! What the profiler costs a service of Ruby under its default budget: one of threads, one of fibers.

use std::path::PathBuf;

use anyhow::Result;

use super::pairs::profiled;
use super::{Programs, Row, workload};
use crate::process::root;
use crate::setup;

const BAR: &str = "1.03";

/// A request is answered by one of four threads, which take turns.
pub fn sinatra(programs: &Programs) -> Result<Vec<Row>> {
    setup::have("sinatra")?;
    // A connection for each thread: Puma leaves others waiting for its reactor.
    server(programs, 4, "sinatra_server.rb", "Sinatra on Puma")
}

/// A request has a fiber of its own, and its connection another one.
pub fn fibers(programs: &Programs) -> Result<Vec<Row>> {
    server(programs, 16, "fiber_server.rb", "a server of fibers")
}

fn server(programs: &Programs, connections: usize, script: &str, what: &str) -> Result<Vec<Row>> {
    let script: PathBuf = root().join("tests/fixtures/ruby").join(script);
    let outcome = profiled(programs, &|| workload::http_over(connections, &script, &[], "/"), &[])?;
    Ok(outcome.rows(what, "request", BAR))
}
