//! Fibers of Ruby, against the program's own count. With `PROFILER_RUBY_ROOT`, of the Ruby in that directory.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use tests::page::Page;
use tests::place;
use tests::profiler::Profiler;
use tests::ruby::{FIXTURE, Fibers};
use tests::scratch::Folder;
use tests::status::{Parent, Status, Target};
use tests::table::Table;
use tests::wait;

/// Those whose code is not Ruby's.
const UNNAMED: &str = "fiber";

/// Names without the directories, which are others where the program is in another root.
fn kinds(target: Target<'_>) -> BTreeMap<String, (u64, u64, u64, u64)> {
    let of = |kind: tests::status::Kind<'_>| {
        let polls = kind.0["polls"]["polls"].as_u64().unwrap_or_default();
        (short(kind.name()), (kind.spawned(), kind.completed(), kind.alive(), polls))
    };
    target.kinds().map(of).collect()
}

fn short(name: &str) -> String {
    let file = name.rsplit('/').next().unwrap_or(name);
    if file == UNNAMED { file.to_owned() } else { format!("ruby/{file}") }
}

/// The name of fibers whose block begins on the fixture's line that has this in it.
fn made_at(code: &str) -> String {
    let text = fs::read_to_string(place::root().join(FIXTURE)).expect("the fixture");
    let line = 1 + text.lines().position(|line| line.contains(code)).expect("it is in the fixture");
    format!("ruby/fibers.rb:{line}")
}

/// The status once so many fibers have ended.
fn ended(profiler: &Profiler, pid: u32, fibers: u64) -> Status {
    wait::until_or_last(|| profiler.status(), |status| status.target(pid).completed() == fibers)
}

fn nothing_lost(table: &mut Table, status: &Status) {
    let losses = status.losses();
    table.holds("lost", "nothing", format!("{losses:?}"), losses.is_empty());
}

/// Check that all fibers of 5,050 are counted, with their parents, and every switch to them.
#[test]
fn all_are_counted() {
    const FIBERS: u64 = 50;
    const EACH: u64 = 100;
    let mut fibers = Fibers::start();
    let pid = fibers.pid();
    let profiler = Profiler::attach_within("off", pid, &[]);
    let answer = fibers.tell(&format!("nested {FIBERS} {EACH} 2"));
    let [made, over, switched] = answer[..] else { panic!("{answer:?}") };
    // Who spawned whom is known once all that may have come before has come.
    let status = wait::until_or_last(|| ended(&profiler, pid, over), |status| status.target(pid).edges() == made);
    let target = status.target(pid);
    let mut table = Table::new(format!("Ruby {}, nested fibers", fibers.version));
    table.equal("spawned", made, target.spawned());
    table.equal("completed", over, target.completed());
    table.equal("alive", made - over, target.alive());
    let kinds = kinds(target);
    let polls: u64 = kinds.values().map(|kind| kind.3).sum();
    table.equal("slices", switched, polls);
    let outer = made_at("one = Fiber.new");
    let of = |name: &str| kinds.get(name).copied().unwrap_or_default();
    table.equal("outer ones", FIBERS, of(&outer).0);
    table.equal("inner ones", FIBERS * EACH, of(&made_at("other = Fiber.new")).0);
    let parents: BTreeMap<Parent, u64> = target.kinds().flat_map(|kind| kind.parents().collect::<Vec<_>>()).collect();
    let outer = target.kinds().find(|kind| short(kind.name()) == outer).map(|kind| kind.name().to_owned());
    table.equal("that no fiber made", FIBERS, parents.get(&Parent::None).copied().unwrap_or_default());
    let by_outer = outer.and_then(|name| parents.get(&Parent::Task(name)).copied());
    table.equal("that an outer one made", FIBERS * EACH, by_outer.unwrap_or_default());
    table.equal("all parents", made, parents.values().sum());
    nothing_lost(&mut table, &status);
    table.finish();
}

