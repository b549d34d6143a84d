//! Fills the page from a snapshot: one function per area. What was not measured gets no series.

use std::sync::{Arc, LazyLock};

use crate::histogram::Histogram;
use profiler_common::map::wake;
use profiler_common::sched::{after, cause, preempter};
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use rustc_hash::FxHashMap;

use super::labels::{self, BOUND, Bounded, OTHER};
use super::own::Own;
use super::series::{Labels, Page, scaled};
use super::table::{Id, METRICS, Unit};
use crate::event::Outcome;
use crate::model::snapshot::{
    BudgetSnapshot, DeferredSnapshot, GroupKey, GroupSnapshot, JobsSnapshot, ListenerSnapshot, PollSnapshot,
    RequestsSnapshot, RuntimeSnapshot, SchedSnapshot, Snapshot, TargetSnapshot, TaskTypeSnapshot, TasksSnapshot,
};
use crate::status::ProbeState;

/// Spawn sites of one type that are exported.
const SITES: usize = 4;

/// Collects the metrics of one snapshot.
pub struct SnapshotCollector {
    snapshot: Arc<Snapshot>,
    own: Own,
    bound: usize,
}

impl SnapshotCollector {
    /// Collects from `snapshot`, and about the profiler's process from `own`.
    pub fn new(snapshot: Arc<Snapshot>, own: Own) -> SnapshotCollector {
        SnapshotCollector { snapshot, own, bound: BOUND }
    }

    /// At most this many values per bounded label and target.
    #[must_use]
    pub fn bound(mut self, bound: usize) -> SnapshotCollector {
        self.bound = bound;
        self
    }
}

impl Collector for SnapshotCollector {
    fn desc(&self) -> Vec<&Desc> {
        static DESCS: LazyLock<Vec<Desc>> = LazyLock::new(|| {
            let desc = |row: &super::table::Metric| {
                let labels = row.all_labels().map(str::to_owned).collect();
                Desc::new(row.full_name(), row.help.to_owned(), labels, Default::default())
            };
            // A row that Prometheus would refuse is found by this module's tests.
            METRICS.iter().filter_map(|row| desc(row).ok()).collect()
        });
        DESCS.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let mut families = Vec::new();
        self.each(&mut |family| families.push(family));
        families
    }
}

impl SnapshotCollector {
    /// Hands the families to `see`, one by one: of many targets they are large.
    pub fn each(&self, see: &mut dyn FnMut(MetricFamily)) {
        let snapshot = &*self.snapshot;
        let members = members(snapshot);
        let names = members.iter().map(|(key, target)| match key {
            Some(key) => labels::group(key),
            None => labels::target(target),
        });
        let mut page = Page::new(names.collect());
        let groups = snapshot.groups.iter().flatten();
        let groups: FxHashMap<&GroupKey, &GroupSnapshot> = groups.map(|group| (&group.key, group)).collect();
        let unknown = unknown(&members);
        for (index, (key, target)) in members.iter().enumerate() {
            let known = key.as_ref().and_then(|key| groups.get(key).copied());
            let unknown = key.as_ref().and_then(|key| unknown.get(key).copied()).unwrap_or_default();
            let filler = Filler { page: &mut page, index, bound: self.bound, known, unknown };
            filler.fill(target, snapshot.epoch_offset_seconds);
        }
        profiler(&mut page, snapshot, &self.own);
        page.families(see);
    }
}

/// A target, and its group where it shares its series.
type Member<'a> = (Option<GroupKey>, &'a TargetSnapshot);

/// What is on the page: what is gone of each group, and all targets.
fn members(snapshot: &Snapshot) -> Vec<Member<'_>> {
    let groups = snapshot.groups.iter().flatten();
    let gone = groups.filter_map(|group| Some((Some(group.key.clone()), group.gone.as_deref()?)));
    let key = |target| snapshot.groups.is_some().then(|| GroupKey::of(target));
    let named = snapshot.targets.iter().filter(|target| snapshot.groups.is_none() || !target.identity.awaited);
    gone.chain(named.map(|target| (key(target), target))).collect()
}

