//! What is attached to the image that a process runs: its plan, its probes by tier, its polls. Never which process.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;

use profiler_common::event::{Header, TaskRecord};
use profiler_common::map::{Target as TargetEntry, TaskLayout, target_flag};
use rustc_hash::{FxHashMap, FxHashSet};

use super::builds::Build;
use super::image::{Code, Loaded, Refusal};
use super::kinds::Kinds;
use super::probes::Probes;
use super::sites::SpawnSites;
use crate::budget::Budget;
use crate::budget::governor::{Mode, Tier};
use crate::budget::price::Traps;
use crate::clock;
use crate::decode::stack::StackSample;
use crate::event::{TaskEvent, TaskRef, TypeId};
use crate::kernel::KernelError;
use crate::kernel::attach::Links;
use crate::kernel::load::Kernel;
use crate::kernel::polls::TypePolls;
use crate::model::snapshot::{PollSnapshot, SlowPoll, TasksSnapshot};
use crate::model::table::{Table, TargetId};
use crate::runtime::{Hook, Instance, Lineage, Plan};
use crate::session::spending::Spending;
use crate::session::unfinished::{self, Unfinished};

/// A task that waits longer than this for its poll is overdue, nanoseconds.
const OVERDUE_NS: u64 = 1_000_000_000;
/// Slow polls that are kept.
const SLOW_POLLS: usize = 32;
/// One slow poll is said in this time, nanoseconds; all are counted.
const SAID_EVERY_NS: u64 = 1_000_000_000;
/// Waiting tasks that are looked at, of all targets.
const MAX_WOKEN: usize = 65_536;

/// How tasks are to be measured.
#[derive(Clone, Copy)]
pub(super) struct Tasks {
    pub budget: Budget,
    /// Which part of it each target has.
    pub factor: f64,
    /// What a hit costs on this host.
    pub traps: Traps,
    /// Parents are to be found by poll probes.
    pub poll_stack: bool,
    /// Polls of at least this are reported one by one, nanoseconds.
    pub slow_poll_ns: u64,
    /// All records are wanted, of polls and wakes, too.
    pub trace: bool,
    /// Whether windows wait, since many processes are attached to.
    pub held: bool,
}

/// The runtime of a watched process.
pub(super) struct Runtime {
    build: Rc<Build>,
    kinds: Kinds,
    table: TargetId,
    probes: Probes,
    /// What finds the spawn sites that only stacks tell.
    sites: SpawnSites,
    slot: u32,
    /// The process that is watched.
    root: u32,
    layout: TaskLayout,
    slow_ns: u64,
    /// Whether each poll and wake has a record.
    trace: bool,
    /// Whether the CPU clock samples it.
    samples: bool,
    /// Number of the window in which polls are measured, and of the span in which births and ends are.
    window: u32,
    span: u32,
    /// Which tiers are measured without a gap, in the order of [`Tier::ALL`].
    continuous: [bool; 2],
    /// The last polls that were slow.
    slow_polls: VecDeque<SlowPoll>,
    /// The longest of all slow ones, by type, nanoseconds.
    slowest_ns: FxHashMap<TypeId, u64>,
    /// When one was last said.
    said_ns: u64,
    /// Tasks that wait too long, by type: how many, and how long the first of them.
    overdue: FxHashMap<TypeId, (u64, u64)>,
    unfinished: Unfinished,
    /// Tasks that live in forked children, by process: they are gone with it.
    in_children: FxHashMap<u32, FxHashSet<TaskRef>>,
}

impl Runtime {
    /// Everything is ready, and nothing attached.
    pub fn new(code: Code, probes: Probes, table: TargetId, (slot, root): (u32, u32), how: Tasks) -> Runtime {
        let Code { build, load_bias, bounds, sites, .. } = code;
        let mut layout = build.plan.layout;
        (layout.image_start, layout.image_end) = bounds;
        Runtime {
            kinds: Kinds::new(Rc::clone(&build), load_bias, root),
            build,
            table,
            probes,
            sites,
            slot,
            root,
            layout,
            slow_ns: how.slow_poll_ns,
            trace: how.trace,
            samples: false,
            window: first_window(),
            span: first_window(),
            continuous: [true; 2],
            slow_polls: VecDeque::new(),
            slowest_ns: FxHashMap::default(),
            said_ns: 0,
            overdue: FxHashMap::default(),
            unfinished: Unfinished::default(),
            in_children: FxHashMap::default(),
        }
    }

