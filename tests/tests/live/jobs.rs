//! Jobs of Sidekiq: how many, how long they took, how long its threads waited for them, and what they do just now.

use std::thread;
use std::time::Duration;

use tests::page::Page;
use tests::profiler::Profiler;
use tests::sidekiq::{Sidekiq, between};
use tests::table::Table;
use tests::wait;

const JOBS: u64 = 60;

fn in_state(page: &Page, state: &str) -> u64 {
    page.sum("profiler_job_threads", &[("state", state)]) as u64
}

fn total(page: &Page, of: &str) -> f64 {
    page.sum(&format!("profiler_{of}"), &[])
}

/// The page once so many jobs are counted, or at last.
fn page_after(profiler: &Profiler, jobs: u64) -> Page {
    wait::until_or_last(|| profiler.page(), |page| total(page, "job_seconds_count") as u64 >= jobs)
}

fn check(how: &str, all: u64) {
    let mut sidekiq = Sidekiq::start(all);
    let profiler = Profiler::attach_with(sidekiq.pid(), &["--requests"]);
    assert!(profiler.status().target(sidekiq.pid()).is_attached("jobs"));
    let mut table = Table::new(format!("Sidekiq with {all} threads, jobs that {how}"));
    // They ask every two seconds: who has not asked yet is not known to take jobs.
    let page = wait::until_or_last(|| profiler.page(), |page| in_state(page, "idle") == all);
    table.equal("idle threads", all, in_state(&page, "idle"));
    table.equal("jobs before there were any", 0, total(&page, "job_seconds_count") as u64);
    // A job for each.
    sidekiq.push("sleep", &vec![300; all as usize]);
    let page = wait::until_or_last(|| profiler.page(), |page| in_state(page, "busy") == all);
    table.equal("busy threads, each with a job", all, in_state(&page, "busy"));
    let warm = sidekiq.settle().len();
    let before = page_after(&profiler, warm as u64);
    let lengths: Vec<u64> = (0..JOBS).map(|n| 40 + n % 5 * 20).collect();
    sidekiq.push(how, &lengths);
    let done = sidekiq.settle();
    let page = page_after(&profiler, warm as u64 + JOBS);
    table.equal("jobs", JOBS, (total(&page, "job_seconds_count") - total(&before, "job_seconds_count")) as u64);
    let truth: u64 = done[warm..].iter().map(|job| job.end_ns - job.begin_ns).sum();
    let seen = total(&page, "job_seconds_sum") - total(&before, "job_seconds_sum");
    let mean = |seconds: f64| seconds * 1e3 / JOBS as f64;
    table.within("mean job, ms", mean(truth as f64 / 1e9), mean(seen), 3.0);
    table.equal(
        "waits for a job",
        JOBS,
        (total(&page, "job_fetch_seconds_count") - total(&before, "job_fetch_seconds_count")) as u64,
    );
    table.equal(
        "idle threads again",
        all,
        in_state(&wait::until_or_last(|| profiler.page(), |page| in_state(page, "idle") == all), "idle"),
    );
    // One by one, so that there is something to wait for.
    let (done_before, before) = (done.len(), page);
    for _ in 0..4 {
        thread::sleep(Duration::from_millis(300));
        sidekiq.push("sleep", &[100]);
        sidekiq.settle();
    }
    let done = sidekiq.settle();
    let page = page_after(&profiler, done.len() as u64);
    let seen = total(&page, "job_fetch_seconds_sum") - total(&before, "job_fetch_seconds_sum");
    table.within("waited for jobs, s", between(&done, done_before) as f64 / 1e9, seen, 3.0);
    table.equal("all jobs", done.len() as u64, total(&page, "job_seconds_count") as u64);
    let losses = profiler.status();
    table.holds("lost", "nothing", format!("{:?}", losses.losses()), losses.losses().is_empty());
    table.finish();
}

#[test]
fn sidekiq_sleeps() {
    check("sleep", 3);
}

/// With one thread: others would have it wait for Ruby's lock before and in its job, which is part of what is seen, and before
/// which the job itself has not begun.
#[test]
fn sidekiq_computes() {
    check("spin", 1);
}
