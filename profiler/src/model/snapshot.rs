//! What exporters read: plain data, taken at one moment. Never the live table, never a label policy.

use profiler_common::histogram::Histogram;

use crate::event::Outcome;
use crate::status::TargetStatus;

/// Everything that is exported, at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// When it was taken: CLOCK_MONOTONIC, nanoseconds.
    pub time_ns: u64,
    /// Seconds since the epoch that correspond to monotonic time 0, to turn monotonic times into timestamps.
    pub epoch_offset_seconds: f64,
    /// The targets, those that have ended and are still retained among them.
    pub targets: Vec<TargetSnapshot>,
    /// The profiler itself.
    pub profiler: ProfilerSnapshot,
}

/// One target.
#[derive(Clone, Debug)]
pub struct TargetSnapshot {
    /// Process id.
    pub pid: u32,
    /// Name of the process (its comm).
    pub process: String,
    /// Runtime label: a runtime's name, or `none`.
    pub runtime: &'static str,
    /// The runtime's version, where known.
    pub runtime_version: Option<String>,
    /// False once it has ended.
    pub running: bool,
    /// Probes and signals, and their states.
    pub status: TargetStatus,
    /// Scheduling; `None` where not measured.
    pub sched: Option<SchedSnapshot>,
    /// Listening sockets; empty where it has none or they are not measured.
    pub listeners: Vec<ListenerSnapshot>,
    /// Tasks; `None` where not measured.
    pub tasks: Option<TasksSnapshot>,
    /// What the runtime itself says, read from its memory; `None` where that is not possible.
    pub figures: Option<RuntimeSnapshot>,
    /// Threads; `None` once the process has ended.
    pub threads: Option<u64>,
    /// Processes that are summed in this target: itself and its forked children.
    pub processes: Option<u64>,
}

/// Scheduling of a target. Durations in nanoseconds.
#[derive(Clone, Debug)]
pub struct SchedSnapshot {
    /// Voluntary switches.
    pub voluntary_switches: u64,
    /// Involuntary switches.
    pub involuntary_switches: u64,
    /// Time on a CPU, of spans that have not ended too.
    pub on_cpu_ns: u64,
    /// Time asleep, of spans that have not ended too.
    pub blocked_ns: u64,
    /// Wait from runnable to running.
    pub run_queue: Box<Histogram>,
    /// Uninterrupted time on a CPU.
    pub on_cpu: Box<Histogram>,
    /// Time asleep.
    pub blocked: Box<Histogram>,
}

/// One listening socket. Every field that was not measured is `None`.
#[derive(Clone, Debug)]
pub struct ListenerSnapshot {
    /// Local address, as `127.0.0.1:8080` or `[::1]:8080`; `#2` and so on is appended to the second and later
    /// socket that share an address (SO_REUSEPORT), in the order of their inodes.
    pub listener: String,
    /// Connections that wait now.
    pub length: Option<u64>,
    /// Most connections that may wait.
    pub limit: Option<u64>,
    /// Connections that the kernel dropped at this listener, since it was opened.
    pub overflows: Option<u64>,
    /// Connections that the target accepted since it is observed.
    pub accepted: Option<u64>,
    /// Queue length after each enqueue.
    pub depth: Option<Box<Histogram>>,
    /// Wait from established to accepted, nanoseconds.
    pub wait: Option<Box<Histogram>>,
}

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
    /// Tasks whose end was not seen: another task was found to live at their address. They left `alive`, and are not
    /// among the `completed`.
    pub end_unseen: u64,
}

/// What a runtime itself counts. What was not found in its memory, or not believed, is `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RuntimeSnapshot {
    /// When it was read: CLOCK_MONOTONIC, nanoseconds.
    pub read_ns: u64,
    /// Runtimes of the process.
    pub runtimes: u64,
    /// Threads that run tasks, over all runtimes.
    pub workers: Option<u64>,
    /// Time that they were busy, nanoseconds.
    pub busy_ns: Option<u64>,
    /// Lengths of the runtimes' queues, by kind.
    pub queues: Vec<(&'static str, u64)>,
    /// Tasks that live.
    pub alive: Option<u64>,
    /// Tasks that were spawned since the runtimes were started.
    pub spawned: Option<u64>,
    /// Tasks that wait for a thread; `None` where the lists of tasks were not walked.
    pub runnable: Option<u64>,
    /// Tasks that live, by the short names of their types; `None` where the lists of tasks were not walked.
    pub by_type: Option<Vec<(String, u64)>>,
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

/// Counts of one type of task.
#[derive(Clone, Debug)]
pub struct TaskTypeSnapshot {
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
    pub lifetime: Option<Box<Histogram>>,
    /// The last spawn: CLOCK_MONOTONIC, nanoseconds.
    pub last_spawn_ns: Option<u64>,
}

/// The profiler's own figures.
#[derive(Clone, Debug, Default)]
pub struct ProfilerSnapshot {
    /// Events decoded, by kind.
    pub events: Vec<(&'static str, u64)>,
    /// Events lost, by reason.
    pub lost: Vec<(&'static str, u64)>,
    /// Probe hits in targets, by probe.
    pub probe_hits: Vec<(&'static str, u64)>,
    /// Seconds that taking this snapshot took; `None` where that was not timed.
    pub snapshot_seconds: Option<f64>,
    /// Why the profiler is not ready (no target is attached yet, …); `None` when it is.
    pub not_ready: Option<String>,
}
