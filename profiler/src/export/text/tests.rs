//! The view as people see it.

use super::*;
use crate::model::snapshot::TaskTypeSnapshot;
use crate::status::TargetStatus;

fn recorded(value: u64) -> Histogram {
    let mut histogram = Histogram::EMPTY;
    histogram.record(value);
    histogram
}

fn kind(name: &str, spawned: u64, lifetime: Option<Histogram>) -> TaskTypeSnapshot {
    TaskTypeSnapshot {
        name: name.into(),
        full_name: None,
        aliases: Vec::new(),
        blocking: false,
        internal: false,
        spawned,
        completed: [spawned / 2, 1, 0, 0],
        unseen_spawns: 0,
        found: 0,
        alive: spawned - spawned / 2 - 1,
        lifetime,
        last_spawn_ns: None,
        ..TaskTypeSnapshot::default()
    }
}

#[test]
fn a_snapshot_reads_as_a_table() {
    let mut snapshot = Snapshot::default();
    snapshot.profiler.lost = vec![("ring_full_task", 3), ("end_unseen", 0)];
    snapshot.targets.push(TargetSnapshot {
        pid: 42,
        process: "ser\x1bver".into(),
        runtime: "tokio",
        runtime_version: Some("1.47.1".into()),
        running: true,
        status: TargetStatus::default(),
        sched: Some(SchedSnapshot {
            voluntary_switches: 100,
            preemptions: [0, 1, 1, 0],
            run_queue: [recorded(1 << 13), Histogram::EMPTY],
            ..SchedSnapshot::default()
        }),
        listeners: vec![ListenerSnapshot {
            listener: "127.0.0.1:8080".into(),
            length: Some(0),
            limit: Some(1024),
            overflows: None,
            accepted: Some(12),
            depth: None,
            wait: Some(recorded(1 << 20)),
        }],
        tasks: Some(TasksSnapshot {
            lifecycle_continuous: true,
            types: vec![
                kind("accept_loop", 2, None),
                kind(&format!("{}connection", "deep::".repeat(10)), 1000, Some(recorded(1 << 31))),
            ],
            ..TasksSnapshot::default()
        }),
        figures: None,
        threads: Some(5),
        processes: None,
        ..TargetSnapshot::default()
    });
    let expected = "\
server (pid 42, tokio 1.47.1, 5 threads)
  run queue     wait p50 8.19 µs  p99 8.19 µs   switches 100 voluntary, 2 involuntary
  accept queue    now  limit  accepted  overflows  wait p50      p99
  127.0.0.1:8080    0   1024        12          -   1.05 ms  1.05 ms
  task                                              spawned  alive  completed  cancelled  panicked  lifetime p50     p99
  …:deep::deep::deep::deep::deep::deep::connection     1000    499        500          1         0        2.15 s  2.15 s
  accept_loop                                             2      0          1          1         0             -       -

lost  ring_full_task 3
";
    let actual = render(&snapshot, false);
    assert_eq!(actual, expected, "\n{actual}");
    assert!(render(&snapshot, true).starts_with("\x1b[1mserver\x1b[0m (pid"));
}

#[test]
fn durations_have_three_digits() {
    for (ns, text) in
        [(0, "0 ns"), (999, "999 ns"), (1500, "1.50 µs"), (25_000_000, "25.0 ms"), (300_000_000_000, "300 s")]
    {
        assert_eq!(duration(ns), text);
    }
}
