//! The model, through one `check(events, expected)`; and its laws.

use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::model::snapshot::EdgeParent;

const MS: u64 = 1_000_000;

/// Types 0 to 2 are the application's, 3 is the runtime's own.
fn types() -> Arc<[TypeInfo]> {
    ["a", "b", "c", "worker"]
        .map(|name| TypeInfo { name: name.into(), internal: name == "worker", ..TypeInfo::default() })
        .into()
}

fn spawn(address: u64, id: Option<u64>, kind: u32, parent: Parent) -> TaskEvent {
    TaskEvent::Spawned { task: TaskRef { address, id }, kind: TypeId(kind), parent }
}

fn end(address: u64, id: Option<u64>, kind: u32) -> TaskEvent {
    TaskEvent::Completed { task: TaskRef { address, id }, kind: TypeId(kind), outcome: Outcome::Completed }
}

fn found(address: u64, id: u64, kind: u32) -> TaskEvent {
    TaskEvent::Found { task: TaskRef { address, id: Some(id) }, kind: TypeId(kind) }
}

/// One line per type: `name spawned completed unseen alive lifetimes sum-of-lifetimes`; per edge `parent>child spawns`.
fn lines(tasks: &TasksSnapshot) -> Vec<String> {
    let mut lines = Vec::new();
    for kind in &tasks.types {
        let (count, sum) = kind.lifetime.as_ref().map_or((0, 0), |lifetime| (lifetime.count, lifetime.sum));
        let ended: u64 = kind.completed.iter().sum();
        lines.push(format!(
            "{} {} {ended} {} {} {count} {sum}",
            kind.name, kind.spawned, kind.unseen_spawns, kind.alive
        ));
    }
    lines.sort();
    let mut edges: Vec<String> = tasks
        .edges
        .iter()
        .map(|edge| {
            let parent = match edge.parent {
                EdgeParent::Type(index) => tasks.types[index].name.as_str(),
                EdgeParent::None => "-",
                EdgeParent::Unknown => "?",
            };
            format!("{parent}>{} {}", tasks.types[edge.child].name, edge.spawns)
        })
        .collect();
    edges.sort();
    lines.extend(edges);
    lines
}

fn run(limits: Limits, events: &[(u64, TaskEvent)]) -> (Table, TargetId) {
    let mut table = Table::new(limits);
    let target = table.add_target(types());
    for (time_ns, event) in events {
        table.apply(target, *time_ns, *event);
    }
    table.finish();
    (table, target)
}

#[track_caller]
fn check(events: &[(u64, TaskEvent)], expected: &[&str]) {
    let (table, target) = run(Limits::default(), events);
    assert_eq!(lines(&table.tasks()[&target]), expected);
}

#[test]
fn a_task_lives_from_spawn_to_end() {
    check(
        &[(5, spawn(1, Some(1), 0, Parent::None)), (25, end(1, Some(1), 0)), (30, spawn(1, Some(2), 0, Parent::None))],
        &["a 2 1 0 1 1 20", "->a 2"],
    );
}

#[test]
fn a_task_first_seen_at_its_end_has_no_lifetime() {
    check(&[(5, end(1, Some(1), 0)), (6, end(2, None, 1))], &["a 0 1 1 0 0 0", "b 0 1 1 0 0 0"]);
}

/// Check that a task that is gone with its process lives no more, and has not ended.
#[test]
fn a_task_is_gone_with_its_process() {
    let gone = |address| TaskEvent::Gone { task: TaskRef { address, id: None } };
    let (first, second) = (spawn(1, None, 0, Parent::None), spawn(2, None, 0, Parent::None));
    check(&[(5, first), (6, second), (9, gone(1)), (10, gone(3))], &["a 2 0 0 1 0 0", "->a 2"]);
}

#[test]
fn an_end_that_overtakes_its_spawn_is_matched() {
    check(&[(25, end(1, Some(1), 0)), (5, spawn(1, Some(1), 0, Parent::None))], &["a 1 1 0 0 1 20", "->a 1"]);
    check(&[(25, end(1, None, 0)), (5, spawn(1, None, 0, Parent::None))], &["a 1 1 0 0 1 20", "->a 1"]);
}

