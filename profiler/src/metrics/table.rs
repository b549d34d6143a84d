//! Every metric, one row each. Never a value.

/// What a metric is to Prometheus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts by size.
    Histogram,
}

impl Kind {
    /// Its name in an exposition.
    pub const fn label(self) -> &'static str {
        match self {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        }
    }
}

/// What a value is measured in. Histograms of one unit share one set of buckets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Seconds.
    Seconds,
    /// Bytes.
    Bytes,
    /// A number of things.
    Count,
    /// 1, or 1 and 0.
    State,
}

impl Unit {
    /// Its name in the document.
    pub const fn label(self) -> &'static str {
        match self {
            Unit::Seconds => "seconds",
            Unit::Bytes => "bytes",
            Unit::Count => "count",
            Unit::State => "0 or 1",
        }
    }
}

/// What a metric is about; the document has a section for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Area {
    /// Scheduling.
    RunQueue,
    /// Event loops.
    EventLoop,
    /// Listening sockets.
    AcceptQueue,
    /// Accepted connections and what is asked on them.
    Requests,
    /// Tasks.
    Tasks,
    /// The runtime and the process.
    Runtime,
    /// The profiler.
    Profiler,
    /// The profiler's process: standard names, without a prefix.
    Process,
}

impl Area {
    /// All areas, in the order of the document.
    pub const ALL: [Area; 8] = [
        Area::RunQueue,
        Area::EventLoop,
        Area::AcceptQueue,
        Area::Requests,
        Area::Tasks,
        Area::Runtime,
        Area::Profiler,
        Area::Process,
    ];

    /// Heading of its section.
    pub const fn heading(self) -> &'static str {
        match self {
            Area::RunQueue => "Run queue",
            Area::EventLoop => "Event loops",
            Area::AcceptQueue => "Accept queue",
            Area::Requests => "Connections, requests and jobs",
            Area::Tasks => "Tasks",
            Area::Runtime => "Runtime and process",
            Area::Profiler => "The profiler itself",
            Area::Process => "The profiler's process",
        }
    }
}

/// Whose values a metric has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// One per target: has the labels of [`TARGET_LABELS`] or of [`GROUP_LABELS`] in front of its own.
    Target,
    /// One for the profiler.
    Profiler,
}

/// How two values of one series become one: targets and tasks of the same name share their series.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Merge {
    /// They are added.
    Sum,
    /// The larger one holds.
    Max,
}

/// Labels of each target, where each has its own series.
pub const TARGET_LABELS: [&str; 3] = ["process", "runtime", "pid"];

/// Labels of each target, where the processes of a container share theirs: what is not known is empty.
pub const GROUP_LABELS: [&str; 5] = ["namespace", "pod", "container", "process", "runtime"];

/// Prefix of all names but the standard ones of a process.
pub const PREFIX: &str = "profiler_";

/// One metric.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    /// Which one.
    pub id: Id,
    /// Name without its prefix.
    pub name: &'static str,
    /// What it says, in one sentence.
    pub help: &'static str,
    /// Counter, gauge or histogram.
    pub kind: Kind,
    /// What it is measured in.
    pub unit: Unit,
    /// What it is about.
    pub area: Area,
    /// Whose values it has.
    pub scope: Scope,
    /// Its own labels.
    pub labels: &'static [&'static str],
    /// Which values these labels have, and how many at most.
    pub bound: &'static str,
    /// How values that share a series become one.
    pub merge: Merge,
    /// From which tier it comes, and how exact it is.
    pub source: &'static str,
}

impl Metric {
    /// The whole name.
    pub fn full_name(&self) -> String {
        match self.area {
            Area::Process => self.name.to_owned(),
            _ => format!("{PREFIX}{}", self.name),
        }
    }

    /// All labels, in their order.
    pub fn all_labels(&self) -> impl Iterator<Item = &'static str> {
        let target: &[&str] = match self.scope {
            Scope::Target => &TARGET_LABELS,
            Scope::Profiler => &[],
        };
        target.iter().chain(self.labels).copied()
    }
}

/// The row of `id`.
pub const fn metric(id: Id) -> &'static Metric {
    &METRICS[id as usize]
}

