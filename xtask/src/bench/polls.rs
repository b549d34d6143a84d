//! What is seen of polls: all of very many, and one that is too long, in time.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::pairs::{CLIENT_CPU, TARGET_CPU};
use super::{FULL, Programs, Row};
use crate::target::{Fixture, Profiler, array, get, metric, metric_of, number, pin};

const RATE: u32 = 200_000;
const SECONDS: u32 = 10;
/// Enough for what is still in the ring.
const DRAINED: Duration = Duration::from_secs(1);

const HOG_MS: u32 = 50;
const HOG_EVERY_MS: u32 = 500;
/// When to look for the hog no longer.
const PATIENCE: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(20);

/// 200,000 polls a second, and none may be lost.
pub fn all(programs: &Programs) -> Result<Vec<Row>> {
    pin(0, CLIENT_CPU)?;
    let mut fixture = Fixture::start(&programs.fixture, &["--workers", "1", "tasks"], Some(TARGET_CPU))?;
    let profiler = Profiler::attach(&programs.profiler, fixture.pid(), FULL)?;
    let polls = |page: &str| metric_of(page, "profiler_task_polls_total", "pingpong");
    let (before, _) = get("/metrics")?;
    let answer = fixture.ask(&format!("pingpong {SECONDS} --rate {RATE}"))?;
    thread::sleep(DRAINED);
    let (after, _) = get("/metrics")?;
    profiler.detach()?;
    let truth = number(&answer, "polled")?;
    let rate = truth / number(&answer, "elapsed_ns")? * 1e9;
    let lost = metric(&after, "profiler_events_lost_total") - metric(&before, "profiler_events_lost_total");
    let seen = polls(&after) - polls(&before);
    Ok(vec![
        Row::new(
            format!("no budget, polls missed at {rate:.0} a second"),
            format!("{:.0} of {truth}", truth - seen),
            "0",
        ),
        Row::new("of these, events lost", format!("{lost}"), "0"),
    ])
}

/// How long it takes until a task that held its thread is named, on a stripped binary.
pub fn hog(programs: &Programs) -> Result<Vec<Row>> {
    let mut fixture = Fixture::start(&programs.stripped, &["--workers", "2", "tasks"], None)?;
    let profiler = Profiler::attach(&programs.profiler, fixture.pid(), &[])?;
    thread::sleep(programs.effort.settle);
    let began = Instant::now();
    fixture.ask(&format!("hog {HOG_MS} {HOG_EVERY_MS}"))?;
    let (mut diagnosed, mut counted) = (None, None);
    while began.elapsed() < PATIENCE && (diagnosed.is_none() || counted.is_none()) {
        let (status, _) = get("/status")?;
        let (page, _) = get("/metrics")?;
        if diagnosed.is_none() {
            let named = array(&status, "diagnoses").filter(|diagnoses| diagnoses.contains("hog"));
            diagnosed = named.map(|diagnoses| (began.elapsed(), diagnoses.to_owned()));
        }
        // The stripped program knows the task by its source file, which has the same name.
        if counted.is_none() && metric_of(&page, "profiler_task_slow_polls_total", "hog") > 0.0 {
            counted = Some(began.elapsed());
        }
        thread::sleep(LOOK);
    }
    profiler.detach()?;
    let not = || format!("not within {} s", PATIENCE.as_secs());
    let diagnosed = diagnosed.map_or_else(not, |(after, diagnoses)| {
        format!("{:.2} s: {}", after.as_secs_f64(), diagnoses.replace(['\n', '|'], " "))
    });
    let counted = counted.map_or_else(not, |after| format!("{:.2} s", after.as_secs_f64()));
    Ok(vec![
        Row::new(format!("a hog of {HOG_MS} ms is diagnosed, stripped, after"), diagnosed, "2 s"),
        Row::new("its slow polls are counted after", counted, "2 s"),
    ])
}
