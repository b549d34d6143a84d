//! Polls, their time, wakes and delays, at full fidelity, in several builds of the Tokio fixture. Counts are exact, busy
//! time is within 2 %, and quantiles of delays are within one exported bucket.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use tests::fixture::Fixture;
use tests::histogram::Histogram;
use tests::page::Page;
use tests::place;
use tests::profiler::Profiler;
use tests::status::{Kind, Status, number};
use tests::table::Table;
use tests::wait;

use crate::tasks::kinds::{Kinds, Twin};

const POLLS: &str = "profiler_task_polls_total";
const BUSY: &str = "profiler_task_busy_seconds_total";
const POLL_TIMES: &str = "profiler_task_poll_seconds";
const DELAYS: &str = "profiler_task_schedule_delay_seconds";
const FIRST_DELAYS: &str = "profiler_task_first_poll_delay_seconds";
const WAKES: &str = "profiler_task_wakes_total";
const SLOW_POLLS: &str = "profiler_task_slow_polls_total";

/// Kinds of which the fixture knows all wakes.
const WAKES_KNOWN: [&str; 5] = ["bursting", "nested_inner", "waking", "woken", "delayed"];
/// The kinds whose polls nest.
const NESTING: &str = "nesting";
const NESTED: &str = "nested_inner";
/// Asynchronous kinds that run on another than the main runtime.
const ELSEWHERE: [&str; 2] = ["from_local", "delayed"];

/// A build of the fixture under the profiler.
struct Watched {
    fixture: Fixture,
    profiler: Profiler,
    twin: Twin,
}

/// What was seen of it once a command was done.
struct Seen {
    truth: Value,
    status: Status,
    page: Page,
}

impl Watched {
    fn new(version: &str, profile: &str) -> Watched {
        place::require_root();
        let fixture = Fixture::tokio(version, profile, &["tasks"]);
        let profiler = Profiler::attach(fixture.pid());
        Watched { profiler, twin: Twin::of_build(version, profile), fixture }
    }

    /// Has a command done, and waits until all its polls were seen.
    fn ask(&mut self, command: &str) -> Seen {
        let truth = self.fixture.ask(command);
        let polls = counts(&truth["polls"]).values().sum::<u64>() as f64;
        let read = || (self.profiler.status(), self.profiler.page());
        let pid = self.fixture.pid();
        let (status, page) = wait::until_or_last(read, |(status, page)| {
            series_by_task(page, POLLS, &[], status, pid).values().sum::<f64>() >= polls
        });
        Seen { truth, status, page }
    }

    fn kinds(&self, seen: &Seen) -> Kinds {
        Kinds::of(&seen.truth, seen.status.target(self.fixture.pid()), &self.twin)
    }

    /// A metric by group of kinds.
    fn by_kind(&self, seen: &Seen, name: &str, labels: &[(&str, &str)]) -> BTreeMap<String, f64> {
        let kinds = self.kinds(seen);
        let mut sums = BTreeMap::new();
        for (task, value) in series_by_task(&seen.page, name, labels, &seen.status, self.fixture.pid()) {
            if value != 0.0 {
                *sums.entry(kinds.group_of(&task)).or_default() += value;
            }
        }
        sums
    }

    /// Compares the polls of all kinds.
    fn compare_polls(&self, table: &mut Table, after: &str, seen: &Seen) {
        let truth = self.kinds(seen).truth(&seen.truth["polls"]);
        let polls = self.by_kind(seen, POLLS, &[]);
        let dropped = self.kinds(seen).truth(&seen.truth["cancelled"]);
        let mut settled = polls.clone();
        for (kind, passes) in &dropped {
            if let (Some(polls), Some(&own)) = (settled.get_mut(kind), truth.get(kind)) {
                *polls -= dropped_amid(*polls - own as f64, *passes as f64);
            }
        }
        each(table, &format!("{after}: polls"), &truth, &settled);
        let all: f64 = truth.values().sum::<u64>() as f64 + polls.values().sum::<f64>() - settled.values().sum::<f64>();
        let timed = self.by_kind(seen, &format!("{POLL_TIMES}_count"), &[]);
        // A histogram that is not by task counts the runtime's own polls too.
        let has_tasks = seen.page.series(&format!("{POLL_TIMES}_count"), &[]).all(|s| s.labels.contains_key("task"));
        if has_tasks {
            table.equal(format!("{after}: polls in the histogram"), all, timed.values().sum());
        }
    }

