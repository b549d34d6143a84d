//! `/status`: the snapshot as JSON, for scripts and tests. Of histograms only quantiles: they are metrics.

use std::collections::BTreeMap;

use crate::histogram::Histogram;
use profiler_common::map::wake;
use serde::ser::{Serialize, SerializeMap as _, Serializer};
use serde_json::{Map, Value, json};

use crate::event::Outcome;
use crate::metrics::own::PushFigures;
use crate::model::snapshot::{
    BudgetSnapshot, DeferredSnapshot, DiagnosisSnapshot, DiscoverySnapshot, EdgeParent, Evidence, FailedSnapshot,
    JobsSnapshot, ListenerSnapshot, LongRunSnapshot, LoopSnapshot, PollSnapshot, ProbeCost, RequestsSnapshot,
    RuntimeSnapshot, Snapshot, SpawnSiteSnapshot, TargetSnapshot, TasksSnapshot, TierSnapshot,
};

/// The document. What was not measured is `null`.
pub struct Document<'a> {
    snapshot: &'a Snapshot,
    /// All but the targets.
    rest: Map<String, Value>,
}

impl Document<'_> {
    /// The document of a snapshot.
    pub fn new(snapshot: &Snapshot) -> Document<'_> {
        let rest = match rest(snapshot) {
            Value::Object(rest) => rest,
            _ => Map::new(),
        };
        Document { snapshot, rest }
    }

    /// Adds what the snapshot does not have.
    pub fn add(&mut self, name: &str, value: impl Into<Value>) {
        self.rest.insert(name.to_owned(), value.into());
    }
}

impl Serialize for Document<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        self.rest.iter().try_for_each(|(name, value)| map.serialize_entry(name, value))?;
        map.serialize_entry("targets", &Targets(&self.snapshot.targets))?;
        map.end()
    }
}

/// One after the other: those of a node are too many to be in memory as values.
struct Targets<'a>(&'a [TargetSnapshot]);

impl Serialize for Targets<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(target))
    }
}

fn rest(snapshot: &Snapshot) -> Value {
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "ready": snapshot.profiler.not_ready.is_none(),
        "not_ready": snapshot.profiler.not_ready,
        "diagnoses": snapshot.diagnoses.iter().map(|found| diagnosis(found, snapshot)).collect::<Vec<_>>(),
        "discovery": snapshot.profiler.discovery.as_ref().map(discovery),
        "node_budget": snapshot.profiler.node.as_ref().map(|node| json!({
            "budget": node.budget,
            "budget_ratio": node.share,
            "cost_ratio": node.cost_share,
            "factor": node.factor,
        })),
        "events": numbers(&snapshot.profiler.events),
        "hits_ignored": numbers(&snapshot.profiler.hits_ignored),
        "runs_missed": snapshot.profiler.runs_missed.iter().cloned().collect::<BTreeMap<_, _>>(),
        "losses": numbers(&snapshot.profiler.lost),
    })
}

/// What has come of pushing.
pub fn push(figures: &PushFigures) -> Value {
    json!({
        "requests": figures.requests,
        "points": figures.points,
        "points_dropped": figures.dropped,
        "queue_bytes": figures.queue_bytes,
        "last_success_seconds": figures.last_success_seconds,
        "why": figures.why,
    })
}

/// What is wrong with a target. `target` is its process id.
fn diagnosis(found: &DiagnosisSnapshot, snapshot: &Snapshot) -> Value {
    let figure = |evidence: Evidence| match evidence {
        Evidence::Count(n) => n.into(),
        Evidence::Seconds(n) | Evidence::Ratio(n) => n.into(),
    };
    let evidence = found.evidence.iter().map(|&(name, value)| (name.to_owned(), figure(value)));
    json!({
        "name": found.name,
        "severity": found.severity.label(),
        "target": found.pid,
        "subject": (!found.subject.is_empty()).then_some(&found.subject),
        "for_seconds": snapshot.time_ns.saturating_sub(found.since_ns) as f64 / 1e9,
        "summary": found.summary,
        "evidence": evidence.collect::<Map<String, Value>>(),
    })
}

/// How processes are found; `null` where they were named.
fn discovery(discovery: &DiscoverySnapshot) -> Value {
    let failed = |failed: &FailedSnapshot| json!({ "pid": failed.pid, "process": failed.process, "why": failed.why });
    json!({
        "looked_at": numbers(&discovery.looked_at),
        "waiting": discovery.waiting,
        "watched": discovery.watched,
        "limit": discovery.limit,
        "config": discovery.config.as_ref().map(|config| json!({
            "loaded_seconds": config.loaded_seconds,
            "refusal": config.refusal,
        })),
        "failed": discovery.failed.iter().map(failed).collect::<Vec<_>>(),
        "kubernetes": discovery.cluster.as_ref().map(|cluster| json!({
            "up": cluster.up,
            "why": cluster.why,
            "pods": cluster.pods,
            "pods_turned_away": cluster.turned_away,
            "events": cluster.events,
            "failures": numbers(&cluster.failures),
            "undecided": cluster.undecided,
            "decided_without_names": cluster.given_up,
            "late_names": cluster.late,
        })),
    })
}

