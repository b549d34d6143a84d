//! A hit of a task probe: which target, which thread, which task, and what it costs. Never what it means.

use core::ptr::read_volatile;

use aya_ebpf::EbpfContext as _;
use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use aya_ebpf::helpers::generated::bpf_get_attach_cookie;
use aya_ebpf::programs::ProbeContext;
use profiler_common::counter::Counter;
use profiler_common::event::{Header, ProcessRecord, kind};
use profiler_common::map::{Argument, Cookie, Probe, Target, TaskKey, target_flag};

use crate::maps::{NO_PROGRAMS, TARGETS, count};
use crate::sched::now;
use crate::{cost, emit, offsets, read};

/// What every task probe needs first: the target, the thread, and the task pointer of this site.
pub struct Hit {
    pub target: *const Target,
    pub time_ns: u64,
    pub pid: u32,
    pub tid: u32,
    pub cookie: Cookie,
    pub task: u64,
    pub registers: Registers,
    /// Its target's.
    pub slot: u32,
    probe: Probe,
}

impl Hit {
    /// Bits of [`target_flag`].
    #[inline(always)]
    pub fn flags(&self) -> u32 {
        // SAFETY: a live map value.
        unsafe { (*self.target).flags }
    }

    /// The window in which polls and what goes with them are measured without a gap.
    #[inline(always)]
    pub fn window(&self) -> u32 {
        // SAFETY: a live map value.
        unsafe { (*self.target).polls.window }
    }

    /// The key of what has this address in the process.
    #[inline(always)]
    pub fn key(&self, task: u64) -> TaskKey {
        TaskKey { task, pid: self.pid, reserved: 0 }
    }

    /// The program has done its work: now and then, how long that took is noted.
    #[inline(always)]
    pub fn end(&self) {
        cost::end(self.slot, self.probe, self.time_ns);
    }
}

/// Keeps a uprobe's program off the stack that kernels since 6.13 give to larger programs, one per CPU: where a hit is
/// preempted, and another one comes on that CPU, both would work on one stack (uprobe_prog_run in
/// kernel/trace/bpf_trace.c does not look for that, as all other kinds of programs' callers do). A program that may call
/// another one runs on the thread's own stack (check_max_stack_depth in kernel/bpf/verifier.c). This one never does.
#[inline(always)]
pub fn stay_on_kernel_stack(ctx: &ProbeContext) {
    if offsets::never() != 0 {
        // SAFETY: the map is a live one; an empty place in it is no call.
        unsafe { NO_PROGRAMS.tail_call(ctx, 0) };
    }
}

/// Takes a hit; `None` where nothing is to be measured.
#[inline(always)]
pub fn hit(ctx: &ProbeContext, probe: Probe) -> Option<Hit> {
    stay_on_kernel_stack(ctx);
    let time_ns = now();
    let ids = bpf_get_current_pid_tgid();
    let (pid, tid) = ((ids >> 32) as u32, ids as u32);
    let Some(target) = TARGETS.get_ptr(pid) else {
        count(Counter::ForeignHits);
        return None;
    };
    // SAFETY: a live map value.
    let (flags, slot) = unsafe { ((*target).flags, (*target).slot) };
    // What a hit costs is paid also where it is of no use.
    if cost::hit(slot, probe) {
        let header = Header { time_ns, pid, tid, kind: kind::HIT_STORM, flags: 0, site: 0 };
        emit::process(ProcessRecord { header, other: 0, reserved: 0 }, true);
    }
    if flags & wanted(probe) == 0 {
        count(Counter::IdleHits);
        return None;
    }
    if let Probe::PollEnd = probe {
        // The innermost poll of the thread ends, whichever it is.
        return Some(Hit {
            target,
            time_ns,
            pid,
            tid,
            cookie: Cookie(0),
            task: 0,
            registers: Registers::NONE,
            slot,
            probe,
        });
    }
    if let Probe::Transfer | Probe::Pause | Probe::Wait = probe {
        // Calls of two arguments, which their programs know; without a copy of all registers they have room.
        // SAFETY: `ctx` is this program's context.
        let (cookie, task) = unsafe { (Cookie(bpf_get_attach_cookie(ctx.as_ptr())), (*ctx.regs).rdi) };
        return Some(Hit { target, time_ns, pid, tid, cookie, task, registers: Registers::NONE, slot, probe });
    }
    // SAFETY: `ctx` is this program's context.
    let cookie = Cookie(unsafe { bpf_get_attach_cookie(ctx.as_ptr()) });
    let registers = registers(ctx);
    let code = usize::from(cookie.argument());
    let task = if code == Argument::Stack as usize {
        let Some(task) = read::user(registers.stack().wrapping_add_signed(cookie.displacement())) else {
            count(Counter::TargetMemory);
            return None;
        };
        task
    } else {
        registers.get(code)
    };
    Some(Hit { target, time_ns, pid, tid, cookie, task, registers, slot, probe })
}

/// The flags of a target that want the hits of a probe.
#[inline(always)]
const fn wanted(probe: Probe) -> u32 {
    match probe {
        Probe::PollStart | Probe::PollEnd => target_flag::POLLS | target_flag::POLL_STACK,
        Probe::Wake | Probe::Wait | Probe::Lock => target_flag::POLLS,
        _ => target_flag::TASKS,
    }
}

/// All registers, in the order of [`Argument`]'s codes, the stack pointer last.
///
/// They are copied first: the verifier allows loads from the context at constant offsets only, and the compiler would
/// make one load at a computed offset of a choice between them.
#[inline(always)]
fn registers(ctx: &ProbeContext) -> Registers {
    let regs = ctx.regs.cast_const();
    macro_rules! copies {
        ($($register:ident),*) => {
            // SAFETY: the registers are this program's context.
            unsafe { [$(read_volatile(&raw const (*regs).$register)),*] }
        };
    }
    Registers(copies!(rdi, rsi, rdx, rcx, rax, rbx, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rsp))
}

/// The registers at a hit.
pub struct Registers([u64; 16]);

impl Registers {
    /// Those of a hit that needs none.
    const NONE: Registers = Registers([0; 16]);

    #[inline(always)]
    pub fn get(&self, code: usize) -> u64 {
        // SAFETY: the index is below 16. Volatile, so that the array stays an array.
        unsafe { read_volatile(self.0.as_ptr().add(code & 15)) }
    }

    #[inline(always)]
    pub fn stack(&self) -> u64 {
        self.0[15]
    }

    #[inline(always)]
    pub fn frame(&self) -> u64 {
        self.0[Argument::Rbp as usize]
    }
}
