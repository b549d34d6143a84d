//! A target that forks a thousand times a second, and whose children exec and end: what following them takes.

use std::time::Duration;

use anyhow::Result;

use super::{Programs, Row};
use crate::target::{Fixture, Profiler, cpu_ns, get, metric_of, number, resident_kib};

const RATE: u32 = 1000;
const SECONDS: u32 = 60;
/// Enough for what is still in the ring.
const DRAINED: Duration = Duration::from_secs(1);

/// Forks, execs and ends for a minute.
pub fn churn(programs: &Programs) -> Result<Vec<Row>> {
    let mut fixture = Fixture::start(&programs.forker, &[], None)?;
    let profiler = Profiler::attach(&programs.profiler, fixture.pid(), &[])?;
    let (cpu, resident) = (cpu_ns(profiler.pid())?, resident_kib(profiler.pid())?);
    let count = RATE * SECONDS;
    let answer = fixture.ask(&format!("churn {count} {RATE}"))?;
    std::thread::sleep(DRAINED);
    let elapsed_ns = number(&answer, "elapsed_ns")?;
    let share = (cpu_ns(profiler.pid())? - cpu) as f64 / elapsed_ns;
    let grown = resident_kib(profiler.pid())? as f64 - resident as f64;
    let (page, _) = get("/metrics")?;
    profiler.detach()?;
    let seen = |kind: &str| metric_of(&page, "profiler_events_total", kind);
    let rate = f64::from(count) / elapsed_ns * 1e9;
    Ok(vec![
        Row::new(
            format!("forks, execs and ends, {rate:.0} a second for {:.0} s: seen", elapsed_ns / 1e9),
            format!("{:.0} forks and {:.0} execs of {count}", seen("process_forked"), seen("process_execed")),
            "all",
        ),
        Row::new("the profiler's CPU meanwhile", format!("{:.2} % of a core", share * 100.0), "5 %"),
        Row::new("its memory grew by", format!("{grown:.0} KiB"), "-"),
    ])
}
