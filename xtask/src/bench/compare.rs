//! The same HTTP server with other tools in it, beside ours: what each costs per request.

use anyhow::Result;

use super::pairs::{profiled, versus};
use super::{Effort, Programs, Row, workload};
use crate::fixtures;

/// Folder in tests/fixtures/compare, and what it is.
const TOOLS: [(&str, &str); 3] = [
    ("metrics", "tokio-metrics, every task instrumented"),
    ("dial9", "dial9"),
    ("console", "console-subscriber, no client"),
];
const PATHS: [&str; 2] = ["/", "/spawn"];
/// console-subscriber keeps some 50 KB of each task: a longer run would only need more memory.
const PAIRS: usize = 4;

/// Each of the tools that can be built here, then ours.
pub fn compare(programs: &Programs) -> Result<Vec<Row>> {
    let effort = Effort { pairs: programs.effort.pairs.min(PAIRS), ..programs.effort };
    let mut rows = Vec::new();
    for (folder, tool) in TOOLS {
        let server = match fixtures::compared(folder) {
            Ok(server) => server,
            Err(e) => {
                rows.push(Row::new(tool, format!("does not build here: {e:#}"), "-"));
                continue;
            }
        };
        for path in PATHS {
            let plain = || workload::http(&programs.fixture, &workload::HTTP, path);
            match versus(&effort, &|| workload::http(&server, &[], path), &plain) {
                Ok(outcome) => rows.extend(outcome.rows(&format!("{tool}, `{path}`"), "request", "-")),
                Err(e) => rows.push(Row::new(format!("{tool}, `{path}`"), format!("failed: {e:#}"), "-")),
            }
        }
    }
    for path in PATHS {
        let start = || workload::http(&programs.fixture, &workload::HTTP, path);
        rows.extend(profiled(programs, &start, &[])?.rows(&format!("profiler, `{path}`"), "request", "1.03"));
    }
    Ok(rows)
}
