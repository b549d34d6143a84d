//! CPU time by type of task, from samples of the CPU clock, against what the tasks did.

use std::collections::BTreeMap;

use serde_json::Value;
use tests::fixture::Fixture;
use tests::kernel;
use tests::place;
use tests::profiler::Profiler;
use tests::status::{Kind, Status, number};
use tests::table::Table;
use tests::wait;

/// Percentage points by which a share may be off at 99 Hz.
const POINTS: f64 = 5.0;
/// Per cent by which all samples together may differ from the CPU time that the scheduler's tracepoints see.
const TOTAL: f64 = 10.0;
/// In the order in which they stand in their source.
const KINDS: [&str; 4] = ["mixed_large", "mixed_medium", "mixed_small", "mixed_tiny"];
/// Their source.
const SOURCE: &str = "mix.rs:";

/// Whether the profiler attaches before the tasks are spawned, or while they run.
#[derive(PartialEq)]
enum Attach {
    Before,
    Amid,
}

/// Checks a build: the kinds' shares of the CPU, with polls of some 0.2 to 1.6 µs times `scale`.
/// What the runtime does within a poll is not in the truth, some 50 ns: polls must not be all too short.
fn check(version: &str, profile: &str, scale: u64, attach: Attach) {
    place::require_root();
    let mut table = Table::new(format!("CPU time by task of {version} {profile}"));
    let mut fixture = Fixture::tokio(version, profile, &["tasks"]);
    let command = format!("mix 16 {scale}");
    if attach == Attach::Amid {
        fixture.tell(&command);
    }
    // Poll probes all the time would be most of the CPU time of such short polls.
    let profiler = Profiler::attach_within("2%", fixture.pid(), &[]);
    let status = profiler.status();
    let (state, detail) = status.target(fixture.pid()).probe("task_cpu").expect("a row");
    table.equal("task_cpu", "attached", state);
    table.equal("how", "sampled at 99 Hz by the CPU clock", detail);
    if attach == Attach::Before {
        fixture.tell(&command);
    }
    let truth = fixture.answer();
    assert!(truth.get("error").is_none(), "{truth}");
    let status = settled(&profiler, fixture.pid());
    let seen = shares(seen(&status, fixture.pid()));
    let truth = shares(KINDS.iter().map(|kind| (*kind, number(&truth["mixed_cpu_ns"][kind]))).collect());
    for kind in KINDS {
        let (truth, seen) = (truth[kind], seen.get(kind).copied().unwrap_or_default());
        let near = (truth - seen).abs() <= POINTS;
        table.holds(format!("{kind}, % of the CPU in tasks"), format!("{truth:.1}"), format!("{seen:.1}"), near);
    }
    // Of short polls none may be taken for one that holds its thread.
    let held: Vec<String> = status
        .target(fixture.pid())
        .kinds()
        .filter(|kind| !kind.0["long_runs"].is_null())
        .map(|kind| format!("{} {}", kind.name(), kind.0["long_runs"]))
        .collect();
    table.holds("kinds that held a thread", "none", format!("{held:?}"), held.is_empty());
    all_is_sampled(&mut table, &profiler);
    let losses = status.losses();
    table.holds("lost", "nothing", format!("{losses:?}"), losses.is_empty());
    table.finish();
}

/// Whether the samples add up to what the scheduler's tracepoints see, and how they divide.
fn all_is_sampled(table: &mut Table, profiler: &Profiler) {
    let page = profiler.page();
    let state = |state| page.value("profiler_runtime_cpu_seconds_total", &[("state", state)]);
    let tasks = page.sum("profiler_task_cpu_seconds_total", &[]);
    table.holds(
        "in tasks, s",
        format!("{tasks:.2}"),
        format!("{:.2}", state("task")),
        (tasks - state("task")).abs() < 1e-6,
    );
    let on_cpu = page.value("profiler_sched_on_cpu_seconds_total", &[]);
    let sampled = page.sum("profiler_runtime_cpu_seconds_total", &[]);
    let near = (sampled / on_cpu - 1.0).abs() * 100.0 <= TOTAL;
    table.holds("CPU time, s", format!("{on_cpu:.2}"), format!("{sampled:.2}"), near);
    for part in ["scheduler", "other", "unknown"] {
        let share = state(part) / sampled * 100.0;
        // Workers run tasks and themselves, and nothing else.
        let fits = part == "scheduler" || share < 2.0;
        table.holds(format!("{part}, % of all samples"), "few", format!("{share:.1}"), fits);
    }
}

