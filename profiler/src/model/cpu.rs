//! CPU time of one target by what its threads did, from samples. Never where a sample comes from.

use rustc_hash::FxHashMap;

use super::residence::Residences;
use super::snapshot::{CpuSnapshot, LongRunSnapshot};
use super::task::TypeInfo;
use crate::event::{CpuSample, Current, TypeId};

/// What a sampled thread did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doing {
    /// It polled a task of this type.
    Task(TypeId),
    /// It ran the runtime itself.
    Scheduler,
    /// It ran none of the runtime's tasks.
    Other,
    /// It polled a task whose type could not be told.
    Unknown,
}

/// What a sample shows. `kind_of_id` knows the tasks that live or ended lately.
///
/// What the thread itself says is exact at that moment; its stack tells what that means where the task is not known,
/// and alone where the thread does not say. That no task is polled needs no stack.
pub fn doing(
    sample: &CpuSample,
    types: &[TypeInfo],
    strangers: &mut Strangers,
    kind_of_id: impl FnOnce(u64) -> Option<TypeId>,
) -> Doing {
    let kind = match sample.current {
        Current::None => return Doing::Other,
        Current::Id(id) => kind_of_id(id).or_else(|| strangers.kind(id, sample.stack.flatten()?, types)),
        Current::Unknown => match sample.stack {
            Some(None) => return Doing::Other,
            Some(kind) => kind,
            None => None,
        },
    };
    match kind.and_then(|kind| Some((kind, types.get(kind.0 as usize)?))) {
        Some((_, info)) if info.internal => Doing::Scheduler,
        Some((kind, _)) => Doing::Task(kind),
        None => Doing::Unknown,
    }
}

/// Tasks whose type only stacks tell, by id, and what was found on those.
///
/// A worker is such a task where it is older than the profiler. While it looks for work, its stack still holds what the
/// last poll has left there: then another type seems to be innermost. So what is the runtime's own at least every other
/// time is always so.
#[derive(Default)]
pub struct Strangers(FxHashMap<u64, Sightings>);

/// How often the innermost type on a task's stacks was the runtime's own, and how often it was not.
#[derive(Clone, Copy, Default)]
struct Sightings {
    own: (u32, Option<TypeId>),
    other: u32,
}

/// Tasks that are remembered: there are as many as threads, as a rule.
const MAX_STRANGERS: usize = 4096;

impl Strangers {
    /// The type of a task on whose stack `innermost` was found.
    fn kind(&mut self, id: u64, innermost: TypeId, types: &[TypeInfo]) -> Option<TypeId> {
        if self.0.len() >= MAX_STRANGERS && !self.0.contains_key(&id) {
            return Some(innermost);
        }
        let seen = self.0.entry(id).or_default();
        if types.get(innermost.0 as usize).is_some_and(|kind| kind.internal) {
            seen.own = (seen.own.0.saturating_add(1), Some(innermost));
        } else {
            seen.other = seen.other.saturating_add(1);
        }
        seen.own.1.filter(|_| seen.own.0 >= seen.other).or(Some(innermost))
    }
}

/// CPU time of one target, nanoseconds: each sample stands for the clock's period.
#[derive(Default)]
pub struct Cpu {
    by_type: FxHashMap<TypeId, u64>,
    /// Types in the order of first sight.
    seen: Vec<TypeId>,
    sums: CpuSnapshot,
    residences: Residences,
    /// Tasks of which no birth was seen, and that were not found either.
    pub strangers: Strangers,
}

impl Cpu {
    /// Takes a sample.
    pub fn take(&mut self, time_ns: u64, sample: &CpuSample, doing: Doing, types: &[TypeInfo]) {
        match doing {
            Doing::Task(kind) => {
                *self.by_type.entry(kind).or_insert_with(|| {
                    self.seen.push(kind);
                    0
                }) += sample.period_ns;
            }
            Doing::Scheduler => self.sums.scheduler_ns += sample.period_ns,
            Doing::Other => self.sums.other_ns += sample.period_ns,
            Doing::Unknown => self.sums.unknown_ns += sample.period_ns,
        }
        // A blocking closure may hold its thread: it is there for that.
        let task = match (sample.current, doing) {
            (Current::Id(id), Doing::Task(kind)) if types.get(kind.0 as usize).is_some_and(|t| !t.blocking) => {
                Some((id, kind))
            }
            _ => None,
        };
        self.residences.take(time_ns, sample, task);
    }

    /// Time has passed.
    pub fn advance(&mut self, now_ns: u64) {
        self.residences.advance(now_ns);
    }

    /// Types that were sampled, in the order of first sight.
    pub fn seen(&self) -> &[TypeId] {
        &self.seen
    }

