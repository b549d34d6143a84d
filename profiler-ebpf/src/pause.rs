//! Pauses: the runtime stops its tasks, as to collect what they have left. Never why it does.

use aya_ebpf::programs::ProbeContext;
use profiler_common::duration::{Clocks, PAUSE_KIND, Pause};
use profiler_common::map::Probe;

use crate::hit::{Hit, hit};
use crate::maps::{CLOCKS, PAUSES, THREADS};
use crate::shared;

/// What is so little above the stack pointer is a variable of the caller's.
const FRAMES_BYTES: u64 = 64 * 1024;

/// The runtime reads the clock at the begin of a pause, into where it keeps it, or at its end, into a variable on the stack.
#[inline(always)]
pub fn clocked(ctx: &ProbeContext) -> u32 {
    let Some(hit) = hit(ctx, Probe::Pause) else { return 0 };
    // SAFETY: the registers are this program's context.
    let (at, stack) = unsafe { ((*ctx.regs).rsi, (*ctx.regs).rsp) };
    if at >= stack && at - stack < FRAMES_BYTES {
        end(&hit);
    } else {
        begin(&hit, at);
    }
    hit.end();
    0
}

#[inline(always)]
fn begin(hit: &Hit, at: u64) {
    let pause = Pause { start_ns: hit.time_ns, off_cpu_ns: off_cpu_ns(hit.tid), span: span(hit), reserved: 0 };
    let _ = PAUSES.insert(hit.tid, pause, 0);
    match CLOCKS.get_ptr_mut(hit.pid) {
        // SAFETY: a live map value; those who write it at the same time have seen the same two places, or will.
        Some(clocks) => unsafe {
            if at < (*clocks).low {
                (*clocks).low = at;
            }
            if at > (*clocks).high {
                (*clocks).high = at;
            }
        },
        None => {
            let _ = CLOCKS.insert(hit.pid, Clocks { low: at, high: at }, 0);
        }
    }
}

#[inline(always)]
fn end(hit: &Hit) {
    let Some(pause) = PAUSES.get_ptr(hit.tid) else { return };
    // SAFETY: a live map value; only this thread writes it.
    let Pause { start_ns, off_cpu_ns: off_before_ns, span: begun, .. } = unsafe { *pause };
    let _ = PAUSES.remove(hit.tid);
    // What began before a gap in which ends are not seen may have had its own.
    if begun != span(hit) {
        return;
    }
    // SAFETY: a live map value.
    let (slot, between) = unsafe { ((*hit.target).slot, u64::from((*hit.target).polls.between_ns)) };
    let off_ns = off_cpu_ns(hit.tid).saturating_sub(off_before_ns);
    let duration = (hit.time_ns - start_ns).saturating_sub(off_ns).saturating_sub(between);
    shared::lasted(slot, PAUSE_KIND, duration);
}

/// How long the thread was off the CPU since it is followed: it runs now, so that no such span is open.
#[inline(always)]
fn off_cpu_ns(tid: u32) -> u64 {
    let Some(thread) = THREADS.get_ptr(tid) else { return 0 };
    // SAFETY: a live map value; it is written when this thread is switched only.
    unsafe { (*thread).run_queue_total_ns + (*thread).asleep_total_ns }
}

#[inline(always)]
fn span(hit: &Hit) -> u32 {
    // SAFETY: a live map value.
    unsafe { (*hit.target).layout.coroutine.span }
}
