//! Where a target's threads spend their time: run queue, CPU, asleep.

use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use profiler_common::map::{Probe, Thread};

use crate::maps::{POLL_STACKS, SCHED, THREADS};
use crate::{cost, offsets, read, request};

#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: the helper has no precondition.
    unsafe { bpf_ktime_get_ns() }
}

#[inline(always)]
fn thread(task: *const u8) -> Option<*mut Thread> {
    // SAFETY: `task` is a tracepoint's `task_struct`, the offset is from BTF.
    let tid: u32 = unsafe { read::member(task, offsets::task_pid()) };
    // The idle threads are nobody's.
    if tid == 0 { None } else { THREADS.get_ptr_mut(tid) }
}

/// A thread became runnable.
#[inline(always)]
pub fn wakeup(task: *const u8) -> i32 {
    if let Some(thread) = thread(task) {
        let time = now();
        // SAFETY: a live map value; a thread is woken by one waker at a time, under its lock.
        let slot = unsafe {
            // A wake-up that finds the thread running, or already runnable, starts no wait.
            if (*thread).on_cpu_ns == 0 && (*thread).runnable_ns == 0 {
                (*thread).runnable_ns = time;
            }
            (*thread).slot
        };
        cost::kernel_hit(slot, Probe::Wakeup);
        cost::end(slot, Probe::Wakeup, time);
    }
    0
}

/// The CPU went from one thread to another. `state` is the previous thread's, 0 when it is still runnable.
#[inline(always)]
pub fn switch(preempted: u64, previous: *const u8, next: *const u8, state: u64) -> i32 {
    let out = thread(previous);
    let into = thread(next);
    if out.is_none() && into.is_none() {
        return 0;
    }
    let time = now();
    if let Some(thread) = out {
        // `bool` and `unsigned int` arguments: what is above them is not defined.
        let runnable = preempted as u8 != 0 || state as u32 == 0;
        switched_out(thread, time, runnable);
        if request::wanted() && !runnable {
            request::sleeps(time);
        }
    }
    if let Some(thread) = into {
        switched_in(thread, time);
    }
    // Between two threads of a target it is one run of the program.
    if let Some(thread) = out.or(into) {
        // SAFETY: a live map value.
        let slot = unsafe { (*thread).slot };
        cost::kernel_hit(slot, Probe::Switch);
        cost::end(slot, Probe::Switch, time);
    }
    0
}

/// The same, for kernels that do not pass the state.
#[inline(always)]
pub fn switch_reading_state(preempted: u64, previous: *const u8, next: *const u8) -> i32 {
    // SAFETY: `previous` is a tracepoint's `task_struct`, the offset is from BTF.
    let state: u32 = unsafe { read::member(previous, offsets::task_state()) };
    switch(preempted, previous, next, u64::from(state))
}

#[inline(always)]
fn switched_out(thread: *mut Thread, time: u64, runnable: bool) {
    // SAFETY: live map values; a thread is switched by the one CPU that runs it.
    unsafe {
        let started = (*thread).on_cpu_ns;
        (*thread).on_cpu_ns = 0;
        (*thread).off_cpu_ns = time;
        (*thread).runnable_ns = if runnable { time } else { 0 };
        if let Some(stats) = SCHED.get_ptr_mut((*thread).slot) {
            if runnable {
                (*stats).involuntary_switches += 1;
            } else {
                (*stats).voluntary_switches += 1;
            }
            if started != 0 {
                (*stats).on_cpu.record(time - started);
            }
        }
    }
}

#[inline(always)]
fn switched_in(thread: *mut Thread, time: u64) {
    // SAFETY: live map values; a thread is switched by the one CPU that runs it.
    unsafe {
        let (off, runnable) = ((*thread).off_cpu_ns, (*thread).runnable_ns);
        (*thread).off_cpu_ns = 0;
        (*thread).runnable_ns = 0;
        (*thread).on_cpu_ns = time;
        if let Some(stats) = SCHED.get_ptr_mut((*thread).slot)
            && runnable != 0
        {
            (*stats).run_queue.record(time.saturating_sub(runnable));
            if off != 0 && runnable > off {
                (*stats).blocked.record(runnable - off);
            }
        }
    }
}

/// A thread ends: its last span on the CPU is recorded while it is still known.
#[inline(always)]
pub fn ended(tid: u32) {
    if let Some(thread) = THREADS.get_ptr_mut(tid) {
        // SAFETY: live map values; the thread itself runs this.
        unsafe {
            let started = (*thread).on_cpu_ns;
            if started != 0
                && let Some(stats) = SCHED.get_ptr_mut((*thread).slot)
            {
                (*stats).on_cpu.record(now() - started);
            }
        }
        let _ = THREADS.remove(tid);
        let _ = POLL_STACKS.remove(tid);
    }
}
