//! The queues that threads share, in memory that is made up.

use super::*;

/// The ends of the injection queue, and its length. Its lock is in front of the one, what may be another's behind it.
const ENDS: u64 = HANDLE + 0x108;
const LENGTH: u64 = HANDLE + 0xe8;
/// Where the handle points to the pool, and the pool.
const POINTER: u64 = HANDLE + 0x140;
const POOL: u64 = HEAP + 0x2000;
const QUEUE: u64 = POOL + 0x20;
const THREADS: u64 = POOL + 0x40;
const ELEMENTS: u64 = HEAP + 0x2400;
const CONTROL: u64 = HEAP + 0x2800;
/// The control block of the only thread.
const THREAD: u64 = STACK + STACK_WORDS * 8 - 0x940;
/// Tasks of closures.
const CLOSURES: u64 = TASKS + 0x80 * 200;

fn task(n: u64) -> u64 {
    TASKS + n * 0x80
}

impl Fake {
    /// Puts these tasks into the injection queue, and nothing else.
    fn inject(&self, tasks: &[u64]) {
        for (n, &task) in tasks.iter().enumerate() {
            self.set(task + 8, &[tasks.get(n + 1).copied().unwrap_or_default()]);
        }
        let end = |task: Option<&u64>| task.copied().unwrap_or_default();
        self.set(ENDS - 8, &[0, end(tasks.first()), end(tasks.last()), 0]);
        self.set(LENGTH, &[tasks.len() as u64]);
    }

    /// A pool of three threads with `closures` waiting closures in a queue with room for eight, from the sixth on.
    fn pool(&self, closures: u64) {
        self.set(POINTER, &[POOL]);
        self.set(POOL, &[2, 1]);
        self.set(QUEUE, &[8, ELEMENTS, 5, closures]);
        self.set(THREADS, &[CONTROL, 3, 0, 3]);
        self.set(CONTROL, &[0xff11_2233]);
        for place in 0..3 {
            self.set(CONTROL - (place + 1) * 32, &[place, THREAD, 0, 0]);
        }
        for n in 0..closures {
            let closure = CLOSURES + n * 0x80;
            self.set(closure, &[0xc4, 0, VTABLES[0] + BIAS, 0]);
            self.set(ELEMENTS + (5 + n) % 8 * 16, &[closure, 1]);
        }
    }
}

fn injection(walker: &mut TokioWalk, memory: &Fake) -> Option<u64> {
    walk(walker, memory, 100_000).0.sum(|totals| totals.injection_queue)
}

fn blocking(walker: &mut TokioWalk, memory: &Fake) -> Option<u64> {
    walk(walker, memory, 100_000).0.sum(|totals| totals.blocking_queue)
}

fn memory(tasks: u64) -> Fake {
    let memory = Fake::default();
    memory.thread();
    memory.sharded(tasks);
    memory
}

/// Check that the injection queue is found by the tasks in it, and is known from then on.
#[test]
fn an_injection_queue_is_found_by_its_tasks() {
    let (memory, mut walker) = (memory(100), walker());
    let all: Vec<u64> = (0..100).map(task).collect();
    assert_eq!(injection(&mut walker, &memory), None, "all tasks wait somewhere, and an empty queue looks like none");
    memory.inject(&all[..1]);
    assert_eq!(injection(&mut walker, &memory), None, "one task is no chain");
    memory.inject(&all[..10]);
    assert_eq!(injection(&mut walker, &memory), Some(10));
    memory.inject(&[]);
    assert_eq!(injection(&mut walker, &memory), Some(0));
    memory.inject(&all[3..4]);
    assert_eq!(injection(&mut walker, &memory), Some(1));
}

/// Check that a queue is empty, wherever it is, when no task waits; and is not known when one does.
#[test]
fn where_no_task_waits_none_is_queued() {
    let memory = memory(10);
    for n in 0..10 {
        memory.set(task(n), &[0xc0]);
    }
    assert_eq!(injection(&mut walker(), &memory), Some(0));
    memory.set(task(7), &[0xc4]);
    assert_eq!(injection(&mut walker(), &memory), None);
}

/// Check that the length is learned from short queues and tells of one that cannot be followed, and that what was as
/// long as the queue by chance is found out.
#[test]
fn a_length_is_learned() {
    let (memory, mut walker) = (memory(100), walker());
    let all: Vec<u64> = (0..100).map(task).collect();
    let decoy = HANDLE + 0x200;
    for count in [10, 25] {
        memory.inject(&all[..count]);
        memory.set(decoy, &[count as u64]);
        assert_eq!(injection(&mut walker, &memory), Some(count as u64));
    }
    let cut = |count: usize| {
        memory.inject(&all[..count]);
        memory.set(all[count / 2] + 8, &[8]);
    };
    cut(90);
    assert_eq!(injection(&mut walker, &memory), None, "two words may be the length, and they differ");
    memory.set(decoy, &[90]);
    assert_eq!(injection(&mut walker, &memory), Some(90), "they agree");
    memory.inject(&all[..30]);
    assert_eq!(injection(&mut walker, &memory), Some(30));
    cut(95);
    assert_eq!(injection(&mut walker, &memory), Some(95), "only one is left");
    cut(40);
    assert_eq!(injection(&mut walker, &memory), None, "a short queue is followed all the same");
}

