//! The table of tasks of all targets: applies events, and makes the tasks' part of a snapshot. Never a clock: times
//! are those of events, or are passed in.

mod snapshot;

use std::sync::Arc;

use rustc_hash::FxHashMap;

use super::aggregate::Counts;
use super::cpu::{self, Cpu};
use super::lineage::Lineage;
use super::minutes::{Happened, Minutes, MinutesSnapshot, NameId};
use super::order::Pending;
use super::retention::Retention;
use super::sites::Sites;
use super::snapshot::{TaskTypeSnapshot, TasksSnapshot};
use super::task::{SiteInfo, Task, Tasks, TypeInfo};
use crate::event::{CpuSample, Outcome, Parent, TaskEvent, TaskRef, TypeId};

/// What the table may hold.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Tasks that are tracked, over all targets; those over it are known by their number only.
    pub tracked_tasks: usize,
    /// How late an event may arrive and still be put in its place, nanoseconds.
    pub horizon_ns: u64,
    /// Events that wait for the horizon to pass; over it, the oldest wait no longer.
    pub pending_events: usize,
    /// Parents per target whose type may still become known.
    pub unresolved_parents: usize,
    /// How long a target that has ended is retained, nanoseconds.
    pub retention_ns: u64,
    /// Minutes of which the counts by name are kept.
    pub minutes: usize,
    /// What is added to a monotonic time to make it one since the unix epoch, nanoseconds: where minutes begin.
    pub epoch_offset_ns: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            tracked_tasks: 1_000_000,
            horizon_ns: 100_000_000,
            pending_events: 65_536,
            unresolved_parents: 4_096,
            retention_ns: 600_000_000_000,
            minutes: 360,
            epoch_offset_ns: 0,
        }
    }
}

/// A target in the table. Never used again for another, unlike a process id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TargetId(u32);

/// What the table could not account for, over all targets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Losses {
    /// Tasks whose end was not seen: another one was found to live at their address.
    pub end_unseen: u64,
    /// Tasks over the cap: their lifetime is not measured.
    pub untracked: u64,
    /// Events that repeat one that was applied.
    pub repeated: u64,
    /// Events of a type that the plan does not have.
    pub type_unknown: u64,
    /// Events of a target that is no longer retained.
    pub target_unknown: u64,
}

impl Losses {
    /// By value of the `reason` label.
    pub fn by_reason(&self) -> [(&'static str, u64); 5] {
        [
            ("end_unseen", self.end_unseen),
            ("task_untracked", self.untracked),
            ("event_repeated", self.repeated),
            ("type_unknown", self.type_unknown),
            ("target_unknown", self.target_unknown),
        ]
    }
}

/// The table.
pub struct Table {
    limits: Limits,
    targets: FxHashMap<TargetId, Target>,
    next: u32,
    pending: Pending<(TargetId, Item)>,
    newest_ns: u64,
    tracked: usize,
    retention: Retention<TargetId>,
    losses: Losses,
    minutes: Minutes,
}

enum Item {
    Task(TaskEvent),
    Interrupt,
    Resume,
    Sample(CpuSample),
    End,
}

impl Table {
    /// An empty table.
    pub fn new(limits: Limits) -> Table {
        Table {
            minutes: Minutes::new(limits.epoch_offset_ns, limits.minutes),
            limits,
            targets: FxHashMap::default(),
            next: 0,
            pending: Pending::new(limits.pending_events),
            newest_ns: 0,
            tracked: 0,
            retention: Retention::new(limits.retention_ns),
            losses: Losses::default(),
        }
    }

    /// Begins a target. `types` are its plan's, in the order of their [`TypeId`]s.
    pub fn add_target(&mut self, types: Arc<[TypeInfo]>) -> TargetId {
        let id = TargetId(self.next);
        self.next += 1;
        self.targets.insert(id, Target::new(types, self.limits.unresolved_parents));
        id
    }

    /// One more type of a target's, which was met while it runs; `None` where the target is not known.
    pub fn add_type(&mut self, target: TargetId, info: TypeInfo) -> Option<TypeId> {
        Some(self.targets.get_mut(&target)?.add_type(info))
    }

    /// Takes an event of a target. It takes effect once the horizon has passed, so that events that arrive out of
    /// order do so in order; counts of [`Table::tasks`] have it at once.
    pub fn apply(&mut self, target: TargetId, time_ns: u64, event: TaskEvent) {
        self.push(target, time_ns, Item::Task(event));
    }

