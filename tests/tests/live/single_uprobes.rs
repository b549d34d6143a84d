//! Uprobes one by one, as on kernels that have no link for many.

use tests::fixture::Fixture;
use tests::place;
use tests::profiler::Profiler;
use tests::table::Table;
use tests::wait;

/// Requests that the watched program serves, each on a connection and so in a task of its own.
const REQUESTS: u64 = 50;

/// A program with few types of task is measured exactly: the profiler's own endpoint is one.
#[test]
fn few_are_attached() {
    place::require_root();
    let mut table = Table::new("tasks by single uprobes");
    let fixture = Fixture::tokio("latest", "release", &["tasks"]);
    let mut watched = Profiler::attach(fixture.pid());
    let pid = watched.program().pid();
    let profiler = Profiler::attach_with(pid, &["--without", "uprobe_multi"]);
    let status = profiler.status();
    let (_, how) = status.target(pid).probe("tasks").expect("a row");
    table.holds("attached", "by perf events", how, how.contains("perf-event"));
    for _ in 0..REQUESTS {
        assert_eq!(watched.get("/healthz").status, 200);
    }
    let status = wait::until("the ends of all connections", || {
        let status = profiler.status();
        let target = status.target(pid);
        let (spawned, ended) = (target.spawned(), target.completed());
        if spawned >= REQUESTS && ended >= REQUESTS {
            Ok(status)
        } else {
            Err(format!("{spawned} spawned, {ended} ended"))
        }
    });
    table.equal("spawned", REQUESTS, status.target(pid).spawned());
    table.equal("ended", REQUESTS, status.target(pid).completed());
    table.finish();
}

/// A program with many is refused, since detaching them would take minutes; the kernel's signals are measured.
#[test]
fn many_are_refused() {
    place::require_root();
    let mut table = Table::new("too many single uprobes");
    let fixture = Fixture::tokio("latest", "release", &["tasks"]);
    let pid = fixture.pid();
    let profiler = Profiler::attach_with(pid, &["--without", "uprobe_multi"]);
    let status = profiler.status();
    for probe in ["tasks", "task_spawn", "task_complete"] {
        let (state, why) = status.target(pid).probe(probe).expect("a row");
        table.holds(probe, "unsupported", why, state == "unsupported" && why.contains("uprobe_multi"));
    }
    table.holds("run queue", "attached", "", status.target(pid).is_attached("run_queue"));
    table.finish();
}
