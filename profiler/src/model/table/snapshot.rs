//! A target's tasks as a snapshot shows them: what has taken effect, and what still waits for its order.

use rustc_hash::FxHashMap;

use super::Target;
use crate::event::{TaskEvent, TypeId};
use crate::model::cpu::Cpu;
use crate::model::lineage::ParentType;
use crate::model::snapshot::{Edge, EdgeParent, TaskTypeSnapshot, TasksSnapshot};

impl Target {
    pub(super) fn snapshot(&self, held: &[(u64, TaskEvent)]) -> TasksSnapshot {
        let mut index = FxHashMap::default();
        let mut types = Vec::new();
        for &kind in self.counts.seen() {
            self.push_type(kind, &mut index, &mut types);
        }
        self.preview(held, &mut index, &mut types);
        if let Some(cpu) = &self.cpu {
            for &kind in cpu.seen() {
                self.push_type(kind, &mut index, &mut types);
            }
            for (&kind, &at) in &index {
                let is_internal = types[at].internal;
                types[at].cpu_ns = (!is_internal).then(|| cpu.of_type(kind));
                types[at].long_runs = cpu.long_runs(kind);
            }
        }
        if self.ending {
            types.iter_mut().for_each(|kind| kind.alive = 0);
        }
        let mut edges: Vec<Edge> = Vec::new();
        for (parent, child, spawns) in self.lineage.edges() {
            let parent = match parent {
                ParentType::Type(kind) => index.get(&kind).map_or(EdgeParent::Unknown, |&i| EdgeParent::Type(i)),
                ParentType::None => EdgeParent::None,
                ParentType::Unknown => EdgeParent::Unknown,
            };
            if let Some(&child) = index.get(&child) {
                edges.push(Edge { parent, child, spawns });
            }
        }
        edges.sort_unstable_by_key(|edge| (edge.child, edge.parent));
        TasksSnapshot {
            types,
            edges,
            tracked: self.tasks.len() as u64,
            untracked: self.untracked,
            cpu: self.cpu.as_ref().map(Cpu::sums),
            end_unseen: self.end_unseen,
            slow_polls: Vec::new(),
            lifecycle_continuous: self.continuous,
            polls_continuous: None,
        }
    }

    fn push_type(
        &self,
        kind: TypeId,
        index: &mut FxHashMap<TypeId, usize>,
        types: &mut Vec<TaskTypeSnapshot>,
    ) -> Option<usize> {
        if let Some(&i) = index.get(&kind) {
            return Some(i);
        }
        let info = self.types.get(kind.0 as usize)?;
        index.insert(kind, types.len());
        types.push(self.counts.snapshot(kind, info, &self.sites));
        Some(types.len() - 1)
    }

    /// Adds to the counts what is still held back for its order.
    fn preview(
        &self,
        held: &[(u64, TaskEvent)],
        index: &mut FxHashMap<TypeId, usize>,
        types: &mut Vec<TaskTypeSnapshot>,
    ) {
        let mut born: FxHashMap<u64, Vec<(Option<u64>, usize)>> = FxHashMap::default();
        for &(time_ns, event) in held {
            let TaskEvent::Spawned { task, kind, .. } = event else { continue };
            let found = self.was_found(task);
            if self.is_tracked_already(task) && found.is_none() {
                continue;
            }
            let Some(i) = self.push_type(found.unwrap_or(kind), index, types) else { continue };
            types[i].spawned += 1;
            types[i].last_spawn_ns = types[i].last_spawn_ns.max(Some(time_ns));
            if found.is_some() {
                types[i].found = types[i].found.saturating_sub(1);
                continue;
            }
            types[i].alive += 1;
            born.entry(task.address).or_default().push((task.id, i));
        }
        for &(_, event) in held {
            let TaskEvent::Found { task, kind } = event else { continue };
            let born_here = born.get(&task.address).is_some_and(|young| young.iter().any(|(id, _)| *id == task.id));
            if born_here || !self.is_news(task) {
                continue;
            }
            let Some(i) = self.push_type(kind, index, types) else { continue };
            types[i].found += 1;
            types[i].alive += 1;
            born.entry(task.address).or_default().push((task.id, i));
        }
        for &(_, event) in held {
            let TaskEvent::Completed { task, kind, outcome } = event else { continue };
            let tracked = self.tasks.at(task.address).filter(|tracked| tracked.is(task.id, kind));
            if tracked.is_none() && task.id.is_some_and(|id| self.lineage.ended_lately(id).is_some()) {
                continue;
            }
            let young = born.get_mut(&task.address).and_then(|young| {
                let same = |&(id, i): &(Option<u64>, usize)| match (id, task.id) {
                    (Some(mine), Some(theirs)) => mine == theirs,
                    _ => tracked.is_none() && index.get(&kind) == Some(&i),
                };
                let at = young.iter().position(same)?;
                Some(young.swap_remove(at).1)
            });
            // A task that is born and ends within the horizon, a tracked one, one over the cap, or none that is alive.
            let (ended, alive) = match (young, tracked) {
                (Some(i), _) => (Some(i), true),
                (None, Some(tracked)) => (self.push_type(tracked.kind(), index, types), true),
                (None, None) => (
                    self.push_type(kind, index, types),
                    self.counts.get(kind).is_some_and(|counts| counts.untracked > 0),
                ),
            };
            if let Some(i) = ended {
                types[i].completed[outcome as usize] += 1;
                types[i].alive = types[i].alive.saturating_sub(u64::from(alive));
            }
        }
    }
}
