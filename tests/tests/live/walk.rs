//! Tasks that are older than the profiler, and the runtime's own totals: what is read from the target's memory.

use std::thread::sleep;
use std::time::Duration;

use serde_json::Value;
use tests::fixture::Fixture;
use tests::place;
use tests::profiler::{Profiler, Starting, launch};
use tests::random::Random;
use tests::status::{Status, number};
use tests::table::Table;
use tests::wait;

use crate::tasks::kinds::{Kinds, Twin};

/// Whether this version counts the tasks that live, and those that were spawned.
fn counts(version: &str) -> (bool, bool) {
    match version {
        "1.28" => (false, false),
        "1.38" => (true, false),
        _ => (true, true),
    }
}

/// Tasks of a kind that are alive, by the truth and by sight.
fn compare_alive(table: &mut Table, when: &str, truth: &Value, status: &Status, pid: u32, twin: &Twin) {
    let target = status.target(pid);
    let kinds = Kinds::of(truth, target, twin);
    let (expected, seen) = (kinds.truth(&truth["alive"]), kinds.seen(target, &|kind| kind.alive()));
    table.equal(format!("{when}: alive"), number(&truth["tasks"]["alive"]), target.alive());
    for (kind, count) in &expected {
        table.equal(format!("{when}: alive {kind}"), *count, seen.get(kind).copied().unwrap_or_default());
    }
    table.equal(format!("{when}: kinds alive"), expected.len(), seen.len());
}

/// Check that tasks which are older than the profiler are found, each with its type, and end as such.
fn check(version: &str, profile: &str, flavor: &str) {
    place::require_root();
    let mut table = Table::new(format!("tasks before the attach, {version} {profile} {flavor}"));
    let mut fixture = Fixture::tokio(version, profile, &["--flavor", flavor, "types", "0"]);
    let twin = Twin::of_build(version, profile);
    let pid = fixture.pid();
    fixture.ask("run 300");
    let before = fixture.ask("hold 500");
    let profiler = Profiler::attach(pid);
    let status = profiler.status();
    let target = status.target(pid);
    let (state, detail) = target.probe("task_walk").unwrap_or(("absent", ""));
    table.holds(format!("task_walk: {detail}"), "attached", state, state == "attached");
    let alive = number(&before["tasks"]["alive"]);
    table.holds("held, and the server itself", "over 500", alive, alive > 500);
    compare_alive(&mut table, "attached", &before, &status, pid, &twin);
    table.equal("found", alive, status.target(pid).found());
    table.equal("spawned", 0, target.spawned());
    figures(&mut table, version, &before, &profiler, pid);

    // Those that were found and those that are spawned from now on live together.
    let more = fixture.ask("hold 100");
    let status = wait::until_or_last(|| profiler.status(), |s| s.target(pid).alive() == alive + 100);
    compare_alive(&mut table, "more", &more, &status, pid, &twin);
    figures(&mut table, version, &more, &profiler, pid);

    let after = fixture.ask("release");
    let left = number(&after["tasks"]["alive"]);
    let ended = |status: &Status| status.target(pid).alive() == left && lifetimes(&profiler) == 100;
    let status = wait::until_or_last(|| profiler.status(), ended);
    compare_alive(&mut table, "released", &after, &status, pid, &twin);
    let target = status.target(pid);
    table.equal("ends", 600, target.completed());
    table.equal("lifetimes: only of those that were seen to be spawned", 100, lifetimes(&profiler));
    table.equal("unseen spawns", 0, target.unseen_spawns());
    table.equal("found, still", alive, status.target(pid).found());
    let losses = status.losses();
    table.holds("lost", "nothing", format!("{losses:?}"), losses.is_empty());
    figures(&mut table, version, &after, &profiler, pid);
    drop(profiler);
    table.holds("still answers", true, fixture.answers(), true);
    table.finish();
}

fn lifetimes(profiler: &Profiler) -> u64 {
    profiler.page().sum("profiler_task_lifetime_seconds_count", &[]) as u64
}

