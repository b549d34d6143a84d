//! What exporters read: plain data, taken at one moment. Never the live table, never a label policy.

mod node;
mod sched;
mod tasks;
mod work;

use crate::histogram::Histogram;
use crate::status::TargetStatus;

pub use super::groups::{GroupKey, GroupSnapshot};
pub use super::minutes::{Cell, MINUTE_NS, Minute, MinutesSnapshot, NameId};
pub use node::{ClusterSnapshot, ConfigSnapshot, DiscoverySnapshot, FailedSnapshot, NodeBudgetSnapshot};
pub use sched::{LoopSnapshot, SchedSnapshot, ThreadsSnapshot, ThrottledSnapshot};
pub use tasks::{
    CpuSnapshot, Edge, EdgeParent, LongRunSnapshot, PollSnapshot, SlowPoll, SpawnSiteSnapshot, TaskTypeSnapshot,
    TasksSnapshot, UnfinishedPolls,
};
pub use work::{DeferredSnapshot, JobsSnapshot, ListenerSnapshot, RequestsSnapshot};

/// Everything that is exported, at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// When it was taken: CLOCK_MONOTONIC, nanoseconds.
    pub time_ns: u64,
    /// Seconds since the epoch that correspond to monotonic time 0, to turn monotonic times into timestamps.
    pub epoch_offset_seconds: f64,
    /// The targets, those that have ended and are still retained among them.
    pub targets: Vec<TargetSnapshot>,
    /// Groups of targets that share their series; `None` where each target has its own.
    pub groups: Option<Vec<GroupSnapshot>>,
    /// What is wrong with the targets, the oldest first.
    pub diagnoses: Vec<DiagnosisSnapshot>,
    /// What was spawned and ended in each minute, of all targets that were ever watched.
    pub minutes: MinutesSnapshot,
    /// The profiler itself.
    pub profiler: ProfilerSnapshot,
}

/// One thing that is wrong with a target.
#[derive(Clone, Debug, PartialEq)]
pub struct DiagnosisSnapshot {
    /// What it is called.
    pub name: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// The target's process id.
    pub pid: u32,
    /// Of what: a type of task, a listener; empty where it is the target itself.
    pub subject: String,
    /// When it was found first: CLOCK_MONOTONIC, nanoseconds.
    pub since_ns: u64,
    /// What it is, for people: one line.
    pub summary: String,
    /// The figures that show it, as they were when it was seen last.
    pub evidence: Vec<(&'static str, Evidence)>,
}

/// How bad something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// It costs time.
    Warning,
    /// Something does not go on.
    Critical,
}

impl Severity {
    /// What it is called.
    pub const fn label(self) -> &'static str {
        match self {
            Severity::Warning => "warning",
            Severity::Critical => "critical",
        }
    }
}

/// One figure of a diagnosis.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Evidence {
    /// A number of things, or an id.
    Count(u64),
    /// Seconds.
    Seconds(f64),
    /// A share, or a number of CPUs.
    Ratio(f64),
}

