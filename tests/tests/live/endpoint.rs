//! What the profiler serves and prints, and how it ends.

use std::fs;
use std::io::Write as _;
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tests::bpf::BpfObjects;
use tests::fixture::Fixture;
use tests::http;
use tests::page::Page;
use tests::place;
use tests::profiler::{Profiler, launch, run_to_end};
use tests::scratch::Scratch;
use tests::status::{Kind, number};
use tests::table::Table;
use tests::wait;

/// Check every page that there is, and one that is not.
#[test]
fn pages() {
    place::require_root();
    let mut table = Table::new("pages");
    let mut fixture = Fixture::tokio("latest", "release", &["http", "0"]);
    let profiler = Profiler::attach(fixture.pid());
    fixture.ask("run 1000");
    // A quote, a backslash or a line feed in a name would break the page.
    let metrics = profiler.get("/metrics");
    let kind = metrics.header("content-type").unwrap_or_default().to_owned();
    table.holds("content type", "text/plain; version=0.0.4", &kind, kind.starts_with("text/plain; version=0.0.4"));
    let complaint = promtool(&metrics.body);
    table.equal("promtool says", String::new(), complaint);
    let page = Page::parse(&metrics.body);
    for (name, kind) in FAMILIES {
        let seen = page.families.get(*name).map_or("absent", String::as_str);
        table.equal(*name, *kind, seen);
    }
    let status = profiler.status();
    let target = status.target(fixture.pid());
    for probe in PROBES {
        let (state, detail) = target.probe(probe).unwrap_or(("absent", ""));
        table.holds(format!("{probe}: {detail}"), "a state", state, state != "absent" && !detail.is_empty());
        let series = page.sum("profiler_probe_state", &[("probe", probe), ("state", state)]);
        table.equal(format!("{probe}: metric"), 1.0, series);
        table.equal(format!("{probe}: states"), 1.0, page.sum("profiler_probe_state", &[("probe", probe)]));
    }
    for (path, code) in [("/healthz", 200), ("/readyz", 200), ("/", 200), ("/nothing", 404), ("/status/", 404)] {
        table.equal(path, code, profiler.get(path).status);
    }
    profiler.stop();
    table.finish();
}

/// Check that the minutes add up to what the program spawned, and how its tasks ended.
#[test]
fn minutes() {
    place::require_root();
    let mut table = Table::new("tasks by minute");
    let mut fixture = Fixture::tokio("latest", "release", &["tasks"]);
    let profiler = Profiler::attach(fixture.pid());
    let truth = fixture.ask("run 1000");
    let truth = |field: &str| number(&truth["tasks"][field]);
    let read = |query: &str| -> Value { serde_json::from_str(&profiler.get(query).body).expect("JSON") };
    let sum = |document: &Value, field: &str| -> u64 {
        let minutes = document["minutes"].as_array().into_iter().flatten();
        minutes.flat_map(|m| m["tasks"].as_array().into_iter().flatten()).map(|task| number(&task[field])).sum()
    };
    let wanted = truth("completed") + truth("cancelled") + truth("panicked");
    let ends = |document: &Value| ["completed", "cancelled", "panicked"].map(|end| sum(document, end));
    let document = wait::until_or_last(|| read("/minutes"), |document| ends(document).iter().sum::<u64>() >= wanted);
    for field in ["spawned", "completed", "cancelled", "panicked"] {
        table.equal(field, truth(field), sum(&document, field));
    }
    table.equal("unknown", 0, sum(&document, "unknown"));
    let complete = document["minutes"].as_array().into_iter().flatten().all(|minute| minute["complete"] == true);
    table.equal("complete", true, complete);
    // One of the names alone.
    let kinds = document["last_spawned"].as_object().expect("names").clone();
    let of_each = kinds.keys().map(|name| sum(&read(&format!("/minutes?task={}", escaped(name))), "spawned"));
    table.equal("spawned, name by name", truth("spawned"), of_each.sum());
    table.equal("a wrong question", 400, profiler.get("/minutes?tsk=x").status);
    table.finish();
}

/// As it must be written in a query.
fn escaped(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02x}")).collect()
}

