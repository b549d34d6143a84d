//! What was observed of one target lately: a few figures of each snapshot. Never what they mean.

use std::collections::VecDeque;

use rustc_hash::FxHashMap;

use crate::model::snapshot::{LongRunSnapshot, TargetSnapshot, TaskTypeSnapshot, UnfinishedPolls};

/// Observations that are kept.
const KEPT: usize = 32;
/// Types of which figures are kept: a program may have thousands.
const MAX_TYPES: usize = 1_000;

/// The observations of one target, and the names in them.
#[derive(Default)]
pub(super) struct History {
    observations: VecDeque<Observation>,
    numbers: FxHashMap<String, usize>,
    /// Names of the types, by number.
    pub(super) names: Vec<String>,
}

/// What one snapshot said of a target. What it did not say is `None`.
#[derive(Clone, Debug, Default)]
pub(super) struct Observation {
    /// When, nanoseconds.
    pub(super) time_ns: u64,
    /// Time of its threads on a CPU, nanoseconds.
    pub(super) on_cpu_ns: Option<u64>,
    /// Waits of its threads for a CPU that have ended, nanoseconds.
    pub(super) run_queue_ns: Option<u64>,
    /// Figures of its types, by number.
    pub(super) types: Vec<Figures>,
    /// Its listening sockets.
    pub(super) listeners: Vec<Listener>,
}

/// Figures of one type of the application's tasks.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Figures {
    /// Whether its tasks are blocking closures.
    pub(super) blocking: bool,
    /// Tasks that were spawned.
    pub(super) spawned: u64,
    /// Tasks that have ended.
    pub(super) ended: u64,
    /// Tasks that live.
    pub(super) alive: u64,
    /// Polls.
    pub(super) polls: Option<u64>,
    /// Wakes of a task by itself.
    pub(super) self_wakes: Option<u64>,
    /// Polls that were slow.
    pub(super) slow: Option<u64>,
    /// The slowest poll, nanoseconds.
    pub(super) slowest_ns: Option<u64>,
    /// Tasks that were woken and are not polled.
    pub(super) overdue: Option<u64>,
    /// How long the first of them waits, nanoseconds.
    pub(super) overdue_ns: Option<u64>,
    /// Polls that have not ended and are slow already.
    pub(super) unfinished: Option<UnfinishedPolls>,
    /// Tasks that held a thread, as samples show.
    pub(super) long_runs: Option<LongRunSnapshot>,
}

/// Figures of one listening socket.
#[derive(Clone, Debug)]
pub(super) struct Listener {
    pub(super) name: String,
    pub(super) length: Option<u64>,
    pub(super) limit: Option<u64>,
    pub(super) overflows: Option<u64>,
}

impl History {
    /// Takes an observation. One of another process that has the same id begins a new history.
    pub(super) fn observe(&mut self, time_ns: u64, target: &TargetSnapshot) {
        let mut now = Observation {
            time_ns,
            on_cpu_ns: target.sched.as_ref().map(|sched| sched.on_cpu_ns),
            run_queue_ns: target.sched.as_ref().map(|sched| sched.run_queue_ns()),
            types: vec![Figures::default(); self.names.len()],
            listeners: Vec::new(),
        };
        for kind in target.tasks.iter().flat_map(|tasks| &tasks.types).filter(|kind| !kind.internal) {
            if let Some(number) = self.number(&kind.name) {
                now.types.resize(self.names.len(), Figures::default());
                now.types[number].add(kind);
            }
        }
        now.listeners.extend(target.listeners.iter().map(|listener| Listener {
            name: listener.listener.clone(),
            length: listener.length,
            limit: listener.limit,
            overflows: listener.overflows,
        }));
        if self.observations.back().is_some_and(|last| now.is_of_another(last)) {
            self.observations.clear();
        }
        if self.observations.len() == KEPT {
            self.observations.pop_front();
        }
        self.observations.push_back(now);
    }

    fn number(&mut self, name: &str) -> Option<usize> {
        if let Some(&number) = self.numbers.get(name) {
            return Some(number);
        }
        let number = self.names.len();
        if number >= MAX_TYPES {
            return None;
        }
        self.numbers.insert(name.to_owned(), number);
        self.names.push(name.to_owned());
        Some(number)
    }

    /// The last observation.
    pub(super) fn now(&self) -> Option<&Observation> {
        self.observations.back()
    }

    /// The last observation, and the first of the `window_ns` before it; `None` while there is but one.
    pub(super) fn window(&self, window_ns: u64) -> Option<(&Observation, &Observation)> {
        let now = self.now()?;
        let first = self.observations.iter().find(|o| now.time_ns - o.time_ns <= window_ns)?;
        (first.time_ns < now.time_ns).then_some((first, now))
    }

    /// The last `count` observations, the oldest first; `None` while there are fewer.
    pub(super) fn last(&self, count: usize) -> Option<impl Iterator<Item = &Observation> + Clone> {
        Some(self.observations.range(self.observations.len().checked_sub(count)?..))
    }
}

impl Observation {
    /// Figures of a type, by number; none of a type that was not seen yet.
    pub(super) fn figures(&self, number: usize) -> Figures {
        self.types.get(number).copied().unwrap_or_default()
    }

    /// Seconds since an earlier observation.
    pub(super) fn seconds_since(&self, earlier: &Observation) -> f64 {
        (self.time_ns - earlier.time_ns) as f64 / 1e9
    }

    /// Whether totals are less than they were, which those of one process never are.
    fn is_of_another(&self, earlier: &Observation) -> bool {
        self.on_cpu_ns < earlier.on_cpu_ns
            || earlier.types.iter().zip(&self.types).any(|(before, now)| now.spawned < before.spawned)
    }
}

impl Figures {
    /// Types of the same name are one.
    fn add(&mut self, kind: &TaskTypeSnapshot) {
        fn sum(to: &mut Option<u64>, value: Option<u64>) {
            *to = to.map_or(value, |sum| Some(sum + value.unwrap_or_default()));
        }
        self.blocking |= kind.blocking;
        self.spawned += kind.spawned;
        self.ended += kind.completed.iter().sum::<u64>();
        self.alive += kind.alive;
        let polls = kind.polls.as_ref();
        sum(&mut self.polls, polls.map(|polls| polls.polls));
        sum(&mut self.self_wakes, polls.and_then(|polls| Some(polls.wakes?[2])));
        sum(&mut self.slow, polls.map(|polls| polls.slow));
        self.slowest_ns = self.slowest_ns.max(polls.map(|polls| polls.slowest_ns));
        sum(&mut self.overdue, kind.overdue);
        self.overdue_ns = self.overdue_ns.max(kind.overdue_ns);
        if let Some(unfinished) = kind.unfinished {
            self.unfinished.get_or_insert_default().add(unfinished);
        }
        if let Some(runs) = &kind.long_runs {
            let before = self.long_runs.unwrap_or_default();
            let last = if runs.last_ns >= before.last_ns { *runs } else { before };
            self.long_runs = Some(LongRunSnapshot {
                count: before.count + runs.count,
                longest_ns: before.longest_ns.max(runs.longest_ns),
                ..last
            });
        }
    }
}
