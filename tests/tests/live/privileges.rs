//! The least privileges with which all is measured, what is said where one is missing, and what is given up once
//! everything is attached.

use tests::fixture::Fixture;
use tests::kernel::{self, BpfObjects};
use tests::place;
use tests::profiler::{Profiler, Starting, run_to_end_as_nobody};
use tests::program::Ended;
use tests::status::number;
use tests::table::Table;
use tests::wait;

/// All that it takes to watch another user's process, as setpriv calls them.
const LEAST: [&str; 4] = ["bpf", "perfmon", "sys_ptrace", "dac_read_search"];
/// Their bits.
const LEAST_BITS: u64 = 1 << 39 | 1 << 38 | LASTING_BITS;
/// Those that are used for as long as something is watched: CAP_SYS_PTRACE, CAP_DAC_READ_SEARCH.
const LASTING_BITS: u64 = 1 << 19 | 1 << 2;

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
    let mut profiler = Starting::as_nobody(&LEAST, &["attach", "--pid", &pid, "--budget", "off"]).serving();
    let status = profiler.status();
    let broken = status.target(fixture.pid()).probes_in("broken");
    table.holds("broken", "none", format!("{broken:?}"), broken.is_empty());
    let left = effective(&mut profiler);
    table.equal("left", shown(&(LASTING_BITS, vec![LEAST_BITS])), shown(&left));
    let truth = fixture.ask("run 1000");
    let spawned = number(&truth["tasks"]["spawned"]);
    table.equal("spawned", spawned, profiler.status().target(fixture.pid()).spawned());
    let losses = profiler.status();
    table.holds("lost", "nothing", format!("{:?}", losses.losses()), losses.losses().is_empty());
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
    table.equal("left", shown(&(LASTING_BITS & all, vec![LEAST_BITS & all])), shown(&effective(&mut profiler)));
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
    let without = |missing: &[&str]| {
        let rest: Vec<&str> = LEAST.into_iter().filter(|capability| !missing.contains(capability)).collect();
        run_to_end_as_nobody(&rest, &arguments)
    };
    failed(&mut table, "without any", &without(&LEAST), &["CAP_BPF", "CAP_PERFMON"]);
    failed(&mut table, "without CAP_BPF", &without(&["bpf"]), &["CAP_BPF"]);
    failed(&mut table, "without CAP_PERFMON", &without(&["perfmon"]), &["CAP_PERFMON"]);
    failed(&mut table, "without CAP_SYS_PTRACE", &without(&["sys_ptrace"]), &["CAP_SYS_PTRACE"]);
    // Without this one all but the listening sockets is measured.
    let rest = ["bpf", "perfmon", "sys_ptrace"];
    let profiler = Starting::as_nobody(&rest, &["attach", "--pid", &pid, "--budget", "off"]).serving();
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
