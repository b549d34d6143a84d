//! Processes that come and go while the session runs: claimed and looked into first, attached to then, and let go without
//! a trace. Never which of them are wanted.

use std::time::Instant;

use profiler_common::map::Target as TargetEntry;
use rustc_hash::FxHashMap;

use super::builds::Found;
use super::claim::{self, Claim};
use super::counted::Counted;
use super::target::Watched;
use super::targets::FreeSlot;
use super::walk::Walker;
use super::{Session, SessionError, detach};
use crate::clock;
use crate::kernel::KernelError;
use crate::model::snapshot::{TargetSnapshot, TasksSnapshot};
use crate::model::table::TargetId;
use crate::target::process::{Image, Process};

/// A target that has ended keeps its slot for so long, nanoseconds, where others come: it is shown as ended.
const ENDED_NS: u64 = 15_000_000_000;
/// One in so many slots is to be free for processes that come.
const ROOM: u32 = 16;

/// How a process is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watching {
    /// For itself.
    Itself,
    /// As a child of a process that is.
    AsChild,
    /// Not at all.
    Not,
}

impl Session {
    /// Watches one more process, from now on.
    ///
    /// # Errors
    /// It cannot be watched: then nothing is attached to it.
    pub fn add(&mut self, pid: u32) -> Result<(), SessionError> {
        if self.targets.slot_of(pid).is_some() {
            return Ok(());
        }
        let process = Process::find(pid)?;
        let claim = claim::claim(&process, self.options.force)?;
        // Whether it may be looked into is known before anything is attached.
        process.image()?;
        let slot = self.watch(process, claim)?;
        self.walk(slot, Walker::first);
        self.notice_gone(&[slot]);
        // It may run where the clock does not tick yet.
        self.followed_ns = 0;
        Ok(())
    }

    /// Watches a process no longer, and forgets what was measured of it. Whoever is not watched, or is a child of a process
    /// that is, is left alone.
    pub fn let_go(&mut self, pid: u32) {
        let Some(slot) = self.targets.slot_of(pid) else { return };
        if self.targets.get(slot).is_some_and(|watched| watched.process.pid == pid) {
            self.release(slot);
            self.forget(&[slot]);
            log::info!("process {pid} is not watched any more");
        }
    }

    /// Opens no windows of what the budget does not permit all the time, until this is taken back: opening and closing those
    /// of many processes takes as long as attaching to others.
    pub fn hold_windows(&mut self, held: bool) {
        self.tasks.held = held;
        self.targets.iter_mut().for_each(|watched| watched.hold_windows(held));
    }

    /// How a process is watched.
    pub fn watches(&self, pid: u32) -> Watching {
        match self.targets.of(pid) {
            Some(watched) if watched.process.pid == pid => Watching::Itself,
            Some(_) => Watching::AsChild,
            None => Watching::Not,
        }
    }

    /// Processes that are watched and have not ended, without their children.
    pub fn watched(&self) -> Vec<u32> {
        self.targets.iter().filter(|watched| watched.running()).map(|watched| watched.process.pid).collect()
    }

    /// Processes that can be watched at the same time.
    pub fn limit(&self) -> u32 {
        self.targets.limit()
    }

    /// Whether one more process could be watched now.
    pub fn has_room(&self) -> bool {
        self.targets.free_slot(clock::monotonic_ns()).is_some()
    }

    /// Processes of all programs that began at least `age_ns` ago and live, each once for each image that they run.
    ///
    /// # Errors
    /// The kernel half cannot be asked.
    pub fn take_grown(&mut self, age_ns: u64) -> Result<Vec<u32>, SessionError> {
        Ok(self.kernel.take_grown(clock::monotonic_ns().saturating_sub(age_ns))?)
    }

