//! Counts by type of task. Never a task, never a label policy.

use crate::histogram::Histogram;

use super::sites::Sites;
use super::snapshot::TaskTypeSnapshot;
use super::task::TypeInfo;
use crate::event::{Outcome, TypeId};

/// Counts of one type. Small until a lifetime is recorded: a program may have thousands of types.
#[derive(Clone, Debug, Default)]
pub struct TypeCounts {
    /// Spawns that were seen.
    pub spawned: u64,
    /// Ends that were seen, by outcome.
    pub completed: [u64; Outcome::ALL.len()],
    /// Of the ends, those of tasks whose spawn was not seen, and that were not found before.
    pub unseen_spawns: u64,
    /// Tasks that were found to live, and were not seen to be spawned.
    pub found: u64,
    /// Spawned or found, and not ended.
    pub alive: u64,
    /// Of those, tasks over the cap: known by their number only.
    pub untracked: u64,
    /// The last spawn, nanoseconds.
    pub last_spawn_ns: Option<u64>,
    lifetime: Option<Histogram>,
}

impl TypeCounts {
    /// A spawn was seen.
    pub fn spawned(&mut self, time_ns: u64) {
        self.spawned += 1;
        self.last_spawn_ns = self.last_spawn_ns.max(Some(time_ns));
    }

    /// An end was seen.
    pub fn completed(&mut self, outcome: Outcome) {
        self.completed[outcome as usize] += 1;
    }

    /// Records a lifetime that was seen from spawn to end.
    pub fn lived(&mut self, lifetime_ns: u64) {
        self.lifetime.get_or_insert(Histogram::EMPTY).record(lifetime_ns);
    }
}

/// Counts of all types of one target.
pub struct Counts {
    by_type: Vec<TypeCounts>,
    /// Types in the order of first sight.
    seen: Vec<TypeId>,
}

impl Counts {
    /// Counts for `types` types.
    pub fn new(types: usize) -> Counts {
        Counts { by_type: vec![TypeCounts::default(); types], seen: Vec::new() }
    }

    /// There are so many types now.
    pub fn grow(&mut self, types: usize) {
        self.by_type.resize_with(types, TypeCounts::default);
    }

    /// Counts of one type, for an event of its; `None` for a type that was never announced.
    pub fn see(&mut self, kind: TypeId) -> Option<&mut TypeCounts> {
        let counts = self.by_type.get_mut(kind.0 as usize)?;
        if counts.spawned == 0
            && counts.found == 0
            && counts.completed == [0; Outcome::ALL.len()]
            && !self.seen.contains(&kind)
        {
            self.seen.push(kind);
        }
        Some(counts)
    }

    /// Counts of a type that was seen before.
    pub fn get(&self, kind: TypeId) -> Option<&TypeCounts> {
        self.by_type.get(kind.0 as usize)
    }

    /// No task lives any more.
    pub fn none_alive(&mut self) {
        for counts in &mut self.by_type {
            counts.alive = 0;
            counts.untracked = 0;
        }
    }

    /// Types in the order of first sight.
    pub fn seen(&self) -> &[TypeId] {
        &self.seen
    }

    /// The exported form of one type.
    pub fn snapshot(&self, kind: TypeId, info: &TypeInfo, sites: &Sites) -> TaskTypeSnapshot {
        let counts = &self.by_type[kind.0 as usize];
        TaskTypeSnapshot {
            kind,
            name: info.name.clone(),
            full_name: info.full_name.clone(),
            aliases: info.aliases.clone(),
            blocking: info.blocking,
            internal: info.internal,
            spawned: counts.spawned,
            completed: counts.completed,
            unseen_spawns: counts.unseen_spawns,
            found: counts.found,
            alive: counts.alive,
            lifetime: counts.lifetime.clone(),
            last_spawn_ns: counts.last_spawn_ns,
            polls: None,
            overdue: None,
            overdue_ns: None,
            unfinished: None,
            spawn_sites: sites.of(kind, info),
            ..TaskTypeSnapshot::default()
        }
    }
}
