//! Which target a record belongs to, and what becomes of it. Never where records come from.

use profiler_common::event::{TaskRecord, kind};

use super::target::Watched;
use super::targets::Targets;
use crate::decode::stack;
use crate::model::table::Table;
use crate::runtime::Untranslated;
use crate::trace::{self, Trace};

/// Records by what became of them.
#[derive(Default)]
pub(super) struct Tally {
    pub spawned: u64,
    pub completed: u64,
    pub found: u64,
    pub types: u64,
    pub slow_polls: u64,
    pub traced: u64,
    pub stacks: u64,
    pub forked: u64,
    pub execed: u64,
    pub exited: u64,
    pub threads_ended: u64,
    /// Children that the kernel half did not report.
    pub forks_unseen: u64,
    /// Forked children that ended before the probes of tasks were attached to them.
    pub ended_unprobed: u64,
    /// Ends of processes that the kernel half did not report.
    pub exits_unseen: u64,
    pub sampled: u64,
    pub malformed: u64,
    pub foreign_process: u64,
    pub foreign_vtable: u64,
}

/// A record of a task.
pub(super) fn take_task(record: &TaskRecord, targets: &mut Targets, table: &mut Table, tally: &mut Tally) {
    match record.header.kind {
        // For the trace only.
        kind::TASK_POLLED | kind::TASK_WOKEN => {
            tally.traced += 1;
            return;
        }
        kind::TASK_SPAWNED => tally.spawned += 1,
        kind::TASK_COMPLETED => tally.completed += 1,
        kind::TASK_FOUND => tally.found += 1,
        kind::TASK_TYPE => tally.types += 1,
        kind::TASK_SLOW_POLL => {
            tally.slow_polls += 1;
            if let Some(watched) = targets.of_mut(record.header.pid) {
                watched.slow_poll(record);
            }
            return;
        }
        _ => {}
    }
    let Some(probed) = targets.of_mut(record.header.pid).and_then(Watched::probed_mut) else {
        tally.foreign_process += 1;
        return;
    };
    if record.header.kind == kind::TASK_TYPE {
        probed.meet(record, table);
        return;
    }
    let event = match probed.instance().translate(record) {
        Err(Untranslated::ForeignVtable) if probed.is_met(record, table) => probed.instance().translate(record),
        event => event,
    };
    match event {
        Ok(event) => {
            probed.happened(record.header.pid, &event);
            table.apply(probed.table_id(), record.header.time_ns, event);
        }
        Err(_) => tally.foreign_vtable += 1,
    }
}

/// Writes a record of a task to the trace.
///
/// # Errors
/// The trace has ended.
pub(super) fn write_trace(trace: &mut Trace, record: &TaskRecord, targets: &Targets) -> Result<(), trace::End> {
    let probed = targets.of(record.header.pid).and_then(Watched::probed);
    probed.map_or(Ok(()), |probed| trace.add(record, probed.type_name(record)))
}

/// The copied stack of a spawn.
pub(super) fn take_stack(bytes: &[u8], targets: &mut Targets, tally: &mut Tally) {
    let Ok(sample) = stack::decode(bytes) else {
        tally.malformed += 1;
        return;
    };
    tally.stacks += 1;
    // Whoever ended meanwhile needs no site any more.
    if let Some(runtime) = targets.of_mut(sample.header.pid).and_then(Watched::probed_mut) {
        runtime.take_stack(sample);
    }
}
