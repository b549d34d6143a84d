//! The neutral events that runtime adapters make of raw records, and that the model applies. Never a runtime's name.

/// What happened to a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskEvent {
    /// A task was created.
    Spawned {
        /// Which task.
        task: TaskRef,
        /// Its type, as the adapter numbers it.
        kind: TypeId,
        /// Who spawned it.
        parent: Parent,
    },
    /// A task lives, and was not seen to be spawned: it is older than the profiler, most likely.
    Found {
        /// Which task.
        task: TaskRef,
        /// Its type, as the adapter numbers it.
        kind: TypeId,
    },
    /// A task ended.
    Completed {
        /// Which task.
        task: TaskRef,
        /// Its type, as the adapter numbers it.
        kind: TypeId,
        /// How it ended.
        outcome: Outcome,
    },
    /// A task is gone with the process that it was in: it has not ended by itself.
    Gone {
        /// Which task.
        task: TaskRef,
    },
}

/// A task as the target names it: an address, which is reused, and the runtime's id, which is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TaskRef {
    /// Address in the target.
    pub address: u64,
    /// The runtime's id; `None` where it has none.
    pub id: Option<u64>,
}

/// Number of a task type: an index into [`crate::runtime::Plan::types`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TypeId(pub u32);

/// Who spawned a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parent {
    /// It could not be told.
    Unknown,
    /// No task: the thread was not polling any.
    None,
    /// The task with this id.
    Id(u64),
    /// The task that lives at this address.
    Address(u64),
}

/// How a task ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// It returned.
    Completed,
    /// It was cancelled before it returned.
    Cancelled,
    /// It panicked.
    Panicked,
    /// It ended, and how could not be told.
    Unknown,
}

impl Outcome {
    /// All outcomes.
    pub const ALL: [Outcome; 4] = [Outcome::Completed, Outcome::Cancelled, Outcome::Panicked, Outcome::Unknown];

    /// The value of the `outcome` label.
    pub const fn label(self) -> &'static str {
        match self {
            Outcome::Completed => "completed",
            Outcome::Cancelled => "cancelled",
            Outcome::Panicked => "panicked",
            Outcome::Unknown => "unknown",
        }
    }
}

/// A thread was found on a CPU when the sampling clock ticked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuSample {
    /// Which thread.
    pub tid: u32,
    /// Times that the thread went to sleep since it began.
    pub sleeps: u64,
    /// CPU time of the thread since it began, nanoseconds; may lag by a tick of the scheduler.
    pub cpu_ns: u64,
    /// What the sample stands for, nanoseconds of CPU time.
    pub period_ns: u64,
    /// What the thread itself says that it polls.
    pub current: Current,
    /// The type whose poll is innermost on the thread's stack, if any is; `None` where no stack was copied.
    pub stack: Option<Option<TypeId>>,
}

/// What a thread says that it polls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Current {
    /// It does not say.
    Unknown,
    /// No task.
    None,
    /// The task with this id.
    Id(u64),
}
