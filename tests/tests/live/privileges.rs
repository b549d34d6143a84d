//! The least privileges with which all is measured, what is said where one is missing, and what is given up once
//! everything is attached.

use rustix::thread::CapabilitySet;
use tests::bpf::BpfObjects;
use tests::check::Check;
use tests::fixture::Fixture;
use tests::kernel;
use tests::nobody::{LEAST, least_here};
use tests::place;
use tests::profiler::{Profiler, Starting, run_to_end_as_nobody};
use tests::program::Ended;
use tests::status::number;
use tests::table::Table;
use tests::wait;

/// Those that are used for as long as something is watched.
const LASTING: CapabilitySet = CapabilitySet::SYS_PTRACE.union(CapabilitySet::DAC_READ_SEARCH);

/// What the profiler has, and the process that holds its probes.
fn effective(profiler: &mut Profiler) -> (u64, Vec<u64>) {
    let pid = profiler.program().pid();
    let held = kernel::children(pid).into_iter().map(kernel::effective_capabilities).collect();
    (kernel::effective_capabilities(pid), held)
}

fn shown((own, held): &(u64, Vec<u64>)) -> String {
    format!("{own:x}, {held:x?}")
}

/// Check that all is measured with the least privileges, and that of these only those are left that reading takes.
#[test]
fn least_privileges() {
    place::require_root();
    let mut table = Table::new("with the least privileges");
    let mut fixture = Fixture::tokio("latest", "fat-stripped", &["tasks"]);
    let pid = fixture.pid().to_string();
    let mut profiler = Starting::as_nobody(LEAST, &["attach", "--pid", &pid, "--budget", "off"]).serving();
    let status = profiler.status();
    let broken = status.target(fixture.pid()).probes_in("broken");
    table.holds("broken", "none", format!("{broken:?}"), broken.is_empty());
    let left = effective(&mut profiler);
    table.equal("left", shown(&(LASTING.bits(), vec![LEAST.bits()])), shown(&left));
    let truth = fixture.ask("run 1000");
    let spawned = number(&truth["tasks"]["spawned"]);
    table.equal("spawned", spawned, profiler.status().target(fixture.pid()).spawned());
    let losses = profiler.status();
    table.holds("lost", "nothing", format!("{:?}", losses.losses()), losses.losses().is_empty());
    table.finish();
}

/// Check that each signal that root can have here is attached with the least privileges, too, or it is said what it takes.
/// Run on every kernel of the matrix.
#[test]
fn root_has_no_more() {
    place::require_root();
    let mut table = Table::new("signals with the least privileges");
    let capabilities = least_here(&place::profiler());
    let (root, least) = (Check::run(&[]), Check::run_as_nobody(capabilities));
    // As root, without privileges.
    let tokio = Fixture::tokio("latest", "release", &["tasks"]);
    let listener = Fixture::start(&place::listener(), &["--backlog", "16"]);
    for row in root.signals() {
        let signal = row["signal"].as_str().expect("a name");
        let Some(way) = row["way"].as_str() else { continue };
        let other = least.signal(signal);
        let told = other["way"] == way || other.to_string().contains("CAP_");
        table.holds(format!("{signal} by check"), way, format!("{} {}", other["way"], other["why_not"]), told);
    }
    for fixture in [&tokio, &listener] {
        let pid = fixture.pid();
        let rows = |profiler: Profiler| profiler.status().target(pid).0["probes"].as_array().cloned().expect("rows");
        let as_root = rows(Profiler::attach(pid));
        let arguments = ["attach", "--pid", &pid.to_string(), "--budget", "off"];
        let as_nobody = rows(Starting::as_nobody(capabilities, &arguments).serving());
        for (root, other) in as_root.iter().zip(&as_nobody) {
            let told = root["state"] == other["state"] || other["detail"].as_str().is_some_and(|d| d.contains("CAP_"));
            let right = told && root["probe"] == other["probe"];
            table.holds(format!("{} of {pid}", root["probe"]), root, other, right);
        }
    }
    table.finish();
}