fn shares(ns: BTreeMap<&'static str, u64>) -> BTreeMap<&'static str, f64> {
    let sum: u64 = ns.values().sum();
    ns.into_iter().map(|(kind, ns)| (kind, 100.0 * ns as f64 / sum as f64)).collect()
}

/// Samples take effect with the events of their time, a little later.
fn settled(profiler: &Profiler, pid: u32) -> Status {
    let mut last = Value::Null;
    wait::until("the last sample", || {
        let status = profiler.status();
        let now = status.target(pid).0["tasks"].clone();
        let same = now == last;
        last = now;
        if same { Ok(status) } else { Err("more came".to_owned()) }
    })
}

/// CPU time of each kind. A stripped build tells them by their lines.
fn seen(status: &Status, pid: u32) -> BTreeMap<&'static str, u64> {
    let cpu = |kind: Kind<'_>| number(&kind.0["cpu_ns"]);
    let line = |kind: Kind<'_>| kind.name().rsplit_once(SOURCE).and_then(|(_, line)| line.parse::<u32>().ok());
    let mut by_line: Vec<(u32, u64)> =
        status.target(pid).kinds().filter_map(|kind| Some((line(kind)?, cpu(kind)))).collect();
    if by_line.len() == KINDS.len() {
        by_line.sort_unstable();
        return KINDS.into_iter().zip(by_line.into_iter().map(|(_, ns)| ns)).collect();
    }
    let known = |kind: Kind<'_>| KINDS.into_iter().find(|known| kind.name().ends_with(known));
    status.target(pid).kinds().filter_map(|kind| Some((known(kind)?, cpu(kind)))).collect()
}

#[test]
fn cpu_by_task_of_the_latest_release() {
    check("latest", "release", 3, Attach::Before);
}

#[test]
fn cpu_by_task_of_1_28() {
    check("1.28", "release", 3, Attach::Before);
}

#[test]
fn cpu_by_task_of_a_stripped_build() {
    check("latest", "fat-stripped", 3, Attach::Before);
}

/// Check that tasks that are older than the profiler are told by their threads' stacks.
#[test]
fn cpu_by_task_of_tasks_that_ran_before() {
    check("latest", "release", 3, Attach::Amid);
}

/// Check that stacks alone tell tasks without ids. All of a poll is then the task's, also what the runtime does in it,
/// so that only longer polls can be compared with the work that they do.
#[test]
fn cpu_by_task_without_ids() {
    check("1.20", "release", 20, Attach::Before);
}

/// Check that no CPU is interrupted on which the target does not run, also when that changes.
#[test]
fn the_clock_ticks_where_the_target_may_run() {
    place::require_root();
    let fixture = Fixture::tokio("latest", "release", &["--workers", "2", "tasks"]);
    kernel::pin(fixture.pid(), &[0]);
    let mut profiler = Profiler::attach(fixture.pid());
    let pid = profiler.program().pid();
    let clocks = |expected: usize| {
        let held = || kernel::children(pid).into_iter().map(kernel::perf_links).sum::<usize>();
        wait::until(&format!("clocks on {expected} CPUs"), || match held() {
            n if n == expected => Ok(()),
            n => Err(format!("there are {n}")),
        });
    };
    clocks(1);
    kernel::pin(fixture.pid(), &[0, 1]);
    clocks(2);
    kernel::pin(fixture.pid(), &[1]);
    clocks(1);
}
