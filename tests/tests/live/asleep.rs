//! Why threads sleep, who takes their CPU, and where they go: against constructed waits and contention.

use tests::fixture::Fixture;
use tests::kernel::{self, Account};
use tests::page::Page;
use tests::place;
use tests::profiler::Profiler;
use tests::status::number;
use tests::table::Table;
use tests::wait;

const OFF_CPU: &str = "profiler_sched_off_cpu_seconds_total";
const PREEMPTIONS: &str = "profiler_sched_preemptions_total";
const RUN_QUEUE: &str = "profiler_sched_run_queue_seconds";

/// Waits of the fixture, and the reason that each is. The files that a timer or a pipe is are no reason of their own.
const WAITS: &[(&str, &str)] = &[
    ("epoll_wait", "epoll"),
    ("epoll_pwait", "epoll"),
    ("epoll_pwait2", "epoll"),
    ("poll", "epoll"),
    ("ppoll", "epoll"),
    ("select", "epoll"),
    ("pselect6", "epoll"),
    ("io_uring_enter", "epoll"),
    // Closing the ring interrupts the next wait once, which then goes on.
    ("futex", "futex"),
    ("nanosleep", "sleep"),
    ("clock_nanosleep", "sleep"),
    ("recvfrom", "socket"),
    ("read_socket", "socket"),
    ("accept", "accept"),
    ("read_timer", "other"),
    ("fdatasync", "disk"),
    ("page_fault", "page_fault"),
];

fn start() -> (Fixture, Profiler) {
    place::require_root();
    let fixture = Fixture::start(&place::forker(), &[]);
    let profiler = Profiler::attach(fixture.pid());
    (fixture, profiler)
}

/// The kernel's account of the main thread and the page, read while it sleeps.
fn at_rest(fixture: &Fixture, profiler: &Profiler) -> (Account, Page) {
    let pid = fixture.pid();
    wait::until("a thread at rest", || {
        let before = kernel::account(pid, pid);
        let page = profiler.page();
        let after = kernel::account(pid, pid);
        if before == after { Ok((before, page)) } else { Err("it runs".to_owned()) }
    })
}

/// Check that the time asleep is told by what is waited for. What a wait took and was not asleep is time in which the
/// thread ran, or waited for a CPU, all by one clock.
#[test]
fn causes() {
    let (mut fixture, profiler) = start();
    let mut table = Table::new("waits of 100 ms, by cause");
    for &(wait, reason) in WAITS {
        let (_, before) = at_rest(&fixture, &profiler);
        let elapsed = number(&fixture.ask(&format!("wait {wait} 100"))["elapsed_ns"]) as f64 / 1e9;
        let (_, after) = at_rest(&fixture, &profiler);
        let grown = |name: &str, labels: &[(&str, &str)]| after.sum(name, labels) - before.sum(name, labels);
        let awake = grown("profiler_sched_on_cpu_seconds_total", &[]) + grown(OFF_CPU, &[("reason", "run_queue")]);
        let asleep = grown(OFF_CPU, &[("reason", reason)]);
        // Commands come through a pipe, for which the thread waits too: without a reason of its own.
        let right = (elapsed - awake) * 0.98 <= asleep && (asleep <= elapsed || reason == "other");
        table.holds(
            format!("{wait}: {reason}, s"),
            format!("{elapsed:.4} - {awake:.4}"),
            format!("{asleep:.4}"),
            right,
        );
        for &(_, another) in WAITS {
            // The thread that fills the missing page sleeps meanwhile.
            let helped = wait == "page_fault" && ["sleep", "futex"].contains(&another);
            if another != reason && another != "other" && !helped {
                let more = grown(OFF_CPU, &[("reason", another)]);
                if more > 0.002 {
                    table.holds(format!("{wait}: {another}, s"), "none", more, false);
                }
            }
        }
    }
    let page = profiler.page();
    table.equal("reason blocked", false, page.has(OFF_CPU, &[("reason", "blocked")]));
    table.finish();
}

/// Check that the sum over all causes is the time asleep, and waits after wake-ups and after preemptions are as many as
/// the switches that they follow.
#[test]
fn sums() {
    let (mut fixture, profiler) = start();
    let mut table = Table::new("sums");
    let (kernel_before, before) = at_rest(&fixture, &profiler);
    fixture.ask("spin 300");
    for _ in 0..20 {
        fixture.ask("wait nanosleep 2");
    }
    let (kernel_after, after) = at_rest(&fixture, &profiler);
    let grown = |name: &str, labels: &[(&str, &str)]| after.sum(name, labels) - before.sum(name, labels);
    let waits = |label| grown(&format!("{RUN_QUEUE}_count"), &[("after", label)]) as u64;
    let voluntary = kernel_after.voluntary_switches - kernel_before.voluntary_switches;
    let involuntary = kernel_after.involuntary_switches - kernel_before.involuntary_switches;
    table.equal("waits after wake-ups", voluntary, waits("wakeup"));
    table.equal("waits after preemptions", involuntary, waits("preemption"));
    table.equal("preemptions", involuntary, grown(PREEMPTIONS, &[]) as u64);
    table.finish();
}

/// Check who is said to have taken the CPU, where it is constructed; all together are the kernel's own count.
#[test]
fn preempters() {
    let (mut fixture, profiler) = start();
    let mut rival = Fixture::start(&place::forker(), &[]);
    let mut table = Table::new("who took the CPU");
    let mut round = |table: &mut Table, what: &str, run: &mut dyn FnMut(&mut Fixture) -> u64| {
        let (kernel_before, before) = at_rest(&fixture, &profiler);
        let ended = run(&mut fixture);
        let (kernel_after, after) = at_rest(&fixture, &profiler);
        let by = |who| after.value(PREEMPTIONS, &[("by", who)]) - before.value(PREEMPTIONS, &[("by", who)]);
        let all: f64 = ["self", "other", "kernel", "idle"].map(by).iter().sum();
        let truth = kernel_after.involuntary_switches - kernel_before.involuntary_switches + ended;
        table.equal(format!("{what}: all"), truth, all as u64);
        (by("self"), by("other"))
    };
    let (own, other) = round(&mut table, "own threads", &mut |fixture| {
        number(&fixture.ask("contend 2000 0")["ended_involuntary_switches"])
    });
    table.holds("own threads: by self, by other", "most by self", format!("{own} {other}"), own > 50.0);
    rival.ask("pin 0");
    let (own, other) = round(&mut table, "another process", &mut |fixture| {
        fixture.ask("pin 0");
        rival.tell("spin 2000");
        fixture.ask("spin 2000");
        rival.answer();
        0
    });
    table.equal("another process: by self", 0.0, own);
    table.holds("another process: by other", "many", other, other > 50.0);
    table.finish();
}

/// Check that moves to another CPU are counted. On a busy host a few in a thousand are not seen.
#[test]
fn migrations() {
    let (mut fixture, profiler) = start();
    let mut table = Table::new("migrations");
    fixture.ask("pin 0");
    let (_, before) = at_rest(&fixture, &profiler);
    fixture.ask("hop 500 0 1");
    let (_, after) = at_rest(&fixture, &profiler);
    let moves = |page: &Page| page.value("profiler_sched_migrations_total", &[]);
    table.within("migrations", 500.0, moves(&after) - moves(&before), 1.0);
    table.finish();
}
