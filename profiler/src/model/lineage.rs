//! Who spawned whom, by type. Never which task.

use std::collections::VecDeque;

use rustc_hash::FxHashMap;

use super::task::{Tasks, TypeInfo};
use crate::event::{Parent, TypeId};

/// Tasks that ended lately and are still known as parents: what a task drops as it ends may spawn.
const RECENT: usize = 512;

/// The parent's side of a counted edge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ParentType {
    /// A task of this type.
    Type(TypeId),
    /// No task of the application.
    None,
    /// It is not known, and will not be.
    Unknown,
}

/// The edges of one target.
pub struct Lineage {
    edges: FxHashMap<(ParentType, TypeId), u64>,
    /// Spawns whose parent's type is not known yet, by the parent's id: an id may be learned only at the task's end.
    unresolved: FxHashMap<u64, Vec<(TypeId, u64)>>,
    /// The ids of `unresolved`, oldest first. An id that was resolved stays here until its turn comes.
    oldest: VecDeque<u64>,
    /// Most ids in `oldest`.
    limit: usize,
    recent: Recent,
}

impl Lineage {
    /// Waits for the ids of at most `limit` parents.
    pub fn new(limit: usize) -> Lineage {
        Lineage {
            edges: FxHashMap::default(),
            unresolved: FxHashMap::default(),
            oldest: VecDeque::new(),
            limit,
            recent: Recent::default(),
        }
    }

    /// Counts a spawn.
    pub fn spawned(&mut self, parent: Parent, child: TypeId, tasks: &Tasks, types: &[TypeInfo]) {
        let parent = match parent {
            Parent::Unknown => ParentType::Unknown,
            Parent::None => ParentType::None,
            Parent::Id(id) => match tasks.kind_of_id(id).or_else(|| self.recent.by_id(id)) {
                Some(kind) => parent_type(kind, types),
                None => return self.wait(id, child),
            },
            Parent::Address(address) => match self.recent_or_live(address, tasks) {
                Some(kind) => parent_type(kind, types),
                None => ParentType::Unknown,
            },
        };
        *self.edges.entry((parent, child)).or_default() += 1;
    }

    fn recent_or_live(&self, address: u64, tasks: &Tasks) -> Option<TypeId> {
        tasks.at(address).map(|task| task.kind()).or_else(|| self.recent.by_address(address))
    }

    fn wait(&mut self, id: u64, child: TypeId) {
        if let Some(children) = self.unresolved.get_mut(&id) {
            match children.iter_mut().find(|(kind, _)| *kind == child) {
                Some((_, spawns)) => *spawns += 1,
                None => children.push((child, 1)),
            }
            return;
        }
        while self.oldest.len() >= self.limit {
            let Some(oldest) = self.oldest.pop_front() else { break };
            self.resolve(oldest, ParentType::Unknown);
        }
        self.unresolved.insert(id, vec![(child, 1)]);
        self.oldest.push_back(id);
    }

    fn resolve(&mut self, id: u64, parent: ParentType) {
        for (child, spawns) in self.unresolved.remove(&id).into_iter().flatten() {
            *self.edges.entry((parent, child)).or_default() += spawns;
        }
    }

    /// The type of the task with this id has become known.
    pub fn learned(&mut self, id: u64, kind: TypeId, types: &[TypeInfo]) {
        if !self.unresolved.is_empty() {
            self.resolve(id, parent_type(kind, types));
        }
    }

    /// A task has ended.
    pub fn ended(&mut self, address: u64, id: Option<u64>, kind: TypeId) {
        self.recent.put(address, id, kind);
    }

    /// The type of a task that ended lately.
    pub fn ended_lately(&self, id: u64) -> Option<TypeId> {
        self.recent.by_id(id)
    }

    /// The target has ended: what is not known will not be.
    pub fn close(&mut self) {
        for id in std::mem::take(&mut self.oldest) {
            self.resolve(id, ParentType::Unknown);
        }
        self.recent = Recent::default();
    }

    /// All edges; those that wait for their parent's type are unknown for now.
    pub fn edges(&self) -> Vec<(ParentType, TypeId, u64)> {
        let mut edges = self.edges.clone();
        for (child, spawns) in self.unresolved.values().flatten() {
            *edges.entry((ParentType::Unknown, *child)).or_default() += spawns;
        }
        edges.into_iter().map(|((parent, child), spawns)| (parent, child, spawns)).collect()
    }
}

/// The runtime's own tasks run the application's top-level code: what that spawns, no task of the application did.
fn parent_type(kind: TypeId, types: &[TypeInfo]) -> ParentType {
    match types.get(kind.0 as usize) {
        Some(info) if info.internal => ParentType::None,
        Some(_) => ParentType::Type(kind),
        None => ParentType::Unknown,
    }
}

/// A fixed number of tasks that ended lately. A slot per key's hash, so that it costs one store per end;
/// ids that follow each other never share a slot.
#[derive(Default)]
struct Recent {
    ids: Vec<Option<(u64, TypeId)>>,
    addresses: Vec<Option<(u64, TypeId)>>,
}

impl Recent {
    fn put(&mut self, address: u64, id: Option<u64>, kind: TypeId) {
        if self.addresses.is_empty() {
            self.addresses.resize(RECENT, None);
        }
        self.addresses[address_slot(address)] = Some((address, kind));
        if let Some(id) = id {
            if self.ids.is_empty() {
                self.ids.resize(RECENT, None);
            }
            self.ids[id as usize % RECENT] = Some((id, kind));
        }
    }

    fn by_id(&self, id: u64) -> Option<TypeId> {
        let (key, kind) = (*self.ids.get(id as usize % RECENT)?)?;
        (key == id).then_some(kind)
    }

    fn by_address(&self, address: u64) -> Option<TypeId> {
        let (key, kind) = (*self.addresses.get(address_slot(address))?)?;
        (key == address).then_some(kind)
    }
}

fn address_slot(address: u64) -> usize {
    // Fibonacci hashing: addresses are multiples of their alignment, and their low bits say little.
    (address.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48) as usize % RECENT
}
