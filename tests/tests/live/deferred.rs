//! Blocks that iodine defers, against the count of an extension that does it as iodine does: the same functions, which are found and
//! called in the same ways. With `PROFILER_RUBY_ROOT`, of the Ruby in that directory.

use std::process::Command;

use tests::place;
use tests::profiler::Profiler;
use tests::ruby::Fibers;
use tests::scratch::Folder;
use tests::status::Status;
use tests::table::Table;
use tests::wait;

const SOURCE: &str = "tests/fixtures/ruby/deferred.c";
const WAIT: &str = "profiler_deferred_wait_seconds";
const RUN: &str = "profiler_deferred_run_seconds";
const WORK: &str = "profiler_deferred_work";
/// Threads that run what is deferred.
const THREADS: u64 = 3;
/// Per cent.
const TOLERANCE: f64 = 1.0;

/// The extension as a gem is compiled, with more flags.
fn extension(folder: &Folder, flags: &[&str]) -> String {
    let library = folder.path("iodine_ext.so");
    let mut compiler = Command::new("cc");
    compiler.args(["-O3", "-g", "-fPIC", "-fstack-protector-strong", "-Wl,-z,relro", "-Wl,-z,now", "-shared", "-o"]);
    let made = compiler.arg(&library).args(flags).arg(place::root().join(SOURCE)).status();
    assert!(made.is_ok_and(|made| made.success()), "`cc` fails on {SOURCE}: `cargo xtask setup` installs it");
    library.display().to_string()
}

/// A program that has loaded it, and what was attached to it before it did.
fn loaded(library: &str, flags: &[&str]) -> (Fibers, Profiler) {
    let mut ruby = Fibers::that_defer(library);
    let profiler = Profiler::attach_within("off", ruby.pid(), flags);
    ruby.tell(&format!("load {THREADS}"));
    (ruby, profiler)
}

fn attached(profiler: &Profiler, pid: u32) -> Status {
    let is_there = |status: &Status| status.target(pid).is_attached("deferred");
    let status = wait::until_or_last(|| profiler.status(), is_there);
    assert!(is_there(&status), "{:?}", status.target(pid).probe("deferred"));
    status
}

/// What is on the page of blocks: how many were run, have been run, wait, and are run; and seconds of waits and runs.
fn seen(profiler: &Profiler) -> ([u64; 4], [f64; 2]) {
    let page = profiler.page();
    let [waits, runs, waited, ran] = [(WAIT, "count"), (RUN, "count"), (WAIT, "sum"), (RUN, "sum")]
        .map(|(name, what)| page.sum(&format!("{name}_{what}"), &[]));
    let [waiting, running] = ["waiting", "running"].map(|state| page.sum(WORK, &[("state", state)]));
    ([waits, runs, waiting, running].map(|count| count as u64), [waited, ran])
}

fn counts_are(profiler: &Profiler, wanted: [u64; 4]) -> [u64; 4] {
    wait::until_or_last(|| seen(profiler), |(counts, _)| *counts == wanted).0
}

fn nothing_lost(table: &mut Table, profiler: &Profiler) {
    let status = profiler.status();
    table.holds("lost", "nothing", format!("{:?}", status.losses()), status.losses().is_empty());
}

/// Check that every block is counted, as deferred, as run and as done, and for how long it waited and ran, whatever else is in the
/// queue; of an extension that is loaded when the program is watched already.
#[test]
fn blocks_are_counted_and_timed() {
    let folder = Folder::new("deferred");
    let (mut ruby, profiler) = loaded(&extension(&folder, &[]), &[]);
    let pid = ruby.pid();
    attached(&profiler, pid);
    let mut table = Table::new(format!("Ruby {}, deferred blocks", ruby.version));
    for (blocks, how, ms) in [(300, "sleep", 3.0), (100, "spin", 2.0), (500, "spin", 0.0)] {
        let truth = ruby.tell(&format!("run {blocks} {how} {ms}"));
        let [deferred, begun, ended, waited_ns, ran_ns, _] = truth[..] else { panic!("{truth:?}") };
        let counts = counts_are(&profiler, [begun, ended, 0, 0]);
        let what = format!("{blocks} that {how} for {ms} ms: ");
        table.equal(format!("{what}run"), deferred, counts[0]);
        table.equal(format!("{what}done"), ended, counts[1]);
        table.equal(format!("{what}wait, are run"), 0, counts[2] + counts[3]);
        let now = seen(&profiler).1;
        let truths = [waited_ns, ran_ns].map(|ns| ns as f64 / 1e9);
        for (which, what) in ["waited, s", "ran, s"].into_iter().enumerate() {
            table.within(what, truths[which], now[which], TOLERANCE);
        }
    }
    let truth = ruby.tell("same 50");
    let [waited, ran] = [truth[3], truth[4]].map(|ns| ns as f64 / 1e9);
    table.equal("one block, deferred 50 times", truth[1], counts_are(&profiler, [truth[1], truth[2], 0, 0])[0]);
    table.within("waited, s", waited, seen(&profiler).1[0], TOLERANCE);
    table.within("ran, s", ran, seen(&profiler).1[1], TOLERANCE);
    let truth = ruby.tell("raise 20");
    table.equal("those that raise are done", truth[2], counts_are(&profiler, [truth[1], truth[2], 0, 0])[1]);
    table.holds("the server's own work", "> 0", truth[5], truth[5] > 0);
    nothing_lost(&mut table, &profiler);
    table.finish();
}

