//! Adapters, one folder per runtime: what a binary is, where to probe it, and what its records mean.
//! Never an exporter, never another runtime, never aya.

mod place;
pub mod ruby;
pub mod stack;
#[cfg(test)]
mod tests;
pub mod tokio;
mod walk;

use std::collections::HashMap;

pub use self::walk::{Activity, Effort, FoundTask, Tally, Totals, Walk, Walked};
use profiler_common::event::Header;
use profiler_common::event::{SampleHead, sample_flag};
pub use profiler_common::map::IdPlace;
use profiler_common::map::{Argument, TaskLayout};

pub use self::place::{SpawnSite, short_path};
pub use self::stack::PollCode;
use crate::event::{CpuSample, Current, TaskEvent, TypeId};
use crate::target::elf::Binary;

/// All runtimes, in the order in which they are asked.
pub const RUNTIMES: &[&dyn Runtime] = &[&tokio::Tokio, &ruby::Ruby];

/// Recognises a runtime and plans how to observe it.
pub trait Runtime: Sync {
    /// Name for the `runtime` label.
    fn name(&self) -> &'static str;

    /// `Ok(None)`: not this runtime's. `Ok(Some)`: a plan, which may say that nothing can be probed and why.
    ///
    /// # Errors
    /// It is this runtime's binary, but it is broken (truncated, hostile, contradictory).
    fn detect(&self, binary: &Binary<'_>) -> Result<Option<Plan>, DetectError>;

    /// Where tasks of a type were spawned on each of these stacks; `None` where that cannot be told.
    fn spawn_sites(&self, binary: &Binary<'_>, stacks: &[SpawnPath]) -> Vec<Option<SpawnSite>>;

    /// How the tasks of processes that run this binary are read from their memory.
    ///
    /// # Errors
    /// Why they are not, for people.
    fn walk(&self, binary: &Binary<'_>) -> Result<WalkAt, String>;
}

/// Makes what walks a process, by where its binary was loaded: runtime address minus the file's virtual address.
pub type WalkAt = Box<dyn Fn(u64) -> Box<dyn Walk>>;

/// A binary that could not be understood.
#[derive(Debug, thiserror::Error)]
pub enum DetectError {
    /// The file contradicts itself.
    #[error("failed to read {what}: {reason}")]
    Malformed {
        /// Which part of the file.
        what: &'static str,
        /// What is wrong with it.
        reason: String,
    },
}

/// What to probe in one build of a program, and how to read it. Pure data, cached per build.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The runtime's name.
    pub runtime: &'static str,
    /// The runtime's version, where the binary tells it.
    pub version: Option<String>,
    /// Probes to attach; their `site` is their index here.
    pub probes: Vec<ProbeSpec>,
    /// What can be seen, and what not, and why: one row per signal.
    pub signals: Vec<Signal>,
    /// Offsets that the probes need; image bounds are filled in per process.
    pub layout: TaskLayout,
    /// How the spawning task is found.
    pub lineage: Lineage,
    /// Whether a completed task's result can be inspected for its outcome.
    pub outcome: bool,
    /// Task types; a [`TypeId`] is an index here.
    pub types: Vec<TaskType>,
    /// Type by the virtual address (in the file's own terms) of its vtable.
    pub type_by_vtable: HashMap<u64, TypeId>,
    /// The code that polls each type, sorted by address, without overlaps.
    pub polls: Vec<PollCode>,
}

impl Plan {
    /// Whether only the stack tells where a task is spawned that is created at a probe: the binary alone tells no line
    /// of the application's, or several.
    pub fn wants_stacks(&self, probe: &ProbeSpec) -> bool {
        let told = |kind: TypeId| {
            let kind = self.types.get(kind.0 as usize);
            kind.is_some_and(|kind| kind.internal || matches!(kind.spawn_sites[..], [SpawnSite::Line { .. }]))
        };
        probe.hook == Hook::Spawn && !probe.kind.is_some_and(told)
    }
}

/// One thing that a plan can or cannot observe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signal {
    /// What: `task_spawn`, `task_complete`, `task_parent`, `task_outcome`, `task_name`, `task_polls`, `task_wakes`.
    pub name: &'static str,
    /// How it is found when it is (`by shape`, `by symbol`, …); else why it is not.
    pub state: Result<String, String>,
}

/// How the parent of a task is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lineage {
    /// The current task's id is read from the spawning thread's thread-local storage (`layout.current_task_tls`).
    ThreadLocal,
    /// Poll probes keep a stack of polled tasks per thread.
    PollStack,
    /// Not at all.
    Unknown,
}