/// Check that nothing is learned of the length while somebody holds the lock.
#[test]
fn a_held_lock_teaches_nothing() {
    let (memory, mut walker) = (memory(100), walker());
    let all: Vec<u64> = (0..100).map(task).collect();
    for count in [10, 25] {
        memory.inject(&all[..count]);
        memory.set(ENDS - 8, &[1]);
        assert_eq!(injection(&mut walker, &memory), Some(count as u64));
    }
    memory.inject(&all[..90]);
    memory.set(all[45] + 8, &[8]);
    assert_eq!(injection(&mut walker, &memory), None);
}

/// Check that what only resembles the queue is not taken for it: the list of tasks, tasks of others, those that run.
#[test]
fn what_resembles_an_injection_queue_is_none() {
    let fake = Fake::default();
    fake.thread();
    let tasks: Vec<u64> = (0..10).map(task).collect();
    fake.link(HANDLE + 0x48, &tasks);
    fake.set(HANDLE + 0x60, &[0, OWNER]);
    for pair in tasks.windows(2) {
        fake.set(pair[0] + 8, &[pair[1]]);
    }
    assert_eq!(injection(&mut walker(), &fake), None, "the list of tasks itself");
    for (at, word) in [(0, 0xc5), (0, 0xc2), (0, 0xc0), (16, 0x1234), (24, OWNER + 1)] {
        let memory = memory(100);
        memory.inject(&tasks);
        memory.set(tasks[5] + at, &[word]);
        assert_eq!(injection(&mut walker(), &memory), None, "{at} {word:x}");
    }
    let memory = memory(100);
    memory.inject(&tasks);
    memory.set(tasks[5] + 8, &[tasks[2]]);
    assert_eq!(injection(&mut walker(), &memory), None, "a circle");
}

/// Check that the pool is found by its threads, used or not, and its queue counted.
#[test]
fn a_pool_is_found_by_its_threads() {
    let (memory, mut walker) = (memory(4), walker());
    assert_eq!(blocking(&mut walker, &memory), None);
    for closures in [0, 6, 8, 1, 0] {
        memory.pool(closures);
        assert_eq!(blocking(&mut walker, &memory), Some(closures));
        assert_eq!(blocking(&mut super::walker(), &memory), Some(closures));
    }
}

/// Check that a pool in which anything is wrong is not found, and that one which is known is not read then.
#[test]
fn what_resembles_a_pool_is_none() {
    let wrong = [
        (POOL, 0),
        (QUEUE, 7),
        (QUEUE + 8, 12),
        (QUEUE + 16, 8),
        (QUEUE + 24, 9),
        (ELEMENTS + 5 * 16, 0),
        (ELEMENTS + 5 * 16 + 8, 2),
        (CLOSURES, 0xc2),
        (CLOSURES + 16, 0),
        (CLOSURES + 24, OWNER),
        (THREADS, CONTROL + 8),
        (THREADS + 8, 4),
        (THREADS + 16, 1),
        (THREADS + 24, 2),
        (CONTROL, 0xffff_2233),
        (CONTROL - 24, THREAD + 16),
    ];
    for (at, word) in wrong {
        let (memory, mut known) = (memory(4), walker());
        memory.pool(6);
        assert_eq!(blocking(&mut known, &memory), Some(6));
        memory.set(at, &[word]);
        let is_thread = !(QUEUE..QUEUE + 32).contains(&at) && !(ELEMENTS..CONTROL - 96).contains(&at) && at < CLOSURES;
        assert_eq!(blocking(&mut walker(), &memory), None, "{at:x} {word:x}");
        assert_eq!(blocking(&mut known, &memory), is_thread.then_some(6), "{at:x} {word:x}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Check that no memory makes us panic or read for long.
    #[test]
    fn any_queue_is_survived(
        injected in 0u64..60,
        closures in 0u64..8,
        damage in prop::collection::vec(
            (prop_oneof![0u64..0x600 / 8, 0x2000u64 / 8..0x2900 / 8, 0x4000u64 / 8..0x6000 / 8], prop_oneof![
                Just(0), Just(1), Just(u64::MAX), Just(POOL), Just(QUEUE), any::<u64>(), 0u64..64,
                (0u64..60).prop_map(task), (0u64..0x6000).prop_map(|n| HEAP + n),
            ], 0u64..60), 0..40),
    ) {
        let memory = memory(60);
        memory.inject(&(0..injected).map(task).collect::<Vec<_>>());
        memory.pool(closures);
        for (word, value, after) in damage {
            memory.changes.borrow_mut().push((after, vec![(HEAP + word * 8, value)]));
        }
        let mut walker = walker();
        for _ in 0..3 {
            let before = memory.readings.get();
            walk(&mut walker, &memory, 2_000);
            // A hole costs a reading of its own.
            prop_assert!(memory.readings.get() - before < 30_000);
        }
    }
}