/// Check that root keeps no more than it needs, unless it is asked to, and that windows open all the same.
#[test]
fn what_attaching_took_is_given_up() {
    place::require_root();
    let mut table = Table::new("what is left to root");
    let all = kernel::effective_capabilities(std::process::id());
    let mut fixture = Fixture::tokio("latest", "release", &["tasks"]);
    let mut profiler = Profiler::attach_within("2%", fixture.pid(), &[]);
    table.equal("left", shown(&(LASTING.bits() & all, vec![LEAST.bits() & all])), shown(&effective(&mut profiler)));
    // Probes come and go.
    fixture.tell("mix 3 1");
    wait::until("a window", || match profiler.status().target(fixture.pid()).probe("task_polls") {
        Some(("sampled", _)) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    let covered = || profiler.page().value("profiler_probe_covered_seconds_total", &[("signal", "polls")]);
    let before = covered();
    wait::until("another window", || if covered() > before { Ok(()) } else { Err(format!("{before}")) });
    fixture.answer();
    profiler.stop();
    let mut profiler = Profiler::attach_with(fixture.pid(), &["--keep-capabilities"]);
    table.equal("kept", format!("{all:x}"), format!("{:x}", effective(&mut profiler).0));
    table.finish();
}

/// Failures say one line that names what is missing.
fn failed(table: &mut Table, what: &str, ended: &Ended, names: &[&str]) {
    let right = ended.code() == Some(1)
        && ended.stderr.len() == 1
        && ended.stderr[0].starts_with("error: ")
        && names.iter().all(|name| ended.stderr[0].contains(name));
    table.holds(what, format!("1, {names:?}"), format!("{:?}, {:?}", ended.code(), ended.stderr), right);
}

/// Check that whatever is missing is named, and that nothing was attached then.
#[test]
fn missing_privileges() {
    place::require_root();
    let before = BpfObjects::all();
    let mut table = Table::new("missing privileges");
    let mut fixture = Fixture::tokio("latest", "release", &["tasks"]);
    let pid = fixture.pid().to_string();
    let arguments = ["attach", "--pid", &pid, "--duration", "1s", "--web.listen-address", "127.0.0.1:0"];
    let least = least_here(&place::profiler());
    let without = |missing| run_to_end_as_nobody(least.difference(missing), &arguments);
    failed(&mut table, "without any", &without(least), &["CAP_BPF", "CAP_PERFMON"]);
    if least.contains(CapabilitySet::SYS_RESOURCE) {
        failed(&mut table, "without CAP_SYS_RESOURCE", &without(CapabilitySet::SYS_RESOURCE), &["CAP_SYS_RESOURCE"]);
    }
    failed(&mut table, "without CAP_BPF", &without(CapabilitySet::BPF), &["CAP_BPF"]);
    failed(&mut table, "without CAP_PERFMON", &without(CapabilitySet::PERFMON), &["CAP_PERFMON"]);
    failed(&mut table, "without CAP_SYS_PTRACE", &without(CapabilitySet::SYS_PTRACE), &["CAP_SYS_PTRACE"]);
    // Without this one all but the listening sockets is measured.
    let rest = least.difference(CapabilitySet::DAC_READ_SEARCH);
    let profiler = Starting::as_nobody(rest, &["attach", "--pid", &pid, "--budget", "off"]).serving();
    let status = profiler.status();
    let (state, detail) = status.target(fixture.pid()).probe("accept_queue").expect("a row");
    table.equal("without CAP_DAC_READ_SEARCH: accept_queue", "broken", state);
    table.holds("its detail", "CAP_DAC_READ_SEARCH", detail, detail.contains("CAP_DAC_READ_SEARCH"));
    profiler.stop();
    let left = wait::until_or_last(|| BpfObjects::left_over_since(&before), BpfObjects::is_empty);
    table.holds("BPF objects left", "none", format!("{left:?}"), left.is_empty());
    table.holds("still answers", true, fixture.answers(), true);
    table.finish();
}
