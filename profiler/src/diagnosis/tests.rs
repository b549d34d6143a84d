//! The rows on constructed snapshots, and how findings begin and end.

use crate::histogram::Histogram;
use profiler_common::sched::after;

use super::*;
use crate::model::snapshot::{
    ListenerSnapshot, LongRunSnapshot, PollSnapshot, SchedSnapshot, TargetSnapshot, TaskTypeSnapshot, TasksSnapshot,
    UnfinishedPolls,
};
use crate::status::TargetStatus;

const SECOND: u64 = 1_000_000_000;
const PID: u32 = 42;

/// A target that does nothing at second `n`.
fn idle() -> TargetSnapshot {
    TargetSnapshot {
        pid: PID,
        process: "server".into(),
        runtime: "tokio",
        runtime_version: None,
        running: true,
        status: TargetStatus::default(),
        sched: Some(SchedSnapshot::default()),
        listeners: Vec::new(),
        tasks: None,
        threads: None,
        processes: None,
        ..TargetSnapshot::default()
    }
}

/// The same with one type of task.
fn with_task(kind: TaskTypeSnapshot) -> TargetSnapshot {
    let kind = TaskTypeSnapshot { name: "app::task".into(), ..kind };
    TargetSnapshot { tasks: Some(TasksSnapshot { types: vec![kind], ..TasksSnapshot::default() }), ..idle() }
}

fn polls(polls: u64, self_wakes: u64, slow: u64, slowest_ns: u64) -> PollSnapshot {
    PollSnapshot {
        polls,
        busy_ns: 0,
        poll: Histogram::EMPTY,
        delay: None,
        first_delay: None,
        wakes: Some([0, 0, self_wakes]),
        slow,
        slowest_ns,
    }
}

/// Observes one snapshot a second, and returns the changes with their seconds: `+name` and `-name`.
fn changes(seconds: u64, target: impl Fn(u64) -> TargetSnapshot) -> Vec<(u64, String)> {
    let mut diagnoses = Diagnoses::default();
    let mut changes = Vec::new();
    for second in 0..seconds {
        let snapshot =
            Snapshot { time_ns: (100 + second) * SECOND, targets: vec![target(second)], ..Snapshot::default() };
        for change in diagnoses.observe(&snapshot) {
            changes.push((
                second,
                match change {
                    Change::Appeared(found) => format!("+{}", found.name),
                    Change::Ended(found) => format!("-{}", found.name),
                },
            ));
        }
    }
    changes
}

/// Checks which findings there are after half a minute of one snapshot a second, and that each is said once.
fn check(target: impl Fn(u64) -> TargetSnapshot, expected: &[&str]) {
    let found: Vec<String> = changes(30, target).into_iter().map(|(_, change)| change).collect();
    let expected: Vec<String> = expected.iter().map(|name| format!("+{name}")).collect();
    assert_eq!(found, expected);
}

/// Check that the table has no name twice.
#[test]
fn rows_are_unique() {
    let names: std::collections::BTreeSet<_> = ROWS.iter().map(|row| row.name).collect();
    assert_eq!(names.len(), ROWS.len());
}

/// Check that nothing is wrong with a target of which nothing was measured, or that does nothing.
#[test]
fn nothing_is_found_in_nothing() {
    check(|_| idle(), &[]);
    check(|_| TargetSnapshot { sched: None, ..idle() }, &[]);
    check(|_| with_task(TaskTypeSnapshot::default()), &[]);
}

/// Check that slow polls and sampled runs name the task, but not what is slow by intention or fast enough.
#[test]
fn a_task_that_blocks_is_found() {
    let slow = |slow, slowest_ns| {
        move |n| with_task(TaskTypeSnapshot { polls: Some(polls(n, 0, n / slow, slowest_ns)), ..Default::default() })
    };
    check(slow(5, 50_000_000), &["task_blocks_worker"]);
    check(slow(5, 9_000_000), &[]);
    check(slow(1_000, 50_000_000), &[]);
    let run = |blocking| {
        move |n: u64| {
            let runs =
                LongRunSnapshot { count: n / 7, last_ns: n / 7, last_length_ns: 40_000_000, ..Default::default() };
            with_task(TaskTypeSnapshot { long_runs: (n >= 7).then_some(runs), blocking, ..Default::default() })
        }
    };
    check(run(false), &["task_blocks_worker"]);
    check(run(true), &[]);
}

/// Check that a poll that goes on is found at once, and before those that are over; not in what is there to block.
#[test]
fn a_poll_that_does_not_end_is_found() {
    let unfinished = |longest_ns, blocking| {
        move |n| {
            let unfinished = Some(UnfinishedPolls { count: u64::from(longest_ns > 0), longest_ns, tid: 7 });
            let polls = Some(polls(n, 0, n / 5, 50_000_000));
            with_task(TaskTypeSnapshot { unfinished, blocking, polls, ..Default::default() })
        }
    };
    check(unfinished(3_000_000_000, false), &["task_blocks_worker"]);
    check(unfinished(3_000_000_000, true), &[]);
    let mut diagnoses = Diagnoses::default();
    let mut said = Vec::new();
    for second in 0..2 {
        let targets = vec![unfinished(3_000_000_000, false)(second)];
        let snapshot = Snapshot { time_ns: (100 + second) * SECOND, targets, ..Snapshot::default() };
        for change in diagnoses.observe(&snapshot) {
            let Change::Appeared(found) = change else { continue };
            said.push(found.summary);
        }
    }
    assert_eq!(said, ["a task of app::task has held thread 7 for 3.00 s, and still does"]);
}

