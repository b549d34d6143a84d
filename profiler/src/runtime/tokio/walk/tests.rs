//! Walks through memory that is made up: as it should be, as it is while it changes, and as an enemy would have it.

mod queues;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::event::TypeId;
use crate::runtime::tokio::vtable::Vtable;
use crate::target::memory::{Region, Span};

const STACK: u64 = 0x7f00_0000_0000;
const STACK_WORDS: u64 = 512;
const HEAP: u64 = 0x5500_0000_0000;
const HEAP_WORDS: u64 = 1 << 16;
const BIAS: u64 = 0x4000_0000;
/// The vtables of two types.
const VTABLES: [u64; 2] = [0x1000, 0x1050];
const TRAILER: u64 = 0x60;
const ID: u64 = 0x28;
/// Where the handle and the shards are, and the tasks from there on.
const HANDLE: u64 = HEAP + 0x100;
const LISTS: u64 = HEAP + 0x1000;
const TASKS: u64 = HEAP + 0x4000;
const OWNER: u64 = 3;

/// Two regions of memory; every reading of it costs a tick of the clock, and may change it.
#[derive(Default)]
struct Fake {
    words: RefCell<BTreeMap<u64, u64>>,
    readings: Cell<u64>,
    changes: RefCell<Vec<Change>>,
}

/// After so many readings, these words change: address and content.
type Change = (u64, Vec<(u64, u64)>);

thread_local! {
    static NOW: Cell<u64> = const { Cell::new(0) };
}

fn now_ns() -> u64 {
    NOW.get()
}

fn region_words(region: &Region) -> u64 {
    (region.end - region.start) / 8
}

impl Memory for Fake {
    fn fill(&self, spans: &[Span], bytes: &mut [u8]) -> Result<usize, MemoryError> {
        NOW.set(NOW.get() + 1);
        self.readings.set(self.readings.get() + 1);
        let mut words = self.words.borrow_mut();
        self.changes.borrow_mut().retain(|(after, changes)| {
            let due = self.readings.get() >= *after;
            if due {
                words.extend(changes.iter().copied());
            }
            !due
        });
        let (mut filled, mut at) = (0, 0);
        let regions = self.regions()?;
        for span in spans {
            let end = span.address.checked_add(span.length as u64);
            if !regions.iter().any(|r| r.start <= span.address && end.is_some_and(|end| end <= r.end)) {
                break;
            }
            for n in 0..span.length as u64 {
                let address = span.address + n;
                let word = words.get(&(address / 8 * 8)).copied().unwrap_or_default();
                bytes[at] = word.to_le_bytes()[(address % 8) as usize];
                at += 1;
            }
            filled += 1;
        }
        Ok(filled)
    }

    fn regions(&self) -> Result<Vec<Region>, MemoryError> {
        Ok(vec![
            Region { start: HEAP, end: HEAP + HEAP_WORDS * 8 },
            Region { start: STACK, end: STACK + STACK_WORDS * 8 },
        ])
    }
}

impl Fake {
    fn set(&self, address: u64, words: &[u64]) {
        let mut memory = self.words.borrow_mut();
        for (n, word) in words.iter().enumerate() {
            memory.insert(address + n as u64 * 8, *word);
        }
    }

    /// A thread whose storage points to the handle.
    fn thread(&self) {
        let pointer = STACK + STACK_WORDS * 8 - 0x940;
        self.set(pointer, &[pointer, 0, pointer]);
        self.set(pointer - 0x40, &[0xffff, HANDLE, 7]);
    }

    /// A sharded list of `tasks` tasks in four lists, each list's first task first.
    fn sharded(&self, tasks: u64) -> Vec<Vec<u64>> {
        let mut shards = vec![Vec::new(); 4];
        for n in 0..tasks {
            shards[(n % 4) as usize].insert(0, TASKS + n * 0x80);
        }
        self.set(HANDLE + 0x50, &[LISTS, 4, tasks + 100, tasks, 3, OWNER]);
        for (n, shard) in shards.iter().enumerate() {
            self.link(LISTS + n as u64 * 24, shard);
        }
        shards
    }

    fn link(&self, shard: u64, tasks: &[u64]) {
        let word = |task: Option<&u64>| task.copied().unwrap_or_default();
        self.set(shard, &[0, word(tasks.first()), word(tasks.last())]);
        for (n, &task) in tasks.iter().enumerate() {
            let kind = (task / 0x80 % 2) as usize;
            self.set(task, &[0xc4, 0, VTABLES[kind] + BIAS, OWNER]);
            self.set(task + ID, &[task / 0x80]);
            let previous = n.checked_sub(1).map_or(0, |n| tasks[n]);
            self.set(task + TRAILER, &[previous, word(tasks.get(n + 1))]);
        }
    }

    fn alive(&self, tasks: u64) {
        self.set(HANDLE + 0x50, &[LISTS, 4, tasks + 100, tasks, 3, OWNER]);
    }
}

