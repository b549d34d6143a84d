//! Event loops of programs that know their own: a fixture with constructed times, and Node.

use tests::fixture::Fixture;
use tests::page::Page;
use tests::place;
use tests::profiler::Profiler;
use tests::program::Program;
use tests::ruby;
use tests::status::number;
use tests::table::Table;
use tests::wait;

const SECONDS: &str = "profiler_loop_seconds_total";
const DELAY: &str = "profiler_loop_delay_seconds";
const ITERATION: &str = "profiler_loop_iteration_seconds";
const MAIN: (&str, &str) = ("thread", "main");
/// The period of the timer whose delay is told.
const TIMER: f64 = 0.01;

/// What a loop did between two pages, seconds.
struct Seen {
    active: f64,
    idle: f64,
    iterations: f64,
    fired: f64,
    late: f64,
    preempted: f64,
    /// Time in the run queue: whether a loop that was woken and waits for a CPU is active is the program's to say.
    waited: f64,
}

fn between(before: &Page, after: &Page) -> Seen {
    let grown = |name: &str, label: &[(&str, &str)]| {
        let labels: Vec<(&str, &str)> = [MAIN].iter().chain(label).copied().collect();
        after.sum(name, &labels) - before.sum(name, &labels)
    };
    Seen {
        active: grown(SECONDS, &[("state", "active")]),
        idle: grown(SECONDS, &[("state", "idle")]),
        iterations: grown(&format!("{ITERATION}_count"), &[]),
        fired: grown(&format!("{DELAY}_count"), &[]),
        late: grown(&format!("{DELAY}_sum"), &[]),
        preempted: {
            let all = |page: &Page| page.sum("profiler_sched_preemptions_total", &[]);
            all(after) - all(before)
        },
        waited: grown("profiler_sched_thread_seconds_total", &[("state", "run_queue")]),
    }
}

fn p99(profiler: &Profiler, pid: u32) -> f64 {
    let status = profiler.status();
    let loops = status.target(pid).0["loops"].as_array().cloned().unwrap_or_default();
    let main = loops.iter().find(|one| one["thread"] == MAIN.1).expect("the main thread is a loop");
    number(&main["delay"]["p99_ns"]) as f64 / 1e9
}

/// Waits until the main thread is known to be a loop.
fn recognised(profiler: &Profiler) {
    wait::until_true("an event loop", || profiler.page().has(SECONDS, &[MAIN]));
}

fn seconds(truth: &serde_json::Value, field: &str) -> f64 {
    number(&truth[field]) as f64 / 1e9
}

/// Within so many per cent, apart from what the loop waited for a CPU: less or more by that.
fn compare(table: &mut Table, what: &str, (truth, seen): (f64, f64), per_cent: f64, (less, more): (f64, f64)) {
    let share = per_cent / 100.0;
    let right = (truth * (1.0 - share) - less..=truth * (1.0 + share) + more).contains(&seen);
    let off = 100.0 * (seen - truth) / truth;
    let truth = format!("{truth:.4} (-{less:.3} +{more:.3})");
    table.holds(what, truth, format!("{seen:.4} ({off:+.2} %, of {per_cent} %)"), right);
}

/// What the program says of the intervals of a timer of 10 ms since the last pages.
fn intervals(table: &mut Table, truth: &serde_json::Value, seen: &Seen, p99: f64) {
    let waited = (seen.waited / seen.fired, seen.waited / seen.fired);
    let means = (seconds(truth, "interval_mean_ns"), TIMER + seen.late / seen.fired);
    compare(table, "mean interval of a 10 ms timer, s", means, 2.0, waited);
    compare(table, "p99 of that interval, s", (seconds(truth, "interval_p99_ns"), TIMER + p99), 15.0, waited);
}

