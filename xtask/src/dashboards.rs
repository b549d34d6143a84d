//! `cargo xtask dashboards`: writes the dashboards of a node and of a service of Ruby again, from the tables of panels below.
//! Never a query that the rules could record.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::process::root;

/// What every query of a target selects by.
const TARGET: &str =
    r#"instance=~"$instance", namespace=~"$namespace", pod=~"$pod", container=~"$container", process=~"$process""#;
/// What queries of a target of Ruby select by besides.
const RUBY: &str = r#"runtime="ruby""#;
/// What tells targets apart in a legend.
const WHO: &str = "{{namespace}} {{pod}} {{container}} {{process}}";
/// Columns of a dashboard.
const COLUMNS: u64 = 24;
/// Rows of a panel.
const HEIGHT: u64 = 8;

/// How a panel shows its values.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shown {
    /// Over time.
    Lines,
    /// The last one, large.
    Number,
    /// The last ones, with their labels.
    Table,
}

impl Shown {
    fn kind(self) -> &'static str {
        match self {
            Shown::Lines => "timeseries",
            Shown::Number => "stat",
            Shown::Table => "table",
        }
    }
}

/// One panel. In queries, `TARGET` stands for what selects targets, `RUBY` for what selects those of Ruby, and `NODE` for what
/// selects nodes.
struct Panel {
    title: &'static str,
    description: &'static str,
    shown: Shown,
    unit: &'static str,
    columns: u64,
    /// Queries and their legends.
    queries: &'static [(&'static str, &'static str)],
}

/// A row of panels.
struct Row {
    title: &'static str,
    panels: &'static [Panel],
}

/// A dashboard.
struct Dashboard {
    /// Name of its file, and its id.
    name: &'static str,
    title: &'static str,
    description: &'static str,
    rows: &'static [Row],
}

const DASHBOARDS: &[Dashboard] = &[
    Dashboard {
        name: "profiler-node",
        title: "profiler: node",
        description: "What is watched on each node, where work waits in it, and what the profiler itself does.",
        rows: ROWS,
    },
    Dashboard {
        name: "profiler-ruby",
        title: "profiler: Ruby service",
        description: "Where the time of a Puma, a Unicorn or a server of fibers is: in front of accept, in a request, after the reply.",
        rows: RUBY_ROWS,
    },
];

macro_rules! panels {
    ($($title:literal $shown:ident $unit:literal $columns:literal $description:literal
        [$(($query:literal, $legend:literal)),* $(,)?];)*) => {
        &[$(Panel {
            title: $title, description: $description, shown: Shown::$shown, unit: $unit, columns: $columns,
            queries: &[$(($query, $legend)),*],
        }),*]
    };
}