macro_rules! metrics {
    ($($id:ident $name:literal $kind:ident $unit:ident $area:ident $scope:ident $merge:ident
        [$($label:literal),*] $bound:expr, $source:expr, $help:literal;)*) => {
        /// The metrics, in the order of the page.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Id {
            $(#[doc = $help] $id,)*
        }

        /// All metrics, in the order of [`Id`].
        pub const METRICS: &[Metric] = &[$(Metric {
            id: Id::$id, name: $name, help: $help, kind: Kind::$kind, unit: Unit::$unit, area: Area::$area,
            scope: Scope::$scope, labels: &[$($label),*], bound: $bound, merge: Merge::$merge, source: $source,
        },)*];
    };
}

const SCHED: &str = "tier 0, scheduler tracepoints; every switch";
const CGROUP: &str = "tier 0, the cgroup's own counts; read once a second, and ten times while a limit holds it; absent where no CPU limit can hold the target";
const SOCKET: &str = "tier 0, socket diagnostics; read at the scrape";
const ACCEPT: &str = "tier 0, accept hooks; every connection";
const REQUEST: &str = "tier 0 with `--requests`, socket tracepoints; every connection and request";
const JOB: &str = "tier 0 with `--requests`, socket tracepoints; every job that is taken by BRPOP from Redis over a connection without TLS, as Sidekiq takes its own; absent where no thread asks for any";
const LIFECYCLE: &str = "tier 1, spawn and completion probes; every task since the profiler attached";
const POLLS: &str = "tier 2, poll probes; every poll while `probe_state` of `task_polls` is `attached`, else absent";
const POLL_WINDOWS: &str = "tier 2, poll probes; every poll while `probe_state` of `task_polls` is `attached`, in windows while it is `sampled`: \
     then counts are samples, of the time that `probe_covered_seconds_total` tells";
const WAKES: &str = "tier 2, wake probes; every wake while `probe_state` of `task_wakes` is `attached`, else absent";
const WAKE_WINDOWS: &str = "tier 2, wake and poll probes; as `task_poll_seconds`";
const ACCOUNT: &str = "hits counted in the kernel, times what a hit costs on this host: the trap calibrated at start, the program timed on the target";
const SAMPLED: &str = "tier 0, CPU clock; sampled 99 times a second of CPU time";
const FOUND: &str = "tier 0, the runtime's lists of tasks; walked at the attach";
const PAUSES: &str =
    "tier 1, at the runtime's own looks at the clock; every pause while `probe_state` of `gc_pause` is `attached`";
const LOCKS: &str = "tier 2, where the runtime waits for its lock; every wait while `probe_state` of `lock_wait` is `attached`, in windows while it is `sampled`: then counts are samples, of the time that `probe_covered_seconds_total` tells";
const DEFERRED: &str = "tier 1, where a library puts work into its queue, runs it and has run it; everything while `probe_state` of `deferred` is `attached`; absent where no such library was loaded (Ruby: iodine, which Rage runs on)";
const READ: &str = "read at the scrape";
const MEMORY: &str = "tier 0, the runtime's own memory; read at the scrape, at most once a second";
const LISTS: &str =
    "tier 0, the runtime's lists of tasks; walked at the scrape, at most once a second, for 2 % of the time";
const LISTENER: &str = "local addresses that it listens on, as `127.0.0.1:80` or `unix:/run/a.sock` (`#2` and so on where several sockets share one): 100 per target, the rest in `other`";
const SITES: &str = "tier 1, read from the binary, and from stacks copied at a sample of the spawns";
const SPAWN_SITE: &str = "`task` as above, without `other`; the 4 most frequent places per task";
const THREAD: &str = "names of threads, without numbers at their end, `main` for the first of a process: 16 per target, the rest in `other`";
const THREAD_STATE: &str = "`thread` as in `sched_threads`; `state`: `on_cpu`, `run_queue`, `off_cpu`";
const LOOP: &str = "tier 0, scheduler tracepoints; every wait of threads that mostly wait for events; absent where causes of sleep are not told";
const LOOP_THREAD: &str = "names of threads as in `sched_threads`, of loops only: 16 per target, the rest in `other`";
const LOOP_STATE: &str = "`thread` as in `loop_iteration_seconds`; `state`: `active`, `idle`";
const TASK: &str = "short names of task types: 100 per target by default, the rest in `other`";

