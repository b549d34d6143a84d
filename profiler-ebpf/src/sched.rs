//! Where a target's threads spend their time: run queue, CPU, asleep.

use core::ptr::write_volatile;

use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use aya_ebpf::helpers::{bpf_get_current_comm, bpf_get_smp_processor_id};
use profiler_common::event::{Header, ThreadRecord, kind, thread_flag};
use profiler_common::event_loop::score;
use profiler_common::map::Probe;
use profiler_common::sched::{Thread, after, cause, preempter};

use crate::maps::{POLL_STACKS, SCHED, THREADS};
use crate::{asleep, cost, emit, event_loop, offsets, read, request};

/// `PF_KTHREAD`, include/linux/sched.h.
const KERNEL_THREAD: u32 = 0x0020_0000;

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

/// The CPU went from one thread to another. `state` is the previous thread's, 0 when it is still runnable. With
/// `CAUSES`, it is told why it sleeps.
#[inline(always)]
pub fn switch<const CAUSES: bool>(preempted: u64, previous: *const u8, next: *const u8, state: u64) -> i32 {
    let out = thread(previous);
    let into = thread(next);
    if out.is_none() && into.is_none() {
        return 0;
    }
    let time = now();
    // SAFETY: the helper has no precondition.
    let cpu = unsafe { bpf_get_smp_processor_id() } + 1;
    if let Some(thread) = out {
        // SAFETY: `previous` is a tracepoint's `task_struct`, the offset is from BTF.
        arrived_unseen(thread, time, cpu, unsafe { read::member(previous, offsets::task_sum_exec_runtime()) });
        // `bool` and `unsigned int` arguments: what is above them is not defined.
        if preempted as u8 != 0 || state as u32 == 0 {
            switched_out(thread, time, cpu, Leaving::Runnable(preempter(previous, next)));
        } else {
            // SAFETY: a live map value.
            let last = unsafe { (*thread).cause };
            let cause = if CAUSES { asleep::cause(previous, state as u32, last) } else { cause::UNTOLD };
            switched_out(thread, time, cpu, Leaving::Asleep(cause));
            if request::wanted() {
                request::sleeps(time);
            }
            if CAUSES {
                // SAFETY: `previous` is a tracepoint's `task_struct`, the offset is from BTF.
                let tid: u32 = unsafe { read::member(previous, offsets::task_pid()) };
                event_loop::sleeps(previous, thread, tid, cause, time);
            }
        }
    }
    if let Some(thread) = into {
        switched_in(thread, time, cpu);
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
pub fn switch_reading_state<const CAUSES: bool>(preempted: u64, previous: *const u8, next: *const u8) -> i32 {
    // SAFETY: `previous` is a tracepoint's `task_struct`, the offset is from BTF.
    let state: u32 = unsafe { read::member(previous, offsets::task_state()) };
    switch::<CAUSES>(preempted, previous, next, u64::from(state))
}

/// How a thread leaves its CPU.
enum Leaving {
    /// It could run on, and who runs instead: one of [`preempter`].
    Runnable(usize),
    /// It sleeps, and why: one of [`cause`].
    Asleep(usize),
}

/// Who runs instead of a thread: one of [`preempter`].
#[inline(always)]
fn preempter(previous: *const u8, next: *const u8) -> usize {
    // SAFETY: both are a tracepoint's `task_struct`, the offsets are from BTF.
    let (own, pid, tid, flags): (u32, u32, u32, u32) = unsafe {
        (
            read::member(previous, offsets::task_tgid()),
            read::member(next, offsets::task_tgid()),
            read::member(next, offsets::task_pid()),
            read::member(next, offsets::task_flags()),
        )
    };
    if pid == own {
        preempter::OWN
    } else if tid == 0 {
        preempter::IDLE
    } else if flags & KERNEL_THREAD != 0 {
        preempter::KERNEL
    } else {
        preempter::OTHER
    }
}

/// A thread is about to leave its CPU, `charged` with so much CPU time so far. Some kernels do not report every switch:
/// of 375 that Linux 6.18 counted its tracepoint told 356. Where the thread was not seen to come, what it was charged
/// with since it left the last time tells when it did.
#[inline(always)]
fn arrived_unseen(thread: *mut Thread, time: u64, cpu: u32, charged: u64) {
    // SAFETY: live map values; a thread is switched by the one CPU that runs it.
    unsafe {
        let (before, off) = ((*thread).charged_ns, (*thread).off_cpu_ns);
        (*thread).charged_ns = charged;
        if (*thread).on_cpu_ns == 0 && off != 0 && before != 0 {
            let came = time.saturating_sub(charged.saturating_sub(before));
            let earliest = if (*thread).runnable_ns > off { (*thread).runnable_ns } else { off };
            switched_in(thread, if came > earliest { came } else { earliest }, cpu);
        }
    }
}

#[inline(always)]
fn switched_out(thread: *mut Thread, time: u64, cpu: u32, how: Leaving) {
    // SAFETY: live map values; a thread is switched by the one CPU that runs it.
    unsafe {
        let started = (*thread).on_cpu_ns;
        let stats = SCHED.get_ptr_mut((*thread).slot);
        // Volatile: an open span is closed before it is in a total, see `Thread`.
        write_volatile(&raw mut (*thread).on_cpu_ns, 0);
        (*thread).off_cpu_ns = time;
        (*thread).cpu = cpu;
        match how {
            Leaving::Runnable(by) => {
                (*thread).runnable_ns = time;
                if let Some(stats) = stats
                    && by < preempter::COUNT
                {
                    (*stats).preemptions[by] += 1;
                }
            }
            Leaving::Asleep(cause) => {
                (*thread).runnable_ns = 0;
                (*thread).cause = cause as u32;
                if let Some(stats) = stats {
                    (*stats).voluntary_switches += 1;
                }
            }
        }
        if started != 0
            && let Some(stats) = stats
        {
            let ran = time - started;
            (*stats).on_cpu.record(ran);
            (*thread).on_cpu_total_ns += ran;
        }
    }
}

/// Not inlined: there are two callers, and the verifier does not follow what becomes of two copies.
#[inline(never)]
fn switched_in(thread: *mut Thread, time: u64, cpu: u32) {
    // SAFETY: live map values; a thread is switched by the one CPU that runs it.
    unsafe {
        let (off, woken, last) = ((*thread).off_cpu_ns, (*thread).runnable_ns, (*thread).cpu);
        write_volatile(&raw mut (*thread).off_cpu_ns, 0);
        write_volatile(&raw mut (*thread).runnable_ns, 0);
        write_volatile(&raw mut (*thread).on_cpu_ns, time);
        // What runs again without a wake-up was never asleep: a signal was there first.
        let runnable = if woken != 0 { woken } else { off };
        let Some(stats) = SCHED.get_ptr_mut((*thread).slot) else { return };
        if last != 0 && last != cpu {
            (*stats).migrations += 1;
        }
        // It was asleep, or ran, before it was known.
        if runnable == 0 {
            return;
        }
        let waited = time.saturating_sub(runnable);
        let queue = if runnable == off { after::PREEMPTION } else { after::WAKEUP };
        (*stats).run_queue[queue].record(waited);
        (*thread).run_queue_total_ns += waited;
        if off != 0 && runnable > off {
            let slept = runnable - off;
            (*stats).blocked.record(slept);
            (*thread).asleep_total_ns += slept;
            let cause = (*thread).cause as usize;
            if cause < cause::COUNT {
                (*stats).asleep_ns[cause] += slept;
            }
            if cause == cause::EPOLL {
                ((*thread).active_ns, (*thread).active_runs_ns) = (runnable, time);
            }
        }
    }
}

/// A thread ends: its last span on the CPU is recorded while it is still known.
#[inline(always)]
pub fn ended(pid: u32, tid: u32) {
    if let Some(thread) = THREADS.get_ptr_mut(tid) {
        let time_ns = now();
        // SAFETY: live map values; the thread itself runs this.
        unsafe {
            let started = (*thread).on_cpu_ns;
            if started != 0
                && let Some(stats) = SCHED.get_ptr_mut((*thread).slot)
            {
                let ran = time_ns - started;
                (*stats).on_cpu.record(ran);
                (*thread).on_cpu_total_ns += ran;
            }
            report(&*thread, time_ns, pid, tid);
        }
        let _ = THREADS.remove(tid);
        let _ = POLL_STACKS.remove(tid);
    }
}

/// A thread goes on under another id, with nothing counted: what it had is reported as that of one that ended.
#[inline(always)]
pub fn renumbered(pid: u32, old_tid: u32, tid: u32) {
    if let Some(thread) = THREADS.get_ptr(old_tid) {
        // SAFETY: a live map value; the thread itself runs this.
        let mut thread = unsafe { *thread };
        report(&thread, now(), pid, old_tid);
        (thread.on_cpu_total_ns, thread.run_queue_total_ns, thread.asleep_total_ns) = (0, 0, 0);
        thread.loop_score = 0;
        let _ = THREADS.insert(tid, thread, 0);
        let _ = THREADS.remove(old_tid);
        let _ = POLL_STACKS.remove(old_tid);
    }
}

/// Reports what the current thread had.
#[inline(always)]
fn report(thread: &Thread, time_ns: u64, pid: u32, tid: u32) {
    let flags = if thread.loop_score & score::EVER != 0 { thread_flag::LOOP } else { 0 };
    emit::thread(ThreadRecord {
        header: Header { time_ns, pid, tid, kind: kind::THREAD_ENDED, flags, site: 0 },
        name: bpf_get_current_comm().unwrap_or_default(),
        on_cpu_ns: thread.on_cpu_total_ns,
        run_queue_ns: thread.run_queue_total_ns,
        asleep_ns: thread.asleep_total_ns,
    });
}
