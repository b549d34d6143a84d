//! Tasks of a target: by type, their polls, who spawned whom.

use crate::event::{Outcome, TypeId};
use crate::histogram::Histogram;

/// The tasks of one target.
#[derive(Clone, Debug, Default)]
pub struct TasksSnapshot {
    /// Per type, in the order of first sight.
    pub types: Vec<TaskTypeSnapshot>,
    /// Who spawned whom: (parent, child, spawns). Indices into `types`.
    pub edges: Vec<Edge>,
    /// Tasks that are tracked just now, over all types.
    pub tracked: u64,
    /// Tasks that were not tracked since the cap was reached.
    pub untracked: u64,
    /// CPU time outside of the application's tasks; `None` where CPU time is not sampled.
    pub cpu: Option<CpuSnapshot>,
    /// Tasks whose end was not seen: another task was found to live at their address. They left `alive`, and are not
    /// among the `completed`.
    pub end_unseen: u64,
    /// The last polls that were slow, oldest first.
    pub slow_polls: Vec<SlowPoll>,
    /// Births and ends were seen all the time: counts are totals. Otherwise they are samples.
    pub lifecycle_continuous: bool,
    /// The same of polls; `None` where they cannot be seen at all.
    pub polls_continuous: Option<bool>,
}

/// Counts of one type of task.
#[derive(Clone, Debug, Default)]
pub struct TaskTypeSnapshot {
    /// Which type of its target's plan.
    pub kind: TypeId,
    /// Short name.
    pub name: String,
    /// Full name, where known.
    pub full_name: Option<String>,
    /// Other names that its code may have.
    pub aliases: Vec<String>,
    /// Whether its tasks are blocking closures.
    pub blocking: bool,
    /// Whether the runtime itself spawns it.
    pub internal: bool,
    /// Spawns that were seen.
    pub spawned: u64,
    /// Ends that were seen, by outcome, in the order of [`Outcome::ALL`].
    pub completed: [u64; Outcome::ALL.len()],
    /// Of the ends, those of tasks whose spawn was not seen, and that were not found before.
    pub unseen_spawns: u64,
    /// Tasks that were found to live, and were not seen to be spawned: they are older than the profiler.
    pub found: u64,
    /// Tasks that were seen to be spawned or found to live, and were not seen to end.
    pub alive: u64,
    /// Lifetimes of the tasks that were seen from spawn to end, nanoseconds; `None` while there is no such task.
    pub lifetime: Option<Histogram>,
    /// The last spawn: CLOCK_MONOTONIC, nanoseconds.
    pub last_spawn_ns: Option<u64>,
    /// Polls and wakes; `None` where they are not measured.
    pub polls: Option<PollSnapshot>,
    /// Tasks that were woken more than a second ago and not polled since; `None` where that is not known.
    pub overdue: Option<u64>,
    /// For how long the first of them waits, nanoseconds.
    pub overdue_ns: Option<u64>,
    /// Polls that have not ended and are slow already; `None` where that is not known.
    pub unfinished: Option<UnfinishedPolls>,
    /// Sampled CPU time, nanoseconds; `None` where it is not sampled.
    pub cpu_ns: Option<u64>,
    /// Times that such a task was found to hold its thread; `None` where there was none, or it is not sampled.
    pub long_runs: Option<LongRunSnapshot>,
    /// Where it is spawned, the most frequent first; empty where that is not known.
    pub spawn_sites: Vec<SpawnSiteSnapshot>,
}

/// A place where tasks of a type are spawned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpawnSiteSnapshot {
    /// For people and labels: `cart/src/http.rs:12`, or `in cart::serve` where the line is not known.
    pub name: String,
    /// In full.
    pub place: String,
    /// Whether it is a line, rather than a function or a file.
    pub exact: bool,
    /// Spawns that were found to be from there, in a sample of all; 0 where only the binary tells of it.
    pub sampled: u64,
}

