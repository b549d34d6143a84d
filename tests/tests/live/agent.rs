//! Processes of a node that come and go: found, counted against their own truth, and let go without a trace.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use tests::bpf::BpfObjects;
use tests::code::ProbedCode;
use tests::fixture::Fixture;
use tests::maps;
use tests::node::{Node, compare, settle};
use tests::place;
use tests::profiler::{Profiler, run_to_end};
use tests::random::Random;
use tests::status::number;
use tests::table::Table;
use tests::wait;

fn nothing_is_left(table: &mut Table, before: &BpfObjects) {
    let left = wait::until_or_last(|| BpfObjects::left_over_since(before), BpfObjects::is_empty);
    table.holds("BPF objects left", "none", format!("{left:?}"), left.is_empty());
}

fn lost(agent: &Profiler, table: &mut Table) {
    let status = agent.status();
    let losses = status.losses();
    table.holds("lost", "nothing", format!("{losses:?}"), losses.is_empty());
}

/// Check that processes which were there before are found, and those which come later; that all tasks of both are counted; and
/// that those which end leave the page after a while, and the kernel half at once.
#[test]
fn processes_come_and_go() {
    place::require_root();
    let before = BpfObjects::all();
    let node = Node::new("come");
    node.rules(&[("include", "*")]);
    let mut table = Table::new("processes of a node");
    let mut first = node.start("web");
    let mut agent = node.agent(&["--retention", "2s"]).serving();
    let own = agent.program().pid();
    settle(&agent, &mut table, "before", &[&first]);
    let mut second = node.start("web");
    let mut third = node.start("db");
    settle(&agent, &mut table, "started since", &[&first, &second, &third]);
    compare(&agent, &mut table, "before", &mut first);
    compare(&agent, &mut table, "same program", &mut second);
    compare(&agent, &mut table, "other program", &mut third);
    table.equal("entries", 3, maps::entries(own, "TARGETS"));
    table.equal("exit code", 0, first.quit().unwrap_or(-1));
    settle(&agent, &mut table, "one has ended", &[&second, &third]);
    compare(&agent, &mut table, "still there", &mut second);
    let all = || agent.status().0["targets"].as_array().map_or(0, Vec::len);
    table.equal("on the page, later", 2, wait::until_or_last(all, |n| *n == 2));
    table.equal("entries, later", 2, maps::entries(own, "TARGETS"));
    lost(&agent, &mut table);
    second.quit();
    third.quit();
    table.equal("on the page, at the end", 0, wait::until_or_last(all, |n| *n == 0));
    table.equal("entries, at the end", 0, maps::entries(own, "TARGETS") + maps::entries(own, "THREADS"));
    agent.stop();
    nothing_is_left(&mut table, &before);
    table.finish();
}