    /// CPU time of one type.
    pub fn of_type(&self, kind: TypeId) -> u64 {
        self.by_type.get(&kind).copied().unwrap_or_default()
    }

    /// Long runs of one type; `None` where there was none.
    pub fn long_runs(&self, kind: TypeId) -> Option<LongRunSnapshot> {
        self.residences.of_type(kind)
    }

    /// CPU time outside of tasks.
    pub fn sums(&self) -> CpuSnapshot {
        self.sums
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: u64 = 7;
    const KNOWN: TypeId = TypeId(0);
    const OTHER: TypeId = TypeId(1);
    const WORKER: TypeId = TypeId(2);

    fn types() -> Vec<TypeInfo> {
        (0..3).map(|n| TypeInfo { internal: n == 2, ..TypeInfo::default() }).collect()
    }

    fn check(current: Current, stack: Option<Option<TypeId>>, known: Option<TypeId>, expected: Doing) {
        let sample = CpuSample { tid: 1, sleeps: 0, cpu_ns: 0, period_ns: 10, current, stack };
        let kind_of_id = |id| known.filter(|_| id == ID);
        assert_eq!(doing(&sample, &types(), &mut Strangers::default(), kind_of_id), expected, "{sample:?}");
    }

    /// Check that the task that a thread says it polls counts, whatever is on its stack.
    #[test]
    fn a_known_id_decides() {
        check(Current::Id(ID), Some(Some(OTHER)), Some(KNOWN), Doing::Task(KNOWN));
        check(Current::Id(ID), None, Some(KNOWN), Doing::Task(KNOWN));
        check(Current::Id(ID), Some(Some(KNOWN)), Some(WORKER), Doing::Scheduler);
        check(Current::None, Some(Some(KNOWN)), None, Doing::Other);
    }

    /// Check that the stack decides where the id says nothing, and that nothing is made up where neither does.
    #[test]
    fn the_stack_decides_where_the_id_does_not() {
        check(Current::Id(ID), Some(Some(OTHER)), None, Doing::Task(OTHER));
        check(Current::Id(ID), Some(Some(WORKER)), None, Doing::Scheduler);
        check(Current::Id(ID), Some(None), None, Doing::Unknown);
        check(Current::Id(ID), None, None, Doing::Unknown);
        check(Current::Unknown, Some(Some(OTHER)), None, Doing::Task(OTHER));
        check(Current::Unknown, Some(None), None, Doing::Other);
        check(Current::Unknown, None, None, Doing::Unknown);
        check(Current::Unknown, Some(Some(TypeId(9))), None, Doing::Unknown);
    }

    /// Check that what a worker's last poll left on its stack is not taken for a task of the worker's id.
    #[test]
    fn a_worker_that_is_not_known_is_told_by_most_of_its_stacks() {
        let mut strangers = Strangers::default();
        let mut of = |id, innermost: TypeId| {
            let sample = CpuSample {
                tid: 1,
                sleeps: 0,
                cpu_ns: 0,
                period_ns: 10,
                current: Current::Id(id),
                stack: Some(Some(innermost)),
            };
            doing(&sample, &types(), &mut strangers, |_| None)
        };
        assert_eq!(of(1, WORKER), Doing::Scheduler);
        assert_eq!(of(1, OTHER), Doing::Scheduler);
        assert_eq!(of(1, WORKER), Doing::Scheduler);
        assert_eq!(of(1, KNOWN), Doing::Scheduler);
        // A task whose own frame was not on the stack for once is no worker.
        assert_eq!([of(2, OTHER), of(2, OTHER)], [Doing::Task(OTHER); 2]);
        assert_eq!(of(2, WORKER), Doing::Scheduler);
        assert_eq!(of(2, OTHER), Doing::Task(OTHER));
    }

    /// Check that every sample is counted once.
    #[test]
    fn samples_are_counted_by_what_they_show() {
        let mut cpu = Cpu::default();
        let all = [Doing::Task(KNOWN), Doing::Task(OTHER), Doing::Task(KNOWN), Doing::Scheduler, Doing::Other];
        for (n, doing) in all.into_iter().enumerate() {
            let sample = CpuSample { tid: 1, sleeps: 0, cpu_ns: 0, period_ns: 10, current: Current::None, stack: None };
            cpu.take(n as u64 * 10, &sample, doing, &types());
        }
        assert_eq!(cpu.seen(), [KNOWN, OTHER]);
        assert_eq!((cpu.of_type(KNOWN), cpu.of_type(OTHER), cpu.of_type(WORKER)), (20, 10, 0));
        assert_eq!(cpu.sums(), CpuSnapshot { scheduler_ns: 10, other_ns: 10, unknown_ns: 0 });
    }
}
