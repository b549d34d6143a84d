//! Where threads spend their time, and processes that fork, exec and exit.

use std::fs;

use tests::fixture::Fixture;
use tests::kernel::{self, Account};
use tests::page::Page;
use tests::place;
use tests::profiler::Profiler;
use tests::status::number;
use tests::table::Table;
use tests::wait;

fn start() -> (Fixture, Profiler) {
    place::require_root();
    let fixture = Fixture::start(&place::forker(), &[]);
    let profiler = Profiler::attach(fixture.pid());
    assert!(profiler.status().target(fixture.pid()).is_attached("run_queue"));
    (fixture, profiler)
}

/// What the profiler has measured so far, in the kernel's terms.
fn seen(page: &Page) -> Account {
    let ns = |name: &str| (page.value(name, &[]) * 1e9).round() as u64;
    let switches = |kind| page.value("profiler_sched_switches_total", &[("kind", kind)]) as u64;
    Account {
        on_cpu_ns: ns("profiler_sched_on_cpu_seconds_total"),
        wait_ns: (page.sum("profiler_sched_run_queue_seconds_sum", &[]) * 1e9).round() as u64,
        voluntary_switches: switches("voluntary"),
        involuntary_switches: switches("involuntary"),
    }
}

/// The account of the only thread, and the page, read while the thread sleeps.
fn at_rest(fixture: &Fixture, profiler: &Profiler) -> (Account, Account) {
    let pid = fixture.pid();
    wait::until("a thread at rest", || {
        let before = kernel::account(pid, pid);
        let page = seen(&profiler.page());
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).map_err(|e| e.to_string())?;
        let asleep = stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('S'));
        if asleep && before == kernel::account(pid, pid) { Ok((before, page)) } else { Err(stat) }
    })
}

/// The scheduler keeps its account by its own clock, which on virtual machines runs up to 2 % apart from CLOCK_MONOTONIC
/// (both accounts of a run then differ by the same factor): absolute times may differ by this much.
const CLOCKS: f64 = 0.05;

/// The scheduler does not charge a thread for what interrupts and the hypervisor take of its time on the CPU; from one
/// switch to the next, which is what the profiler measures, is that time too.
fn on_cpu(table: &mut Table, truth: f64, seen: f64, stolen: f64) {
    let right = (truth * (1.0 - CLOCKS)..=(truth + stolen) * (1.0 + CLOCKS)).contains(&seen);
    table.holds("time on CPU, s", format!("{truth:.6} (up to {stolen:.2} taken)"), format!("{seen:.6}"), right);
}

/// Check that time on the CPU is the kernel's, and that switches of a thread that is left alone are exactly the kernel's.
#[test]
fn spinning_thread() {
    let (mut fixture, profiler) = start();
    let mut table = Table::new("one busy thread");
    let (before, seen_before) = at_rest(&fixture, &profiler);
    let stolen = kernel::stolen_seconds();
    fixture.ask("spin 1500");
    for _ in 0..50 {
        fixture.ask("spin 1");
    }
    let (after, seen_after) = at_rest(&fixture, &profiler);
    let cpu = (after.on_cpu_ns - before.on_cpu_ns) as f64 / 1e9;
    let seen = (seen_after.on_cpu_ns - seen_before.on_cpu_ns) as f64 / 1e9;
    on_cpu(&mut table, cpu, seen, kernel::stolen_seconds() - stolen);
    let switches = |a: Account, b: Account| {
        (b.voluntary_switches - a.voluntary_switches, b.involuntary_switches - a.involuntary_switches)
    };
    let (truth, seen) = (switches(before, after), switches(seen_before, seen_after));
    table.equal("voluntary switches", truth.0, seen.0);
    table.equal("involuntary switches", truth.1, seen.1);
    table.finish();
}

/// Check that waits in the run queue are the kernel's, where two threads share a CPU.
#[test]
fn contending_threads() {
    let (mut fixture, profiler) = start();
    let mut table = Table::new("two threads on one CPU");
    let before = seen(&profiler.page());
    let stolen = kernel::stolen_seconds();
    fixture.tell("contend 3000");
    let threads = wait::until("three threads", || {
        let threads = profiler.page().value("profiler_runtime_threads", &[]);
        if threads == 3.0 { Ok(threads) } else { Err(format!("{threads} threads")) }
    });
    table.equal("threads", 3.0, threads);
    let answer = fixture.answer();
    let after = seen(&profiler.page());
    let truth = |field: &str| {
        let threads = answer["threads"].as_array().expect("a list").iter();
        threads.map(|t| number(&t["after"][field]) - number(&t["before"][field])).sum::<u64>() as f64 / 1e9
    };
    let (wait, cpu) = (truth("wait_ns"), truth("on_cpu_ns"));
    assert!(wait > 0.0, "this kernel accounts no waits: {answer}");
    let stolen = kernel::stolen_seconds() - stolen;
    let waited = (after.wait_ns - before.wait_ns) as f64 / 1e9;
    table.within("wait in the run queue, s", wait, waited, 100.0 * CLOCKS);
    let seen = (after.on_cpu_ns - before.on_cpu_ns) as f64 / 1e9;
    on_cpu(&mut table, cpu, seen, stolen);
    // Of the two clocks nothing is left in a ratio.
    table.within("wait per time on CPU", wait / cpu, waited / seen, 2.0);
    table.equal("threads afterwards", 1.0, profiler.page().value("profiler_runtime_threads", &[]));
    let status = profiler.status();
    let losses = status.losses();
    table.holds("lost", "nothing", format!("{losses:?}"), losses.is_empty());
    table.finish();
}