const ROWS: &[Row] = &[
    Row {
        title: "What is watched",
        panels: panels! {
            "Processes watched" Number "short" 6 "Of those that there is room for."
                [("sum by (instance) (profiler_targets_watched{NODE})", "watched on {{instance}}"),
                 ("sum by (instance) (profiler_targets_limit{NODE})", "room on {{instance}}")];
            "Processes that wait to be looked at" Lines "short" 6 "More than none for longer than some seconds: attaching is behind."
                [("profiler_discovery_waiting{NODE}", "{{instance}}")];
            "Processes looked at" Lines "ops" 6 "By what was decided. `no_room`: more match the rules than --max-targets."
                [("sum by (instance, verdict) (rate(profiler_discovery_processes_total{NODE}[$__rate_interval]))", "{{instance}} {{verdict}}")];
            "Targets" Lines "short" 6 "Processes by pod, their forked children among them."
                [("sum by (namespace, pod, container, process, runtime) (profiler_target_processes{TARGET})", "WHO {{runtime}}")];
            "Containers" Table "short" 12 "Ids of containers and pods, for what logs and other tools say."
                [("max by (namespace, pod, container, process, container_id, pod_uid) (profiler_target_container_info{TARGET})", "")];
            "Units of systemd" Table "short" 12 "Of processes that are in no container."
                [("max by (process, systemd_unit) (profiler_target_unit_info{TARGET})", "")];
        },
    },
    Row {
        title: "Where work waits",
        panels: panels! {
            "Stalls by stage" Lines "s" 24 "Seconds waited per second, of the ten longest: in the accept queue, in the run queue, for a CPU limit, in the runtime's queue, for a task that holds the thread. Stages lie within each other: compare them, do not add them."
                [("topk(10, sum by (namespace, pod, container, process, stage) (process_stage:profiler_stall_seconds:rate5m{TARGET}))", "WHO {{stage}}")];
            "Accept wait, p99" Lines "s" 8 "From established to accepted."
                [("topk(10, histogram_quantile(0.99, sum by (namespace, pod, container, process, listener, le) (rate(profiler_accept_wait_seconds_bucket{TARGET}[$__rate_interval]))))", "WHO {{listener}}")];
            "Run queue wait, p99" Lines "s" 8 "From runnable to running."
                [("topk(10, histogram_quantile(0.99, sum by (namespace, pod, container, process, le) (rate(profiler_sched_run_queue_seconds_bucket{TARGET}[$__rate_interval]))))", "WHO")];
            "Wake to poll, p99" Lines "s" 8 "What tasks waited in the runtime's queue."
                [("topk(10, histogram_quantile(0.99, sum by (namespace, pod, container, process, le) (rate(profiler_task_schedule_delay_seconds_bucket{TARGET}[$__rate_interval]))))", "WHO")];
            "CPU used" Lines "none" 12 "CPUs, of the ten busiest."
                [("topk(10, sum by (namespace, pod, container, process) (rate(profiler_sched_on_cpu_seconds_total{TARGET}[$__rate_interval])))", "WHO")];
            "Threads" Lines "short" 12 "By name, of the ten most."
                [("topk(10, sum by (namespace, pod, container, process, thread) (profiler_sched_threads{TARGET}))", "WHO {{thread}}")];
        },
    },
    Row {
        title: "Event loops, connections and requests",
        panels: panels! {
            "Active share of loops" Lines "percentunit" 8 "1: the loop never waits for events."
                [("sum by (namespace, pod, container, process, thread) (rate(profiler_loop_seconds_total{TARGET, state=\"active\"}[$__rate_interval])) / sum by (namespace, pod, container, process, thread) (rate(profiler_loop_seconds_total{TARGET}[$__rate_interval]))", "WHO {{thread}}")];
            "Iterations, p99" Lines "s" 8 "From a wake-up to the next wait: for so long no other event was looked at."
                [("histogram_quantile(0.99, sum by (namespace, pod, container, process, thread, le) (rate(profiler_loop_iteration_seconds_bucket{TARGET}[$__rate_interval])))", "WHO {{thread}}")];
            "Loop delay, p99" Lines "s" 8 "How late a timer would have fired."
                [("histogram_quantile(0.99, sum by (namespace, pod, container, process, thread, le) (rate(profiler_loop_delay_seconds_bucket{TARGET}[$__rate_interval])))", "WHO {{thread}}")];
            "Connections open" Lines "short" 8 "Accepted and not closed; with --requests."
                [("sum by (namespace, pod, container, process) (profiler_connections_open{TARGET})", "WHO")];
            "Requests, p99" Lines "s" 8 "From the first read to the last write; with --requests."
                [("histogram_quantile(0.99, sum by (namespace, pod, container, process, le) (rate(profiler_request_seconds_bucket{TARGET}[$__rate_interval])))", "WHO")];
            "Waits of coroutines" Lines "s" 8 "How much tasks wait in a second, all together, by what for; what waits for others is `other`."
                [("sum by (namespace, pod, container, process, reason) (rate(profiler_task_wait_seconds_sum{TARGET}[$__rate_interval]))", "WHO {{reason}}")];
            "Time in garbage collection" Lines "percentunit" 8 "Of one thread: in that share of the time no other one runs the runtime's code."
                [("sum by (namespace, pod, container, process) (rate(profiler_gc_pause_seconds_sum{TARGET}[$__rate_interval]))", "WHO")];
            "Pauses of garbage collection, p99" Lines "s" 8 "Without a break, and without the time off the CPU."
                [("histogram_quantile(0.99, sum by (namespace, pod, container, process, le) (rate(profiler_gc_pause_seconds_bucket{TARGET}[$__rate_interval])))", "WHO")];
            "Collections of garbage" Lines "ops" 8 "As the runtime counts them."
                [("sum by (namespace, pod, container, process) (rate(profiler_gc_collections_total{TARGET}[$__rate_interval]))", "WHO")];
            "After the reply, p99" Lines "s" 8 "For how long threads were busy after a reply; with --requests."
                [("histogram_quantile(0.99, sum by (namespace, pod, container, process, le) (rate(profiler_after_reply_seconds_bucket{TARGET}[$__rate_interval])))", "WHO")];
        },
    },
    Row {
        title: "Names of pods, with --kubernetes",
        panels: panels! {
            "Kubernetes API" Number "short" 8 "1: it tells this node's pods. 0: /status says why it does not."
                [("profiler_kubernetes_up{NODE}", "{{instance}}")];
            "Pods" Lines "short" 8 "Of this node, known by name."
                [("profiler_kubernetes_pods{NODE}", "{{instance}}")];
            "What it tells" Lines "ops" 8 "Pods that are listed, come, change or go."
                [("rate(profiler_kubernetes_events_total{NODE}[$__rate_interval])", "{{instance}}")];
            "Failures" Lines "ops" 8 "By why it could not be asked. `expired` is no fault."
                [("sum by (instance, reason) (rate(profiler_kubernetes_failures_total{NODE}[$__rate_interval]))", "{{instance}} {{reason}}")];
            "Processes that wait for their names" Lines "short" 8 "Rules ask for names that are not known yet."
                [("profiler_discovery_undecided{NODE}", "{{instance}}")];
            "Without names" Lines "ops" 8 "Processes that were decided on without, targets whose names came late, pods that found no room."
                [("rate(profiler_discovery_unnamed_total{NODE}[$__rate_interval])", "decided without on {{instance}}"),
                 ("rate(profiler_kubernetes_late_names_total{NODE}[$__rate_interval])", "late on {{instance}}"),
                 ("rate(profiler_kubernetes_pods_turned_away_total{NODE}[$__rate_interval])", "no room on {{instance}}")];
        },
    },
    Row {
        title: "The profiler itself",
        panels: panels! {
            "CPU that it uses" Lines "percentunit" 8 "Of one CPU."
                [("rate(process_cpu_seconds_total{NODE}[$__rate_interval]) and on (instance) profiler_build_info", "{{instance}}")];
            "Memory" Lines "bytes" 8 "Resident."
                [("process_resident_memory_bytes{NODE} and on (instance) profiler_build_info", "{{instance}}")];
            "What it costs targets" Lines "percentunit" 8 "As a share of the CPU time that each uses, of the ten dearest."
                [("topk(10, max by (namespace, pod, container, process) (profiler_overhead_ratio{TARGET}))", "WHO")];
            "What it costs the node" Lines "percentunit" 8 "All targets together, as a share of the CPU time of all CPUs, and the budget for that."
                [("profiler_node_overhead_ratio{NODE}", "{{instance}}"),
                 ("profiler_node_overhead_budget_ratio{NODE}", "budget of {{instance}}")];
            "Part of its budget that each target has" Lines "percentunit" 8 "Less than all where the node's budget is not enough."
                [("profiler_budget_factor{NODE}", "{{instance}}")];
            "Events lost" Lines "ops" 8 "By reason: what is not zero says which numbers are too low."
                [("sum by (instance, reason) (rate(profiler_events_lost_total{NODE}[$__rate_interval]))", "{{instance}} {{reason}}")];
            "Runs that the kernel left out" Lines "ops" 8 "By program: one came while another of its kind ran on that CPU."
                [("sum by (instance, program) (rate(profiler_program_runs_missed_total{NODE}[$__rate_interval]))", "{{instance}} {{program}}")];
            "Summed in `other`" Lines "ops" 8 "Groups and names that found no room."
                [("rate(profiler_series_turned_away_total{NODE}[$__rate_interval])", "{{instance}}")];
            "Pushed by OTLP" Lines "ops" 8 "Data points that the collector has taken, and that were dropped, by why."
                [("rate(profiler_otlp_points_total{NODE}[$__rate_interval])", "taken from {{instance}}"),
                 ("sum by (instance, reason) (rate(profiler_otlp_points_dropped_total{NODE}[$__rate_interval]))", "{{instance}} {{reason}}")];
            "Requests to the collector" Lines "ops" 8 "By what came of them; `later` is sent again."
                [("sum by (instance, result) (rate(profiler_otlp_requests_total{NODE}[$__rate_interval]))", "{{instance}} {{result}}")];
            "Waits to be pushed" Lines "bytes" 8 "Of 16 MiB at most."
                [("profiler_otlp_queue_bytes{NODE}", "{{instance}}")];
            "Pushed last" Number "dateTimeFromNow" 8 "When the collector has taken a request last."
                [("profiler_otlp_last_success_timestamp_seconds{NODE} * 1000", "{{instance}}")];
            "Snapshot" Lines "s" 8 "What one look at all targets takes."
                [("profiler_snapshot_duration_seconds{NODE}", "{{instance}}")];
            "Configuration read" Number "short" 8 "1: what was read last is in force. 0: the one before it is, and the log says why."
                [("profiler_config_last_reload_successful{NODE}", "rules on {{instance}}"),
                 ("profiler_web_config_last_reload_successful{NODE}", "endpoint on {{instance}}")];
            "Rules in force since" Number "dateTimeFromNow" 8 "When they were read."
                [("profiler_config_last_reload_success_timestamp_seconds{NODE} * 1000", "{{instance}}")];
        },
    },
];