    /// Births and ends are no longer seen without a gap: what is counted from now on are samples.
    pub fn interrupt(&mut self, target: TargetId, time_ns: u64) {
        let Some(entry) = self.targets.get_mut(&target) else { return };
        entry.continuous = false;
        self.push(target, time_ns, Item::Interrupt);
    }

    /// Births and ends are seen without a gap from now on: counts begin anew, and are totals again.
    pub fn resume(&mut self, target: TargetId, time_ns: u64) {
        if self.targets.contains_key(&target) {
            self.push(target, time_ns, Item::Resume);
        }
    }

    /// The CPU time of a target is sampled from now on.
    pub fn sample_cpu(&mut self, target: TargetId) {
        if let Some(target) = self.targets.get_mut(&target) {
            target.cpu.get_or_insert_default();
        }
    }

    /// Takes a sample of a target. It takes effect in its order among the events: who polls is known by then.
    pub fn sample(&mut self, target: TargetId, time_ns: u64, sample: CpuSample) {
        self.push(target, time_ns, Item::Sample(sample));
    }

    /// A spawn of a type was found to be from a site. False where it could not be kept.
    pub fn spawned_at(&mut self, target: TargetId, kind: TypeId, site: &SiteInfo) -> bool {
        self.targets.get_mut(&target).is_some_and(|target| target.sites.met(kind, site))
    }

    /// The target has ended, and with it its tasks. It is retained for the window.
    pub fn end_target(&mut self, target: TargetId, time_ns: u64) {
        let Some(entry) = self.targets.get_mut(&target) else { return };
        if !entry.ending {
            entry.ending = true;
            self.retention.end(time_ns, target);
            self.push(target, time_ns, Item::End);
        }
    }

    /// Time has passed without an event: lets take effect what is older than the horizon.
    pub fn advance(&mut self, now_ns: u64) {
        self.newest_ns = self.newest_ns.max(now_ns);
        let settled_ns = self.newest_ns.saturating_sub(self.limits.horizon_ns);
        self.settle(settled_ns);
        self.minutes.advance(settled_ns);
        self.targets.values_mut().filter_map(|target| target.cpu.as_mut()).for_each(|cpu| cpu.advance(settled_ns));
    }

    /// No event will arrive any more: lets everything take effect.
    pub fn finish(&mut self) {
        self.settle(u64::MAX);
    }

    /// Forgets the targets whose window has passed, and returns them.
    pub fn expire(&mut self, now_ns: u64) -> Vec<TargetId> {
        let mut gone = Vec::new();
        while let Some(id) = self.retention.expire(now_ns) {
            if let Some(target) = self.targets.remove(&id) {
                self.tracked -= target.tasks.len();
                gone.push(id);
            }
        }
        gone
    }

    /// Tasks that are tracked, over all targets.
    pub fn tracked(&self) -> u64 {
        self.tracked as u64
    }

    /// What was spawned and ended in each minute.
    pub fn minutes(&self) -> MinutesSnapshot {
        self.minutes.snapshot()
    }

    /// What could not be accounted for.
    pub fn losses(&self) -> Losses {
        self.losses
    }

    /// The tasks of every target. Spawns and ends are counted as they arrive; lifetimes, unseen spawns and edges
    /// follow when the horizon has passed.
    pub fn tasks(&self) -> FxHashMap<TargetId, TasksSnapshot> {
        let mut held: FxHashMap<TargetId, Vec<(u64, TaskEvent)>> = FxHashMap::default();
        for (time_ns, (target, item)) in self.pending.iter() {
            if let Item::Task(event) = item {
                held.entry(*target).or_default().push((time_ns, *event));
            }
        }
        let none = Vec::new();
        self.targets.iter().map(|(id, target)| (*id, target.snapshot(held.get(id).unwrap_or(&none)))).collect()
    }

    /// The tasks of one target; `None` where it is not known.
    pub fn tasks_of(&self, id: TargetId) -> Option<TasksSnapshot> {
        let its = |(time_ns, (target, item)): (u64, &(TargetId, Item))| match item {
            Item::Task(event) if *target == id => Some((time_ns, *event)),
            _ => None,
        };
        let held: Vec<(u64, TaskEvent)> = self.pending.iter().filter_map(its).collect();
        Some(self.targets.get(&id)?.snapshot(&held))
    }

