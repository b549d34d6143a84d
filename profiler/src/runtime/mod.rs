//! Adapters, one folder per runtime: what a binary is, where to probe it, and what its records mean.
//! Never an exporter, never another runtime, never aya.

mod extension;
mod place;
mod record;
pub mod ruby;
pub mod stack;
#[cfg(test)]
mod tests;
pub mod tokio;
mod walk;

use std::collections::HashMap;

pub use self::walk::{Activity, Effort, FoundTask, Tally, Totals, Walk, Walked};
use profiler_common::event::TaskRecord;
pub use profiler_common::map::IdPlace;
use profiler_common::map::{Argument, TaskLayout};

pub use self::extension::{Extension, ExtensionPlan};
pub use self::place::{SpawnSite, short_path};
pub use self::record::{Instance, Untranslated};
pub use self::stack::PollCode;
use crate::event::TypeId;
use crate::target::elf::Binary;
use crate::target::memory::Memory;
use crate::target::process::Process;

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

    /// Where the runtime is in a shared library that this program asks for: what tells whether a file that is mapped is it,
    /// by its name without the directory. It is that library then which is detected.
    fn library(&self, _: &Binary<'_>) -> Option<IsLibrary> {
        None
    }

    /// Whether the program is another implementation of what this runtime runs, which is not supported: what to say of it, for
    /// people.
    fn refuses(&self, _: &Command<'_>) -> Option<&'static str> {
        None
    }

    /// How often a process has collected garbage since it began, where it is kept beside its clocks: those that its pauses have
    /// shown at the lowest and the highest address. `None` where that is not known.
    fn collections(&self, _: &Plan, _: &dyn Memory, _low: u64, _high: u64) -> Option<u64> {
        None
    }

    /// A library of others that processes of this runtime may load, and that has work of its own to be seen.
    fn extension(&self) -> Option<&'static Extension> {
        None
    }

    /// What names the types of tasks that are met while a process runs; `None` where the binary has them all.
    fn naming(&self, _: &Plan) -> Option<Box<dyn Naming>> {
        None
    }

    /// Where tasks of a type were spawned on each of these stacks; `None` where that cannot be told.
    fn spawn_sites(&self, binary: &Binary<'_>, stacks: &[SpawnPath]) -> Vec<Option<SpawnSite>>;

    /// How the tasks of processes that run this binary are read from their memory.
    ///
    /// # Errors
    /// Why they are not, for people.
    fn walk(&self, binary: &Binary<'_>) -> Result<WalkAt, String>;
}

/// How a program was started, as it tells itself.
#[derive(Clone, Copy, Debug)]
pub struct Command<'a> {
    /// Path of its executable, as it sees it.
    pub executable: &'a str,
    /// Its arguments, the first of which is its name.
    pub arguments: &'a [String],
}

impl Command<'_> {
    /// The executable's name without its directory.
    pub fn name(&self) -> &str {
        self.executable.rsplit('/').next().unwrap_or(self.executable)
    }
}

/// The library of a runtime that this program asks for: whose, and what tells it.
pub fn library_of(binary: &Binary<'_>) -> Option<(&'static dyn Runtime, IsLibrary)> {
    RUNTIMES.iter().find_map(|runtime| Some((*runtime, runtime.library(binary)?)))
}

/// Why a process of an implementation that is known to be none of ours is not looked into.
pub fn refusal_of(process: &Process) -> Option<&'static str> {
    let executable = process.executable().ok()?;
    let command = Command { executable: &executable, arguments: &process.arguments() };
    RUNTIMES.iter().find_map(|runtime| runtime.refuses(&command))
}

/// Whether a mapped file is a runtime's library, by its name without the directory.
pub type IsLibrary = fn(&str) -> bool;

/// Names types of tasks that only the process's memory tells.
pub trait Naming {
    /// The type that a record of one tells of; `None` where the memory does not tell.
    fn name(&self, memory: &dyn Memory, record: &TaskRecord) -> Option<TaskType>;

    /// The type of those whose record tells nothing.
    fn unknown(&self) -> TaskType;
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
    /// Whoever runs when a task is born is its parent.
    Transfer,
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
    /// A thread goes straight from one task, which is a coroutine, to another: births, ends and polls in one.
    Transfer,
    /// A pause of the runtime begins or ends.
    Pause,
    /// A coroutine is about to wait; the displacement is for what: one of [`profiler_common::coroutine::wait`].
    Wait,
    /// A thread waits for the lock under which the runtime runs its code, or does so no longer; the displacement says what the
    /// site tells: one of [`profiler_common::lock::tells`].
    Lock,
    /// Work is deferred, run, or done; the displacement says which: one of [`profiler_common::deferred::tells`].
    Deferred,
}

impl Hook {
    /// All hooks. Ends come before beginnings: what ends is not measured before it was seen to begin.
    pub const ALL: [Hook; 11] = [
        Hook::Complete,
        Hook::PollEnd,
        Hook::WakeByValue,
        Hook::WakeByRef,
        Hook::PollStart,
        Hook::Spawn,
        Hook::Transfer,
        Hook::Pause,
        Hook::Wait,
        Hook::Lock,
        Hook::Deferred,
    ];

    /// Whether it tells of polls and wakes, rather than of a task's birth or end.
    pub const fn is_poll(self) -> bool {
        matches!(self, Hook::PollStart | Hook::PollEnd | Hook::WakeByValue | Hook::WakeByRef | Hook::Wait | Hook::Lock)
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

impl Plan {
    /// Whether there is a probe of a hook.
    pub fn has(&self, hook: Hook) -> bool {
        self.probes.iter().any(|probe| probe.hook == hook)
    }

    /// Whether polls are seen from begin to end.
    pub fn has_polls(&self) -> bool {
        (self.has(Hook::PollStart) && self.has(Hook::PollEnd)) || self.has(Hook::Transfer)
    }

    /// Whether it can be told what a thread runs when the CPU clock ticks.
    pub fn can_sample(&self) -> bool {
        self.lineage == Lineage::ThreadLocal || !self.polls.is_empty()
    }

    /// A plan that says why nothing is probed.
    pub fn without_probes(
        runtime: &'static str,
        version: Option<String>,
        signals: &[&'static str],
        reason: &str,
    ) -> Plan {
        Plan {
            runtime,
            version,
            probes: Vec::new(),
            signals: signals.iter().map(|&name| Signal { name, state: Err(reason.to_owned()) }).collect(),
            layout: TaskLayout::default(),
            lineage: Lineage::Unknown,
            outcome: false,
            types: Vec::new(),
            type_by_vtable: HashMap::new(),
            polls: Vec::new(),
        }
    }

    /// The type with this vtable in a process.
    pub fn type_at(&self, vtable: u64, load_bias: u64) -> Option<TypeId> {
        self.type_by_vtable.get(&vtable.checked_sub(load_bias)?).copied()
    }
}