#[test]
fn generations_of_an_address_are_told_apart_without_ids() {
    let (s1, e1) = ((10, spawn(1, None, 0, Parent::None)), (15, end(1, None, 0)));
    let (s2, e2) = ((20, spawn(1, None, 0, Parent::None)), (90, end(1, None, 0)));
    for events in [[s1, e1, s2, e2], [s2, e1, s1, e2], [s1, e2, s2, e1], [e2, s2, e1, s1]] {
        check(&events, &["a 2 2 0 0 2 75", "->a 2"]);
    }
}

#[test]
fn a_spawn_at_a_tracked_address_ends_the_earlier_task_unseen() {
    let events = [(5, spawn(1, Some(1), 0, Parent::None)), (9, spawn(1, Some(2), 1, Parent::None))];
    check(&events, &["a 1 0 0 0 0 0", "b 1 0 0 1 0 0", "->a 1", "->b 1"]);
    let (table, target) = run(Limits::default(), &events);
    assert_eq!(table.losses().end_unseen, 1);
    assert_eq!(table.tasks()[&target].end_unseen, 1);
    assert_eq!(table.tracked(), 1);
}

#[test]
fn an_end_of_another_id_is_not_the_tracked_tasks() {
    check(
        &[(5, spawn(1, Some(1), 0, Parent::None)), (9, end(1, Some(2), 1))],
        &["a 1 0 0 0 0 0", "b 0 1 1 0 0 0", "->a 1"],
    );
}

#[test]
fn parents_are_live_recent_or_learned_tasks() {
    // Live, by id and by address.
    check(
        &[
            (1, spawn(1, Some(7), 0, Parent::None)),
            (2, spawn(2, Some(8), 1, Parent::Id(7))),
            (3, spawn(3, Some(9), 1, Parent::Address(1))),
        ],
        &["a 1 0 0 1 0 0", "b 2 0 0 2 0 0", "->a 1", "a>b 2"],
    );
    // Ended just before.
    check(
        &[
            (1, spawn(1, Some(7), 0, Parent::None)),
            (2, end(1, Some(7), 0)),
            (3, spawn(2, Some(8), 1, Parent::Id(7))),
            (4, spawn(3, Some(9), 1, Parent::Address(1))),
        ],
        &["a 1 1 0 0 1 1", "b 2 0 0 2 0 0", "->a 1", "a>b 2"],
    );
    // Its id is learned at its end; or it was never seen before.
    check(
        &[
            (1, spawn(1, None, 0, Parent::None)),
            (2, spawn(2, None, 1, Parent::Id(7))),
            (3, spawn(4, None, 1, Parent::Id(6))),
            (4, end(1, Some(7), 0)),
            (5, end(9, Some(6), 2)),
        ],
        &["a 1 1 0 0 1 3", "b 2 0 0 2 0 0", "c 0 1 1 0 0 0", "->a 1", "a>b 1", "c>b 1"],
    );
    check(&[(2, spawn(2, None, 1, Parent::Id(7)))], &["b 1 0 0 1 0 0", "?>b 1"]);
}

#[test]
fn the_runtimes_own_tasks_are_no_parents() {
    check(
        &[(1, spawn(1, Some(1), 3, Parent::None)), (2, spawn(2, Some(2), 0, Parent::Id(1)))],
        &["a 1 0 0 1 0 0", "worker 1 0 0 1 0 0", "->a 1", "->worker 1"],
    );
}

#[test]
fn parents_that_never_become_known_are_bounded() {
    let limits = Limits { unresolved_parents: 2, ..Limits::default() };
    let spawns: Vec<_> = (1..=10).map(|i| (i, spawn(i, Some(i), 0, Parent::Id(100 + i)))).collect();
    let (table, target) = run(limits, &spawns);
    assert_eq!(lines(&table.tasks()[&target])[1..], ["?>a 10"]);
}

