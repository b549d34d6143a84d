//! Targets that share their series, as the processes of one container: what those had that are gone, and which names came
//! first. Time is an argument. Never what a label looks like.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use crate::histogram::Histogram;

use super::snapshot::{
    DeferredSnapshot, JobsSnapshot, ListenerSnapshot, LoopSnapshot, RequestsSnapshot, RuntimeSnapshot, SchedSnapshot,
    TargetSnapshot, TaskTypeSnapshot, TasksSnapshot, ThreadsSnapshot,
};

/// What is over a bound is summed under this name.
const OTHER: &str = "other";
/// Characters of a container's id that stand for its name where that is not known, as `docker ps` shows it.
const SHORT_ID: usize = 12;

/// What targets have in common that are summed. What is not known is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupKey {
    /// Namespace of their pod.
    pub namespace: String,
    /// Name of their pod.
    pub pod: String,
    /// Name of their container; its short id where the name is not known.
    pub container: String,
    /// Name of the processes.
    pub process: String,
    /// Their runtime.
    pub runtime: &'static str,
}

impl GroupKey {
    /// That of a target.
    pub fn of(target: &TargetSnapshot) -> GroupKey {
        let identity = &target.identity;
        let text = |name: &Option<String>| name.clone().unwrap_or_default();
        let short = || identity.container_id.as_ref().map(|id| id.chars().take(SHORT_ID).collect());
        GroupKey {
            namespace: text(&identity.namespace),
            pod: text(&identity.pod),
            container: identity.container.clone().or_else(short).unwrap_or_default(),
            process: target.process.clone(),
            runtime: target.runtime,
        }
    }

    fn other() -> GroupKey {
        GroupKey { process: OTHER.to_owned(), runtime: OTHER, ..GroupKey::default() }
    }
}

/// A group at one moment.
#[derive(Clone, Debug)]
pub struct GroupSnapshot {
    /// Which one.
    pub key: GroupKey,
    /// What those of its targets counted that are gone; `None` while there is none.
    pub gone: Option<Arc<TargetSnapshot>>,
    /// Names of tasks and of listeners, in the order of first sight, as many as are told apart.
    pub tasks: Arc<[String]>,
    /// As above.
    pub listeners: Arc<[String]>,
}

/// How much is kept.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// How long a group is kept of which no target is left, nanoseconds.
    pub retention_ns: u64,
    /// Groups.
    pub groups: usize,
    /// Names of tasks, and of listeners, per group.
    pub names: usize,
    /// Histograms, of 2.6 KiB each, over all groups.
    pub histograms: usize,
}

impl Default for Bounds {
    fn default() -> Bounds {
        Bounds { retention_ns: 600_000_000_000, groups: 512, names: 100, histograms: 8192 }
    }
}

#[derive(Default)]
struct Group {
    gone: Option<Arc<TargetSnapshot>>,
    /// Histograms of it.
    histograms: usize,
    tasks: Names,
    listeners: Names,
    /// When a target of it was there last.
    seen_ns: u64,
}

/// Names in the order of first sight.
#[derive(Default)]
struct Names {
    known: HashSet<String>,
    order: Arc<[String]>,
}

impl Names {
    fn see<'a>(&mut self, names: impl Iterator<Item = &'a str>, most: usize) {
        let mut new = Vec::new();
        for name in names {
            if self.known.len() < most && !self.known.contains(name) {
                self.known.insert(name.to_owned());
                new.push(name.to_owned());
            }
        }
        if !new.is_empty() {
            self.order = self.order.iter().cloned().chain(new).collect();
        }
    }
}

/// The groups that are known.
pub struct Groups {
    bounds: Bounds,
    known: HashMap<GroupKey, Group>,
    /// When which group is to be looked at.
    due: VecDeque<(u64, GroupKey)>,
    histograms: usize,
    /// Groups and names that found no room.
    turned_away: u64,
}

impl Groups {
    /// None.
    pub fn new(bounds: Bounds) -> Groups {
        Groups { bounds, known: HashMap::new(), due: VecDeque::new(), histograms: 0, turned_away: 0 }
    }

    /// Takes what a target counted that is gone.
    pub fn retire(&mut self, target: TargetSnapshot, now_ns: u64) {
        let key = self.enter(GroupKey::of(&target), now_ns);
        let Some(group) = self.known.get_mut(&key) else { return };
        group.see(&target, self.bounds.names);
        let sum = group.gone.get_or_insert_default();
        let mut room = Room {
            left: self.bounds.histograms.saturating_sub(self.histograms),
            names: self.bounds.names,
            taken: 0,
            other: 0,
        };
        absorb(Arc::make_mut(sum), &target, &mut room);
        group.histograms += room.taken;
        self.histograms += room.taken;
        self.turned_away += room.other;
    }

