//! The queues that a runtime's threads share, read from the target's memory: they are as long as the fixture made them.

use serde_json::Value;
use tests::fixture::Fixture;
use tests::place;
use tests::profiler::Profiler;
use tests::status::number;
use tests::table::Table;
use tests::wait;

/// Tasks that no worker takes: at first few, so that the length is learned, then more than are followed one by one.
const INJECTED: [u64; 5] = [50, 77, 40_000, 1, 300];
/// Closures: more than the four threads that run them, more than before, and fewer.
const BLOCKING: [u64; 3] = [10, 1000, 3];

const METRIC: &str = "profiler_runtime_queue_depth";

/// How long a queue is, by the status; `None` where that is not known.
fn depth(profiler: &Profiler, pid: u32, queue: &str) -> Option<u64> {
    profiler.status().target(pid).0["figures"]["queues"][queue].as_u64()
}

/// Compares a queue with what the fixture says of it, until it is so: it is read once a second.
fn compare(table: &mut Table, when: &str, profiler: &Profiler, pid: u32, queue: &str, truth: Option<u64>) {
    let seen = wait::until_or_last(|| depth(profiler, pid, queue), |&seen| seen == truth);
    table.holds(format!("{queue}, {when}"), format!("{truth:?}"), format!("{seen:?}"), seen == truth);
    let (page, labels) = (profiler.page(), [("queue", queue)]);
    let on_page = page.has(METRIC, &labels).then(|| page.sum(METRIC, &labels) as u64);
    table.holds(format!("{queue}, {when}: metric"), format!("{truth:?}"), format!("{on_page:?}"), on_page == truth);
}

/// Check that both queues are exactly as long as they were made, and empty again afterwards.
fn check(version: &str, profile: &str, flavor: &str) {
    place::require_root();
    let mut table = Table::new(format!("shared queues, {version} {profile} {flavor}"));
    let mut fixture = Fixture::tokio(version, profile, &["--flavor", flavor, "tasks"]);
    let pid = fixture.pid();
    fixture.ask("run 100");
    // Before 1.35 a runtime is found by its tasks.
    let held = fixture.ask("hold 20");
    table.equal("held", 20, number(&held["tasks"]["alive"]));
    let profiler = Profiler::attach(pid);
    compare(&mut table, "at rest", &profiler, pid, "injection", Some(0));
    for (queue, command, counts) in [("injection", "inject", &INJECTED[..]), ("blocking", "block", &BLOCKING[..])] {
        for count in counts {
            let answer: Value = fixture.ask(&format!("{command} {count}"));
            // The runtime of one thread of 1.28 has no chain of tasks: its queue is unknown while one waits.
            let is_known = queue == "blocking" || (version, flavor) != ("1.28", "ct");
            let truth = is_known.then(|| number(&answer["queued"]));
            compare(&mut table, &format!("{command} {count}"), &profiler, pid, queue, truth);
            fixture.ask("go on");
            compare(&mut table, &format!("after {command} {count}"), &profiler, pid, queue, Some(0));
        }
    }
    let losses = profiler.status().losses().len();
    table.equal("kinds of losses", 0, losses);
    drop(profiler);
    table.holds("still answers", true, fixture.answers(), true);
    table.finish();
}

builds! {
    queues_1_28_release "1.28" "release" ["mt" "ct"];
    queues_1_28_fat_stripped "1.28" "fat-stripped" ["mt"];
    queues_1_38_release "1.38" "release" ["mt" "ct"];
    queues_1_38_fat_stripped "1.38" "fat-stripped" ["mt"];
    queues_1_44_release "1.44" "release" ["mt" "ct"];
    queues_1_44_fat_stripped "1.44" "fat-stripped" ["mt"];
    queues_latest_release "latest" "release" ["mt" "ct"];
    queues_latest_thin "latest" "thin" ["mt"];
    queues_latest_fat "latest" "fat" ["mt" "ct"];
    queues_latest_fat_stripped "latest" "fat-stripped" ["mt" "ct"];
}
