//! Processes of all programs, from their beginning until user space has looked at them. Never which of them are wanted.

use profiler_common::counter::Counter;

use crate::maps::{YOUNG, count};
use crate::offsets;
use crate::sched::now;

/// Whether processes are to be found. User space freezes it before load.
#[inline(always)]
pub fn wanted() -> bool {
    offsets::discovery() != 0
}

/// A process was forked.
#[inline(always)]
pub fn forked(pid: u32) {
    if YOUNG.insert(pid, now(), 0).is_err() {
        count(Counter::YoungFull);
    }
}

/// A process has replaced its image: it begins anew. As a rule it was forked just before, and an entry that is there is
/// changed in half the time that it takes to put one in its place.
#[inline(always)]
pub fn execed(pid: u32) {
    if !wanted() {
        return;
    }
    match YOUNG.get_ptr_mut(pid) {
        // SAFETY: a live map value; only the process's own thread writes to it, and user space does not.
        Some(began_ns) => unsafe { *began_ns = now() },
        None => forked(pid),
    }
}

/// Whether a process was not looked at yet.
#[inline(always)]
pub fn is_young(pid: u32) -> bool {
    wanted() && YOUNG.get_ptr(pid).is_some()
}

/// A process has ended.
#[inline(always)]
pub fn ended(pid: u32) {
    let _ = YOUNG.remove(pid);
}
