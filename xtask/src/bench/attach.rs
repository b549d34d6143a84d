//! What it costs to be there: attaching, memory, doing nothing, being scraped.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::{FULL, Programs, Row, spread};
use crate::target::{Fixture, Profiler, cpu_ns, get, metric, resident_kib};

const CYCLES: usize = 10;
/// How many tasks live, what the profiler needs then at most, and its flags.
const HELD: [(u32, &str, &[&str]); 3] =
    [(100_000, "40 MiB", FULL), (1_000_000, "64 MiB", &[]), (1_000_000, "64 MiB", FULL)];
const IDLE: Duration = Duration::from_secs(20);
const SCRAPES: usize = 50;

/// Attaches to and detaches from a stripped server with many types of task, under no load.
pub fn attach(programs: &Programs) -> Result<Vec<Row>> {
    let fixture = Fixture::start(&programs.stripped, &["types", "0"], None)?;
    let (mut attach, mut detach) = (Vec::new(), Vec::new());
    for _ in 0..CYCLES {
        let profiler = Profiler::attach(&programs.profiler, fixture.pid(), &[])?;
        attach.push(profiler.attach_ms);
        detach.push(profiler.detach()?);
    }
    let show = |(min, median, max)| format!("{median:.0} ms ({min:.0} to {max:.0})");
    Ok(vec![
        Row::new("attach, stripped fat-LTO server, start to attached", show(spread(attach)), "500 ms"),
        Row::new("detach", show(spread(detach)), "150 ms"),
    ])
}

/// Resident memory with many live tasks.
pub fn memory(programs: &Programs) -> Result<Vec<Row>> {
    HELD.iter().map(|(tasks, bar, flags)| memory_with(programs, *tasks, bar, flags)).collect()
}

fn memory_with(programs: &Programs, tasks: u32, bar: &'static str, flags: &[&str]) -> Result<Row> {
    let mut fixture = Fixture::start(&programs.stripped, &["types", "0"], None)?;
    let profiler = Profiler::attach(&programs.profiler, fixture.pid(), flags)?;
    let before = resident_kib(profiler.pid())?;
    fixture.ask(&format!("hold {tasks}"))?;
    let (page, _) = get("/metrics")?;
    // Twice, so that what a scrape itself needs is part of the figure.
    get("/metrics")?;
    let after = resident_kib(profiler.pid())?;
    let alive = metric(&page, "profiler_tasks_alive");
    profiler.detach()?;
    let how = if flags.is_empty() { "default budget" } else { "no budget" };
    Ok(Row::new(
        format!("resident memory with {tasks} live tasks, {how}"),
        format!("{:.1} MiB ({:.1} before); {alive} seen", after as f64 / 1024.0, before as f64 / 1024.0),
        bar,
    ))
}

/// CPU time on a target that does nothing.
pub fn idle(programs: &Programs) -> Result<Vec<Row>> {
    let fixture = Fixture::start(&programs.stripped, &["http", "0"], None)?;
    let profiler = Profiler::attach(&programs.profiler, fixture.pid(), &[])?;
    thread::sleep(Duration::from_secs(1));
    let (before, started) = (cpu_ns(profiler.pid())?, Instant::now());
    thread::sleep(IDLE);
    let used = (cpu_ns(profiler.pid())? - before) as f64;
    let share = used / started.elapsed().as_nanos() as f64;
    profiler.detach()?;
    Ok(vec![Row::new("CPU on an idle target", format!("{:.2} % of a core", share * 100.0), "0.5 %")])
}

/// Time of a scrape, from connecting to the last byte.
pub fn scrape(programs: &Programs) -> Result<Vec<Row>> {
    let mut fixtures = Vec::new();
    for _ in 0..3 {
        fixtures.push(Fixture::start(&programs.fixture, &["tasks"], None)?);
    }
    let others: Vec<String> = fixtures[1..].iter().map(|fixture| format!("--pid={}", fixture.pid())).collect();
    let others: Vec<&str> = others.iter().map(String::as_str).collect();
    let profiler = Profiler::attach(&programs.profiler, fixtures[0].pid(), &others)?;
    for fixture in &mut fixtures {
        fixture.ask("run 20000")?;
    }
    let mut times = Vec::new();
    let mut series = 0;
    for _ in 0..SCRAPES {
        let (page, took) = get("/metrics")?;
        series = page.lines().filter(|line| line.starts_with("profiler_") || line.starts_with("process_")).count();
        times.push(took.as_secs_f64() * 1e3);
    }
    profiler.detach()?;
    let (min, median, max) = spread(times);
    let took = format!("{median:.1} ms ({min:.1} to {max:.1})");
    Ok(vec![Row::new(format!("scrape of {series} series"), took, "10 ms for 5,000")])
}
