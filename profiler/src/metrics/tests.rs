//! The table's rules, the bound on series, and pages as Prometheus would read them.

use std::collections::HashSet;
use std::io::Write as _;
use std::process::{Command, Stdio};

use crate::histogram::Histogram;

use super::own::PushFigures;
use super::table::{Id, Kind, METRICS, PREFIX, TARGET_LABELS, Unit};
use super::*;
use crate::model::snapshot::{
    BudgetSnapshot, ClusterSnapshot, ConfigSnapshot, CpuSnapshot, DeferredSnapshot, DiscoverySnapshot, GroupKey,
    GroupSnapshot, IdentitySnapshot, JobsSnapshot, ListenerSnapshot, LoopSnapshot, NodeBudgetSnapshot, PauseSnapshot,
    PollSnapshot, ProbeCost, ProfilerSnapshot, RequestsSnapshot, RuntimeSnapshot, SchedSnapshot, SpawnSiteSnapshot,
    TargetSnapshot, TaskTypeSnapshot, TasksSnapshot, ThreadsSnapshot, ThrottledSnapshot, TierSnapshot, UnfinishedPolls,
};
use crate::status::{ProbeState, TargetStatus};

fn recorded(values: &[u64]) -> Histogram {
    let mut histogram = Histogram::EMPTY;
    values.iter().for_each(|value| histogram.record(*value));
    histogram
}

fn kind(name: &str, spawned: u64) -> TaskTypeSnapshot {
    TaskTypeSnapshot {
        name: name.into(),
        full_name: None,
        aliases: Vec::new(),
        blocking: false,
        internal: false,
        spawned,
        completed: [spawned, 0, 0, 0],
        unseen_spawns: 0,
        found: 0,
        alive: 0,
        lifetime: Some(recorded(&[1024])),
        last_spawn_ns: Some(2_000_000_000),
        polls: Some(PollSnapshot {
            polls: 3,
            busy_ns: 3_000,
            poll: recorded(&[1000, 1000, 1000]),
            delay: Some(recorded(&[500])),
            first_delay: Some(recorded(&[700])),
            wakes: Some([1, 2, 3]),
            slow: 0,
            slowest_ns: 1000,
        }),
        overdue: Some(0),
        unfinished: Some(UnfinishedPolls::default()),
        cpu_ns: Some(20_202_020),
        spawn_sites: vec![SpawnSiteSnapshot {
            name: "src/a.rs:1".into(),
            place: "src/a.rs:1:2".into(),
            exact: true,
            sampled: 0,
        }],
        ..TaskTypeSnapshot::default()
    }
}