/// The runtime's own totals equal what it says of itself.
fn figures(table: &mut Table, version: &str, truth: &Value, profiler: &Profiler, pid: u32) {
    let alive = number(&truth["tasks"]["alive"]);
    let (counts_alive, counts_spawned) = counts(version);
    // They are read once a second.
    let fresh = |status: &Status| number(&status.target(pid).0["figures"]["alive"]) == alive;
    let status = wait::until_or_last(|| profiler.status(), fresh);
    let figures = &status.target(pid).0["figures"];
    table.equal("figures: alive", alive, number(&figures["alive"]));
    if let Some(own) = truth["runtime_alive"].as_u64().filter(|_| counts_alive) {
        table.equal("figures: alive, as the runtime says", own, number(&figures["alive"]));
    }
    let by_type = figures["by_type"].as_array().map(|types| types.iter().map(|t| number(&t["alive"])).sum());
    table.equal("figures: alive by type", alive, by_type.unwrap_or(0));
    let spawned = figures["spawned"].as_u64();
    table.equal("figures: has spawned", counts_spawned, spawned.is_some());
    if let Some(spawned) = spawned {
        // The runtimes count no blocking closures and no tasks of a LocalSet.
        let sum = |what: &str| truth[what].as_object().into_iter().flat_map(|o| o.values()).map(number).sum::<u64>();
        let own = number(&truth["tasks"]["spawned"]) - sum("blocking") - sum("local");
        table.equal("figures: spawned", own, spawned);
    }
    workers(table, version, truth, figures);
    let page = profiler.page();
    table.equal("metrics: alive", alive, page.sum("profiler_runtime_tasks_alive", &[]) as u64);
    table.equal("metrics: has spawned", counts_spawned, page.has("profiler_runtime_tasks_spawned_total", &[]));
}

/// Since 1.45 every runtime is known by its workers' metrics; before, only one with several threads, by its queues.
fn workers(table: &mut Table, version: &str, truth: &Value, figures: &Value) {
    let own = number(&truth["workers"]);
    let seen = figures["workers"].as_u64();
    match version {
        // The thread that runs local tasks has a runtime of its own; with a single thread there is only that one.
        // It is known once it has parked a few times.
        "latest" => {
            let right = seen.is_none_or(|seen| seen == own + 1);
            table.holds("figures: workers", own + 1, &figures["workers"], right);
            let waiting = figures["queues"]["local"].as_u64();
            table.holds("figures: tasks in local queues", 0, format!("{waiting:?}"), waiting.is_none_or(|n| n == 0));
            let busy = figures["busy_ns"].as_u64();
            table.equal("figures: has busy time as it has workers", seen.is_some(), busy.is_some());
            return;
        }
        _ => table.holds("figures: workers", own, &figures["workers"], seen.is_none_or(|seen| seen == own)),
    }
    table.equal("figures: has busy time", false, figures["busy_ns"].is_u64());
}

/// Check that the time that workers were busy is the runtime's own.
#[test]
fn walk_busy_time() {
    place::require_root();
    let mut table = Table::new("busy time of the only worker");
    let mut fixture = Fixture::tokio("latest", "release", &["--flavor", "ct", "tasks"]);
    fixture.ask("run 500");
    let profiler = Profiler::attach(fixture.pid());
    let busy = |truth: &Value| truth["worker_busy_ns"].as_array().into_iter().flatten().map(number).sum::<u64>();
    let mut last = 0;
    for round in ["first", "second"] {
        let before = busy(&fixture.ask("busy 20 5000"));
        let seen = wait::until_or_last(
            || profiler.status().target(fixture.pid()).0["figures"]["busy_ns"].as_u64().unwrap_or(0),
            |&seen| seen >= before && seen > last,
        );
        let after = busy(&fixture.ask("run 10"));
        table.holds(format!("{round}: not before"), before, seen, seen >= before);
        table.holds(format!("{round}: not after"), after, seen, seen <= after);
        table.holds(format!("{round}: has grown by 100 ms"), last + 100_000_000, seen, seen >= last + 100_000_000);
        last = seen;
    }
    let page = profiler.page();
    let seconds = page.sum("profiler_runtime_worker_busy_seconds_total", &[]);
    table.holds("metrics: busy", last as f64 / 1e9, seconds, seconds >= last as f64 / 1e9);
    table.finish();
}

builds! {
    walk_1_28_release "1.28" "release" ["mt" "ct"];
    walk_1_28_fat_stripped "1.28" "fat-stripped" ["mt"];
    walk_1_38_release "1.38" "release" ["mt" "ct"];
    walk_1_38_fat_stripped "1.38" "fat-stripped" ["mt"];
    walk_1_44_release "1.44" "release" ["mt" "ct"];
    walk_1_44_fat_stripped "1.44" "fat-stripped" ["mt"];
    walk_latest_release "latest" "release" ["mt" "ct"];
    walk_latest_fat_stripped "latest" "fat-stripped" ["mt"];
}