/// Check that a file of users protects the pages on all addresses but not the probes, and that a bad one is refused before
/// anything is attached.
#[test]
fn protected_pages() {
    /// alice, secret
    const USERS: &str = "basic_auth_users:\n  alice: $2b$04$abcdefghijklmnopqrstuu2r9OfJnfCsdneAXAGHnS4UpFFP8WIrW\n";
    const ALICE: &str = "Authorization: Basic YWxpY2U6c2VjcmV0\r\n";
    place::require_root();
    let mut table = Table::new("protected pages");
    let fixture = Fixture::start(&place::forker(), &[]);
    let pid = fixture.pid().to_string();
    let (bad, good) = (Scratch::new("bad.yml"), Scratch::new("web.yml"));
    fs::write(&bad.0, "basic_auth_user: {}\n").expect("a file");
    let objects = BpfObjects::all();
    let ended = run_to_end(&["attach", "--pid", &pid, "--web.config.file", &bad.0.to_string_lossy()]);
    let words = ["failed to protect the endpoint", "bad.yml", "basic_auth_user"];
    let right = ended.code() == Some(1) && ended.stderr.len() == 1 && words.iter().all(|w| ended.stderr[0].contains(w));
    table.holds("a bad file", format!("1, {words:?}"), format!("{ended:?}"), right);
    let left = BpfObjects::left_over_since(&objects);
    table.holds("BPF objects left", "none", format!("{left:?}"), left.is_empty());
    fs::write(&good.0, USERS).expect("a file");
    let flags = ["--web.config.file", &good.0.to_string_lossy(), "--web.listen-address", "127.0.0.1:0"];
    let mut profiler = Profiler::attach_with(fixture.pid(), &flags);
    let serving: Vec<SocketAddr> = wait::until("both addresses", || {
        let lines = profiler.program().errors();
        let addresses = lines.iter().filter_map(|line| line.split_once("http://")?.1.split('/').next()?.parse().ok());
        let addresses: Vec<SocketAddr> = addresses.collect();
        if addresses.len() == 2 { Ok(addresses) } else { Err(format!("{lines:?}")) }
    });
    for address in serving {
        let code = |path, head| http::get_with(address, path, head).expect("an answer").status;
        table.equal("metrics without a password", 401, code("/metrics", ""));
        table.equal("metrics", 200, code("/metrics", ALICE));
        table.equal("status", 200, code("/status", ALICE));
        table.equal("healthz", 200, code("/healthz", ""));
        table.equal("readyz", 200, code("/readyz", ""));
    }
    profiler.stop();
    table.finish();
}

const PROBES: &[&str] = &[
    "run_queue",
    "accept_queue",
    "accept_depth",
    "accept_wait",
    "task_spawn",
    "task_complete",
    "task_parent",
    "task_outcome",
    "task_name",
    "tasks",
];

const FAMILIES: &[(&str, &str)] = &[
    ("profiler_sched_run_queue_seconds", "histogram"),
    ("profiler_sched_on_cpu_seconds_total", "counter"),
    ("profiler_sched_switches_total", "counter"),
    ("profiler_accept_queue_length", "gauge"),
    ("profiler_accept_queue_depth", "histogram"),
    ("profiler_accept_wait_seconds", "histogram"),
    ("profiler_tasks_spawned_total", "counter"),
    ("profiler_tasks_completed_total", "counter"),
    ("profiler_tasks_alive", "gauge"),
    ("profiler_task_lifetime_seconds", "histogram"),
    ("profiler_target_up", "gauge"),
    ("profiler_probe_state", "gauge"),
    ("profiler_events_lost_total", "counter"),
    ("process_cpu_seconds_total", "counter"),
];

/// What promtool has to say against a page.
fn promtool(page: &str) -> String {
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("failed to run promtool: {e}: `cargo xtask setup` installs it"));
    let mut stdin = promtool.stdin.take().expect("stdin is a pipe");
    stdin.write_all(page.as_bytes()).expect("promtool reads");
    drop(stdin);
    let output = promtool.wait_with_output().expect("promtool ends");
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).trim().to_owned();
    if output.status.success() || !said.is_empty() { said } else { format!("failed: {}", output.status) }
}

/// Check that Ctrl-C and a polite request to end are followed at once, also while a client holds its connection.
#[test]
fn signals() {
    place::require_root();
    let mut table = Table::new("signals");
    let mut fixture = Fixture::tokio("latest", "release", &["tasks"]);
    for (name, signal) in [("SIGINT", libc::SIGINT), ("SIGTERM", libc::SIGTERM)] {
        let profiler = Profiler::attach(fixture.pid());
        let idle = std::net::TcpStream::connect(profiler.address).expect("it serves");
        let begin = Instant::now();
        let ended = profiler.end(signal);
        table.equal(format!("{name}: exit code"), 0, ended.code().unwrap_or(-1));
        // The one place where the clock decides: who presses Ctrl-C waits.
        let took = begin.elapsed();
        table.holds(format!("{name}: time"), "under 5 s", format!("{took:.1?}"), took < Duration::from_secs(5));
        drop(idle);
        table.holds("still answers", true, fixture.answers(), true);
    }
    table.finish();
}