/// A target that has everything.
fn target(pid: u32, names: &[&str]) -> TargetSnapshot {
    let mut status = TargetStatus::default();
    for probe in ["run_queue", "accept_wait", "task_spawn", "task_complete", "task_outcome", "task_walk"] {
        status.set(probe, ProbeState::Attached, "by test");
    }
    let listener = |name: &str| ListenerSnapshot {
        listener: name.into(),
        length: Some(1),
        limit: Some(128),
        overflows: Some(0),
        accepted: Some(7),
        depth: Some(recorded(&[1, 2])),
        wait: Some(recorded(&[100, 2000])),
    };
    TargetSnapshot {
        pid,
        process: "server".into(),
        runtime: "tokio",
        runtime_version: Some("1.47.1".into()),
        identity: IdentitySnapshot {
            container_id: Some("4f797c539e6c".into()),
            pod_uid: Some("ac04f3f2-1f2c-11e9-b015-1ebee232acfa".into()),
            systemd_unit: Some("server.service".into()),
            ..IdentitySnapshot::default()
        },
        running: true,
        status,
        sched: Some(SchedSnapshot {
            voluntary_switches: 1,
            preemptions: [1, 1, 0, 0],
            migrations: 1,
            on_cpu_ns: 2000,
            asleep_ns: [0, 500, 2000, 0, 0, 500, 0, 0, 0],
            causes_told: true,
            run_queue: [recorded(&[1000]), recorded(&[2000])],
            loops: vec![LoopSnapshot {
                name: "main".into(),
                active_ns: 2000,
                idle_ns: 2000,
                iteration: recorded(&[2000]),
                delay: recorded(&[0, 500]),
            }],
            threads: vec![ThreadsSnapshot {
                name: "main".into(),
                threads: 1,
                started: 3,
                ended: 2,
                on_cpu_ns: 2000,
                run_queue_ns: 3000,
                asleep_ns: 3000,
            }],
            on_cpu: recorded(&[2000]),
            blocked: recorded(&[3000]),
        }),
        throttled: Some(ThrottledSnapshot { wait: recorded(&[60_000_000]) }),
        listeners: vec![listener("127.0.0.1:80"), listener("127.0.0.1:80#2")],
        requests: Some(RequestsSnapshot {
            open: 2,
            unread: Some(1),
            in_progress: 1,
            replied: 1,
            request: recorded(&[5000]),
            after_reply: recorded(&[700]),
        }),
        jobs: Some(JobsSnapshot { job: recorded(&[5000]), fetch: recorded(&[700]), busy: 1, idle: 2 }),
        lock_waits: Some(recorded(&[9000])),
        deferred: Some(DeferredSnapshot { wait: recorded(&[8000]), run: recorded(&[6000]), now: Some((3, 1)) }),
        waits: vec![("sleep", recorded(&[9000]))],
        pauses: Some(PauseSnapshot { pause: recorded(&[1500]), collections: Some(4) }),
        tasks: Some(TasksSnapshot {
            lifecycle_continuous: true,
            polls_continuous: Some(true),
            types: names.iter().map(|name| kind(name, 3)).collect(),
            tracked: 5,
            cpu: Some(CpuSnapshot { scheduler_ns: 1, other_ns: 2, unknown_ns: 3 }),
            ..TasksSnapshot::default()
        }),
        budget: Some(BudgetSnapshot {
            budget: "2%".into(),
            share: Some(0.02),
            cost_share: Some(0.01),
            probes: vec![ProbeCost { probe: "task_spawn", hits: 10, cost_ns: 9_000.0, hit_ns: 900.0 }],
            tiers: vec![TierSnapshot { tier: "polls", mode: "windows", coverage: 0.1, covered_ns: 1_000_000 }],
            poll_added_ns: 900.0,
            why: "by test".into(),
        }),
        figures: Some(RuntimeSnapshot {
            read_ns: 1,
            runtimes: 1,
            workers: Some(2),
            busy_ns: Some(5000),
            queues: vec![("local", 3)],
            alive: Some(4),
            spawned: Some(9),
            runnable: Some(1),
            by_type: Some(vec![("a".into(), 4)]),
        }),
        threads: Some(4),
        processes: Some(1),
    }
}

/// A snapshot of which everything is measured, of two targets.
pub(crate) fn everything() -> Arc<Snapshot> {
    snapshot(vec![target(1, &["a", "b"]), target(2, &["a"])])
}

fn snapshot(targets: Vec<TargetSnapshot>) -> Arc<Snapshot> {
    let profiler = ProfilerSnapshot {
        events: vec![("task_spawned", 10)],
        lost: vec![("end_unseen", 0)],
        runs_missed: vec![("sched_process_fork".to_owned(), 2)],
        hits_ignored: vec![("idle", 10)],
        snapshot_seconds: Some(0.001),
        not_ready: None,
        node: Some(NodeBudgetSnapshot { budget: "1%".into(), share: Some(0.01), cost_share: 0.005, factor: 1.0 }),
        discovery: Some(DiscoverySnapshot {
            looked_at: vec![("watched", 2)],
            watched: 2,
            limit: 256,
            config: Some(ConfigSnapshot { loaded_seconds: 1e9, refusal: None }),
            cluster: Some(ClusterSnapshot {
                up: Some(true),
                failures: vec![("forbidden", 1)],
                ..ClusterSnapshot::default()
            }),
            ..DiscoverySnapshot::default()
        }),
    };
    Arc::new(Snapshot { time_ns: 1, epoch_offset_seconds: 1e9, targets, profiler, ..Snapshot::default() })
}

/// The page, after it was read as strictly as Prometheus does: no series twice, every sample under its own family,
/// buckets that grow and end in the count.
#[track_caller]
fn checked(targets: Vec<TargetSnapshot>, own: Own) -> String {
    let page = page(snapshot(targets), own).expect("a page");
    let (mut series, mut families) = (HashSet::new(), HashSet::new());
    let (mut family, mut bucket) = (String::new(), 0.0);
    for line in page.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            family = rest.split(' ').next().unwrap().to_owned();
            assert!(families.insert(family.clone()), "two families {family}");
        } else if !line.starts_with('#') {
            let (name, value) = line.rsplit_once(' ').unwrap();
            assert!(series.insert(name.to_owned()), "two series {name}");
            let base = name.split('{').next().unwrap();
            let suffix = base.strip_prefix(&family).unwrap_or_else(|| panic!("{base} under {family}"));
            assert!(["", "_bucket", "_sum", "_count"].contains(&suffix), "{base} under {family}");
            let value: f64 = value.parse().unwrap();
            if suffix == "_bucket" {
                bucket = if name.contains(&format!("le=\"{}\"", first_bound(&family))) { 0.0 } else { bucket };
                assert!(value >= bucket, "{line}");
                bucket = value;
            } else if suffix == "_count" {
                assert_eq!(value, bucket, "{line}");
            }
        }
    }
    page
}