/// What a probe observes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Hook {
    /// A task is created.
    Spawn,
    /// A task is completed.
    Complete,
    /// A poll begins.
    PollStart,
    /// A poll ends.
    PollEnd,
    /// A task is woken, and the waker used up.
    WakeByValue,
    /// A task is woken, and the waker kept.
    WakeByRef,
}

impl Hook {
    /// All hooks. Ends come before beginnings: what ends is not measured before it was seen to begin.
    pub const ALL: [Hook; 6] =
        [Hook::Complete, Hook::PollEnd, Hook::WakeByValue, Hook::WakeByRef, Hook::PollStart, Hook::Spawn];

    /// Whether it tells of polls and wakes, rather than of a task's birth or end.
    pub const fn is_poll(self) -> bool {
        matches!(self, Hook::PollStart | Hook::PollEnd | Hook::WakeByValue | Hook::WakeByRef)
    }
}

/// One probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeSpec {
    /// What it observes.
    pub hook: Hook,
    /// Offset of the probed instruction in the file (not its virtual address).
    pub file_offset: u64,
    /// Where the task pointer is when that instruction is reached.
    pub argument: Argument,
    /// Displacement from the stack pointer, for [`Argument::Stack`].
    pub displacement: i16,
    /// Where the site alone tells the type of the task (its vtable is then not read).
    pub kind: Option<TypeId>,
    /// Where the task's id is when that instruction is reached.
    pub id: IdPlace,
    /// Whether the kernel emulates the instruction, rather than single-stepping it at ten times the cost.
    pub emulated: bool,
}

/// How the code came to create a task.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SpawnPath {
    /// The task's type.
    pub kind: TypeId,
    /// Virtual addresses (in the file's own terms): that of the instruction at which the stack was copied, then those
    /// to which the functions return, innermost first.
    pub frames: Vec<u64>,
}

/// One type of task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskType {
    /// Short name for people and for the `task` label.
    pub name: String,
    /// The full, demangled name, where known.
    pub full_name: Option<String>,
    /// Other types whose code was merged with this one's: the name may be one of these.
    pub aliases: Vec<String>,
    /// Whether the tasks of this type are blocking closures rather than futures.
    pub blocking: bool,
    /// Whether the runtime itself spawns it (its workers), rather than the application.
    pub internal: bool,
    /// Where it may be spawned, as far as the binary alone tells; empty where it does not.
    pub spawn_sites: Vec<SpawnSite>,
}

/// What remains to be known of a process to translate its records.
#[derive(Clone, Debug)]
pub struct Instance<'p> {
    /// The plan of its build.
    pub plan: &'p Plan,
    /// Runtime address minus the file's virtual address.
    pub load_bias: u64,
}

/// Why a record could not be translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Untranslated {
    /// The vtable is none of the plan's: not a task, or the target's memory changed under the probe.
    ForeignVtable,
    /// The record's kind is none of this runtime's.
    ForeignKind,
}

impl Plan {
    /// Whether there is a probe of a hook.
    pub fn has(&self, hook: Hook) -> bool {
        self.probes.iter().any(|probe| probe.hook == hook)
    }

    /// Whether polls are seen from begin to end.
    pub fn has_polls(&self) -> bool {
        self.has(Hook::PollStart) && self.has(Hook::PollEnd)
    }

    /// The type with this vtable in a process.
    pub fn type_at(&self, vtable: u64, load_bias: u64) -> Option<TypeId> {
        self.type_by_vtable.get(&vtable.checked_sub(load_bias)?).copied()
    }
}

impl Instance<'_> {
    /// The type of a task, by its vtable or, without one, by the site that was hit.
    pub fn kind(&self, header: &Header, vtable: u64) -> Option<TypeId> {
        if vtable == 0 {
            return self.plan.probes.get(header.site as usize).and_then(|probe| probe.kind);
        }
        self.plan.type_at(vtable, self.load_bias)
    }

    /// Makes a neutral event of a raw record.
    ///
    /// # Errors
    /// The record is not of a task that the plan knows.
    pub fn translate(&self, record: &profiler_common::event::TaskRecord) -> Result<TaskEvent, Untranslated> {
        tokio::translate(self, record)
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