/// Check that wakes by oneself are a storm when they are many, and are most of what the task does.
#[test]
fn a_self_wake_storm_is_found() {
    let storm = |per_second, share| {
        move |n| {
            let polls = polls(n * per_second, n * per_second / share, 0, 0);
            with_task(TaskTypeSnapshot { polls: Some(polls), ..Default::default() })
        }
    };
    check(storm(50_000, 1), &["self_wake_storm"]);
    check(storm(50_000, 4), &[]);
    check(storm(5_000, 1), &[]);
}

/// Check that overdue tasks are found at once.
#[test]
fn tasks_that_are_not_polled_are_found() {
    let overdue = |overdue| move |_| with_task(TaskTypeSnapshot { overdue, ..Default::default() });
    check(overdue(Some(3)), &["never_polled_after_wake"]);
    check(overdue(Some(0)), &[]);
    check(overdue(None), &[]);
}

/// Check that growth is a leak only if it goes on, never turns back, and hardly anything ends.
#[test]
fn a_leak_is_found() {
    let tasks = |spawned: fn(u64) -> u64, ended: fn(u64) -> u64| {
        move |n| {
            let (spawned, ended) = (spawned(n), ended(n));
            with_task(TaskTypeSnapshot {
                spawned,
                completed: [ended, 0, 0, 0],
                alive: spawned - ended,
                ..Default::default()
            })
        }
    };
    check(tasks(|n| n * 10, |_| 0), &["task_leak"]);
    check(tasks(|n| n * 100, |n| n * 90), &[]);
    check(tasks(|n| n * 10, |n| n), &["task_leak"]);
    check(tasks(|n| n * 10, |n| if n < 12 { 0 } else { 50 }), &[]);
    // A pool that has been filled.
    check(tasks(|n| n.min(3) * 1000, |_| 0), &[]);
    check(tasks(|n| n, |_| 0), &[]);
}

/// Check that waits for a CPU are found when they are a large share of much.
#[test]
fn starvation_is_found() {
    let sched = |run_queue_ns: u64, on_cpu_ns: u64| {
        move |n: u64| {
            let mut target = idle();
            if let Some(sched) = &mut target.sched {
                sched.run_queue[after::PREEMPTION].sum = n * run_queue_ns;
                sched.on_cpu_ns = n * on_cpu_ns;
            }
            target
        }
    };
    check(sched(SECOND / 2, SECOND), &["workers_starved"]);
    check(sched(SECOND / 10, SECOND), &[]);
    check(sched(SECOND / 2000, SECOND / 1000), &[]);
}

/// Check that a full queue is found, and whether its threads have time for it, whether it is full now or has dropped connections.
#[test]
fn a_full_accept_queue_is_found() {
    let full = |length, overflows: fn(u64) -> u64, on_cpu_ns: u64| {
        move |n: u64| {
            let mut target = idle();
            target.listeners.push(ListenerSnapshot {
                listener: "127.0.0.1:80".into(),
                length: Some(length),
                limit: Some(128),
                overflows: Some(overflows(n)),
                ..ListenerSnapshot::default()
            });
            if let Some(sched) = &mut target.sched {
                sched.on_cpu_ns = n * on_cpu_ns;
            }
            target
        }
    };
    check(full(129, |_| 7, SECOND / 100), &["accept_queue_full_runtime_idle"]);
    check(full(3, |n| n, SECOND / 100), &["accept_queue_full_runtime_idle"]);
    check(full(129, |_| 7, SECOND), &["accept_queue_full_runtime_busy"]);
    check(full(3, |n| n, SECOND), &["accept_queue_full_runtime_busy"]);
    check(full(3, |_| 7, SECOND / 100), &[]);
    check(full(3, |_| 7, SECOND), &[]);
}

/// Check that what comes and goes is one finding, and ends once it has stayed away.
#[test]
fn a_finding_does_not_flap() {
    let overdue = |n: u64| {
        let overdue = Some(u64::from(n < 40 && n.is_multiple_of(8)));
        with_task(TaskTypeSnapshot { overdue, ..Default::default() })
    };
    let expected = [(0, "+never_polled_after_wake".to_owned()), (47, "-never_polled_after_wake".to_owned())];
    assert_eq!(changes(60, overdue), expected);
}

/// Check that findings end with their target, and that another process of the same id begins anew.
#[test]
fn findings_end_with_their_target() {
    let target = |n| {
        let running = n < 5;
        TargetSnapshot { running, ..with_task(TaskTypeSnapshot { overdue: Some(1), ..Default::default() }) }
    };
    let expected = [(0, "+never_polled_after_wake".to_owned()), (5, "-never_polled_after_wake".to_owned())];
    assert_eq!(changes(10, target), expected);
}

/// Check that snapshots that follow each other too closely are one observation.
#[test]
fn scrapes_are_not_observed_too_often() {
    let mut diagnoses = Diagnoses::default();
    let at = |time_ns| Snapshot { time_ns, targets: vec![idle()], ..Snapshot::default() };
    diagnoses.observe(&at(5 * SECOND));
    assert!(!diagnoses.is_due(6 * SECOND - 1));
    assert!(diagnoses.is_due(6 * SECOND));
}
