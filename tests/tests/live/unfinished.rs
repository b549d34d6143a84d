//! Polls whose end is not seen: those that go on, and those that are longer than the window in which they began.

use serde_json::Value;
use tests::fixture::Fixture;
use tests::place;
use tests::profiler::Profiler;
use tests::status::number;
use tests::wait;

/// The type of a task that spins, in a build that knows it by its source file.
const HOG: &str = "hog.rs";

/// What a status says of the type.
fn of_hog(profiler: &Profiler, pid: u32, what: &str) -> Value {
    let status = profiler.status();
    status.target(pid).kinds().find(|kind| kind.name().contains(HOG)).map_or(Value::Null, |kind| kind.0[what].clone())
}

/// Check that a task is named that has not returned from its poll, with its thread and for how long, and no other is.
#[test]
fn a_poll_that_does_not_end_is_named() {
    place::require_root();
    let mut fixture = Fixture::tokio("latest", "fat-stripped", &["--workers", "2", "tasks"]);
    let profiler = Profiler::attach(fixture.pid());
    fixture.tell("hog 3600000 1");
    let held = wait::until("the poll that goes on", || {
        let polls = of_hog(&profiler, fixture.pid(), "unfinished_polls");
        if polls["longest_seconds"].as_f64().unwrap_or_default() > 1.0 { Ok(polls) } else { Err(polls.to_string()) }
    });
    assert_eq!(number(&held["count"]), 1, "{held}");
    let thread = format!("/proc/{}/task/{}", fixture.pid(), held["tid"]);
    assert!(std::fs::exists(&thread).is_ok_and(|exists| exists), "{thread}");
    let found = wait::until("the diagnosis", || {
        let status = profiler.status();
        let found = status.0["diagnoses"].as_array().cloned().unwrap_or_default();
        let of_hog = found.iter().find(|row| row["subject"].as_str().is_some_and(|subject| subject.contains(HOG)));
        of_hog.cloned().ok_or_else(|| format!("{found:?}"))
    });
    assert_eq!(found["name"], "task_blocks_worker", "{found}");
    assert!(found["summary"].as_str().is_some_and(|summary| summary.ends_with("and still does")), "{found}");
    let page = profiler.page();
    let shown = page.sum("profiler_task_unfinished_poll_seconds", &[]);
    let longest = of_hog(&profiler, fixture.pid(), "unfinished_polls")["longest_seconds"].as_f64().expect("it goes on");
    assert!(shown > 1.0 && shown <= longest, "all types together: {shown} s, the hog: {longest} s");
}

/// Check that polls are counted as slow that no window is long enough for.
#[test]
fn polls_longer_than_a_window_are_counted() {
    place::require_root();
    let mut fixture = Fixture::tokio("latest", "fat-stripped", &["--workers", "2", "tasks"]);
    let profiler = Profiler::attach_within("20%", fixture.pid(), &["--slow-poll", "5ms"]);
    fixture.ask("hog 700 5");
    // A million polls a second beside it keep polls in windows.
    fixture.tell("pingpong 120");
    let polls = wait::until("a poll that outlasts its window", || {
        let status = profiler.status();
        let tiers = status.target(fixture.pid()).0["budget"]["tiers"].clone();
        let windows = tiers.as_array().is_some_and(|tiers| tiers.iter().any(|tier| tier["mode"] == "windows"));
        let polls = of_hog(&profiler, fixture.pid(), "polls");
        if windows && polls["slow"].as_u64().is_some_and(|slow| slow > polls["polls"].as_u64().unwrap_or(0)) {
            Ok(polls)
        } else {
            Err(format!("{tiers} {polls}"))
        }
    });
    let slowest = polls["slowest_seconds"].as_f64().expect("a time");
    // The first polls may have been seen whole, before there were windows: these are more than those.
    assert!((0.005..2.0).contains(&slowest), "{polls}");
}
