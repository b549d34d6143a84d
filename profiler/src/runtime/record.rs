//! From the raw records of a process to neutral events, by the plan of its build. Never a runtime's own shapes.

use profiler_common::event::{Header, SampleHead, TaskRecord, flag, kind, sample_flag};
use rustc_hash::FxHashMap;

use super::{Plan, stack};
use crate::event::{CpuSample, Current, Outcome, Parent, TaskEvent, TaskRef, TypeId};

/// Spreads process ids over all bits of an address (2^64 divided by the golden ratio).
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

/// What remains to be known of a process to translate its records.
#[derive(Clone, Debug)]
pub struct Instance<'p> {
    /// The plan of its build.
    pub plan: &'p Plan,
    /// Runtime address minus the file's virtual address.
    pub load_bias: u64,
    /// The process that is watched; another one is a forked child of it.
    pub root: u32,
    /// Types that were met while it runs, by the key that their records have for a vtable.
    pub met: &'p FxHashMap<u64, TypeId>,
}

/// Why a record could not be translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Untranslated {
    /// The vtable is none of the plan's: not a task, or the target's memory changed under the probe.
    ForeignVtable,
    /// The record's kind is none of this runtime's.
    ForeignKind,
}

impl Instance<'_> {
    /// The type of a task, by its vtable or, without one, by the site that was hit.
    pub fn kind(&self, header: &Header, vtable: u64) -> Option<TypeId> {
        if vtable == 0 {
            return self.plan.probes.get(header.site as usize).and_then(|probe| probe.kind);
        }
        self.type_at(vtable)
    }

    /// The type with this vtable, or this key.
    pub fn type_at(&self, vtable: u64) -> Option<TypeId> {
        self.plan.type_at(vtable, self.load_bias).or_else(|| self.met.get(&vtable).copied())
    }

    /// Makes a neutral event of a raw record.
    ///
    /// # Errors
    /// The record is not of a task that the plan knows.
    pub fn translate(&self, record: &TaskRecord) -> Result<TaskEvent, Untranslated> {
        let of = self.kind(&record.header, record.vtable).ok_or(Untranslated::ForeignVtable)?;
        let pid = record.header.pid;
        let task = TaskRef { address: self.address(pid, record.task), id: (record.id != 0).then_some(record.id) };
        let flags = record.header.flags;
        match record.header.kind {
            kind::TASK_SPAWNED => Ok(TaskEvent::Spawned { task, kind: of, parent: self.parent(record) }),
            kind::TASK_FOUND => Ok(TaskEvent::Found { task, kind: of }),
            kind::TASK_COMPLETED => Ok(TaskEvent::Completed { task, kind: of, outcome: outcome(flags) }),
            _ => Err(Untranslated::ForeignKind),
        }
    }

    /// An address as the model has it. Forked children have tasks of their own at the same addresses as their parent.
    fn address(&self, pid: u32, address: u64) -> u64 {
        if pid == self.root { address } else { address ^ u64::from(pid).wrapping_mul(SPREAD) }
    }

    /// Who spawned a task, by the flags of its record.
    fn parent(&self, record: &TaskRecord) -> Parent {
        let flags = record.header.flags;
        match record.parent {
            _ if flags & flag::PARENT_KNOWN == 0 => Parent::Unknown,
            0 => Parent::None,
            address if flags & flag::PARENT_IS_ADDRESS != 0 => {
                Parent::Address(self.address(record.header.pid, address))
            }
            id => Parent::Id(id),
        }
    }

    /// Makes a neutral sample of a raw one. `period_ns` is the time that it stands for.
    pub fn attribute(&self, head: &SampleHead, words: &[u64], period_ns: u64) -> CpuSample {
        let flags = head.header.flags;
        let current = match head.task {
            _ if flags & sample_flag::TASK_KNOWN == 0 => Current::Unknown,
            0 => Current::None,
            id => Current::Id(id),
        };
        // Without a piece of the stack, that nothing was found says nothing.
        let seen = flags & sample_flag::REGISTERS_KNOWN != 0 && !words.is_empty();
        let stack = seen.then(|| stack::innermost(&self.plan.polls, self.load_bias, head.ip, words));
        CpuSample { tid: head.header.tid, sleeps: head.sleeps, cpu_ns: head.cpu_ns, period_ns, current, stack }
    }
}

/// A task that was asked to cancel may have returned first: only its result tells. Where that cannot be read, the
/// request is taken for the deed.
fn outcome(flags: u16) -> Outcome {
    let known = flags & flag::OUTCOME_KNOWN != 0;
    if flags & flag::PANICKED != 0 {
        Outcome::Panicked
    } else if flags & flag::CANCELLED != 0 || (!known && flags & flag::CANCEL_REQUESTED != 0) {
        Outcome::Cancelled
    } else if known {
        Outcome::Completed
    } else {
        Outcome::Unknown
    }
}

#[cfg(test)]
mod tests;
