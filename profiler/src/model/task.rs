//! One task, and the tasks of one target that live. Never counts, never who spawned whom.

use rustc_hash::FxHashMap;

use crate::event::{TaskRef, TypeId};

/// What never changes about a type of task.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TypeInfo {
    /// Short name.
    pub name: String,
    /// Full name, where known.
    pub full_name: Option<String>,
    /// Other names that its code may have.
    pub aliases: Vec<String>,
    /// Whether its tasks are blocking closures.
    pub blocking: bool,
    /// Whether the runtime itself spawns it.
    pub internal: bool,
    /// Where it may be spawned, as far as its binary alone tells.
    pub spawn_sites: Vec<SiteInfo>,
}

/// A place where tasks are spawned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SiteInfo {
    /// For people and labels.
    pub name: String,
    /// In full.
    pub place: String,
    /// Whether it is a line, rather than a function or a file.
    pub exact: bool,
}

/// A task that lives. Kept small: there may be a million.
#[derive(Clone, Copy, Debug)]
pub struct Task {
    /// When it was spawned, or found, nanoseconds.
    pub since_ns: u64,
    id: u64,
    kind: TypeId,
    has_id: bool,
    found: bool,
}

const _: () = assert!(size_of::<(u64, Task)>() <= 48);

impl Task {
    /// Its type.
    pub fn kind(&self) -> TypeId {
        self.kind
    }

    /// When it was spawned, nanoseconds; `None` where that was not seen.
    pub fn spawn_ns(&self) -> Option<u64> {
        (!self.found).then_some(self.since_ns)
    }

    /// The runtime's id, where known.
    pub fn id(&self) -> Option<u64> {
        self.has_id.then_some(self.id)
    }

    /// Whether an event at the same address is this task's: the same id, or where one is missing, the same type.
    pub fn is(&self, id: Option<u64>, kind: TypeId) -> bool {
        match (self.id(), id) {
            (Some(mine), Some(theirs)) => mine == theirs,
            _ => self.kind == kind,
        }
    }
}

/// The tasks of one target that live and are tracked, by address and by id.
#[derive(Default)]
pub struct Tasks {
    by_address: FxHashMap<u64, Task>,
    kind_by_id: FxHashMap<u64, TypeId>,
}

impl Tasks {
    /// Tracks a task that was spawned. There must be none at its address.
    pub fn insert(&mut self, task: TaskRef, kind: TypeId, spawn_ns: u64) {
        self.put(task, kind, spawn_ns, false);
    }

    /// Tracks a task that was found. There must be none at its address.
    pub fn insert_found(&mut self, task: TaskRef, kind: TypeId, found_ns: u64) {
        self.put(task, kind, found_ns, true);
    }

    /// The spawn of a task that was found became known.
    pub fn spawn_seen(&mut self, address: u64, spawn_ns: u64) {
        if let Some(task) = self.by_address.get_mut(&address) {
            (task.since_ns, task.found) = (spawn_ns, false);
        }
    }

    fn put(&mut self, task: TaskRef, kind: TypeId, since_ns: u64, found: bool) {
        let entry = Task { since_ns, id: task.id.unwrap_or_default(), kind, has_id: task.id.is_some(), found };
        let earlier = self.by_address.insert(task.address, entry);
        debug_assert!(earlier.is_none(), "two tasks at one address");
        if let Some(id) = task.id {
            self.kind_by_id.insert(id, kind);
        }
    }

    /// The task at `address`.
    pub fn at(&self, address: u64) -> Option<&Task> {
        self.by_address.get(&address)
    }

    /// No longer tracks the task at `address`.
    pub fn remove(&mut self, address: u64) -> Option<Task> {
        let task = self.by_address.remove(&address)?;
        if let Some(id) = task.id() {
            self.kind_by_id.remove(&id);
        }
        Some(task)
    }

    /// The type of the task with this id.
    pub fn kind_of_id(&self, id: u64) -> Option<TypeId> {
        self.kind_by_id.get(&id).copied()
    }

    /// Number of tasks.
    pub fn len(&self) -> usize {
        self.by_address.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.by_address.is_empty()
    }
}
