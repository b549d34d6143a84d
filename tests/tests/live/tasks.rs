//! Births, ends, kinds and parents of tasks, in every build of the Tokio fixture.

pub mod kinds;

use std::collections::BTreeMap;

use serde_json::Value;
use tests::fixture::Fixture;
use tests::place;
use tests::profiler::{Profiler, Starting};
use tests::status::{Kind, Status, Target, number};
use tests::table::Table;
use tests::wait;

use kinds::{Kinds, Twin};

/// Checks a build: spawns, ends, what lives, kinds, parents and lifetimes equal the fixture's own counts.
fn check(version: &str, profile: &str, flavor: &str) {
    check_with(version, profile, flavor, &[]);
}

/// The same, with flags for the profiler.
fn check_with(version: &str, profile: &str, flavor: &str, flags: &[&str]) {
    place::require_root();
    let mut table = Table::new(format!("tasks of {version} {profile} {flavor}"));
    let mut fixture = Fixture::tokio(version, profile, &["--flavor", flavor, "tasks"]);
    let twin = Twin::of_build(version, profile);
    let profiler = Profiler::attach_with(fixture.pid(), flags);
    require_attached(&profiler.status(), fixture.pid());
    for command in ["run 10000", "hold 100", "release"] {
        let truth = fixture.ask(command);
        let status = settled(&profiler, fixture.pid(), &truth);
        compare(&mut table, command, &truth, status.target(fixture.pid()), &twin);
        let losses = status.losses();
        table.holds(format!("{command}: lost"), "nothing", format!("{losses:?}"), losses.is_empty());
    }
    metrics_agree(&mut table, &profiler, fixture.pid());
    drop(profiler);
    table.holds("still answers", true, fixture.answers(), true);
    table.equal("exit code", 0, fixture.quit().unwrap_or(-1));
    table.finish();
}

#[test]
fn parents_by_poll_stack() {
    check_with("latest", "release", "mt", &["--poll-stack"]);
    check_with("1.38", "fat", "mt", &["--poll-stack"]);
}

fn require_attached(status: &Status, pid: u32) {
    let target = status.target(pid);
    for probe in ["tasks", "task_spawn", "task_complete"] {
        assert!(target.is_attached(probe), "{probe} is {:?}", target.probe(probe));
    }
}

/// The status, once it has seen what the fixture did, and the horizon for late events has passed.
fn settled(profiler: &Profiler, pid: u32, truth: &Value) -> Status {
    let (spawned, ended) = (number(&truth["tasks"]["spawned"]), ended(truth));
    let done = |status: &Status| {
        let target = status.target(pid);
        target.spawned() >= spawned
            && target.completed() >= ended
            && target.edges() >= spawned
            && lifetimes(profiler) >= ended
    };
    wait::until_or_last(|| profiler.status(), done)
}

fn lifetimes(profiler: &Profiler) -> u64 {
    let page = profiler.page();
    let sum = |name| page.sum(name, &[]);
    (sum("profiler_task_lifetime_seconds_count") + sum("profiler_tasks_unseen_spawns_total")) as u64
}

fn ended(truth: &Value) -> u64 {
    OUTCOMES.iter().map(|outcome| number(&truth["tasks"][outcome])).sum()
}

const OUTCOMES: [&str; 3] = ["completed", "cancelled", "panicked"];

fn compare(table: &mut Table, after: &str, truth: &Value, target: Target<'_>, twin: &Twin) {
    let all = &truth["tasks"];
    table.equal(format!("{after}: spawned"), number(&all["spawned"]), target.spawned());
    table.equal(format!("{after}: ended"), ended(truth), target.completed());
    table.equal(format!("{after}: alive"), number(&all["alive"]), target.alive());
    table.equal(format!("{after}: unseen spawns"), 0, target.unseen_spawns());
    let outcomes = outcomes(target);
    for outcome in outcomes {
        let seen: u64 = target.kinds().map(|kind| kind.ended(outcome)).sum();
        table.equal(format!("{after}: {outcome}"), number(&all[outcome]), seen);
    }
    // What is not told apart is unknown, and not guessed.
    let told: u64 = outcomes.iter().map(|outcome| number(&all[outcome])).sum();
    let unknown: u64 = target.kinds().map(|kind| kind.ended("unknown")).sum();
    table.equal(format!("{after}: of unknown outcome"), ended(truth) - told, unknown);
    let kinds = Kinds::of(truth, target, twin);
    // One that was never spawned is a worker of the runtime's that was replaced.
    let spawned = |name: &str| target.kinds().any(|kind| kind.name() == name && kind.spawned() + kind.completed() > 0);
    for kind in kinds.unknown().iter().filter(|kind| spawned(kind)) {
        table.holds(format!("{after}: name of {kind}"), "a kind", "none", false);
    }
    let mut per_kind = |what: &str, truth: &Value, seen: &dyn Fn(Kind<'_>) -> u64| {
        let truth = kinds.truth(truth);
        let seen = kinds.seen(target, seen);
        each(table, &format!("{after}: {what}"), &truth, &seen);
    };
    per_kind("spawned", &truth["spawned"], &|kind| kind.spawned());
    per_kind("alive", &truth["alive"], &|kind| kind.alive());
    for outcome in outcomes {
        per_kind(outcome, &truth[outcome], &|kind| kind.ended(outcome));
    }
    if target.is_attached("task_parent") {
        each(table, &format!("{after}: edge"), &kinds.true_edges(&truth["parents"]), &kinds.seen_edges(target));
    }
}

