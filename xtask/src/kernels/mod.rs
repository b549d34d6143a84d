//! `cargo xtask kernels`: the live tests on other kernels than this host's, each in a virtual machine.

mod archive;
mod contents;
mod image;
mod machine;
mod table;

use std::num::NonZero;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use anyhow::{Result, bail};

use crate::setup;
use image::{Image, KERNELS, Kernel};
use machine::{Contents, Outcome, Verdict};

/// A live test that runs on every kernel, or on those with a feature that `profiler check` names.
struct Check {
    test: &'static str,
    needs: Option<&'static str>,
    /// What it shows.
    shows: &'static str,
}

const fn check(test: &'static str, shows: &'static str) -> Check {
    Check { test, needs: None, shows }
}

const fn check_with(needs: &'static str, test: &'static str, shows: &'static str) -> Check {
    Check { test, needs: Some(needs), shows }
}

/// What a kernel cannot do these tests expect to be said, or they are left out. Those that trap most come last.
const PLAN: &[Check] = &[
    check("signals::check_and_attach_agree", "each signal is attached by the way that `check` says"),
    check("signals::check_and_attach_agree_without_the_best_ways", "the same with ways left out"),
    check("privileges::root_has_no_more", "root has no more than the four capabilities give, but for what is told"),
    check("privileges::missing_privileges", "each missing capability is named, and nothing is attached then"),
    check("bad_input::lockdown", "whether the kernel is locked down is told"),
    check("accept::queue_v4", "length, depth and wait of each connection, IPv4"),
    check("accept::queue_v6", "the same, IPv6"),
    check("accept::full_and_overflowing", "a full queue, and overflows equal to the kernel's"),
    check("accept::reuseport", "two sockets of one address apart"),
    check("accept::serving", "10,000 connections, every one matched"),
    check("accept::serving_by_other_ways", "1,000 connections by each other way"),
    // Multishot accepts came with 5.19.
    check_with("sock_length", "accept::accepting_by_io_uring", "accepts by io_uring, every one matched, and once"),
    check_with("unix_functions", "unix::queue_path", "length, depth and wait of each connection, unix socket"),
    check_with("unix_functions", "unix::queue_abstract", "the same, of an abstract name"),
    check_with("unix_functions", "unix::serving_unix", "10,000 connections of a unix socket, every one matched"),
    check("sched::spinning_thread", "time on CPU and switches equal to schedstat"),
    check("sched::contending_threads", "waits in the run queue equal to schedstat"),
    check("sched::forked_children", "forks and exits followed"),
    check("signals::tasks_or_the_reason", "tasks are counted exactly, or it is said why not"),
    check_with("uprobe_multi", "sched::replaced_image", "exec replaces the plan"),
    check_with("uprobe_multi", "tasks::latest_release", "tasks by type, outcome and parent, exact"),
    check_with("attach_cookie", "single_uprobes::few_are_attached", "tasks by single uprobes, exact"),
    check("single_uprobes::many_are_refused", "too many single uprobes are refused"),
];

/// Boots of one kernel with more on its command line, since all are alike in these: what they are called, and what runs.
const HARDENED: &[(&str, &str, &[Check])] = &[
    (
        "locked",
        "lockdown=confidentiality",
        &[check("bad_input::lockdown", "it is said that the kernel is locked down")],
    ),
    (
        "paranoid",
        "sysctl.kernel.perf_event_paranoid=4 sysctl.kernel.unprivileged_bpf_disabled=1 sysctl.kernel.kptr_restrict=2 \
         sysctl.kernel.yama.ptrace_scope=3",
        &[
            check("bad_input::memory_that_may_not_be_read", "what takes the target's memory is said, the rest goes on"),
            check("signals::check_and_attach_agree", "each signal is attached by the way that `check` says"),
            check("privileges::root_has_no_more", "root has no more than the four capabilities give"),
            check("accept::queue_v4", "length, depth and wait of each connection, IPv4"),
            check("tasks::latest_release", "tasks by type, outcome and parent, exact"),
        ],
    ),
];

/// The kernel that runs among this host's tests: it boots fastest, and has what this host may not have.
const ORDINARY: &str = "6.12";

