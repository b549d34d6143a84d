//! What is on the CPUs when the sampling clock ticks: which task, and where its thread is.

use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use aya_ebpf::helpers::generated::{bpf_get_current_task_btf, bpf_task_pt_regs};
use aya_ebpf::programs::PerfEventContext;
use profiler_common::event::{Header, SampleHead, SampleRecord, kind, missed_ticks, sample_flag};
use profiler_common::map::{Probe, Target, target_flag};

use crate::maps::{SAMPLE, TARGETS, TICKS};
use crate::sched::now;
use crate::{cost, emit, offsets, read};

/// The privilege level in a code segment selector: not 0 in user mode.
const PRIVILEGE: u64 = 3;

/// The clock ticked on this CPU.
#[inline(always)]
pub fn taken(ctx: &PerfEventContext) -> u32 {
    let time_ns = now();
    let missed = missed(time_ns);
    let ids = bpf_get_current_pid_tgid();
    let pid = (ids >> 32) as u32;
    let Some(target) = TARGETS.get_ptr(pid) else { return 0 };
    // SAFETY: a live map value.
    let target = unsafe { &*target };
    if target.flags & target_flag::SAMPLES == 0 {
        return 0;
    }
    take(ctx, target, ids, time_ns, missed);
    cost::kernel_hit(target.slot, Probe::Sample);
    cost::end(target.slot, Probe::Sample, time_ns);
    0
}

/// How many ticks this CPU has missed since the last one, whoever ran then.
#[inline(always)]
fn missed(time_ns: u64) -> u32 {
    let Some(tick) = TICKS.get_ptr_mut(0) else { return 0 };
    // SAFETY: this CPU's own value: the clock does not interrupt itself.
    unsafe {
        let (missed, due_ns) = missed_ticks(*tick, time_ns);
        *tick = due_ns;
        missed
    }
}

#[inline(always)]
fn take(ctx: &PerfEventContext, target: &Target, ids: u64, time_ns: u64, missed: u32) {
    let Some(sample) = SAMPLE.get_ptr_mut(0) else { return };
    // SAFETY: this CPU's own value: the clock does not interrupt itself.
    let sample = unsafe { &mut *sample };
    // SAFETY: the registers are this program's context.
    let mut flags = if unsafe { (*ctx.ctx).regs.cs } & PRIVILEGE != 0 { sample_flag::USER_MODE } else { 0 };
    let task = current_task(target);
    if task.is_some() {
        flags |= sample_flag::TASK_KNOWN;
    }
    // Whether the clock interrupted user mode or the kernel, user mode's registers are at the top of the kernel stack.
    // SAFETY: the current task's registers, whose type the verifier knows; the offsets are from BTF.
    let (ip, sp) = unsafe {
        let regs = bpf_task_pt_regs(bpf_get_current_task_btf()) as *const u8;
        (read::member(regs, offsets::regs_ip()), read::member(regs, offsets::regs_sp()))
    };
    flags |= sample_flag::REGISTERS_KNOWN;
    // SAFETY: the helper has no precondition; its result is the current `task_struct`, the offsets are from BTF.
    let (sleeps, cpu_ns) = unsafe {
        let task: *const u8 = bpf_get_current_task_btf().cast();
        (read::member(task, offsets::task_nvcsw()), read::member(task, offsets::task_sum_exec_runtime()))
    };
    let header = Header { time_ns, pid: (ids >> 32) as u32, tid: ids as u32, kind: kind::SAMPLE, flags, site: 0 };
    sample.head = SampleHead { header, task: task.unwrap_or_default(), ip, sp, length: 0, missed, sleeps, cpu_ns };
    // A thread that polls no task needs no stack to say so, and samples must not crowd out what is counted exactly.
    if task == Some(0) || emit::is_crowded() {
        emit::sample::<0>(sample);
        return;
    }
    // The stack may end sooner than the longest piece.
    let _ = with_stack::<8192>(sample)
        || with_stack::<4096>(sample)
        || with_stack::<2048>(sample)
        || with_stack::<1024>(sample)
        || with_stack::<0>(sample);
}

/// Submits the sample with `BYTES` of stack; false where the stack is shorter.
#[inline(always)]
fn with_stack<const BYTES: usize>(sample: &mut SampleRecord) -> bool {
    if BYTES != 0 && !read::user_bytes(sample.head.sp, sample.stack.as_mut_ptr().cast(), BYTES) {
        return false;
    }
    sample.head.length = BYTES as u32;
    emit::sample::<BYTES>(sample);
    true
}

/// The id of the task that this thread polls, 0 for none; `None` where that cannot be read.
#[inline(always)]
fn current_task(target: &Target) -> Option<u64> {
    if target.flags & target_flag::CURRENT_TASK_TLS == 0 {
        return None;
    }
    // SAFETY: the helper has no precondition; its result is the current `task_struct`, the offset is from BTF.
    let fs: u64 = unsafe { read::member(bpf_get_current_task_btf().cast(), offsets::task_fsbase()) };
    read::user(fs.wrapping_add_signed(target.layout.current_task_tls))
}
