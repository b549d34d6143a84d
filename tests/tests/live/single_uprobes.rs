//! Uprobes one by one, as on kernels that have no link for many.

use tests::fixture::Fixture;
use tests::place;
use tests::profiler::Profiler;
use tests::status::number;
use tests::table::Table;
use tests::wait;

/// Check that a program with few types of task is measured exactly.
#[test]
fn few_are_attached() {
    place::require_root();
    let mut table = Table::new("tasks by single uprobes");
    let mut fixture = Fixture::start(&place::few(), &[]);
    let pid = fixture.pid();
    let profiler = Profiler::attach_with(pid, &["--without", "uprobe_multi"]);
    let status = profiler.status();
    let (_, how) = status.target(pid).probe("tasks").expect("a row");
    table.holds("attached", "by perf events", how, how.contains("perf-event"));
    let truth = number(&fixture.ask("run 50")["spawned"]);
    let seen = || (profiler.status().target(pid).spawned(), profiler.status().target(pid).completed());
    let seen = wait::until_or_last(seen, |seen| *seen == (truth, truth));
    table.equal("spawned, ended", format!("{:?}", (truth, truth)), format!("{seen:?}"));
    profiler.stop();
    table.equal("exit code", 0, fixture.quit().unwrap_or(-1));
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