/// Check a loop that keeps its own account, with waits of no time within its rounds, and that replays the timer itself.
#[test]
fn constructed_loop() {
    place::require_root();
    let mut fixture = Fixture::start(&place::looper(), &[]);
    let profiler = Profiler::attach(fixture.pid());
    let mut table = Table::new("a loop that knows");
    fixture.ask("run 60 100 1000");
    recognised(&profiler);
    let (truth_before, before) = (fixture.ask("truth"), profiler.page());
    let truth_after = fixture.ask("run 250 24000 8000");
    let iterations = number(&truth_after["iterations"]) - number(&truth_before["iterations"]);
    // The one that ends with the answer is seen once the loop waits again. A loop that lost its CPU on the way to a wait
    // may find that its time has passed: it has not slept then, and its iteration goes on.
    let least = |seen: &Seen| iterations.saturating_sub(seen.preempted as u64);
    let read = || between(&before, &profiler.page());
    let seen = wait::until_or_last(read, |seen| seen.iterations as u64 >= least(seen));
    let grown = |field: &str| seconds(&truth_after, field) - seconds(&truth_before, field);
    compare(&mut table, "active, s", (grown("active_ns"), seen.active), 2.0, (0.0, seen.waited));
    compare(&mut table, "idle, s", (grown("idle_ns"), seen.idle), 2.0, (seen.waited, 0.0));
    let right = (least(&seen)..=iterations).contains(&(seen.iterations as u64));
    table.holds("iterations", format!("{iterations} - {}", seen.preempted), seen.iterations, right);
    intervals(&mut table, &truth_after, &seen, p99(&profiler, fixture.pid()));
    let status = profiler.status();
    table.holds("lost", "nothing", format!("{:?}", status.losses()), status.losses().is_empty());
    table.finish();
}

/// Check Node's own figures, which come from its loop and a real timer.
#[test]
fn node() {
    place::require_root();
    let script = place::root().join("tests/fixtures/node/loop.js");
    let mut fixture = Fixture::start(&place::node(), &[&script.to_string_lossy()]);
    let profiler = Profiler::attach(fixture.pid());
    let mut table = Table::new("Node");
    fixture.ask("run 60 1 1");
    recognised(&profiler);
    let (truth_before, before) = (fixture.ask("truth"), profiler.page());
    // Long enough for its mean to depend no more on how the two timers' phases happen to be.
    let truth = fixture.ask("run 800 24 8");
    let after = profiler.page();
    let seen = between(&before, &after);
    let grown = |field: &str| seconds(&truth, field) - seconds(&truth_before, field);
    compare(&mut table, "active, s", (grown("active_ns"), seen.active), 2.0, (0.0, seen.waited));
    compare(&mut table, "idle, s", (grown("idle_ns"), seen.idle), 2.0, (seen.waited, 0.0));
    intervals(&mut table, &truth, &seen, p99(&profiler, fixture.pid()));
    table.finish();
}

/// Check the reactor of a server of Ruby's fibers, against what its fibers measure of it.
#[test]
fn reactor_of_fibers() {
    place::require_root();
    let mut program = Program::start(ruby::program("ruby").arg(ruby::place_of("tests/fixtures/ruby/async.rb")));
    program.line();
    let profiler = Profiler::attach(program.pid());
    let mut run = |command: &str| -> Vec<f64> {
        program.send(command);
        program.line().split(' ').map(|word| word.parse::<f64>().expect("a number") / 1e9).collect()
    };
    run("loop 40 1 4");
    recognised(&profiler);
    let before = profiler.page();
    let truth = run("loop 60 30 24");
    let seen = between(&before, &profiler.page());
    let [busy, idle, late, sleeps] = truth[..] else { panic!("{truth:?}") };
    let sleeps = sleeps * 1e9;
    let mut table = Table::new("Ruby's async, fibers that compute and sleep");
    // The reactor has work of its own between them.
    compare(&mut table, "active, s", (busy, seen.active), 5.0, (0.0, seen.waited));
    compare(&mut table, "all, s", (busy + idle, seen.active + seen.idle), 3.0, (seen.waited, seen.waited));
    let (mean, mean_seen) = (TIMER + late / sleeps, TIMER + seen.late / seen.fired);
    compare(&mut table, "mean interval of a 10 ms timer, s", (mean, mean_seen), 5.0, (seen.waited / seen.fired, 0.0));
    table.finish();
}

/// Check that threads which sleep otherwise are no loops, however often.
#[test]
fn no_loop() {
    place::require_root();
    let mut fixture = Fixture::start(&place::forker(), &[]);
    let profiler = Profiler::attach(fixture.pid());
    let mut table = Table::new("no loop");
    for _ in 0..100 {
        fixture.ask("wait poll 1");
    }
    table.equal("loop", false, profiler.page().has(SECONDS, &[]));
    table.finish();
}