/// Check how many wait and how many are run, in a process and in its child, and that a killed child takes its own with it.
#[test]
fn what_waits_and_what_is_run() {
    const HELD: u64 = 40;
    const CHILDS: u64 = 25;
    let folder = Folder::new("deferred");
    let library = extension(&folder, &["-fcf-protection", "-O2"]);
    let mut ruby = Fibers::that_defer(&library);
    ruby.tell(&format!("load {THREADS}"));
    let pid = ruby.pid();
    let mut profiler = Profiler::attach_within("off", pid, &[]);
    attached(&profiler, pid);
    let mut table = Table::new(format!("Ruby {}, blocks that wait", ruby.version));
    let truth = ruby.tell(&format!("hold {HELD} {THREADS}"));
    let of = |counts: [u64; 4]| format!("{} + {}", counts[2], counts[3]);
    let (waiting, running) = (truth[0] - truth[1], truth[1] - truth[2]);
    let counts = counts_are(&profiler, [THREADS, 0, HELD - THREADS, THREADS]);
    table.equal("wait + are run", format!("{waiting} + {running}"), of(counts));
    let child = ruby.tell("fork")[0];
    let following = format!("following process {child}");
    assert!(profiler.program().error_line(|line| line.contains(&following)).is_some(), "{child} is not followed");
    ruby.tell(&format!("child {CHILDS}"));
    let counts = counts_are(&profiler, [THREADS, 0, HELD - THREADS + CHILDS, THREADS]);
    table.equal("with a child's that nobody runs", format!("{} + {running}", waiting + CHILDS), of(counts));
    ruby.tell(&format!("kill {child}"));
    let counts = counts_are(&profiler, [THREADS, 0, HELD - THREADS, THREADS]);
    table.equal("once it was killed", format!("{waiting} + {running}"), of(counts));
    let truth = ruby.tell(&format!("release {HELD}"));
    let counts = counts_are(&profiler, [truth[1], truth[2], 0, 0]);
    table.equal("done", truth[2], counts[1]);
    table.equal("at the end", "0 + 0".to_owned(), of(counts));
    // What waits and what is run when it replaces its image is neither any more.
    ruby.tell(&format!("hold {HELD} {THREADS}"));
    let before = counts_are(&profiler, [truth[1] + THREADS, truth[2], HELD - THREADS, THREADS]);
    table.equal("held again", format!("{waiting} + {running}"), of(before));
    ruby.exec();
    ruby.tell(&format!("load {THREADS}"));
    attached(&profiler, pid);
    ruby.tell(&format!("hold {} {THREADS}", THREADS + 2));
    let counts = counts_are(&profiler, [before[0] + THREADS, before[1], 2, THREADS]);
    table.equal("in another image", format!("2 + {THREADS}"), of(counts));
    table.equal("run, in both", before[0] + THREADS, counts[0]);
    nothing_lost(&mut table, &profiler);
    table.finish();
}

/// Check that an extension without symbols, and one whose code is of another shape, are not probed, and that the row says why.
#[test]
fn what_is_not_understood_is_not_probed() {
    for (flags, why) in
        [(["-s", "-O2"], "it was stripped"), (["-Os", "-g"], "begins with nothing that the kernel emulates")]
    {
        let folder = Folder::new("deferred");
        let (mut ruby, profiler) = loaded(&extension(&folder, &flags), &[]);
        let row = || {
            profiler
                .status()
                .target(ruby.pid())
                .probe("deferred")
                .map(|(state, why)| (state.to_owned(), why.to_owned()))
        };
        let (state, said) = wait::until("a row", || row().ok_or_else(|| "none".to_owned()));
        assert!(state == "unsupported" && said.contains(why), "{flags:?}: {state}: {said}");
        let truth = ruby.tell("run 10 sleep 1");
        assert_eq!(truth[2], 10);
        assert!(!profiler.page().has(&format!("{WAIT}_count"), &[]));
        assert!(profiler.status().target(ruby.pid()).is_attached("task_spawn"));
    }
}

/// Check that what costs more than its budget is measured in windows, that how much waits is not told meanwhile, and that it is again once
/// it is measured all the time, of what was deferred since.
#[test]
fn what_costs_too_much_is_sampled() {
    const HELD: u64 = 20;
    let folder = Folder::new("deferred");
    let mut ruby = Fibers::that_defer(&extension(&folder, &[]));
    let pid = ruby.pid();
    ruby.tell(&format!("load {THREADS}"));
    let profiler = Profiler::attach_within("20%", pid, &[]);
    attached(&profiler, pid);
    let is = |state| profiler.status().target(pid).probe("deferred").is_some_and(|(now, _)| now == state);
    wait::until_true("windows", || {
        ruby.tell("run 5000 spin 0");
        is("sampled")
    });
    assert!(!profiler.page().has(WORK, &[]), "a sum of what is not seen");
    wait::until_true("no windows", || is("attached"));
    let truth = ruby.tell(&format!("hold {HELD} {THREADS}"));
    let (waiting, running) = (truth[0] - truth[1], truth[1] - truth[2]);
    let now = || {
        let (counts, _) = seen(&profiler);
        (counts[2], counts[3])
    };
    let seen = wait::until_or_last(now, |now| *now == (waiting, running));
    let mut table = Table::new(format!("Ruby {}, deferred blocks after windows", ruby.version));
    table.equal("wait", waiting, seen.0);
    table.equal("are run", running, seen.1);
    nothing_lost(&mut table, &profiler);
    table.finish();
}
