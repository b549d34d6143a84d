//! What OpenTelemetry calls each metric, and in which unit. Its own names where it has one for the same thing measured in the same
//! way (semantic conventions 1.37, process metrics); ours in the same form elsewhere. Never a value.

use super::table::{Id, Kind, Merge, Metric, Unit};

/// In a name, stands for the runtime that the target has.
const RUNTIME: &str = "*";

/// What a metric is to OpenTelemetry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Instrument {
    /// Only grows.
    Counter,
    /// Goes up and down, and may be added up.
    UpDownCounter,
    /// Goes up and down, and means nothing when it is added up.
    Gauge,
    /// Counts by size.
    Histogram,
}

impl Instrument {
    /// That of a metric.
    pub fn of(metric: &Metric) -> Instrument {
        match (metric.kind, metric.merge, metric.unit) {
            (Kind::Counter, _, _) => Instrument::Counter,
            (Kind::Histogram, _, _) => Instrument::Histogram,
            (Kind::Gauge, Merge::Sum, Unit::Count | Unit::Bytes) => Instrument::UpDownCounter,
            (Kind::Gauge, _, _) => Instrument::Gauge,
        }
    }
}

/// The name of a metric of a target with this runtime.
pub fn name(id: Id, runtime: &str) -> String {
    let name = row(id).0;
    match name.strip_prefix(RUNTIME) {
        Some(rest) => format!("{}{rest}", if runtime.is_empty() { "runtime" } else { runtime }),
        None => name.to_owned(),
    }
}

/// Its unit, as UCUM has it.
pub const fn unit(id: Id) -> &'static str {
    row(id).1
}

/// Whether it counts from before the profiler came, since a moment that nobody tells.
pub const fn is_older(id: Id) -> bool {
    matches!(id, Id::AcceptOverflowsTotal | Id::RuntimeWorkerBusySecondsTotal | Id::RuntimeTasksSpawnedTotal)
}