    /// Takes the targets that there are, and forgets groups of which none has been there for the retention time.
    pub fn advance(&mut self, targets: &[TargetSnapshot], now_ns: u64) {
        for target in targets.iter().filter(|target| !target.identity.awaited) {
            let key = GroupKey::of(target);
            if !self.is_full_for(&key) {
                self.enter(key.clone(), now_ns);
            }
            if let Some(group) = self.known.get_mut(&key) {
                group.see(target, self.bounds.names);
            }
        }
        while self.due.front().is_some_and(|(due, _)| *due <= now_ns) {
            let Some((_, key)) = self.due.pop_front() else { break };
            let Some(group) = self.known.get(&key) else { continue };
            let until_ns = group.seen_ns.saturating_add(self.bounds.retention_ns);
            if until_ns <= now_ns {
                self.histograms -= group.histograms;
                self.known.remove(&key);
            } else {
                self.due.push_back((until_ns, key));
            }
        }
    }

    fn is_full_for(&self, key: &GroupKey) -> bool {
        self.known.len() >= self.bounds.groups && !self.known.contains_key(key)
    }

    /// The group of a key, or the one of those that find no room.
    fn enter(&mut self, key: GroupKey, now_ns: u64) -> GroupKey {
        let full = self.is_full_for(&key);
        self.turned_away += u64::from(full);
        let key = if full { GroupKey::other() } else { key };
        let retention_ns = self.bounds.retention_ns;
        let due = &mut self.due;
        let group = self.known.entry(key.clone()).or_insert_with(|| {
            due.push_back((now_ns.saturating_add(retention_ns), key.clone()));
            Group::default()
        });
        group.seen_ns = group.seen_ns.max(now_ns);
        key
    }

    /// The groups, in the order of their keys.
    pub fn snapshot(&self) -> Vec<GroupSnapshot> {
        let of = |(key, group): (&GroupKey, &Group)| GroupSnapshot {
            key: key.clone(),
            gone: group.gone.clone(),
            tasks: Arc::clone(&group.tasks.order),
            listeners: Arc::clone(&group.listeners.order),
        };
        let mut groups: Vec<GroupSnapshot> = self.known.iter().map(of).collect();
        groups.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        groups
    }

    /// How many groups and names of those that are gone were summed in `other`, because there was no room for them.
    pub fn turned_away(&self) -> u64 {
        self.turned_away
    }

    #[cfg(test)]
    fn sizes(&self) -> (usize, usize, usize) {
        (self.known.len(), self.due.len(), self.histograms)
    }
}

impl Group {
    fn see(&mut self, target: &TargetSnapshot, most: usize) {
        let types = target.tasks.iter().flat_map(|tasks| &tasks.types);
        self.tasks.see(types.map(|kind| kind.name.as_str()), most);
        self.listeners.see(target.listeners.iter().map(|listener| listener.listener.as_str()), most);
    }
}

/// What may be taken of histograms.
struct Room {
    left: usize,
    names: usize,
    taken: usize,
    /// Names that found no room.
    other: u64,
}

impl Room {
    fn take(&mut self, n: usize) {
        self.taken += n;
        self.left = self.left.saturating_sub(n);
    }

    /// The place of a name in a list of at most so many names; what finds no room is `other`.
    fn place<T>(&mut self, list: &mut Vec<T>, name: &str, of: impl Fn(&T) -> &str, new: impl Fn(String) -> T) -> usize {
        if let Some(at) = list.iter().position(|one| of(one) == name) {
            return at;
        }
        let fits = list.len() < self.names && self.left > 0;
        self.other += u64::from(!fits);
        let name = if fits { name } else { OTHER };
        list.iter().position(|one| of(one) == name).unwrap_or_else(|| {
            list.push(new(name.to_owned()));
            list.len() - 1
        })
    }

    /// Adds what one target has of something with so many histograms; of the first one, what is left of it when it has `ended`.
    fn absorb<T>(
        &mut self,
        into: &mut Option<T>,
        from: &Option<T>,
        histograms: usize,
        ended: impl FnOnce(&T) -> T,
        add: impl FnOnce(&mut T, &T),
    ) {
        let Some(from) = from else { return };
        match into {
            Some(into) => add(into, from),
            None => {
                self.take(histograms);
                *into = Some(ended(from));
            }
        }
    }

