//! Threads told apart by their names: what each had, while it lives and after.

use tests::fixture::Fixture;
use tests::kernel;
use tests::page::Page;
use tests::place;
use tests::profiler::Profiler;
use tests::status::number;
use tests::table::Table;
use tests::wait;

const SECONDS: &str = "profiler_sched_thread_seconds_total";
const THREADS: &str = "profiler_sched_threads";
const STARTED: &str = "profiler_sched_threads_started_total";
const ENDED: &str = "profiler_sched_threads_ended_total";

fn start() -> (Fixture, Profiler) {
    place::require_root();
    let fixture = Fixture::start(&place::forker(), &[]);
    let profiler = Profiler::attach(fixture.pid());
    (fixture, profiler)
}

/// Pages of which nothing has changed but how long the only thread has slept.
fn at_rest(fixture: &Fixture, profiler: &Profiler) -> Page {
    let pid = fixture.pid();
    wait::until("a thread at rest", || {
        let before = kernel::account(pid, pid);
        let page = profiler.page();
        if before == kernel::account(pid, pid) { Ok(page) } else { Err("it runs".to_owned()) }
    })
}

/// Check that what all threads had is what the target had, exactly.
fn compare_sums(table: &mut Table, when: &str, page: &Page) {
    let state = |state| page.sum(SECONDS, &[("state", state)]);
    let off_cpu = page.sum("profiler_sched_off_cpu_seconds_total", &[]);
    let run_queue = page.value("profiler_sched_off_cpu_seconds_total", &[("reason", "run_queue")]);
    for (what, truth, seen) in [
        ("on CPU", page.value("profiler_sched_on_cpu_seconds_total", &[]), state("on_cpu")),
        ("run queue", run_queue, state("run_queue")),
        ("off CPU", off_cpu - run_queue, state("off_cpu")),
    ] {
        // Sums of floating-point numbers: what is left is below a nanosecond.
        table.holds(format!("{when}: {what}, s"), truth, seen, (truth - seen).abs() < 1e-8);
    }
}

/// Check that time is summed by name, of threads that have ended too, and that the sums are the target's.
#[test]
fn time_by_name() {
    let (mut fixture, profiler) = start();
    let mut table = Table::new("threads by name");
    compare_sums(&mut table, "before", &at_rest(&fixture, &profiler));
    let stolen = kernel::stolen_seconds();
    let pool = number(&fixture.ask("named pool 5 40")["cpu_ns"]) as f64 / 1e9;
    let job = number(&fixture.ask("named job 1 300")["cpu_ns"]) as f64 / 1e9;
    let stolen = kernel::stolen_seconds() - stolen;
    let page = at_rest(&fixture, &profiler);
    for (name, truth) in [("pool", pool), ("job", job)] {
        let seen = page.value(SECONDS, &[("thread", name), ("state", "on_cpu")]);
        // The scheduler's clock is up to 5 % apart, and does not count what is taken from the CPU.
        let right = (truth * 0.95..=(truth + stolen) * 1.05 + 0.002).contains(&seen);
        table.holds(format!("{name}: on CPU, s"), format!("{truth:.4} (up to {stolen:.2} taken)"), seen, right);
        table.equal(format!("{name}: alive"), 0.0, page.value(THREADS, &[("thread", name)]));
        let threads = if name == "pool" { 5.0 } else { 1.0 };
        table.equal(format!("{name}: started"), threads, page.value(STARTED, &[("thread", name)]));
        table.equal(format!("{name}: ended"), threads, page.value(ENDED, &[("thread", name)]));
    }
    table.equal("all: started", 6.0, page.sum(STARTED, &[]));
    table.equal("all: ended", 6.0, page.sum(ENDED, &[]));
    table.equal("main: alive", 1.0, page.value(THREADS, &[("thread", "main")]));
    compare_sums(&mut table, "after", &page);
    let losses = profiler.status();
    table.holds("lost", "nothing", format!("{:?}", losses.losses()), losses.losses().is_empty());
    table.finish();
}

/// Check that threads that live are counted, children that were forked among them.
#[test]
fn living_threads() {
    let (mut fixture, profiler) = start();
    let mut table = Table::new("living threads");
    fixture.tell("contend 1500 0");
    let rivals = wait::until_or_last(|| profiler.page().sum(THREADS, &[("thread", "forker")]), |&n| n == 2.0);
    table.equal("rivals", 2.0, rivals);
    fixture.answer();
    let rivals = wait::until_or_last(|| profiler.page().sum(THREADS, &[("thread", "forker")]), |&n| n == 0.0);
    table.equal("rivals afterwards", 0.0, rivals);
    fixture.ask("fork 3");
    let main = wait::until_or_last(|| profiler.page().sum(THREADS, &[("thread", "main")]), |&n| n == 4.0);
    table.equal("main threads of four processes", 4.0, main);
    fixture.ask("reap");
    table.finish();
}

/// Check that names are bounded, and that nothing is lost by it.
#[test]
fn many_names() {
    let (mut fixture, profiler) = start();
    let mut table = Table::new("thirty names");
    for letter in ('a'..='z').chain('A'..='D') {
        fixture.ask(&format!("named job_{letter} 2 1"));
    }
    let page = at_rest(&fixture, &profiler);
    table.equal("names", 17, page.series(THREADS, &[]).count());
    let others = page.value(SECONDS, &[("thread", "other"), ("state", "on_cpu")]);
    table.holds("others", "some", others, others > 0.0);
    compare_sums(&mut table, "sums", &page);
    table.finish();
}
