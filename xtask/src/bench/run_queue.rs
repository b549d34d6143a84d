//! What the scheduler probes cost a pair of processes that do nothing but switch, beside libbpf-tools' runqlat.

use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::Result;

use super::{Programs, Row, spread};
use crate::process::Ended;
use crate::target::{Fixture, Profiler, number};

const ROUND_TRIPS: u32 = 30_000;
const ROUNDS: usize = 15;
const RUNQLAT: &str = "runqlat";

/// Nanoseconds per round trip (two switches, two wake-ups): alone, with the profiler, with runqlat; in turn.
pub fn run_queue(programs: &Programs) -> Result<Vec<Row>> {
    let mut fixture = Fixture::start(&programs.forker, &[], None)?;
    let there = Command::new(RUNQLAT).arg("--help").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok();
    let (mut alone, mut null, mut ours, mut theirs) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        alone.push(round(&mut fixture)?);
        let profiler = Profiler::attach(&programs.profiler, fixture.pid(), &[])?;
        ours.push(round(&mut fixture)?);
        profiler.detach()?;
        if there {
            let pid = fixture.pid().to_string();
            let tool =
                Command::new(RUNQLAT).args(["-p", &pid, "3600"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
            let tool = Ended(tool);
            thread::sleep(Duration::from_millis(700));
            theirs.push(round(&mut fixture)?);
            drop(tool);
            thread::sleep(Duration::from_millis(200));
        }
        null.push(round(&mut fixture)?);
    }
    let base = spread(alone).0;
    let cost = |values: Vec<f64>| {
        let (min, median, _) = spread(values);
        format!("+{:.0} ns (min − min; median {median:.0} against min {base:.0})", min - base)
    };
    let theirs = if there { cost(theirs) } else { format!("{RUNQLAT} is not installed (package libbpf-tools)") };
    Ok(vec![
        Row::new("run-queue probes, per round trip of a pipe ping-pong", cost(ours), "runqlat -p"),
        Row::new("runqlat -p on the same", theirs, "-"),
        Row::new("null: nothing on the same", cost(null), "-"),
    ])
}

fn round(fixture: &mut Fixture) -> Result<f64> {
    number(&fixture.ask(&format!("pingpong {ROUND_TRIPS} 0"))?, "ns_per_round_trip")
}
