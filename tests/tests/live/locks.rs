//! Waits for Ruby's global lock, against what its threads measure. With `PROFILER_RUBY_ROOT`, of the Ruby in that directory.

use tests::page::Page;
use tests::profiler::Profiler;
use tests::ruby::Fibers;
use tests::table::Table;
use tests::wait;

const SUM: &str = "profiler_runtime_lock_wait_seconds_sum";
const COUNT: &str = "profiler_runtime_lock_wait_seconds_count";
/// Time in the run queue: what of it is in a wait for the lock is in both figures, and the rest only in the program's own.
const RUN_QUEUE: &str = "profiler_sched_run_queue_seconds_sum";
const TOLERANCE: f64 = 0.05;

/// By how much a sum is more than on the page before, which this one takes the place of.
fn grown(name: &str, before: &mut Page, page: Page) -> f64 {
    let grown = page.sum(name, &[]) - before.sum(name, &[]);
    *before = page;
    grown
}

/// Check that threads which compute beside each other waited for the lock for as long as they did not compute, and that those which wait
/// for anything else waited for none.
#[test]
fn threads_wait_for_the_lock() {
    let mut ruby = Fibers::that_lock();
    let pid = ruby.pid();
    let profiler = Profiler::attach_within("off", pid, &[]);
    let status = profiler.status();
    let row = status.target(pid).probe("lock_wait");
    assert!(status.target(pid).is_attached("lock_wait"), "{row:?}");
    let mut table = Table::new(format!("Ruby {}, its global lock", ruby.version));
    let mut before = profiler.page();
    for (threads, ms) in [(2, 500), (4, 300)] {
        let truth = ruby.tell(&format!("compute {threads} {ms}"))[0] as f64 / 1e9;
        let page = profiler.page();
        let queued = page.sum(RUN_QUEUE, &[]) - before.sum(RUN_QUEUE, &[]);
        let seen = grown(SUM, &mut before, page);
        let right = (truth * (1.0 - TOLERANCE) - queued..=truth * (1.0 + TOLERANCE)).contains(&seen);
        let off = 100.0 * (seen - truth) / truth;
        let what = format!("{threads} threads, {ms} ms each: waited, s");
        table.holds(what, format!("{truth:.4} (-{queued:.3})"), format!("{seen:.4} ({off:+.2} %, of 5 %)"), right);
    }
    ruby.tell("compute 1 300");
    let alone = grown(SUM, &mut before, profiler.page());
    table.holds("one alone, s", "< 0.02", format!("{alone:.4}"), alone < 0.02);
    ruby.tell("idle 16");
    let idle = grown(SUM, &mut before, profiler.page());
    table.holds("those that sleep, s", "< 0.02", format!("{idle:.4}"), idle < 0.02);
    let waits = || profiler.page().sum(COUNT, &[]);
    table.holds("waits", "> 0", waits(), wait::until_or_last(waits, |waits| *waits > 0.0) > 0.0);
    let losses = profiler.status();
    table.holds("lost", "nothing", format!("{:?}", losses.losses()), losses.losses().is_empty());
    table.finish();
}