/// Check that fibers of several threads are told apart, and no thread is taken for one.
#[test]
fn those_of_several_threads() {
    let mut fibers = Fibers::start();
    let pid = fibers.pid();
    let profiler = Profiler::attach_within("off", pid, &[]);
    let answer = fibers.tell("threads 4 20 50 3");
    let [made, over, switched] = answer[..] else { panic!("{answer:?}") };
    let status = ended(&profiler, pid, over);
    let mut table = Table::new(format!("Ruby {}, fibers of 4 threads", fibers.version));
    table.equal("spawned", made, status.target(pid).spawned());
    table.equal("completed", over, status.target(pid).completed());
    table.equal("slices", switched, kinds(status.target(pid)).values().map(|kind| kind.3).sum());
    nothing_lost(&mut table, &status);
    table.finish();
}

/// Check that the time for which fibers hold their thread is what they measured themselves.
#[test]
fn slices_are_timed() {
    const FIBERS: u64 = 4;
    const SLICES: u64 = 20;
    let mut fibers = Fibers::start();
    let pid = fibers.pid();
    let profiler = Profiler::attach_within("off", pid, &["--slow-poll", "100ms"]);
    // Long, so that Ruby's own time between a switch and the clock's reading is little of it, and hardly ever is the thread
    // preempted just then.
    let spun_ns = fibers.tell(&format!("spin {FIBERS} {SLICES} 5000"))[0];
    ended(&profiler, pid, FIBERS);
    let page = profiler.page();
    let name =
        profiler.status().target(pid).names().into_iter().find(|name| short(name) == made_at("spinning = Fiber.new"));
    let labels = [("task", name.as_deref().unwrap_or_default())];
    let mut table = Table::new(format!("Ruby {}, slices", fibers.version));
    table.equal("slices", (FIBERS * (SLICES + 1)) as f64, page.value("profiler_task_polls_total", &labels));
    let busy = page.value("profiler_task_busy_seconds_total", &labels);
    table.within("their time, s", spun_ns as f64 / 1e9, busy, 1.0);
    table.finish();
}

/// Check that fibers that were there before are found when they run again, and their ends are theirs.
#[test]
fn those_that_were_there_are_found() {
    const KEPT: u64 = 30;
    let mut fibers = Fibers::start();
    let pid = fibers.pid();
    fibers.tell(&format!("keep {KEPT}"));
    let profiler = Profiler::attach_within("off", pid, &[]);
    fibers.tell("keep 12");
    fibers.tell("finish");
    let status = ended(&profiler, pid, KEPT + 12);
    let target = status.target(pid);
    let mut table = Table::new(format!("Ruby {}, fibers older than the profiler", fibers.version));
    table.equal("found", KEPT, target.found());
    table.equal("spawned", 12, target.spawned());
    table.equal("completed", KEPT + 12, target.completed());
    table.equal("ends of unknown ones", 0, target.unseen_spawns());
    table.equal("alive", 0, target.alive());
    table.equal("types", 1, target.names().len());
    nothing_lost(&mut table, &status);
    table.finish();
}

/// Check that fibers are named by the line of their block, and those that run no Ruby are not named after something else.
#[test]
fn names_are_told() {
    let mut fibers = Fibers::start();
    let pid = fibers.pid();
    let profiler = Profiler::attach_within("off", pid, &[]);
    fibers.tell("given 7");
    // One that is given up is never switched to again.
    fibers.tell("enumerate 5");
    let status = wait::until_or_last(|| profiler.status(), |status| status.target(pid).spawned() == 12);
    let kinds = kinds(status.target(pid));
    let mut table = Table::new(format!("Ruby {}, names of fibers", fibers.version));
    table.equal("made by a method for a block", 7, kinds.get(&made_at("def given")).map_or(0, |kind| kind.0));
    table.equal("made by Ruby itself", 5, kinds.get(UNNAMED).map_or(0, |kind| kind.0));
    nothing_lost(&mut table, &status);
    table.finish();
}

