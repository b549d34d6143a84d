use super::*;
use crate::model::snapshot::IdentitySnapshot;

const SECOND: u64 = 1_000_000_000;

fn recorded(values: &[u64]) -> Histogram {
    let mut histogram = Histogram::EMPTY;
    values.iter().for_each(|&value| histogram.record(value));
    histogram
}

/// A process that had `spawned` tasks of each of these types.
fn target(container: &str, process: &str, types: &[&str], spawned: u64) -> TargetSnapshot {
    let kind = |name: &&str| TaskTypeSnapshot {
        name: (*name).to_owned(),
        spawned,
        alive: 3,
        lifetime: Some(recorded(&[1000])),
        ..TaskTypeSnapshot::default()
    };
    let tasks = TasksSnapshot {
        types: types.iter().map(kind).collect(),
        lifecycle_continuous: true,
        ..TasksSnapshot::default()
    };
    TargetSnapshot {
        process: process.to_owned(),
        runtime: "tokio",
        identity: IdentitySnapshot { container: Some(container.to_owned()), ..IdentitySnapshot::default() },
        sched: Some(SchedSnapshot { voluntary_switches: 2, on_cpu: recorded(&[500]), ..SchedSnapshot::default() }),
        tasks: Some(tasks),
        ..TargetSnapshot::default()
    }
}

fn spawned(groups: &Groups, container: &str) -> Option<u64> {
    let groups = groups.snapshot();
    let group = groups.iter().find(|group| group.key.container == container)?;
    Some(group.gone.as_ref()?.tasks.as_ref()?.types.iter().map(|kind| kind.spawned).sum())
}

