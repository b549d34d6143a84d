//! Durations that are counted by target and kind: pauses, waits, jobs. Never whose they are.

use crate::coroutine::wait;
use crate::histogram::Octaves;

/// Durations of one kind of a target. Key: [`durations_key`].
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Durations {
    /// Nanoseconds.
    pub octaves: Octaves,
}

impl Durations {
    /// None.
    pub const EMPTY: Durations = Durations { octaves: Octaves::EMPTY };
}

/// The key of durations of a target's slot, and of what: [`PAUSE_KIND`], a [`wait`] and one, [`JOB_KIND`],
/// [`FETCH_KIND`], [`LOCK_KIND`], [`DEFERRED_WAIT_KIND`] or [`DEFERRED_RUN_KIND`].
pub const fn durations_key(slot: u32, kind: u32) -> u32 {
    slot | kind << 16
}

/// The slot and the kind of a key.
pub const fn durations_of(key: u32) -> (u32, u32) {
    (key & 0xffff, key >> 16)
}

/// Kind of durations: pauses, without the time off the CPU.
pub const PAUSE_KIND: u32 = 0;
/// Kind of durations: jobs of threads that take them from a queue.
pub const JOB_KIND: u32 = 1 + wait::COUNT as u32;
/// Kind of durations: waits of those threads for a job.
pub const FETCH_KIND: u32 = 2 + wait::COUNT as u32;
/// Kind of durations: waits for the lock under which the runtime runs its code.
pub const LOCK_KIND: u32 = 3 + wait::COUNT as u32;
/// Kind of durations: waits of deferred work until it is run.
pub const DEFERRED_WAIT_KIND: u32 = 4 + wait::COUNT as u32;
/// Kind of durations: runs of deferred work.
pub const DEFERRED_RUN_KIND: u32 = 5 + wait::COUNT as u32;
/// Kinds of durations that there are.
pub const DURATION_KINDS: u32 = 6 + wait::COUNT as u32;

/// A pause that has begun. Key: thread id.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pause {
    /// When, nanoseconds.
    pub start_ns: u64,
    /// How long the thread had been off the CPU until then, nanoseconds.
    pub off_cpu_ns: u64,
    /// The span in which that was, see [`crate::coroutine::CoroutineLayout::span`].
    pub span: u32,
    /// Always 0.
    pub reserved: u32,
}

/// Where a runtime keeps when its pauses began: the lowest and the highest address. Key: process id.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Clocks {
    /// The lowest.
    pub low: u64,
    /// The highest.
    pub high: u64,
}

const _: () = assert!(size_of::<Pause>() == 24);
const _: () = assert!(size_of::<Clocks>() == 16);
const _: () = assert!(size_of::<Durations>() == size_of::<Octaves>());