    fn compare_wakes(&self, table: &mut Table, after: &str, seen: &Seen) {
        let kinds = self.kinds(seen);
        let known: BTreeSet<String> = counts(&seen.truth["spawned"])
            .keys()
            .filter(|kind| WAKES_KNOWN.contains(&kind.as_str()))
            .map(|kind| kinds.group_of_kind(kind))
            .collect();
        for how in ["by_value", "by_ref", "self"] {
            let mut truth = kinds.truth(&seen.truth["wakes"][how]);
            let mut wakes = self.by_kind(seen, WAKES, &[("kind", how)]);
            truth.retain(|kind, _| known.contains(kind));
            wakes.retain(|kind, _| known.contains(kind));
            each(table, &format!("{after}: wakes {how}"), &truth, &wakes);
        }
    }

    fn compare_busy(&self, table: &mut Table, after: &str, seen: &Seen) {
        let truth = self.kinds(seen).truth(&seen.truth["busy_ns"]);
        let busy = self.by_kind(seen, BUSY, &[]);
        // What a task does around what it times is a poll's, too, and a thread may lose its CPU there: at most for as
        // long as the threads have waited for one.
        let waited = seen.page.sum("profiler_sched_run_queue_seconds_sum", &[]);
        for (kind, ns) in truth.into_iter().filter(|(kind, _)| kind != NESTING) {
            let (own, seen) = (ns as f64 / 1e9, busy.get(&kind).copied().unwrap_or_default());
            let most = own * 1.02 + waited;
            let what = format!("{after}: busy {kind}, s");
            table.holds(what, format!("{own:.3} - 2 % to {most:.3}"), seen, (own * 0.98..=most).contains(&seen));
        }
    }

    /// Compares what nests with what is nested in it: all the time of the outer polls is the one's or the other's.
    fn compare_nested(&self, table: &mut Table, seen: &Seen) {
        let whole = self.by_kind(seen, &format!("{POLL_TIMES}_sum"), &[]);
        let busy = self.by_kind(seen, BUSY, &[]);
        table.within("time in nesting polls, s", whole[NESTING], busy[NESTING] + busy[NESTED], 0.001);
        // The fixture counts what the probes of nested polls take; the profiler subtracts it.
        let own = number(&seen.truth["busy_ns"][NESTING]) as f64 / 1e9;
        table.holds(
            "own time of nesting polls, s",
            format!("at least {own}"),
            busy[NESTING],
            busy[NESTING] >= own * 0.9,
        );
    }

    /// Nothing was lost, and nothing harmed.
    fn finish(mut self, mut table: Table) {
        let losses = self.profiler.status();
        table.holds("lost", "nothing", format!("{:?}", losses.losses()), losses.losses().is_empty());
        drop(self.profiler);
        table.holds("still answers", true, true, self.fixture.answers());
        table.equal("exit code", 0, self.fixture.quit().unwrap_or(-1));
        table.finish();
    }
}

/// Of `more` polls that were seen than the truth knows, those that may be passes which dropped a task instead: it was
/// cancelled between the probe and the runtime's own look at it, which is rare among the `passes` that drop one.
fn dropped_amid(more: f64, passes: f64) -> f64 {
    if (0.0..=(passes / 50.0).max(1.0)).contains(&more) { more } else { 0.0 }
}

/// A metric by task, without tasks of the runtime itself.
fn series_by_task(
    page: &Page,
    name: &str,
    labels: &[(&str, &str)],
    status: &Status,
    pid: u32,
) -> BTreeMap<String, f64> {
    let internal: BTreeSet<&str> =
        status.target(pid).all_kinds().filter(|kind| kind.0["internal"] == true).map(Kind::name).collect();
    let mut sums = BTreeMap::new();
    for sample in page.series(name, labels) {
        if let Some(task) = sample.labels.get("task").filter(|task| !internal.contains(task.as_str())) {
            *sums.entry(task.clone()).or_default() += sample.value;
        }
    }
    sums
}

fn counts(object: &Value) -> BTreeMap<String, u64> {
    let counts = object.as_object().unwrap_or_else(|| panic!("{object} has no counts"));
    counts.iter().map(|(kind, n)| (kind.clone(), number(n))).collect()
}

fn each(table: &mut Table, what: &str, truth: &BTreeMap<String, u64>, seen: &BTreeMap<String, f64>) {
    let names: BTreeSet<&String> = truth.keys().chain(seen.keys()).collect();
    for name in names {
        let truth = truth.get(name).copied().unwrap_or_default() as f64;
        table.equal(format!("{what} {name}"), truth, seen.get(name).copied().unwrap_or_default());
    }
}

