//! Work that is deferred: how long it waits, and how long it runs. Never what it is.

use aya_ebpf::programs::ProbeContext;
use profiler_common::counter::Counter;
use profiler_common::deferred::{Deferred, DeferredRun, tells};
use profiler_common::duration::{DEFERRED_RUN_KIND, DEFERRED_WAIT_KIND};
use profiler_common::map::{Argument, Probe};

use crate::hit::{Hit, hit};
use crate::maps::{DEFERRED, DEFERRED_RUNS, count};
use crate::shared;

/// Work is deferred, or run, or done.
#[inline(always)]
pub fn told(ctx: &ProbeContext) -> u32 {
    let Some(hit) = hit(ctx, Probe::Deferred) else { return 0 };
    // SAFETY: a live map value.
    let function = unsafe { (*hit.target).layout.deferred_function };
    match hit.cookie.displacement() {
        // It is told once all is attached.
        _ if function == 0 => {}
        // Other work goes through the same queue.
        tells::DEFERRED if hit.registers.get(Argument::Rdi as usize) != function => {}
        tells::DEFERRED => deferred(&hit),
        tells::BEGINS => begins(&hit),
        _ => ends(&hit),
    }
    hit.end();
    0
}

#[inline(always)]
fn deferred(hit: &Hit) {
    let key = hit.key(hit.task);
    if let Some(deferred) = DEFERRED.get_ptr_mut(key) {
        // SAFETY: a live map value, and aligned.
        unsafe {
            shared::add(&raw mut (*deferred).later_ns, hit.time_ns.saturating_sub((*deferred).first_ns));
            shared::add(&raw mut (*deferred).waiting, 1);
        }
        return;
    }
    let first = Deferred { first_ns: hit.time_ns, later_ns: 0, waiting: 1, slot: hit.slot, reserved: 0 };
    if DEFERRED.insert(key, &first, 0).is_err() {
        count(Counter::DeferredFull);
    }
}

#[inline(always)]
fn begins(hit: &Hit) {
    let key = hit.key(hit.task);
    if let Some(deferred) = DEFERRED.get_ptr_mut(key) {
        // SAFETY: a live map value, and aligned.
        unsafe {
            let Deferred { first_ns, later_ns, waiting, .. } = *deferred;
            // Which of those at one address it is does not show: the sum of their waits is right, each is a mean.
            let later = later_ns / waiting.max(1);
            shared::lasted(hit.slot, DEFERRED_WAIT_KIND, hit.time_ns.saturating_sub(first_ns + later));
            if waiting > 1 {
                shared::add(&raw mut (*deferred).later_ns, later.wrapping_neg());
                shared::add(&raw mut (*deferred).waiting, 1u64.wrapping_neg());
            } else {
                let _ = DEFERRED.remove(key);
            }
        }
    }
    if DEFERRED_RUNS.get_ptr(hit.tid).is_some() {
        count(Counter::DeferredEndUnseen);
    }
    let run = DeferredRun { since_ns: hit.time_ns, slot: hit.slot, pid: hit.pid };
    if DEFERRED_RUNS.insert(hit.tid, run, 0).is_err() {
        count(Counter::DeferredFull);
    }
}

#[inline(always)]
fn ends(hit: &Hit) {
    let Some(run) = DEFERRED_RUNS.get_ptr(hit.tid) else { return };
    // SAFETY: a live map value; only this thread writes it.
    let DeferredRun { since_ns, slot, .. } = unsafe { *run };
    let _ = DEFERRED_RUNS.remove(hit.tid);
    shared::lasted(slot, DEFERRED_RUN_KIND, hit.time_ns.saturating_sub(since_ns));
}

/// A thread ended: it runs nothing any more.
#[inline(always)]
pub fn thread_ended(tid: u32) {
    let _ = DEFERRED_RUNS.remove(tid);
}