/// In the order in which a request goes.
const RUBY_ROWS: &[Row] = &[
    Row {
        title: "Saturated, or idle? What the server itself does not see",
        panels: panels! {
            "Connections that wait for accept" Lines "short" 8 "And how many may: while they wait, the server's own backlog is 0."
                [("sum by (namespace, pod, container, process, listener) (profiler_accept_queue_length{RUBY})", "WHO {{listener}}"),
                 ("sum by (namespace, pod, container, process, listener) (profiler_accept_queue_limit{RUBY})", "limit of WHO {{listener}}")];
            "Connections that are open" Lines "short" 8 "Accepted and not closed: busy threads, and kept ones."
                [("sum by (namespace, pod, container, process) (profiler_connections_open{RUBY})", "WHO")];
            "Requests that are open" Lines "short" 8 "Unread ones wait in the application, in progress are at most as many as its threads; with --requests."
                [("sum by (namespace, pod, container, process, state) (profiler_requests_open{RUBY})", "WHO {{state}}")];
            "What the threads do" Lines "none" 8 "How many compute, wait for a CPU, or sleep: a full queue beside sleepers wants more threads, beside one that computes more workers."
                [("sum by (namespace, pod, container, process, state) (rate(profiler_sched_thread_seconds_total{RUBY}[$__rate_interval]))", "WHO {{state}}")];
        },
    },
    Row {
        title: "The way of a request",
        panels: panels! {
            "In front of accept, p99" Lines "s" 8 "From established to accepted."
                [("histogram_quantile(0.99, sum by (namespace, pod, container, process, le) (rate(profiler_accept_wait_seconds_bucket{RUBY}[$__rate_interval])))", "WHO")];
            "In the request, p99" Lines "s" 8 "From the first read to the last write; with --requests."
                [("histogram_quantile(0.99, sum by (namespace, pod, container, process, le) (rate(profiler_request_seconds_bucket{RUBY}[$__rate_interval])))", "WHO")];
            "After the reply, p99" Lines "s" 8 "The thread is not available for the next one; with --requests."
                [("histogram_quantile(0.99, sum by (namespace, pod, container, process, le) (rate(profiler_after_reply_seconds_bucket{RUBY}[$__rate_interval])))", "WHO")];
            "Requests" Lines "reqps" 8 "With --requests."
                [("sum by (namespace, pod, container, process) (rate(profiler_request_seconds_count{RUBY}[$__rate_interval]))", "WHO")];
            "Threads" Lines "short" 8 "By name: `puma srv tp`, `puma reactor`, `processor`."
                [("sum by (namespace, pod, container, process, thread) (profiler_sched_threads{RUBY})", "WHO {{thread}}")];
            "Threads that come and go" Lines "ops" 8 "By name, started and ended: a pool that is made anew for each request shows here."
                [("sum by (namespace, pod, container, process, thread) (rate(profiler_sched_threads_started_total{RUBY}[$__rate_interval]))", "WHO {{thread}} started"),
                 ("sum by (namespace, pod, container, process, thread) (rate(profiler_sched_threads_ended_total{RUBY}[$__rate_interval]))", "WHO {{thread}} ended")];
            "Busy threads" Lines "none" 8 "By name: how many compute or wait for a CPU."
                [("sum by (namespace, pod, container, process, thread) (rate(profiler_sched_thread_seconds_total{RUBY, state!=\"off_cpu\"}[$__rate_interval]))", "WHO {{thread}}")];
        },
    },
    Row {
        title: "The lock",
        panels: panels! {
            "Threads that wait for the lock" Lines "none" 12 "How many do, on average: the process computes with one at a time."
                [("sum by (namespace, pod, container, process) (rate(profiler_runtime_lock_wait_seconds_sum{RUBY}[$__rate_interval]))", "WHO")];
            "Waits for the lock, p99" Lines "s" 12 "Of those that did not get it at once."
                [("histogram_quantile(0.99, sum by (namespace, pod, container, process, le) (rate(profiler_runtime_lock_wait_seconds_bucket{RUBY}[$__rate_interval])))", "WHO")];
        },
    },
    Row {
        title: "Deferred blocks",
        panels: panels! {
            "Waiting and running" Lines "short" 6 "Blocks that iodine defers, as Rage has it do. Absent while they are only sampled, and without iodine."
                [("sum by (namespace, pod, container, process, state) (profiler_deferred_work{RUBY})", "WHO {{state}}")];
            "Deferred" Lines "ops" 6 "That are run."
                [("sum by (namespace, pod, container, process) (rate(profiler_deferred_wait_seconds_count{RUBY}[$__rate_interval]))", "WHO")];
            "Waits, p99" Lines "s" 6 "From when it was deferred until a thread runs it: the event loop is behind by so much."
                [("histogram_quantile(0.99, sum by (namespace, pod, container, process, le) (rate(profiler_deferred_wait_seconds_bucket{RUBY}[$__rate_interval])))", "WHO")];
            "Runs, p99" Lines "s" 6 "Nothing else is run by that thread meanwhile."
                [("histogram_quantile(0.99, sum by (namespace, pod, container, process, le) (rate(profiler_deferred_run_seconds_bucket{RUBY}[$__rate_interval])))", "WHO")];
        },
    },
    Row {
        title: "Jobs",
        panels: panels! {
            "Threads that take jobs" Lines "short" 8 "With --requests, as all of this row: jobs that are taken from Redis, as Sidekiq does."
                [("sum by (namespace, pod, container, process, state) (profiler_job_threads{RUBY})", "WHO {{state}}")];
            "Jobs" Lines "ops" 8 "That are done."
                [("sum by (namespace, pod, container, process) (rate(profiler_job_seconds_count{RUBY}[$__rate_interval]))", "WHO")];
            "Jobs, mean" Lines "s" 8 "From when a thread got one until it asked for the next."
                [("sum by (namespace, pod, container, process) (rate(profiler_job_seconds_sum{RUBY}[$__rate_interval])) / sum by (namespace, pod, container, process) (rate(profiler_job_seconds_count{RUBY}[$__rate_interval]))", "WHO")];
            "Jobs, p99" Lines "s" 8 "As above."
                [("histogram_quantile(0.99, sum by (namespace, pod, container, process, le) (rate(profiler_job_seconds_bucket{RUBY}[$__rate_interval])))", "WHO")];
            "Waits for a job, p99" Lines "s" 8 "Near zero: there are always jobs, and more threads would do them sooner."
                [("histogram_quantile(0.99, sum by (namespace, pod, container, process, le) (rate(profiler_job_fetch_seconds_bucket{RUBY}[$__rate_interval])))", "WHO")];
        },
    },
    Row {
        title: "Fibers",
        panels: panels! {
            "Alive" Lines "short" 8 "By the line of their block; absent where they are only sampled."
                [("sum by (namespace, pod, container, process, task) (profiler_tasks_alive{RUBY})", "WHO {{task}}")];
            "Spawned" Lines "ops" 8 "As above."
                [("sum by (namespace, pod, container, process, task) (rate(profiler_tasks_spawned_total{RUBY}[$__rate_interval]))", "WHO {{task}}")];
            "Slices, p99" Lines "s" 8 "For how long a fiber holds its thread."
                [("histogram_quantile(0.99, sum by (namespace, pod, container, process, task, le) (rate(profiler_task_poll_seconds_bucket{RUBY}[$__rate_interval])))", "WHO {{task}}")];
            "What they wait for" Lines "s" 8 "How much in a second, all together."
                [("sum by (namespace, pod, container, process, reason) (rate(profiler_task_wait_seconds_sum{RUBY}[$__rate_interval]))", "WHO {{reason}}")];
            "Lifetimes, p99" Lines "s" 8 "From the first switch to the last one."
                [("histogram_quantile(0.99, sum by (namespace, pod, container, process, task, le) (rate(profiler_task_lifetime_seconds_bucket{RUBY}[$__rate_interval])))", "WHO {{task}}")];
            "Loop delay, p99" Lines "s" 8 "How late a timer of an event loop would have fired."
                [("histogram_quantile(0.99, sum by (namespace, pod, container, process, thread, le) (rate(profiler_loop_delay_seconds_bucket{RUBY}[$__rate_interval])))", "WHO {{thread}}")];
        },
    },
    Row {
        title: "Collection of garbage, and what is watched",
        panels: panels! {
            "Time in it" Lines "percentunit" 8 "Of one thread: no other one runs Ruby then."
                [("sum by (namespace, pod, container, process) (rate(profiler_gc_pause_seconds_sum{RUBY}[$__rate_interval]))", "WHO")];
            "Pauses, p99" Lines "s" 8 "Without a break, and without the time off the CPU."
                [("histogram_quantile(0.99, sum by (namespace, pod, container, process, le) (rate(profiler_gc_pause_seconds_bucket{RUBY}[$__rate_interval])))", "WHO")];
            "Collections" Lines "ops" 8 "As Ruby counts them."
                [("sum by (namespace, pod, container, process) (rate(profiler_gc_collections_total{RUBY}[$__rate_interval]))", "WHO")];
        },
    },
];

