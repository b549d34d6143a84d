//! Ring to task table: as many lifecycle events as a target can make.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::{FULL, Programs, Row};
use crate::target::{Fixture, Profiler, cpu_ns, get, metric, number};

const LASTS: Duration = Duration::from_secs(10);
const BATCH: u32 = 200_000;

/// Spawns and ends for ten seconds; counts what arrived, what was lost, and the profiler's CPU time per event.
pub fn storm(programs: &Programs) -> Result<Vec<Row>> {
    let mut fixture = Fixture::start(&programs.fixture, &["storm"], None)?;
    let profiler = Profiler::attach(&programs.profiler, fixture.pid(), FULL)?;
    let (before, started) = (cpu_ns(profiler.pid())?, Instant::now());
    let mut truth = String::new();
    while started.elapsed() < LASTS {
        truth = fixture.ask(&format!("storm {BATCH}"))?;
    }
    let seconds = started.elapsed().as_secs_f64();
    let (page, _) = get("/metrics")?;
    let cpu = (cpu_ns(profiler.pid())? - before) as f64;
    profiler.detach()?;
    let truth = number(truth.split_once("\"tasks\":").map_or(truth.as_str(), |(_, tasks)| tasks), "spawned")?;
    let spawned = metric(&page, "profiler_tasks_spawned_total");
    let events = spawned + metric(&page, "profiler_tasks_completed_total");
    let lost = metric(&page, "profiler_events_lost_total");
    Ok(vec![
        Row::new("lifecycle events per second", format!("{:.0}", events / seconds), "500,000 (at least)"),
        Row::new("of these lost", format!("{lost} ({spawned} spawns seen of {truth})"), "0"),
        Row::new("profiler's CPU per event", format!("{:.0} ns", cpu / events), "300 ns"),
    ])
}
