//! Reads what a target's runtime says of itself from its memory: at the attach for the tasks that are there already,
//! then now and then. Never a layout.

use std::collections::HashSet;
use std::sync::Arc;

use crate::clock;
use crate::event::{TaskRef, TypeId};
use crate::model::snapshot::RuntimeSnapshot;
use crate::model::task::TypeInfo;
use crate::runtime::{Activity, Effort, FoundTask, Walk, Walked};
use crate::status::ProbeState;
use crate::target::memory::{MemoryError, ProcessMemory};

/// What one go may take: nothing else gets its turn meanwhile.
const GO_NS: u64 = 40_000_000;
/// Between two goes of a walk through many tasks.
const BREATH_NS: u64 = 10_000_000;
/// A walk that took longer rests ten times as long as it walks.
const LONG_NS: u64 = 5_000_000_000;
/// What looking for the runtimes may take at the attach.
const FIRST_SEARCH_NS: u64 = 1_000_000_000;
/// What looking for the runtimes may take later.
const LATER_SEARCH_NS: u64 = 160_000_000;
/// The least time between two walks.
const PAUSE_NS: u64 = 1_000_000_000;
/// After a walk, so many times the time that it took pass without one: two per cent at most are spent on it.
const REST: u64 = 50;
/// More tasks than that are not counted one by one at a scrape: the totals must do.
const MOST_TASKS: u64 = 50_000;
/// More tasks than that are not looked for at the attach.
const MOST_FOUND: u64 = 10_000_000;

/// Which tasks may be there that are older than the probes, and were not handed over yet.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Search {
    /// Any.
    All,
    /// Those that are held.
    Held,
    /// None.
    Done,
}

/// Walks one process.
pub(super) struct Walker {
    walk: Box<dyn Walk>,
    memory: ProcessMemory,
    /// The types, which have names.
    types: Arc<[TypeInfo]>,
    /// Not before.
    next_ns: u64,
    search: Search,
    /// Most runtimes that were found at once.
    runtimes: usize,
    /// Tasks that were being polled when they were read, and were not handed over: a task that ends is read as polled
    /// until just after the probe has reported its end. Whoever is still there at the next walk was not ending.
    held: HashSet<TaskRef>,
    /// The same, met by the walk that goes on.
    met: Vec<TaskRef>,
    /// What the walk that goes on has taken, nanoseconds.
    spent_ns: u64,
    /// Whether the last walk goes on.
    goes_on: bool,
    /// What was read last.
    pub figures: Option<RuntimeSnapshot>,
    /// How it stands: a row of the status.
    pub row: (ProbeState, String),
}

impl Walker {
    pub fn new(walk: Box<dyn Walk>, pid: u32, types: Arc<[TypeInfo]>) -> Walker {
        let row = (ProbeState::Attached, "from the runtime's memory, at the next scrape".to_owned());
        Walker {
            walk,
            memory: ProcessMemory { pid },
            types,
            next_ns: 0,
            search: Search::All,
            runtimes: 0,
            held: HashSet::new(),
            met: Vec::new(),
            spent_ns: 0,
            goes_on: false,
            figures: None,
            row,
        }
    }

    /// Whether tasks are still looked for, and it is time to.
    pub fn is_wanted(&self, now_ns: u64) -> bool {
        self.search != Search::Done && now_ns >= self.next_ns
    }

    /// Whether the last walk is not done, and will go on.
    pub fn goes_on(&self) -> bool {
        self.goes_on
    }

    /// Births were not seen for a while, and are again: all tasks that are there are to be handed over once more.
    pub fn search_again(&mut self) {
        (self.search, self.next_ns) = (Search::All, 0);
        (self.held, self.met, self.spent_ns, self.goes_on) = (HashSet::new(), Vec::new(), 0, false);
        self.walk.restart();
    }

    /// Walks until all tasks that are there were handed to `found`, or time is up; then it is for later walks to go on.
    pub fn first(&mut self, found: &mut dyn FnMut(&[FoundTask])) {
        let begin_ns = clock::monotonic_ns();
        let mut search_ns = FIRST_SEARCH_NS;
        let mut deadline_ns = begin_ns + GO_NS;
        while self.search == Search::All {
            self.once(self.effort(deadline_ns, MOST_FOUND, search_ns), found);
            if search_ns > 0 {
                // Looking for the runtimes is not the tasks' time.
                (search_ns, deadline_ns) = (0, clock::monotonic_ns() + GO_NS);
            }
            let gives_up = self.row.0 != ProbeState::Attached || self.figures.as_ref().is_none_or(|f| f.runtimes == 0);
            if gives_up || clock::monotonic_ns() >= deadline_ns {
                break;
            }
        }
        self.rest(begin_ns);
    }

    /// Walks, if it is time to.
    pub fn later(&mut self, found: &mut dyn FnMut(&[FoundTask])) {
        let begin_ns = clock::monotonic_ns();
        if begin_ns < self.next_ns {
            return;
        }
        let most_tasks = if self.search == Search::Done { MOST_TASKS } else { MOST_FOUND };
        self.once(self.effort(begin_ns + GO_NS, most_tasks, LATER_SEARCH_NS), found);
        self.rest(begin_ns);
    }