/// Outcomes that the profiler says it can tell.
fn outcomes(target: Target<'_>) -> &'static [&'static str] {
    match target.probe("task_outcome") {
        Some(("unsupported", detail)) if detail.contains("cancelled tasks are told") => &["cancelled"],
        Some(("attached", _)) => &OUTCOMES,
        _ => &[],
    }
}

fn each(table: &mut Table, what: &str, truth: &BTreeMap<String, u64>, seen: &BTreeMap<String, u64>) {
    let mut names: Vec<&String> = truth.keys().chain(seen.keys()).collect();
    names.sort_unstable();
    names.dedup();
    for name in names {
        let of = |counts: &BTreeMap<String, u64>| counts.get(name).copied().unwrap_or_default();
        table.equal(format!("{what} {name}"), of(truth), of(seen));
    }
}

/// The page of metrics and the status say the same, and every end has a lifetime but those without a spawn.
fn metrics_agree(table: &mut Table, profiler: &Profiler, pid: u32) {
    let (status, page) = (profiler.status(), profiler.page());
    let target = status.target(pid);
    let sum = |name: &str| page.sum(name, &[]) as u64;
    let all = |count: &dyn Fn(Kind<'_>) -> u64| target.all_kinds().map(count).sum::<u64>();
    table.equal("metrics: spawned", all(&|kind| kind.spawned()), sum("profiler_tasks_spawned_total"));
    table.equal("metrics: ended", all(&|kind| kind.completed()), sum("profiler_tasks_completed_total"));
    table.equal("metrics: alive", all(&|kind| kind.alive()), sum("profiler_tasks_alive"));
    let lived = sum("profiler_tasks_completed_total") - sum("profiler_tasks_unseen_spawns_total");
    table.equal("metrics: lifetimes", lived, sum("profiler_task_lifetime_seconds_count"));
    let buckets = page.sum("profiler_task_lifetime_seconds_bucket", &[("le", "+Inf")]) as u64;
    table.equal("metrics: lifetimes in all buckets", lived, buckets);
    table.equal("metrics: lost", 0, sum("profiler_events_lost_total"));
}

macro_rules! builds {
    ($($name:ident $version:literal $profile:literal [$($flavor:literal)+];)+) => {
        $(#[test] fn $name() { $(check($version, $profile, $flavor);)+ })+
    };
}

builds! {
    v1_20_release "1.20" "release" ["mt" "ct"];
    v1_20_thin "1.20" "thin" ["mt"];
    v1_20_fat "1.20" "fat" ["mt"];
    v1_28_release "1.28" "release" ["mt" "ct"];
    v1_28_thin "1.28" "thin" ["mt"];
    v1_28_fat "1.28" "fat" ["mt"];
    v1_28_fat_stripped "1.28" "fat-stripped" ["mt"];
    v1_38_release "1.38" "release" ["mt" "ct"];
    v1_38_thin "1.38" "thin" ["mt"];
    v1_38_fat "1.38" "fat" ["mt"];
    v1_38_fat_stripped "1.38" "fat-stripped" ["mt"];
    v1_44_release "1.44" "release" ["mt" "ct"];
    v1_44_thin "1.44" "thin" ["mt"];
    v1_44_fat "1.44" "fat" ["mt"];
    v1_44_fat_stripped "1.44" "fat-stripped" ["mt"];
    latest_release "latest" "release" ["mt" "ct"];
    latest_thin "latest" "thin" ["mt"];
    latest_fat "latest" "fat" ["mt"];
    latest_fat_stripped "latest" "fat-stripped" ["mt"];
}

/// Check that a build that cannot be understood says so, and that what needs no understanding is measured.
#[test]
fn v1_20_stripped_is_unsupported() {
    place::require_root();
    let mut fixture = Fixture::tokio("1.20", "fat-stripped", &["tasks"]);
    let profiler = Profiler::attach(fixture.pid());
    let mut table = Table::new("tasks of 1.20 fat-stripped");
    fixture.ask("run 1000");
    let status = profiler.status();
    let target = status.target(fixture.pid());
    for probe in ["tasks", "task_spawn", "task_complete", "task_parent", "task_outcome", "task_name"] {
        let (state, detail) = target.probe(probe).unwrap_or(("absent", ""));
        table.holds(format!("{probe}: {detail}"), "unsupported", state, state == "unsupported");
    }
    let (_, detail) = target.probe("task_spawn").unwrap_or_default();
    table.holds(
        "the reason names",
        "1.20 and stripped",
        detail,
        detail.contains("1.20") && detail.contains("stripped"),
    );
    let page = profiler.page();
    table.equal("series of tasks", false, page.has("profiler_tasks_spawned_total", &[]));
    let switches = page.sum("profiler_sched_switches_total", &[]);
    table.holds("switches", "some", switches, switches > 0.0);
    table.finish();
}

/// Check that attaching amid a storm of spawns crashes nothing, and counts exactly from then on.
fn check_attach_under_load(version: &str, profile: &str) {
    place::require_root();
    let mut table = Table::new(format!("attach under load to {version} {profile}"));
    let mut fixture = Fixture::tokio(version, profile, &["storm"]);
    fixture.ask("hold 50");
    let pid = fixture.pid().to_string();
    let starting = Starting::new(&["attach", "--budget", "off", "--pid", &pid]);
    let mut truth = fixture.ask("storm 200000");
    while !starting.serves() {
        truth = fixture.ask("storm 200000");
    }
    let profiler = starting.serving();
    fixture.tell("storm 200000");
    let early = profiler.status();
    let amid = early.target(fixture.pid()).spawned();
    let known = number(&truth["tasks"]["spawned"]);
    let truth = fixture.answer();
    // Everything but the held tasks has ended: what was seen to be spawned, or found, was seen to end.
    let status = wait::until("the end of the storm", || {
        let status = profiler.status();
        let target = status.target(fixture.pid());
        let (spawned, ended, unseen) = (target.spawned(), target.completed(), target.unseen_spawns());
        let older = target.found() + unseen;
        if spawned + older == ended + 50 {
            Ok(status)
        } else {
            Err(format!("{spawned} + {older} began, {ended} ended"))
        }
    });
    let target = status.target(fixture.pid());
    let all = number(&truth["tasks"]["spawned"]);
    let spawned = target.spawned();
    table.holds("spawned, of all", all, spawned, spawned < all && spawned >= amid);
    table.holds("spawned, of those after the attach", all - known, spawned, spawned >= all - known);
    table.equal("alive", 50, target.alive());
    let unseen = target.unseen_spawns();
    // No more tasks lived at the attach than the spawners had in hand.
    table.holds("ends of tasks that were there before", "at most 1000", unseen, unseen <= 1000);
    let losses = status.losses();
    table.holds("lost", "nothing", format!("{losses:?}"), losses.is_empty());
    let before = (target.spawned(), target.completed(), all, ended(&truth));
    let truth = fixture.ask("run 1000");
    let status = wait::until("the sight of all tasks", || {
        let status = profiler.status();
        let seen = status.target(fixture.pid()).spawned() - before.0;
        if seen >= number(&truth["tasks"]["spawned"]) - before.2 { Ok(status) } else { Err(format!("{seen} spawned")) }
    });
    let target = status.target(fixture.pid());
    table.equal("spawned afterwards", number(&truth["tasks"]["spawned"]) - before.2, target.spawned() - before.0);
    table.equal("ended afterwards", ended(&truth) - before.3, target.completed() - before.1);
    let before = (target.completed(), unseen);
    fixture.ask("release");
    let status = wait::until("the ends of the held tasks", || {
        let status = profiler.status();
        let ended = status.target(fixture.pid()).completed();
        if ended >= before.0 + 50 { Ok(status) } else { Err(format!("{ended} ended")) }
    });
    let target = status.target(fixture.pid());
    table.equal("ends of the held tasks", 50, target.completed() - before.0);
    table.equal("of those, without a spawn and not found", 0, target.unseen_spawns() - before.1);
    table.equal("alive at the end", 0, target.alive());
    table.finish();
}

#[test]
fn attach_under_load_latest_release() {
    check_attach_under_load("latest", "release");
}

#[test]
fn attach_under_load_1_38_fat() {
    check_attach_under_load("1.38", "fat");
}