    /// The entry of a type in a snapshot of a target's tasks, made where it is not there; `None` for an unknown type.
    pub fn entry<'t>(
        &self,
        target: TargetId,
        kind: TypeId,
        tasks: &'t mut TasksSnapshot,
    ) -> Option<&'t mut TaskTypeSnapshot> {
        if let Some(at) = tasks.types.iter().position(|entry| entry.kind == kind) {
            return tasks.types.get_mut(at);
        }
        let target = self.targets.get(&target)?;
        tasks.types.push(target.counts.snapshot(kind, target.types.get(kind.0 as usize)?, &target.sites));
        tasks.types.last_mut()
    }

    fn push(&mut self, target: TargetId, time_ns: u64, item: Item) {
        self.newest_ns = self.newest_ns.max(time_ns);
        self.pending.push(time_ns, (target, item));
        self.settle(self.newest_ns.saturating_sub(self.limits.horizon_ns));
    }

    fn settle(&mut self, until_ns: u64) {
        while let Some((time_ns, (id, item))) = self.pending.pop(until_ns) {
            let Some(target) = self.targets.get_mut(&id) else {
                self.losses.target_unknown += u64::from(matches!(item, Item::Task(_)));
                continue;
            };
            let others = self.tracked - target.tasks.len();
            match item {
                Item::Task(TaskEvent::Spawned { task, kind, parent }) => {
                    let room = self.tracked < self.limits.tracked_tasks;
                    target.spawned(time_ns, Spawn { task, kind, parent }, room, &mut self.losses, &mut self.minutes);
                }
                Item::Task(TaskEvent::Found { task, kind }) => {
                    let room = self.tracked < self.limits.tracked_tasks;
                    target.found(time_ns, task, kind, room, &mut self.losses);
                }
                Item::Task(TaskEvent::Completed { task, kind, outcome }) => {
                    target.completed(time_ns, task, kind, outcome, &mut self.losses, &mut self.minutes);
                }
                Item::Task(TaskEvent::Gone { task }) => target.gone(task.address),
                Item::Interrupt => {
                    target.interrupt();
                    target.set_gap(true, time_ns, &mut self.minutes);
                }
                Item::Resume => {
                    target.resume();
                    target.set_gap(false, time_ns, &mut self.minutes);
                }
                Item::Sample(sample) => target.sampled(time_ns, &sample),
                Item::End => {
                    target.end();
                    target.set_gap(false, time_ns, &mut self.minutes);
                }
            }
            self.tracked = others + target.tasks.len();
        }
    }
}

struct Spawn {
    task: TaskRef,
    kind: TypeId,
    parent: Parent,
}

/// One target's tasks and counts.
struct Target {
    types: Arc<[TypeInfo]>,
    tasks: Tasks,
    counts: Counts,
    lineage: Lineage,
    /// Where it is sampled.
    cpu: Option<Cpu>,
    sites: Sites,
    untracked: u64,
    end_unseen: u64,
    /// Numbers of the types' names in the minutes, of those that were counted there.
    names: Vec<Option<NameId>>,
    /// Whether births and ends are not all seen now.
    gap: bool,
    /// Births and ends are seen without a gap since the counts began.
    continuous: bool,
    /// Its end was reported; events of before may still arrive.
    ending: bool,
    /// Its end has taken effect.
    ended: bool,
}

impl Target {
    fn new(types: Arc<[TypeInfo]>, unresolved_parents: usize) -> Target {
        Target {
            tasks: Tasks::default(),
            counts: Counts::new(types.len()),
            lineage: Lineage::new(unresolved_parents),
            sites: Sites::default(),
            names: vec![None; types.len()],
            gap: false,
            types,
            cpu: None,
            untracked: 0,
            end_unseen: 0,
            continuous: true,
            ending: false,
            ended: false,
        }
    }

    fn add_type(&mut self, info: TypeInfo) -> TypeId {
        let kind = TypeId(self.types.len() as u32);
        self.types = self.types.iter().cloned().chain([info]).collect();
        self.counts.grow(self.types.len());
        self.names.resize(self.types.len(), None);
        kind
    }

