//! What cannot be profiled is refused with one line that says why and what helps; hostile files harm nobody.

use std::fs;
use std::panic;
use std::process::Command;
use std::time::{Duration, Instant};

use profiler::runtime::RUNTIMES;
use profiler::target::elf::Binary;
use tests::bpf::BpfObjects;
use tests::check::Check;
use tests::fixture::Fixture;
use tests::place;
use tests::profiler::{Profiler, run_to_end};
use tests::program::{Ended, Program};
use tests::random::Random;
use tests::scratch::{Folder, Scratch};
use tests::table::Table;
use tests::wait;

/// A case of something that is refused.
fn refused(table: &mut Table, what: &str, ended: &Ended, code: i32, words: &[&str]) {
    let errors: Vec<&String> = ended.stderr.iter().filter(|line| line.starts_with("error:")).collect();
    let message = errors.first().map_or("", |line| line.as_str());
    let right = ended.code() == Some(code)
        && errors.len() == 1
        && words.iter().all(|word| message.contains(word))
        && !ended.stderr.iter().any(|line| line.contains("panicked"));
    table.holds(what, format!("{code}, {words:?}"), format!("{:?}, {:?}", ended.code(), ended.stderr), right);
}

/// Check that a kernel that lets no program read its memory is told from others, with the remedy. The kernel matrix has
/// one that is locked down.
#[test]
fn lockdown() {
    place::require_root();
    let before = BpfObjects::all();
    let mut table = Table::new("a locked kernel, or not");
    let state = fs::read_to_string("/sys/kernel/security/lockdown").unwrap_or_default();
    let locked = state.contains("[confidentiality]");
    let fixture = Fixture::start(&place::forker(), &[]);
    let ended = attach(fixture.pid());
    let check = Check::of(&run_to_end(&["check", "--json"]), if locked { 1 } else { 0 });
    table.equal("usable, by check", !locked, check.0["usable"].as_bool().unwrap_or_default());
    if locked {
        let words = ["the kernel is locked down", "lockdown=integrity"];
        failed(&mut table, "attach", &ended, &words);
        let why = check.0["lockdown"]["why_not"].as_str().unwrap_or_default();
        table.holds("why not, by check", format!("{words:?}"), why, words.iter().all(|word| why.contains(word)));
        nothing_is_left(&mut table, &before);
    } else {
        table.equal("attach", 0, ended.code().unwrap_or(-1));
    }
    table.finish();
}

/// Check that a target whose memory nobody may read, root included, is watched all the same but for what that takes, and
/// that this is said. The kernel matrix has a machine where it is so (kernel.yama.ptrace_scope=3).
#[test]
fn memory_that_may_not_be_read() {
    place::require_root();
    let mut table = Table::new("a target's memory");
    let scope = fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").unwrap_or_default();
    let forbidden = scope.trim() == "3";
    let mut fixture = Fixture::tokio("latest", "release", &["tasks"]);
    let profiler = Profiler::attach(fixture.pid());
    let status = profiler.status();
    let (state, detail) = status.target(fixture.pid()).probe("task_walk").expect("a row");
    let right = if forbidden { state == "broken" && detail.contains("ptrace_scope") } else { state == "attached" };
    table.holds(
        "task_walk",
        if forbidden { "broken, ptrace_scope" } else { "attached" },
        format!("{state}: {detail}"),
        right,
    );
    for probe in ["tasks", "run_queue", "accept_queue"] {
        table.equal(probe, true, status.target(fixture.pid()).is_attached(probe));
    }
    let truth = fixture.ask("run 1000");
    let spawned = || profiler.status().target(fixture.pid()).spawned();
    let wanted = truth["tasks"]["spawned"].as_u64().expect("a number");
    table.equal("spawned", wanted, wait::until_or_last(spawned, |&spawned| spawned >= wanted));
    table.finish();
}

/// What is run in namespaces of its own, by a shell that changes them before.
fn in_namespaces(unshare: &[&str], prepare: &str, pid: u32) -> Ended {
    let profiler = place::profiler();
    let attach =
        format!("exec {} attach --pid {pid} --duration 1s --web.listen-address 127.0.0.1:0", profiler.display());
    Program::start(Command::new("unshare").args(unshare).args(["sh", "-c", &format!("{prepare} && {attach}")])).wait()
}