/// Check that a worker that was forked is its target's, as are its fibers.
#[test]
fn those_of_a_forked_worker() {
    let mut fibers = Fibers::start();
    let pid = fibers.pid();
    let mut profiler = Profiler::attach_within("off", pid, &[]);
    let child = fibers.tell("fork")[0];
    let following = format!("following process {child}");
    let followed = profiler.program().error_line(|line| line.contains(&following));
    assert!(followed.is_some(), "{child} is not followed");
    let own = fibers.tell("nested 10 10 1");
    let others = fibers.tell("child 20 10 1");
    let status = ended(&profiler, pid, own[1] + others[1]);
    let mut table = Table::new(format!("Ruby {}, fibers of a forked worker", fibers.version));
    table.equal("spawned", own[0] + others[0], status.target(pid).spawned());
    table.equal("completed", own[1] + others[1], status.target(pid).completed());
    // The same addresses in both, and a worker that dies takes its own with it.
    fibers.tell("child 40");
    fibers.tell("keep 30");
    let alive = |wanted| {
        wait::until_or_last(|| profiler.status(), |status| status.target(pid).alive() == wanted).target(pid).alive()
    };
    table.equal("alive in both", 70, alive(70));
    fibers.tell(&format!("kill {child}"));
    table.equal("alive once the worker was killed", 30, alive(30));
    let more = fibers.tell("finish")[0];
    let status = ended(&profiler, pid, own[1] + others[1] + more);
    table.equal("completed", own[1] + others[1] + more, status.target(pid).completed());
    nothing_lost(&mut table, &status);
    table.finish();
}

/// Check that a program that replaces its image is attached to again once its library is loaded.
#[test]
fn a_replaced_image() {
    let mut fibers = Fibers::start();
    let pid = fibers.pid();
    let profiler = Profiler::attach_within("off", pid, &[]);
    let before = fibers.tell("nested 10 10 1");
    ended(&profiler, pid, before[1]);
    fibers.exec();
    let events = || profiler.page().value("profiler_events_total", &[("kind", "process_execed")]);
    wait::until_true("the replaced image", || events() >= 1.0 && profiler.status().target(pid).is_attached("tasks"));
    let after = fibers.tell("nested 7 7 1");
    let status = ended(&profiler, pid, after[1]);
    let mut table = Table::new(format!("Ruby {}, after exec", fibers.version));
    table.equal("spawned", after[0], status.target(pid).spawned());
    table.equal("completed", after[1], status.target(pid).completed());
    nothing_lost(&mut table, &status);
    table.finish();
}

/// Check that waits are counted by what they are for, and that those for a time to pass take as long as the program says.
#[test]
fn waits_have_reasons() {
    const EACH: u64 = 40;
    let mut fibers = Fibers::that_wait();
    let pid = fibers.pid();
    let profiler = Profiler::attach_within("off", pid, &[]);
    let truth = fibers.tell(&EACH.to_string());
    let [sleeps, blocks, reads, slept_ns] = truth[..] else { panic!("{truth:?}") };
    let count = |page: &Page, reason| page.value("profiler_task_wait_seconds_count", &[("reason", reason)]) as u64;
    let page = wait::until_or_last(|| profiler.page(), |page| count(page, "io_wait") == reads);
    let mut table = Table::new(format!("Ruby {}, waits", fibers.version));
    table.equal("sleeps", sleeps, count(&page, "sleep"));
    table.equal("for others", blocks, count(&page, "block"));
    table.equal("for a pipe", reads, count(&page, "io_wait"));
    let seen = page.value("profiler_task_wait_seconds_sum", &[("reason", "sleep")]);
    table.within("sleeps, s", slept_ns as f64 / 1e9, seen, 1.0);
    // The kinds of the application's tasks, named by its lines although the library makes the fibers.
    let names = profiler.status().target(pid).names();
    let own = names.iter().all(|name| name.contains("waits.rb:"));
    table.holds("names", "lines of the program", format!("{names:?}"), own && names.len() == 5);
    nothing_lost(&mut table, &profiler.status());
    table.finish();
}

