//! The only writer of the ring buffer. A full ring is counted, never waited for.

use profiler_common::counter::Counter;
use profiler_common::event::{ProcessRecord, TaskRecord};

use crate::maps::{EVENTS, count};
use crate::offsets;

const BPF_RB_NO_WAKEUP: u64 = 1;
const BPF_RB_FORCE_WAKEUP: u64 = 2;
const BPF_RB_AVAIL_DATA: u64 = 0;

/// Submits a task record. The reader polls; it is woken only when much is waiting, since a wake-up per event costs
/// the target more than the probe.
#[inline(always)]
pub fn task(record: TaskRecord) {
    let Some(mut entry) = EVENTS.reserve::<TaskRecord>(0) else {
        count(Counter::RingFullTask);
        return;
    };
    entry.write(record);
    let waiting = EVENTS.query(BPF_RB_AVAIL_DATA);
    entry.submit(if waiting as usize >= offsets::ring_wakeup_bytes() { BPF_RB_FORCE_WAKEUP } else { BPF_RB_NO_WAKEUP });
}

/// Submits a process record. These are few, and user space acts on them: it is woken.
#[inline(always)]
pub fn process(record: ProcessRecord) {
    let Some(mut entry) = EVENTS.reserve::<ProcessRecord>(0) else {
        count(Counter::RingFullProcess);
        return;
    };
    entry.write(record);
    entry.submit(BPF_RB_FORCE_WAKEUP);
}
