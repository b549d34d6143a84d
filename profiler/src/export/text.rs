//! A snapshot as text for people: the live view of the demo. Never the page that Prometheus reads.

use std::fmt::Write as _;

use crate::histogram::Histogram;

use crate::event::Outcome;
use crate::model::snapshot::{ListenerSnapshot, SchedSnapshot, Snapshot, TargetSnapshot, TasksSnapshot};

/// Types that are listed per target, those with the most spawns first.
const TYPES: usize = 20;

/// Longest name, in characters: the end of a path says more than its beginning.
const NAME: usize = 48;

/// The whole view. `color` where a terminal shows it.
pub fn render(snapshot: &Snapshot, color: bool) -> String {
    let mut out = String::new();
    for (index, target) in snapshot.targets.iter().enumerate() {
        if index > 0 {
            out.push('\n');
        }
        heading(&mut out, target, color);
        if let Some(sched) = &target.sched {
            run_queue(&mut out, sched);
        }
        if !target.listeners.is_empty() {
            accept_queue(&mut out, &target.listeners);
        }
        if let Some(tasks) = &target.tasks {
            self::tasks(&mut out, tasks);
            sampled(&mut out, target);
        }
    }
    let lost: Vec<String> =
        snapshot.profiler.lost.iter().filter(|(_, n)| *n > 0).map(|(reason, n)| format!("{reason} {n}")).collect();
    if !lost.is_empty() {
        let _ = writeln!(out, "\nlost  {}", lost.join(", "));
    }
    out
}

fn heading(out: &mut String, target: &TargetSnapshot, color: bool) {
    let (bold, plain) = if color { ("\x1b[1m", "\x1b[0m") } else { ("", "") };
    let version = target.runtime_version.as_deref().map_or(String::new(), |version| format!(" {version}"));
    let threads = target.threads.map_or(String::new(), |threads| format!(", {threads} threads"));
    let state = if target.running { "" } else { ", ended" };
    let process: String = target.process.chars().filter(|c| !c.is_control()).collect();
    let _ = writeln!(out, "{bold}{process}{plain} (pid {}, {}{version}{threads}{state})", target.pid, target.runtime);
}

fn run_queue(out: &mut String, sched: &SchedSnapshot) {
    let wait = sched.all_run_queue();
    let _ = writeln!(
        out,
        "  run queue     wait p50 {}  p99 {}   switches {} voluntary, {} involuntary",
        quantile(&wait, 0.5),
        quantile(&wait, 0.99),
        sched.voluntary_switches,
        sched.involuntary_switches()
    );
}

fn accept_queue(out: &mut String, listeners: &[ListenerSnapshot]) {
    let number = |value: Option<u64>| value.map_or_else(|| "-".to_owned(), |value| value.to_string());
    let mut rows =
        vec![["accept queue", "now", "limit", "accepted", "overflows", "wait p50", "p99"].map(str::to_owned)];
    for listener in listeners {
        let wait = |q| listener.wait.as_ref().map_or_else(|| "-".to_owned(), |wait| quantile(wait, q));
        rows.push([
            listener.listener.clone(),
            number(listener.length),
            number(listener.limit),
            number(listener.accepted),
            number(listener.overflows),
            wait(0.5),
            wait(0.99),
        ]);
    }
    table(out, &rows);
}

fn tasks(out: &mut String, tasks: &TasksSnapshot) {
    let header = ["task", "spawned", "alive", "completed", "cancelled", "panicked", "lifetime p50", "p99"];
    let mut rows = vec![header.map(str::to_owned)];
    let mut types: Vec<_> = tasks.types.iter().collect();
    types.sort_by(|a, b| b.spawned.cmp(&a.spawned).then_with(|| a.name.cmp(&b.name)));
    for kind in types.iter().take(TYPES) {
        let lifetime = |q| kind.lifetime.as_ref().map_or_else(|| "-".to_owned(), |lifetime| quantile(lifetime, q));
        // A task whose outcome could not be told has ended all the same.
        let ended = |outcome: Outcome| kind.completed[outcome as usize];
        rows.push([
            shortened(&kind.name),
            kind.spawned.to_string(),
            kind.alive.to_string(),
            (ended(Outcome::Completed) + ended(Outcome::Unknown)).to_string(),
            ended(Outcome::Cancelled).to_string(),
            ended(Outcome::Panicked).to_string(),
            lifetime(0.5),
            lifetime(0.99),
        ]);
    }
    table(out, &rows);
    if let Some(more) = types.len().checked_sub(TYPES).filter(|more| *more > 0) {
        let _ = writeln!(out, "  and {more} more");
    }
}

/// Says what is a sample, and what it costs.
fn sampled(out: &mut String, target: &TargetSnapshot) {
    let Some(budget) = &target.budget else { return };
    let cost = budget.cost_share.map_or_else(|| "-".to_owned(), |share| format!("{:.1} %", share * 100.0));
    let _ = writeln!(out, "  probing costs {cost} of its CPU time, the budget is {}", budget.budget);
    for tier in budget.tiers.iter().filter(|tier| tier.mode != "continuous") {
        let what = if tier.tier == "lifecycle" { "spawned, alive and ended are samples" } else { "polls are samples" };
        let _ = writeln!(out, "  {what}, of {:.1} % of the time: {}", tier.coverage * 100.0, budget.why);
    }
}

/// The first column to the left, the others to the right, each as wide as its widest cell.
fn table<const N: usize>(out: &mut String, rows: &[[String; N]]) {
    let widths = widths(rows);
    for row in rows {
        let _ = write!(out, "  {:<width$}", row[0], width = widths[0]);
        for (cell, width) in row.iter().zip(widths).skip(1) {
            let _ = write!(out, "  {cell:>width$}");
        }
        out.push('\n');
    }
}

/// The width of each column, in characters: that of its widest cell.
pub(super) fn widths<const N: usize>(rows: &[[String; N]]) -> [usize; N] {
    std::array::from_fn(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default())
}

fn shortened(name: &str) -> String {
    let length = name.chars().count();
    if length <= NAME {
        return name.to_owned();
    }
    std::iter::once('…').chain(name.chars().skip(length - NAME + 1)).collect()
}

fn quantile(histogram: &Histogram, q: f64) -> String {
    histogram.quantile(q).map_or_else(|| "-".to_owned(), duration)
}

/// Three significant digits in the largest fitting unit.
pub fn duration(ns: u64) -> String {
    let units = [("s", 1e9), ("ms", 1e6), ("µs", 1e3)];
    let value = ns as f64;
    let Some((unit, scale)) = units.into_iter().find(|(_, scale)| value >= *scale) else { return format!("{ns} ns") };
    let value = value / scale;
    let decimals = if value >= 100.0 {
        0
    } else if value >= 10.0 {
        1
    } else {
        2
    };
    format!("{value:.decimals$} {unit}")
}

#[cfg(test)]
mod tests;