#[test]
fn over_the_cap_tasks_are_counted_and_not_tracked() {
    let limits = Limits { tracked_tasks: 2, ..Limits::default() };
    let mut events: Vec<_> = (1..=5).map(|i| (i, spawn(i, Some(i), 0, Parent::None))).collect();
    events.extend((1..=4).map(|i| (10 + i, end(i, Some(i), 0))));
    let (table, target) = run(limits, &events);
    assert_eq!(lines(&table.tasks()[&target]), ["a 5 4 0 1 2 20", "->a 5"]);
    assert_eq!(table.tasks()[&target].untracked, 3);
    assert_eq!(table.losses().untracked, 3);
}

#[test]
fn an_event_later_than_the_horizon_leaves_nothing_alive() {
    let mut table = Table::new(Limits::default());
    let target = table.add_target(types());
    table.apply(target, 50 * MS, end(1, Some(1), 0));
    table.advance(500 * MS);
    table.apply(target, 40 * MS, spawn(1, Some(1), 0, Parent::None));
    table.finish();
    assert_eq!(lines(&table.tasks()[&target]), ["a 1 1 1 0 0 0", "->a 1"]);
}

#[test]
fn counts_are_shown_before_the_horizon_has_passed() {
    let mut table = Table::new(Limits::default());
    let target = table.add_target(types());
    table.apply(target, 10, spawn(1, Some(1), 0, Parent::None));
    table.apply(target, 20, spawn(2, Some(2), 0, Parent::None));
    table.apply(target, 30, end(1, Some(1), 0));
    assert_eq!(lines(&table.tasks()[&target]), ["a 2 1 0 1 0 0"]);
    table.advance(200 * MS);
    assert_eq!(lines(&table.tasks()[&target]), ["a 2 1 0 1 1 20", "->a 2"]);
}

#[test]
fn an_ended_target_has_no_tasks_and_is_retained() {
    let mut table = Table::new(Limits { retention_ns: 1000 * MS, ..Limits::default() });
    let (target, other) = (table.add_target(types()), table.add_target(types()));
    table.apply(target, 10, spawn(1, Some(1), 0, Parent::None));
    table.apply(other, 10, spawn(1, Some(1), 0, Parent::None));
    table.end_target(target, 20);
    table.end_target(target, 20);
    assert_eq!(lines(&table.tasks()[&target]), ["a 1 0 0 0 0 0"]);
    table.advance(500 * MS);
    assert_eq!(lines(&table.tasks()[&target]), ["a 1 0 0 0 0 0", "->a 1"]);
    assert_eq!(table.tracked(), 1);
    assert!(table.expire(1000 * MS).is_empty());
    assert_eq!(table.expire(1001 * MS), [target]);
    table.apply(target, 1002 * MS, spawn(1, Some(1), 0, Parent::None));
    table.finish();
    assert_eq!(table.losses().target_unknown, 1);
    assert_eq!(table.tasks().len(), 1);
}

/// Check that a found task lives, and ends without a lifetime and as no unseen spawn.
#[test]
fn a_found_task_lives_and_ends() {
    check(&[(5, found(1, 7, 0)), (6, found(2, 8, 1))], &["a 0 0 0 1 0 0", "b 0 0 0 1 0 0"]);
    check(&[(5, found(1, 7, 0)), (9, end(1, Some(7), 0))], &["a 0 1 0 0 0 0"]);
    // Its end was stamped before it was found, and arrived after.
    let mut table = Table::new(Limits::default());
    let target = table.add_target(types());
    table.apply(target, 50 * MS, found(1, 7, 0));
    table.advance(500 * MS);
    table.apply(target, 49 * MS, end(1, Some(7), 0));
    table.finish();
    assert_eq!(lines(&table.tasks()[&target]), ["a 0 1 0 0 0 0"]);
}

