//! Waits for the lock under which a runtime runs its code. Only who really waits comes by here.

use aya_ebpf::programs::ProbeContext;
use profiler_common::duration::LOCK_KIND;
use profiler_common::lock::{LockWait, tells};
use profiler_common::map::Probe;

use crate::hit::{Hit, hit};
use crate::maps::{LOCK_THREADS, LOCK_WAITS};
use crate::shared;

/// The zero flag of the flags register.
const ZERO: u64 = 1 << 6;

/// A thread waits for the lock, or does so no longer; or another one says that it does.
#[inline(always)]
pub fn told(ctx: &ProbeContext) -> u32 {
    let Some(hit) = hit(ctx, Probe::Lock) else { return 0 };
    match hit.cookie.displacement() {
        tells::BEGINS => begins(&hit),
        tells::BEGINS_UNREADY => {
            begins(&hit);
            let _ = LOCK_THREADS.insert(hit.key(hit.task), hit.tid, 0);
        }
        tells::READY => ready(&hit),
        // SAFETY: the registers are this program's context.
        _ if unsafe { (*ctx.regs).eflags } & ZERO != 0 => ends(&hit),
        _ => {}
    }
    hit.end();
    0
}

#[inline(always)]
fn begins(hit: &Hit) {
    // Who waits once more has waited since.
    if waiting(hit, hit.tid).is_none() {
        let wait = LockWait { since_ns: hit.time_ns, window: hit.window(), reserved: 0 };
        let _ = LOCK_WAITS.insert(hit.tid, wait, 0);
    }
}

/// What the thread waited for until now was no lock.
#[inline(always)]
fn ready(hit: &Hit) {
    let Some(tid) = LOCK_THREADS.get_ptr(hit.key(hit.task)) else { return };
    // SAFETY: live map values.
    unsafe {
        if let Some(wait) = waiting(hit, *tid) {
            (*wait).since_ns = hit.time_ns;
        }
    }
}

#[inline(always)]
fn ends(hit: &Hit) {
    if let Some(wait) = waiting(hit, hit.tid) {
        // SAFETY: a live map value.
        shared::lasted(hit.slot, LOCK_KIND, hit.time_ns.saturating_sub(unsafe { (*wait).since_ns }));
    }
    let _ = LOCK_WAITS.remove(hit.tid);
}

/// A wait of a thread that has begun in this window.
#[inline(always)]
fn waiting(hit: &Hit, tid: u32) -> Option<*mut LockWait> {
    let wait = LOCK_WAITS.get_ptr_mut(tid)?;
    // SAFETY: a live map value.
    (unsafe { (*wait).window } == hit.window()).then_some(wait)
}
