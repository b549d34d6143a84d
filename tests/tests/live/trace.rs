//! Full traces, against the target's own counts.

use std::collections::BTreeMap;
use std::fs;

use serde_json::Value;
use tests::fixture::Fixture;
use tests::place;
use tests::profiler::{Profiler, run_to_end};
use tests::scratch::Scratch;
use tests::status::number;
use tests::table::Table;

/// Kinds of which the fixture knows all polls and wakes.
const KNOWN: [&str; 2] = ["waking", "woken"];

fn text(scratch: &Scratch) -> &str {
    scratch.0.to_str().expect("a plain path")
}

fn events(scratch: &Scratch) -> Vec<Value> {
    serde_json::from_slice(&fs::read(&scratch.0).expect("the trace can be read")).expect("the trace is JSON")
}

/// Check that every birth, end, poll and wake is in the trace, and that polls of a thread lie within each other or apart.
#[test]
fn everything_is_traced() {
    place::require_root();
    let mut table = Table::new("a full trace");
    let scratch = Scratch::new("trace");
    let mut fixture = Fixture::tokio("latest", "release", &["tasks"]);
    let profiler = Profiler::attach_with(fixture.pid(), &["--trace", text(&scratch)]);
    let truth = fixture.ask("wakes 40");
    // A scrape takes what is in the ring.
    let status = profiler.status();
    let losses = status.losses();
    profiler.stop();
    let events = events(&scratch);
    let count = |kind: &str, phase: &str, wake: Option<&str>| {
        let is = |event: &&Value| {
            event["ph"] == phase
                && event["name"].as_str().is_some_and(|name| name.ends_with(kind))
                && wake.is_none_or(|wake| event["args"]["wake"] == wake)
        };
        events.iter().filter(is).count() as u64
    };
    for kind in KNOWN {
        table.equal(format!("{kind}: spawned"), number(&truth["spawned"][kind]), count(kind, "b", None));
        table.equal(format!("{kind}: ended"), number(&truth["spawned"][kind]), count(kind, "e", None));
        table.equal(format!("{kind}: polls"), number(&truth["polls"][kind]), count(kind, "X", None));
        for wake in ["by_value", "by_ref"] {
            table.equal(
                format!("{kind}: wakes {wake}"),
                truth["wakes"][wake][kind].as_u64().unwrap_or(0),
                count(kind, "i", Some(wake)),
            );
        }
    }
    let mut threads: BTreeMap<u64, Vec<(f64, f64)>> = BTreeMap::new();
    for event in events.iter().filter(|event| event["ph"] == "X") {
        let (ts, dur) = (event["ts"].as_f64().expect("a time"), event["dur"].as_f64().expect("a duration"));
        threads.entry(number(&event["tid"])).or_default().push((ts, ts + dur));
    }
    let overlaps = |polls: &Vec<(f64, f64)>| {
        let nested = |a: &(f64, f64), b: &(f64, f64)| b.1 <= a.1 || b.0 >= a.1 - 0.001;
        let mut polls = polls.clone();
        polls.sort_by(|a, b| a.0.total_cmp(&b.0));
        polls.windows(2).filter(|pair| !nested(&pair[0], &pair[1])).count()
    };
    table.equal("polls that overlap on a thread", 0, threads.values().map(overlaps).sum::<usize>());
    table.holds("lost", "nothing", format!("{losses:?}"), losses.is_empty());
    table.finish();
}

/// Check that a trace ends at its limit, is whole, and that the target's probes make no more records of polls.
#[test]
fn a_trace_has_a_limit() {
    place::require_root();
    let mut table = Table::new("a trace of 1 MiB");
    let scratch = Scratch::new("limited-trace");
    let mut fixture = Fixture::tokio("latest", "release", &["tasks"]);
    let profiler = Profiler::attach_with(fixture.pid(), &["--trace", text(&scratch), "--trace-limit", "1"]);
    let mut truth = Value::Null;
    for _ in 0..20 {
        truth = fixture.ask("run 1000");
    }
    let spawned = number(&truth["tasks"]["spawned"]);
    table.equal("spawned", spawned, profiler.status().target(fixture.pid()).spawned());
    profiler.stop();
    let size = fs::metadata(&scratch.0).expect("the trace is there").len();
    table.holds("size", "just under 1 MiB", size, (900_000..=(1 << 20) + 3).contains(&size));
    table.holds("events", "thousands", events(&scratch).len(), events(&scratch).len() > 1000);
    table.finish();
}

/// Check that a file is not overwritten, and that nothing is attached when it cannot be written.
#[test]
fn bad_files_are_refused() {
    place::require_root();
    let mut table = Table::new("traces that cannot be written");
    let scratch = Scratch::new("existing");
    fs::write(&scratch.0, "mine").expect("a file can be written");
    let fixture = Fixture::tokio("latest", "release", &["tasks"]);
    for path in [text(&scratch), "/nowhere/trace"] {
        let ended = run_to_end(&["attach", "--pid", &fixture.pid().to_string(), "--trace", path]);
        table.equal(format!("{path}: exit code"), 1, ended.code().unwrap_or(-1));
        let said = ended.stderr.join(" ");
        table.holds(format!("{path}: names it"), path, &said, said.contains(path) && said.starts_with("error:"));
    }
    table.equal("the file", "mine".to_owned(), fs::read_to_string(&scratch.0).expect("it is there"));
    table.finish();
}