/// Writes all.
pub fn write() -> Result<()> {
    for dashboard in DASHBOARDS {
        let path = path(dashboard);
        fs::write(&path, text(dashboard)).with_context(|| format!("failed to write `{}`", path.display()))?;
    }
    Ok(())
}

fn path(dashboard: &Dashboard) -> PathBuf {
    root().join("deploy/grafana").join(dashboard.name).with_extension("json")
}

fn text(dashboard: &Dashboard) -> String {
    format!("{:#}\n", page(dashboard))
}

fn page(dashboard: &Dashboard) -> Value {
    let (mut panels, mut y) = (Vec::new(), 0);
    for row in dashboard.rows {
        let id = panels.len() + 1;
        let place = json!({ "h": 1, "w": COLUMNS, "x": 0, "y": y });
        panels.push(
            json!({ "id": id, "type": "row", "title": row.title, "collapsed": false, "gridPos": place, "panels": [] }),
        );
        y += 1;
        let mut x = 0;
        for one in row.panels {
            if x + one.columns > COLUMNS {
                (x, y) = (0, y + HEIGHT);
            }
            panels.push(panel(one, panels.len() + 1, x, y));
            x += one.columns;
        }
        y += HEIGHT;
    }
    json!({
        "title": dashboard.title,
        "uid": dashboard.name,
        "tags": ["profiler", "ebpf"],
        "schemaVersion": 39,
        "version": 1,
        "description": dashboard.description,
        "editable": true,
        "graphTooltip": 1,
        "time": { "from": "now-30m", "to": "now" },
        "refresh": "30s",
        "timezone": "browser",
        "annotations": { "list": [] },
        "links": [],
        "templating": { "list": variables() },
        "panels": panels,
    })
}

