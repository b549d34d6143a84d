//! The image as it is shipped, run by runc as the manifest says: what it measures of other containers, and what it leaves.

use std::fs;
use std::path::Path;

use tests::bpf::BpfObjects;
use tests::code::ProbedCode;
use tests::container::{Container, Engine};
use tests::fixture::Fixture;
use tests::kernel;
use tests::manifest::Manifests;
use tests::page::Page;
use tests::place;
use tests::program::Program;
use tests::status::{Status, number};
use tests::table::Table;
use tests::wait;

const PORT: u16 = 9909;

/// A fixture in a container of its own, with a network and ids of its own. Its program has a name of its own, for rules.
fn target(engine: &Engine, program: &Path, name: &str, arguments: &[&str]) -> (Fixture, Container) {
    let mut bundle = engine.bundle(name);
    let folder = engine.folder().join(format!("{name}-program"));
    fs::create_dir(&folder).expect("a folder of our own");
    fs::copy(program, folder.join(name)).expect("a program can be copied");
    bundle.mount(&folder, "/program", true);
    for libraries in ["/lib", "/lib64", "/usr/lib"] {
        bundle.mount(Path::new(libraries), libraries, true);
    }
    let path = format!("/program/{name}");
    let (command, container) = bundle.runs(&[&[path.as_str()], arguments].concat()).command(engine);
    let arguments: Vec<String> = command.get_args().map(|argument| argument.to_string_lossy().into_owned()).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    (Fixture::start(Path::new("runc"), &arguments), container)
}

/// The agent of a manifest, with rules that include these programs only.
fn agent(engine: &Engine, manifests: &Manifests, programs: &[&str]) -> (Program, Container) {
    let folder = engine.folder().join("config");
    fs::create_dir(&folder).expect("a folder of our own");
    let rule = |name: &&str| format!("[[rules]]\naction = \"include\"\nexecutable = \"/program/{name}\"\n\n");
    fs::write(folder.join("rules.toml"), programs.iter().map(rule).collect::<String>()).expect("a file of our own");
    let bundle = engine.of_manifest("agent", manifests, &folder);
    let (mut program, container) = bundle.start(engine);
    wait::until("an agent that is ready", || {
        assert!(program.is_running(), "the agent has ended: {:?}", program.errors());
        let ready = container.get(PORT, "/readyz").is_some_and(|response| response.status == 200);
        if ready { Ok(()) } else { Err(format!("{:?}", program.errors())) }
    });
    (program, container)
}

fn status(agent: &Container) -> Status {
    let response = agent.get(PORT, "/status").expect("the agent serves");
    Status(serde_json::from_str(&response.body).expect("the status is JSON"))
}

fn page(agent: &Container) -> Page {
    Page::parse(&agent.get(PORT, "/metrics").expect("the agent serves").body)
}

/// Waits until a process is watched.
fn watches(agent: &Container, pid: u32) {
    wait::until_true("a target that is watched", || {
        let status = status(agent);
        let targets = status.0["targets"].as_array().expect("targets are a list");
        targets.iter().any(|target| target["pid"] == pid && target["running"] == true)
    });
}

/// Compares the births and ends of a process, all of which are over.
fn counts(agent: &Container, table: &mut Table, pid: u32, truth: u64) {
    let seen = || (status(agent).target(pid).spawned(), status(agent).target(pid).completed());
    let seen = wait::until_or_last(seen, |seen| *seen == (truth, truth));
    table.equal("spawned, completed", format!("{:?}", (truth, truth)), format!("{seen:?}"));
}

/// Resident memory of the agent and of the process that holds its probes, MiB.
fn memory_mib(pid: u32) -> u64 {
    let holders = kernel::children(pid).into_iter().map(kernel::resident_kib);
    (kernel::resident_kib(pid) + holders.sum::<u64>()) >> 10
}

fn stop(agent: (Program, Container), table: &mut Table, before: &BpfObjects) {
    let (program, container) = agent;
    container.stop();
    let ended = program.wait();
    assert_eq!(ended.code(), Some(0), "{ended:?}");
    drop(container);
    let left = wait::until_or_last(|| BpfObjects::left_over_since(before), BpfObjects::is_empty);
    table.holds("BPF objects left", "none", format!("{left:?}"), left.is_empty());
}