fn first_bound(family: &str) -> &'static str {
    if family.ends_with("_seconds") { "0.000001024" } else { "1" }
}

#[test]
fn the_table_is_unique_and_named_by_convention() {
    let mut names = HashSet::new();
    for (index, row) in METRICS.iter().enumerate() {
        assert_eq!(row.id as usize, index, "{}", row.name);
        assert!(names.insert(row.full_name()), "{} twice", row.name);
        assert!(row.name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_'), "{}", row.name);
        assert!(!row.name.starts_with(PREFIX), "{}", row.name);
        assert_eq!(row.kind == Kind::Counter, row.name.ends_with("_total"), "{}", row.name);
        let unit = row.name.trim_end_matches("_total");
        assert_eq!(row.unit == Unit::Seconds, unit.ends_with("_seconds"), "{}", row.name);
        assert_eq!(row.unit == Unit::Bytes, unit.ends_with("_bytes"), "{}", row.name);
        assert!(row.help.ends_with('.') && !row.source.is_empty(), "{}", row.name);
        assert_eq!(row.labels.is_empty(), row.bound.is_empty(), "{}: labels have a bound", row.name);
        assert!(row.labels.len() <= 2, "{}: a series keeps two labels of its own", row.name);
        assert!(row.labels.iter().all(|label| !TARGET_LABELS.contains(label) && *label != "le"), "{}", row.name);
    }
    let collector = SnapshotCollector::new(snapshot(Vec::new()), Own::default());
    assert_eq!(prometheus::core::Collector::desc(&collector).len(), METRICS.len(), "Prometheus refuses a row");
}

#[test]
fn every_row_has_a_value_where_everything_is_measured() {
    let mut own = Own::read(Some(0.5));
    own.web_config_is_good = Some(true);
    own.push = Some(PushFigures {
        requests: [("taken", 1)].into(),
        dropped: [("refused", 1)].into(),
        last_success_seconds: Some(1e9),
        ..PushFigures::default()
    });
    let page = checked(vec![target(1, &["a"])], own);
    for row in METRICS {
        assert!(page.contains(&format!("# TYPE {} {}\n", row.full_name(), row.kind.label())), "{}", row.name);
    }
}

#[test]
fn names_are_bounded_and_nothing_is_lost_in_other() {
    let names: Vec<String> = (0..1000).map(|i| format!("task{i}")).collect();
    let page = checked(vec![target(1, &names.iter().map(String::as_str).collect::<Vec<_>>())], Own::default());
    let spawned: Vec<&str> = page.lines().filter(|line| line.starts_with("profiler_tasks_spawned_total{")).collect();
    assert_eq!(spawned.len(), labels::BOUND + 1);
    let sum: f64 = spawned.iter().map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum();
    assert_eq!(sum, 3000.0);
    let other =
        "profiler_task_lifetime_seconds_count{process=\"server\",runtime=\"tokio\",pid=\"1\",task=\"other\"} 900";
    assert!(page.contains(other));
}

#[test]
fn values_that_share_their_labels_become_one_series() {
    let mut ended = target(1, &["a"]);
    ended.running = false;
    ended.status.ended();
    let page = checked(vec![ended, target(1, &["a", "a"]), target(2, &["a"])], Own::default());
    let labels = "{process=\"server\",runtime=\"tokio\",pid=\"1\"";
    assert!(page.contains(&format!("profiler_tasks_spawned_total{labels},task=\"a\"}} 9\n")));
    assert!(page.contains(&format!("profiler_task_lifetime_seconds_count{labels},task=\"a\"}} 3\n")));
    assert!(page.contains(&format!("profiler_task_last_spawn_timestamp_seconds{labels},task=\"a\"}} 1000000002\n")));
    assert!(page.contains(&format!("profiler_target_up{labels}}} 1\n")));
}

#[test]
fn label_values_are_escaped() {
    let page = checked(vec![target(1, &["a\"b\\c\nd"])], Own::default());
    assert!(page.contains(r#"task="a\"b\\c\nd""#));
}

#[test]
fn what_was_not_measured_is_absent() {
    let mut bare = target(1, &["a"]);
    (bare.sched, bare.figures, bare.threads, bare.processes) = (None, None, None, None);
    (bare.jobs, bare.deferred) = (None, None);
    bare.listeners = vec![ListenerSnapshot { listener: "[::1]:80".into(), ..ListenerSnapshot::default() }];
    bare.status.set("task_complete", ProbeState::Unsupported, "not found");
    bare.status.set("task_outcome", ProbeState::Unsupported, "not found");
    let page = checked(vec![bare], Own::default());
    for absent in ["sched_", "accept", "threads", "deferred", "tasks_alive", "lifetime", "panicked", "process_cpu"] {
        let sample = |line: &&str| !line.starts_with('#') && line.split('{').next().unwrap().contains(absent);
        let label = |line: &&str| line.contains(&format!("outcome=\"{absent}\""));
        assert_eq!(page.lines().find(|line| sample(line) || label(line)), None);
    }
    assert!(page.contains("profiler_probe_state{process=\"server\",runtime=\"tokio\",pid=\"1\",probe=\"task_complete\",state=\"unsupported\"} 1\n"));
}

#[test]
fn buckets_are_exact_powers_of_two() {
    let mut one = target(1, &["a"]);
    let tasks = one.tasks.as_mut().unwrap();
    tasks.types[0].lifetime = Some(recorded(&[1024, 1025, 1 << 36, (1 << 36) + 1]));
    one.listeners[0].depth = Some(recorded(&[1, 2, 65536, 65537]));
    let page = checked(vec![one], Own::default());
    let buckets = |prefix: &str| -> Vec<String> {
        let lines = page.lines().filter(|line| line.starts_with(prefix));
        lines.map(|line| line.split("le=").nth(1).unwrap().to_owned()).collect()
    };
    let lifetime = buckets("profiler_task_lifetime_seconds_bucket");
    assert_eq!(lifetime.len(), 28);
    assert_eq!(lifetime[..2], ["\"0.000001024\"} 1", "\"0.000002048\"} 2"]);
    assert_eq!(lifetime[26..], ["\"68.719476736\"} 3", "\"+Inf\"} 4"]);
    let depth = buckets("profiler_accept_queue_depth_bucket");
    assert_eq!(depth.len(), 2 * 18);
    assert_eq!(depth[..2], ["\"1\"} 1", "\"2\"} 2"]);
    assert_eq!(depth[16..18], ["\"65536\"} 3", "\"+Inf\"} 4"]);
}

/// Check that causes of sleep are absent where they are not told, and add up to the time asleep either way.
#[test]
fn off_cpu_time_is_the_sum_of_its_histograms() {
    let sums = |target: TargetSnapshot| {
        let page = checked(vec![target], Own::default());
        let series = page.lines().filter_map(|line| line.strip_prefix("profiler_sched_off_cpu_seconds_total{"));
        let reasons = series.map(|line| line.split_once("reason=\"").expect("a reason").1.to_owned());
        reasons.collect::<Vec<_>>()
    };
    let told = target(1, &[]);
    let mut untold = target(1, &[]);
    if let Some(sched) = &mut untold.sched {
        (sched.causes_told, sched.asleep_ns) = (false, [3000, 0, 0, 0, 0, 0, 0, 0, 0]);
    }
    assert_eq!(sums(untold), ["run_queue\"} 0.000003", "blocked\"} 0.000003"]);
    let reasons = sums(told);
    assert_eq!(reasons.len(), 9);
    assert_eq!(reasons[1..4], ["other\"} 0.0000005", "epoll\"} 0.000002", "futex\"} 0"]);
    assert_eq!(super::table::metric(Id::SchedOnCpuSecondsTotal).name, "sched_on_cpu_seconds_total");
}

/// Check that the linter of Prometheus has nothing to say.
#[test]
fn promtool_accepts_the_page() {
    const SKIP: &str = "PROFILER_TEST_WITHOUT_PROMTOOL";
    if std::env::var_os(SKIP).is_some() {
        eprintln!("skipped: {SKIP} is set");
        return;
    }
    let mut promtool = match Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
    {
        Ok(promtool) => promtool,
        Err(error) => panic!("failed to run promtool: {error}; run `cargo xtask setup`, or set {SKIP}=1"),
    };
    let page = checked(vec![target(1, &["a", "b\"\n\\"]), target(2, &["a"])], Own::read(Some(0.5)));
    promtool.stdin.take().unwrap().write_all(page.as_bytes()).unwrap();
    let output = promtool.wait_with_output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && said.is_empty(), "{said}");
}

/// Check that the committed document is the table's. `PROFILER_BLESS=1 cargo test -p profiler document` rewrites it.
#[test]
fn the_document_is_up_to_date() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/metrics.md");
    if std::env::var_os("PROFILER_BLESS").is_some() {
        std::fs::write(path, document()).unwrap();
    }
    let committed = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        committed == document(),
        "docs/metrics.md differs from the table of metrics: run `PROFILER_BLESS=1 cargo test -p profiler document`"
    );
}