fn processes(profiler: &Profiler, wanted: f64) -> f64 {
    let read = || profiler.page().sum("profiler_target_processes", &[]);
    wait::until_or_last(read, |&processes| processes == wanted)
}

/// Check that children are part of the target for as long as they live.
#[test]
fn forked_children() {
    const CHILDREN: usize = 20;
    let (mut fixture, profiler) = start();
    let mut table = Table::new("forked children");
    for round in 1..=3 {
        fixture.ask(&format!("fork {CHILDREN}"));
        let there = CHILDREN as f64 + 1.0;
        table.equal(format!("processes, round {round}"), there, processes(&profiler, there));
        fixture.ask("reap");
        table.equal(format!("processes after reap {round}"), 1.0, processes(&profiler, 1.0));
    }
    let page = profiler.page();
    let events = |kind| page.value("profiler_events_total", &[("kind", kind)]) as usize;
    table.equal("forks", 3 * CHILDREN, events("process_forked"));
    let status = profiler.status();
    let mut losses = status.losses();
    // Kernels that preempt BPF programs may leave one out: then it is counted when the child is found to be gone.
    let unseen = losses.remove("process_exit_unseen").unwrap_or_default() as usize;
    table.equal("exits, seen and unseen", 3 * CHILDREN, events("process_exited") + unseen);
    table.holds("lost", "nothing else", format!("{losses:?}"), losses.is_empty());
    table.finish();
}

/// Check that a new image is recognised, and watched as if it had been attached to.
#[test]
fn replaced_image() {
    let (mut fixture, profiler) = start();
    let pid = fixture.pid();
    let mut table = Table::new("exec");
    let runtime = |wanted: &str| {
        wait::until_or_last(
            || profiler.status().target(pid).0["runtime"].as_str().unwrap_or_default().to_owned(),
            |runtime| runtime == wanted,
        )
    };
    table.equal("runtime", "none".to_owned(), runtime("none"));
    fixture.ask("exec");
    table.equal("runtime of the next generation", "none".to_owned(), runtime("none"));
    let program = place::tokio("latest", "release");
    fixture.ask(&format!("exec {} tasks", program.display()));
    table.equal("runtime of a Tokio program", "tokio".to_owned(), runtime("tokio"));
    let truth = fixture.ask("run 1000");
    let status = profiler.status();
    table.equal("spawned", number(&truth["tasks"]["spawned"]), status.target(pid).spawned());
    let page = profiler.page();
    table.equal("execs", 2.0, page.value("profiler_events_total", &[("kind", "process_execed")]));
    table.equal("up", 1.0, page.value("profiler_target_up", &[]));
    let switches = page.sum("profiler_sched_switches_total", &[]);
    table.holds("switches", "some", switches, switches > 0.0);
    let losses = status.losses();
    table.holds("lost", "nothing", format!("{losses:?}"), losses.is_empty());
    table.finish();
}

/// Check that the series of a process that has ended stay, and say that it has.
#[test]
fn ended_target() {
    place::require_root();
    let mut fixture = Fixture::tokio("latest", "release", &["tasks"]);
    let profiler = Profiler::attach(fixture.pid());
    let mut table = Table::new("a target that ends");
    let truth = fixture.ask("run 1000");
    fixture.ask("hold 10");
    table.equal("alive", 10.0, profiler.page().sum("profiler_tasks_alive", &[]));
    let pid = fixture.pid();
    table.equal("exit code", 0, fixture.quit().unwrap_or(-1));
    let up = wait::until_or_last(|| profiler.page().value("profiler_target_up", &[]), |&up| up == 0.0);
    table.equal("up", 0.0, up);
    let (page, status) = (profiler.page(), profiler.status());
    // The runtime's own workers are no part of the truth, and are among the series.
    table.equal("spawned", number(&truth["tasks"]["spawned"]) + 10, status.target(pid).spawned());
    table.equal("alive afterwards", 0.0, page.sum("profiler_tasks_alive", &[]));
    let switches = page.sum("profiler_sched_switches_total", &[]);
    table.holds("switches", "some", switches, switches > 0.0);
    table.equal("threads", false, page.has("profiler_runtime_threads", &[]));
    for (probe, wanted) in [("tasks", "detached"), ("run_queue", "detached")] {
        let state = status.target(pid).probe(probe).map_or("absent", |(state, _)| state);
        table.equal(probe, wanted, state);
    }
    table.finish();
}
