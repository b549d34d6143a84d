//! The runtime of a watched process: recognised, probed, walked, sampled. Never its sockets, nor what probing may cost.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;

use super::super::builds::Builds;
use super::super::image::{self, Reading, Refusal};
use super::super::probes::Probes;
use super::super::runtime::{Overdue, Runtime, Tasks};
use super::super::sample::Clock;
use super::super::walk::Walker;
use super::extension::Lookout;
use super::{Spending, Watched};
use crate::kernel::KernelError;
use crate::kernel::clock::online_cpus;
use crate::kernel::load::Kernel;
use crate::kernel::signal::TASK_POLLS;
use crate::model::table::Table;
use crate::runtime::Hook;
use crate::status::ProbeState;
use crate::target::process;

impl Watched {
    /// Recognises the runtime and attaches its probes. What cannot be attached is a row of the status.
    pub fn attach_runtime(&mut self, kernel: &mut Kernel, table: &mut Table, builds: &mut Builds, how: Tasks) {
        // What an earlier image's probes were hit is not this one's.
        let before = kernel.cost(self.slot).unwrap_or_default();
        let mut spending = Spending::new(how.budget, how.traps, None, before);
        spending.set_factor(how.factor);
        self.spending = Some(spending);
        self.awaited = false;
        self.members.iter().for_each(|&pid| kernel.forget_clocks(pid));
        if let Err(refusal) = self.try_attach_runtime(kernel, table, builds, how) {
            if let Some(name) = refusal.awaited {
                (self.runtime_name, self.awaited) = (name, true);
            }
            self.status.set("tasks", refusal.state, refusal.why);
        }
    }

    /// Looks again for a runtime whose library was not loaded when it was looked for. Returns whether it is attached now.
    pub fn attach_awaited(&mut self, kernel: &mut Kernel, table: &mut Table, builds: &mut Builds, how: Tasks) -> bool {
        let waits = self.awaited && self.running();
        if waits {
            self.attach_runtime(kernel, table, builds, how);
        }
        waits && self.runtime.is_some()
    }

    fn try_attach_runtime(
        &mut self,
        kernel: &mut Kernel,
        table: &mut Table,
        builds: &mut Builds,
        how: Tasks,
    ) -> Result<(), Refusal> {
        let image = self.process.image().map_err(Refusal::broken)?;
        let Reading { code, walk } = image::read(&self.process, &image, builds, how.poll_stack)?;
        let build = Rc::clone(&code.build);
        let plan = &build.plan;
        self.runtime_name = plan.runtime;
        self.runtime_version.clone_from(&plan.version);
        for signal in &plan.signals {
            match &signal.state {
                Ok(how) => self.status.set(signal.name, ProbeState::Attached, how),
                Err(why) => self.status.set(signal.name, ProbeState::Unsupported, why),
            }
        }
        match walk {
            Ok(walk) => {
                self.walker = Some(Walker::new(walk, self.process.pid, Arc::clone(&build.types)));
            }
            Err(why) => self.status.set("task_walk", ProbeState::Unsupported, why),
        }
        if plan.probes.is_empty() {
            return Err(Refusal::unsupported("nothing to probe was found in this build: see the rows of its signals"));
        }
        let signals: Vec<&str> = plan.signals.iter().map(|signal| signal.name).collect();
        let before = kernel.cost(self.slot).unwrap_or_default();
        let mut spending = Spending::new(how.budget, how.traps, Some(plan), before);
        spending.set_factor(how.factor);
        if how.held {
            spending.begin_without_polls();
        }
        let attach = || -> Result<Runtime, Refusal> {
            let probes = Probes::new(kernel, plan, &code.path).map_err(Refusal::unsupported)?;
            let id = table.add_target(Arc::clone(&build.types));
            self.tables.push(id);
            let mut runtime = Runtime::new(code, probes, id, (self.slot, self.process.pid), how);
            let pids: Vec<u32> = self.members.iter().copied().collect();
            runtime.attach(kernel, &spending, &pids)?;
            Ok(runtime)
        };
        let runtime = match attach() {
            Ok(runtime) => runtime,
            Err(refusal) => {
                // None of the plan's signals is measured, whatever it promised.
                for signal in signals {
                    self.status.set(signal, refusal.state, refusal.why.clone());
                }
                return Err(refusal);
            }
        };
        self.status.set("tasks", ProbeState::Attached, runtime.detail());
        let polls = runtime.plan().has_polls() && !runtime.has_polls();
        let lacks = |hook| runtime.plan().has(hook) && !runtime.sees_waits();
        let (waits, locks) = (lacks(Hook::Wait), lacks(Hook::Lock));
        let lacking = [("task_polls", polls), ("task_wakes", polls), ("task_wait", waits), ("lock_wait", locks)];
        for (signal, _) in lacking.into_iter().filter(|(_, lacking)| *lacking) {
            let why = kernel.signals.way(TASK_POLLS).err();
            let why = why.unwrap_or_else(|| "single uprobes are not detached in time".to_owned());
            self.status.set(signal, ProbeState::Unsupported, why);
        }
        (self.runtime, self.spending, self.lookout) = (Some(runtime), Some(spending), Lookout::SOON);
        Ok(())
    }