    /// Counts in the minutes what happened to a task of the application's.
    fn count(&mut self, time_ns: u64, kind: TypeId, happened: Happened, minutes: &mut Minutes) {
        let Some(info) = self.types.get(kind.0 as usize).filter(|info| !info.internal) else { return };
        let name = *self.names[kind.0 as usize].get_or_insert_with(|| minutes.name(&info.name));
        minutes.add(time_ns, name, happened);
    }

    fn set_gap(&mut self, gap: bool, time_ns: u64, minutes: &mut Minutes) {
        match (std::mem::replace(&mut self.gap, gap), gap) {
            (false, true) => minutes.interrupt(time_ns),
            (true, false) => minutes.resume(time_ns),
            _ => {}
        }
    }

    fn spawned(&mut self, time_ns: u64, spawn: Spawn, room: bool, losses: &mut Losses, minutes: &mut Minutes) {
        let Spawn { task, kind, parent } = spawn;
        let there = self.tasks.at(task.address);
        if task.id.is_some() && there.is_some_and(|there| there.id() == task.id) {
            self.spawned_after_all(time_ns, spawn, losses, minutes);
            return;
        }
        let Some(counts) = self.counts.see(kind) else {
            losses.type_unknown += 1;
            return;
        };
        counts.spawned(time_ns);
        self.count(time_ns, kind, Happened::Spawned, minutes);
        // Only a spawn that is later than the horizon can be found to have been overtaken by its own end, or by the
        // next generation at its address. It is counted, and no longer lives.
        let overtaken_by_end = task.id.is_some_and(|id| self.lineage.ended_lately(id).is_some());
        let overtaken_by_next = there.is_some_and(|next| next.since_ns > time_ns);
        if there.is_some() && !overtaken_by_next && !overtaken_by_end {
            self.end_unseen(task.address, losses);
        }
        self.lineage.spawned(parent, kind, &self.tasks, &self.types);
        if overtaken_by_end || self.ended {
            return;
        }
        if overtaken_by_next {
            self.end_unseen += 1;
            losses.end_unseen += 1;
            return;
        }
        if let Some(counts) = self.counts.see(kind) {
            counts.alive += 1;
            counts.untracked += u64::from(!room);
        }
        if room {
            self.tasks.insert(task, kind, time_ns);
        } else {
            self.untracked += 1;
            losses.untracked += 1;
        }
        if let Some(id) = task.id {
            self.lineage.learned(id, kind, &self.types);
        }
    }

    /// A task that was found between its birth and the report of it was spawned while the profiler watched.
    fn spawned_after_all(&mut self, time_ns: u64, spawn: Spawn, losses: &mut Losses, minutes: &mut Minutes) {
        let Spawn { task, parent, .. } = spawn;
        let found = self.was_found(task);
        let (Some(kind), Some(counts)) = (found, found.and_then(|kind| self.counts.see(kind))) else {
            losses.repeated += 1;
            return;
        };
        counts.found -= 1;
        counts.spawned(time_ns);
        self.count(time_ns, kind, Happened::Spawned, minutes);
        self.tasks.spawn_seen(task.address, time_ns);
        self.lineage.spawned(parent, kind, &self.tasks, &self.types);
    }

    /// A task was found to live. What is known of already, or has ended since, is nothing new.
    fn found(&mut self, time_ns: u64, task: TaskRef, kind: TypeId, room: bool, losses: &mut Losses) {
        if !self.is_news(task) {
            return;
        }
        let Some(counts) = self.counts.see(kind) else {
            losses.type_unknown += 1;
            return;
        };
        if !room {
            // It may be found again: what is not tracked cannot be counted once.
            losses.untracked += 1;
            return;
        }
        counts.found += 1;
        counts.alive += 1;
        self.tasks.insert_found(task, kind, time_ns);
        if let Some(id) = task.id {
            self.lineage.learned(id, kind, &self.types);
        }
    }

    /// The type of a task that is tracked since it was found.
    fn was_found(&self, task: TaskRef) -> Option<TypeId> {
        self.tasks.at(task.address).filter(|t| t.spawn_ns().is_none() && t.id() == task.id).map(|t| t.kind())
    }

    /// Whoever lives at the address by all that is known is about to leave it; the report of its end is on its way.
    fn is_news(&self, task: TaskRef) -> bool {
        let known = self.tasks.at(task.address).is_some();
        !known && !self.ended && task.id.is_none_or(|id| self.lineage.ended_lately(id).is_none())
    }