/// Check that a container without the host's process ids is refused with the reason, and so is a kernel without types;
/// that tracefs need not be mounted.
#[test]
fn surroundings() {
    place::require_root();
    let before = BpfObjects::all();
    let mut table = Table::new("surroundings");
    let fixture = Fixture::start(&place::listener(), &["--backlog", "16"]);
    let ended = in_namespaces(&["--pid", "--fork", "--mount-proc"], "true", 1);
    failed(&mut table, "another PID namespace", &ended, &["host's PID namespace", "hostPID: true"]);
    let ended = in_namespaces(&["--mount"], "mount -t tmpfs none /sys/kernel/btf", fixture.pid());
    failed(&mut table, "no BTF", &ended, &["no BTF", "CONFIG_DEBUG_INFO_BTF=y"]);
    let ended = in_namespaces(
        &["--mount"],
        "mount -t tmpfs none /sys/kernel/tracing && mount -t tmpfs none /sys/kernel/debug",
        fixture.pid(),
    );
    table.equal("no tracefs", 0, ended.code().unwrap_or(-1));
    nothing_is_left(&mut table, &before);
    table.finish();
}

/// Failures say one line and nothing else.
fn failed(table: &mut Table, what: &str, ended: &Ended, words: &[&str]) {
    refused(table, what, ended, 1, words);
    table.equal(format!("{what}: lines"), 1, ended.stderr.len());
}

fn attach(pid: u32) -> Ended {
    let pid = pid.to_string();
    run_to_end(&["attach", "--pid", &pid, "--duration", "1s", "--web.listen-address", "127.0.0.1:0"])
}

fn nothing_is_left(table: &mut Table, before: &BpfObjects) {
    let left = wait::until_or_last(|| BpfObjects::left_over_since(before), BpfObjects::is_empty);
    table.holds("BPF objects left", "none", format!("{left:?}"), left.is_empty());
}

#[test]
fn no_such_target() {
    place::require_root();
    let before = BpfObjects::all();
    let mut table = Table::new("what is no target");
    let mut fixture = Fixture::tokio("latest", "release", &["tasks"]);
    // Beyond the largest id that a kernel gives out (2^22).
    failed(&mut table, "no such process", &attach(4_194_305), &["4194305"]);
    failed(&mut table, "kernel thread", &attach(2), &["kernel thread"]);
    let threads = fs::read_dir(format!("/proc/{}/task", fixture.pid())).expect("it runs");
    let tid = threads.flatten().filter_map(|t| t.file_name().to_str()?.parse().ok()).find(|&tid| tid != fixture.pid());
    let leader = format!("--pid {}", fixture.pid());
    failed(&mut table, "thread", &attach(tid.expect("it has several threads")), &["thread", &leader]);
    let ended = run_to_end(&["run", "--web.listen-address", "127.0.0.1:0", "--", "/no/such/program"]);
    failed(&mut table, "no such program", &ended, &["/no/such/program"]);
    nothing_is_left(&mut table, &before);
    table.holds("still answers", true, fixture.answers(), true);
    table.finish();
}

#[test]
fn wrong_usage() {
    let mut table = Table::new("wrong usage");
    let cases: &[(&[&str], &str)] = &[
        (&["attach"], "--pid"),
        (&["attach", "--pid", "0"], "0"),
        (&["attach", "--pid", "x"], "x"),
        (&["attach", "--pid", "1", "--duration", "soon"], "soon"),
        (&["attach", "--pid", "1", "--ring-mib", "3"], "power of two"),
        (&["attach", "--pid", "1", "--web.telemetry-path", "metrics"], "/"),
        (&["run"], "CMD"),
        (&["frobnicate"], "frobnicate"),
    ];
    for (arguments, word) in cases {
        let ended = run_to_end(arguments);
        let all = ended.stderr.join(" ");
        table.holds(format!("{}: names {word}", arguments.join(" ")), "yes", &all, all.contains(word));
        refused(&mut table, &arguments.join(" "), &ended, 2, &[]);
    }
    table.finish();
}

#[test]
fn address_in_use() {
    place::require_root();
    let before = BpfObjects::all();
    let mut table = Table::new("address in use");
    let mut fixture = Fixture::tokio("latest", "release", &["tasks"]);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let address = taken.local_addr().expect("it is bound").to_string();
    let pid = fixture.pid().to_string();
    let ended = run_to_end(&["attach", "--pid", &pid, "--web.listen-address", &address]);
    failed(&mut table, "in use", &ended, &[&address, "in use", "--web.listen-address"]);
    nothing_is_left(&mut table, &before);
    table.holds("still answers", true, fixture.answers(), true);
    table.finish();
}