/// Check that a task that is tracked, has ended or was found before is not found.
#[test]
fn what_is_known_is_not_found() {
    let s = (5, spawn(1, Some(7), 0, Parent::None));
    check(&[s, (6, found(1, 7, 0)), (7, found(1, 7, 0))], &["a 1 0 0 1 0 0", "->a 1"]);
    check(&[s, (6, end(1, Some(7), 0)), (7, found(1, 7, 0))], &["a 1 1 0 0 1 1", "->a 1"]);
    check(&[(6, end(1, Some(7), 0)), (7, found(1, 7, 0))], &["a 0 1 1 0 0 0"]);
    // The address is a younger task's by now.
    let mut table = Table::new(Limits::default());
    let target = table.add_target(types());
    table.apply(target, 50 * MS, spawn(1, Some(8), 0, Parent::None));
    table.advance(500 * MS);
    table.apply(target, 49 * MS, found(1, 7, 0));
    table.finish();
    assert_eq!(lines(&table.tasks()[&target]), ["a 1 0 0 1 0 0", "->a 1"]);
    let (table, target) = run(Limits::default(), &[(5, found(1, 7, 0)), (6, found(1, 7, 0)), (7, found(2, 9, 99))]);
    assert_eq!(table.tasks()[&target].types[0].found, 1);
    assert_eq!(table.losses(), Losses { type_unknown: 1, ..Losses::default() });
}

/// Check that a task that is found before the report of its spawn arrives was spawned.
#[test]
fn a_spawn_after_the_finding_counts() {
    let events = [(5, found(1, 7, 0)), (6, spawn(1, Some(7), 0, Parent::None)), (16, end(1, Some(7), 0))];
    check(&events, &["a 1 1 0 0 1 10", "->a 1"]);
    let (table, target) = run(Limits::default(), &events[..2]);
    assert_eq!(table.tasks()[&target].types[0].found, 0);
}

/// Check that a found task is known as a parent, and that another at its address ends it.
#[test]
fn found_tasks_are_parents() {
    check(
        &[(1, found(1, 7, 0)), (2, spawn(2, Some(8), 1, Parent::Id(7))), (3, spawn(3, Some(9), 1, Parent::Address(1)))],
        &["a 0 0 0 1 0 0", "b 2 0 0 2 0 0", "a>b 2"],
    );
    check(
        &[(2, spawn(2, Some(8), 1, Parent::Id(7))), (3, found(1, 7, 0))],
        &["a 0 0 0 1 0 0", "b 1 0 0 1 0 0", "a>b 1"],
    );
}

/// Check that no end is taken for that of another task which was read at the same address a moment too early.
#[test]
fn a_task_that_takes_over_an_address_as_it_is_found_lives() {
    let (a, b) = (spawn(1, Some(7), 0, Parent::None), spawn(1, Some(8), 1, Parent::None));
    let (a_ends, b_found) = (end(1, Some(7), 0), found(1, 8, 1));
    let takeover = [(1, a), (5, b_found), (6, a_ends), (7, b)];
    check(&takeover, &["a 1 1 0 0 1 5", "b 1 0 0 1 0 0", "->a 1", "->b 1"]);
    check(&takeover[1..], &["a 0 1 1 0 0 0", "b 1 0 0 1 0 0", "->b 1"]);
    for events in [&takeover[..], &takeover[1..]] {
        assert_eq!(run(Limits::default(), events).0.losses(), Losses::default());
    }
}

/// Check that found tasks over the cap are a loss, and leave the counts alone.
#[test]
fn found_tasks_over_the_cap_are_a_loss() {
    let limits = Limits { tracked_tasks: 2, ..Limits::default() };
    let events: Vec<_> = (1..=5).map(|i| (i, found(i, i, 0))).collect();
    let (table, target) = run(limits, &events);
    assert_eq!(lines(&table.tasks()[&target]), ["a 0 0 0 2 0 0"]);
    assert_eq!(table.losses().untracked, 3);
}

#[test]
fn what_repeats_or_has_no_type_is_a_loss() {
    let s = (5, spawn(1, Some(1), 0, Parent::None));
    let e = (9, end(1, Some(1), 0));
    let foreign = (12, spawn(3, Some(3), 99, Parent::None));
    let (table, target) = run(Limits::default(), &[s, s, e, e, foreign]);
    assert_eq!(lines(&table.tasks()[&target]), ["a 1 1 0 0 1 4", "->a 1"]);
    assert_eq!(table.losses(), Losses { repeated: 2, type_unknown: 1, ..Losses::default() });
}

