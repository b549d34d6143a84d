//! CPU time by type of task, from samples of the CPU clock, against what the tasks measured themselves.

use std::collections::BTreeMap;

use serde_json::Value;
use tests::fixture::Fixture;
use tests::place;
use tests::profiler::Profiler;
use tests::status::{Status, number};
use tests::table::Table;
use tests::wait;

/// Percentage points by which a share may be off, at 99 Hz.
const TOLERANCE: f64 = 5.0;
const KINDS: [&str; 4] = ["mixed_large", "mixed_medium", "mixed_small", "mixed_tiny"];

/// Checks a build: the kinds' shares of the CPU in polls of some 0.2 to 1.6 µs, and that all CPU time is sampled.
/// Names of a stripped build are those of the same build with its symbols.
fn check(version: &str, profile: &str) {
    place::require_root();
    let mut table = Table::new(format!("CPU time by task of {version} {profile}"));
    let mut fixture = Fixture::tokio(version, profile, &["tasks"]);
    let profiler = Profiler::attach(fixture.pid());
    let status = profiler.status();
    let row = status.target(fixture.pid()).probe("task_cpu");
    table.holds("task_cpu", "attached", format!("{row:?}"), row.is_some_and(|(state, _)| state == "attached"));
    let truth = fixture.ask("mix 10");
    let after = settled(&profiler, fixture.pid());
    let tasks = &after.target(fixture.pid()).0["tasks"];
    let truth = shares(KINDS.iter().map(|kind| (*kind, number(&truth["mixed_cpu_ns"][kind]))).collect());
    let seen = shares(seen(&after, fixture.pid()));
    for kind in KINDS {
        let (truth, seen) = (truth[kind], seen.get(kind).copied().unwrap_or(0.0));
        let near = (truth - seen).abs() <= TOLERANCE;
        table.holds(format!("{kind}, % of the CPU in tasks"), format!("{truth:.1}"), format!("{seen:.1}"), near);
    }
    eprintln!("{}", tasks["cpu"]);
    table.finish();
}
fn shares(ns: BTreeMap<&str, u64>) -> BTreeMap<&str, f64> {
    let sum: u64 = ns.values().sum();
    ns.into_iter().map(|(kind, ns)| (kind, 100.0 * ns as f64 / sum as f64)).collect()
}

/// Samples take effect with the events of their time, a little later.
fn settled(profiler: &Profiler, pid: u32) -> Status {
    let cpu = |status: &Status| status.target(pid).0["tasks"]["cpu"].clone();
    let mut last = Value::Null;
    wait::until("the last sample", || {
        let status = profiler.status();
        let now = cpu(&status);
        let same = now == last && !now.is_null();
        last = now;
        if same { Ok(status) } else { Err("more came".to_owned()) }
    })
}

fn seen(status: &Status, pid: u32) -> BTreeMap<&'static str, u64> {
    let mut seen = BTreeMap::new();
    for kind in status.target(pid).kinds() {
        eprintln!(
            "{} {} {} alive {} long {}",
            kind.name(),
            kind.0["cpu_ns"],
            kind.spawned(),
            kind.alive(),
            kind.0["long_runs"]
        );
        let known = KINDS.iter().find(|known| kind.name().ends_with(*known));
        if let Some(known) = known {
            *seen.entry(*known).or_default() += kind.0["cpu_ns"].as_u64().unwrap_or_default();
        }
    }
    seen
}

#[test]
fn cpu_by_task_of_the_latest_release() {
    check("latest", "release");
}

#[test]
fn cpu_by_task_of_1_28() {
    check("1.28", "release");
}

#[test]
fn cpu_by_task_without_ids() {
    check("1.20", "release");
}

#[test]
fn cpu_by_task_of_a_stripped_build() {
    check("latest", "fat-stripped");
}
