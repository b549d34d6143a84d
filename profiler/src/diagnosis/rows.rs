//! The rows: what is looked for, with which threshold, and how it is said.

use super::history::{Figures, History, Listener, Observation};
use super::{Found, Row};
use crate::model::snapshot::{Evidence, Severity};

/// All rows.
pub(super) const ROWS: &[Row] = &[
    Row { name: "task_blocks_worker", severity: Severity::Warning, check: task_blocks_worker },
    Row { name: "self_wake_storm", severity: Severity::Warning, check: self_wake_storm },
    Row { name: "never_polled_after_wake", severity: Severity::Critical, check: never_polled_after_wake },
    Row { name: "task_leak", severity: Severity::Warning, check: task_leak },
    Row { name: "workers_starved", severity: Severity::Warning, check: workers_starved },
    Row { name: "accept_queue_full_runtime_idle", severity: Severity::Critical, check: accept_queue_full_idle },
    Row { name: "accept_queue_full_runtime_busy", severity: Severity::Critical, check: accept_queue_full_busy },
];

/// Over which rates and shares are taken, nanoseconds.
const WINDOW_NS: u64 = 10_000_000_000;
/// A poll that holds its worker longer than this blocks it, nanoseconds.
const BLOCKED_NS: u64 = 10_000_000;
/// Wakes by oneself per second from which on they are a storm.
const STORM_PER_SECOND: f64 = 10_000.0;
/// Wakes by oneself per poll from which on a task does little else.
const STORM_PER_POLL: f64 = 0.5;
/// Observations over which the tasks of a type must never become fewer to be a leak.
const LEAK_OBSERVATIONS: usize = 20;
/// Tasks by which they must have become more.
const LEAK_GROWTH: u64 = 100;
/// The share of the spawned that may have ended meanwhile.
const LEAK_ENDED: f64 = 0.5;
/// The share of the wait in the time that threads wanted a CPU from which on they starve.
const STARVED: f64 = 0.2;
/// Time that threads must have wanted a CPU in the window, nanoseconds.
const STARVED_LEAST_NS: u64 = 1_000_000_000;
/// CPUs that a runtime uses or waits for that is not idle.
const IDLE_CPUS: f64 = 0.5;

fn seconds(ns: u64) -> Evidence {
    Evidence::Seconds(ns as f64 / 1e9)
}

/// By how much a total has grown: one that was not known before has begun at 0 since.
fn grown(before: Option<u64>, now: Option<u64>) -> Option<u64> {
    Some(now?.saturating_sub(before.unwrap_or_default()))
}

/// Calls `check` with each type: its name, and its figures at both ends of the window.
fn each_type(history: &History, check: impl Fn(&str, Figures, Figures, f64) -> Option<Found>) -> Vec<Found> {
    let Some((first, now)) = history.window(WINDOW_NS) else { return Vec::new() };
    let types = history.names.iter().enumerate();
    let seconds = now.seconds_since(first);
    types.filter_map(|(number, name)| check(name, first.figures(number), now.figures(number), seconds)).collect()
}