#[test]
fn two_profilers() {
    place::require_root();
    let before = BpfObjects::all();
    let mut table = Table::new("two profilers of one process");
    let mut fixture = Fixture::tokio("latest", "release", &["tasks"]);
    let pid = fixture.pid();
    let first = Profiler::attach(pid);
    failed(&mut table, "second", &attach(pid), &["another profiler", "--force"]);
    let second = Profiler::attach_with(pid, &["--force"]);
    let truth = fixture.ask("run 1000");
    let spawned = tests::status::number(&truth["tasks"]["spawned"]);
    for (name, profiler) in [("first", &first), ("second", &second)] {
        table.equal(format!("{name}: spawned"), spawned, profiler.status().target(pid).spawned());
    }
    // The probes of one are not those of the other.
    second.stop();
    let truth = fixture.ask("run 1000");
    let spawned = tests::status::number(&truth["tasks"]["spawned"]);
    table.equal("first, alone again: spawned", spawned, first.status().target(pid).spawned());
    first.stop();
    nothing_is_left(&mut table, &before);
    table.holds("still answers", true, fixture.answers(), true);
    table.finish();
}

/// Check that of a program without a known runtime everything else is measured.
#[test]
fn not_tokio() {
    place::require_root();
    let before = BpfObjects::all();
    let mut table = Table::new("programs that do not use Tokio");
    let sleeper = Program::start(Command::new("sleep").arg("1000"));
    let mut forker = Fixture::start(&place::forker(), &[]);
    for (name, pid) in [("sleep", sleeper.pid()), ("forker", forker.pid())] {
        let profiler = Profiler::attach(pid);
        if name == "forker" {
            forker.ask("spin 20");
        }
        let (status, page) = (profiler.status(), profiler.page());
        let target = status.target(pid);
        let (state, detail) = target.probe("tasks").unwrap_or(("absent", ""));
        table.holds(format!("{name}: {detail}"), "not_applicable", state, state == "not_applicable");
        table.holds(format!("{name}: the reason names"), "runtime", detail, detail.contains("runtime"));
        for probe in ["run_queue", "accept_queue"] {
            table.holds(format!("{name}: {probe}"), true, target.is_attached(probe), target.is_attached(probe));
        }
        for family in ["profiler_sched_run_queue_seconds_count", "profiler_target_up", "profiler_runtime_threads"] {
            table.equal(format!("{name}: {family}"), true, page.has(family, &[]));
        }
        table.equal(format!("{name}: series of tasks"), false, page.has("profiler_tasks_spawned_total", &[]));
        profiler.stop();
    }
    nothing_is_left(&mut table, &before);
    table.equal("still there", 0, forker.quit().unwrap_or(-1));
    table.finish();
}

/// Reads a file as the profiler does.
fn detect(data: &[u8]) -> &'static str {
    let Ok(binary) = Binary::parse(data) else { return "no program" };
    for runtime in RUNTIMES {
        match runtime.detect(&binary) {
            Ok(Some(_)) => return "a runtime",
            Ok(None) => {}
            Err(_) => return "broken",
        }
    }
    "no runtime"
}

/// Check that damaged and hostile files are read without a panic, in bounded time.
#[test]
fn hostile_files() {
    const MUTATIONS: u64 = 200;
    // An undamaged one takes a tenth of a second.
    const LIMIT: Duration = Duration::from_secs(20);
    let mut table = Table::new(format!("{MUTATIONS} damaged programs"));
    let originals: Vec<Vec<u8>> = [("latest", "fat"), ("1.20", "release"), ("1.38", "fat-stripped")]
        .iter()
        .map(|(version, profile)| fs::read(place::tokio(version, profile)).expect("the fixture can be read"))
        .collect();
    let mut verdicts = std::collections::BTreeMap::<&str, u64>::new();
    let mut slowest = Duration::ZERO;
    for seed in 0..MUTATIONS {
        let mut random = Random::new(seed);
        let mut data = originals[random.below(originals.len() as u64) as usize].clone();
        mutate(&mut data, &mut random, seed % 4);
        let begin = Instant::now();
        match panic::catch_unwind(|| detect(&data)) {
            Ok(verdict) => *verdicts.entry(verdict).or_default() += 1,
            Err(_) => table.holds(format!("seed {seed}"), "no panic", "a panic", false),
        }
        let took = begin.elapsed();
        slowest = slowest.max(took);
        if took > LIMIT {
            table.holds(format!("seed {seed}"), "bounded", format!("{took:?}"), false);
        }
    }
    let total = verdicts.values().sum::<u64>();
    table.holds(format!("{verdicts:?}"), MUTATIONS, total, total == MUTATIONS);
    table.holds("slowest", "bounded", format!("{slowest:?}"), slowest <= LIMIT);
    let mut narrow = originals[0].clone();
    narrow[4] = 1;
    let other: Vec<(&str, Vec<u8>)> = vec![
        ("32-bit", narrow),
        ("empty", Vec::new()),
        ("only the magic number", b"\x7fELF".to_vec()),
        ("a header of ones", [b"\x7fELF\x02\x01\x01".as_slice(), &[0xff; 200]].concat()),
        ("text", b"#!/bin/sh\nexec true\n".to_vec()),
    ];
    for (what, data) in other {
        let verdict = detect(&data);
        table.equal(what, "no program", verdict);
    }
    table.finish();
}