/// Check that a version whose tasks do not tell where their links are says so, and that its tasks are counted.
#[test]
fn walk_1_20_is_unsupported() {
    place::require_root();
    let mut table = Table::new("tasks before the attach, 1.20");
    for profile in ["release", "fat-stripped"] {
        let mut fixture = Fixture::tokio("1.20", profile, &["tasks"]);
        fixture.ask("hold 50");
        let profiler = Profiler::attach(fixture.pid());
        let status = profiler.status();
        let target = status.target(fixture.pid());
        let (state, detail) = target.probe("task_walk").unwrap_or(("absent", ""));
        table.holds(format!("task_walk: {detail}"), "unsupported", state, state == "unsupported");
        table.holds("the reason names", "1.20", detail, detail.contains("1.20"));
        table.holds("figures", "none", &target.0["figures"], target.0["figures"].is_null());
        let page = profiler.page();
        for name in ["profiler_runtime_tasks_alive", "profiler_tasks_found", "profiler_runtime_queue_depth"] {
            table.equal(name, false, page.has(name, &[]));
        }
    }
    table.finish();
}

/// Check that tasks are found exactly while others are spawned and end as fast as the target can.
fn check_under_load(version: &str, profile: &str) {
    place::require_root();
    let mut table = Table::new(format!("tasks before an attach under load, {version} {profile}"));
    let mut fixture = Fixture::tokio(version, profile, &["storm"]);
    let pid = fixture.pid();
    let held = number(&fixture.ask("hold 500")["tasks"]["alive"]);
    let starting = Starting::new(&["attach", "--budget", "off", "--pid", &pid.to_string()]);
    fixture.ask("storm 200000");
    while !starting.serves() {
        fixture.ask("storm 200000");
    }
    let profiler = starting.serving();
    let truth = fixture.ask("storm 50000");
    // Everything but the held tasks has ended.
    let at_rest = |status: &Status| {
        let target = status.target(pid);
        let (spawned, ended) = (target.spawned(), target.completed());
        let found_ended = target.found().saturating_sub(held);
        spawned + found_ended + target.unseen_spawns() == ended
    };
    let status = wait::until_or_last(|| profiler.status(), at_rest);
    let target = status.target(pid);
    table.equal("alive", number(&truth["tasks"]["alive"]), target.alive());
    let found = status.target(pid).found();
    table.holds("found, with those of the storm", "500 to 1500", found, (held..held + 1000).contains(&found));
    let losses = status.losses();
    table.holds("lost", "nothing", format!("{losses:?}"), losses.is_empty());
    let unseen = target.unseen_spawns();
    table.holds("unseen spawns: at most what the spawners had in hand", "at most 1000", unseen, unseen <= 1000);
    let truth = fixture.ask("release");
    let status = wait::until_or_last(|| profiler.status(), |s| s.target(pid).alive() == 0);
    let target = status.target(pid);
    table.equal("alive at the end", number(&truth["tasks"]["alive"]), target.alive());
    table.equal("unseen spawns: none of the held tasks", unseen, target.unseen_spawns());
    table.finish();
}

#[test]
fn walk_under_load_latest() {
    check_under_load("latest", "release");
}

#[test]
fn walk_under_load_1_28_stripped() {
    check_under_load("1.28", "fat-stripped");
}

/// Check that a target that ends while its memory is read does no harm.
#[test]
fn walk_of_a_process_that_ends() {
    const TARGETS: usize = 10;
    place::require_root();
    let mut table = Table::new(format!("{TARGETS} targets that end while their memory is read"));
    let mut random = Random::new(3);
    for _ in 0..TARGETS {
        let mut fixture = Fixture::tokio("latest", "release", &["tasks"]);
        // The walk of so many takes far longer than the rest of the attach varies.
        fixture.ask("hold 100000");
        let pid = fixture.pid().to_string();
        let profiler = launch(&["attach", "--budget", "off", "--pid", &pid, "--duration", "10m", "--print"]);
        sleep(Duration::from_millis(150 + random.below(400)));
        fixture.program().signal(libc::SIGKILL);
        drop(fixture);
        let ended = profiler.wait();
        let panicked = ended.stderr.iter().any(|line| line.contains("panicked"));
        let right = !panicked && matches!(ended.code(), Some(0 | 1));
        table.holds("ends well", "0 or 1", format!("{:?}, {:?}", ended.code(), ended.stderr), right);
    }
    table.finish();
}
