//! `/status`: the snapshot as JSON, for scripts and tests. Never histograms: those are metrics.

use serde_json::{Map, Value, json};

use crate::event::Outcome;
use crate::model::snapshot::{EdgeParent, ListenerSnapshot, RuntimeSnapshot, Snapshot, TargetSnapshot, TasksSnapshot};

/// The document. What was not measured is `null`.
pub fn document(snapshot: &Snapshot) -> Value {
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "ready": snapshot.profiler.not_ready.is_none(),
        "not_ready": snapshot.profiler.not_ready,
        "targets": snapshot.targets.iter().map(target).collect::<Vec<_>>(),
        "events": numbers(&snapshot.profiler.events),
        "probe_hits": numbers(&snapshot.profiler.probe_hits),
        "losses": numbers(&snapshot.profiler.lost),
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
        "running": target.running,
        "processes": target.processes,
        "threads": target.threads,
        "probes": target.status.probes,
        "listeners": target.listeners.iter().map(listener).collect::<Vec<_>>(),
        "tasks": target.tasks.as_ref().map(tasks),
        "figures": target.figures.as_ref().map(figures),
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
            "parents": parents(tasks, index),
        })
    });
    json!({
        "types": types.collect::<Vec<_>>(),
        "tracked": tasks.tracked,
        "untracked": tasks.untracked,
        "end_unseen": tasks.end_unseen,
    })
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