/// Damages a file: cut short, bits flipped anywhere, bits flipped in its headers, or numbers of its tables made huge.
fn mutate(data: &mut Vec<u8>, random: &mut Random, how: u64) {
    let length = data.len() as u64;
    match how {
        0 => data.truncate(random.below(length) as usize),
        1 => {
            for _ in 0..=random.below(64) {
                data[random.below(length) as usize] ^= 1 << random.below(8);
            }
        }
        2 => {
            for _ in 0..=random.below(16) {
                // File header and program headers.
                data[16 + random.below(1000) as usize] ^= 1 << random.below(8);
            }
        }
        _ => {
            let headers = u64::from_le_bytes(data[40..48].try_into().expect("eight bytes")).min(length - 8);
            for _ in 0..=random.below(8) {
                let at = (headers + random.below(length - headers)) as usize;
                data[at] = [0xff, 0x7f, 0x80, 0][random.below(4) as usize];
            }
        }
    }
}

/// Check that the profiler itself, not only its library, survives a target whose file is damaged.
#[test]
fn damaged_target() {
    place::require_root();
    let before = BpfObjects::all();
    let mut table = Table::new("a target with damaged tables");
    let mut data = fs::read(place::tokio("latest", "release")).expect("the fixture can be read");
    // The section headers are not needed to run it.
    let headers = u64::from_le_bytes(data[40..48].try_into().expect("eight bytes")) as usize;
    data[headers..].fill(0xa5);
    let path = Scratch::new("damaged");
    fs::copy(place::tokio("latest", "release"), &path.0).expect("there is room for a copy");
    fs::write(&path.0, &data).expect("the copy can be written");
    let mut fixture = Fixture::start(&path.0, &["tasks"]);
    let profiler = Profiler::attach(fixture.pid());
    fixture.ask("run 1000");
    let status = profiler.status();
    let (state, detail) = status.target(fixture.pid()).probe("tasks").unwrap_or(("absent", ""));
    table.holds("tasks", "a row with a reason", format!("{state}: {detail}"), !detail.is_empty());
    table.equal("switches are counted", true, profiler.page().sum("profiler_sched_switches_total", &[]) > 0.0);
    profiler.stop();
    nothing_is_left(&mut table, &before);
    table.holds("still answers", true, fixture.answers(), true);
    table.finish();
}

/// Check that an implementation of a language whose runtime is known, and which is not that one, is named, and that what the
/// kernel sees of it is measured. Stands for a Java virtual machine: any program of that name with those arguments.
#[test]
fn an_implementation_that_is_not_supported() {
    place::require_root();
    let folder = Folder::new("not-mri");
    let java = folder.0.join("java");
    fs::copy("/bin/sh", &java).expect("a file of our own");
    let mut program =
        Program::start(Command::new(&java).args(["-c", "read line", "-Djruby.home=/opt/jruby", "org.jruby.Main"]));
    let pid = program.pid();
    let mut table = Table::new("JRuby");
    let why = "JRuby is not supported";
    let profiler = Profiler::attach(pid);
    let status = profiler.status();
    let row = status.target(pid).probe("tasks");
    table.holds(
        "row `tasks`",
        format!("unsupported, {why}"),
        format!("{row:?}"),
        row.is_some_and(|(state, detail)| state == "unsupported" && detail.contains(why)),
    );
    table.holds("run queue", "attached", "", status.target(pid).is_attached("run_queue"));
    let listed = run_to_end(&["ps"]);
    let line = listed
        .stdout
        .iter()
        .find(|line| line.trim_start().starts_with(&format!("{pid} ")))
        .cloned()
        .unwrap_or_default();
    table.holds("ps", why, &line, line.contains(why));
    program.close();
    table.finish();
}