fn source() -> Value {
    json!({ "type": "prometheus", "uid": "${datasource}" })
}

fn panel(panel: &Panel, id: usize, x: u64, y: u64) -> Value {
    let is_table = panel.shown == Shown::Table;
    let target = |(at, (query, legend)): (usize, &(&str, &str))| {
        let mut target = json!({
            "refId": char::from(b'A' + at as u8).to_string(),
            "datasource": source(),
            "editorMode": "code",
            "expr": query.replace("RUBY", &format!("{TARGET}, {RUBY}")).replace("TARGET", TARGET).replace("NODE", r#"instance=~"$instance""#),
            "legendFormat": legend.replace("WHO", WHO),
            "range": !is_table,
            "instant": is_table,
        });
        if is_table {
            target["format"] = "table".into();
        }
        target
    };
    json!({
        "id": id,
        "type": panel.shown.kind(),
        "title": panel.title,
        "description": panel.description,
        "datasource": source(),
        "gridPos": { "h": HEIGHT, "w": panel.columns, "x": x, "y": y },
        "fieldConfig": { "defaults": { "unit": panel.unit }, "overrides": [] },
        "options": if panel.shown == Shown::Lines { json!({ "tooltip": { "mode": "multi", "sort": "desc" } }) } else { json!({}) },
        "targets": panel.queries.iter().enumerate().map(target).collect::<Vec<_>>(),
    })
}

/// Each offers what the ones before it have left.
fn variables() -> Vec<Value> {
    let mut list = vec![json!({
        "name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus", "current": {},
    })];
    let mut before: Vec<String> = Vec::new();
    for name in ["instance", "namespace", "pod", "container", "process"] {
        let metric = if before.is_empty() { "profiler_build_info" } else { "profiler_target_up" };
        let selector = if before.is_empty() { String::new() } else { format!("{{{}}}", before.join(", ")) };
        let query = format!("label_values({metric}{selector}, {name})");
        list.push(json!({
            "name": name, "label": name, "type": "query", "datasource": source(), "definition": query,
            "query": { "query": query, "refId": "PrometheusVariableQueryEditor-VariableQuery", "qryType": 1 },
            "allValue": ".*", "includeAll": true, "multi": true, "refresh": 2, "sort": 1,
            "current": { "text": ["All"], "value": ["$__all"] },
        }));
        before.push(format!("{name}=~\"${name}\""));
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names of metrics and of recorded series in a text.
    fn metrics(text: &str) -> Vec<&str> {
        let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
        let names =
            text.split(|c| !is_part(c)).filter(|word| word.contains("profiler_") || word.starts_with("process_"));
        names.filter(|word| !["profiler_target", "process_"].contains(word)).collect()
    }

    #[test]
    fn what_is_committed_is_what_is_made() {
        for dashboard in DASHBOARDS {
            let committed = fs::read_to_string(path(dashboard)).expect("it is committed");
            assert_eq!(committed, text(dashboard), "run `cargo xtask dashboards`");
        }
    }

    /// Check that every metric of a query exists, and that every metric is in a query of some dashboard.
    #[test]
    fn all_metrics_are_shown_and_exist() {
        const SAY_NOTHING: [&str; 3] =
            ["process_virtual_memory_bytes", "process_max_fds", "process_start_time_seconds"];
        let read = |path: &str| fs::read_to_string(root().join(path)).expect("it is committed");
        let (document, rules) = (read("docs/metrics.md"), read("deploy/prometheus/rules.yml"));
        let tokio = read("deploy/grafana/profiler-tokio.json");
        let rows = document.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
        let all: Vec<&str> = rows.collect();
        assert!(all.len() > 60, "{}", all.len());
        let queries: String = DASHBOARDS
            .iter()
            .flat_map(|dashboard| dashboard.rows)
            .flat_map(|row| row.panels)
            .flat_map(|panel| panel.queries)
            .map(|(query, _)| format!("{query}\n"))
            .collect();
        for name in metrics(&queries) {
            let recorded = rules.contains(&format!("record: {name}\n"));
            let bare = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
            assert!(recorded || all.contains(&name) || all.contains(&bare), "no metric is called {name}");
        }
        let shown: Vec<&str> = [queries.as_str(), &tokio, &rules].into_iter().flat_map(metrics).collect();
        for name in all.iter().filter(|name| !SAY_NOTHING.contains(name)) {
            let is_shown = |shown: &&&str| {
                **shown == *name || shown.strip_prefix(*name).is_some_and(|end| ["_bucket", "_sum"].contains(&end))
            };
            assert!(shown.iter().any(|one| is_shown(&one)), "no panel shows {name}");
        }
    }

    #[test]
    fn panels_lie_beside_each_other() {
        DASHBOARDS.iter().for_each(lie_beside_each_other);
    }

    fn lie_beside_each_other(dashboard: &Dashboard) {
        let page = page(dashboard);
        let panels = page["panels"].as_array().expect("a list");
        let place = |panel: &Value, what: &str| panel["gridPos"][what].as_u64().expect("a number");
        for (at, one) in panels.iter().enumerate() {
            assert!(place(one, "x") + place(one, "w") <= COLUMNS);
            for other in &panels[..at] {
                let apart = |from: &str, size: &str| {
                    place(one, from) + place(one, size) <= place(other, from)
                        || place(other, from) + place(other, size) <= place(one, from)
                };
                assert!(apart("x", "w") || apart("y", "h"), "{} {}", one["title"], other["title"]);
                assert_ne!(one["id"], other["id"]);
            }
        }
    }
}