metrics! {
    SchedRunQueueSeconds "sched_run_queue_seconds" Histogram Seconds RunQueue Target Sum ["after"]
        "`wakeup`, `preemption`", SCHED,
        "Time that threads waited from runnable to running, after they were woken (or created), or after they lost their \
         CPU while they could have run on.";
    SchedTimesliceSeconds "sched_timeslice_seconds" Histogram Seconds RunQueue Target Sum [] "", SCHED,
        "Uninterrupted time that threads spent on a CPU.";
    SchedBlockedSeconds "sched_blocked_seconds" Histogram Seconds RunQueue Target Sum [] "", SCHED,
        "Time that threads were asleep, from the switch away to the wake-up.";
    SchedOnCpuSecondsTotal "sched_on_cpu_seconds_total" Counter Seconds RunQueue Target Sum [] "", SCHED,
        "Time that threads spent on a CPU, up to now.";
    SchedOffCpuSecondsTotal "sched_off_cpu_seconds_total" Counter Seconds RunQueue Target Sum ["reason"]
        "`run_queue`, and causes of sleep: `epoll` (all waits for events), `futex`, `sleep`, `disk`, `socket`, `accept`, \
         `page_fault`, `other`; `blocked` where no cause is told", SCHED,
        "Time that threads spent off a CPU: asleep up to now, by what they waited for, or in waits for a CPU that have \
         ended (run_queue). The sum of all reasons but run_queue is the time asleep.";
    SchedSwitchesTotal "sched_switches_total" Counter Count RunQueue Target Sum ["kind"]
        "`voluntary`, `involuntary`", SCHED,
        "Switches away from threads that went to sleep (voluntary) or could have run on (involuntary).";
    SchedPreemptionsTotal "sched_preemptions_total" Counter Count RunQueue Target Sum ["by"]
        "`self`, `other`, `kernel`, `idle`", SCHED,
        "Involuntary switches, by who ran instead: a thread of the same process (self), of another one, of the kernel, or \
         nobody (idle), while a CPU limit held the thread.";
    SchedMigrationsTotal "sched_migrations_total" Counter Count RunQueue Target Sum [] "", SCHED,
        "Times that a thread ran on another CPU than the last time.";
    SchedThreadSecondsTotal "sched_thread_seconds_total" Counter Seconds RunQueue Target Sum ["thread", "state"]
        THREAD_STATE, SCHED,
        "Time of threads by their names: on a CPU (on_cpu), waiting for one (run_queue), asleep (off_cpu). The sums over \
         all names are the target's.";
    SchedThreads "sched_threads" Gauge Count RunQueue Target Sum ["thread"] THREAD, READ,
        "Threads that live, by their names.";
    SchedThreadsStartedTotal "sched_threads_started_total" Counter Count RunQueue Target Sum ["thread"] THREAD, SCHED,
        "Threads that were started since the profiler attached, by the names that they have taken: counted when one is found under its name again, or at its end. A child that is forked starts with its first thread.";
    SchedThreadsEndedTotal "sched_threads_ended_total" Counter Count RunQueue Target Sum ["thread"] THREAD, SCHED,
        "Threads that have ended since the profiler attached, by their names at the end; those of a child, too, that runs another program from then on.";
    CpuThrottledSeconds "cpu_throttled_seconds" Histogram Seconds RunQueue Target Sum [] "", CGROUP,
        "Time that a CPU limit held the target's cgroup in one period of the limit: the mean of those since the last \
         look, 0.1 s before, or 1 s where no limit has held it for 10 s. CPUs that were held at the same time are added; its threads' run queue waits contain it.";
    CpuThrottledSecondsTotal "cpu_throttled_seconds_total" Counter Seconds RunQueue Target Sum [] "", CGROUP,
        "Time that a CPU limit held the target's cgroup, CPUs added.";

    LoopSecondsTotal "loop_seconds_total" Counter Seconds EventLoop Target Sum ["thread", "state"]
        LOOP_STATE, LOOP,
        "Time of event loops: waiting for events (idle), or from the wake-up to the next wait (active), up to now.";
    LoopIterationSeconds "loop_iteration_seconds" Histogram Seconds EventLoop Target Sum ["thread"] LOOP_THREAD, LOOP,
        "Time from a wake-up of an event loop to its next wait: several rounds where it found work without waiting.";
    LoopDelaySeconds "loop_delay_seconds" Histogram Seconds EventLoop Target Sum ["thread"] LOOP_THREAD, LOOP,
        "How late a timer would have fired that is set to 10 ms again and again.";

    AcceptQueueLength "accept_queue_length" Gauge Count AcceptQueue Target Sum ["listener"] LISTENER, SOCKET,
        "Connections that are established and wait to be accepted.";
    AcceptQueueLimit "accept_queue_limit" Gauge Count AcceptQueue Target Sum ["listener"] LISTENER, SOCKET,
        "Most connections that may wait to be accepted.";
    AcceptQueueDepth "accept_queue_depth" Histogram Count AcceptQueue Target Sum ["listener"] LISTENER, ACCEPT,
        "Length of the accept queue after each connection was queued.";
    AcceptWaitSeconds "accept_wait_seconds" Histogram Seconds AcceptQueue Target Sum ["listener"] LISTENER, ACCEPT,
        "Time that connections waited from established to accepted.";
    AcceptedTotal "accepted_total" Counter Count AcceptQueue Target Sum ["listener"] LISTENER, ACCEPT,
        "Connections that were accepted since the profiler attached.";
    AcceptOverflowsTotal "accept_overflows_total" Counter Count AcceptQueue Target Sum ["listener"] LISTENER, SOCKET,
        "Connections that the kernel dropped because the accept queue was full, since the socket was opened.";

    ConnectionsOpen "connections_open" Gauge Count Requests Target Sum [] "", REQUEST,
        "Connections that the target accepted, before the profiler attached too, and that are neither closed nor reset.";
    RequestsOpen "requests_open" Gauge Count Requests Target Sum ["state"]
        "`state`: `unread`, `in_progress`, `after_reply`", REQUEST,
        "Requests by where they are just now: come over a connection that was accepted, from which nothing was read yet (unread: they wait in the application); read and not answered (in_progress: threads that serve them, and those that wait for one); answered, at least in part, while their thread is not yet available for the next one (after_reply).";
    RequestSeconds "request_seconds" Histogram Seconds Requests Target Sum [] "", REQUEST,
        "Time from the first read on an accepted connection to the last write before its next read, which is one request in most protocols. It is recorded at that read, or at the end of the connection.";
    AfterReplySeconds "after_reply_seconds" Histogram Seconds Requests Target Sum [] "", REQUEST,
        "Time from the last write of a reply until its thread reads from an accepted connection, accepts, or waits for something to do: it was not available for the next one.";

    JobSeconds "job_seconds" Histogram Seconds Requests Target Sum [] "", JOB,
        "Time from when a thread got a job until it asked for the next one. A job that was begun before the profiler attached is none.";
    JobFetchSeconds "job_fetch_seconds" Histogram Seconds Requests Target Sum [] "", JOB,
        "Time from when a thread asked for a job until it got one, however often it asked.";
    JobThreads "job_threads" Gauge Count Requests Target Sum ["state"] "`state`: `busy`, `idle`", JOB,
        "Threads that take jobs: those that do one (busy) and those that wait for one (idle).";

    TasksSpawnedTotal "tasks_spawned_total" Counter Count Tasks Target Sum ["task"] TASK, LIFECYCLE,
        "Tasks that were spawned.";
    TasksCompletedTotal "tasks_completed_total" Counter Count Tasks Target Sum ["task", "outcome"]
        "`task` as above; `outcome`: `completed`, `cancelled`, `panicked`, `unknown`", LIFECYCLE,
        "Tasks that ended, by how they ended.";
    TasksAlive "tasks_alive" Gauge Count Tasks Target Sum ["task"] TASK, LIFECYCLE,
        "Tasks that were seen to be spawned, or found at the attach, and have not ended.";
    TasksFound "tasks_found" Gauge Count Tasks Target Sum ["task"] TASK, FOUND,
        "Tasks that were there when the profiler attached.";
    TaskLifetimeSeconds "task_lifetime_seconds" Histogram Seconds Tasks Target Sum ["task"] TASK, LIFECYCLE,
        "Time from spawn to end, of tasks that were seen at both.";
    TaskWaitSeconds "task_wait_seconds" Histogram Seconds Tasks Target Sum ["reason"]
        "`reason`: `sleep`, `block` (a lock, a queue, another task), `io_wait`, `io_read`, `io_write`, `process`, `resolve`, `other`",
        POLL_WINDOWS,
        "Time that tasks waited between two polls, by what for, where tasks are coroutines. A task that goes to another one by itself waits for `other`.";
    TaskLastSpawnTimestampSeconds "task_last_spawn_timestamp_seconds" Gauge Seconds Tasks Target Max ["task"] TASK,
        LIFECYCLE,
        "When the last task was spawned, in seconds since the epoch.";
    TasksUnseenSpawnsTotal "tasks_unseen_spawns_total" Counter Count Tasks Target Sum ["task"] TASK, LIFECYCLE,
        "Tasks that ended and were not seen to be spawned: they are older than the profiler and were not found, or their spawn was lost.";

    TaskPollsTotal "task_polls_total" Counter Count Tasks Target Sum ["task"] TASK, POLLS,
        "Polls of tasks; a pass that only drops a cancelled task is none.";
    TaskPollSeconds "task_poll_seconds" Histogram Seconds Tasks Target Sum ["task"] TASK, POLL_WINDOWS,
        "Time that tasks held their thread in one poll. The probes' own time is subtracted.";
    TaskBusySecondsTotal "task_busy_seconds_total" Counter Seconds Tasks Target Sum ["task"] TASK, POLLS,
        "Time in polls, without polls of other tasks within them.";
    TaskSlowPollsTotal "task_slow_polls_total" Counter Count Tasks Target Sum ["task"] TASK, POLLS,
        "Polls that held their thread for longer than --slow-poll (10 ms).";
    TaskSlowestPollSeconds "task_slowest_poll_seconds" Gauge Seconds Tasks Target Max ["task"] TASK, POLL_WINDOWS,
        "The longest poll that was seen.";
    TaskUnfinishedPollSeconds "task_unfinished_poll_seconds" Gauge Seconds Tasks Target Max ["task"] TASK, POLL_WINDOWS,
        "How long the longest poll has held its thread that has not ended; 0 while all are shorter than --slow-poll.";
    TaskScheduleDelaySeconds "task_schedule_delay_seconds" Histogram Seconds Tasks Target Sum ["task"] TASK, WAKE_WINDOWS,
        "Time from the first wake since a task's last poll began to its next poll: work that waits in the runtime's queue.";
    TaskFirstPollDelaySeconds "task_first_poll_delay_seconds" Histogram Seconds Tasks Target Sum ["task"] TASK,
        WAKE_WINDOWS,
        "Time from a task's spawn to its first poll.";
    TaskWakesTotal "task_wakes_total" Counter Count Tasks Target Sum ["task", "kind"]
        "`task` as above; `kind`: `by_value`, `by_ref`, `self`", WAKES,
        "Wakes of tasks, by how: the waker used up, kept, or in either way by the task itself while it is polled.";
    TasksOverdue "tasks_overdue" Gauge Count Tasks Target Sum ["task"] TASK, WAKES,
        "Tasks that were woken more than a second ago and have not been polled since.";

    TaskCpuSecondsTotal "task_cpu_seconds_total" Counter Seconds Tasks Target Sum ["task"] TASK, SAMPLED,
        "CPU time of tasks, sampled: a tick of the clock that finds a task stands for its whole period.";

    RuntimeCpuSecondsTotal "runtime_cpu_seconds_total" Counter Seconds Runtime Target Sum ["state"]
        "`task`, `scheduler`, `other`, `unknown`", SAMPLED,
        "CPU time, sampled: in tasks, in the runtime's workers, in neither, or in tasks whose type could not be told.";
    TaskInfo "task_info" Gauge State Tasks Target Max ["task", "spawn_site"] SPAWN_SITE, SITES,
        "Where tasks are spawned; always 1.";

    TargetUp "target_up" Gauge State Runtime Target Max [] "", READ,
        "Whether the target runs (1) or has ended and is only retained (0).";
    TargetProcesses "target_processes" Gauge Count Runtime Target Sum [] "", READ,
        "Processes that are summed in the target: itself and its forked children.";
    RuntimeThreads "runtime_threads" Gauge Count Runtime Target Sum [] "", READ,
        "Threads of the target.";
    GcPauseSeconds "gc_pause_seconds" Histogram Seconds Runtime Target Sum [] "", PAUSES,
        "Time for which a thread of the target collected garbage without a break, without the time that it was off the CPU meanwhile: no other thread runs the runtime's code then.";
    GcCollectionsTotal "gc_collections_total" Counter Count Runtime Target Sum [] "", MEMORY,
        "Collections of garbage since the process began, as the runtime counts them: each may have many pauses. Known from the first pause on; of a worker that was forked, since it was looked at first; of a process that has ended, as of the last look.";

    RuntimeLockWaitSeconds "runtime_lock_wait_seconds" Histogram Seconds Runtime Target Sum [] "", LOCKS,
        "Time that threads waited for the lock under which the runtime runs its code one thread at a time, until they had it. Who got it at once has not waited.";

    DeferredWaitSeconds "deferred_wait_seconds" Histogram Seconds Runtime Target Sum [] "", DEFERRED,
        "Time from when work was deferred until it was run. Work that was deferred before it was seen has none.";
    DeferredRunSeconds "deferred_run_seconds" Histogram Seconds Runtime Target Sum [] "", DEFERRED,
        "Time for which deferred work was run, with its waits for locks.";
    DeferredWork "deferred_work" Gauge Count Runtime Target Sum ["state"] "`state`: `waiting`, `running`", DEFERRED,
        "Work that was deferred, since it is seen, and waits to be run, and work that is run now. Absent while it is not seen all the time.";

    RuntimeWorkers "runtime_workers" Gauge Count Runtime Target Sum [] "", MEMORY,
        "Threads that the runtime runs tasks on.";
    RuntimeWorkerBusySecondsTotal "runtime_worker_busy_seconds_total" Counter Seconds Runtime Target Sum [] "", MEMORY,
        "Time that the runtime's workers were busy since they were started; a worker adds to it when it parks.";
    RuntimeQueueDepth "runtime_queue_depth" Gauge Count Runtime Target Sum ["queue"] "`local`, `injection`, `blocking`", MEMORY,
        "Tasks in the runtime's queues: of its workers (local), of all of them (injection), of its blocking threads (blocking); a queue that was not found has no series.";
    RuntimeTasksAlive "runtime_tasks_alive" Gauge Count Runtime Target Sum [] "", MEMORY,
        "Tasks that live, as the runtime itself counts them.";
    RuntimeTasksSpawnedTotal "runtime_tasks_spawned_total" Counter Count Runtime Target Sum [] "", MEMORY,
        "Tasks that were spawned since the runtime was started, as the runtime itself counts them.";
    RuntimeTasksRunnable "runtime_tasks_runnable" Gauge Count Runtime Target Sum [] "", LISTS,
        "Tasks that have been woken and wait for a thread to poll them.";

    BuildInfo "build_info" Gauge State Profiler Profiler Max ["version"] "one", READ,
        "The profiler's version; always 1.";
    TargetInfo "target_info" Gauge State Profiler Target Max ["runtime_version"] "one per target", READ,
        "What is known of a target; always 1.";
    TargetContainerInfo "target_container_info" Gauge State Profiler Target Max ["container_id", "pod_uid"] "one per target", READ,
        "The container of a target, and its Kubernetes pod, as its cgroup tells them; always 1. Absent outside of containers.";
    TargetUnitInfo "target_unit_info" Gauge State Profiler Target Max ["systemd_unit"] "one per target", READ,
        "The unit of systemd that a target belongs to; always 1. Absent in containers.";
    ProbeState "probe_state" Gauge State Profiler Target Max ["probe", "state"]
        "the profiler's probes; `attached`, `sampled`, `unsupported`, `broken`, `not_applicable`, `detached`", READ,
        "State of each probe of a target: 1 for the current state, 0 for the others.";
    ProbeHitsTotal "probe_hits_total" Counter Count Profiler Target Sum ["probe"] "the profiler's probes",
        "counted in the kernel; every hit",
        "Times that a probe was hit in a target.";
    ProbeHitsIgnoredTotal "probe_hits_ignored_total" Counter Count Profiler Profiler Sum ["reason"]
        "`idle`, `foreign_process`, `poll_start_unseen`", "counted in the kernel; every hit",
        "Hits that measured nothing: while a probe came or went, in a process that is no target, at the end of a poll \
         whose beginning was not seen.";
    ProbeCoveredSecondsTotal "probe_covered_seconds_total" Counter Seconds Profiler Target Sum ["signal"]
        "`lifecycle`, `polls`", READ,
        "Time for which the probes of a signal were attached: its rate is the share of the time that was seen.";
    ProbeCoverageRatio "probe_coverage_ratio" Gauge State Profiler Target Max ["signal"] "`lifecycle`, `polls`", READ,
        "Share of the time for which the probes of a signal were attached, averaged over some ten seconds.";
    OverheadSecondsTotal "overhead_seconds_total" Counter Seconds Profiler Target Sum ["probe"] "the profiler's probes",
        ACCOUNT,
        "CPU time that probing has cost the target.";
    OverheadRatio "overhead_ratio" Gauge State Profiler Target Max [] "", ACCOUNT,
        "What probing costs as a share of the CPU time that the target would use without, averaged over some ten seconds.";
    OverheadBudgetRatio "overhead_budget_ratio" Gauge State Profiler Target Max [] "", READ,
        "The budget: what that share may be. Absent where it is off.";
    NodeOverheadRatio "node_overhead_ratio" Gauge State Profiler Profiler Max [] "", ACCOUNT,
        "What probing costs all targets together, as a share of the node's CPU time (of all CPUs), averaged over some 5 s.";
    NodeOverheadBudgetRatio "node_overhead_budget_ratio" Gauge State Profiler Profiler Max [] "", READ,
        "The budget for that; absent where it is off.";
    BudgetFactor "budget_factor" Gauge State Profiler Profiler Max [] "", READ,
        "Which part of its own budget each target has: less than 1 where that of the node is not enough for all.";
    PollOverheadSeconds "poll_overhead_seconds" Gauge Seconds Profiler Target Max [] "",
        "calibrated at start on the profiler itself",
        "What the probes at both ends add to the measured duration of a poll; it has been subtracted.";
    EventsTotal "events_total" Counter Count Profiler Profiler Sum ["kind"] "kinds of records",
        "every record that left the ring",
        "Records that were received from the kernel.";
    EventsLostTotal "events_lost_total" Counter Count Profiler Profiler Sum ["reason"] "the loss reasons",
        "every loss, where it happens",
        "Events that could not be accounted for.";
    DiscoveryProcessesTotal "discovery_processes_total" Counter Count Profiler Profiler Sum ["verdict"]
        "`watched`, `excluded`, `gone`, `failed`, `no_room`", "every process that was looked at",
        "Processes that `agent` looked at, by what was decided; absent for `attach` and `run`.";
    DiscoveryWaiting "discovery_waiting" Gauge Count Profiler Profiler Sum [] "", READ,
        "Processes that have yet to be looked at.";
    TargetsWatched "targets_watched" Gauge Count Profiler Profiler Sum [] "", READ,
        "Processes that `agent` watches, without their children.";
    SeriesTurnedAwayTotal "series_turned_away_total" Counter Count Profiler Profiler Sum [] "", READ,
        "Groups of ended processes, and names of tasks and listeners in them, that found no room and were summed in `other`.";
    TargetsLimit "targets_limit" Gauge Count Profiler Profiler Sum [] "", READ,
        "Processes that `agent` can watch at the same time.";
    KubernetesUp "kubernetes_up" Gauge State Profiler Profiler Max [] "", READ,
        "Whether the Kubernetes API could be asked for this node's pods, the last time; absent without `--kubernetes`.";
    KubernetesPods "kubernetes_pods" Gauge Count Profiler Profiler Sum [] "", READ,
        "Pods of this node whose names are known.";
    KubernetesPodsTurnedAwayTotal "kubernetes_pods_turned_away_total" Counter Count Profiler Profiler Sum [] "", "each pod that is told of",
        "Pods that found no room among those that are known, so that their names are not told; and pods of which some containers or labels found none.";
    KubernetesEventsTotal "kubernetes_events_total" Counter Count Profiler Profiler Sum [] "", "each pod that is told of",
        "Pods that the Kubernetes API has listed, or said to have come, changed or gone.";
    KubernetesFailuresTotal "kubernetes_failures_total" Counter Count Profiler Profiler Sum ["reason"]
        "`unreachable`, `certificate`, `unauthorized`, `forbidden`, `expired`, `refused`, `invalid`", "each attempt",
        "How often the Kubernetes API could not be asked, by why. `expired` is no fault: all is listed again.";
    DiscoveryUndecided "discovery_undecided" Gauge Count Profiler Profiler Sum [] "", READ,
        "Processes whose names decide whether they are watched, and are not known yet.";
    DiscoveryUnnamedTotal "discovery_unnamed_total" Counter Count Profiler Profiler Sum [] "", READ,
        "Processes that were decided on without their names, because those did not come in time.";
    KubernetesLateNamesTotal "kubernetes_late_names_total" Counter Count Profiler Profiler Sum [] "", READ,
        "Targets whose names came after they had been exported without: their counters go on under other labels.";
    ConfigLastReloadSuccessful "config_last_reload_successful" Gauge State Profiler Profiler Max [] "", READ,
        "Whether the file of the rules was good when it was read last. Where it was not, the earlier rules are in force.";
    ConfigLastReloadSuccessTimestampSeconds "config_last_reload_success_timestamp_seconds" Gauge Seconds Profiler Profiler Max
        [] "", READ,
        "When the rules that are in force were read, since the epoch.";
    ProgramRunsMissedTotal "program_runs_missed_total" Counter Count Profiler Profiler Sum ["program"]
        "the profiler's BPF programs", "counted by the kernel, since 5.12",
        "Runs of a program that the kernel left out, in any process, since another one of it ran on that CPU.";
    TasksTracked "tasks_tracked" Gauge Count Profiler Profiler Sum [] "", READ,
        "Tasks that are tracked just now, over all targets.";
    SnapshotDurationSeconds "snapshot_duration_seconds" Gauge Seconds Profiler Profiler Max [] "", READ,
        "How long reading the kernel's maps and copying the counts took for this page.";
    ScrapeDurationSeconds "scrape_duration_seconds" Gauge Seconds Profiler Profiler Max [] "", READ,
        "How long the page before this one took from request to answer.";
    WebConfigLastReloadSuccessful "web_config_last_reload_successful" Gauge State Profiler Profiler Max [] "", READ,
        "Whether the file that protects the endpoint is used as it is now. Absent where there is none.";
    OtlpRequestsTotal "otlp_requests_total" Counter Count Profiler Profiler Sum ["result"] "`taken`, `later`, `refused`",
        "each request, with `--otlp.endpoint`",
        "Requests to the collector to which metrics are pushed, by what came of them. Those of `later` are sent again.";
    OtlpPointsTotal "otlp_points_total" Counter Count Profiler Profiler Sum [] "", "each request, with `--otlp.endpoint`",
        "Data points that the collector has taken.";
    OtlpPointsDroppedTotal "otlp_points_dropped_total" Counter Count Profiler Profiler Sum ["reason"]
        "`queue_full`, `refused`, `rejected`, `end`", "each request, with `--otlp.endpoint`",
        "Data points that were not taken. Counters are cumulative: what is dropped is missing in time, and in no sum.";
    OtlpQueueBytes "otlp_queue_bytes" Gauge Bytes Profiler Profiler Sum [] "", READ,
        "What waits to be pushed.";
    OtlpLastSuccessTimestampSeconds "otlp_last_success_timestamp_seconds" Gauge Seconds Profiler Profiler Max [] "", READ,
        "When the collector has taken a request last, seconds since the epoch.";

    ProcessCpuSecondsTotal "process_cpu_seconds_total" Counter Seconds Process Profiler Sum [] "", READ,
        "Total user and system CPU time spent in seconds.";
    ProcessResidentMemoryBytes "process_resident_memory_bytes" Gauge Bytes Process Profiler Sum [] "", READ,
        "Resident memory size in bytes.";
    ProcessVirtualMemoryBytes "process_virtual_memory_bytes" Gauge Bytes Process Profiler Sum [] "", READ,
        "Virtual memory size in bytes.";
    ProcessOpenFds "process_open_fds" Gauge Count Process Profiler Sum [] "", READ,
        "Number of open file descriptors.";
    ProcessMaxFds "process_max_fds" Gauge Count Process Profiler Sum [] "", READ,
        "Maximum number of open file descriptors.";
    ProcessStartTimeSeconds "process_start_time_seconds" Gauge Seconds Process Profiler Max [] "", READ,
        "Start time of the process since unix epoch in seconds.";
}
