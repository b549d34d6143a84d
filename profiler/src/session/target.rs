//! One watched process with its forked children: what is attached to it, and what is measured on it.

mod budget;
mod extension;
mod listening;
mod runtime;
mod snapshot;

use std::collections::HashSet;

use profiler_common::event::{TaskRecord, ThreadRecord, thread_flag};
use profiler_common::sched::cause;

use self::extension::Lookout;
use super::accept::{Probed, Slots};
use super::builds::Builds;
use super::claim::Claim;
use super::loops::Loops;
use super::pauses::Pauses;
use super::request::Connections;
use super::runtime::{Runtime, Tasks};
use super::spending::Spending;
use super::threads::Threads;
use super::throttle::Throttling;
use super::walk::Walker;
use crate::clock;
use crate::kernel::attach::Links;
use crate::kernel::load::Kernel;
use crate::kernel::signal::{EVENT_LOOP, RUN_QUEUE, SLEEP_CAUSE};
use crate::model::snapshot::RuntimeSnapshot;
use crate::model::table::{Table, TargetId};
use crate::status::{ProbeRow, ProbeState, TargetStatus};
use crate::target::identity::{self, Identity};
use crate::target::listener::{Listeners, ListeningSocket};
use crate::target::process::{self, Process};

/// How often it is looked which cgroups a target is in that is watched for so long, nanoseconds: others at each refresh.
const CGROUPS_NS: u64 = 5_000_000_000;
const SETTLED_NS: u64 = 10_000_000_000;

/// A watched process.
pub(super) struct Watched {
    pub process: Process,
    slot: u32,
    _claim: Claim,
    status: TargetStatus,
    /// The process itself and its forked children that run the same image.
    members: HashSet<u32>,
    /// Children that were forked since the last refresh: whether they run something else shows only then.
    forked: Vec<u32>,
    runtime: Option<Runtime>,
    /// The one that it had when it ended, of which nothing is attached: it knows whose the polls were.
    ended_runtime: Option<Runtime>,
    spending: Option<Spending>,
    walker: Option<Walker>,
    throttling: Throttling,
    pauses: Pauses,
    threads: Threads,
    loops: Loops,
    /// Whether its runtime is in a library that was not loaded when it was looked for.
    awaited: bool,
    /// When it is looked for its runtime's extension.
    lookout: Lookout,
    /// Images that it has run.
    images: u32,
    /// Since when it is watched.
    since_ns: u64,
    balanced_ns: u64,
    /// What /proc tells of its cgroups, and when it was looked.
    cgroups: (String, u64),
    /// Who managed it when it was last looked at.
    identity: Identity,
    /// What its runtime said last.
    figures: Option<RuntimeSnapshot>,
    runtime_name: &'static str,
    runtime_version: Option<String>,
    /// Tasks of the images that it ran before, or of this one once it has ended.
    tables: Vec<TargetId>,
    listeners: Option<Listeners>,
    sockets: Vec<ListeningSocket>,
    accepts: Option<Probed>,
    accept_tried: bool,
    connections: Option<Connections>,
    ended_ns: Option<u64>,
    /// Totals that were exported: a counter must not fall when a running span ends between two readings.
    exported: (u64, [u64; cause::COUNT]),
}

impl Watched {
    pub fn new(slot: u32, process: Process, claim: Claim) -> Watched {
        let members = std::iter::once(process.pid).chain(process.same_image_children()).collect();
        Watched {
            process,
            slot,
            _claim: claim,
            status: TargetStatus::default(),
            members,
            forked: Vec::new(),
            runtime: None,
            ended_runtime: None,
            spending: None,
            walker: None,
            throttling: Throttling::default(),
            pauses: Pauses::default(),
            threads: Threads::default(),
            loops: Loops::default(),
            awaited: false,
            lookout: Lookout::SOON,
            images: 1,
            since_ns: clock::monotonic_ns(),
            balanced_ns: 0,
            cgroups: (String::new(), 0),
            identity: Identity::default(),
            figures: None,
            runtime_name: "none",
            runtime_version: None,
            tables: Vec::new(),
            listeners: None,
            sockets: Vec::new(),
            accepts: None,
            accept_tried: false,
            connections: None,
            ended_ns: None,
            exported: (0, [0; cause::COUNT]),
        }
    }

    /// Leaves those of its children alone that are watched for themselves.
    pub fn leave_out(&mut self, watched: impl Fn(u32) -> bool) {
        self.members.retain(|&pid| pid == self.process.pid || !watched(pid));
    }

    pub fn members(&self) -> Vec<u32> {
        self.members.iter().copied().collect()
    }

