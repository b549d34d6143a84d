//! Jobs that threads of targets take from a queue: seen by who asks for one, and gets it. Never what is in them.

use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use aya_ebpf::helpers::generated::{bpf_get_current_task_btf, bpf_task_pt_regs};
use profiler_common::counter::Counter;
use profiler_common::duration::{FETCH_KIND, JOB_KIND};
use profiler_common::job::{REQUEST_WORDS, Worker, asks, is_job};

use crate::maps::{WORKERS, count};
use crate::{offsets, read, shared};

/// Offset of `msg_iov` in the `struct msghdr` of user space.
const MESSAGE_PARTS: u64 = 16;

/// The current thread, which is of the target in `slot`, sent so much on a socket that no target accepted.
#[inline(always)]
pub fn sent(slot: u32, result: i32, time: u64) {
    let mut words = [0; REQUEST_WORDS];
    if (result as usize) < 8 * REQUEST_WORDS {
        return;
    }
    let Some(buffer) = buffer() else { return };
    if !read::user_words(buffer, &mut words) || !asks(&words) {
        return;
    }
    let tid = bpf_get_current_pid_tgid() as u32;
    if let Some(worker) = worker(tid, slot) {
        // SAFETY: a live map value, of which only this thread changes the entry.
        unsafe {
            // Who asks once more, since there was no job in time, goes on waiting.
            if (*worker).works == 1 {
                shared::lasted(slot, JOB_KIND, time.saturating_sub((*worker).since_ns));
                (*worker).since_ns = time;
                (*worker).works = 0;
            }
        }
    } else if WORKERS.insert(tid, Worker { since_ns: time, slot, works: 0 }, 0).is_err() {
        count(Counter::WorkersFull);
    }
}

/// The current thread received something on such a socket.
#[inline(always)]
pub fn received(slot: u32, time: u64) {
    let tid = bpf_get_current_pid_tgid() as u32;
    let Some(worker) = worker(tid, slot) else { return };
    // SAFETY: as above.
    if unsafe { (*worker).works } == 1 {
        return;
    }
    if !buffer().and_then(read::user).is_some_and(is_job) {
        return;
    }
    // SAFETY: as above.
    unsafe {
        shared::lasted(slot, FETCH_KIND, time.saturating_sub((*worker).since_ns));
        (*worker).since_ns = time;
        (*worker).works = 1;
    }
}

/// A thread ended. What it did is no whole job, and no whole wait.
#[inline(always)]
pub fn thread_ended(tid: u32) {
    let _ = WORKERS.remove(tid);
}

/// What is known of a thread that has asked for jobs since it is this target's.
#[inline(always)]
fn worker(tid: u32, slot: u32) -> Option<*mut Worker> {
    let worker = WORKERS.get_ptr_mut(tid)?;
    // SAFETY: a live map value.
    (unsafe { (*worker).slot } == slot).then_some(worker)
}

/// The address of what the current system call sends or receives, or of its first part.
#[inline(always)]
fn buffer() -> Option<u64> {
    // SAFETY: helpers without a precondition.
    let regs = unsafe { bpf_task_pt_regs(bpf_get_current_task_btf()) as u64 };
    let argument = read::kernel(regs + offsets::regs_si() as u64)?;
    match read::kernel(regs + offsets::regs_orig_ax() as u64)? {
        // read, write, sendto, recvfrom
        0 | 1 | 44 | 45 => Some(argument),
        // readv, writev
        19 | 20 => read::user(argument),
        // sendmsg, recvmsg
        46 | 47 => read::user(read::user(argument + MESSAGE_PARTS)?),
        _ => None,
    }
}