    fn completed(
        &mut self,
        time_ns: u64,
        task: TaskRef,
        kind: TypeId,
        outcome: Outcome,
        losses: &mut Losses,
        minutes: &mut Minutes,
    ) {
        // What was found may have been about to leave, and its end stamped before.
        let concerns =
            |t: &Task| t.since_ns <= time_ns || (t.spawn_ns().is_none() && t.id().is_some_and(|_| t.id() == task.id));
        if let Some(tracked) = self.tasks.at(task.address).filter(concerns) {
            if tracked.is(task.id, kind) {
                self.tasks.remove(task.address);
                self.count(time_ns, tracked.kind(), Happened::Ended(outcome), minutes);
                if let Some(counts) = self.counts.see(tracked.kind()) {
                    counts.alive -= 1;
                    counts.completed(outcome);
                    if let Some(spawn_ns) = tracked.spawn_ns() {
                        counts.lived(time_ns - spawn_ns);
                    }
                }
                self.forget(task.address, tracked.id().or(task.id), tracked.kind());
                return;
            }
            // Another task ended where the tracked one should be: its end was lost, and so was the other's spawn. One
            // that was found is the other's heir, read in the moment when it took the address over.
            if tracked.spawn_ns().is_some() {
                self.end_unseen(task.address, losses);
            }
        }
        if task.id.is_some_and(|id| self.lineage.ended_lately(id).is_some()) {
            losses.repeated += 1;
            return;
        }
        self.count(time_ns, kind, Happened::Ended(outcome), minutes);
        let Some(counts) = self.counts.see(kind) else {
            losses.type_unknown += 1;
            return;
        };
        counts.completed(outcome);
        if counts.untracked > 0 {
            // Most likely one of those over the cap. Were it older than the profiler, the count would be one too low
            // until the type's untracked tasks have ended.
            counts.untracked -= 1;
            counts.alive -= 1;
        } else if !self.ended {
            counts.unseen_spawns += 1;
        }
        self.forget(task.address, task.id, kind);
    }

    fn sampled(&mut self, time_ns: u64, sample: &CpuSample) {
        let Some(cpu) = &mut self.cpu else { return };
        let (tasks, lineage) = (&self.tasks, &self.lineage);
        let kind_of_id = |id| tasks.kind_of_id(id).or_else(|| lineage.ended_lately(id));
        let doing = cpu::doing(sample, &self.types, &mut cpu.strangers, kind_of_id);
        cpu.take(time_ns, sample, doing, &self.types);
    }

    fn is_tracked_already(&self, task: TaskRef) -> bool {
        task.id.is_some() && self.tasks.at(task.address).is_some_and(|tracked| tracked.id() == task.id)
    }

    /// Whatever is tracked at `address` has ended at an unknown time and in an unknown way.
    fn end_unseen(&mut self, address: u64, losses: &mut Losses) {
        if self.tasks.at(address).is_some() {
            self.gone(address);
            self.end_unseen += 1;
            losses.end_unseen += 1;
        }
    }

    /// Whatever is tracked at `address` is no more, and that is no loss.
    fn gone(&mut self, address: u64) {
        let Some(task) = self.tasks.remove(address) else { return };
        if let Some(counts) = self.counts.see(task.kind()) {
            counts.alive -= 1;
        }
        self.forget(address, task.id(), task.kind());
    }

    /// A task has ended; its children's spawns may be applied after that.
    fn forget(&mut self, address: u64, id: Option<u64>, kind: TypeId) {
        self.lineage.ended(address, id, kind);
        if let Some(id) = id {
            self.lineage.learned(id, kind, &self.types);
        }
    }

    /// Whoever lives now ends unseen: it is forgotten, and no loss.
    fn interrupt(&mut self) {
        self.tasks = Tasks::default();
        self.counts.none_alive();
        self.lineage.close();
    }

    fn resume(&mut self) {
        self.interrupt();
        self.counts = Counts::new(self.types.len());
        self.continuous = true;
    }

    fn end(&mut self) {
        self.ended = true;
        self.tasks = Tasks::default();
        self.counts.none_alive();
        self.lineage.close();
    }
}

#[cfg(test)]
mod tests;