/// Polls that were measured or sampled to hold their thread.
fn task_blocks_worker(history: &History) -> Vec<Found> {
    each_type(history, |name, before, now, _| {
        if now.blocking {
            return None;
        }
        // What goes on is more urgent than what is over.
        if let Some(polls) = now.unfinished.filter(|polls| polls.longest_ns >= BLOCKED_NS) {
            let held = polls.longest_ns as f64 / 1e9;
            let summary = format!("a task of {name} has held thread {} for {held:.2} s, and still does", polls.tid);
            let evidence = vec![
                ("unfinished_polls", Evidence::Count(polls.count)),
                ("longest_seconds", seconds(polls.longest_ns)),
                ("tid", Evidence::Count(polls.tid.into())),
            ];
            return Some(Found { subject: name.to_owned(), summary, evidence });
        }
        let slow = grown(before.slow, now.slow).filter(|slow| *slow > 0);
        if let (Some(slow), Some(slowest_ns)) = (slow, now.slowest_ns.filter(|ns| *ns >= BLOCKED_NS)) {
            let summary = format!("{slow} slow polls of {name}, the slowest so far of {} ms", slowest_ns / 1_000_000);
            let evidence = vec![("slow_polls", Evidence::Count(slow)), ("slowest_seconds", seconds(slowest_ns))];
            return Some(Found { subject: name.to_owned(), summary, evidence });
        }
        let (runs, before) = (now.long_runs?, before.long_runs.unwrap_or_default());
        // A run that goes on is counted once, and grows.
        if runs.count <= before.count && runs.last_ns <= before.last_ns {
            return None;
        }
        let summary =
            format!("a task of {name} held its thread for at least {} ms (sampled)", runs.last_length_ns / 1_000_000);
        let evidence = vec![
            ("long_runs_sampled", Evidence::Count(runs.count)),
            ("at_least_seconds", seconds(runs.last_length_ns)),
            ("longest_at_least_seconds", seconds(runs.longest_ns)),
            ("task_id", Evidence::Count(runs.last_id)),
            ("tid", Evidence::Count(runs.last_tid.into())),
        ];
        Some(Found { subject: name.to_owned(), summary, evidence })
    })
}

/// Tasks that wake themselves as they are polled, again and again.
fn self_wake_storm(history: &History) -> Vec<Found> {
    each_type(history, |name, before, now, window| {
        let wakes = grown(before.self_wakes, now.self_wakes)?;
        let polls = grown(before.polls, now.polls)?;
        let rate = wakes as f64 / window;
        if rate < STORM_PER_SECOND || (wakes as f64) < polls as f64 * STORM_PER_POLL {
            return None;
        }
        Some(Found {
            subject: name.to_owned(),
            summary: format!("tasks of {name} wake themselves {rate:.0} times a second"),
            evidence: vec![
                ("self_wakes", Evidence::Count(wakes)),
                ("polls", Evidence::Count(polls)),
                ("window_seconds", Evidence::Seconds(window)),
            ],
        })
    })
}

/// Tasks that were woken and that nobody polls.
fn never_polled_after_wake(history: &History) -> Vec<Found> {
    let Some(now) = history.now() else { return Vec::new() };
    let types = history.names.iter().enumerate();
    let found = types.filter_map(|(number, name)| {
        let figures = now.figures(number);
        let overdue = figures.overdue.filter(|overdue| *overdue > 0)?;
        let mut evidence = vec![("tasks", Evidence::Count(overdue))];
        let mut summary = format!("{overdue} tasks of {name} were woken and are not polled");
        if let Some(overdue_ns) = figures.overdue_ns {
            summary += &format!(", one since {:.1} s", overdue_ns as f64 / 1e9);
            evidence.push(("longest_seconds", seconds(overdue_ns)));
        }
        Some(Found { subject: name.clone(), summary, evidence })
    });
    found.collect()
}

/// Types whose tasks become more and more, and hardly end.
fn task_leak(history: &History) -> Vec<Found> {
    let Some(last) = history.last(LEAK_OBSERVATIONS) else { return Vec::new() };
    let (Some(first), Some(now)) = (last.clone().next(), history.now()) else { return Vec::new() };
    let types = history.names.iter().enumerate();
    let found = types.filter_map(|(number, name)| {
        let figures = |observation: &Observation| observation.figures(number);
        let (before, after) = (figures(first), figures(now));
        let growth = after.alive.saturating_sub(before.alive);
        let (spawned, ended) = (after.spawned.saturating_sub(before.spawned), after.ended.saturating_sub(before.ended));
        let grows = last.clone().zip(last.clone().skip(1)).all(|(a, b)| figures(a).alive <= figures(b).alive);
        // It must still grow: what has come to rest at a high level has been filled.
        let middle = figures(last.clone().nth(LEAK_OBSERVATIONS / 2)?);
        let goes_on = after.alive.saturating_sub(middle.alive) * 4 >= growth;
        if growth < LEAK_GROWTH || !grows || !goes_on || ended as f64 > spawned as f64 * LEAK_ENDED {
            return None;
        }
        let window = now.seconds_since(first);
        Some(Found {
            subject: name.clone(),
            summary: format!("{growth} more tasks of {name} live than {window:.0} s ago, and never fewer in between"),
            evidence: vec![
                ("alive", Evidence::Count(after.alive)),
                ("alive_before", Evidence::Count(before.alive)),
                ("spawned", Evidence::Count(spawned)),
                ("ended", Evidence::Count(ended)),
                ("window_seconds", Evidence::Seconds(window)),
            ],
        })
    });
    found.collect()
}