    fn merge(&mut self, into: &mut Option<Histogram>, from: Option<&Histogram>) {
        let Some(from) = from else { return };
        match into {
            Some(into) => into.merge(from),
            None => {
                self.take(1);
                *into = Some(from.clone());
            }
        }
    }
}

/// Adds the counters and histograms of `from`. What was there only while it ran is gone with it.
fn absorb(into: &mut TargetSnapshot, from: &TargetSnapshot, room: &mut Room) {
    if let Some(from) = &from.sched {
        sched(
            into.sched.get_or_insert_with(|| {
                room.take(5);
                SchedSnapshot::default()
            }),
            from,
            room,
        );
    }
    room.absorb(&mut into.throttled, &from.throttled, 1, Clone::clone, |into, from| into.wait.merge(&from.wait));
    for from in &from.listeners {
        let at = room.place(
            &mut into.listeners,
            &from.listener,
            |one| &one.listener,
            |listener| ListenerSnapshot { listener, ..ListenerSnapshot::default() },
        );
        let into = &mut into.listeners[at];
        add(&mut into.overflows, from.overflows);
        add(&mut into.accepted, from.accepted);
        room.merge(&mut into.depth, from.depth.as_ref());
        room.merge(&mut into.wait, from.wait.as_ref());
    }
    let ended = |from: &RequestsSnapshot| RequestsSnapshot {
        open: 0,
        unread: None,
        in_progress: 0,
        replied: 0,
        ..from.clone()
    };
    room.absorb(&mut into.requests, &from.requests, 2, ended, |into, from| {
        into.request.merge(&from.request);
        into.after_reply.merge(&from.after_reply);
    });
    let ended = |from: &JobsSnapshot| JobsSnapshot { busy: 0, idle: 0, ..from.clone() };
    room.absorb(&mut into.jobs, &from.jobs, 2, ended, |into, from| {
        into.job.merge(&from.job);
        into.fetch.merge(&from.fetch);
    });
    let ended = |from: &DeferredSnapshot| DeferredSnapshot { now: None, ..from.clone() };
    room.absorb(&mut into.deferred, &from.deferred, 2, ended, |into, from| {
        into.wait.merge(&from.wait);
        into.run.merge(&from.run);
    });
    room.absorb(&mut into.pauses, &from.pauses, 1, Clone::clone, |into, from| {
        into.pause.merge(&from.pause);
        add(&mut into.collections, from.collections);
    });
    room.merge(&mut into.lock_waits, from.lock_waits.as_ref());
    for (reason, from) in &from.waits {
        match into.waits.iter_mut().find(|(known, _)| known == reason) {
            Some((_, into)) => into.merge(from),
            None => {
                room.take(1);
                into.waits.push((reason, from.clone()));
            }
        }
    }
    if let Some(from) = &from.tasks {
        let none = || TasksSnapshot { lifecycle_continuous: true, ..TasksSnapshot::default() };
        tasks(into.tasks.get_or_insert_with(none), from, room);
    }
    if let Some(from) = &from.figures {
        let into = into.figures.get_or_insert_with(RuntimeSnapshot::default);
        add(&mut into.spawned, from.spawned);
        add(&mut into.busy_ns, from.busy_ns);
    }
    if let Some(from) = &from.budget {
        match &mut into.budget {
            None => {
                let mut first = from.clone();
                // Shares and states are those of a process.
                (first.share, first.cost_share, first.poll_added_ns) = (None, None, 0.0);
                first.tiers.iter_mut().for_each(|tier| tier.coverage = 0.0);
                into.budget = Some(first);
            }
            Some(into) => {
                for from in &from.probes {
                    if let Some(into) = into.probes.iter_mut().find(|into| into.probe == from.probe) {
                        into.hits += from.hits;
                        into.cost_ns += from.cost_ns;
                    }
                }
                for from in &from.tiers {
                    if let Some(into) = into.tiers.iter_mut().find(|into| into.tier == from.tier) {
                        into.covered_ns += from.covered_ns;
                    }
                }
            }
        }
    }
}

fn add(into: &mut Option<u64>, from: Option<u64>) {
    if let Some(from) = from {
        *into = Some(into.unwrap_or(0) + from);
    }
}