/// Compares the delays of one command, which is all that happened between two pages.
fn compare_delays(table: &mut Table, what: &str, name: &str, truth: &Value, before: &Page, after: &Page) {
    let Some(after) = Histogram::read(after, name, &[]) else {
        table.holds(format!("{what}: {name}"), "a histogram", "none", false);
        return;
    };
    let seen = after.since(Histogram::read(before, name, &[]).as_ref());
    table.equal(format!("{what}: count"), number(&truth["count"]) as f64, seen.count());
    for (quantile, share) in [("p50_ns", 0.5), ("p90_ns", 0.9), ("p99_ns", 0.99)] {
        let value = number(&truth[quantile]) as f64 / 1e9;
        let (true_bucket, seen_bucket) = (seen.bucket_of(value), seen.quantile_bucket(share));
        table.holds(
            format!("{what}: {quantile}, within one bucket"),
            format!("{value:.6} s"),
            format!("<= {:.6} s", seen.bound(seen_bucket)),
            true_bucket.abs_diff(seen_bucket) <= 1,
        );
    }
}

/// Checks a build: polls and wakes are exact, busy time and delays within their tolerance.
fn check(version: &str, profile: &str) {
    let mut table = Table::new(format!("polls of {version} {profile}"));
    let mut watched = Watched::new(version, profile);
    for command in ["bursts 4000", "nest 100", "wakes 20"] {
        if command.starts_with("nest") && profile.ends_with("stripped") {
            // A thread that nests leaves its worker to another. Without a name, that worker's end looks like a task's.
            continue;
        }
        let seen = watched.ask(command);
        watched.compare_polls(&mut table, command, &seen);
        watched.compare_wakes(&mut table, command, &seen);
        watched.compare_busy(&mut table, command, &seen);
        if command.starts_with("nest") {
            watched.compare_nested(&mut table, &seen);
        }
    }
    let before = watched.profiler.page();
    let seen = watched.ask("delays 600");
    watched.compare_polls(&mut table, "delays", &seen);
    watched.compare_wakes(&mut table, "delays", &seen);
    compare_delays(&mut table, "wake to poll", DELAYS, &seen.truth["delay"], &before, &seen.page);
    compare_delays(&mut table, "spawn to poll", FIRST_DELAYS, &seen.truth["first_delay"], &before, &seen.page);
    let seen = watched.ask("run 5000");
    watched.compare_polls(&mut table, "run", &seen);
    watched.finish(table);
}

macro_rules! builds {
    ($($name:ident $version:literal $profile:literal;)+) => {
        $(#[test] fn $name() { check($version, $profile); })+
    };
}

builds! {
    latest_release "latest" "release";
    latest_fat "latest" "fat";
    latest_fat_stripped "latest" "fat-stripped";
    v1_44_fat_stripped "1.44" "fat-stripped";
    v1_38_fat_stripped "1.38" "fat-stripped";
    v1_28_fat_stripped "1.28" "fat-stripped";
}

/// Check that we count as the runtime does where it counts: but for the last pass of cancelled tasks, which it counts
/// and which polls nothing.
#[test]
fn as_the_runtime_counts() {
    let mut table = Table::new("polls of the twin with tokio_unstable");
    let mut watched = Watched::new("latest-unstable", "release");
    for command in ["run 5000", "bursts 400", "storm 20000"] {
        let seen = watched.ask(command);
        let all: f64 = watched.by_kind(&seen, POLLS, &[]).values().sum();
        let aside = |kind: &str| {
            let is_of = |class: &str| seen.truth[class].get(kind).is_some();
            is_of("blocking") || is_of("local") || ELSEWHERE.contains(&kind)
        };
        let sum = |object: &Value, wanted: &dyn Fn(&str) -> bool| -> f64 {
            counts(object).iter().filter(|(kind, _)| wanted(kind)).map(|(_, n)| *n as f64).sum()
        };
        let elsewhere = sum(&seen.truth["polls"], &aside);
        let passes = sum(&seen.truth["cancelled"], &|kind| !aside(kind));
        let counted = number(&seen.truth["runtime_polls"]) as f64;
        let polls = all - elsewhere;
        let settled = polls - dropped_amid(polls - (counted - passes), passes);
        table.equal(format!("{command}: polls on the runtime"), counted - passes, settled);
    }
    watched.finish(table);
}

/// Check that each poll that is too long is counted, of the task whose it is.
#[test]
fn slow_polls() {
    let mut table = Table::new("slow polls of latest fat-stripped");
    let mut watched = Watched::new("latest", "fat-stripped");
    watched.ask("hog 50 100");
    let slow = |watched: &mut Watched| {
        let seen = watched.ask("truth");
        let group = watched.kinds(&seen).group_of_kind("hog");
        (watched.by_kind(&seen, SLOW_POLLS, &[]).get(&group).copied().unwrap_or_default(), seen, group)
    };
    wait::until("five slow polls", || {
        let (seen, ..) = slow(&mut watched);
        if seen >= 5.0 { Ok(()) } else { Err(format!("{seen}")) }
    });
    watched.fixture.ask("release");
    let (seen, all, group) = slow(&mut watched);
    let truth = watched.kinds(&all).truth(&all.truth["polls"])[&group];
    table.equal(format!("slow polls of {group}"), truth as f64, seen);
    watched.finish(table);
}
