//! Measures what the hot paths cost: an event applied, a task held, a page encoded. To be run with `--release`.

use std::alloc::{GlobalAlloc, Layout, System};
use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use profiler::event::{Outcome, Parent, TaskEvent, TaskRef, TypeId};
use profiler::metrics::{self, Own};
use profiler::model::snapshot::{Snapshot, TargetSnapshot};
use profiler::model::table::{Limits, Table, TargetId};
use profiler::model::task::TypeInfo;
use profiler::status::TargetStatus;

struct Counting;

static LIVE_BYTES: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is passed on to the system's allocator as it is; only sizes are counted.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE_BYTES.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE_BYTES.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `dealloc`, and the pointer came from `System`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const TYPES: u32 = 60;

/// CPU time of this thread, ns: on a busy machine the wall clock measures the neighbours.
fn cpu_ns() -> u64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").expect("a kernel with schedstat");
    stat.split(' ').next().and_then(|ns| ns.parse().ok()).expect("a kernel with schedstat")
}

fn types() -> Arc<[TypeInfo]> {
    (0..TYPES).map(|i| TypeInfo { name: format!("app::handler{i}::{{closure}}"), ..TypeInfo::default() }).collect()
}

fn task(number: u64, slots: u64) -> TaskRef {
    TaskRef { address: 0x7f00_0000_0000 + number % slots * 256, id: Some(number + 1) }
}

fn spawn(table: &mut Table, target: TargetId, number: u64, slots: u64, time_ns: u64) {
    let kind = TypeId(number as u32 % TYPES);
    let parent = Parent::Id(number.saturating_sub(3));
    table.apply(target, time_ns, TaskEvent::Spawned { task: task(number, slots), kind, parent });
}

fn end(table: &mut Table, target: TargetId, number: u64, slots: u64, time_ns: u64) {
    let kind = TypeId(number as u32 % TYPES);
    table.apply(target, time_ns, TaskEvent::Completed { task: task(number, slots), kind, outcome: Outcome::Completed });
}

fn mebibytes(bytes: usize) -> f64 {
    bytes as f64 / (1 << 20) as f64
}

fn main() {
    let before = LIVE_BYTES.load(Ordering::Relaxed);
    let mut table = Table::new(Limits::default());
    let target = table.add_target(types());
    let live: u64 = 100_000;
    for number in 0..live {
        spawn(&mut table, target, number, live, number * 1_000);
    }
    let with_pending = LIVE_BYTES.load(Ordering::Relaxed) - before;
    table.finish();
    let settled = LIVE_BYTES.load(Ordering::Relaxed) - before;
    println!("live tasks {live}: {:.1} MiB, {:.1} with events that wait", mebibytes(settled), mebibytes(with_pending));
    println!("  {} bytes per task", settled as u64 / live);

    // A steady state: the oldest ends, a new one takes its address.
    for (live, interval_ns) in [(1_000, 1_000), (100_000, 1_000), (1_000, 100_000), (100_000, 100_000)] {
        let rounds: u64 = 2_000_000;
        let mut table = Table::new(Limits::default());
        let target = table.add_target(types());
        for number in 0..live {
            spawn(&mut table, target, number, live, number * interval_ns);
        }
        let begin = cpu_ns();
        for number in live..live + rounds {
            end(&mut table, target, number - live, live, number * interval_ns);
            spawn(&mut table, target, number, live, number * interval_ns + interval_ns / 2);
        }
        let ns = (cpu_ns() - begin) as f64 / (2 * rounds) as f64;
        println!("apply, {live} live, an event per {} ns: {ns:.0} ns per event", interval_ns / 2);
        let begin = Instant::now();
        black_box(table.tasks());
        println!("  copy for a snapshot: {:.2} ms", begin.elapsed().as_secs_f64() * 1e3);
        assert_eq!(table.losses(), Default::default());
    }

    let targets = (0..3).map(|pid| {
        let mut table = Table::new(Limits::default());
        let target = table.add_target(types());
        for number in 0..1_000 {
            spawn(&mut table, target, number, 1_000, number * 10_000);
            end(&mut table, target, number, 1_000, number * 10_000 + 5_000);
        }
        table.finish();
        TargetSnapshot {
            pid,
            process: "server".into(),
            runtime: "tokio",
            runtime_version: None,
            running: true,
            status: TargetStatus::default(),
            sched: None,
            listeners: Vec::new(),
            tasks: table.tasks().remove(&target),
            figures: None,
            threads: None,
            processes: None,
            ..TargetSnapshot::default()
        }
    });
    let snapshot = Arc::new(Snapshot { targets: targets.collect(), ..Snapshot::default() });
    let mut best = f64::MAX;
    let mut lines = 0;
    for _ in 0..50 {
        let begin = Instant::now();
        let page = metrics::page(Arc::clone(&snapshot), Own::default()).expect("a page");
        best = best.min(begin.elapsed().as_secs_f64() * 1e3);
        lines = page.lines().filter(|line| !line.starts_with('#')).count();
    }
    println!("page of {lines} series: {best:.2} ms");
}