/// Check that with the capabilities of the manifest alone, on a root that cannot be written, tasks in another container are
/// counted to the last, that probes and readiness answer, and that nothing is left once it was stopped.
#[test]
fn least_privileges() {
    place::require_root();
    let before = BpfObjects::all();
    let engine = Engine::new("deploy");
    let mut table = Table::new("the shipped container");
    let (mut fixture, container) = target(&engine, &place::tokio("latest", "release"), "web", &["tasks"]);
    let code = ProbedCode::of(container.pid());
    let mut manifests = Manifests::render("base", &[]);
    at_full_fidelity(&mut manifests);
    let agent = agent(&engine, &manifests, &["web"]);
    let pid = container.pid();
    watches(&agent.1, pid);
    table.equal("/healthz", 200, agent.1.get(PORT, "/healthz").map_or(0, |response| response.status));
    table.holds("probes in the target", "some", code.changed(), code.changed() > 0);
    let truth = fixture.ask("run 1000");
    counts(&agent.1, &mut table, pid, number(&truth["tasks"]["spawned"]));
    let losses = status(&agent.1);
    table.holds("lost", "nothing", format!("{:?}", losses.losses()), losses.losses().is_empty());
    table.equal("on the page", true, page(&agent.1).has("profiler_tasks_spawned_total", &[]));
    let used = memory_mib(agent.1.pid());
    table.holds("MiB, of 256", "less", used, used < 128);
    stop(agent, &mut table, &before);
    code.is_restored(&mut table);
    drop(container);
    table.finish();
}

/// Check that with the overlay for kernels without uprobe_multi tasks are counted to the last by single uprobes, and accepts of
/// another network namespace, and that nothing is left.
#[test]
fn privileged() {
    place::require_root();
    let before = BpfObjects::all();
    let engine = Engine::new("deploy-privileged");
    let mut table = Table::new("the privileged overlay, by single uprobes");
    let (mut fixture, container) = target(&engine, &place::few(), "few", &[]);
    let code = ProbedCode::of(container.pid());
    let mut manifests = Manifests::render("overlays/privileged", &[]);
    at_full_fidelity(&mut manifests);
    give(&mut manifests, &["--without=uprobe_multi"]);
    let agent = agent(&engine, &manifests, &["few"]);
    let pid = container.pid();
    watches(&agent.1, pid);
    let status_of = status(&agent.1);
    let (_, how) = status_of.target(pid).probe("tasks").expect("a row");
    table.holds("attached", "by perf events", how, how.contains("perf-event"));
    table.holds("accept queues", "attached", "", status_of.target(pid).is_attached("accept_queue"));
    let truth = fixture.ask("run 50");
    counts(&agent.1, &mut table, pid, number(&truth["spawned"]));
    stop(agent, &mut table, &before);
    code.is_restored(&mut table);
    drop(container);
    table.finish();
}

/// Check that the accept queues of another network namespace are measured, each connection, with the component for it.
#[test]
fn accept_queues() {
    const CONNECTIONS: u64 = 100;
    place::require_root();
    let before = BpfObjects::all();
    let engine = Engine::new("deploy-accept");
    let mut table = Table::new("accept queues of another container");
    let (mut fixture, container) = target(&engine, &place::listener(), "queue", &["--backlog", "128"]);
    let mut manifests = Manifests::render("base", &["accept-queues"]);
    at_full_fidelity(&mut manifests);
    let agent = agent(&engine, &manifests, &["queue"]);
    let pid = container.pid();
    watches(&agent.1, pid);
    let port = number(&fixture.ready["ports"][0]) as u16;
    let listener = format!("127.0.0.1:{port}");
    let metric = |name: &str| page(&agent.1).value(name, &[("listener", &listener)]) as u64;
    let clients = container.connect(port, CONNECTIONS);
    let queue = kernel::listening(pid).iter().find(|socket| socket.port == port).map(|socket| socket.queue);
    table.equal("length", queue.unwrap_or_default(), metric("profiler_accept_queue_length"));
    table.equal("length, as constructed", CONNECTIONS, metric("profiler_accept_queue_length"));
    fixture.ask(&format!("accept {CONNECTIONS}"));
    let truth = number(&fixture.ask("truth")["accepted"][0]);
    for name in ["profiler_accepted_total", "profiler_accept_wait_seconds_count"] {
        table.equal(name, truth, wait::until_or_last(|| metric(name), |seen| *seen == truth));
    }
    drop(clients);
    stop(agent, &mut table, &before);
    drop(container);
    table.finish();
}

/// Within a budget, totals are absent where they are sampled.
fn at_full_fidelity(manifests: &mut Manifests) {
    give(manifests, &["--budget=off", "--settle=100ms"]);
}

/// Gives the agent further arguments.
fn give(manifests: &mut Manifests, more: &[&str]) {
    let set = manifests.0.iter_mut().find(|object| object["kind"] == "DaemonSet").expect("a DaemonSet");
    let arguments = set.pointer_mut("/spec/template/spec/containers/0/args").and_then(|args| args.as_array_mut());
    arguments.expect("arguments are a list").extend(more.iter().map(|&argument| argument.into()));
}
