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

/// A process was forked, or has replaced its image.
#[inline(always)]
pub fn began(pid: u32) {
    if wanted() && YOUNG.insert(pid, now(), 0).is_err() {
        count(Counter::YoungFull);
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