fn sched(into: &mut SchedSnapshot, from: &SchedSnapshot, room: &mut Room) {
    into.voluntary_switches += from.voluntary_switches;
    into.preemptions.iter_mut().zip(from.preemptions).for_each(|(into, from)| *into += from);
    into.migrations += from.migrations;
    into.on_cpu_ns += from.on_cpu_ns;
    into.asleep_ns.iter_mut().zip(from.asleep_ns).for_each(|(into, from)| *into += from);
    into.causes_told |= from.causes_told;
    into.run_queue.iter_mut().zip(from.run_queue.iter()).for_each(|(into, from)| into.merge(from));
    into.on_cpu.merge(&from.on_cpu);
    into.blocked.merge(&from.blocked);
    for from in &from.threads {
        let new = |name| ThreadsSnapshot { name, ..ThreadsSnapshot::default() };
        let at = room.place(&mut into.threads, &from.name, |one| &one.name, new);
        let into = &mut into.threads[at];
        into.on_cpu_ns += from.on_cpu_ns;
        into.run_queue_ns += from.run_queue_ns;
        into.asleep_ns += from.asleep_ns;
        into.started += from.started;
        into.ended += from.ended;
    }
    for from in &from.loops {
        let before = into.loops.len();
        let at = room.place(
            &mut into.loops,
            &from.name,
            |one| &one.name,
            |name| LoopSnapshot {
                name,
                active_ns: 0,
                idle_ns: 0,
                iteration: Histogram::EMPTY,
                delay: Histogram::EMPTY,
            },
        );
        room.take(2 * (into.loops.len() - before));
        let into = &mut into.loops[at];
        into.active_ns += from.active_ns;
        into.idle_ns += from.idle_ns;
        into.iteration.merge(&from.iteration);
        into.delay.merge(&from.delay);
    }
}

fn tasks(into: &mut TasksSnapshot, from: &TasksSnapshot, room: &mut Room) {
    if let Some(cpu) = from.cpu {
        let sum = into.cpu.get_or_insert_default();
        sum.scheduler_ns += cpu.scheduler_ns;
        sum.other_ns += cpu.other_ns;
        sum.unknown_ns += cpu.unknown_ns;
    }
    into.untracked += from.untracked;
    into.end_unseen += from.end_unseen;
    // What was counted in windows is no part of a total, and what lacks it is none: also after that target has ended.
    into.lifecycle_continuous &= from.lifecycle_continuous;
    if let Some(continuous) = from.polls_continuous {
        into.polls_continuous = Some(continuous && into.polls_continuous != Some(false));
    }
    for kind in &from.types {
        let new = |name| TaskTypeSnapshot { name, ..TaskTypeSnapshot::default() };
        let at = room.place(&mut into.types, &kind.name, |one| &one.name, new);
        let sum = &mut into.types[at];
        if from.lifecycle_continuous {
            sum.spawned += kind.spawned;
            sum.completed.iter_mut().zip(kind.completed).for_each(|(into, from)| *into += from);
            sum.unseen_spawns += kind.unseen_spawns;
        }
        sum.last_spawn_ns = sum.last_spawn_ns.max(kind.last_spawn_ns);
        add(&mut sum.cpu_ns, kind.cpu_ns);
        room.merge(&mut sum.lifetime, kind.lifetime.as_ref());
        let Some(polls) = &kind.polls else { continue };
        let Some(known) = &mut sum.polls else {
            let mut first = polls.clone();
            if from.polls_continuous != Some(true) {
                (first.polls, first.busy_ns, first.slow) = (0, 0, 0);
                first.wakes = first.wakes.map(|_| [0; 3]);
            }
            room.take(1 + usize::from(first.delay.is_some()) + usize::from(first.first_delay.is_some()));
            sum.polls = Some(first);
            continue;
        };
        if from.polls_continuous == Some(true) {
            known.polls += polls.polls;
            known.busy_ns += polls.busy_ns;
            known.slow += polls.slow;
            if let Some(wakes) = polls.wakes {
                let sum = known.wakes.get_or_insert_default();
                sum.iter_mut().zip(wakes).for_each(|(into, from)| *into += from);
            }
        }
        known.poll.merge(&polls.poll);
        room.merge(&mut known.delay, polls.delay.as_ref());
        room.merge(&mut known.first_delay, polls.first_delay.as_ref());
        known.slowest_ns = known.slowest_ns.max(polls.slowest_ns);
    }
}

#[cfg(test)]
mod tests;