/// A life: address, type, gap before it, length; some spawns and some ends are not reported.
type Life = (u64, u32, u64, u64, bool, bool);

fn lives() -> impl Strategy<Value = Vec<Life>> {
    let life = (0u64..6, 0u32..3, 1u64..20 * MS, 1u64..40 * MS, prop::bool::weighted(0.9), prop::bool::weighted(0.9));
    prop::collection::vec(life, 1..60)
}

/// Events of lives that follow each other at each address, sorted by time.
fn stream(lives: &[Life], ids: bool) -> Vec<(u64, TaskEvent)> {
    let mut free: FxHashMap<u64, u64> = FxHashMap::default();
    let mut events = Vec::new();
    for (number, &(address, kind, gap, length, spawn_seen, end_seen)) in lives.iter().enumerate() {
        // Times are made distinct by their last digits: the order of a stream must be the order of its times.
        let number = number as u64;
        let begin = (free.get(&address).copied().unwrap_or_default() + gap) / 1000 * 1000 + 1000 + 2 * number;
        let finish = (begin + length) / 1000 * 1000 + 1000 + 2 * number + 1;
        free.insert(address, finish);
        let id = ids.then_some(number + 1);
        let parent = if ids && number > 0 { Parent::Id(number) } else { Parent::None };
        if spawn_seen {
            events.push((begin, spawn(0x1000 + address * 128, id, kind, parent)));
        }
        if end_seen {
            events.push((finish, end(0x1000 + address * 128, id, kind)));
        }
    }
    events.sort_by_key(|(time, _)| *time);
    events
}

