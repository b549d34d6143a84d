//! Threads that are event loops: counted when they go to wait for events. Never why a thread sleeps.

use core::ptr::write_volatile;

use profiler_common::counter::Counter;
use profiler_common::event_loop::{LoopStats, score};
use profiler_common::sched::{Thread, cause};

use crate::asleep;
use crate::maps::{LOOPS, NOEXIST, count};

static NEW: LoopStats = LoopStats::EMPTY;

/// A thread goes to sleep, for one of [`cause`]. `task` has the type of a BTF tracepoint's argument.
#[inline(always)]
pub fn sleeps(task: *const u8, thread: *mut Thread, tid: u32, why: usize, time: u64) {
    // SAFETY: live map values; a thread is switched by the one CPU that runs it.
    unsafe {
        let before = (*thread).loop_score;
        if why != cause::EPOLL {
            if before != 0 {
                (*thread).loop_score = score::after_other(before);
            }
            return;
        }
        let active = (*thread).active_ns;
        write_volatile(&raw mut (*thread).active_ns, 0);
        let now = score::after_wait(before);
        (*thread).loop_score = now;
        if now & score::IS_LOOP == 0 {
            return;
        }
        let Some(stats) = LOOPS.get_ptr_mut(tid) else {
            let _ = LOOPS.insert(tid, &NEW, NOEXIST);
            match LOOPS.get_ptr_mut(tid) {
                Some(stats) => (*stats).begin(time),
                None => {
                    count(Counter::LoopsFull);
                    // Not at every wait, but after as many as it took until now.
                    (*thread).loop_score = 0;
                }
            }
            return;
        };
        if before & score::IS_LOOP == 0 || active == 0 {
            (*stats).begin(time);
        } else {
            let began = (*stats).since_ns;
            (*stats).idle_until(active);
            (*stats).woken(began, active, (*thread).active_runs_ns);
            (*stats).busy_until(time);
        }
        (*stats).asked_ns = asleep::asked_ns(task);
    }
}
