//! What a hit costs on this host: measured at start, on this process's own functions. Never on a target.

use std::arch::naked_asm;
use std::hint::black_box;
use std::time::Instant;

use profiler_common::map::{Argument, Cookie, IdPlace, PollPolicy, Target, TaskLayout, target_flag};

use crate::budget::price::{Trap, Traps};
use crate::kernel::KernelError;
use crate::kernel::attach::Links;
use crate::kernel::feature::Feature;
use crate::kernel::load::Kernel;
use crate::kernel::perf;
use crate::kernel::signal::TASKS;
use crate::kernel::uprobe::Site;
use crate::target::process::{Process, ProcessError};

/// Calls per measurement, and measurements of which the fastest counts: the machine has other work, too.
const CALLS: u32 = 100;
const ROUNDS: u32 = 12;
/// Polls per measurement of what probes add to one.
const POLLS: u32 = 40;
/// Data that is worked on between warm traps, as large as the nearest cache of today's CPUs, and between cold ones,
/// bytes.
const NEAREST_CACHE: usize = 48 << 10;
const NEXT_CACHE: usize = 512 << 10;
const CACHE_LINE: usize = 64;
/// Ticks are this far apart while they are measured, nanoseconds; so often; and they cost at least this.
const TICK_NS: u64 = 100_000;
const TICK_ROUNDS: u32 = 10;
const LEAST_INTERRUPT_NS: f64 = 1000.0;
/// System calls between cold traps.
const SYSTEM_CALLS: u32 = 3;
/// A BTF tracepoint's trampoline: saves the arguments, enters and leaves the program. Too short to be measured from
/// outside of the kernel; measured once with `bpf_prog_test_run`, nanoseconds.
const TRACEPOINT_NS: f64 = 25.0;

/// Measures, and detaches in the background what it attached.
///
/// # Errors
/// The kernel refuses a probe on this very process.
pub(super) fn traps(kernel: &mut Kernel, slot: u32) -> Result<Traps, KernelError> {
    if !kernel.features.has(Feature::Uprobe) {
        // Nothing will ever trap.
        let none = Trap { warm_ns: 0.0, cold_ns: 0.0 };
        let interrupt_ns = interrupt();
        let (emulated, stepped) = (none, none);
        let tracepoint_ns = TRACEPOINT_NS;
        return Ok(Traps { emulated, stepped, tracepoint_ns, interrupt_ns, accept_traps: true, poll_added_ns: 0.0 });
    }
    let own = Own::find().map_err(|e| KernelError::System {
        what: "look at this process".to_owned(),
        source: std::io::Error::other(e.to_string()),
    })?;
    let mut links = own.probe(kernel, "empty", pushes)?;
    links.absorb(own.probe(kernel, "empty", moves)?);
    let emulated = trap(pushes, bare_pushes);
    let stepped = trap(moves, bare_moves);
    // Where polls cannot be seen there is nothing that probes would add to them.
    let polls = kernel.signals.way(TASKS).is_ok();
    let poll_added_ns = if polls { own.poll(kernel, slot, &mut links)? } else { 0.0 };
    // Closing a probe waits for every CPU to have left it.
    std::thread::spawn(move || drop(links));
    let (tracepoint_ns, interrupt_ns) = (TRACEPOINT_NS, interrupt());
    let traps = Traps { emulated, stepped, tracepoint_ns, interrupt_ns, accept_traps: true, poll_added_ns };
    log::debug!("calibrated: {traps:?}");
    Ok(traps)
}

/// What a thread does between two traps.
struct Work(Vec<u8>);

impl Work {
    fn new() -> Work {
        Work(vec![1; NEXT_CACHE])
    }

    fn touch(&self, bytes: usize) {
        black_box(self.0[..bytes].iter().step_by(CACHE_LINE).map(|&byte| u64::from(byte)).sum::<u64>());
    }

    /// Next to nothing.
    fn little(&self) {
        self.touch(NEAREST_CACHE);
    }

    /// So much that little is left in the caches of what was there.
    fn much(&self) {
        for _ in 0..SYSTEM_CALLS {
            let _ = black_box(std::fs::metadata("/"));
        }
        self.touch(NEXT_CACHE);
    }
}

/// What a tick of the CPU clock takes from what it interrupts, nanoseconds. On a virtual machine that is many times what
/// its program takes.
fn interrupt() -> f64 {
    // Where there is no such clock nothing is sampled.
    if perf::own_clock(TICK_NS).is_err() {
        return 0.0;
    }
    let work = Work::new();
    let time = || time(bare_pushes, &|| work.much());
    let ticking = || {
        let _clock = perf::own_clock(TICK_NS);
        time()
    };
    let (with, without) = fastest(TICK_ROUNDS, ticking, time);
    ((with - without) / (with / TICK_NS as f64)).max(LEAST_INTERRUPT_NS)
}

