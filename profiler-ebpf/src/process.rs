//! Forks, execs and exits of targets, followed in the kernel so that no child is missed.

use aya_ebpf::programs::BtfTracePointContext;
use aya_log_ebpf::warn;
use profiler_common::counter::Counter;
use profiler_common::event::{Header, ProcessRecord, kind};
use profiler_common::map::{Target, target_flag};
use profiler_common::sched::Thread;

use crate::maps::{TARGETS, THREADS, count};
use crate::sched::now;
use crate::{deferred, discovery, emit, job, offsets, read, request, sched};

#[inline(always)]
fn ids(task: *const u8) -> (u32, u32) {
    // SAFETY: `task` is a tracepoint's `task_struct`, the offsets are from BTF.
    unsafe { (read::member(task, offsets::task_tgid()), read::member(task, offsets::task_pid())) }
}

/// Reports what happened to a process. Of the children user space learns in time: some fork a thousand times a second.
#[inline(always)]
fn record(kind: u16, pid: u32, tid: u32, other: u32, root: u32) {
    let header = Header { time_ns: now(), pid, tid, kind, flags: 0, site: 0 };
    emit::process(ProcessRecord { header, other, reserved: 0 }, pid == root && kind != kind::PROCESS_FORKED);
}

/// A thread or a process was created.
#[inline(always)]
pub fn forked(ctx: &BtfTracePointContext, parent: *const u8, child: *const u8) -> i32 {
    let (pid, _) = ids(parent);
    let Some(target) = TARGETS.get_ptr(pid) else {
        if discovery::wanted() {
            let (child_pid, child_tid) = ids(child);
            // Its first thread, of which there is one: else a thread was created.
            if child_pid == child_tid {
                discovery::forked(child_pid);
            }
        }
        return 0;
    };
    // SAFETY: a live map value.
    let target: Target = unsafe { *target };
    let (child_pid, child_tid) = ids(child);
    let thread = Thread { slot: target.slot, ..Thread::default() };
    if THREADS.insert(child_tid, thread, 0).is_err() {
        count(Counter::ThreadsFull);
    }
    if child_pid != pid {
        if TARGETS.insert(child_pid, target, 0).is_err() {
            count(Counter::TargetsFull);
            // As rare as a fork, and worse than a number: which process is missing is said.
            warn!(ctx, "no room to follow process {}, forked by {}", child_pid, pid);
        }
        record(kind::PROCESS_FORKED, pid, child_tid, child_pid, target.root);
    }
    0
}

/// A process replaced its image: its task layout is void until user space has read the new one. A child that does is
/// another program, and no longer the target's.
#[inline(always)]
pub fn execed(task: *const u8, old_tid: u32) -> i32 {
    let (pid, tid) = ids(task);
    discovery::execed(pid);
    let Some(target) = TARGETS.get_ptr_mut(pid) else { return 0 };
    // SAFETY: a live map value.
    unsafe {
        (*target).flags &= !(target_flag::TASKS
            | target_flag::CURRENT_TASK_TLS
            | target_flag::POLL_STACK
            | target_flag::OUTCOME
            | target_flag::SAMPLES);
    }
    if old_tid != tid {
        // Another thread than the leader called exec: it has taken the leader's id.
        sched::renumbered(pid, old_tid, tid);
    }
    // SAFETY: a live map value.
    let root = unsafe { (*target).root };
    if pid != root {
        sched::ended(pid, tid);
        let _ = TARGETS.remove(pid);
    }
    record(kind::PROCESS_EXECED, pid, tid, 0, root);
    0
}

/// A thread ended, and with the last one the process.
#[inline(always)]
pub fn exited(task: *const u8) -> i32 {
    let (pid, tid) = ids(task);
    sched::ended(pid, tid);
    if request::wanted() {
        request::thread_ended(tid);
        job::thread_ended(tid);
    }
    let target = TARGETS.get_ptr(pid);
    if target.is_some() {
        deferred::thread_ended(tid);
    }
    let young = discovery::is_young(pid);
    if target.is_none() && !young {
        return 0;
    }
    // SAFETY: `task` is a tracepoint's `task_struct`, the offset is from BTF.
    let signal: u64 = unsafe { read::member(task, offsets::task_signal()) };
    // The count was lowered before this tracepoint: 0 says that no thread is left.
    if read::kernel_u32(signal + offsets::signal_live() as u64) != Some(0) {
        return 0;
    }
    if young {
        discovery::ended(pid);
    }
    if let Some(target) = target {
        // SAFETY: a live map value.
        let root = unsafe { (*target).root };
        let _ = TARGETS.remove(pid);
        record(kind::PROCESS_EXITED, pid, tid, 0, root);
    }
    0
}