fn walker() -> TokioWalk {
    let vtable = |address| Vtable { address, trailer: Some(TRAILER), scheduler: Some(0x20), id: Some(ID) };
    let types = Types::new(&VTABLES.map(vtable)).expect("all offsets are there");
    TokioWalk::new(types.at(BIAS), ThreadLocal { size: 0x100, align: 64 })
}

/// Walks once, for at most `readings` readings.
fn walk(walker: &mut TokioWalk, memory: &Fake, readings: u64) -> (Walked, Vec<u64>) {
    let effort =
        Effort { deadline_ns: NOW.get() + readings, most_tasks: 100_000, goes_on: false, search_ns: 0, now_ns };
    let mut found = Vec::new();
    let walked = walker.walk(memory, effort, &mut |tasks| found.extend(tasks.iter().map(|t| t.task.address)));
    found.sort_unstable();
    found.dedup();
    (walked.expect("memory can be read"), found)
}

fn tally(walked: &Walked) -> &Tally {
    walked.tasks.as_ref().expect("all tasks were read")
}

/// Check that we find all tasks of a list, each with its type, and that the totals are the runtime's.
#[test]
fn all_tasks_are_found() {
    let memory = Fake::default();
    memory.thread();
    memory.sharded(101);
    let (walked, found) = walk(&mut walker(), &memory, 10_000);
    assert_eq!(found, (0..101).map(|n| TASKS + n * 0x80).collect::<Vec<_>>());
    let mut by_type = tally(&walked).by_type.clone();
    by_type.sort_unstable();
    assert_eq!(by_type, [(TypeId(0), 51), (TypeId(1), 50)]);
    assert!(tally(&walked).consistent);
    assert_eq!((walked.alive(), walked.spawned, walked.handed), (Some(101), Some(201), 101));
    // All are notified, and none is polled.
    assert_eq!(tally(&walked).runnable, 101);
}

/// Check that an empty list is a list, and that a runtime that is gone is no longer counted, but what it spawned is.
#[test]
fn a_runtime_comes_and_goes() {
    let memory = Fake::default();
    let mut walker = walker();
    let (walked, _) = walk(&mut walker, &memory, 1000);
    assert!(walked.runtimes.is_empty() && walked.tasks.is_err() && walked.alive().is_none());
    memory.thread();
    memory.sharded(0);
    let (walked, _) = walk(&mut walker, &memory, 1000);
    assert_eq!((walked.alive(), walked.spawned, tally(&walked).alive()), (Some(0), Some(100), 0));
    memory.set(HANDLE + 0x50, &[1, 2, 3, 4, 5, 6]);
    let (walked, _) = walk(&mut walker, &memory, 1000);
    assert_eq!((walked.alive(), walked.spawned), (None, Some(100)));
}

/// Check that a list before 1.35 is found by its tasks, stays known without any, and is counted one by one.
#[test]
fn a_single_list_is_found() {
    let memory = Fake::default();
    memory.thread();
    let tasks: Vec<u64> = (0..50).map(|n| TASKS + n * 0x80).collect();
    let place = HANDLE + 0x50;
    memory.link(place - 8, &tasks);
    memory.set(place + 16, &[0x5500_0000_0000, OWNER]);
    let mut walker = walker();
    let (walked, found) = walk(&mut walker, &memory, 10_000);
    assert_eq!((found, walked.alive(), walked.spawned), (tasks.clone(), Some(50), None));
    assert!(tally(&walked).consistent);
    memory.link(place - 8, &[]);
    let (walked, _) = walk(&mut walker, &memory, 10_000);
    assert_eq!((walked.alive(), tally(&walked).alive()), (Some(0), 0));
}

/// Check that a task which leaves while we stand in front of it costs us nothing but a step back.
#[test]
fn tasks_that_leave_are_stepped_over() {
    for after in 3..60 {
        let memory = Fake::default();
        memory.thread();
        let shards = memory.sharded(80);
        let mut changed = Fake::default();
        let mut rest = shards[1].clone();
        // Every third one leaves.
        let gone: Vec<u64> = rest.iter().copied().step_by(3).collect();
        rest.retain(|task| !gone.contains(task));
        changed.link(LISTS + 24, &rest);
        changed.alive(80 - gone.len() as u64);
        let mut words: Vec<(u64, u64)> = changed.words.get_mut().clone().into_iter().collect();
        words.extend(gone.iter().flat_map(|task| (0..16).map(move |n| (task + n * 8, 0xdead))));
        memory.changes.borrow_mut().push((after, words));
        let (walked, found) = walk(&mut walker(), &memory, 10_000);
        assert!(tally(&walked).consistent, "after {after} readings");
        let early = memory.changes.borrow().is_empty();
        assert_eq!(tally(&walked).alive(), if early { 80 - gone.len() as u64 } else { 80 }, "after {after} readings");
        assert!(shards.iter().flatten().filter(|task| !gone.contains(task)).all(|task| found.contains(task)));
    }
}

