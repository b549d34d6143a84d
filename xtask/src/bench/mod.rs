//! `cargo xtask bench`: what the profiler costs, measured as docs/measuring.md says. Never a test: nothing here fails
//! because a machine was busy.

mod attach;
mod churn;
mod compare;
mod cost;
mod pairs;
mod polls;
mod ruby;
mod run_queue;
mod storm;
mod workload;

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};

use crate::{build, fixtures, setup};

/// One line of the table.
pub struct Row {
    /// What was measured.
    pub what: String,
    /// What came out.
    pub measured: String,
    /// What it should be at most.
    pub bar: &'static str,
}

impl Row {
    fn new(what: impl Into<String>, measured: impl Into<String>, bar: &'static str) -> Row {
        Row { what: what.into(), measured: measured.into(), bar }
    }
}

/// How long is measured in pairs.
#[derive(Clone, Copy)]
pub struct Effort {
    /// Pairs of slices, with and without.
    pub pairs: usize,
    /// How long each of a pair lasts.
    pub slice: Duration,
    /// Between attaching and the first slice.
    pub settle: Duration,
}

/// Flags for full fidelity, whatever it costs the target.
pub const FULL: &[&str] = &["--budget", "off"];

/// The programs that are measured, and how long.
pub struct Programs {
    effort: Effort,
    profiler: PathBuf,
    fixture: PathBuf,
    stripped: PathBuf,
    forker: PathBuf,
}

type Measurement = fn(&Programs) -> Result<Vec<Row>>;

const MEASUREMENTS: &[(&str, Measurement)] = &[
    ("attach", attach::attach),
    ("memory", attach::memory),
    ("idle", attach::idle),
    ("scrape", attach::scrape),
    ("storm", storm::storm),
    ("runqueue", run_queue::run_queue),
    ("churn", churn::churn),
    ("http", cost::keep_alive),
    ("spawn", cost::spawning),
    ("pingpong", cost::ping_pong),
    ("storm-cost", cost::storm),
    ("quiet", cost::quiet),
    ("parents", cost::poll_stack),
    ("full", cost::full),
    ("polls", polls::all),
    ("hog", polls::hog),
    ("sinatra", ruby::sinatra),
    ("fibers", ruby::fibers),
    ("compare", compare::compare),
];

/// Measures everything, or what has `name` in its name, and prints one table.
pub fn run(name: Option<&str>, effort: Effort) -> Result<()> {
    setup::run(false)?;
    let profiler = build::profiler()?;
    let fixture = fixtures::tokio("latest", "fat")?;
    let programs = Programs {
        effort,
        profiler,
        stripped: fixture.with_file_name("fixture-stripped"),
        fixture,
        forker: fixtures::plain("forker")?,
    };
    let chosen: Vec<_> = MEASUREMENTS.iter().filter(|(n, _)| name.is_none_or(|name| n.contains(name))).collect();
    if chosen.is_empty() {
        let names: Vec<_> = MEASUREMENTS.iter().map(|(name, _)| *name).collect();
        bail!("no measurement has that name: there are {}", names.join(", "));
    }
    let mut table = String::from("| measured | result | bar |\n|---|---|---|\n");
    for (name, measure) in chosen {
        eprintln!("bench: {name}");
        for row in measure(&programs)? {
            eprintln!("bench: {}: {} (bar: {})", row.what, row.measured, row.bar);
            let _ = writeln!(table, "| {} | {} | {} |", row.what, row.measured, row.bar);
        }
    }
    println!("{table}");
    Ok(())
}

/// Smallest, median and largest of some figures.
pub fn spread(mut values: Vec<f64>) -> (f64, f64, f64) {
    values.sort_by(f64::total_cmp);
    match values[..] {
        [] => (f64::NAN, f64::NAN, f64::NAN),
        [first, .., last] => (first, values[values.len() / 2], last),
        [only] => (only, only, only),
    }
}
