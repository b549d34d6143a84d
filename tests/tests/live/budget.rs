//! The budget: what costs too much is taken off, what is left costs no more than was said, totals are exact or absent,
//! and everything comes back once it can be paid.

use std::fs;

use serde_json::Value;
use tests::fixture::Fixture;
use tests::page::Page;
use tests::place;
use tests::profiler::{Profiler, run_to_end};
use tests::status::Status;
use tests::table::Table;
use tests::wait;

/// What may be overdrawn, seconds of the target's CPU time: 10 ms are granted, the rest is for a busy machine on which
/// detaching takes its time. Without a budget it would be some twenty seconds.
const GRANT: f64 = 0.5;

fn mode(status: &Status, pid: u32, tier: &str) -> String {
    let tiers = status.target(pid).0["budget"]["tiers"].as_array().expect("tiers").clone();
    let tier = tiers.iter().find(|row| row["tier"] == tier).expect("the tier").clone();
    tier["mode"].as_str().expect("a mode").to_owned()
}

/// CPU time that a process has used, seconds.
fn cpu_seconds(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("the process runs");
    let fields: Vec<&str> = stat.rsplit_once(')').expect("a name").1.split_whitespace().collect();
    let ticks = |field: usize| fields[field].parse::<f64>().expect("a number");
    (ticks(11) + ticks(12)) / 100.0
}

fn spent(page: &Page) -> f64 {
    page.sum("profiler_overhead_seconds_total", &[])
}

/// Check that a storm of tasks is taken off, costs no more than the budget, and that births and ends are counted
/// exactly again once they can be paid.
#[test]
fn a_storm_is_within_the_budget() {
    place::require_root();
    let mut table = Table::new("a storm under the budget of 2 %");
    let mut fixture = Fixture::tokio("latest", "fat", &["tasks"]);
    let pid = fixture.pid();
    let profiler = Profiler::attach_within("2%", pid, &[]);
    for tier in ["lifecycle", "polls"] {
        table.equal(format!("{tier} at first"), "continuous".to_owned(), mode(&profiler.status(), pid, tier));
    }
    let before = (cpu_seconds(pid), spent(&profiler.page()));
    let truth = fixture.ask("storm 8000000");
    let (status, page) = (profiler.status(), profiler.page());
    let used = cpu_seconds(pid) - before.0;
    let cost = spent(&page) - before.1;
    for tier in ["lifecycle", "polls"] {
        let mode = mode(&status, pid, tier);
        table.holds(format!("{tier} in the storm"), "not continuous", &mode, mode != "continuous");
    }
    let allowed = 0.02 * used + GRANT;
    table.holds("cost, s", format!("at most {allowed:.3}"), format!("{cost:.3}"), cost <= allowed);
    let gone = !page.has("profiler_tasks_spawned_total", &[]) && !page.has("profiler_task_polls_total", &[]);
    table.holds("totals that are not known", "absent", gone, gone);
    let states = ["task_spawn", "task_polls"].map(|probe| status.target(pid).probe(probe).expect("a row").0.to_owned());
    table.holds("states", "sampled", format!("{states:?}"), states.iter().all(|state| state == "sampled"));
    let spawned = truth["tasks"]["spawned"].as_u64().expect("a number");
    let told = wait::until_or_last(
        || profiler.page().sum("profiler_runtime_tasks_spawned_total", &[]),
        |told| *told >= spawned as f64,
    );
    table.equal("the runtime's own total", spawned as f64, told);
    // Each of these costs a three-hundredth of its CPU time.
    let mut load = || fixture.ask("busy 300 1000");
    wait::until("births and ends are continuous again", || {
        load();
        let mode = mode(&profiler.status(), pid, "lifecycle");
        if mode == "continuous" { Ok(()) } else { Err(mode) }
    });
    let total = |page: &Page| page.sum("profiler_tasks_spawned_total", &[]);
    let begin = wait::until_at_rest("births are counted", 5, || total(&profiler.page()) as u64) as f64;
    let first = fixture.ask("truth");
    let last = fixture.ask("busy 50 1000");
    let spawned = |truth: &Value| truth["tasks"]["spawned"].as_f64().expect("a number");
    let born = spawned(&last) - spawned(&first);
    let seen = wait::until_or_last(|| total(&profiler.page()) - begin, |seen| *seen >= born);
    table.equal("births once they are paid again", born, seen);
    table.holds("lost", "nothing", format!("{:?}", profiler.status().losses()), profiler.status().losses().is_empty());
    table.finish();
}

/// Check that polls at a high rate are measured in windows, births and ends all the time, and the cost is within the
/// budget.
#[test]
fn polls_are_measured_in_windows() {
    place::require_root();
    let mut table = Table::new("a million polls a second under the budget of 2 %");
    let mut fixture = Fixture::tokio("latest", "fat-stripped", &["--workers", "1", "tasks"]);
    let pid = fixture.pid();
    let profiler = Profiler::attach_within("2%", pid, &[]);
    let before = (cpu_seconds(pid), spent(&profiler.page()));
    fixture.ask("pingpong 4 --work 900");
    let (status, page) = (profiler.status(), profiler.page());
    let (used, cost) = (cpu_seconds(pid) - before.0, spent(&page) - before.1);
    let allowed = 0.02 * used + GRANT;
    table.holds("cost, s", format!("at most {allowed:.3}"), format!("{cost:.3}"), cost <= allowed);
    let polls = mode(&status, pid, "polls");
    table.holds("polls", "not continuous", &polls, polls != "continuous");
    table.equal("births and ends", "continuous".to_owned(), mode(&status, pid, "lifecycle"));
    table.holds("polls in total", "absent", "-", !page.has("profiler_task_polls_total", &[]));
    let sampled = page.sum("profiler_task_poll_seconds_count", &[]);
    table.holds("polls in windows", "some", sampled, sampled > 0.0);
    let spawned = fixture.ask("truth")["tasks"]["spawned"].as_f64().expect("a number");
    table.equal("births", spawned, page.sum("profiler_tasks_spawned_total", &[]));
    table.finish();
}

/// Check that budgets that make no sense are refused before anything is attached.
#[test]
fn bad_budgets_are_refused() {
    let mut table = Table::new("bad budgets");
    for bad in ["0%", "2", "51%", "lots", "-1%"] {
        let ended = run_to_end(&["attach", "--pid", "1", &format!("--budget={bad}")]);
        table.equal(format!("{bad}: exit code"), 2, ended.code().unwrap_or(-1));
        let said = ended.stderr.join(" ");
        table.holds(format!("{bad}: says what is good"), "2%, or off", &said, said.contains("or off"));
    }
    table.finish();
}