/// Check that processes of the same name and container share their series, that a counter is the sum of them all and does
/// not go back when one of them ends, and that the series go when none has been there for a while.
#[test]
fn processes_are_summed() {
    place::require_root();
    let node = Node::new("summed");
    node.rules(&[("include", "*")]);
    let mut table = Table::new("processes that share their series");
    let mut web: Vec<Fixture> = (0..3).map(|_| node.start("web")).collect();
    let db = node.start("db");
    let agent = node.agent(&["--retention", "2s"]).serving();
    settle(&agent, &mut table, "all", &[&web[0], &web[1], &web[2], &db]);
    for fixture in &mut web {
        compare(&agent, &mut table, "one of them", fixture);
    }
    let labels = [("process", "web"), ("runtime", "tokio")];
    let names = agent.status().target(web[0].pid()).names();
    let sum = |metric: &str| -> f64 {
        let page = agent.page();
        let is_own = |labels: &BTreeMap<String, String>| names.iter().any(|name| labels.get("task") == Some(name));
        page.series(metric, &labels).filter(|sample| is_own(&sample.labels)).map(|sample| sample.value).sum()
    };
    let spawned = || sum("profiler_tasks_spawned_total");
    let completed = || sum("profiler_tasks_completed_total");
    let mut truth = || web.iter_mut().map(|fixture| number(&fixture.ask("truth")["tasks"]["spawned"]) as f64).sum();
    let all_of_them: f64 = truth();
    table.holds("truth", "over 3000", all_of_them, all_of_them > 3000.0);
    table.equal("spawned", all_of_them, spawned());
    table.equal("completed", all_of_them, completed());
    let page = agent.page();
    let series: Vec<_> = page.series("profiler_target_up", &labels).collect();
    table.equal("series of a process's metric", 1, series.len());
    let names: Vec<&str> = series.iter().flat_map(|one| one.labels.keys().map(String::as_str)).collect();
    table.holds("without a pid", "namespace, pod, container", format!("{names:?}"), {
        !names.contains(&"pid") && ["namespace", "pod", "container"].iter().all(|name| names.contains(name))
    });
    let polls = || sum("profiler_task_polls_total");
    let polled = wait::until_at_rest("polls are counted", 5, || polls() as u64) as f64;
    table.holds("polls", "at least one for each task", polled, polled >= all_of_them);
    let gone = web.remove(1);
    let pid = gone.pid();
    table.equal("exit code", 0, gone.quit().unwrap_or(-1));
    let is_shown = || {
        let status = agent.status();
        let targets = status.0["targets"].as_array().expect("a list").clone();
        targets.iter().any(|target| number(&target["pid"]) == u64::from(pid))
    };
    // No counter falls, whether it is still shown or only summed.
    let (mut least, mut least_polls) = (f64::INFINITY, f64::INFINITY);
    let shown = wait::until_or_last(
        || {
            least = least.min(spawned()).min(completed());
            least_polls = least_polls.min(polls());
            is_shown()
        },
        |shown| !shown,
    );
    table.equal("shown by itself, later", false, shown);
    table.equal("least since", all_of_them, least);
    table.holds("least polls since", format!("{polled} or more"), least_polls, least_polls >= polled);
    let before = number(&web[0].ask("truth")["tasks"]["spawned"]);
    let more = number(&web[0].ask("run 1000")["tasks"]["spawned"]) - before;
    let sum = all_of_them + more as f64;
    table.equal("spawned by all that ever were", sum, wait::until_or_last(&spawned, |seen| *seen == sum));
    let all = || agent.page().series("profiler_tasks_spawned_total", &labels).count();
    web.into_iter().for_each(|fixture| _ = fixture.quit());
    table.equal("series, long after the last", 0, wait::until_or_last(all, |n| *n == 0));
    table.holds("series of others", "some", 1, agent.page().sum("profiler_target_up", &[("process", "db")]) == 1.0);
    lost(&agent, &mut table);
    agent.stop();
    db.quit();
    table.finish();
}

