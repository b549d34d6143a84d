//! Counts that several CPUs add to at the same time. Never whose they are.

use core::arch::asm;

use profiler_common::duration::{Durations, durations_key};
use profiler_common::histogram::{OCTAVES, Octaves, octave};

use crate::maps::{DURATIONS, NOEXIST};

/// What has no duration yet. Too large for the stack of a program.
static NONE: Durations = Durations::EMPTY;

/// Records a duration of a target. There is room for all kinds of all targets.
#[inline(always)]
pub fn lasted(slot: u32, kind: u32, duration_ns: u64) {
    let key = durations_key(slot, kind);
    if DURATIONS.get_ptr(key).is_none() {
        // Another CPU may have been faster.
        let _ = DURATIONS.insert(key, &NONE, NOEXIST);
    }
    if let Some(durations) = DURATIONS.get_ptr_mut(key) {
        // SAFETY: a live map value.
        unsafe { record(&raw mut (*durations).octaves, duration_ns) };
    }
}

/// Adds to a count that another CPU, or whoever interrupts this one, may add to at the same time.
///
/// # Safety
/// `count` is a live map value's, and aligned.
#[inline(always)]
pub unsafe fn add(count: *mut u64, n: u64) {
    // The compiler knows no atomic addition for this target. The kernel has had this one since it has had maps.
    // SAFETY: as promised.
    unsafe { asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) count, in(reg) n, options(nostack)) };
}

/// Records a value in a histogram that others may record in at the same time.
///
/// # Safety
/// `histogram` is a live map value's.
#[inline(always)]
pub unsafe fn record(histogram: *mut Octaves, value: u64) {
    let index = octave(value);
    // SAFETY: as promised, and in bounds; the verifier needs the bound in front of it.
    unsafe {
        if index < OCTAVES {
            add((&raw mut (*histogram).buckets).cast::<u64>().add(index), 1);
        }
        add(&raw mut (*histogram).sum, value);
    }
}
