//! Processes that began or ended without a report: found by looking. Never what that means to a target.

use std::path::Path;

use super::Session;
use crate::clock;
use crate::kernel::KernelError;
use crate::kernel::attach::FORKS;
use crate::target::process;

impl Session {
    /// A process that ended before the kernel half knew of it is reported by nobody.
    pub(super) fn notice_gone(&mut self) {
        let gone: Vec<u32> =
            self.targets.iter().map(|watched| &watched.process).filter(|p| !p.is_running()).map(|p| p.pid).collect();
        // Whose end was reported is not running any more after this.
        while self.drain() {}
        let now = clock::monotonic_ns();
        for watched in self.targets.iter_mut().filter(|w| w.running() && gone.contains(&w.process.pid)) {
            self.by_pid.remove(&watched.process.pid);
            watched.exited(watched.process.pid, &mut self.table, now);
        }
    }

    /// Forks of which the kernel half knows nothing, for the reason below: children that live, and threads. That some
    /// were left out is known, so nobody looks for them in vain.
    pub(super) fn notice_unseen_forks(&mut self) -> Result<(), KernelError> {
        let missed = self.kernel.runs_missed_by(FORKS);
        if missed == self.forks_missed {
            return Ok(());
        }
        self.forks_missed = missed;
        // Whose birth was reported is known after this.
        while self.drain() {}
        for index in 0..self.targets.len() {
            let watched = &self.targets[index];
            let Some(entry) = self.kernel.target(watched.process.pid).filter(|_| watched.running()) else { continue };
            for child in watched.process.same_image_children() {
                if self.by_pid.contains_key(&child) {
                    continue;
                }
                self.kernel.set_target(child, entry)?;
                self.by_pid.insert(child, index);
                self.tally.forks_unseen += 1;
                self.targets[index].forked(child);
            }
            self.targets[index].follow_threads(&mut self.kernel)?;
        }
        Ok(())
    }

    /// Ends of processes that nobody reported: where BPF programs can be preempted, the kernel leaves out one that comes
    /// while another of its kind runs on that CPU.
    pub(super) fn notice_unseen_exits(&mut self) -> Result<(), KernelError> {
        let gone: Vec<u32> = self.by_pid.keys().copied().filter(|&pid| !process::is_running(pid)).collect();
        if gone.is_empty() {
            return Ok(());
        }
        // Whose end was reported is known after this: a process is reported before it is gone.
        while self.drain() {}
        let before = self.tally.exits_unseen;
        for pid in gone {
            let Some(index) = self.by_pid.remove(&pid) else { continue };
            self.tally.exits_unseen += 1;
            self.kernel.remove_target(pid);
            self.targets[index].exited(pid, &mut self.table, clock::monotonic_ns());
        }
        if self.tally.exits_unseen > before {
            self.kernel.forget_threads(|tid| Path::new(&format!("/proc/{tid}")).exists())?;
        }
        Ok(())
    }
}