/// Check that the first rule that matches decides, that new rules let go and take on, that a bad file changes nothing, and
/// that each of this is said.
#[test]
fn rules_are_read_again() {
    place::require_root();
    let node = Node::new("rules");
    node.rules(&[("exclude", "db"), ("include", "*")]);
    let mut table = Table::new("rules that change");
    let (mut web, mut db) = (node.start("web"), node.start("db"));
    let (web_code, db_code) = (ProbedCode::of(web.pid()), ProbedCode::of(db.pid()));
    let mut agent = node.agent(&[]).serving();
    settle(&agent, &mut table, "db is excluded", &[&web]);
    table.holds("probes in web", "some", web_code.changed(), web_code.changed() > 0);
    table.equal("probes in db", 0, db_code.changed());

    node.rules(&[("include", "db")]);
    agent.program().signal(libc::SIGHUP);
    settle(&agent, &mut table, "db is included, web is not", &[&db]);
    web_code.is_restored(&mut table);
    compare(&agent, &mut table, "db", &mut db);
    let said = agent.program().errors();
    let tells = |what: &str| said.iter().any(|line| line.contains(what));
    table.equal("it says what is gone", true, tells("changed: - exclude executable="));
    table.equal("it says what is new", true, tells("changed: + include executable="));

    let good = || agent.page().value("profiler_config_last_reload_successful", &[]);
    table.equal("good", 1.0, good());
    node.write("[[rules]]\naction = \"include\"\nexecutible = \"/x\"\n");
    agent.program().signal(libc::SIGHUP);
    let good = || agent.page().value("profiler_config_last_reload_successful", &[]);
    table.equal("bad", 0.0, wait::until_or_last(good, |good| *good == 0.0));
    let place = format!("`{}`, line 3: ", node.config());
    let error = agent.program().error_line(|line| line.contains("ERROR")).unwrap_or_default();
    table.holds("it says", "file, line, key", &error, error.contains(&place) && error.contains("executible"));
    settle(&agent, &mut table, "as before", &[&db]);
    compare(&agent, &mut table, "as before", &mut db);

    // Both again: one that was let go is measured from now on.
    node.rules(&[("include", "*")]);
    agent.program().signal(libc::SIGHUP);
    let good = || agent.page().value("profiler_config_last_reload_successful", &[]);
    table.equal("good again", 1.0, wait::until_or_last(good, |good| *good == 1.0));
    settle(&agent, &mut table, "both", &[&web, &db]);
    compare(&agent, &mut table, "web, taken on again", &mut web);
    lost(&agent, &mut table);
    agent.stop();
    table.finish();
}

/// Check that a bad file is refused at the start, in one line that says where, before anything is attached.
#[test]
fn bad_rules_at_the_start() {
    place::require_root();
    let node = Node::new("bad");
    let mut table = Table::new("bad rules at the start");
    for (text, line, reason) in [
        ("[[rules]]\naction = \"maybe\"\n", 2, "maybe"),
        ("[[rules]]\naction = \"include\"\nruntime = \"cobol\"\n", 1, "cobol"),
        ("[[rules]]\naction = \"include\"\n[[rules]]\naction = \"exclude\"\ncommand = \"x\"\n", 3, "before it"),
        ("[[rules]]\naction = \"include\n", 2, ""),
    ] {
        node.write(text);
        let ended = run_to_end(&["agent", "--config.file", &node.config()]);
        let place = format!("error: `{}`, line {line}: ", node.config());
        let right = ended.code() == Some(1) && ended.stderr.len() == 1 && ended.stderr[0].starts_with(&place);
        let right = right && ended.stderr[0].contains(reason);
        table.holds(format!("{text:?}"), format!("line {line}"), format!("{:?}", ended.stderr), right);
    }
    table.finish();
}

/// Check that processes which end at once are not looked at, that those which end at any moment of it leave nothing, and
/// that who comes after them is found.
#[test]
fn short_lived_processes() {
    const SHORT: usize = 200;
    const MIDDLE: usize = 30;
    place::require_root();
    let node = Node::new("short");
    node.rules(&[("include", "*")]);
    let mut table = Table::new(format!("{SHORT} processes that end at once, {MIDDLE} that end while they are found"));
    let short = node.copy("/bin/true".into(), "short");
    let mut agent = node.agent(&["--retention", "1s"]).serving();
    let own = agent.program().pid();
    settle(&agent, &mut table, "nobody", &[]);
    let looked_at = || {
        let status = agent.status();
        let counts = status.0["discovery"]["looked_at"].as_object().expect("counts").clone();
        counts.values().map(number).sum::<u64>()
    };
    let at_first = looked_at();
    for _ in 0..SHORT {
        assert!(Command::new(&short).status().expect("it runs").success());
    }
    let looks = looked_at() - at_first;
    // What else starts on this machine meanwhile is looked at, too.
    table.holds("looks", "next to none", looks, looks < SHORT as u64 / 10);
    let mut random = Random::new(200);
    for _ in 0..MIDDLE {
        let mut fixture = node.start("web");
        sleep(Duration::from_millis(random.below(400)));
        fixture.program().signal(libc::SIGKILL);
    }
    let mut last = node.start("web");
    settle(&agent, &mut table, "who came after them", &[&last]);
    compare(&agent, &mut table, "who came after them", &mut last);
    let all = || agent.status().0["targets"].as_array().map_or(0, Vec::len);
    table.equal("on the page, later", 1, wait::until_or_last(all, |n| *n == 1));
    table.equal("entries of targets", 1, maps::entries(own, "TARGETS"));
    let threads = fs::read_dir(format!("/proc/{}/task", last.pid())).expect("it lives").count();
    table.equal("entries of threads", threads, maps::entries(own, "THREADS"));
    let status = agent.status();
    let failed = status.0["discovery"]["failed"].as_array().expect("a list");
    let ours: Vec<_> = failed.iter().filter(|failed| failed["process"] == "web").collect();
    table.holds("failed", "none", format!("{ours:?}"), ours.is_empty());
    agent.stop();
    table.finish();
}