/// Check that a page that is printed says what the fixture says.
#[test]
fn printed_page() {
    place::require_root();
    let mut table = Table::new("attach --duration --print");
    let mut fixture = Fixture::tokio("latest", "release", &["tasks"]);
    let pid = fixture.pid().to_string();
    let profiler = launch(&["attach", "--budget", "off", "--pid", &pid, "--duration", "4s", "--print"]);
    let watching = profiler.error_line(|line| line.contains("watching process"));
    assert!(watching.is_some(), "{:?}", profiler.errors());
    fixture.ask("run 1000");
    let truth = fixture.ask("hold 10");
    let ended = profiler.wait();
    table.equal("exit code", 0, ended.code().unwrap_or(-1));
    let text = ended.stdout.join("\n") + "\n";
    table.equal("promtool says", String::new(), promtool(&text));
    let page = Page::parse(&text);
    let all = &truth["tasks"];
    let ended = ["completed", "cancelled", "panicked"].iter().map(|outcome| number(&all[outcome])).sum::<u64>();
    for (name, truth) in [
        ("profiler_tasks_spawned_total", number(&all["spawned"])),
        ("profiler_tasks_completed_total", ended),
        ("profiler_tasks_alive", number(&all["alive"])),
        ("profiler_tasks_unseen_spawns_total", 0),
        ("profiler_task_lifetime_seconds_count", ended),
        ("profiler_events_lost_total", 0),
    ] {
        table.equal(name, truth, page.sum(name, &[]) as u64);
    }
    table.holds("still answers", true, fixture.answers(), true);
    table.finish();
}

/// Check that a program that is started is seen from its first instruction: also the runtime's own tasks.
#[test]
fn run_from_the_start() {
    place::require_root();
    let mut table = Table::new("run");
    let program = place::tokio("latest", "release");
    let mut profiler = Profiler::run(&[&program.display().to_string(), "--workers", "3", "tasks"]);
    let ready: serde_json::Value = serde_json::from_str(&profiler.program().line()).expect("the fixture is ready");
    let pid = number(&ready["pid"]) as u32;
    profiler.program().send("run 2000");
    let truth: serde_json::Value = serde_json::from_str(&profiler.program().line()).expect("it answers");
    let status = profiler.status();
    let target = status.target(pid);
    let internal = target.all_kinds().filter(|kind| kind.0["internal"] == true);
    table.equal("spawned", number(&truth["tasks"]["spawned"]), target.spawned());
    table.equal("workers", number(&truth["workers"]), internal.map(Kind::spawned).sum());
    table.equal("alive", number(&truth["tasks"]["alive"]), target.alive());
    let losses = status.losses();
    table.holds("lost", "nothing", format!("{losses:?}"), losses.is_empty());
    profiler.program().send("quit");
    let ended = profiler.wait();
    table.equal("exit code", 0, ended.code().unwrap_or(-1));
    for code in [0, 3, 42] {
        let command = format!("exit {code}");
        let ended =
            run_to_end(&["run", "--budget", "off", "--web.listen-address", "127.0.0.1:0", "--", "sh", "-c", &command]);
        table.equal(command, code, ended.code().unwrap_or(-1));
    }
    table.finish();
}

/// Check that a profiler that serves stays for the series of what has ended, and one that prints does not.
#[test]
fn ends_with_its_target() {
    place::require_root();
    let mut table = Table::new("a target that ends");
    let fixture = Fixture::tokio("latest", "release", &["tasks"]);
    let pid = fixture.pid().to_string();
    let printing = launch(&["attach", "--budget", "off", "--pid", &pid, "--duration", "10m", "--print"]);
    assert!(printing.error_line(|line| line.contains("watching process")).is_some(), "{:?}", printing.errors());
    let serving = Profiler::start(&[
        "attach",
        "--pid",
        &pid,
        "--force",
        "--retention",
        "2s",
        "--web.listen-address",
        "127.0.0.1:0",
    ]);
    table.equal("exit code of the target", 0, fixture.quit().unwrap_or(-1));
    let up = wait::until_or_last(|| serving.page().value("profiler_target_up", &[]), |&up| up == 0.0);
    table.equal("up", 0.0, up);
    table.equal("exit code of the one that prints", 0, printing.wait().code().unwrap_or(-1));
    // Once the retention is over, nothing is left to serve.
    table.equal("exit code of the one that serves", 0, serving.wait().code().unwrap_or(-1));
    table.finish();
}