/// A copy of the interpreter's library in a folder of its own, and where in it its version is.
fn library() -> (Folder, PathBuf, usize) {
    let original = Fibers::of_this_host().library();
    let folder = Folder::new("ruby-library");
    // Programs ask for it by major and minor version.
    let name = original.file_name().and_then(|name| name.to_str()?.rsplit_once('.')).expect("it has a version").0;
    let copy = folder.path(name);
    fs::copy(&original, &copy).expect("it can be copied");
    let bytes = fs::read(&copy).expect("a file of our own");
    let version = Fibers::of_this_host().full_version;
    let text = format!("{version}\0");
    let at = bytes.windows(text.len()).position(|window| window == text.as_bytes()).expect("it has its version in it");
    (folder, copy, at)
}

/// Check that a version whose layout is not known is not probed: the rows say which are, and what the kernel sees is measured.
#[test]
fn an_unknown_version() {
    let (folder, library, at) = library();
    let mut bytes = fs::read(&library).expect("a file of our own");
    bytes[at] = b'9';
    fs::write(&library, bytes).expect("a file of our own");
    let mut fibers = Fibers::with_libraries(&folder.0);
    let profiler = Profiler::attach(fibers.pid());
    fibers.tell("nested 5 5 1");
    let status = profiler.status();
    let target = status.target(fibers.pid());
    let mut table = Table::new(format!("Ruby {}", fibers.version));
    for signal in ["task_spawn", "task_polls", "task_wait", "gc_pause", "lock_wait"] {
        let (state, why) = target.probe(signal).expect("a row");
        table.holds(signal, "unsupported: only known layouts", why, state == "unsupported" && why.contains("3.0, 3.1"));
    }
    table.holds("run queue", "attached", "", target.is_attached("run_queue"));
    let hits = profiler.page().sum("profiler_probe_hits_total", &[("probe", "task_transfer")]);
    table.equal("hits", 0.0, hits);
    table.finish();
}

/// Check that a program whose library was replaced, as by an upgrade, says so, and is left alone.
#[test]
fn a_replaced_library() {
    let (folder, library, _) = library();
    let mut fibers = Fibers::with_libraries(&folder.0);
    let other = library.with_extension("new");
    fs::copy(&library, &other).and_then(|_| fs::rename(&other, &library)).expect("a folder of our own");
    let profiler = Profiler::attach(fibers.pid());
    fibers.tell("nested 5 5 1");
    let status = profiler.status();
    let (state, why) = status.target(fibers.pid()).probe("tasks").expect("a row");
    let mut table = Table::new("A library that was replaced");
    table.holds("tasks", "unsupported: restart it", why, state == "unsupported" && why.contains("restart it"));
    table.finish();
}

/// Check that where uprobes are attached one by one fibers are counted all the same, and what they wait for is not shown.
#[test]
fn single_uprobes() {
    let mut fibers = Fibers::start();
    let pid = fibers.pid();
    let profiler = Profiler::attach_within("off", pid, &["--without", "uprobe_multi"]);
    let answer = fibers.tell("nested 10 20 2");
    let [made, over, switched] = answer[..] else { panic!("{answer:?}") };
    let status = ended(&profiler, pid, over);
    let target = status.target(pid);
    let mut table = Table::new(format!("Ruby {}, single uprobes", fibers.version));
    let (_, how) = target.probe("tasks").expect("a row");
    table.holds("attached", "by perf events", how, how.contains("perf-event"));
    table.equal("spawned", made, target.spawned());
    table.equal("completed", over, target.completed());
    table.equal("slices", switched, kinds(target).values().map(|kind| kind.3).sum());
    let (state, why) = target.probe("task_wait").expect("a row");
    table.holds("waits", "unsupported", why, state == "unsupported");
    table.holds("a series of waits", "none", "", !profiler.page().has("profiler_task_wait_seconds_count", &[]));
    table.finish();
}