/// Spawns of one type by one parent type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Edge {
    /// The parent.
    pub parent: EdgeParent,
    /// Index of the child's type in [`TasksSnapshot::types`].
    pub child: usize,
    /// Number of spawns.
    pub spawns: u64,
}

/// The parent's side of an [`Edge`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum EdgeParent {
    /// Index of a type in [`TasksSnapshot::types`].
    Type(usize),
    /// Spawned by no task.
    None,
    /// Spawned by a task that is not tracked (it was alive before the profiler attached), or it could not be told.
    Unknown,
}

/// Polls and wakes of one type of task. Times in nanoseconds.
#[derive(Clone, Debug)]
pub struct PollSnapshot {
    /// Polls.
    pub polls: u64,
    /// Time in polls, without polls of other tasks within them.
    pub busy_ns: u64,
    /// Durations.
    pub poll: Histogram,
    /// Waits from the wake to the poll; `None` where wakes are not seen.
    pub delay: Option<Histogram>,
    /// Waits from the spawn to the first poll; `None` where spawns are not seen.
    pub first_delay: Option<Histogram>,
    /// Wakes by value, by reference, and by the task itself; `None` where they are not seen.
    pub wakes: Option<[u64; 3]>,
    /// Polls that were slow.
    pub slow: u64,
    /// The longest poll.
    pub slowest_ns: u64,
}

impl PollSnapshot {
    /// Adds what was measured of other tasks of the same name.
    pub fn absorb(&mut self, other: &PollSnapshot) {
        self.polls += other.polls;
        self.busy_ns += other.busy_ns;
        self.poll.merge(&other.poll);
        for (into, from) in [(&mut self.delay, &other.delay), (&mut self.first_delay, &other.first_delay)] {
            match (into, from) {
                (Some(into), Some(from)) => into.merge(from),
                (into @ None, Some(from)) => *into = Some(from.clone()),
                _ => {}
            }
        }
        if let Some(wakes) = other.wakes {
            let sum = self.wakes.get_or_insert_default();
            sum.iter_mut().zip(wakes).for_each(|(into, from)| *into += from);
        }
        self.slow += other.slow;
        self.slowest_ns = self.slowest_ns.max(other.slowest_ns);
    }
}

/// One poll that was slow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlowPoll {
    /// When it ended: CLOCK_MONOTONIC, nanoseconds.
    pub time_ns: u64,
    /// Type of the task.
    pub kind: TypeId,
    /// How long it held its thread, nanoseconds.
    pub duration_ns: u64,
    /// The thread.
    pub tid: u32,
}

/// Polls of one type of task that have not ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UnfinishedPolls {
    /// How many.
    pub count: u64,
    /// How long the longest has held its thread, nanoseconds.
    pub longest_ns: u64,
    /// The thread of the longest.
    pub tid: u32,
}

impl UnfinishedPolls {
    /// Takes others in.
    pub fn add(&mut self, other: UnfinishedPolls) {
        if other.longest_ns > self.longest_ns {
            (self.longest_ns, self.tid) = (other.longest_ns, other.tid);
        }
        self.count += other.count;
    }
}

/// Sampled CPU time that is no task's of the application. Nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuSnapshot {
    /// In the runtime itself.
    pub scheduler_ns: u64,
    /// In neither tasks nor the runtime, as far as can be told.
    pub other_ns: u64,
    /// In tasks whose type could not be told.
    pub unknown_ns: u64,
}

/// Tasks of one type that held a thread from sample to sample. Lengths are sampled: each was at least so long.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LongRunSnapshot {
    /// How often.
    pub count: u64,
    /// The longest, nanoseconds.
    pub longest_ns: u64,
    /// When the last one was seen last: CLOCK_MONOTONIC, nanoseconds.
    pub last_ns: u64,
    /// Length of the last one, nanoseconds.
    pub last_length_ns: u64,
    /// The runtime's id of its task.
    pub last_id: u64,
    /// Its thread.
    pub last_tid: u32,
}
