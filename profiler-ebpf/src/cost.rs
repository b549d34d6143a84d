//! What probing costs each target: hits, and how long the programs take. Never what is done about it.

use profiler_common::map::{Probe, STORM_HITS, TIMED_EVERY};

use crate::maps::COSTS;
use crate::sched::now;

/// Counts the hit of a uprobe; true when so many have come on this CPU that user space must look at them.
#[inline(always)]
pub fn hit(slot: u32, probe: Probe) -> bool {
    let Some(cost) = COSTS.get_ptr_mut(slot) else { return false };
    // SAFETY: a per-CPU value; at worst a count is lost to a program that interrupts this one.
    unsafe {
        (*cost).hits[probe as usize] += 1;
        (*cost).traps += 1;
        (*cost).traps % STORM_HITS == 0
    }
}

/// Counts the hit of a hook of the kernel's.
#[inline(always)]
pub fn kernel_hit(slot: u32, probe: Probe) {
    if let Some(cost) = COSTS.get_ptr_mut(slot) {
        // SAFETY: as above.
        unsafe { (*cost).hits[probe as usize] += 1 };
    }
}

/// Notes how long a program took that began at `start_ns`, for one run of many: taking the time has its price, too.
#[inline(always)]
pub fn end(slot: u32, probe: Probe, start_ns: u64) {
    if start_ns % TIMED_EVERY != 0 {
        return;
    }
    if let Some(cost) = COSTS.get_ptr_mut(slot) {
        // SAFETY: as above.
        unsafe {
            (*cost).timed[probe as usize] += 1;
            (*cost).timed_ns[probe as usize] += now() - start_ns;
        }
    }
}