/// Check that a count that does not fit is not called consistent, and that tasks over the limit are not walked.
#[test]
fn what_does_not_add_up_is_said() {
    let memory = Fake::default();
    memory.thread();
    memory.sharded(40);
    memory.alive(41);
    let (walked, found) = walk(&mut walker(), &memory, 10_000);
    assert!(!tally(&walked).consistent);
    assert_eq!((walked.alive(), found.len()), (Some(41), 40));
    memory.alive(200_000);
    let (walked, found) = walk(&mut walker(), &memory, 10_000);
    assert!(walked.tasks.is_err_and(|why| why.contains("200000 tasks")));
    assert!(found.is_empty());
}

/// Check that a task in whose place is something else breaks its list, and not the others.
#[test]
fn a_broken_list_is_no_count() {
    let memory = Fake::default();
    memory.thread();
    let shards = memory.sharded(40);
    memory.set(shards[2][5] + 16, &[0x1234]);
    let (walked, found) = walk(&mut walker(), &memory, 100_000);
    assert!(walked.tasks.is_err_and(|why| why.contains("1 lists")));
    assert!(shards[0].iter().chain(&shards[1]).chain(&shards[3]).all(|task| found.contains(task)));
    assert!(!found.contains(&shards[2][5]));
}

/// Check that lists that lead in circles, to themselves or to nowhere end in time.
#[test]
fn circles_end() {
    let circle = |from: usize, to: u64| {
        let memory = Fake::default();
        memory.thread();
        let shards = memory.sharded(40);
        memory.set(shards[0][from] + TRAILER, &[to]);
        let (walked, _) = walk(&mut walker(), &memory, 100_000);
        assert!(memory.readings.get() < 10_000, "{} readings", memory.readings.get());
        walked
    };
    let tail = TASKS;
    for to in [tail, TASKS + 4 * 0x80, HEAP, 8, u64::MAX, u64::MAX - 7, STACK, 1 << 63] {
        for from in [0, 3, 9] {
            // The first task has nothing in front of it: where it leads is not followed.
            let walked = circle(from, to);
            assert!(from == 0 || to == TASKS + 4 * 0x80 || walked.tasks.is_err(), "{from} {to:x}");
        }
    }
}

/// Check that a list which grows in front of us as fast as we walk ends at the deadline.
#[test]
fn an_endless_list_ends_at_the_deadline() {
    let memory = Fake::default();
    memory.thread();
    let shards = memory.sharded(40);
    // Every task's neighbour is the task itself, and every time it is looked at it is another's.
    for n in 0..20_000 {
        let (a, b) = (shards[0][2 + n % 2], shards[0][3 - n % 2]);
        memory.changes.borrow_mut().push((n as u64 + 8, vec![(a + TRAILER, b), (b + TRAILER + 8, a)]));
    }
    let begin = NOW.get();
    let (walked, _) = walk(&mut walker(), &memory, 500);
    assert!(NOW.get() - begin < 600);
    assert!(walked.tasks.is_err() || !tally(&walked).consistent);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Check that no memory makes us panic, read for long, or hand over what is no task of the owner.
    #[test]
    fn any_memory_is_survived(
        tasks in 0u64..60,
        damage in prop::collection::vec(
            (0u64..0x6000 / 8, prop_oneof![
                Just(0), Just(u64::MAX), Just(HANDLE), Just(LISTS), any::<u64>(), 0u64..1 << 20,
                (0u64..60).prop_map(|n| TASKS + n * 0x80), (0u64..0x6000).prop_map(|n| HEAP + n),
            ], 0u64..40), 0..40),
    ) {
        let memory = Fake::default();
        memory.thread();
        memory.sharded(tasks);
        for (word, value, after) in damage {
            memory.changes.borrow_mut().push((after, vec![(HEAP + word * 8, value)]));
        }
        let mut walker = walker();
        for _ in 0..3 {
            let before = memory.readings.get();
            let (walked, found) = walk(&mut walker, &memory, 2_000);
            // A hole costs a reading of its own.
            prop_assert!(memory.readings.get() - before < 20_000);
            prop_assert!(found.iter().all(|task| task % 8 == 0));
            if let Ok(tally) = &walked.tasks {
                prop_assert!(!tally.consistent || Some(tally.alive()) <= walked.alive());
            }
        }
    }
}

/// Check that the end of a region cuts a reading short, and does not fail it.
#[test]
fn regions_end_where_they_end() {
    let regions = Fake::default().regions().unwrap();
    assert_eq!(regions.iter().map(region_words).collect::<Vec<_>>(), [HEAP_WORDS, STACK_WORDS]);
    let holds = |address| thread::region_of(&regions, address).is_some();
    assert!(holds(HEAP) && holds(STACK + 8) && holds(HEAP + HEAP_WORDS * 8 - 1));
    assert!(!holds(HEAP - 1) && !holds(HEAP + HEAP_WORDS * 8) && !holds(u64::MAX) && !holds(0));
}