/// The page of targets that share their series, of which one is gone and one lives.
fn shared_page(gone: TargetSnapshot, alive: TargetSnapshot) -> String {
    let key = GroupKey::of(&gone);
    // Of whom it was, only the key tells.
    let gone = TargetSnapshot { running: false, identity: IdentitySnapshot::default(), ..gone };
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    let group = GroupSnapshot { key, gone: Some(Arc::new(gone)), tasks: names(&["a"]), listeners: names(&[]) };
    let mut snapshot = Arc::unwrap_or_clone(snapshot(vec![alive]));
    snapshot.groups = Some(vec![group]);
    page(Arc::new(snapshot), Own::default()).expect("a page")
}

/// Check that what is gone of a container is on the page with its labels, and that its totals are not there by themselves
/// when those of one that lives are not known.
#[test]
fn what_is_gone_shares_its_series() {
    let labels = r#"{namespace="",pod="",container="4f797c539e6c",process="server",runtime="tokio",task="a"}"#;
    let line = |value: u64| format!("profiler_tasks_spawned_total{labels} {value}\n");
    let page = shared_page(target(1, &["a"]), target(2, &["a"]));
    assert!(page.contains(&line(6)), "{page}");
}

/// Check that a group has no totals while those of one of its targets are not known, whether that one runs, has just ended or
/// is gone; that its distributions are there nevertheless; and that who lives is told where that is known of all who do.
#[test]
fn a_sum_that_lacks_something_is_absent() {
    let of = |running: bool, lifecycle: bool, polls: Option<bool>| {
        let mut target = TargetSnapshot { running, ..target(2, &["a"]) };
        let tasks = target.tasks.as_mut().unwrap();
        (tasks.lifecycle_continuous, tasks.polls_continuous) = (lifecycle, polls);
        tasks.types[0].alive = if running { 3 } else { 0 };
        target
    };
    let whole = || of(true, true, Some(true));
    let has = |page: &str, name: &str| page.contains(&format!("profiler_{name}{{"));
    let check = |gone, alive, [lifecycle, polls]: [bool; 2], living: Option<u64>| {
        let page = shared_page(gone, alive);
        assert_eq!([has(&page, "tasks_spawned_total"), has(&page, "task_polls_total")], [lifecycle, polls], "{page}");
        assert_eq!([has(&page, "tasks_completed_total"), has(&page, "deferred_work")], [lifecycle; 2]);
        assert_eq!(has(&page, "task_wakes_total"), polls);
        let rows = ["task_lifetime_seconds_count", "task_poll_seconds_count", "task_slowest_poll_seconds"];
        assert!(rows.into_iter().all(|row| has(&page, row)), "{page}");
        let line = page.lines().find(|line| line.starts_with("profiler_tasks_alive{"));
        assert_eq!(line.map(|line| line.rsplit(' ').next().unwrap().parse().unwrap()), living, "{page}");
    };
    let gone = || of(false, true, Some(true));
    check(gone(), whole(), [true, true], Some(3));
    for running in [true, false] {
        // The runtime's own lists have four.
        let living = if running { 4 } else { 0 };
        check(gone(), of(running, false, Some(true)), [false, true], Some(living));
        check(gone(), of(running, true, Some(false)), [true, false], Some(if running { 3 } else { 0 }));
    }
    check(of(false, false, Some(false)), whole(), [false, false], Some(3));
    check(of(false, true, None), whole(), [true, true], Some(3));
    // Nobody knows who lives in one, and a sum of the others would be none.
    let mut unlisted = of(true, false, Some(true));
    unlisted.figures.as_mut().unwrap().by_type = None;
    check(gone(), unlisted, [false, true], None);
}

/// Check that the living tasks of one that is counted and of one that is only listed are summed.
#[test]
fn who_lives_is_summed_however_it_is_known() {
    let mut sampled = target(3, &["a"]);
    sampled.tasks.as_mut().unwrap().lifecycle_continuous = false;
    let mut counted = target(2, &["a"]);
    counted.tasks.as_mut().unwrap().types[0].alive = 3;
    let mut snapshot = Arc::unwrap_or_clone(snapshot(vec![counted, sampled]));
    snapshot.groups = Some(Vec::new());
    let page = page(Arc::new(snapshot), Own::default()).expect("a page");
    let lines: Vec<&str> = page.lines().filter(|line| line.starts_with("profiler_tasks_alive{")).collect();
    assert!(lines.len() == 1 && lines[0].ends_with(" 7"), "{lines:?}");
}