/// What a trap in `probed` takes, which is `bare` otherwise.
fn trap(probed: Function, bare: Function) -> Trap {
    let work = Work::new();
    let added = |between: &dyn Fn()| {
        let (with, without) = fastest(ROUNDS, || time(probed, between), || time(bare, between));
        (with - without).max(1.0)
    };
    let warm_ns = added(&|| work.little());
    Trap { warm_ns, cold_ns: added(&|| work.much()).max(warm_ns) }
}

/// The fastest of several rounds of two, in turn: what slows the machine for a while slows both.
fn fastest(rounds: u32, one: impl Fn() -> f64, other: impl Fn() -> f64) -> (f64, f64) {
    (0..rounds).fold((f64::INFINITY, f64::INFINITY), |least, _| (least.0.min(one()), least.1.min(other())))
}

/// Nanoseconds per call, and what is done between two.
fn time(function: Function, between: &dyn Fn()) -> f64 {
    let begin = Instant::now();
    for call in 0..CALLS {
        between();
        black_box(function(u64::from(call)));
    }
    begin.elapsed().as_nanos() as f64 / f64::from(CALLS)
}

type Function = extern "C" fn(u64) -> u64;

/// Begins with an instruction that the kernel emulates.
#[unsafe(naked)]
extern "C" fn pushes(_: u64) -> u64 {
    naked_asm!("push rbx", "mov rax, rdi", "pop rbx", "ret")
}

/// The same, never probed.
#[unsafe(naked)]
extern "C" fn bare_pushes(_: u64) -> u64 {
    naked_asm!("push rbx", "mov rax, rdi", "pop rbx", "ret", "nop", "nop")
}

/// Begins with one that it single-steps.
#[unsafe(naked)]
extern "C" fn moves(_: u64) -> u64 {
    naked_asm!("mov rax, rdi", "ret")
}

/// The same, never probed.
#[unsafe(naked)]
extern "C" fn bare_moves(_: u64) -> u64 {
    naked_asm!("mov rax, rdi", "ret", "nop")
}

/// Where polls would begin and end.
#[unsafe(naked)]
extern "C" fn begins(_: u64) -> u64 {
    naked_asm!("push rbx", "mov rax, rdi", "pop rbx", "ret")
}

#[unsafe(naked)]
extern "C" fn ends(_: u64) -> u64 {
    naked_asm!("push rbx", "mov rax, rdi", "pop rbx", "ret", "nop")
}

/// This process.
struct Own {
    process: Process,
    /// Where the code that is probed lies: address minus offset in the file.
    bias: u64,
    path: std::path::PathBuf,
}

impl Own {
    fn find() -> Result<Own, ProcessError> {
        let process = Process::find(std::process::id())?;
        let image = process.image()?;
        let code = pushes as *const () as u64;
        let placement = process.placements(&image)?.into_iter().find(|p| (p.start..p.end).contains(&code));
        let placement = placement.ok_or(ProcessError::NoSuchProcess { pid: process.pid })?;
        Ok(Own { bias: placement.start - placement.file_offset, path: image.path, process })
    }

    fn probe(&self, kernel: &mut Kernel, program: &'static str, function: Function) -> Result<Links, KernelError> {
        let cookie = Cookie::new(Argument::Rdi, 0, IdPlace::Nowhere, false, 0).0;
        let site = Site { offset: function as *const () as u64 - self.bias, cookie };
        kernel.attach_uprobes(program, kernel.few_uprobes(), &self.path, &[site], Some(self.process.pid))
    }

    /// What the probes at both ends add to the duration of a poll: that of polls that last nothing.
    fn poll(&self, kernel: &mut Kernel, slot: u32, links: &mut Links) -> Result<f64, KernelError> {
        links.absorb(self.probe(kernel, "task_poll_end", ends)?);
        links.absorb(self.probe(kernel, "task_poll_start", begins)?);
        // A header as Tokio's: a state, and a vtable that lies in the image.
        let header: [u64; 8] = [0, 0, u64::MAX / 2, 0, 0, 0, 0, 0];
        let header = black_box(&header);
        let layout =
            TaskLayout { vtable: 16, image_start: header[2], image_end: header[2] + 1, ..TaskLayout::default() };
        let polls = PollPolicy { window: 1, slow_ns: u64::MAX, ..PollPolicy::default() };
        let entry = Target { slot, flags: target_flag::POLLS, layout, polls, root: self.process.pid, reserved: 0 };
        kernel.set_target(self.process.pid, entry)?;
        let mut least: Option<f64> = None;
        let mut before = (0, 0);
        for _ in 0..ROUNDS {
            for _ in 0..POLLS {
                black_box(begins(header.as_ptr() as u64));
                black_box(ends(0));
            }
            let Some(stats) = kernel.types()?.remove(&slot).unwrap_or_default().into_iter().next() else { break };
            let polls = stats.poll.count - before.0;
            if polls > 0 {
                let mean = (stats.poll.sum - before.1) as f64 / polls as f64;
                least = Some(least.map_or(mean, |least: f64| least.min(mean)));
            }
            before = (stats.poll.count, stats.poll.sum);
        }
        kernel.remove_target(self.process.pid);
        kernel.clear_types(&[slot])?;
        // What is not known is not subtracted.
        Ok(least.unwrap_or_default())
    }
}
