//! What is exported of a watched process, now. Never how it is measured.

use std::collections::HashMap;

use profiler_common::coroutine::wait;
use profiler_common::duration::{DEFERRED_RUN_KIND, DEFERRED_WAIT_KIND, LOCK_KIND, PAUSE_KIND};
use profiler_common::sched::{SchedStats, cause};
use rustc_hash::FxHashMap;

use super::{Slots, Spending, Watched, extension};
use crate::budget::governor::Tier;
use crate::histogram::Histogram;
use crate::kernel::feature::Feature;
use crate::kernel::load::Kernel;
use crate::model::snapshot::{
    DeferredSnapshot, IdentitySnapshot, ListenerSnapshot, PauseSnapshot, SchedSnapshot, TargetSnapshot, TasksSnapshot,
};
use crate::model::table::{Table, TargetId};
use crate::session::counted::OfSlot;
use crate::session::request::{self, Connections};
use crate::session::threads::label;
use crate::target::identity::Identity;
use crate::target::process;

impl Watched {
    /// What is exported of it, now: of what /proc and its sockets tell, since `since_ns`.
    pub fn snapshot(
        &mut self,
        kernel: &mut Kernel,
        slots: &mut Slots,
        table: &Table,
        tasks: &mut FxHashMap<TargetId, TasksSnapshot>,
        mut counted: OfSlot,
        (since_ns, now_ns): (u64, u64),
    ) -> TargetSnapshot {
        self.refresh_listeners(kernel, slots, since_ns);
        let mut tasks = self.tables.last().and_then(|table| tasks.remove(table));
        let runtime = self.runtime.as_ref().or(self.ended_runtime.as_ref());
        if let (Some(runtime), Some(tasks)) = (runtime, &mut tasks) {
            runtime.fill_polls(std::mem::take(&mut counted.polls), table, tasks);
        }
        let listeners = self.listener_snapshots(kernel, slots);
        self.look_at_cgroups(now_ns);
        let Identity { container_id, pod_uid, systemd_unit } = self.identity.clone();
        let pauses = self.pause_snapshot(kernel, &mut counted);
        let waits = self.wait_snapshots(&mut counted);
        let lock_waits = self.is_measured("lock_wait").then(|| counted.durations(LOCK_KIND));
        let deferred = self.deferred_snapshot(&mut counted);
        let jobs = if self.is_measured("jobs") { request::jobs(&mut counted) } else { None };
        let of = |connections: &Connections| {
            connections.snapshot(kernel, self.listeners.as_mut(), (self.slot, &counted.open), since_ns)
        };
        let requests = self.connections.as_ref().and_then(of);
        TargetSnapshot {
            pauses,
            waits,
            lock_waits,
            deferred,
            pid: self.process.pid,
            process: self.process.comm.clone(),
            runtime: self.runtime_name,
            runtime_version: self.runtime_version.clone(),
            identity: IdentitySnapshot { container_id, pod_uid, systemd_unit, ..IdentitySnapshot::default() },
            running: self.running(),
            status: self.status.clone(),
            sched: self.sched_snapshot(kernel, since_ns, now_ns),
            throttled: self.throttling.snapshot(),
            listeners,
            requests,
            jobs,
            tasks,
            budget: self.spending.as_ref().map(Spending::snapshot),
            figures: self.figures.clone(),
            threads: if self.running() { self.process.thread_count() } else { None },
            processes: self.running().then_some(self.members.len() as u64),
        }
    }

    fn is_measured(&self, probe: &str) -> bool {
        self.status.is_measured(probe) == Some(true)
    }