/// Check that no more are watched than there is room for, and that a slot is used again as if it were new.
#[test]
fn slots_are_used_again() {
    place::require_root();
    let node = Node::new("slots");
    node.rules(&[("include", "*")]);
    let mut table = Table::new("two slots for three processes");
    let (mut first, mut second) = (node.start("web"), node.start("web"));
    let agent = node.agent(&["--max-targets", "2"]).serving();
    settle(&agent, &mut table, "two", &[&first, &second]);
    let mut third = node.start("db");
    let crowded = || agent.page().value("profiler_discovery_processes_total", &[("verdict", "no_room")]);
    table.equal("without room", 1.0, wait::until_or_last(crowded, |n| *n == 1.0));
    compare(&agent, &mut table, "first", &mut first);
    compare(&agent, &mut table, "second", &mut second);
    third.ask("run 500");
    first.quit();
    settle(&agent, &mut table, "another two", &[&second, &third]);
    // What the third did while nobody watched is not counted, and what the first did is not the third's.
    let before = number(&third.ask("truth")["tasks"]["spawned"]);
    let now = number(&third.ask("run 1000")["tasks"]["spawned"]);
    let pid = third.pid();
    let seen = wait::until_or_last(|| agent.status().target(pid).spawned(), |seen| *seen == now - before);
    table.equal("third: spawned since", now - before, seen);
    compare(&agent, &mut table, "second, still", &mut second);
    lost(&agent, &mut table);
    agent.stop();
    table.finish();
}

/// Check that no probe is left in any process when the agent is killed at any moment, and that the next one finds all.
#[test]
fn killed_agent() {
    const CYCLES: usize = 10;
    place::require_root();
    let before = BpfObjects::all();
    let node = Node::new("killed");
    node.rules(&[("include", "*")]);
    let mut table = Table::new(format!("an agent that is killed {CYCLES} times"));
    let mut fixtures: Vec<Fixture> = (0..4).map(|n| node.start(if n < 2 { "web" } else { "db" })).collect();
    let code: Vec<ProbedCode> = fixtures.iter().map(|fixture| ProbedCode::of(fixture.pid())).collect();
    let mut random = Random::new(10);
    let mut left = 0;
    for _ in 0..CYCLES {
        let starting = node.agent(&[]);
        // It attaches to all within a second.
        sleep(Duration::from_millis(300 + random.below(1000)));
        let program = starting.into_program();
        program.signal(libc::SIGKILL);
        program.wait();
        left += code.iter().map(ProbedCode::left).sum::<usize>();
    }
    table.equal("changed instructions left", 0, left);
    nothing_is_left(&mut table, &before);
    let agent = node.agent(&[]).serving();
    settle(&agent, &mut table, "the next one", &fixtures.iter().collect::<Vec<_>>());
    for fixture in &mut fixtures {
        compare(&agent, &mut table, "the next one", fixture);
    }
    let attached: usize = code.iter().map(ProbedCode::changed).sum();
    table.holds("changed instructions while attached", "some", attached, attached > 0);
    agent.stop();
    nothing_is_left(&mut table, &before);
    table.equal("exit codes", 0, fixtures.into_iter().map(|f| f.quit().unwrap_or(-1)).sum());
    table.finish();
}
