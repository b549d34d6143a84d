//! The only writer of the ring buffer. A full ring is counted, never waited for.

use profiler_common::counter::Counter;
use profiler_common::event::{ProcessRecord, SampleHead, SampleRecord, SpawnStack, TaskRecord, ThreadRecord};

use crate::maps::{EVENTS, count};
use crate::offsets;

const BPF_RB_NO_WAKEUP: u64 = 1;
const BPF_RB_FORCE_WAKEUP: u64 = 2;
const BPF_RB_AVAIL_DATA: u64 = 0;

/// Submits a task record. The reader polls; it is woken only when much is waiting, since a wake-up per event costs
/// the target more than the probe. False where there was no room, which is counted.
#[inline(always)]
pub fn task(record: TaskRecord) -> bool {
    let Some(mut entry) = EVENTS.reserve::<TaskRecord>(0) else {
        count(Counter::RingFullTask);
        return false;
    };
    entry.write(record);
    let waiting = EVENTS.query(BPF_RB_AVAIL_DATA);
    entry.submit(if waiting as usize >= offsets::ring_wakeup_bytes() { BPF_RB_FORCE_WAKEUP } else { BPF_RB_NO_WAKEUP });
    true
}

/// Has `fill` write a stack where the ring has room to spare: lifecycles come first. `fill` says whether it could.
#[inline(always)]
pub fn spawn_stack(fill: impl FnOnce(*mut SpawnStack) -> bool) {
    if EVENTS.query(BPF_RB_AVAIL_DATA) as usize >= offsets::ring_wakeup_bytes() {
        count(Counter::SpawnStacksSkipped);
        return;
    }
    let Some(mut entry) = EVENTS.reserve::<SpawnStack>(0) else {
        count(Counter::SpawnStacksSkipped);
        return;
    };
    if fill(entry.as_mut_ptr()) {
        count(Counter::SpawnStacks);
        entry.submit(BPF_RB_NO_WAKEUP);
    } else {
        count(Counter::SpawnStacksSkipped);
        entry.discard(BPF_RB_NO_WAKEUP);
    }
}

/// Submits a process record. Where user space is to act on it at once, it is `urgent`.
#[inline(always)]
pub fn process(record: ProcessRecord, urgent: bool) {
    let Some(mut entry) = EVENTS.reserve::<ProcessRecord>(0) else {
        count(Counter::RingFullProcess);
        return;
    };
    entry.write(record);
    entry.submit(if urgent || is_crowded() { BPF_RB_FORCE_WAKEUP } else { BPF_RB_NO_WAKEUP });
}

/// Submits the record of a thread that ended, as those of tasks.
#[inline(always)]
pub fn thread(record: ThreadRecord) {
    let Some(mut entry) = EVENTS.reserve::<ThreadRecord>(0) else {
        count(Counter::RingFullThread);
        return;
    };
    entry.write(record);
    entry.submit(if is_crowded() { BPF_RB_FORCE_WAKEUP } else { BPF_RB_NO_WAKEUP });
}

/// Whether so much is waiting that records should be short.
#[inline(always)]
pub fn is_crowded() -> bool {
    EVENTS.query(BPF_RB_AVAIL_DATA) as usize >= offsets::ring_wakeup_bytes()
}

/// Submits the head of a sample and the first `BYTES` of its stack.
#[inline(always)]
pub fn sample<const BYTES: usize>(record: &SampleRecord) {
    #[repr(C, align(8))]
    struct Sample<const BYTES: usize> {
        head: [u8; size_of::<SampleHead>()],
        stack: [u8; BYTES],
    }
    const { assert!(size_of::<Sample<BYTES>>() <= size_of::<SampleRecord>()) };
    // SAFETY: a sample is not longer than the record, begins as it does, and is as aligned; any bytes are one.
    let sample = unsafe { &*core::ptr::from_ref(record).cast::<Sample<BYTES>>() };
    if EVENTS.output::<Sample<BYTES>>(sample, BPF_RB_NO_WAKEUP).is_err() {
        count(Counter::RingFullSample);
    }
}