    fn effort(&self, deadline_ns: u64, most_tasks: u64, search_ns: u64) -> Effort {
        let goes_on = self.search != Search::Done;
        Effort { deadline_ns, most_tasks, goes_on, search_ns, now_ns: clock::monotonic_ns }
    }

    fn rest(&mut self, begin_ns: u64) {
        let now_ns = clock::monotonic_ns();
        let took_ns = now_ns - begin_ns;
        let pause_ns = match self.goes_on {
            true if self.spent_ns < LONG_NS => BREATH_NS,
            true => 10 * took_ns,
            false => PAUSE_NS.max(REST * took_ns),
        };
        self.next_ns = now_ns + pause_ns;
    }

    fn once(&mut self, effort: Effort, found: &mut dyn FnMut(&[FoundTask])) {
        let begin_ns = clock::monotonic_ns();
        let (search, held) = (self.search, &mut self.held);
        let running = &mut self.met;
        let mut hand = |tasks: &[FoundTask]| {
            let wanted = |found: &&FoundTask| match (search, found.activity) {
                (Search::Done, _) => false,
                (Search::All, Activity::Running) if !held.contains(&found.task) => {
                    running.push(found.task);
                    false
                }
                (Search::All, _) => true,
                (Search::Held, _) => held.contains(&found.task),
            };
            let wanted: Vec<FoundTask> = tasks.iter().filter(wanted).copied().collect();
            if !wanted.is_empty() {
                found(&wanted);
            }
        };
        let walked = self.walk.walk(&self.memory, effort, &mut hand);
        self.goes_on = walked.as_ref().is_ok_and(|walked| walked.goes_on);
        self.spent_ns += clock::monotonic_ns() - begin_ns;
        let spent_ns = self.spent_ns;
        if !self.goes_on {
            self.spent_ns = 0;
            held.extend(std::mem::take(running));
        }
        match walked {
            Ok(walked) => self.take(&walked, begin_ns, spent_ns),
            // The kernel will say so.
            Err(MemoryError::Ended { .. }) => {
                self.row = (ProbeState::NotApplicable, "the process has ended".to_owned())
            }
            Err(e) => self.row = (ProbeState::Broken, e.to_string()),
        }
    }

    fn take(&mut self, walked: &Walked, begin_ns: u64, spent_ns: u64) {
        let name = |kind: TypeId| Some(self.types.get(kind.0 as usize)?.name.clone());
        let tally = walked.tasks.as_ref().ok();
        self.figures = Some(RuntimeSnapshot {
            read_ns: begin_ns,
            runtimes: walked.runtimes.len() as u64,
            workers: walked.sum(|totals| totals.workers),
            busy_ns: walked.sum(|totals| totals.busy_ns),
            queues: queues(walked),
            alive: walked.alive(),
            spawned: walked.spawned,
            runnable: tally.map(|tally| tally.runnable),
            by_type: tally.map(|tally| {
                let mut counts: Vec<_> =
                    tally.by_type.iter().filter_map(|&(kind, count)| Some((name(kind)?, count))).collect();
                counts.sort_unstable();
                counts
            }),
        });
        // The tasks of a runtime that was not found before were not handed over either, whatever was walked until now.
        let is_first = self.runtimes == 0;
        let grown = walked.runtimes.len() > self.runtimes;
        self.runtimes = self.runtimes.max(walked.runtimes.len());
        let took_us = spent_ns / 1000;
        let detail = match &walked.tasks {
            Ok(tally) => {
                self.search = match self.search {
                    Search::Held | Search::Done if grown && !is_first => Search::All,
                    Search::All if !self.held.is_empty() => Search::Held,
                    _ => Search::Done,
                };
                if self.search == Search::Done {
                    self.held = HashSet::new();
                }
                let moving = if tally.consistent { "" } else { ", which changed meanwhile" };
                let (ms, us) = (took_us / 1000, took_us % 1000);
                format!("{} tasks in {ms}.{us:03} ms{moving}, from the runtime's memory", tally.alive())
            }
            Err(_) if walked.goes_on => {
                let of = walked.alive().map(|alive| format!(" of {alive}")).unwrap_or_default();
                format!("{}{of} tasks so far, from the runtime's memory: the walk goes on", walked.handed)
            }
            Err(why) => format!("totals from the runtime's memory; {why}"),
        };
        self.row = (ProbeState::Attached, detail);
    }
}

/// Lengths of the queues that are known, by kind.
fn queues(walked: &Walked) -> Vec<(&'static str, u64)> {
    let depths = [
        ("local", walked.sum(|totals| totals.local_queue)),
        ("injection", walked.sum(|totals| totals.injection_queue)),
        ("blocking", walked.sum(|totals| totals.blocking_queue)),
    ];
    depths.into_iter().filter_map(|(queue, depth)| Some((queue, depth?))).collect()
}
