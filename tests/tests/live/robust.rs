//! Attaching and detaching, over and over and by force, leaves the target and the kernel as they were.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle, sleep};
use std::time::Duration;

use tests::bpf::BpfObjects;
use tests::code::ProbedCode;
use tests::fixture::Fixture;
use tests::http;
use tests::place;
use tests::profiler::{Profiler, Starting, launch};
use tests::random::Random;
use tests::status::number;
use tests::table::Table;
use tests::wait;

/// Clients that ask a fixture for pages, each of which makes it spawn tasks.
struct Load {
    stop: Arc<AtomicBool>,
    served: Arc<AtomicU64>,
    failed: Arc<Mutex<Vec<String>>>,
    clients: Vec<JoinHandle<()>>,
}

impl Load {
    fn start(fixture: &Fixture) -> Load {
        let address: SocketAddr = (Ipv4Addr::LOCALHOST, number(&fixture.ready["port"]) as u16).into();
        let (stop, served, failed) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default(), Arc::default());
        let client = |_| {
            let (stop, served, failed) = (Arc::clone(&stop), Arc::clone(&served), Arc::clone(&failed));
            thread::spawn(move || ask_until(&stop, &served, &failed, address))
        };
        let clients = (0..2).map(client).collect();
        Load { stop, served, failed, clients }
    }

    /// Requests that were answered, and what went wrong.
    fn end(self) -> (u64, Vec<String>) {
        self.stop.store(true, Relaxed);
        for client in self.clients {
            client.join().expect("a client does not panic");
        }
        (self.served.load(Relaxed), std::mem::take(&mut *self.failed.lock().expect("no client panicked")))
    }
}

fn ask_until(stop: &AtomicBool, served: &AtomicU64, failed: &Mutex<Vec<String>>, address: SocketAddr) {
    while !stop.load(Relaxed) {
        match http::get(address, "/spawn") {
            Ok(response) if response.status == 200 => drop(served.fetch_add(1, Relaxed)),
            other => failed.lock().expect("no client panicked").push(format!("{other:?}")),
        }
        // The load is there to be disturbed, not to fill the host.
        sleep(Duration::from_micros(300));
    }
}

fn nothing_is_left(table: &mut Table, before: &BpfObjects) {
    let left = wait::until_or_last(|| BpfObjects::left_over_since(before), BpfObjects::is_empty);
    table.holds("BPF objects left", "none", format!("{left:?}"), left.is_empty());
}

fn target_served(table: &mut Table, mut fixture: Fixture, load: Load) {
    let (served, failed) = load.end();
    let told = number(&fixture.ask("truth")["requests"]);
    table.holds("requests failed", 0, failed.len(), failed.is_empty());
    table.holds("requests served", told, served, served == told && served > 1000);
    table.equal("exit code", 0, fixture.quit().unwrap_or(-1));
    assert!(failed.is_empty(), "{failed:?}");
}

/// Check that no request fails while a profiler comes and goes a hundred times, and that nothing of it stays.
#[test]
fn attach_and_detach_100_times() {
    const CYCLES: usize = 100;
    place::require_root();
    let fixture = Fixture::tokio("latest", "release", &["http", "0"]);
    let before = BpfObjects::all();
    let code = ProbedCode::of(fixture.pid());
    let load = Load::start(&fixture);
    let mut table = Table::new(format!("{CYCLES} times attached and detached under load"));
    let (mut counted, mut probed) = (0, 0);
    let mut lost = BTreeMap::<String, u64>::new();
    for _ in 0..CYCLES {
        let profiler = Profiler::attach(fixture.pid());
        let status = wait::until_or_last(|| profiler.status(), |s| s.target(fixture.pid()).spawned() > 0);
        counted += usize::from(status.target(fixture.pid()).spawned() > 0);
        for (reason, n) in status.losses() {
            *lost.entry(reason.to_owned()).or_default() += n;
        }
        if probed == 0 {
            probed = code.changed();
        }
        profiler.stop();
    }
    table.equal("cycles that counted tasks", CYCLES, counted);
    table.holds("lost", "nothing", format!("{lost:?}"), lost.is_empty());
    // Else the next comparison would compare nothing.
    table.holds("changed instructions while attached", "some", probed, probed > 0);
    code.is_restored(&mut table);
    nothing_is_left(&mut table, &before);
    target_served(&mut table, fixture, load);
    table.finish();
}