fn numbers(list: &[(&'static str, u64)]) -> Value {
    let mut map: Map<String, Value> = Map::new();
    for (name, value) in list {
        let sum = map.get(*name).and_then(Value::as_u64).map_or(*value, |earlier| earlier + value);
        map.insert((*name).to_owned(), sum.into());
    }
    map.into()
}

fn target(target: &TargetSnapshot) -> Value {
    json!({
        "pid": target.pid,
        "process": target.process,
        "runtime": target.runtime,
        "runtime_version": target.runtime_version,
        "container_id": target.identity.container_id,
        "pod_uid": target.identity.pod_uid,
        "systemd_unit": target.identity.systemd_unit,
        "namespace": target.identity.namespace,
        "pod": target.identity.pod,
        "container": target.identity.container,
        "names_awaited": target.identity.awaited,
        "running": target.running,
        "processes": target.processes,
        "threads": target.threads,
        "probes": target.status.probes,
        "listeners": target.listeners.iter().map(listener).collect::<Vec<_>>(),
        "requests": target.requests.as_ref().map(requests),
        "jobs": target.jobs.as_ref().map(jobs),
        "lock_waits": target.lock_waits.as_ref().map(quantiles),
        "deferred": target.deferred.as_ref().map(deferred),
        "waits": target.waits.iter().map(|(reason, wait)| (*reason, quantiles(wait))).collect::<BTreeMap<_, _>>(),
        "gc": target.pauses.as_ref().map(|pauses| {
            json!({ "pauses": quantiles(&pauses.pause), "pause_seconds": pauses.pause.sum as f64 / 1e9, "collections": pauses.collections })
        }),
        "loops": target.sched.iter().flat_map(|sched| &sched.loops).map(event_loop).collect::<Vec<_>>(),
        "tasks": target.tasks.as_ref().map(tasks),
        "budget": target.budget.as_ref().map(budget),
        "figures": target.figures.as_ref().map(figures),
    })
}

fn event_loop(event_loop: &LoopSnapshot) -> Value {
    json!({
        "thread": event_loop.name,
        "active_seconds": event_loop.active_ns as f64 / 1e9,
        "idle_seconds": event_loop.idle_ns as f64 / 1e9,
        "iteration": quantiles(&event_loop.iteration),
        "delay": quantiles(&event_loop.delay),
    })
}

fn budget(budget: &BudgetSnapshot) -> Value {
    let probe = |probe: &ProbeCost| {
        json!({
            "probe": probe.probe,
            "hits": probe.hits,
            "cost_seconds": probe.cost_ns / 1e9,
            "hit_ns": probe.hit_ns,
        })
    };
    let tier = |tier: &TierSnapshot| json!({ "tier": tier.tier, "mode": tier.mode, "coverage": tier.coverage });
    json!({
        "budget": budget.budget,
        "cost_share": budget.cost_share,
        "why": budget.why,
        "tiers": budget.tiers.iter().map(tier).collect::<Vec<_>>(),
        "probes": budget.probes.iter().filter(|probe| probe.hits > 0).map(probe).collect::<Vec<_>>(),
    })
}

fn quantiles(histogram: &Histogram) -> Value {
    json!({ "count": histogram.count, "p50_ns": histogram.quantile(0.5), "p90_ns": histogram.quantile(0.9),
            "p99_ns": histogram.quantile(0.99) })
}

fn requests(requests: &RequestsSnapshot) -> Value {
    json!({
        "connections_open": requests.open,
        "unread": requests.unread,
        "in_progress": requests.in_progress,
        "after_reply_now": requests.replied,
        "request": quantiles(&requests.request),
        "after_reply": quantiles(&requests.after_reply),
    })
}

fn deferred(deferred: &DeferredSnapshot) -> Value {
    let (waiting, running) = deferred.now.unzip();
    json!({
        "waiting": waiting,
        "running": running,
        "wait": quantiles(&deferred.wait),
        "run": quantiles(&deferred.run),
    })
}

fn jobs(jobs: &JobsSnapshot) -> Value {
    json!({
        "busy": jobs.busy,
        "idle": jobs.idle,
        "job": quantiles(&jobs.job),
        "fetch": quantiles(&jobs.fetch),
    })
}

/// `null` where they are not measured.
fn polls(polls: &PollSnapshot) -> Value {
    json!({
        "polls": polls.polls,
        "busy_seconds": polls.busy_ns as f64 / 1e9,
        "slow": polls.slow,
        "slowest_seconds": polls.slowest_ns as f64 / 1e9,
        "poll": quantiles(&polls.poll),
        "schedule_delay": polls.delay.as_ref().map(quantiles),
        "first_poll_delay": polls.first_delay.as_ref().map(quantiles),
        "wakes": polls.wakes.map(|wakes| {
            wake::LABELS.into_iter().zip(wakes).map(|(l, n)| (l.to_owned(), n.into())).collect::<Map<String, Value>>()
        }),
    })
}

fn figures(figures: &RuntimeSnapshot) -> Value {
    let counts =
        |list: &[(String, u64)]| list.iter().map(|(name, n)| json!({ "name": name, "alive": n })).collect::<Vec<_>>();
    json!({
        "runtimes": figures.runtimes,
        "workers": figures.workers,
        "busy_ns": figures.busy_ns,
        "queues": numbers(&figures.queues),
        "alive": figures.alive,
        "spawned": figures.spawned,
        "runnable": figures.runnable,
        "by_type": figures.by_type.as_deref().map(counts),
    })
}

fn listener(listener: &ListenerSnapshot) -> Value {
    json!({
        "listener": listener.listener,
        "length": listener.length,
        "limit": listener.limit,
        "overflows": listener.overflows,
        "accepted": listener.accepted,
    })
}

fn tasks(tasks: &TasksSnapshot) -> Value {
    let types = tasks.types.iter().enumerate().map(|(index, kind)| {
        let completed = Outcome::ALL.into_iter().zip(kind.completed);
        json!({
            "name": kind.name,
            "full_name": kind.full_name,
            "aliases": kind.aliases,
            "blocking": kind.blocking,
            "internal": kind.internal,
            "spawned": kind.spawned,
            "completed": completed.map(|(o, n)| (o.label().to_owned(), n.into())).collect::<Map<String, Value>>(),
            "unseen_spawns": kind.unseen_spawns,
            "found": kind.found,
            "alive": kind.alive,
            "cpu_ns": kind.cpu_ns,
            "long_runs": kind.long_runs.as_ref().map(long_runs),
            "parents": parents(tasks, index),
            "polls": kind.polls.as_ref().map(polls),
            "overdue": kind.overdue,
            "unfinished_polls": kind.unfinished.map(|polls| json!({
                "count": polls.count,
                "longest_seconds": polls.longest_ns as f64 / 1e9,
                "tid": polls.tid,
            })),
            "spawn_sites": kind.spawn_sites.iter().map(spawn_site).collect::<Vec<_>>(),
        })
    });
    json!({
        "types": types.collect::<Vec<_>>(),
        "cpu": tasks.cpu.map(|cpu| json!({
            "scheduler_ns": cpu.scheduler_ns,
            "other_ns": cpu.other_ns,
            "unknown_ns": cpu.unknown_ns,
        })),
        "tracked": tasks.tracked,
        "untracked": tasks.untracked,
        "end_unseen": tasks.end_unseen,
        "slow_polls": slow_polls(tasks),
        "lifecycle_continuous": tasks.lifecycle_continuous,
        "polls_continuous": tasks.polls_continuous,
    })
}

fn slow_polls(tasks: &TasksSnapshot) -> Value {
    let slow = tasks.slow_polls.iter().map(|slow| {
        let kind = tasks.types.iter().find(|kind| kind.kind == slow.kind);
        json!({
            "task": kind.map(|kind| kind.name.as_str()),
            "seconds": slow.duration_ns as f64 / 1e9,
            "thread": slow.tid,
            "monotonic_ns": slow.time_ns,
        })
    });
    slow.collect::<Vec<_>>().into()
}

/// Sampled: every length is at least so long.
fn long_runs(runs: &LongRunSnapshot) -> Value {
    json!({
        "count": runs.count,
        "longest_at_least_ns": runs.longest_ns,
        "last": {
            "at_least_ns": runs.last_length_ns,
            "ended_monotonic_ns": runs.last_ns,
            "task_id": runs.last_id,
            "tid": runs.last_tid,
        },
    })
}

/// Where tasks of a type are spawned. `sampled` is of a sample of the spawns, for the shares of several sites.
fn spawn_site(site: &SpawnSiteSnapshot) -> Value {
    json!({ "site": site.name, "place": site.place, "exact": site.exact, "sampled": site.sampled })
}

/// Who spawned tasks of a type. `parent` is a name, or `null` where there is none or it is not known.
fn parents(tasks: &TasksSnapshot, child: usize) -> Value {
    let edges = tasks.edges.iter().filter(|edge| edge.child == child).map(|edge| {
        let (kind, parent) = match edge.parent {
            EdgeParent::Type(index) => ("task", tasks.types.get(index).map(|kind| kind.name.as_str())),
            EdgeParent::None => ("none", None),
            EdgeParent::Unknown => ("unknown", None),
        };
        json!({ "kind": kind, "parent": parent, "spawns": edge.spawns })
    });
    edges.collect::<Vec<_>>().into()
}