/// One target.
#[derive(Clone, Debug, Default)]
pub struct TargetSnapshot {
    /// Process id.
    pub pid: u32,
    /// Name of the process (its comm).
    pub process: String,
    /// Runtime label: a runtime's name, or `none`.
    pub runtime: &'static str,
    /// The runtime's version, where known.
    pub runtime_version: Option<String>,
    /// Who manages it, as far as its cgroup tells.
    pub identity: IdentitySnapshot,
    /// False once it has ended.
    pub running: bool,
    /// Probes and signals, and their states.
    pub status: TargetStatus,
    /// Scheduling; `None` where not measured.
    pub sched: Option<SchedSnapshot>,
    /// Throttlings by a CPU limit; `None` where no limit can hold it, or it cannot be told.
    pub throttled: Option<ThrottledSnapshot>,
    /// Listening sockets; empty where it has none or they are not measured.
    pub listeners: Vec<ListenerSnapshot>,
    /// Connections and requests; `None` where not measured.
    pub requests: Option<RequestsSnapshot>,
    /// Jobs that its threads take; `None` where not measured, or none has asked for one.
    pub jobs: Option<JobsSnapshot>,
    /// Work that its runtime defers; `None` where not measured.
    pub deferred: Option<DeferredSnapshot>,
    /// Pauses of the runtime; `None` where not measured.
    pub pauses: Option<PauseSnapshot>,
    /// How long threads waited for the lock under which the runtime runs its code, nanoseconds; `None` where not measured.
    pub lock_waits: Option<Histogram>,
    /// How long tasks waited between two polls, by what for, nanoseconds; empty where that is not measured.
    pub waits: Vec<(&'static str, Histogram)>,
    /// Tasks; `None` where not measured.
    pub tasks: Option<TasksSnapshot>,
    /// What probing costs it; `None` where no task of it is probed.
    pub budget: Option<BudgetSnapshot>,
    /// What the runtime itself says, read from its memory; `None` where that is not possible.
    pub figures: Option<RuntimeSnapshot>,
    /// Threads; `None` once the process has ended.
    pub threads: Option<u64>,
    /// Processes that are summed in this target: itself and its forked children.
    pub processes: Option<u64>,
}

/// Pauses for which a runtime stops its tasks.
#[derive(Clone, Debug)]
pub struct PauseSnapshot {
    /// Durations without the time off the CPU, nanoseconds.
    pub pause: Histogram,
    /// Collections of garbage, as the runtime counts them; `None` where it does not tell.
    pub collections: Option<u64>,
}

/// Who manages a target. What does not apply or is not known is `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IdentitySnapshot {
    /// Id of its container.
    pub container_id: Option<String>,
    /// Id of its Kubernetes pod.
    pub pod_uid: Option<String>,
    /// Its unit of systemd, outside of containers.
    pub systemd_unit: Option<String>,
    /// Namespace of its pod.
    pub namespace: Option<String>,
    /// Name of its pod.
    pub pod: Option<String>,
    /// Name of its container in the pod.
    pub container: Option<String>,
    /// Whether some of these names are still waited for: what is exported by name is not exported before.
    pub awaited: bool,
}

/// What probing costs a target, and what is switched for it.
#[derive(Clone, Debug)]
pub struct BudgetSnapshot {
    /// The budget as the user gave it.
    pub budget: String,
    /// As a share of the CPU time that the target uses; `None` where it is off.
    pub share: Option<f64>,
    /// The cost as such a share, of late; `None` before the target has used any.
    pub cost_share: Option<f64>,
    /// By probe.
    pub probes: Vec<ProbeCost>,
    /// What can be switched.
    pub tiers: Vec<TierSnapshot>,
    /// What was found that the probes add to the duration of each poll, and is subtracted, nanoseconds.
    pub poll_added_ns: f64,
    /// Why the tiers are as they are.
    pub why: String,
}

/// What one kind of probe has cost.
#[derive(Clone, Copy, Debug)]
pub struct ProbeCost {
    /// Its name.
    pub probe: &'static str,
    /// Hits.
    pub hits: u64,
    /// What they have cost the target, nanoseconds of CPU time.
    pub cost_ns: f64,
    /// What the next one will, nanoseconds.
    pub hit_ns: f64,
}

/// A tier that the budget switches.
#[derive(Clone, Copy, Debug)]
pub struct TierSnapshot {
    /// Its name.
    pub tier: &'static str,
    /// `continuous`, `windows` or `off`.
    pub mode: &'static str,
    /// Share of the time that it was attached, of late.
    pub coverage: f64,
    /// Time for which it was attached, nanoseconds.
    pub covered_ns: u64,
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

/// The profiler's own figures.
#[derive(Clone, Debug, Default)]
pub struct ProfilerSnapshot {
    /// Events decoded, by kind.
    pub events: Vec<(&'static str, u64)>,
    /// Events lost, by reason.
    pub lost: Vec<(&'static str, u64)>,
    /// Runs of a BPF program that the kernel left out, by program; empty where it does not tell.
    pub runs_missed: Vec<(String, u64)>,
    /// Probe hits that measured nothing, by reason.
    pub hits_ignored: Vec<(&'static str, u64)>,
    /// Seconds that taking this snapshot took; `None` where that was not timed.
    pub snapshot_seconds: Option<f64>,
    /// Why the profiler is not ready (no target is attached yet, …); `None` when it is.
    pub not_ready: Option<String>,
    /// How processes are found; `None` where they were named.
    pub discovery: Option<DiscoverySnapshot>,
    /// What probing costs all targets together; `None` where they were named.
    pub node: Option<NodeBudgetSnapshot>,
}
