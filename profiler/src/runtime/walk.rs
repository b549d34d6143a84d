//! What all runtimes share that keep lists of their tasks: a walk through a running process's memory, without a probe.
//! Never a runtime's layout, never the memory's source.

use crate::event::{TaskRef, TypeId};
use crate::target::memory::{Memory, MemoryError};

/// Walks the lists of one process's tasks. Remembers where they are.
pub trait Walk: Send {
    /// Reads the runtime's own totals and, within the effort, all tasks; those are handed to `found` in chunks. A task
    /// may be handed over twice.
    ///
    /// # Errors
    /// The memory cannot be read.
    fn walk(
        &mut self,
        memory: &dyn Memory,
        effort: Effort,
        found: &mut dyn FnMut(&[FoundTask]),
    ) -> Result<Walked, MemoryError>;

    /// Forgets a walk that was to be continued.
    fn restart(&mut self);
}

/// What a walk may cost.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// When it ends, whatever it has: in the time of `now_ns`.
    pub deadline_ns: u64,
    /// Lists that hold more tasks than this, all together, are not walked: only totals are read.
    pub most_tasks: u64,
    /// Whether a walk that is not done by the deadline is continued by the next one, rather than begun anew.
    pub goes_on: bool,
    /// So much later than the deadline may end what cannot be continued: looking for the runtimes, nanoseconds.
    pub search_ns: u64,
    /// The clock, nanoseconds.
    pub now_ns: fn() -> u64,
}

impl Effort {
    /// Whether the deadline has passed.
    pub fn is_over(&self) -> bool {
        (self.now_ns)() >= self.deadline_ns
    }

    /// The effort of looking for the runtimes.
    pub fn of_search(self) -> Effort {
        Effort { deadline_ns: self.deadline_ns.saturating_add(self.search_ns), ..self }
    }
}

/// A task that was alive when it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FoundTask {
    /// Just before it was read, nanoseconds of [`Effort::now_ns`].
    pub time_ns: u64,
    /// Which.
    pub task: TaskRef,
    /// Its type.
    pub kind: TypeId,
    /// What it was doing.
    pub activity: Activity,
}

/// What a task that lives is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Activity {
    /// It waits for something.
    Idle,
    /// It waits for a thread, in a queue of the runtime.
    Runnable,
    /// It is polled.
    Running,
    /// It was asked to cancel, and has not ended.
    Cancelled,
}

/// What one walk saw.
#[derive(Clone, Debug)]
pub struct Walked {
    /// The runtimes of the process that it found.
    pub runtimes: Vec<Totals>,
    /// Tasks that were spawned in all its runtimes, those among them that are gone; `None` where they do not say.
    pub spawned: Option<u64>,
    /// The tasks, counted one by one.
    ///
    /// Error: why not all of them were.
    pub tasks: Result<Tally, String>,
    /// Tasks that were handed over, by the walks that this one continues too.
    pub handed: u64,
    /// Whether the next walk continues this one.
    pub goes_on: bool,
}

impl Walked {
    /// Tasks that live in all runtimes, as they themselves say.
    pub fn alive(&self) -> Option<u64> {
        self.sum(|totals| totals.alive)
    }

    /// The sum of a total over all runtimes; `None` where one does not say, or there is none.
    pub fn sum(&self, of: impl Fn(&Totals) -> Option<u64>) -> Option<u64> {
        if self.runtimes.is_empty() {
            return None;
        }
        self.runtimes.iter().map(of).sum()
    }
}

/// What a runtime itself says of it. What was not found is `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Tasks that live.
    pub alive: Option<u64>,
    /// Tasks that were spawned since it was started.
    pub spawned: Option<u64>,
    /// Threads that run its tasks.
    pub workers: Option<u64>,
    /// Time that its workers were busy, in total, nanoseconds.
    pub busy_ns: Option<u64>,
    /// Tasks in the queues of single workers.
    pub local_queue: Option<u64>,
    /// Tasks in the queue that all workers share.
    pub injection_queue: Option<u64>,
    /// Closures that wait for a blocking thread.
    pub blocking_queue: Option<u64>,
}

/// Tasks that were counted one by one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// By type, those with tasks only.
    pub by_type: Vec<(TypeId, u64)>,
    /// Of all, those that wait for a thread.
    pub runnable: u64,
    /// Whether the runtimes' own totals equal this count, and were the same before and after.
    pub consistent: bool,
}

impl Tally {
    /// All tasks.
    pub fn alive(&self) -> u64 {
        self.by_type.iter().map(|(_, count)| count).sum()
    }
}
