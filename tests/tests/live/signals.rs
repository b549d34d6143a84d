//! What a kernel permits, as `profiler check` says it, and what is attached there: the same. Run on every kernel of the
//! matrix.

use tests::check::Check;
use tests::fixture::Fixture;
use tests::place;
use tests::profiler::Profiler;
use tests::status::number;
use tests::table::Table;
use tests::wait;

/// What is said of a target's signal where a way is chosen: the part that does not depend on the target.
fn words(way: &str, signal: &str, how: &str) -> String {
    match (signal, way) {
        ("accept_wait", "uprobe_multi" | "uprobe") => "uprobes behind accept".to_owned(),
        ("accept_wait", "tracepoint") => "sys_exit_accept".to_owned(),
        ("tasks", "uprobe_multi") => "uprobe_multi".to_owned(),
        ("tasks", "uprobe") => "perf-event".to_owned(),
        // How they are found in the binary is said of these.
        ("task_polls" | "task_cpu", _) => String::new(),
        _ => how.to_owned(),
    }
}

/// Check that every signal is attached by the way that `check` says, or is said not to be, for the same reason.
fn check_agreement(without: &[&str]) {
    place::require_root();
    let check = Check::run(without);
    let mut table = Table::new(format!("signals without {without:?}"));
    // Few probes, so that single uprobes may do; the other one listens.
    let tokio = Fixture::tokio("latest", "release", &["tasks"]);
    let listener = Fixture::start(&place::listener(), &["--backlog", "16"]);
    let flags: Vec<&str> = without.iter().flat_map(|way| ["--without", way]).collect();
    for fixture in [&tokio, &listener] {
        let pid = fixture.pid();
        let profiler = Profiler::attach_with(pid, &flags);
        let status = profiler.status();
        for row in check.signals() {
            let signal = row["signal"].as_str().expect("a name");
            // A signal that does not concern a target has no row, or says so.
            let Some((state, detail)) = status.target(pid).probe(signal) else { continue };
            if state == "not_applicable" || (fixture.pid() == listener.pid() && signal.starts_with("task")) {
                continue;
            }
            let what = format!("{signal} of {pid}: {detail}");
            match row["way"].as_str() {
                // The program has more sites than single uprobes may be.
                Some("uprobe") if signal == "tasks" => {
                    table.holds(what, "unsupported", state, state == "unsupported" && detail.contains("uprobe_multi"));
                }
                Some(way) => {
                    let words = words(way, signal, row["how"].as_str().unwrap_or_default());
                    let right = ["attached", "sampled"].contains(&state) && detail.contains(&words);
                    table.holds(what, format!("attached {words}"), state, right);
                }
                None => {
                    let why = row["why_not"].as_str().expect("a reason");
                    let first = why.split([';', ':']).next().unwrap_or_default();
                    // Where not even births can be seen, that is the reason.
                    let told = detail.contains(first) || (signal == "task_polls" && detail.contains("uprobe_multi"));
                    let right = state == "unsupported" && told;
                    table.holds(what, format!("unsupported: {why}"), state, right);
                }
            }
        }
        table.holds("run queue", "a row", "", status.target(pid).probe("run_queue").is_some());
    }
    table.finish();
}

#[test]
fn check_and_attach_agree() {
    check_agreement(&[]);
}

#[test]
fn check_and_attach_agree_without_the_best_ways() {
    check_agreement(&["fentry", "uprobe_multi"]);
}

/// Check that tasks are counted exactly where their births can be probed, and are said not to be elsewhere.
#[test]
fn tasks_or_the_reason() {
    place::require_root();
    let check = Check::run(&[]);
    let mut table = Table::new("tasks, or why not");
    let mut fixture = Fixture::tokio("latest", "release", &["tasks"]);
    let pid = fixture.pid();
    let profiler = Profiler::attach(pid);
    let truth = fixture.ask("run 1000");
    if check.way("tasks") == Some("uprobe_multi") {
        let spawned = number(&truth["tasks"]["spawned"]);
        let status = wait::until_or_last(
            || profiler.status(),
            |status| status.target(pid).spawned() >= spawned && status.target(pid).completed() >= spawned,
        );
        table.equal("spawned", spawned, status.target(pid).spawned());
        let ended = ["completed", "cancelled", "panicked"].iter().map(|outcome| number(&truth["tasks"][outcome])).sum();
        table.equal("ended", ended, status.target(pid).completed());
        let losses = status.losses();
        table.holds("lost", "nothing", format!("{losses:?}"), losses.is_empty());
    } else {
        let status = profiler.status();
        for probe in ["tasks", "task_spawn", "task_complete"] {
            let (state, why) = status.target(pid).probe(probe).expect("a row");
            table.holds(probe, "unsupported, with a reason", why, state == "unsupported" && !why.is_empty());
        }
        table.equal("series of tasks", false, profiler.page().has("profiler_tasks_spawned_total", &[]));
    }
    table.holds("still answers", true, fixture.answers(), true);
    table.finish();
}