proptest! {
    /// Check that any interleaving that delays no event by more than the horizon gives the counts of the sorted stream.
    #[test]
    fn order_of_arrival_does_not_matter(
        lives in lives(),
        ids in any::<bool>(),
        delays in prop::collection::vec(0u64..100 * MS, 120),
    ) {
        let sorted = stream(&lives, ids);
        let mut arrivals: Vec<_> = sorted.iter().zip(&delays).map(|(event, delay)| (event.0 + delay, *event)).collect();
        arrivals.sort_by_key(|(arrival, _)| *arrival);
        let shuffled: Vec<_> = arrivals.into_iter().map(|(_, event)| event).collect();
        let (a, target) = run(Limits::default(), &sorted);
        let (b, _) = run(Limits::default(), &shuffled);
        prop_assert_eq!(lines(&a.tasks()[&target]), lines(&b.tasks()[&target]));
        prop_assert_eq!(a.losses(), b.losses());
    }

    /// Check that nothing is gained or lost, at any cap: spawned = seen ends + unseen ends + alive.
    #[test]
    fn spawned_minus_ended_is_alive(lives in lives(), ids in any::<bool>(), cap in 0usize..20) {
        let all: Vec<Life> = lives.into_iter().map(|(a, k, g, l, _, end)| (a, k, g, l, true, end)).collect();
        let events = stream(&all, ids);
        let mut table = Table::new(Limits { tracked_tasks: cap, ..Limits::default() });
        let target = table.add_target(types());
        for (time, event) in &events {
            table.apply(target, *time, *event);
            prop_assert!(table.tracked() <= cap as u64);
        }
        table.finish();
        let tasks = &table.tasks()[&target];
        let sum = |of: fn(&TaskTypeSnapshot) -> u64| tasks.types.iter().map(of).sum::<u64>();
        let ended = sum(|t| t.completed.iter().sum()) - sum(|t| t.unseen_spawns);
        prop_assert_eq!(sum(|t| t.spawned), ended + tasks.end_unseen + sum(|t| t.alive));
        prop_assert_eq!(sum(|t| t.spawned), tasks.edges.iter().map(|e| e.spawns).sum::<u64>());
    }

    /// Check that counters never go back while events arrive, in whatever order.
    #[test]
    fn counters_never_go_back(lives in lives(), delays in prop::collection::vec(0u64..100 * MS, 120)) {
        let sorted = stream(&lives, true);
        let mut arrivals: Vec<_> = sorted.into_iter().zip(delays).map(|(event, delay)| (event.0 + delay, event)).collect();
        arrivals.sort_by_key(|(arrival, _)| *arrival);
        let mut table = Table::new(Limits::default());
        let target = table.add_target(types());
        let mut last: FxHashMap<String, [u64; 3]> = FxHashMap::default();
        for (_, (time, event)) in arrivals {
            table.apply(target, time, event);
            for kind in &table.tasks()[&target].types {
                let now = [kind.spawned, kind.completed.iter().sum(), kind.unseen_spawns];
                let before = last.insert(kind.name.clone(), now).unwrap_or_default();
                prop_assert!(now.iter().zip(before).all(|(now, before)| *now >= before), "{before:?} {now:?}");
            }
        }
    }

    /// Check that tasks that are found at any moment, and any number of times, are counted once, in any order of arrival.
    #[test]
    fn findings_add_up(
        lives in lives(),
        walks in prop::collection::vec(0u64..2000 * MS, 1..4),
        delays in prop::collection::vec(0u64..90 * MS, 300),
    ) {
        let all: Vec<Life> = lives.into_iter().map(|(a, k, g, l, _, _)| (a, k, g, l, true, true)).collect();
        let sorted = stream(&all, true);
        let attached_ns = sorted[sorted.len() / 3].0;
        let mut alive: FxHashMap<u64, (TaskRef, TypeId)> = FxHashMap::default();
        let mut events: Vec<(u64, TaskEvent)> = Vec::new();
        let mut walks: Vec<u64> = walks.iter().map(|after| attached_ns + after / 1000 * 1000 + 999).collect();
        walks.sort_unstable();
        let mut walks = walks.into_iter().peekable();
        let (mut spawned, mut ended) = (0, 0);
        for (time_ns, event) in &sorted {
            while let Some(walk_ns) = walks.next_if(|walk_ns| walk_ns < time_ns) {
                events.extend(alive.values().map(|&(task, kind)| (walk_ns, TaskEvent::Found { task, kind })));
            }
            match *event {
                TaskEvent::Spawned { task, kind, .. } => drop(alive.insert(task.address, (task, kind))),
                TaskEvent::Completed { task, .. } => drop(alive.remove(&task.address)),
                TaskEvent::Found { .. } | TaskEvent::Gone { .. } => {}
            }
            if *time_ns >= attached_ns {
                events.push((*time_ns, *event));
                spawned += u64::from(matches!(event, TaskEvent::Spawned { .. }));
                ended += u64::from(matches!(event, TaskEvent::Completed { .. }));
            }
        }
        let mut arrivals: Vec<_> = events.into_iter().zip(delays).map(|(event, delay)| (event.0 + delay, event)).collect();
        let complete = arrivals.len() < 300;
        arrivals.sort_by_key(|(arrival, _)| *arrival);
        let mut table = Table::new(Limits::default());
        let target = table.add_target(types());
        let mut last = (0, 0);
        for (_, (time, event)) in arrivals {
            table.apply(target, time, event);
            let tasks = &table.tasks()[&target];
            let sum = |of: fn(&TaskTypeSnapshot) -> u64| tasks.types.iter().map(of).sum::<u64>();
            let now = (sum(|t| t.spawned), sum(|t| t.completed.iter().sum()));
            prop_assert!(now.0 >= last.0 && now.1 >= last.1, "{last:?} {now:?}");
            last = now;
        }
        table.finish();
        let tasks = &table.tasks()[&target];
        let sum = |of: fn(&TaskTypeSnapshot) -> u64| tasks.types.iter().map(of).sum::<u64>();
        if complete {
            prop_assert_eq!((sum(|t| t.spawned), sum(|t| t.completed.iter().sum())), (spawned, ended));
        }
        // Whoever ended unseen was found or spawned; nothing is left, since everything ends.
        prop_assert_eq!(sum(|t| t.spawned) + sum(|t| t.found) + sum(|t| t.unseen_spawns), ended);
        prop_assert_eq!(sum(|t| t.alive), 0);
        prop_assert_eq!(table.losses(), Losses::default());
    }
}
