//! A CPU limit that holds its process.

use tests::cgroup::Cgroup;
use tests::fixture::Fixture;
use tests::place;
use tests::profiler::Profiler;
use tests::table::Table;
use tests::wait;

/// Check that throttlings and their time are the cgroup's own, that a process which comes into such a cgroup is found
/// there, and that what can never be held has no figure.
#[test]
fn throttled_process() {
    place::require_root();
    let Some(cgroup) = Cgroup::where_permitted(20) else { return };
    let mut fixture = Fixture::start(&place::forker(), &[]);
    let pid = fixture.pid();
    cgroup.release(pid).expect("a process of our own");
    let profiler = Profiler::attach(pid);
    let mut table = Table::new("a limit of 20 % of a CPU");
    let state = || {
        let status = profiler.status();
        status.target(pid).probe("cpu_throttled").map_or("absent", |(state, _)| state).to_owned()
    };
    table.equal("row in the root cgroup", "not_applicable".to_owned(), state());
    table.equal("series in the root cgroup", false, profiler.page().has("profiler_cpu_throttled_seconds_total", &[]));

    cgroup.take(pid).expect("a process of our own");
    let row = wait::until_or_last(state, |state| state == "attached");
    table.equal("row in the cgroup", "attached".to_owned(), row);
    let before = cgroup.throttled();
    table.equal("before", 0.0, profiler.page().value("profiler_cpu_throttled_seconds_total", &[]));
    fixture.ask("spin 1500");
    let truth = || {
        let now = cgroup.throttled();
        (now.0 - before.0, (now.1 - before.1) as f64 / 1e9)
    };
    let seen = || {
        let page = profiler.page();
        let count = page.value("profiler_cpu_throttled_seconds_count", &[]) as u64;
        (count, page.value("profiler_cpu_throttled_seconds_total", &[]))
    };
    // The last period ends after the process has gone to sleep.
    let (seen, truth) = wait::until_or_last(|| (seen(), truth()), |(seen, truth)| seen == truth && truth.0 > 0);
    table.equal("periods", truth.0, seen.0);
    table.equal("time, s", truth.1, seen.1);
    table.holds("throttled", "more than 5 times, 0.3 s", format!("{truth:?}"), truth.0 > 5 && truth.1 > 0.3);
    table.finish();
}
