//! What is exported of a session, now: of all targets, and of the profiler. Never what one target has.

use std::time::Instant;

use profiler_common::counter::Counter;

use super::Session;
use super::counted::Counted;
use super::runtime::{self, Overdue};
use super::target::Watched;
use super::walk::Walker;
use crate::clock;
use crate::diagnosis::Change;
use crate::model::snapshot::{NodeBudgetSnapshot, ProfilerSnapshot, Snapshot};

impl Session {
    /// Everything that is exported, now.
    pub fn snapshot(&mut self) -> Snapshot {
        self.snapshot_since(clock::monotonic_ns())
    }

    /// The same, of what /proc and the sockets told at `since_ns` or later.
    pub(super) fn snapshot_since(&mut self, since_ns: u64) -> Snapshot {
        let started = Instant::now();
        let overdue = self.find_overdue(since_ns);
        self.targets.iter_mut().for_each(|watched| watched.look_for_stuck(&mut self.kernel, &overdue, since_ns));
        self.targets.slots().into_iter().for_each(|slot| self.walk(slot, Walker::later));
        while self.drain() {}
        let now = clock::monotonic_ns();
        self.table.advance(now);
        let mut tasks = self.table.tasks();
        let deferred = self.targets.iter().any(Watched::sees_deferred);
        let mut counted = Counted::read(&mut self.kernel, self.options.requests, deferred);
        let (kernel, slots, table) = (&mut self.kernel, &mut self.listener_slots, &self.table);
        let of = |watched: &mut Watched| {
            let counted = counted.take(watched.slot());
            watched.snapshot(kernel, slots, table, &mut tasks, counted, (since_ns, now))
        };
        let targets = self.targets.iter_mut().map(of).collect();
        let mut profiler = self.profiler_snapshot();
        let took = started.elapsed();
        self.looked_ns = (now, u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
        profiler.snapshot_seconds = Some(took.as_secs_f64());
        let epoch_offset_seconds = clock::epoch_offset_seconds();
        let mut snapshot = Snapshot {
            time_ns: now,
            epoch_offset_seconds,
            targets,
            groups: None,
            diagnoses: Vec::new(),
            minutes: self.table.minutes(),
            profiler,
        };
        self.diagnoses.observe(&snapshot).iter().for_each(report);
        snapshot.diagnoses = self.diagnoses.current();
        snapshot
    }

    /// The same at the end of a measurement: what waits for its order waits no longer.
    pub fn last_snapshot(&mut self) -> Snapshot {
        while self.drain() {}
        self.table.finish();
        self.targets.iter_mut().for_each(|watched| watched.find_sites(&mut self.table, true));
        self.snapshot()
    }

    fn profiler_snapshot(&mut self) -> ProfilerSnapshot {
        let dropped: u64 = self.targets.iter().map(Watched::stacks_dropped).sum();
        let tally = &self.tally;
        let discovers = self.options.more > 0;
        let mut snapshot = ProfilerSnapshot {
            events: vec![
                ("task_spawned", tally.spawned),
                ("task_completed", tally.completed),
                ("task_found", tally.found),
                ("task_type", tally.types),
                ("task_slow_poll", tally.slow_polls),
                ("spawn_stack", tally.stacks),
                ("process_forked", tally.forked),
                ("process_execed", tally.execed),
                ("process_exited", tally.exited),
                ("thread_ended", tally.threads_ended),
                ("sample", tally.sampled),
                ("task_traced", tally.traced),
            ],
            lost: vec![
                ("record_malformed", tally.malformed),
                ("process_unknown", tally.foreign_process),
                ("process_fork_unseen", tally.forks_unseen),
                ("process_ended_unprobed", tally.ended_unprobed),
                ("process_exit_unseen", tally.exits_unseen),
                ("task_vtable_unknown", tally.foreign_vtable),
                ("accept_unseen", self.listener_slots.unseen()),
            ],
            runs_missed: self.kernel.runs_missed(),
            node: discovers.then(|| NodeBudgetSnapshot {
                budget: self.node.budget().to_string(),
                share: self.node.budget().share(),
                cost_share: self.node.cost_share(),
                factor: self.node.factor(),
            }),
            ..ProfilerSnapshot::default()
        };
        snapshot.lost.extend(self.table.losses().by_reason());
        match self.kernel.counters() {
            Ok(counters) => {
                let of = |counter: Counter| counters[counter as usize];
                let losses = Counter::ALL.iter().filter_map(|&c| Some((c.loss_reason()?, of(c))));
                snapshot.lost.extend(losses);
                snapshot.hits_ignored = vec![
                    ("idle", of(Counter::IdleHits)),
                    ("foreign_process", of(Counter::ForeignHits)),
                    ("poll_start_unseen", of(Counter::PollStartUnseen)),
                    ("spawn_stack", of(Counter::SpawnStacks)),
                    ("spawn_stack_skipped", of(Counter::SpawnStacksSkipped) + dropped),
                ];
            }
            Err(e) => log::warn!("{e}"),
        }
        snapshot
    }

    /// Tasks that were woken and are not polled.
    fn find_overdue(&mut self, now_ns: u64) -> Vec<Overdue> {
        if !self.targets.iter().any(Watched::sees_wakes) {
            return Vec::new();
        }
        runtime::look_for_overdue(&mut self.kernel, now_ns).unwrap_or_else(|e| {
            log::debug!("{e}");
            Vec::new()
        })
    }
}

/// Says that something is wrong, or no longer is.
fn report(change: &Change) {
    match change {
        Change::Appeared(found) => log::warn!("process {}: {}: {}", found.pid, found.name, found.summary),
        Change::Ended(found) => log::info!("process {}: {} has ended: {}", found.pid, found.name, found.subject),
    }
}