    fn wait_snapshots(&self, counted: &mut OfSlot) -> Vec<(&'static str, Histogram)> {
        if !self.is_measured("task_wait") {
            return Vec::new();
        }
        let of = |(reason, label): (usize, &'static str)| (label, counted.durations(1 + reason as u32));
        wait::LABELS.into_iter().enumerate().map(of).collect()
    }

    fn pause_snapshot(&mut self, kernel: &mut Kernel, counted: &mut OfSlot) -> Option<PauseSnapshot> {
        if !self.is_measured("gc_pause") {
            return None;
        }
        let build = self.runtime.as_ref().map(|runtime| runtime.build());
        Some(self.pauses.snapshot(kernel, build, counted.durations(PAUSE_KIND), self.process.pid, &self.members))
    }

    fn deferred_snapshot(&self, counted: &mut OfSlot) -> Option<DeferredSnapshot> {
        if !self.is_measured(extension::ROW) {
            return None;
        }
        let seen = self.runtime.as_ref().is_some_and(|runtime| runtime.is_continuous(Tier::Lifecycle));
        Some(DeferredSnapshot {
            wait: counted.durations(DEFERRED_WAIT_KIND),
            run: counted.durations(DEFERRED_RUN_KIND),
            now: seen.then_some((counted.deferred.waiting, counted.deferred.running)),
        })
    }

    fn sched_snapshot(&mut self, kernel: &mut Kernel, since_ns: u64, now_ns: u64) -> Option<SchedSnapshot> {
        // The totals before the open spans: one that ends between is in neither, and in both the other way round.
        let SchedStats { voluntary_switches, preemptions, migrations, mut asleep_ns, run_queue, on_cpu, blocked } =
            *kernel.sched(self.slot).ok()?;
        let mut on_cpu_ns = on_cpu.sum;
        let live = if self.running() { self.threads.ids(&self.members, since_ns).to_vec() } else { Vec::new() };
        for &tid in &live {
            let Some(thread) = kernel.thread(tid) else { continue };
            if thread.on_cpu_ns != 0 {
                on_cpu_ns += now_ns.saturating_sub(thread.on_cpu_ns);
            } else if thread.off_cpu_ns != 0 && thread.runnable_ns == 0 {
                asleep_ns[thread.cause as usize % cause::COUNT] += now_ns.saturating_sub(thread.off_cpu_ns);
            }
            let name = || Some(label(self.members.contains(&tid), &process::comm(tid)?));
            self.loops.lives(tid, thread.loop_score, name);
            self.threads.lives(tid, &thread, now_ns, name);
        }
        self.exported.0 = self.exported.0.max(on_cpu_ns);
        self.exported.1.iter_mut().zip(asleep_ns).for_each(|(exported, ns)| *exported = (*exported).max(ns));
        Some(SchedSnapshot {
            voluntary_switches,
            preemptions,
            migrations,
            on_cpu_ns: self.exported.0,
            asleep_ns: self.exported.1,
            causes_told: kernel.features.has(Feature::UserRegisters),
            run_queue: run_queue.each_ref().map(Histogram::from),
            on_cpu: (&on_cpu).into(),
            blocked: (&blocked).into(),
            threads: self.threads.snapshot(&live),
            loops: self.loops.snapshot(kernel, now_ns),
        })
    }

    fn listener_snapshots(&self, kernel: &mut Kernel, slots: &Slots) -> Vec<ListenerSnapshot> {
        let (depth, wait) = (self.status.is_attached("accept_depth"), self.status.is_attached("accept_wait"));
        let mut seen: HashMap<String, u32> = HashMap::new();
        let mut snapshots = Vec::with_capacity(self.sockets.len());
        for socket in &self.sockets {
            let address = socket.address.to_string();
            let nth = seen.entry(address.clone()).or_default();
            *nth += 1;
            let listener = if *nth == 1 { address } else { format!("{address}#{nth}") };
            let stats = slots.get(socket.cookie).and_then(|slot| kernel.listener(slot).ok());
            let tcp = socket.address.port().is_some();
            let (depth, accepted) = (depth && (tcp || kernel.unix.arrivals), wait && (tcp || kernel.unix.accepts));
            snapshots.push(ListenerSnapshot {
                listener,
                length: Some(u64::from(socket.length)),
                limit: Some(u64::from(socket.limit)),
                overflows: socket.drops.map(u64::from),
                accepted: stats.as_ref().filter(|_| accepted).map(|s| s.accepted),
                depth: stats.as_ref().filter(|_| depth).map(|s| Histogram::from(&s.depth)),
                // Connections of a unix socket are stamped where their depth is recorded.
                wait: stats.as_ref().filter(|_| accepted && (depth || tcp)).map(|s| Histogram::from(&s.wait)),
            });
        }
        snapshots
    }
}