    /// Wants no more records of polls and wakes.
    pub fn stop_trace(&mut self, kernel: &mut Kernel) -> Result<(), KernelError> {
        match (&mut self.runtime, &self.spending) {
            (Some(runtime), Some(spending)) => runtime.stop_trace(kernel, spending),
            _ => Ok(()),
        }
    }

    /// Whether its wakes are seen.
    pub fn sees_wakes(&self) -> bool {
        self.runtime.as_ref().is_some_and(Runtime::sees_wakes)
    }

    /// Looks for tasks that nobody polls, among those that are `overdue`, and for polls that do not end.
    pub fn look_for_stuck(&mut self, kernel: &mut Kernel, overdue: &[Overdue], now_ns: u64) {
        let Some(runtime) = &mut self.runtime else { return };
        runtime.look_for_unfinished(kernel, self.threads.ids(&self.members, now_ns), now_ns);
        runtime.take_overdue(overdue);
    }

    /// Lets the CPU clock sample it, where its runtime is known.
    pub fn sample(&mut self, kernel: &mut Kernel, table: &mut Table, clock: &Clock) {
        let Some(runtime) = &mut self.runtime else { return };
        if !runtime.plan().can_sample() {
            let why = "which task a thread runs cannot be told at any moment: see the time of its polls";
            self.status.set("task_cpu", ProbeState::Unsupported, why);
            return;
        }
        let (state, detail) = clock.state();
        self.status.set("task_cpu", state, detail);
        if state != ProbeState::Attached {
            return;
        }
        table.sample_cpu(runtime.table_id());
        let Some(spending) = &self.spending else { return };
        if let Err(e) = runtime.sample(kernel, spending) {
            self.status.set("task_cpu", ProbeState::Broken, e.to_string());
        }
    }

    /// The CPUs on which the clock finds it; none where its runtime is not known.
    pub fn cpus(&mut self, now_ns: u64) -> BTreeSet<u32> {
        if !self.runtime.as_ref().is_some_and(|runtime| runtime.plan().can_sample()) {
            return BTreeSet::new();
        }
        process::cpus(self.threads.ids(&self.members, now_ns)).unwrap_or_else(|_| online_cpus().into_iter().collect())
    }

    /// Lends what walks it, with the number of its image, for as long as both are watched.
    pub fn take_walker(&mut self) -> Option<(Walker, u32)> {
        Some((self.walker.take()?, self.images))
    }

    /// Takes back what was lent, unless the process runs another image now, or none.
    pub fn put_walker(&mut self, walker: Walker, image: u32) {
        if self.running() && image == self.images {
            let (state, detail) = &walker.row;
            self.status.set("task_walk", *state, detail);
            self.figures.clone_from(&walker.figures);
            self.walker = Some(walker);
        }
    }

    /// Whether its memory should be walked although nobody asks for its figures.
    pub fn wants_walk(&self, now_ns: u64) -> bool {
        self.walker.as_ref().is_some_and(|walker| walker.is_wanted(now_ns))
    }
}