/// The task: one kernel, or all, whose table is written then.
///
/// # Errors
/// A kernel cannot be had, or a test fails on one.
pub fn run(name: Option<&str>, table: bool) -> Result<()> {
    setup::run(false)?;
    let chosen: Vec<&Kernel> = KERNELS.iter().filter(|kernel| name.is_none_or(|name| kernel.name == name)).collect();
    if chosen.is_empty() {
        let names: Vec<&str> = KERNELS.iter().map(|kernel| kernel.name).collect();
        bail!("no kernel {}: there are {}", name.unwrap_or_default(), names.join(", "));
    }
    if table {
        return again();
    }
    let contents = contents::build()?;
    let images = chosen.iter().map(|kernel| kernel.image()).collect::<Result<Vec<_>>>()?;
    let mut machines = Vec::new();
    for (kernel, image) in chosen.iter().zip(&images) {
        machines.push(Machine { name: kernel.name, image, parameters: "", checks: PLAN });
        if kernel.name == ORDINARY {
            let hardened = |&(name, parameters, checks)| Machine { name, image, parameters, checks };
            machines.extend(HARDENED.iter().map(hardened));
        }
    }
    let mut outcomes = Vec::new();
    let mut failed = 0;
    for (machine, outcome) in machines.iter().zip(boot_all(&machines, &contents)) {
        let outcome = outcome?;
        failed += outcome.tests.iter().filter(|test| test.failed()).count();
        if machine.parameters.is_empty() {
            outcomes.push((machine.image.release.clone(), outcome));
        }
    }
    if name.is_none() {
        table::write(&outcomes)?;
    }
    if failed > 0 {
        bail!("{failed} tests failed");
    }
    Ok(())
}

/// A kernel that is booted once.
struct Machine<'a> {
    name: &'static str,
    image: &'a Image,
    parameters: &'static str,
    checks: &'static [Check],
}

/// Boots as many at a time as there is room for: each takes one CPU. What came of each, in their order.
fn boot_all(machines: &[Machine<'_>], contents: &Contents) -> Vec<Result<Outcome>> {
    let next = AtomicUsize::new(0);
    let outcomes: Vec<Mutex<Option<Result<Outcome>>>> = machines.iter().map(|_| Mutex::new(None)).collect();
    let showing = Mutex::new(());
    let at_once = std::thread::available_parallelism().map_or(1, NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(|| {
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    let Some(machine) = machines.get(n) else { break };
                    eprintln!("kernels: booting {} {}", machine.image.release, machine.parameters);
                    let plan = plan(machine.checks);
                    let outcome = machine::run(machine.name, machine.image, contents, machine.parameters, &plan);
                    if let Ok(outcome) = &outcome {
                        let _alone = showing.lock().unwrap_or_else(PoisonError::into_inner);
                        report(&format!("{} {}", machine.image.release, machine.parameters), outcome);
                    }
                    *outcomes[n].lock().unwrap_or_else(PoisonError::into_inner) = Some(outcome);
                }
            });
        }
    });
    let taken = outcomes.into_iter().filter_map(|outcome| outcome.into_inner().unwrap_or_else(PoisonError::into_inner));
    taken.collect()
}

/// Writes the table of the machines that ran last.
fn again() -> Result<()> {
    let mut outcomes = Vec::new();
    for kernel in KERNELS {
        outcomes.push((kernel.image()?.release, machine::last(kernel.name, &plan(PLAN))?));
    }
    table::write(&outcomes)
}

/// The kernel that runs among this host's tests.
///
/// # Errors
/// As for [`run`].
pub fn ordinary() -> Result<()> {
    run(Some(ORDINARY), false)
}

/// As the guest reads it.
fn plan(checks: &[Check]) -> String {
    let line = |check: &Check| match check.needs {
        Some(needs) => format!("{} {needs}\n", check.test),
        None => format!("{}\n", check.test),
    };
    checks.iter().map(line).collect()
}

/// Shows what came of a kernel.
fn report(release: &str, outcome: &Outcome) {
    println!("\nkernel {release}, {:.0} s", outcome.took.as_secs_f64());
    for test in &outcome.tests {
        let word = match &test.verdict {
            Verdict::Passed => "ok",
            Verdict::LeftOut(why) => why,
            Verdict::Failed(_) => "FAILED",
        };
        println!("  {:<56} {word}", test.name);
    }
    for test in &outcome.tests {
        if let Verdict::Failed(words) = &test.verdict {
            println!("\n{} on {release}:\n{words}", test.name);
        }
    }
    if outcome.tests.iter().any(machine::TestResult::failed) {
        println!("\nthe console is in {}", outcome.console.display());
    }
}
