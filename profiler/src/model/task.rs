//! One task, and the tasks of one target that live. Never counts, never who spawned whom.

use super::index::Index;
use super::slots::Slots;
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

/// A task that lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Task {
    /// When it was spawned, or found, nanoseconds.
    pub since_ns: u64,
    id: Option<u64>,
    kind: TypeId,
    found: bool,
}

impl Task {
    pub(super) fn new(kind: TypeId, id: Option<u64>, since_ns: u64, found: bool) -> Task {
        Task { since_ns, id, kind, found }
    }

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
        self.id
    }

    /// Whether an event at the same address is this task's: the same id, or where one is missing, the same type.
    pub fn is(&self, id: Option<u64>, kind: TypeId) -> bool {
        match (self.id(), id) {
            (Some(mine), Some(theirs)) => mine == theirs,
            _ => self.kind == kind,
        }
    }
}

/// The tasks of one target that live and are tracked, by address and by id. There may be a million: each takes 28
/// bytes and two index entries of some 7, and what a burst took is given back when its tasks have ended.
#[derive(Default)]
pub struct Tasks {
    slots: Slots,
    by_address: Index,
    by_id: Index,
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
        if let Some(slot) = self.slot(address) {
            self.slots.spawn_seen(slot, spawn_ns);
        }
    }

    fn put(&mut self, task: TaskRef, kind: TypeId, since_ns: u64, found: bool) {
        debug_assert!(self.slot(task.address).is_none(), "two tasks at one address");
        let slot = self.slots.insert(task.address, Task::new(kind, task.id, since_ns, found));
        self.by_address.insert(task.address, slot, |slot| self.slots.address(slot));
        if let Some(id) = task.id {
            self.by_id.insert(id, slot, |slot| self.slots.id(slot));
        }
    }

    fn slot(&self, address: u64) -> Option<u32> {
        self.by_address.find(address, |slot| self.slots.address(slot) == address)
    }

    /// The task at `address`.
    pub fn at(&self, address: u64) -> Option<Task> {
        self.slots.get(self.slot(address)?)
    }

    /// No longer tracks the task at `address`.
    pub fn remove(&mut self, address: u64) -> Option<Task> {
        let slots = &self.slots;
        let slot = self.by_address.remove(address, |s| slots.address(s) == address, |s| slots.address(s))?;
        let task = slots.get(slot)?;
        if let Some(id) = task.id() {
            self.by_id.remove(id, |other| other == slot, |s| slots.id(s));
        }
        self.slots.remove(slot);
        Some(task)
    }

    /// The type of the task with this id.
    pub fn kind_of_id(&self, id: u64) -> Option<TypeId> {
        let slot = self.by_id.find(id, |slot| self.slots.id(slot) == id)?;
        self.slots.get(slot).map(|task| task.kind())
    }

    /// Number of tasks.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn task(number: u64, with_id: bool) -> TaskRef {
        TaskRef { address: number * 128, id: with_id.then_some(number + 1) }
    }

    proptest! {
        /// Check that tasks that come and go are what a plain map has, whatever their order, ids and types.
        #[test]
        fn tasks_are_those_of_a_map(
            steps in prop::collection::vec((0u64..600, any::<bool>(), any::<u32>(), any::<u64>(), any::<bool>()), 0..2000),
        ) {
            let mut tasks = Tasks::default();
            let mut map: HashMap<u64, Task> = HashMap::new();
            for (number, with_id, kind, since_ns, found) in steps {
                let (task, kind) = (task(number, with_id), TypeId(kind >> 2));
                if let Some(there) = map.remove(&task.address) {
                    if found && there.spawn_ns().is_none() {
                        tasks.spawn_seen(task.address, since_ns);
                        map.insert(task.address, Task { since_ns, found: false, ..there });
                    } else {
                        prop_assert_eq!(tasks.remove(task.address), Some(there));
                    }
                } else {
                    prop_assert_eq!(tasks.remove(task.address), None);
                    tasks.put(task, kind, since_ns, found);
                    map.insert(task.address, Task::new(kind, task.id, since_ns, found));
                }
                prop_assert_eq!(tasks.at(task.address), map.get(&task.address).copied());
                let by_id = map.get(&task.address).filter(|task| task.id.is_some()).map(|task| task.kind);
                prop_assert_eq!(tasks.kind_of_id(number + 1), by_id);
                prop_assert_eq!(tasks.len(), map.len());
            }
            for (&address, &task) in &map {
                prop_assert_eq!(tasks.at(address), Some(task));
            }
        }
    }

    /// Check that what a burst took is given back, and that those who were there before and come later stay.
    #[test]
    fn memory_is_given_back_after_a_burst() {
        let mut tasks = Tasks::default();
        for number in 0..300_000 {
            tasks.insert(task(number, true), TypeId(3), number);
        }
        assert_eq!(tasks.slots.places(), 300_000usize.next_multiple_of(8192));
        for number in 1000..300_000 {
            assert_eq!(tasks.remove(number * 128).map(|task| task.since_ns), Some(number));
        }
        assert!(tasks.slots.places() <= 3 * 8192, "{} places", tasks.slots.places());
        assert!(tasks.by_address.capacity() + tasks.by_id.capacity() < 20_000);
        for number in 0..1000 {
            assert_eq!(tasks.at(number * 128), Some(Task::new(TypeId(3), Some(number + 1), number, false)));
        }
        for number in 1000..50_000 {
            tasks.insert(task(number, number % 2 == 0), TypeId(4), number);
        }
        assert_eq!((tasks.len(), tasks.kind_of_id(2001), tasks.kind_of_id(2002)), (50_000, Some(TypeId(4)), None));
    }
}
