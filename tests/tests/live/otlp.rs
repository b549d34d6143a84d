//! Metrics that are pushed, to a collector that is not ours: the same as on the page, and as the application's own count, by both
//! protocols, and after the collector was gone.

use std::process::Command;

use serde_json::Value;
use tests::bpf::BpfObjects;
use tests::fixture::Fixture;
use tests::place;
use tests::profiler::{Profiler, run_to_end};
use tests::program::Program;
use tests::status::number;
use tests::table::Table;
use tests::wait;

/// The collector, and what it was told.
struct Collector {
    program: Program,
    ports: [u64; 2],
}

impl Collector {
    fn start(ports: [u64; 2]) -> Collector {
        let mut command = Command::new(place::python());
        command.arg(place::root().join("tests/collector/receive.py")).args(ports.map(|port| port.to_string()));
        let mut program = Program::start(&mut command);
        let ready: Value = serde_json::from_str(&program.line()).expect("JSON");
        Collector { program, ports: ["http", "grpc"].map(|way| number(&ready[way])) }
    }

    fn told(&mut self) -> Value {
        self.program.send("tell");
        serde_json::from_str(&self.program.line()).expect("JSON")
    }

    /// The sum of a target's metric over these tasks.
    fn sum(&mut self, pid: u32, metric: &str, tasks: &[String]) -> u64 {
        let (told, pid) = (self.told(), pid.to_string());
        let series = told["series"].as_array().expect("a list").iter();
        let is_of = |one: &&Value| {
            let task = one[2]["task"].as_str().unwrap_or_default();
            one[0]["process.pid"] == *pid && one[1] == metric && tasks.iter().any(|known| known == task)
        };
        let value = |one: &Value| if one[3].is_array() { number(&one[3][0]) } else { number(&one[3]) };
        series.filter(is_of).map(value).sum()
    }
}

/// Check that what a collector was told is what the application counted and what the page says, that a collector which comes back
/// is told all, and that the last is told at the end.
fn check(protocol: &str, at: usize) {
    place::require_root();
    let before = BpfObjects::all();
    let mut table = Table::new(format!("pushed by {protocol}"));
    let mut collector = Collector::start([0, 0]);
    let ports = collector.ports;
    let endpoint = format!("http://127.0.0.1:{}", ports[at]);
    let mut fixture = Fixture::start(&place::tokio("latest", "release"), &["tasks"]);
    let pid = fixture.pid();
    let flags = ["--otlp.endpoint", &endpoint, "--otlp.protocol", protocol, "--otlp.interval", "200ms"];
    let profiler = Profiler::attach_with(pid, &flags);
    let truth = number(&fixture.ask("run 1000")["tasks"]["spawned"]);
    let tasks = profiler.status().target(pid).names();
    let mut equal = |collector: &mut Collector, what: &str, truth: u64| {
        for metric in ["tokio.task.spawned", "tokio.task.completed", "tokio.task.lifetime"] {
            let seen = wait::until_or_last(|| collector.sum(pid, metric, &tasks), |seen| *seen == truth);
            table.equal(format!("{what}: {metric}"), truth, seen);
        }
    };
    equal(&mut collector, "the first", truth);

    // Without a collector it is measured on, and told later.
    drop(collector);
    let truth = number(&fixture.ask("run 1000")["tasks"]["spawned"]);
    let why = || profiler.status().0["otlp"]["why"].as_str().unwrap_or_default().to_owned();
    wait::until_true("a push that fails", || !why().is_empty());
    let mut collector = Collector::start(ports);
    equal(&mut collector, "after it was gone", truth);
    wait::until_true("a push that is taken", || why().is_empty());

    // Every counter of the target that is at rest is on both pages with the same value.
    let page = profiler.page();
    let rest = [
        ("profiler_tasks_spawned_total", "tokio.task.spawned"),
        ("profiler_tasks_completed_total", "tokio.task.completed"),
        ("profiler_task_lifetime_seconds_count", "tokio.task.lifetime"),
        ("profiler_tasks_alive", "tokio.task.alive"),
    ];
    for (name, metric) in rest {
        let label = |one: &&tests::page::Sample| tasks.iter().any(|task| one.labels.get("task") == Some(task));
        let on_page: f64 = page.series(name, &[]).filter(label).map(|one| one.value).sum();
        table.equal(name, on_page as u64, collector.sum(pid, metric, &tasks));
    }
    let status = profiler.status();
    let otlp = &status.0["otlp"];
    table.holds("data points taken", "some", number(&otlp["points"]), number(&otlp["points"]) > 0);
    table.equal("refused", true, otlp["requests"]["refused"].is_null());
    let way = ["http", "grpc"];
    let by_way = ["http", "grpc"].map(|way| number(&collector.told()["requests"][way]));
    table.holds(
        format!("requests by {}", way[at]),
        "all",
        format!("{by_way:?}"),
        by_way[at] > 0 && by_way[1 - at] == 0,
    );

    // The last is told at the end.
    let truth = number(&fixture.ask("run 1000")["tasks"]["spawned"]);
    profiler.stop();
    table.equal("the last, at the end", truth, collector.sum(pid, "tokio.task.spawned", &tasks));
    let left = wait::until_or_last(|| BpfObjects::left_over_since(&before), BpfObjects::is_empty);
    table.holds("BPF objects left", "none", format!("{left:?}"), left.is_empty());
    fixture.quit();
    table.finish();
}

#[test]
fn by_http() {
    check("http/protobuf", 0);
}

#[test]
fn by_grpc() {
    check("grpc", 1);
}

/// Check that what cannot work is refused in one line, before anything is attached.
#[test]
fn bad_flags() {
    place::require_root();
    let mut table = Table::new("where nothing can be pushed to");
    let own = std::process::id().to_string();
    for (flags, reason) in [
        (&["--otlp.endpoint", "collector:4318"][..], "http://"),
        (&["--otlp.endpoint"], "OTEL_EXPORTER_OTLP_ENDPOINT"),
        (&["--otlp.endpoint", "http://c", "--otlp.protocol", "json"], "http/protobuf or grpc"),
        (&["--otlp.endpoint", "http://c", "--otlp.headers-file", "/no/such"], "/no/such"),
        (&["--otlp.protocol", "grpc"], "--otlp.endpoint"),
    ] {
        let ended = run_to_end(&[&["attach", "--pid", own.as_str()], flags].concat());
        let said = ended.stderr.join(" ");
        let right = ended.code().is_some_and(|code| code != 0) && said.contains(reason) && !said.contains("serving");
        table.holds(format!("{flags:?}"), reason, &said, right);
    }
    table.finish();
}