    /// What happened to a task of one of its processes.
    pub fn happened(&mut self, pid: u32, event: &TaskEvent) {
        if pid == self.root {
            return;
        }
        let tasks = self.in_children.entry(pid).or_default();
        match event {
            TaskEvent::Spawned { task, .. } | TaskEvent::Found { task, .. } => drop(tasks.insert(*task)),
            TaskEvent::Completed { task, .. } | TaskEvent::Gone { task } => drop(tasks.remove(task)),
        }
    }

    /// A forked child is no more, and its tasks with it.
    pub fn child_ended(&mut self, pid: u32, table: &mut Table, time_ns: u64) {
        for task in self.in_children.remove(&pid).into_iter().flatten() {
            table.apply(self.table, time_ns, TaskEvent::Gone { task });
        }
    }

    /// A poll was slow: it is kept, and said unless another was said a moment ago.
    pub fn slow_poll(&mut self, record: &TaskRecord) {
        let Some(kind) = self.kinds.at(record.vtable) else { return };
        let Header { time_ns, tid, pid, .. } = record.header;
        let duration_ns = record.parent;
        self.keep_slow(SlowPoll { time_ns, kind, duration_ns, tid });
        let slowest = self.slowest_ns.entry(kind).or_default();
        *slowest = duration_ns.max(*slowest);
        if time_ns.saturating_sub(self.said_ns) >= SAID_EVERY_NS {
            self.said_ns = time_ns;
            let task = self.name(kind);
            let ms = duration_ns as f64 / 1e6;
            log::warn!("process {pid}: a task {task} has held thread {tid} for {ms:.1} ms in one poll");
        }
    }

    fn keep_slow(&mut self, poll: SlowPoll) {
        if self.slow_polls.len() == SLOW_POLLS {
            self.slow_polls.pop_front();
        }
        self.slow_polls.push_back(poll);
    }