/// What is not known of a group, since it is not known of one of its targets: a sum of the others would silently lack that
/// one, whether it runs or has ended.
#[derive(Clone, Copy, Default)]
struct Unknown {
    /// Totals of births and ends.
    lifecycle: bool,
    /// Totals of polls and wakes.
    polls: bool,
    /// Who lives.
    alive: bool,
}

fn unknown<'m>(members: &'m [Member<'_>]) -> FxHashMap<&'m GroupKey, Unknown> {
    let mut unknown: FxHashMap<&GroupKey, Unknown> = FxHashMap::default();
    for (key, target) in members {
        let (Some(key), Some(tasks)) = (key, &target.tasks) else { continue };
        let of = unknown.entry(key).or_default();
        of.lifecycle |= !tasks.lifecycle_continuous;
        of.polls |= tasks.polls_continuous == Some(false);
        of.alive |= target.running
            && if tasks.lifecycle_continuous { !Seen::of(target).ends } else { listed(target).is_none() };
    }
    unknown
}

/// Who lives as the runtime's own lists tell.
fn listed(target: &TargetSnapshot) -> Option<&[(String, u64)]> {
    target.figures.as_ref()?.by_type.as_deref()
}

/// What the probes of a target see of its tasks: only that can be zero.
#[derive(Clone, Copy)]
struct Seen {
    /// Ends.
    ends: bool,
    /// Cancellations and panics.
    outcomes: bool,
    /// What was there before.
    found: bool,
}

impl Seen {
    fn of(target: &TargetSnapshot) -> Seen {
        let status = &target.status;
        Seen {
            ends: status.is_measured("task_complete") != Some(false),
            outcomes: status.is_measured("task_outcome") == Some(true),
            found: status.is_measured("task_walk") == Some(true),
        }
    }
}

/// Fills in one target.
struct Filler<'p, 'a> {
    page: &'p mut Page<'a>,
    index: usize,
    bound: usize,
    /// Its group, where it shares its series.
    known: Option<&'a GroupSnapshot>,
    /// What is not known of its group.
    unknown: Unknown,
}

impl<'a> Filler<'_, 'a> {
    fn fill(mut self, target: &'a TargetSnapshot, epoch_offset_seconds: f64) {
        self.state(target);
        if let Some(sched) = &target.sched {
            self.sched(sched);
        }
        if let Some(throttled) = &target.throttled {
            self.histogram(Id::CpuThrottledSeconds, ["", ""], &throttled.wait);
            self.number(Id::CpuThrottledSecondsTotal, ["", ""], scaled(throttled.wait.sum, Unit::Seconds));
        }
        self.listeners(&target.listeners);
        if let Some(requests) = &target.requests {
            self.requests(requests);
        }
        if let Some(jobs) = &target.jobs {
            self.jobs(jobs);
        }
        if let Some(pauses) = &target.pauses {
            self.histogram(Id::GcPauseSeconds, ["", ""], &pauses.pause);
            if let Some(collections) = pauses.collections {
                self.number(Id::GcCollectionsTotal, ["", ""], collections as f64);
            }
        }
        if let Some(waits) = &target.lock_waits {
            self.histogram(Id::RuntimeLockWaitSeconds, ["", ""], waits);
        }
        if let Some(deferred) = &target.deferred {
            self.deferred(deferred);
        }
        for (reason, wait) in &target.waits {
            self.histogram(Id::TaskWaitSeconds, [reason, ""], wait);
        }
        if let Some(tasks) = &target.tasks {
            let seen = Seen::of(target);
            self.tasks(tasks, epoch_offset_seconds, seen);
            if !self.unknown.alive {
                self.alive(target, tasks, seen);
            }
        }
        if let Some(budget) = &target.budget {
            self.budget(budget);
        }
    }

    fn number(&mut self, id: Id, own: [&'a str; 2], value: f64) {
        self.page.number(id, Labels { target: Some(self.index), own }, value);
    }

    fn histogram(&mut self, id: Id, own: [&'a str; 2], value: &'a Histogram) {
        self.page.histogram(id, Labels { target: Some(self.index), own }, value);
    }

    fn state(&mut self, target: &'a TargetSnapshot) {
        self.number(Id::TargetUp, ["", ""], f64::from(u8::from(target.running)));
        self.number(Id::TargetInfo, [target.runtime_version.as_deref().unwrap_or_default(), ""], 1.0);
        let identity = &target.identity;
        let ids = [&identity.container_id, &identity.pod_uid].map(|id| id.as_deref().unwrap_or_default());
        if ids != ["", ""] {
            self.number(Id::TargetContainerInfo, ids, 1.0);
        }
        if let Some(unit) = &identity.systemd_unit {
            self.number(Id::TargetUnitInfo, [unit, ""], 1.0);
        }
        if let Some(processes) = target.processes {
            self.number(Id::TargetProcesses, ["", ""], processes as f64);
        }
        if let Some(threads) = target.threads {
            self.number(Id::RuntimeThreads, ["", ""], threads as f64);
        }
        if let Some(figures) = &target.figures {
            self.figures(figures);
        }
        for row in &target.status.probes {
            for state in ProbeState::ALL {
                let value = f64::from(u8::from(row.state == state));
                self.number(Id::ProbeState, [&row.probe, state.label()], value);
            }
        }
    }

    fn figures(&mut self, figures: &'a RuntimeSnapshot) {
        let numbers = [
            (Id::RuntimeWorkers, figures.workers),
            (Id::RuntimeTasksAlive, figures.alive),
            (Id::RuntimeTasksSpawnedTotal, figures.spawned),
            (Id::RuntimeTasksRunnable, figures.runnable),
        ];
        for (id, value) in numbers {
            if let Some(value) = value {
                self.number(id, ["", ""], value as f64);
            }
        }
        if let Some(busy_ns) = figures.busy_ns {
            self.number(Id::RuntimeWorkerBusySecondsTotal, ["", ""], scaled(busy_ns, Unit::Seconds));
        }
        for (queue, depth) in &figures.queues {
            self.number(Id::RuntimeQueueDepth, [queue, ""], *depth as f64);
        }
    }

    fn sched(&mut self, sched: &'a SchedSnapshot) {
        for (label, wait) in after::LABELS.into_iter().zip(&sched.run_queue) {
            self.histogram(Id::SchedRunQueueSeconds, [label, ""], wait);
        }
        self.histogram(Id::SchedTimesliceSeconds, ["", ""], &sched.on_cpu);
        self.histogram(Id::SchedBlockedSeconds, ["", ""], &sched.blocked);
        let seconds = |ns: u64| scaled(ns, Unit::Seconds);
        self.number(Id::SchedOnCpuSecondsTotal, ["", ""], seconds(sched.on_cpu_ns));
        self.number(Id::SchedOffCpuSecondsTotal, ["run_queue", ""], seconds(sched.run_queue_ns()));
        for (cause, (label, ns)) in cause::LABELS.into_iter().zip(sched.asleep_ns).enumerate() {
            // Where causes are told, what could not be told is the exception; where they are not, they are not zero.
            let shown = if cause == cause::UNTOLD { !sched.causes_told || ns > 0 } else { sched.causes_told };
            if shown {
                self.number(Id::SchedOffCpuSecondsTotal, [label, ""], seconds(ns));
            }
        }
        self.number(Id::SchedSwitchesTotal, ["voluntary", ""], sched.voluntary_switches as f64);
        self.number(Id::SchedSwitchesTotal, ["involuntary", ""], sched.involuntary_switches() as f64);
        for (label, count) in preempter::LABELS.into_iter().zip(sched.preemptions) {
            self.number(Id::SchedPreemptionsTotal, [label, ""], count as f64);
        }
        self.number(Id::SchedMigrationsTotal, ["", ""], sched.migrations as f64);
        for event_loop in &sched.loops {
            let name = event_loop.name.as_str();
            for (state, ns) in [("active", event_loop.active_ns), ("idle", event_loop.idle_ns)] {
                self.number(Id::LoopSecondsTotal, [name, state], seconds(ns));
            }
            self.histogram(Id::LoopIterationSeconds, [name, ""], &event_loop.iteration);
            self.histogram(Id::LoopDelaySeconds, [name, ""], &event_loop.delay);
        }
        for threads in &sched.threads {
            let states =
                [("on_cpu", threads.on_cpu_ns), ("run_queue", threads.run_queue_ns), ("off_cpu", threads.asleep_ns)];
            for (state, ns) in states {
                self.number(Id::SchedThreadSecondsTotal, [&threads.name, state], seconds(ns));
            }
            self.number(Id::SchedThreads, [&threads.name, ""], threads.threads as f64);
            self.number(Id::SchedThreadsStartedTotal, [&threads.name, ""], threads.started as f64);
            self.number(Id::SchedThreadsEndedTotal, [&threads.name, ""], threads.ended as f64);
        }
    }

    fn requests(&mut self, requests: &'a RequestsSnapshot) {
        self.number(Id::ConnectionsOpen, ["", ""], requests.open as f64);
        let states = [
            ("unread", requests.unread),
            ("in_progress", Some(requests.in_progress)),
            ("after_reply", Some(requests.replied)),
        ];
        for (state, requests) in states {
            if let Some(requests) = requests {
                self.number(Id::RequestsOpen, [state, ""], requests as f64);
            }
        }
        self.histogram(Id::RequestSeconds, ["", ""], &requests.request);
        self.histogram(Id::AfterReplySeconds, ["", ""], &requests.after_reply);
    }

    fn deferred(&mut self, deferred: &'a DeferredSnapshot) {
        self.histogram(Id::DeferredWaitSeconds, ["", ""], &deferred.wait);
        self.histogram(Id::DeferredRunSeconds, ["", ""], &deferred.run);
        if let Some((waiting, running)) = deferred.now.filter(|_| !self.unknown.lifecycle) {
            for (state, work) in [("waiting", waiting), ("running", running)] {
                self.number(Id::DeferredWork, [state, ""], work as f64);
            }
        }
    }

    fn jobs(&mut self, jobs: &'a JobsSnapshot) {
        self.histogram(Id::JobSeconds, ["", ""], &jobs.job);
        self.histogram(Id::JobFetchSeconds, ["", ""], &jobs.fetch);
        for (state, threads) in [("busy", jobs.busy), ("idle", jobs.idle)] {
            self.number(Id::JobThreads, [state, ""], threads as f64);
        }
    }

    fn listeners(&mut self, listeners: &'a [ListenerSnapshot]) {
        let mut names = Bounded::new(self.bound).after(self.known.map_or(&[], |group| &group.listeners));
        for listener in listeners {
            let own = [names.value(&listener.listener), ""];
            let numbers = [
                (Id::AcceptQueueLength, listener.length),
                (Id::AcceptQueueLimit, listener.limit),
                (Id::AcceptedTotal, listener.accepted),
                (Id::AcceptOverflowsTotal, listener.overflows),
            ];
            for (id, value) in numbers {
                if let Some(value) = value {
                    self.number(id, own, value as f64);
                }
            }
            for (id, value) in [(Id::AcceptQueueDepth, &listener.depth), (Id::AcceptWaitSeconds, &listener.wait)] {
                if let Some(value) = value {
                    self.histogram(id, own, value);
                }
            }
        }
    }

    fn tasks(&mut self, tasks: &'a TasksSnapshot, epoch_offset_seconds: f64, seen: Seen) {
        static NO_LIFETIME: Histogram = Histogram::EMPTY;
        let mut names = Bounded::new(self.bound).after(self.known.map_or(&[], |group| &group.tasks));
        for kind in &tasks.types {
            let task = names.value(&kind.name);
            if tasks.lifecycle_continuous && !self.unknown.lifecycle {
                self.lifecycle(task, kind, seen);
            }
            if seen.ends {
                self.histogram(Id::TaskLifetimeSeconds, [task, ""], kind.lifetime.as_ref().unwrap_or(&NO_LIFETIME));
            }
            if let Some(polls) = &kind.polls {
                self.polls(task, polls, tasks.polls_continuous == Some(true) && !self.unknown.polls);
            }
            if let Some(overdue) = kind.overdue {
                self.number(Id::TasksOverdue, [task, ""], overdue as f64);
            }
            if let Some(unfinished) = kind.unfinished {
                self.number(Id::TaskUnfinishedPollSeconds, [task, ""], scaled(unfinished.longest_ns, Unit::Seconds));
            }
            if let Some(cpu_ns) = kind.cpu_ns {
                self.number(Id::TaskCpuSecondsTotal, [task, ""], scaled(cpu_ns, Unit::Seconds));
            }
            if seen.found {
                self.number(Id::TasksFound, [task, ""], kind.found as f64);
            }
            if let Some(last_ns) = kind.last_spawn_ns {
                let seconds = epoch_offset_seconds + scaled(last_ns, Unit::Seconds);
                self.number(Id::TaskLastSpawnTimestampSeconds, [task, ""], seconds);
            }
            for site in kind.spawn_sites.iter().take(SITES).filter(|_| task != OTHER) {
                self.number(Id::TaskInfo, [task, &site.name], 1.0);
            }
        }
        if let Some(cpu) = tasks.cpu {
            let in_tasks_ns = tasks.types.iter().filter_map(|kind| kind.cpu_ns).sum();
            let states = [
                ("task", in_tasks_ns),
                ("scheduler", cpu.scheduler_ns),
                ("other", cpu.other_ns),
                ("unknown", cpu.unknown_ns),
            ];
            for (state, ns) in states {
                self.number(Id::RuntimeCpuSecondsTotal, [state, ""], scaled(ns, Unit::Seconds));
            }
        }
    }
}

impl<'a> Filler<'_, 'a> {
    /// Totals of births and ends.
    fn lifecycle(&mut self, task: &'a str, kind: &'a TaskTypeSnapshot, seen: Seen) {
        self.number(Id::TasksSpawnedTotal, [task, ""], kind.spawned as f64);
        for (outcome, count) in Outcome::ALL.into_iter().zip(kind.completed) {
            if count > 0 || (seen.outcomes && outcome != Outcome::Unknown) {
                self.number(Id::TasksCompletedTotal, [task, outcome.label()], count as f64);
            }
        }
        if seen.ends {
            self.number(Id::TasksUnseenSpawnsTotal, [task, ""], kind.unseen_spawns as f64);
        }
    }

    /// Who lives: as it was counted; while births and ends are sampled, only the runtime's own lists tell.
    fn alive(&mut self, target: &'a TargetSnapshot, tasks: &'a TasksSnapshot, seen: Seen) {
        let mut names = Bounded::new(self.bound).after(self.known.map_or(&[], |group| &group.tasks));
        let mut show = |name, alive: u64| self.number(Id::TasksAlive, [names.value(name), ""], alive as f64);
        if target.running && !tasks.lifecycle_continuous {
            listed(target).into_iter().flatten().for_each(|(name, alive)| show(name, *alive));
        } else if seen.ends {
            tasks.types.iter().for_each(|kind| show(&kind.name, kind.alive));
        }
    }

    /// Polls and wakes: totals only where every one was seen.
    fn polls(&mut self, task: &'a str, polls: &'a PollSnapshot, continuous: bool) {
        self.histogram(Id::TaskPollSeconds, [task, ""], &polls.poll);
        self.number(Id::TaskSlowestPollSeconds, [task, ""], scaled(polls.slowest_ns, Unit::Seconds));
        for (id, delay) in
            [(Id::TaskScheduleDelaySeconds, &polls.delay), (Id::TaskFirstPollDelaySeconds, &polls.first_delay)]
        {
            if let Some(delay) = delay {
                self.histogram(id, [task, ""], delay);
            }
        }
        if !continuous {
            return;
        }
        self.number(Id::TaskPollsTotal, [task, ""], polls.polls as f64);
        self.number(Id::TaskBusySecondsTotal, [task, ""], scaled(polls.busy_ns, Unit::Seconds));
        self.number(Id::TaskSlowPollsTotal, [task, ""], polls.slow as f64);
        for (kind, wakes) in wake::LABELS.into_iter().zip(polls.wakes.into_iter().flatten()) {
            self.number(Id::TaskWakesTotal, [task, kind], wakes as f64);
        }
    }

    fn budget(&mut self, budget: &'a BudgetSnapshot) {
        for probe in budget.probes.iter().filter(|probe| probe.hits > 0) {
            self.number(Id::ProbeHitsTotal, [probe.probe, ""], probe.hits as f64);
            self.number(Id::OverheadSecondsTotal, [probe.probe, ""], probe.cost_ns / 1e9);
        }
        for tier in &budget.tiers {
            self.number(Id::ProbeCoveredSecondsTotal, [tier.tier, ""], scaled(tier.covered_ns, Unit::Seconds));
            self.number(Id::ProbeCoverageRatio, [tier.tier, ""], tier.coverage);
        }
        for (id, value) in [(Id::OverheadRatio, budget.cost_share), (Id::OverheadBudgetRatio, budget.share)] {
            if let Some(value) = value {
                self.number(id, ["", ""], value);
            }
        }
        self.number(Id::PollOverheadSeconds, ["", ""], budget.poll_added_ns / 1e9);
    }
}

fn profiler<'a>(page: &mut Page<'a>, snapshot: &'a Snapshot, own: &Own) {
    let mut number = |id, label: &'a str, value| page.number(id, Labels { target: None, own: [label, ""] }, value);
    number(Id::BuildInfo, env!("CARGO_PKG_VERSION"), 1.0);
    let lists = [
        (Id::ProbeHitsIgnoredTotal, &snapshot.profiler.hits_ignored),
        (Id::EventsTotal, &snapshot.profiler.events),
        (Id::EventsLostTotal, &snapshot.profiler.lost),
    ];
    for (id, list) in lists {
        for (label, value) in list {
            number(id, label, *value as f64);
        }
    }
    for (program, missed) in &snapshot.profiler.runs_missed {
        number(Id::ProgramRunsMissedTotal, program, *missed as f64);
    }
    let tracked: u64 = snapshot.targets.iter().filter_map(|t| t.tasks.as_ref()).map(|tasks| tasks.tracked).sum();
    number(Id::TasksTracked, "", tracked as f64);
    if let Some(seconds) = snapshot.profiler.snapshot_seconds {
        number(Id::SnapshotDurationSeconds, "", seconds);
    }
    if let Some(node) = &snapshot.profiler.node {
        number(Id::NodeOverheadRatio, "", node.cost_share);
        if let Some(share) = node.share {
            number(Id::NodeOverheadBudgetRatio, "", share);
        }
        number(Id::BudgetFactor, "", node.factor);
    }
    if let Some(discovery) = &snapshot.profiler.discovery {
        for (verdict, n) in &discovery.looked_at {
            number(Id::DiscoveryProcessesTotal, verdict, *n as f64);
        }
        number(Id::DiscoveryWaiting, "", discovery.waiting as f64);
        number(Id::TargetsWatched, "", discovery.watched as f64);
        number(Id::SeriesTurnedAwayTotal, "", discovery.turned_away as f64);
        number(Id::TargetsLimit, "", discovery.limit as f64);
        if let Some(cluster) = &discovery.cluster {
            if let Some(up) = cluster.up {
                number(Id::KubernetesUp, "", f64::from(u8::from(up)));
            }
            number(Id::KubernetesPods, "", cluster.pods as f64);
            number(Id::KubernetesPodsTurnedAwayTotal, "", cluster.turned_away as f64);
            number(Id::KubernetesEventsTotal, "", cluster.events as f64);
            for (reason, n) in &cluster.failures {
                number(Id::KubernetesFailuresTotal, reason, *n as f64);
            }
            number(Id::DiscoveryUndecided, "", cluster.undecided as f64);
            number(Id::DiscoveryUnnamedTotal, "", cluster.given_up as f64);
            number(Id::KubernetesLateNamesTotal, "", cluster.late as f64);
        }
        if let Some(config) = &discovery.config {
            number(Id::ConfigLastReloadSuccessful, "", f64::from(u8::from(config.refusal.is_none())));
            number(Id::ConfigLastReloadSuccessTimestampSeconds, "", config.loaded_seconds);
        }
    }
    if let Some(push) = &own.push {
        for (&result, &n) in &push.requests {
            number(Id::OtlpRequestsTotal, result, n as f64);
        }
        for (&reason, &n) in &push.dropped {
            number(Id::OtlpPointsDroppedTotal, reason, n as f64);
        }
        number(Id::OtlpPointsTotal, "", push.points as f64);
        number(Id::OtlpQueueBytes, "", push.queue_bytes as f64);
        if let Some(seconds) = push.last_success_seconds {
            number(Id::OtlpLastSuccessTimestampSeconds, "", seconds);
        }
    }
    for (id, value) in own.figures() {
        if let Some(value) = value {
            number(id, "", value);
        }
    }
}