/// The attribute of a data point that a label becomes.
pub fn attribute(id: Id, label: &'static str) -> &'static str {
    match (id, label) {
        (Id::SchedSwitchesTotal, "kind") => "process.context_switch.type",
        (_, "thread") => "thread.name",
        (_, label) => label,
    }
}

const fn row(id: Id) -> (&'static str, &'static str) {
    match id {
        Id::SchedRunQueueSeconds => ("profiler.sched.run_queue.duration", "s"),
        Id::SchedTimesliceSeconds => ("profiler.sched.timeslice.duration", "s"),
        Id::SchedBlockedSeconds => ("profiler.sched.blocked.duration", "s"),
        Id::SchedOnCpuSecondsTotal => ("process.cpu.time", "s"),
        Id::SchedOffCpuSecondsTotal => ("profiler.sched.off_cpu.time", "s"),
        Id::SchedSwitchesTotal => ("process.context_switches", "{context_switch}"),
        Id::SchedPreemptionsTotal => ("profiler.sched.preemptions", "{preemption}"),
        Id::SchedMigrationsTotal => ("profiler.sched.migrations", "{migration}"),
        Id::SchedThreadSecondsTotal => ("profiler.sched.thread.time", "s"),
        Id::SchedThreads => ("profiler.sched.thread.count", "{thread}"),
        Id::SchedThreadsStartedTotal => ("profiler.sched.thread.started", "{thread}"),
        Id::SchedThreadsEndedTotal => ("profiler.sched.thread.ended", "{thread}"),
        Id::CpuThrottledSeconds => ("profiler.cpu.throttled.duration", "s"),
        Id::CpuThrottledSecondsTotal => ("profiler.cpu.throttled.time", "s"),
        Id::LoopSecondsTotal => ("profiler.loop.time", "s"),
        Id::LoopIterationSeconds => ("profiler.loop.iteration.duration", "s"),
        Id::LoopDelaySeconds => ("profiler.loop.delay.duration", "s"),
        Id::AcceptQueueLength => ("profiler.accept_queue.length", "{connection}"),
        Id::AcceptQueueLimit => ("profiler.accept_queue.limit", "{connection}"),
        Id::AcceptQueueDepth => ("profiler.accept_queue.depth", "{connection}"),
        Id::AcceptWaitSeconds => ("profiler.accept.wait.duration", "s"),
        Id::AcceptedTotal => ("profiler.accept.connections", "{connection}"),
        Id::AcceptOverflowsTotal => ("profiler.accept.overflows", "{connection}"),
        Id::ConnectionsOpen => ("profiler.connections.open", "{connection}"),
        Id::RequestsOpen => ("profiler.requests.open", "{request}"),
        Id::RequestSeconds => ("profiler.request.duration", "s"),
        Id::AfterReplySeconds => ("profiler.after_reply.duration", "s"),
        Id::JobSeconds => ("profiler.job.duration", "s"),
        Id::JobFetchSeconds => ("profiler.job.fetch.duration", "s"),
        Id::JobThreads => ("profiler.job.thread.count", "{thread}"),
        Id::TasksSpawnedTotal => ("*.task.spawned", "{task}"),
        Id::TasksCompletedTotal => ("*.task.completed", "{task}"),
        Id::TasksAlive => ("*.task.alive", "{task}"),
        Id::TasksFound => ("*.task.found", "{task}"),
        Id::TaskLifetimeSeconds => ("*.task.lifetime", "s"),
        Id::TaskWaitSeconds => ("*.task.wait.duration", "s"),
        Id::TaskLastSpawnTimestampSeconds => ("*.task.last_spawn.timestamp", "s"),
        Id::TasksUnseenSpawnsTotal => ("*.task.unseen_spawns", "{task}"),
        Id::TaskPollsTotal => ("*.task.polls", "{poll}"),
        Id::TaskPollSeconds => ("*.task.poll.duration", "s"),
        Id::TaskBusySecondsTotal => ("*.task.busy.time", "s"),
        Id::TaskSlowPollsTotal => ("*.task.slow_polls", "{poll}"),
        Id::TaskSlowestPollSeconds => ("*.task.slowest_poll.duration", "s"),
        Id::TaskUnfinishedPollSeconds => ("*.task.unfinished_poll.duration", "s"),
        Id::TaskScheduleDelaySeconds => ("*.task.schedule_delay.duration", "s"),
        Id::TaskFirstPollDelaySeconds => ("*.task.first_poll_delay.duration", "s"),
        Id::TaskWakesTotal => ("*.task.wakes", "{wake}"),
        Id::TasksOverdue => ("*.task.overdue", "{task}"),
        Id::TaskCpuSecondsTotal => ("*.task.cpu.time", "s"),
        Id::RuntimeCpuSecondsTotal => ("*.cpu.time", "s"),
        Id::TaskInfo => ("*.task.info", "1"),
        Id::TargetUp => ("profiler.target.up", "1"),
        Id::TargetProcesses => ("profiler.target.process.count", "{process}"),
        Id::RuntimeThreads => ("process.thread.count", "{thread}"),
        Id::GcPauseSeconds => ("*.gc.pause.duration", "s"),
        Id::GcCollectionsTotal => ("*.gc.collections", "{collection}"),
        Id::RuntimeLockWaitSeconds => ("*.lock.wait.duration", "s"),
        Id::DeferredWaitSeconds => ("*.deferred.wait.duration", "s"),
        Id::DeferredRunSeconds => ("*.deferred.run.duration", "s"),
        Id::DeferredWork => ("*.deferred.count", "{task}"),
        Id::RuntimeWorkers => ("*.worker.count", "{worker}"),
        Id::RuntimeWorkerBusySecondsTotal => ("*.worker.busy.time", "s"),
        Id::RuntimeQueueDepth => ("*.queue.depth", "{task}"),
        Id::RuntimeTasksAlive => ("*.tasks.alive", "{task}"),
        Id::RuntimeTasksSpawnedTotal => ("*.tasks.spawned", "{task}"),
        Id::RuntimeTasksRunnable => ("*.tasks.runnable", "{task}"),
        Id::BuildInfo => ("profiler.build.info", "1"),
        Id::TargetInfo => ("profiler.target.info", "1"),
        Id::TargetContainerInfo => ("profiler.target.container.info", "1"),
        Id::TargetUnitInfo => ("profiler.target.unit.info", "1"),
        Id::ProbeState => ("profiler.probe.state", "1"),
        Id::ProbeHitsTotal => ("profiler.probe.hits", "{hit}"),
        Id::ProbeHitsIgnoredTotal => ("profiler.probe.hits_ignored", "{hit}"),
        Id::ProbeCoveredSecondsTotal => ("profiler.probe.covered.time", "s"),
        Id::ProbeCoverageRatio => ("profiler.probe.coverage", "1"),
        Id::OverheadSecondsTotal => ("profiler.overhead.time", "s"),
        Id::OverheadRatio => ("profiler.overhead.share", "1"),
        Id::OverheadBudgetRatio => ("profiler.overhead.budget", "1"),
        Id::NodeOverheadRatio => ("profiler.node.overhead.share", "1"),
        Id::NodeOverheadBudgetRatio => ("profiler.node.overhead.budget", "1"),
        Id::BudgetFactor => ("profiler.budget.factor", "1"),
        Id::PollOverheadSeconds => ("profiler.poll.overhead.duration", "s"),
        Id::EventsTotal => ("profiler.events", "{event}"),
        Id::EventsLostTotal => ("profiler.events.lost", "{event}"),
        Id::DiscoveryProcessesTotal => ("profiler.discovery.processes", "{process}"),
        Id::DiscoveryWaiting => ("profiler.discovery.waiting", "{process}"),
        Id::TargetsWatched => ("profiler.target.watched", "{process}"),
        Id::SeriesTurnedAwayTotal => ("profiler.series.turned_away", "{series}"),
        Id::TargetsLimit => ("profiler.target.limit", "{process}"),
        Id::KubernetesUp => ("profiler.kubernetes.up", "1"),
        Id::KubernetesPods => ("profiler.kubernetes.pod.count", "{pod}"),
        Id::KubernetesPodsTurnedAwayTotal => ("profiler.kubernetes.pod.turned_away", "{pod}"),
        Id::KubernetesEventsTotal => ("profiler.kubernetes.events", "{event}"),
        Id::KubernetesFailuresTotal => ("profiler.kubernetes.failures", "{failure}"),
        Id::DiscoveryUndecided => ("profiler.discovery.undecided", "{process}"),
        Id::DiscoveryUnnamedTotal => ("profiler.discovery.unnamed", "{process}"),
        Id::KubernetesLateNamesTotal => ("profiler.kubernetes.late_names", "{process}"),
        Id::ConfigLastReloadSuccessful => ("profiler.config.last_reload.successful", "1"),
        Id::ConfigLastReloadSuccessTimestampSeconds => ("profiler.config.last_reload.timestamp", "s"),
        Id::ProgramRunsMissedTotal => ("profiler.program.runs_missed", "{run}"),
        Id::TasksTracked => ("profiler.task.tracked", "{task}"),
        Id::SnapshotDurationSeconds => ("profiler.snapshot.duration", "s"),
        Id::ScrapeDurationSeconds => ("profiler.scrape.duration", "s"),
        Id::WebConfigLastReloadSuccessful => ("profiler.web_config.last_reload.successful", "1"),
        Id::OtlpRequestsTotal => ("profiler.otlp.requests", "{request}"),
        Id::OtlpPointsTotal => ("profiler.otlp.points", "{data_point}"),
        Id::OtlpPointsDroppedTotal => ("profiler.otlp.points.dropped", "{data_point}"),
        Id::OtlpQueueBytes => ("profiler.otlp.queue.size", "By"),
        Id::OtlpLastSuccessTimestampSeconds => ("profiler.otlp.last_success.timestamp", "s"),
        Id::ProcessCpuSecondsTotal => ("process.cpu.time", "s"),
        Id::ProcessResidentMemoryBytes => ("process.memory.usage", "By"),
        Id::ProcessVirtualMemoryBytes => ("process.memory.virtual", "By"),
        Id::ProcessOpenFds => ("process.unix.file_descriptor.count", "{file_descriptor}"),
        Id::ProcessMaxFds => ("profiler.file_descriptor.limit", "{file_descriptor}"),
        Id::ProcessStartTimeSeconds => ("profiler.start.timestamp", "s"),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::super::table::METRICS;
    use super::*;

    /// Check that names are unique among those of a resource, and in OpenTelemetry's form: the unit is no part of them, and is
    /// that of the metric.
    #[test]
    fn names_are_of_the_right_form() {
        let mut seen = HashSet::new();
        for metric in METRICS {
            let name = name(metric.id, "tokio");
            assert!(
                seen.insert((metric.scope == super::super::table::Scope::Target, name.clone())),
                "{name} is there twice"
            );
            assert!(name.contains('.') && name.bytes().all(|c| c.is_ascii_lowercase() || b"._".contains(&c)), "{name}");
            assert!(name.split(['.', '_']).all(|part| !part.is_empty()), "{name}");
            for end in ["total", "seconds", "bytes", "ratio"] {
                assert!(!name.ends_with(end), "{name}: units and kinds are no part of a name");
            }
            let unit = unit(metric.id);
            let right = match metric.unit {
                Unit::Seconds => unit == "s",
                Unit::Bytes => unit == "By",
                Unit::Count => unit.starts_with('{') && unit.ends_with('}'),
                Unit::State => unit == "1",
            };
            assert!(right, "{name}: {unit}");
        }
        assert_eq!(name(Id::TasksAlive, ""), "runtime.task.alive");
    }
}