/// Check the same when the profiler is killed at any moment, also while it attaches.
#[test]
fn killed_30_times() {
    const CYCLES: usize = 30;
    place::require_root();
    let fixture = Fixture::tokio("latest", "release", &["http", "0"]);
    let pid = fixture.pid().to_string();
    let before = BpfObjects::all();
    let code = ProbedCode::of(fixture.pid());
    let load = Load::start(&fixture);
    let mut table = Table::new(format!("{CYCLES} times killed under load"));
    let mut random = Random::new(30);
    let (mut early, mut killed, mut left) = (0, 0, 0);
    for _ in 0..CYCLES {
        let starting = Starting::new(&["attach", "--budget", "off", "--pid", &pid]);
        // An attach takes about 300 ms.
        sleep(Duration::from_millis(random.below(600)));
        early += usize::from(!starting.serves());
        let program = starting.into_program();
        program.signal(libc::SIGKILL);
        killed += usize::from(program.wait().code().is_none());
        // Each time, and not at the end: the next profiler takes off what the last one left.
        left += code.left();
    }
    table.equal("killed by the signal", CYCLES, killed);
    println!("{early} of {CYCLES} had not attached yet");
    table.equal("changed instructions left", 0, left);
    code.is_restored(&mut table);
    nothing_is_left(&mut table, &before);
    // The claim on the process is free again, and everything is counted as before.
    let profiler = Profiler::attach(fixture.pid());
    let spawned = wait::until_or_last(|| profiler.status().target(fixture.pid()).spawned(), |&spawned| spawned > 0);
    table.holds("tasks counted afterwards", "some", spawned, spawned > 0);
    profiler.stop();
    nothing_is_left(&mut table, &before);
    target_served(&mut table, fixture, load);
    table.finish();
}

/// Check that the profiler ends, and says why, when the process is killed that holds its probes; and that nothing stays.
#[test]
fn holder_killed() {
    place::require_root();
    let fixture = Fixture::tokio("latest", "release", &["http", "0"]);
    let before = BpfObjects::all();
    let code = ProbedCode::of(fixture.pid());
    let load = Load::start(&fixture);
    let mut table = Table::new("the process that holds the probes is killed");
    let starting = Starting::new(&["attach", "--budget", "off", "--pid", &fixture.pid().to_string()]);
    let serves = wait::until_or_last(|| starting.serves(), |&serves| serves);
    table.equal("serves", true, serves);
    let program = starting.into_program();
    let holder = program.children().first().copied().expect("a process that holds the probes");
    // SAFETY: the profiler waits for its child: the id is still its own.
    unsafe { libc::kill(holder as i32, libc::SIGKILL) };
    let ended = program.wait();
    table.equal("exit code", 1, ended.code().unwrap_or(-1));
    let said = ended.stderr.iter().find(|line| line.starts_with("error:")).cloned().unwrap_or_default();
    table.holds("it says", "held the probes", &said, said.contains("held the probes"));
    code.is_restored(&mut table);
    nothing_is_left(&mut table, &before);
    target_served(&mut table, fixture, load);
    table.finish();
}

/// Check that targets which end while they are attached to do no harm.
#[test]
fn short_lived_targets() {
    const TARGETS: usize = 20;
    place::require_root();
    let before = BpfObjects::all();
    let mut table = Table::new(format!("{TARGETS} targets that end while they are attached to"));
    let mut random = Random::new(7);
    let (mut measured, mut refused) = (0, 0);
    for _ in 0..TARGETS {
        let mut fixture = Fixture::tokio("latest", "release", &["tasks"]);
        let pid = fixture.pid().to_string();
        // It ends with its target, or would measure for longer than the test waits.
        let profiler = launch(&["attach", "--budget", "off", "--pid", &pid, "--duration", "10m", "--print"]);
        sleep(Duration::from_millis(random.below(400)));
        fixture.program().signal(libc::SIGKILL);
        drop(fixture);
        let ended = profiler.wait();
        let errors = ended.stderr.iter().filter(|line| line.starts_with("error:")).count();
        let panicked = ended.stderr.iter().any(|line| line.contains("panicked"));
        match ended.code() {
            Some(0) => measured += 1,
            Some(1) => refused += 1,
            _ => {}
        }
        let right = !panicked && ((ended.code() == Some(0) && errors == 0) || (ended.code() == Some(1) && errors == 1));
        table.holds("ends well", "0, or 1 and one line", format!("{:?}, {:?}", ended.code(), ended.stderr), right);
    }
    println!("{measured} were measured, {refused} were gone");
    nothing_is_left(&mut table, &before);
    table.finish();
}