/// Check that a program that makes code without end is counted to the last, takes no room from others, and has no more names
/// than are told apart.
#[test]
fn code_without_end() {
    const FIBERS: u64 = 5000;
    let mut fibers = Fibers::start();
    let pid = fibers.pid();
    let profiler = Profiler::attach_within("off", pid, &[]);
    fibers.tell(&format!("evaluate {FIBERS}"));
    let status = ended(&profiler, pid, FIBERS);
    let target = status.target(pid);
    let mut table = Table::new(format!("Ruby {}, a line of its own for each fiber", fibers.version));
    table.equal("spawned", FIBERS, target.spawned());
    table.equal("completed", FIBERS, target.completed());
    let kinds = kinds(target);
    table.equal("slices", FIBERS, kinds.values().map(|kind| kind.3).sum());
    table.holds("names", "<= 1,001", kinds.len(), kinds.len() <= 1001);
    table.holds("those that share one", "> 0", kinds[UNNAMED].0, kinds[UNNAMED].0 > 0);
    nothing_lost(&mut table, &status);
    table.finish();
}

/// Check that a program which dies of the system calls that a probe might make does not die of ours.
#[test]
fn a_program_under_seccomp() {
    let mut fibers = Fibers::start();
    let pid = fibers.pid();
    assert_eq!(fibers.tell("confine"), [0, 0]);
    let profiler = Profiler::attach_within("off", pid, &["--requests"]);
    let [made, over, switched] = fibers.tell("nested 20 20 2")[..] else { panic!("three numbers") };
    let collections = fibers.tell("litter 20")[0];
    let status = ended(&profiler, pid, over);
    let target = status.target(pid);
    let mut table = Table::new(format!("Ruby {} under seccomp", fibers.version));
    table.equal("spawned", made, target.spawned());
    table.equal("completed", over, target.completed());
    table.equal("slices", switched, kinds(target).values().map(|kind| kind.3).sum());
    let page = profiler.page();
    table.equal("collections", collections, page.sum("profiler_gc_collections_total", &[]) as u64);
    for probe in ["task_spawn", "task_polls", "task_wait", "gc_pause"] {
        table.holds(probe, "attached", format!("{:?}", target.probe(probe)), target.is_attached(probe));
    }
    nothing_lost(&mut table, &status);
    profiler.stop();
    // And it lives on without.
    table.equal("afterwards", 6, fibers.tell("nested 2 2 1")[0]);
    table.finish();
}

/// Check that workers which come and go by the hundred, all at once, leave nothing behind, and their parent's numbers alone.
#[test]
fn a_bomb_of_workers() {
    const WORKERS: u64 = 300;
    let mut fibers = Fibers::start();
    let pid = fibers.pid();
    let profiler = Profiler::attach_within("off", pid, &[]);
    let before = ended(&profiler, pid, fibers.tell("nested 10 10 1")[1]);
    let mut table = Table::new(format!("Ruby {}, {WORKERS} workers at once", fibers.version));
    table.equal("before", 110, before.target(pid).spawned());
    table.equal("workers", WORKERS, fibers.tell(&format!("bomb {WORKERS}"))[0]);
    let processes = || profiler.page().sum("profiler_target_processes", &[]) as u64;
    table.equal("processes that are left", 1, wait::until_or_last(processes, |processes| *processes == 1));
    // Which of the workers' fibers were seen depends on when each was attached to; some ended before.
    let rest = profiler.status();
    let alive = || profiler.status().target(pid).alive();
    table.equal("their fibers that are left", 0, wait::until_or_last(alive, |alive| *alive == 0));
    table.holds(
        "their fibers, at most",
        WORKERS * 6,
        rest.target(pid).spawned() - 110,
        rest.target(pid).spawned() <= 110 + WORKERS * 6,
    );
    let spawned = profiler.status().target(pid).spawned();
    let made = fibers.tell("nested 20 20 1")[0];
    let status = wait::until_or_last(|| profiler.status(), |status| status.target(pid).spawned() == spawned + made);
    table.equal("the parent's afterwards", made, status.target(pid).spawned() - spawned);
    table.holds("rows", "attached", "", status.target(pid).is_attached("task_spawn"));
    let mut losses = status.losses();
    let unprobed = losses.remove("process_ended_unprobed").unwrap_or_default();
    table.holds("workers that ended before they had probes", format!("<= {WORKERS}"), unprobed, unprobed <= WORKERS);
    table.holds("lost otherwise", "nothing", format!("{losses:?}"), losses.is_empty());
    table.finish();
}