    /// Its place in the kernel half's maps.
    pub fn slot(&self) -> u32 {
        self.slot
    }

    pub fn runtime(&self) -> &'static str {
        self.runtime_name
    }

    pub fn running(&self) -> bool {
        self.ended_ns.is_none()
    }

    /// The runtime whose records come from it.
    pub fn probed(&self) -> Option<&Runtime> {
        self.runtime.as_ref()
    }

    /// A poll of one of its tasks was slow.
    pub fn slow_poll(&mut self, record: &TaskRecord) {
        if let Some(runtime) = &mut self.runtime {
            runtime.slow_poll(record);
        }
    }

    /// One of its threads has ended.
    pub fn thread_ended(&mut self, record: &ThreadRecord) {
        let name = self.threads.ended(record);
        if record.header.flags & thread_flag::LOOP != 0 {
            self.loops.ended(record.header.tid, name);
        }
    }

    /// Takes what loops had whose threads have ended.
    pub fn collect_ended_loops(&mut self, kernel: &mut Kernel) {
        self.loops.collect_ended(kernel);
    }

    /// The same, to be given its stacks.
    pub fn probed_mut(&mut self) -> Option<&mut Runtime> {
        self.runtime.as_mut()
    }

    /// Looks at the stacks of its spawns; `paths`, if new ones are to be understood too, which takes a while.
    pub fn find_sites(&mut self, table: &mut Table, paths: bool) {
        if let Some(runtime) = &mut self.runtime {
            runtime.find_sites(table, paths);
        }
    }

    /// Stacks of its image that were not looked at.
    pub fn stacks_dropped(&self) -> u64 {
        self.runtime.as_ref().map_or(0, |runtime| runtime.stacks_dropped())
    }

    /// Makes all threads known that were there before. The kernel half follows new ones already.
    pub fn follow_threads(&mut self, kernel: &mut Kernel) -> Result<(), crate::kernel::KernelError> {
        for &pid in &self.members {
            for tid in process::threads(pid) {
                kernel.add_thread(tid, self.slot)?;
            }
        }
        for signal in [RUN_QUEUE, SLEEP_CAUSE, EVENT_LOOP] {
            match kernel.signals.way(signal) {
                Ok(way) => self.status.set(signal, ProbeState::Attached, way.how),
                Err(why) => self.status.set(signal, ProbeState::Unsupported, why),
            }
        }
        Ok(())
    }

    /// The threads that there are have not started since it is watched.
    pub fn remember_threads(&mut self) {
        let tids: Vec<u32> = self.members.iter().flat_map(|&pid| process::threads(pid)).collect();
        self.threads.were_there(tids, clock::monotonic_ns());
    }

    /// Looks which cgroups it is in: whose they are, and which limits hold it. Processes are moved to another cgroup now
    /// and then, as a rule just after they were started.
    pub fn look_at_cgroups(&mut self, now_ns: u64) {
        let young = now_ns.saturating_sub(self.since_ns) < SETTLED_NS;
        if !self.running() || !(young || now_ns.saturating_sub(self.cgroups.1) >= CGROUPS_NS) {
            return;
        }
        let Some(lines) = identity::cgroup_lines(self.process.pid) else { return };
        self.cgroups.1 = now_ns;
        if self.cgroups.0 == lines && self.throttling.is_found() {
            return;
        }
        self.identity = Identity::parse(&lines);
        self.cgroups.0 = lines;
        let (state, detail) = self.throttling.find(self.process.pid);
        if self.process.is_running() {
            self.status.set("cpu_throttled", state, detail);
        }
    }

    /// Looks whether a CPU limit has held it.
    pub fn look_for_throttling(&mut self, now_ns: u64) {
        self.throttling.look(now_ns);
    }

    /// A child was forked. It may be about to run something else: probes are attached at the next refresh.
    pub fn forked(&mut self, child: u32) {
        self.members.insert(child);
        self.forked.push(child);
    }

    /// Attaches probes to the children that still run this image.
    pub fn adopt_children(&mut self, kernel: &mut Kernel) {
        for child in std::mem::take(&mut self.forked) {
            if !self.members.contains(&child) {
                continue;
            }
            if let Some(accepts) = &mut self.accepts
                && let Err(e) = accepts.add(kernel, child)
            {
                log::debug!("process {child}: {e}");
            }
            let Some(runtime) = &mut self.runtime else { continue };
            if runtime.covers(child) {
                continue;
            }
            kernel.forget_clocks(child);
            match runtime.cover(child) {
                Ok(()) => log::info!("following process {child}, forked by {}", self.process.pid),
                // It may have ended meanwhile.
                Err(e) => log::debug!("process {child}: {e}"),
            }
        }
    }

    /// A child runs another program now.
    pub fn child_left(&mut self, pid: u32, table: &mut Table, time_ns: u64) {
        self.members.remove(&pid);
        self.pauses.ended(pid);
        if let Some(runtime) = &mut self.runtime {
            runtime.child_ended(pid, table, time_ns);
            drop(runtime.take(pid));
        }
    }

    /// The process runs another image now: the tasks of the earlier one are gone with it.
    pub fn execed(&mut self, kernel: &mut Kernel, table: &mut Table, builds: &mut Builds, time_ns: u64, how: Tasks) {
        if let Some(runtime) = self.runtime.take() {
            table.end_target(runtime.table_id(), time_ns);
            // What was counted of the earlier image's types is not this one's.
            if let Err(e) = kernel.clear_types(&[self.slot]) {
                log::warn!("{e}");
            }
        }
        self.pauses.ended(self.process.pid);
        match Process::find(self.process.pid) {
            Ok(process) => self.process = process,
            Err(e) => log::debug!("{e}"),
        }
        let of_runtime = |row: &ProbeRow| {
            row.probe.starts_with("task") || ["gc_pause", "lock_wait", extension::ROW].contains(&&*row.probe)
        };
        self.status.probes.retain(|row| !of_runtime(row));
        (self.accepts, self.accept_tried) = (None, false);
        (self.runtime_name, self.runtime_version) = ("none", None);
        (self.walker, self.figures) = (None, None);
        self.images += 1;
        self.attach_runtime(kernel, table, builds, how);
        log::info!("process {} has replaced its image, runtime {}", self.process.pid, self.runtime_name);
    }

    /// Whether a forked child has no probes of tasks, although its parent has: until it is known to run the same image.
    pub fn lacks_probes(&self, child: u32) -> bool {
        let lacks = |runtime: &Runtime| !runtime.covers(child);
        self.members.contains(&child) && self.runtime.as_ref().is_some_and(lacks)
    }

    /// A member has ended.
    pub fn exited(&mut self, pid: u32, table: &mut Table, time_ns: u64) {
        self.members.remove(&pid);
        self.pauses.ended(pid);
        if let Some(runtime) = &mut self.runtime {
            runtime.child_ended(pid, table, time_ns);
            drop(runtime.take(pid));
        }
        if pid == self.process.pid {
            log::info!("process {pid} has ended");
            if let Some(mut runtime) = self.runtime.take() {
                table.end_target(runtime.table_id(), time_ns);
                drop(runtime.end());
                self.ended_runtime = Some(runtime);
            }
            self.accepts = None;
            self.walker = None;
            self.throttling.stop(time_ns);
            // What was counted stays; what there was is gone.
            self.figures = self.figures.take().map(|f| RuntimeSnapshot {
                read_ns: f.read_ns,
                runtimes: f.runtimes,
                busy_ns: f.busy_ns,
                spawned: f.spawned,
                ..RuntimeSnapshot::default()
            });
            self.status.ended();
            self.ended_ns = Some(time_ns);
            self.listeners = None;
        }
    }

    /// Ends all measuring: hits count no more, and what was attached is handed over to be detached with the rest.
    pub fn stop(&mut self, kernel: &mut Kernel) -> Links {
        for &pid in &self.members {
            kernel.remove_target(pid);
        }
        let mut links = self.runtime.as_mut().map(|runtime| runtime.take_all()).unwrap_or_default();
        links.absorb(self.accepts.take().map(Probed::take).unwrap_or_default());
        links
    }

    /// When it has ended.
    pub fn ended_ns(&self) -> Option<u64> {
        self.ended_ns
    }

    /// Forgets those of its tables that are gone.
    pub fn forget_tables(&mut self, gone: &[TargetId]) {
        self.tables.retain(|table| !gone.contains(table));
    }

    /// Where the tasks of its images are counted.
    pub fn tables(&self) -> impl Iterator<Item = TargetId> + '_ {
        self.tables.iter().copied()
    }

    /// The threads of its processes.
    pub fn threads(&self) -> Vec<u32> {
        threads_of(&self.members)
    }

    /// Its listening sockets.
    pub fn listener_cookies(&self) -> impl Iterator<Item = u64> + '_ {
        self.sockets.iter().map(|socket| socket.cookie)
    }
}

fn threads_of(processes: &HashSet<u32>) -> Vec<u32> {
    processes.iter().flat_map(|&pid| process::threads(pid)).collect()
}