/// Check that what ended is kept with those of the same container, and nothing of it that only lived.
#[test]
fn what_has_ended_is_kept() {
    let mut groups = Groups::new(Bounds::default());
    groups.retire(target("a", "web", &["x", "y"], 5), SECOND);
    groups.retire(target("a", "web", &["y"], 2), 2 * SECOND);
    groups.retire(target("b", "web", &["x"], 1), 2 * SECOND);
    assert_eq!((spawned(&groups, "a"), spawned(&groups, "b")), (Some(12), Some(1)));
    let snapshot = groups.snapshot();
    let gone = snapshot[0].gone.as_ref().unwrap();
    assert_eq!(gone.sched.as_ref().map(|sched| (sched.voluntary_switches, sched.on_cpu.count)), Some((4, 2)));
    let types = &gone.tasks.as_ref().unwrap().types;
    assert!(types.iter().all(|kind| kind.alive == 0));
    assert_eq!(types.iter().map(|kind| kind.lifetime.as_ref().map_or(0, |l| l.count)).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(*snapshot[0].tasks, ["x", "y"]);
}

/// Check that a group lives as long as one of its processes, and for the retention time after it.
#[test]
fn groups_are_kept_for_the_retention_time() {
    let bounds = Bounds { retention_ns: 10 * SECOND, ..Bounds::default() };
    let mut groups = Groups::new(bounds);
    groups.retire(target("a", "web", &["x"], 5), 0);
    for second in 1..100 {
        groups.advance(&[target("a", "web", &["x"], 1)], second * SECOND);
        assert_eq!(spawned(&groups, "a"), Some(5), "after {second} s");
    }
    groups.advance(&[], 108 * SECOND);
    assert_eq!(spawned(&groups, "a"), Some(5));
    groups.advance(&[], 109 * SECOND);
    assert_eq!(groups.sizes(), (0, 0, 0));
}

/// Check that what is counted in windows, of which nobody knows the total, is not added to one.
#[test]
fn samples_are_no_part_of_a_total() {
    let mut groups = Groups::new(Bounds::default());
    let mut sampled = target("a", "web", &["x"], 100);
    sampled.tasks.as_mut().unwrap().lifecycle_continuous = false;
    groups.retire(sampled, 0);
    groups.retire(target("a", "web", &["x"], 5), 0);
    assert_eq!(spawned(&groups, "a"), Some(5));
}

/// Whether what is gone of the first group has totals of births and ends, and of polls.
fn continuous(groups: &Groups) -> Option<(bool, Option<bool>)> {
    let groups = groups.snapshot();
    let tasks = groups.first()?.gone.as_ref()?.tasks.as_ref()?;
    Some((tasks.lifecycle_continuous, tasks.polls_continuous))
}

/// Check that a sum which lacks the tasks or the polls of one that was only sampled stays no total after that one has ended,
/// whoever ends before or after it, until the group is forgotten; and that one which has no tasks, or no polls that can
/// be seen, lacks nothing.
#[test]
fn what_a_sum_lacks_is_remembered() {
    let of = |lifecycle: bool, polls: Option<bool>| {
        let mut target = target("a", "web", &["x"], 5);
        let tasks = target.tasks.as_mut().unwrap();
        (tasks.lifecycle_continuous, tasks.polls_continuous) = (lifecycle, polls);
        target
    };
    let check = |ended: Vec<TargetSnapshot>, expected| {
        let mut groups = Groups::new(Bounds { retention_ns: 10 * SECOND, ..Bounds::default() });
        ended.into_iter().for_each(|target| groups.retire(target, 0));
        assert_eq!(continuous(&groups), expected);
        groups.advance(&[], 10 * SECOND);
        groups.retire(of(true, Some(true)), 11 * SECOND);
        assert_eq!(continuous(&groups), Some((true, Some(true))), "a group of the same name, later");
    };
    let taskless = || TargetSnapshot { tasks: None, ..target("a", "web", &[], 0) };
    check(vec![taskless()], None);
    check(vec![of(true, Some(true)), taskless(), of(true, None)], Some((true, Some(true))));
    check(vec![of(true, None)], Some((true, None)));
    check(vec![of(false, Some(false)), of(true, Some(true))], Some((false, Some(false))));
    check(vec![of(true, Some(true)), of(true, Some(false)), of(true, None)], Some((true, Some(false))));
    check(vec![taskless(), of(true, None), of(false, None), of(true, Some(true))], Some((false, Some(true))));
}

/// Check that random names of tasks, listeners and containers take no more than is given to them, that nothing of
/// what was counted is lost, and that what is over the bound is `other`.
#[test]
fn a_million_names_are_bounded() {
    let bounds = Bounds { groups: 16, names: 20, histograms: 400, ..Bounds::default() };
    let mut groups = Groups::new(bounds);
    let mut all = 0;
    for n in 0..50_000_u64 {
        let names: Vec<String> = (0..20).map(|i| format!("task {}", n * 20 + i)).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let mut target = target(&format!("container {n}"), "web", &names, 1);
        target.listeners.push(ListenerSnapshot {
            listener: format!("127.0.0.1:{n}"),
            length: Some(1),
            limit: Some(1),
            overflows: Some(0),
            accepted: Some(1),
            depth: Some(recorded(&[1])),
            wait: Some(recorded(&[1])),
        });
        groups.retire(target, n);
        all += 20;
    }
    let (known, due, histograms) = groups.sizes();
    assert!(known <= 17 && due <= 17, "{known} {due}");
    // What is `other` may still have its first histograms when there is no room for names any more.
    assert!(histograms <= 400 + known * 10, "{histograms}");
    let snapshot = groups.snapshot();
    let tasks = |group: &GroupSnapshot| group.gone.as_ref().unwrap().tasks.clone().unwrap().types;
    assert_eq!(snapshot.iter().flat_map(tasks).map(|kind| kind.spawned).sum::<u64>(), all);
    assert!(snapshot.iter().all(|group| tasks(group).len() <= 21 && group.tasks.len() <= 20));
    let other = snapshot.iter().find(|group| group.key.process == OTHER).expect("what found no room");
    assert!(tasks(other).iter().any(|kind| kind.name == OTHER && kind.spawned > 900_000), "{:?}", tasks(other).len());
    assert!(groups.turned_away() > 900_000);
}

/// Check a day with 50 ends a second of processes of changing names: what is kept is what began to end within the
/// retention time, and no look takes longer for what was before.
#[test]
fn a_day_of_churn_is_bounded() {
    let bounds = Bounds { retention_ns: 600 * SECOND, ..Bounds::default() };
    let mut groups = Groups::new(bounds);
    let mut most = (0, 0, 0);
    let mut pods = 0_u64;
    for second in 0..86_400_u64 {
        // A new pod every other second, of which processes end for a minute.
        pods += second % 2;
        for n in 0..50 {
            let pod = pods.saturating_sub(n % 30);
            let mut ended = target(&format!("pod {pod}"), "web", &[], 0);
            (ended.sched, ended.tasks) = (None, None);
            ended.figures = Some(RuntimeSnapshot { spawned: Some(1), ..RuntimeSnapshot::default() });
            groups.retire(ended, second * SECOND);
        }
        if second % 15 == 0 {
            groups.advance(&[], second * SECOND);
            let now = groups.sizes();
            most = (most.0.max(now.0), most.1.max(now.1), most.2.max(now.2));
        }
    }
    // One more than the bound: what finds no room has a group, too.
    assert!(most.0 <= 513 && most.1 <= 513, "{most:?}");
    assert!(most.0 > 300, "{most:?}");
    groups.advance(&[], 90_000 * SECOND);
    assert_eq!(groups.sizes(), (0, 0, 0));
}