    /// The runtime of an image; `None` where none is known. What is read once is known from then on.
    pub fn runtime_of(&mut self, image: &Image) -> Option<&'static str> {
        match self.builds.of(image.file_id, &image.file, self.options.poll_stack).ok()? {
            Found::Here(build) => Some(build.plan.runtime),
            Found::InLibrary(runtime, _) => Some(runtime.name()),
        }
    }

    /// Watches one process: the kernel's signals first, since they need nothing of it, then its runtime's. Returns its slot.
    pub(super) fn watch(&mut self, process: Process, claim: Claim) -> Result<u32, SessionError> {
        let started = Instant::now();
        let free = self.targets.free_slot(clock::monotonic_ns());
        let slot = free.ok_or(SessionError::Full { limit: self.targets.limit() })?;
        let mut watched = Watched::new(slot.number, process, claim);
        watched.leave_out(|pid| self.targets.slot_of(pid).is_some());
        let attached = self.attach_all(&mut watched, slot);
        let (pid, took) = (watched.process.pid, started.elapsed().as_millis());
        let said =
            format!("watching process {pid} ({}), runtime {}: {took} ms", watched.process.comm, watched.runtime());
        self.targets.insert(slot, watched);
        if let Err(e) = attached {
            self.release(slot.number);
            self.forget(&[slot.number]);
            return Err(e.into());
        }
        log::info!("{said}");
        Ok(slot.number)
    }

    fn attach_all(&mut self, watched: &mut Watched, slot: FreeSlot) -> Result<(), KernelError> {
        if slot.used {
            self.kernel.clear_slot(slot.number, self.options.requests)?;
        }
        // Arrivals before accepts: what is accepted at a listener that is not known yet would count as lost.
        watched.open_listeners(&mut self.namespaces);
        watched.refresh_listeners(&mut self.kernel, &mut self.listener_slots, clock::monotonic_ns());
        let entry = TargetEntry { slot: slot.number, root: watched.process.pid, ..TargetEntry::default() };
        watched.members().into_iter().try_for_each(|member| self.kernel.set_target(member, entry))?;
        watched.follow_threads(&mut self.kernel)?;
        watched.remember_threads();
        watched.look_at_cgroups(clock::monotonic_ns());
        watched.attach_accept(&mut self.kernel, &mut self.accept);
        watched.look_for_uring(&mut self.kernel, &mut self.listener_slots);
        // From here on accepts are seen: two looks tell where to count from.
        for _ in 0..2 {
            watched.refresh_listeners(&mut self.kernel, &mut self.listener_slots, clock::monotonic_ns());
        }
        watched.follow_requests(&mut self.kernel, self.requests.as_ref());
        watched.attach_runtime(&mut self.kernel, &mut self.table, &mut self.builds, self.tasks);
        watched.look_for_extension(&mut self.kernel, &mut self.builds, clock::monotonic_ns());
        watched.sample(&mut self.kernel, &mut self.table, &self.clock);
        Ok(())
    }

    /// Forgets the targets that ended so long ago that their series are not kept any more.
    pub(super) fn expire(&mut self, now_ns: u64) {
        let retention_ns = match self.options.more {
            0 => self.options.limits.retention_ns,
            // What it counted is kept by whoever takes it, before the table forgets it; the slot is for somebody else.
            _ => (self.options.limits.retention_ns / 2).min(ENDED_NS),
        };
        let of = |slot: u32| Some((self.targets.get(slot)?.ended_ns()?, slot));
        let mut ended: Vec<(u64, u32)> = self.targets.slots().into_iter().filter_map(of).collect();
        ended.sort_unstable();
        let is_over = |(at, _): &&(u64, u32)| now_ns.saturating_sub(*at) > retention_ns;
        let over = ended.iter().take_while(is_over).count();
        // Where processes are added, the next one is not to wait for a slot because of one that has ended: those are kept for
        // as long as they are in nobody's way.
        let wanted = self.options.more.div_ceil(ROOM).saturating_sub(self.targets.free());
        ended.truncate(over.max(wanted as usize));
        let slots: Vec<u32> = ended.into_iter().map(|(_, slot)| slot).collect();
        if !slots.is_empty() {
            self.retire(&slots);
            self.forget(&slots);
        }
        let gone = self.table.expire(now_ns);
        self.targets.iter_mut().for_each(|watched| watched.forget_tables(&gone));
    }

    /// The last of targets that have ended and are not kept any more, since they were taken last.
    pub fn take_retired(&mut self) -> Vec<TargetSnapshot> {
        std::mem::take(&mut self.retired)
    }

    /// Lets targets go that have ended; where targets come and go, what they counted is kept to be taken.
    fn retire(&mut self, slots: &[u32]) {
        if self.options.more > 0 {
            while self.drain() {}
            let now_ns = clock::monotonic_ns();
            // Of what has ended nothing is open.
            let mut counted = Counted::read(&mut self.kernel, false, false);
            let Session { kernel, listener_slots, table, targets, retired, .. } = self;
            for slot in slots {
                let Some(watched) = targets.get_mut(*slot) else { continue };
                let mut tasks: FxHashMap<TargetId, TasksSnapshot> =
                    watched.tables().filter_map(|id| Some((id, table.tasks_of(id)?))).collect();
                let counted = counted.take(*slot);
                let snapshot = watched.snapshot(kernel, listener_slots, table, &mut tasks, counted, (now_ns, now_ns));
                retired.push(snapshot);
            }
        }
        slots.iter().for_each(|&slot| self.release(slot));
        // Its types leave room for others' before the slot does.
        if let Err(e) = self.kernel.clear_types(slots) {
            log::warn!("{e}");
        }
    }

    /// Forgets whatever the kernel half knows of what was in these slots.
    fn forget(&mut self, slots: &[u32]) {
        self.kernel.forget_threads_of(slots);
        if self.options.requests
            && let Err(e) = self.kernel.forget_requests_of(slots)
        {
            log::warn!("{e}");
        }
    }

    /// Takes everything off a target, and the target out of its slot.
    fn release(&mut self, slot: u32) {
        if let Some(watched) = self.targets.get_mut(slot) {
            detach(watched.stop(&mut self.kernel));
            watched.forget_all_deferred(&mut self.kernel);
            // None is followed any more from here on: those that there are, are all.
            self.kernel.remove_threads(&watched.threads());
        }
        // What was reported of it until now is still its own.
        while self.drain() {}
        let now_ns = clock::monotonic_ns();
        let Some(watched) = self.targets.remove(slot, now_ns) else { return };
        watched.tables().for_each(|table| self.table.end_target(table, now_ns));
        for cookie in watched.listener_cookies() {
            // A socket may have been inherited, and be another target's as well.
            if !self.targets.iter().any(|other| other.listener_cookies().any(|of| of == cookie)) {
                self.listener_slots.release(&mut self.kernel, cookie);
            }
        }
    }
}