    /// What translates its records.
    pub fn instance(&self) -> Instance<'_> {
        self.kinds.instance()
    }

    /// Takes the record of a type of tasks that was not met before.
    pub fn meet(&mut self, record: &TaskRecord, table: &mut Table) {
        self.kinds.meet(record, table, self.table);
    }

    /// Makes the type of a record's task known that was not told; false where the build must have it.
    pub fn is_met(&mut self, record: &TaskRecord, table: &mut Table) -> bool {
        self.kinds.unknown(record.vtable, table, self.table).is_some()
    }

    fn name(&self, kind: TypeId) -> &str {
        self.kinds.info(kind).map_or("unknown", |info| &info.name)
    }

    /// The name of the type of a record's task.
    pub fn type_name(&self, record: &TaskRecord) -> &str {
        let kind = self.instance().kind(&record.header, record.vtable);
        kind.map_or("unknown", |kind| self.name(kind))
    }

    /// Takes the stack of a spawn to be looked at later.
    pub fn take_stack(&mut self, sample: StackSample) {
        self.sites.take(sample);
    }

    /// Looks at stacks; `paths`, if new ones are to be understood too.
    pub fn find_sites(&mut self, table: &mut Table, paths: bool) {
        let instance = self.kinds.instance();
        self.sites.unwind(&instance, table, self.table);
        if paths {
            self.sites.understand(table, self.table);
        }
    }

    /// Stacks that were not looked at.
    pub fn stacks_dropped(&self) -> u64 {
        self.sites.dropped
    }

    /// What it runs.
    pub fn build(&self) -> &Build {
        &self.build
    }

    /// How its build is observed.
    pub fn plan(&self) -> &Plan {
        &self.build.plan
    }

    /// Where its tasks are counted.
    pub fn table_id(&self) -> TargetId {
        self.table
    }

    /// Whether its polls can be measured at all.
    pub fn has_polls(&self) -> bool {
        self.build.plan.has_polls()
            && (matches!(self.build.plan.lineage, Lineage::PollStack | Lineage::Transfer)
                || self.probes.sites(Tier::Polls) > 0)
    }

    /// Whether it can be seen what its tasks wait for.
    pub fn sees_waits(&self) -> bool {
        self.probes.sites(Tier::Polls) > 0
    }

    /// Which tiers are attached, in the order of [`Tier::ALL`].
    pub fn open_tiers(&self) -> [bool; 2] {
        Tier::ALL.map(|tier| self.probes.is_open(tier))
    }

    /// Attaches everything to the first processes.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn attach(&mut self, kernel: &mut Kernel, spending: &Spending, pids: &[u32]) -> Result<(), Refusal> {
        for &pid in pids {
            self.probes.cover(pid).map_err(Refusal::broken)?;
        }
        self.probes.open(Tier::Lifecycle).map_err(Refusal::broken)?;
        self.continuous = modes(spending);
        if self.has_polls() && self.continuous[Tier::Polls as usize] {
            self.probes.open(Tier::Polls).map_err(Refusal::broken)?;
            self.window += 1;
        }
        // Now, and not before: births and ends count from the same moment on.
        self.announce(kernel, spending).map_err(Refusal::broken)
    }

    /// Probes an extension of it as well.
    ///
    /// # Errors
    /// The kernel refuses; nothing of this call is left attached.
    pub fn add_extension(
        &mut self,
        kernel: &mut Kernel,
        spending: &Spending,
        extension: &Loaded,
    ) -> Result<(), KernelError> {
        self.probes.add(kernel, &extension.build.plan.probes, &extension.path)?;
        self.layout.deferred_function = extension.load_bias.wrapping_add(extension.build.plan.deferred_function);
        self.announce(kernel, spending)
    }

    /// Whether work that it defers is seen.
    pub fn sees_deferred(&self) -> bool {
        self.layout.deferred_function != 0
    }

    /// Whether a tier is measured without a gap.
    pub fn is_continuous(&self, tier: Tier) -> bool {
        self.continuous[tier as usize]
    }

    /// Lets the CPU clock sample it, too.
    ///
    /// # Errors
    /// The kernel half cannot be told.
    pub fn sample(&mut self, kernel: &mut Kernel, spending: &Spending) -> Result<(), KernelError> {
        self.samples = self.plan().can_sample();
        self.announce(kernel, spending)
    }

    /// Wants no more records of polls and wakes.
    ///
    /// # Errors
    /// The kernel half cannot be told.
    pub fn stop_trace(&mut self, kernel: &mut Kernel, spending: &Spending) -> Result<(), KernelError> {
        self.trace = false;
        self.announce(kernel, spending)
    }

    /// Tells the kernel half what is to be measured.
    fn announce(&self, kernel: &mut Kernel, spending: &Spending) -> Result<(), KernelError> {
        let mut flags = 0;
        if self.probes.is_open(Tier::Lifecycle) {
            flags |= target_flag::TASKS;
        }
        flags |= match self.build.plan.lineage {
            Lineage::ThreadLocal => target_flag::CURRENT_TASK_TLS,
            Lineage::PollStack if self.probes.is_open(Tier::Lifecycle) => target_flag::POLL_STACK,
            _ => 0,
        };
        if self.build.plan.outcome {
            flags |= target_flag::OUTCOME;
        }
        if self.probes.is_open(Tier::Polls) {
            flags |= target_flag::POLLS;
        }
        if self.trace {
            flags |= target_flag::TRACE;
        }
        if self.samples {
            flags |= target_flag::SAMPLES;
        }
        let mut layout = self.layout;
        layout.coroutine.span = self.span;
        let entry = TargetEntry {
            slot: self.slot,
            flags,
            layout,
            polls: spending.policy(self.window, self.slow_ns),
            root: self.root,
            reserved: 0,
        };
        self.probes.pids().try_for_each(|pid| kernel.set_target(pid, entry))
    }

    /// Whether the account says otherwise than it stands.
    pub fn differs(&self, spending: &Spending, wanted: [bool; 2]) -> bool {
        wanted != self.open_tiers() || self.continuous != modes(spending)
    }

    /// Whether a tier is measured without a gap from now on.
    pub fn begins(&self, spending: &Spending, tier: Tier) -> bool {
        modes(spending)[tier as usize] && !self.continuous[tier as usize]
    }

    /// Attaches and detaches what the account says. What is detached is returned to be dropped where it disturbs nobody.
    ///
    /// # Errors
    /// The kernel refuses to attach.
    pub fn apply(
        &mut self,
        kernel: &mut Kernel,
        table: &mut Table,
        spending: &Spending,
        wanted: [bool; 2],
        now_ns: u64,
    ) -> Result<Links, KernelError> {
        let mut gone = Links::default();
        let before = std::mem::replace(&mut self.continuous, modes(spending));
        for tier in Tier::ALL {
            let (want, open) = (wanted[tier as usize], self.probes.is_open(tier));
            if tier == Tier::Polls && !self.has_polls() {
                continue;
            }
            let begins = self.continuous[tier as usize] && !before[tier as usize];
            if want && !open {
                self.probes.open(tier)?;
                if tier == Tier::Lifecycle {
                    // What was seen before the gap is void.
                    self.span += 1;
                    self.window += 1;
                    if self.sees_deferred() {
                        kernel.forget_deferred_of(self.slot)?;
                    }
                }
            } else if open && !want {
                gone.absorb(self.probes.close(tier));
            }
            match tier {
                // In a window, what is seen is a sample; whoever outlives it ends unseen.
                Tier::Lifecycle if open && !want => table.interrupt(self.table, now_ns),
                Tier::Polls if begins => {
                    // What was counted in windows is no part of a total.
                    kernel.clear_types(&[self.slot])?;
                    self.unfinished.forget_outlasted();
                    self.slowest_ns.clear();
                    self.window += 1;
                }
                Tier::Polls if want && !open => self.window += 1,
                _ => {}
            }
        }
        self.announce(kernel, spending)?;
        if self.continuous[Tier::Lifecycle as usize] && !before[Tier::Lifecycle as usize] {
            table.resume(self.table, now_ns);
        }
        Ok(gone)
    }

    /// Attaches what is attached to one more process.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn cover(&mut self, pid: u32) -> Result<(), KernelError> {
        self.probes.cover(pid)
    }

    /// Whether a process has probes.
    pub fn covers(&self, pid: u32) -> bool {
        self.probes.covers(pid)
    }

    /// Takes the probes off one process.
    pub fn take(&mut self, pid: u32) -> Links {
        self.probes.take(pid)
    }

    /// Takes the probes off all processes.
    pub fn take_all(&mut self) -> Links {
        self.probes.take_all()
    }

    /// Its process has ended: what it counted stays, what there was is gone.
    pub fn end(&mut self) -> Links {
        self.overdue.clear();
        self.unfinished.set(None);
        self.probes.end()
    }

    /// How its probes are attached, for people.
    pub fn detail(&self) -> String {
        format!(
            "{} sites for births and ends, {} for polls and wakes, by {}",
            self.probes.sites(Tier::Lifecycle),
            self.probes.sites(Tier::Polls),
            self.probes.mechanism()
        )
    }

    /// Whether the kernel half knows which tasks were woken.
    pub fn sees_wakes(&self) -> bool {
        self.probes.is_open(Tier::Polls) && self.build.plan.has(Hook::WakeByRef)
    }

    /// Takes those tasks among `overdue` that are its own.
    pub fn take_overdue(&mut self, overdue: &[Overdue]) {
        self.overdue.clear();
        if !self.sees_wakes() {
            return;
        }
        for task in overdue {
            if task.window == self.window
                && self.probes.covers(task.pid)
                && let Some(kind) = self.kinds.at(task.vtable)
            {
                let (tasks, longest) = self.overdue.entry(kind).or_default();
                *tasks += 1;
                *longest = task.waited_ns.max(*longest);
            }
        }
    }

    /// Looks for polls that do not end.
    pub fn look_for_unfinished(&mut self, kernel: &mut Kernel, threads: &[u32], now_ns: u64) {
        let found = self.probes.is_open(Tier::Polls).then(|| self.find_unfinished(kernel, threads, now_ns));
        self.unfinished.set(found.as_deref());
    }

    /// Whether what the account says ends a window.
    pub fn ends_window(&self, spending: &Spending, wanted: [bool; 2]) -> bool {
        let polls = |tiers| spending.seen(tiers)[Tier::Polls as usize];
        self.has_polls() && polls(self.open_tiers()) && !polls(wanted)
    }

    /// Counts polls that are slow already when their window ends: their ends will not be seen. Without them no window
    /// would show a poll that is longer than itself.
    pub fn count_outlasting(&mut self, kernel: &mut Kernel, threads: &[u32], now_ns: u64) {
        let found = self.find_unfinished(kernel, threads, now_ns);
        self.unfinished.set(None);
        self.unfinished.outlast(&found);
        found.into_iter().for_each(|poll| self.keep_slow(poll));
    }

    fn find_unfinished(&self, kernel: &mut Kernel, threads: &[u32], now_ns: u64) -> Vec<SlowPoll> {
        let kind_of = |vtable| self.kinds.at(vtable).filter(|&kind| self.ends_soon(kind));
        unfinished::find(kernel, threads, self.window, self.slow_ns, now_ns, &kind_of)
    }

    /// Whether polls of a type are to end soon. Those that block are there for it, and workers never end theirs.
    fn ends_soon(&self, kind: TypeId) -> bool {
        self.kinds.info(kind).is_some_and(|kind| !kind.blocking && !kind.internal)
    }

    /// Adds the polls of its slot to what is exported of the tasks.
    pub fn fill_polls(&self, polls: Vec<TypePolls>, table: &Table, tasks: &mut TasksSnapshot) {
        if !self.has_polls() {
            return;
        }
        tasks.polls_continuous = Some(self.continuous[Tier::Polls as usize]);
        tasks.slow_polls = self.slow_polls.iter().copied().collect();
        let wakes = self.build.plan.has(Hook::WakeByRef);
        let waits = self.build.plan.has(Hook::PollStart);
        let mut by_type: HashMap<TypeId, PollSnapshot> = HashMap::new();
        for stats in polls {
            let Some(kind) = self.kinds.at(stats.vtable) else { continue };
            let snapshot = PollSnapshot {
                polls: stats.poll.count,
                busy_ns: stats.busy_ns,
                poll: stats.poll,
                delay: wakes.then_some(stats.delay),
                first_delay: waits.then_some(stats.first_delay),
                wakes: wakes.then_some(stats.wakes),
                slow: stats.slow,
                slowest_ns: stats.slowest_ns,
            };
            match by_type.entry(kind) {
                // Several keys may be of one name.
                Entry::Occupied(mut known) => known.get_mut().absorb(&snapshot),
                Entry::Vacant(new) => drop(new.insert(snapshot)),
            }
        }
        let seen: FxHashSet<TypeId> = by_type.keys().copied().chain(self.unfinished.kinds()).collect();
        for (kind, mut polls) in by_type {
            let outlasted = self.unfinished.outlasted(kind);
            polls.slow += outlasted.count;
            let slowest_ns = self.slowest_ns.get(&kind).copied().unwrap_or_default();
            polls.slowest_ns = polls.slowest_ns.max(outlasted.longest_ns).max(slowest_ns);
            if let Some(entry) = table.entry(self.table, kind, tasks) {
                entry.polls = Some(polls);
                let overdue = self.overdue.get(&kind);
                entry.overdue =
                    Some(overdue.map_or(0, |(tasks, _)| *tasks)).filter(|_| self.probes.is_open(Tier::Polls));
                entry.overdue_ns = overdue.map(|(_, longest)| *longest);
            }
        }
        // Also those of which nothing else was seen yet.
        for kind in seen {
            if let Some(entry) = table.entry(self.table, kind, tasks) {
                entry.unfinished = self.unfinished.of(kind).filter(|_| self.ends_soon(kind));
            }
        }
    }
}

/// A task that was woken and has waited too long for its poll.
pub(super) struct Overdue {
    pid: u32,
    vtable: u64,
    window: u32,
    waited_ns: u64,
}

/// Looks for such tasks, of all targets.
///
/// # Errors
/// The map cannot be read.
pub(super) fn look_for_overdue(kernel: &mut Kernel, now_ns: u64) -> Result<Vec<Overdue>, KernelError> {
    let mut found = Vec::new();
    kernel.woken(MAX_WOKEN, |key, woken| {
        let waited_ns = now_ns.saturating_sub(woken.since_ns);
        if woken.since_ns != 0 && waited_ns > OVERDUE_NS {
            found.push(Overdue { pid: key.pid, vtable: woken.vtable, window: woken.window, waited_ns });
        }
    })?;
    Ok(found)
}

fn modes(spending: &Spending) -> [bool; 2] {
    Tier::ALL.map(|tier| spending.mode(tier) == Mode::Continuous)
}

/// A number that no window of an earlier watching of the same process has: what is left of those in the kernel half is not
/// believed. There is less than one window in a millisecond.
fn first_window() -> u32 {
    (clock::monotonic_ns() / 1_000_000) as u32
}
