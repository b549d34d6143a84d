//! What exporters read: plain data, taken at one moment. Never the live table, never a label policy.

mod node;

use crate::histogram::Histogram;
use profiler_common::sched::{after, cause, preempter};

use crate::event::{Outcome, TypeId};
use crate::status::TargetStatus;

pub use super::groups::{GroupKey, GroupSnapshot};
pub use super::minutes::{Cell, MINUTE_NS, Minute, MinutesSnapshot, NameId};
pub use node::{ClusterSnapshot, ConfigSnapshot, DiscoverySnapshot, FailedSnapshot, NodeBudgetSnapshot};

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

/// Work that a runtime puts into a queue, to be run later. Durations in nanoseconds.
#[derive(Clone, Debug)]
pub struct DeferredSnapshot {
    /// From when it was deferred until it was run.
    pub wait: Histogram,
    /// From there until it was done.
    pub run: Histogram,
    /// How much waits and how much is run, now; `None` where it was not seen all the time.
    pub now: Option<(u64, u64)>,
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

/// Scheduling of a target. Durations in nanoseconds.
#[derive(Clone, Debug)]
pub struct SchedSnapshot {
    /// Voluntary switches.
    pub voluntary_switches: u64,
    /// Involuntary switches, by who ran instead, in the order of [`preempter::LABELS`].
    pub preemptions: [u64; preempter::COUNT],
    /// Times that a thread ran on another CPU than the last time.
    pub migrations: u64,
    /// Time on a CPU, of spans that have not ended too.
    pub on_cpu_ns: u64,
    /// Time asleep by cause, in the order of [`cause::LABELS`], of spans that have not ended too.
    pub asleep_ns: [u64; cause::COUNT],
    /// Whether causes are told.
    pub causes_told: bool,
    /// Wait from runnable to running, in the order of [`after::LABELS`].
    pub run_queue: [Histogram; after::COUNT],
    /// Uninterrupted time on a CPU.
    pub on_cpu: Histogram,
    /// Time asleep.
    pub blocked: Histogram,
    /// Its threads, by name, in the order of first sight.
    pub threads: Vec<ThreadsSnapshot>,
    /// Its event loops, by the names of their threads, in the order of first sight.
    pub loops: Vec<LoopSnapshot>,
}

/// The event loops of one name, those that have ended among them. Durations in nanoseconds.
#[derive(Clone, Debug)]
pub struct LoopSnapshot {
    /// Name of their threads.
    pub name: String,
    /// Time from wake-ups to the next waits, up to now.
    pub active_ns: u64,
    /// Time in waits, up to now.
    pub idle_ns: u64,
    /// Times from a wake-up to the next wait.
    pub iteration: Histogram,
    /// How late a timer would have fired.
    pub delay: Histogram,
}

/// The threads of one name. Durations in nanoseconds, of threads that have ended too.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ThreadsSnapshot {
    /// Their name, without numbers at its end; `main` for the first thread of a process.
    pub name: String,
    /// How many live.
    pub threads: u64,
    /// How many have started since the target is watched, and taken this name.
    pub started: u64,
    /// How many have ended since then.
    pub ended: u64,
    /// Time on a CPU, of spans that have not ended too.
    pub on_cpu_ns: u64,
    /// Time in the run queue, of waits that have ended.
    pub run_queue_ns: u64,
    /// Time asleep, of spans that have not ended too.
    pub asleep_ns: u64,
}

impl Default for SchedSnapshot {
    fn default() -> SchedSnapshot {
        SchedSnapshot {
            voluntary_switches: 0,
            preemptions: [0; preempter::COUNT],
            migrations: 0,
            on_cpu_ns: 0,
            asleep_ns: [0; cause::COUNT],
            causes_told: false,
            run_queue: [const { Histogram::EMPTY }; after::COUNT],
            on_cpu: Histogram::EMPTY,
            blocked: Histogram::EMPTY,
            threads: Vec::new(),
            loops: Vec::new(),
        }
    }
}

impl SchedSnapshot {
    /// Involuntary switches.
    pub fn involuntary_switches(&self) -> u64 {
        self.preemptions.iter().sum()
    }

    /// Time in the run queue, of waits that have ended.
    pub fn run_queue_ns(&self) -> u64 {
        self.run_queue.iter().map(|wait| wait.sum).sum()
    }

    /// All waits from runnable to running.
    pub fn all_run_queue(&self) -> Histogram {
        let mut all = Histogram::EMPTY;
        self.run_queue.iter().for_each(|wait| all.merge(wait));
        all
    }
}

/// What a CPU limit did to a target.
#[derive(Clone, Debug)]
pub struct ThrottledSnapshot {
    /// Time that it held in one period, nanoseconds, where CPUs that were held at the same time are added. Those between
    /// two looks count as their mean.
    pub wait: Histogram,
}

impl Default for ThrottledSnapshot {
    fn default() -> ThrottledSnapshot {
        ThrottledSnapshot { wait: Histogram::EMPTY }
    }
}

/// One listening socket. Every field that was not measured is `None`.
#[derive(Clone, Debug, Default)]
pub struct ListenerSnapshot {
    /// Local address, as `127.0.0.1:8080`, `[::1]:8080`, `unix:/run/a.sock` or `unix:@abstract`; `#2` and so on is appended to the second and later
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
    pub depth: Option<Histogram>,
    /// Wait from established to accepted, nanoseconds.
    pub wait: Option<Histogram>,
}

/// Connections that a target accepted, and the requests on them. Durations in nanoseconds.
#[derive(Clone, Debug)]
pub struct RequestsSnapshot {
    /// Connections that are open now.
    pub open: u64,
    /// Those that were accepted and from which nothing was read, although something has come; `None` where sockets do not tell.
    pub unread: Option<u64>,
    /// Requests of which something was read, and that were not answered.
    pub in_progress: u64,
    /// Threads that have replied and are not available again.
    pub replied: u64,
    /// From the first read to the last write before the next read.
    pub request: Histogram,
    /// From the last write until the thread reads, accepts or waits.
    pub after_reply: Histogram,
}

/// Jobs that a target's threads take from a queue elsewhere. Durations in nanoseconds.
#[derive(Clone, Debug)]
pub struct JobsSnapshot {
    /// From a job to when its thread asks for the next one.
    pub job: Histogram,
    /// From there to the next job.
    pub fetch: Histogram,
    /// Threads that do a job now.
    pub busy: u64,
    /// Threads that wait for one now.
    pub idle: u64,
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