/// Threads that could run and get no CPU.
fn workers_starved(history: &History) -> Vec<Found> {
    let starved = || {
        let (first, now) = history.window(WINDOW_NS)?;
        let waited = grown(first.run_queue_ns, now.run_queue_ns)?;
        let ran = grown(first.on_cpu_ns, now.on_cpu_ns)?;
        let share = waited as f64 / (waited + ran) as f64;
        (waited + ran >= STARVED_LEAST_NS && share > STARVED).then(|| Found {
            subject: String::new(),
            summary: format!("its threads wait {:.0} % of the time in which they could run", share * 100.0),
            evidence: vec![
                ("run_queue_seconds", seconds(waited)),
                ("on_cpu_seconds", seconds(ran)),
                ("window_seconds", Evidence::Seconds(now.seconds_since(first))),
            ],
        })
    };
    starved().into_iter().collect()
}

/// Connections that nobody accepts although there is time for it.
fn accept_queue_full_idle(history: &History) -> Vec<Found> {
    accept_queue_full(history, |cpus| cpus < IDLE_CPUS)
}

/// Connections that are too many for what its threads have to do.
fn accept_queue_full_busy(history: &History) -> Vec<Found> {
    accept_queue_full(history, |cpus| cpus >= IDLE_CPUS)
}

/// Listeners whose queue is full, where threads use or wait for so many CPUs.
fn accept_queue_full(history: &History, wanted: fn(f64) -> bool) -> Vec<Found> {
    let Some((first, now)) = history.window(WINDOW_NS) else { return Vec::new() };
    let (ran, waited) = (grown(first.on_cpu_ns, now.on_cpu_ns), grown(first.run_queue_ns, now.run_queue_ns));
    let Some((ran, waited)) = ran.zip(waited) else { return Vec::new() };
    // Who waits for a CPU is not idle.
    let in_window = |ns: u64| ns as f64 / 1e9 / now.seconds_since(first);
    if !wanted(in_window(ran + waited)) {
        return Vec::new();
    }
    let cpus = in_window(ran);
    let found = now.listeners.iter().filter_map(|listener| {
        let before = first.listeners.iter().find(|before| before.name == listener.name);
        let is_full = |listener: &Listener| listener.length.zip(listener.limit).is_some_and(|(n, limit)| n >= limit);
        // Since when it was opened: of a listener that is new, nothing is known to be from this window.
        let dropped = before.and_then(|before| grown(Some(before.overflows?), listener.overflows));
        if !is_full(listener) && dropped.is_none_or(|dropped| dropped == 0) {
            return None;
        }
        let mut evidence = vec![("cpus_used", Evidence::Ratio(cpus))];
        evidence.extend(listener.length.map(|length| ("length", Evidence::Count(length))));
        evidence.extend(listener.limit.map(|limit| ("limit", Evidence::Count(limit))));
        evidence.extend(dropped.map(|dropped| ("overflows", Evidence::Count(dropped))));
        Some(Found {
            subject: listener.name.clone(),
            summary: format!("the accept queue of {} is full, and its threads use {cpus:.2} CPUs", listener.name),
            evidence,
        })
    });
    found.collect()
}
