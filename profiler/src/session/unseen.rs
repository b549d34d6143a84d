//! Processes that began or ended without a report: found by looking. Never what that means to a target.

use std::path::Path;

use super::{FOLLOW_NS, Session};
use crate::clock;
use crate::kernel::KernelError;
use crate::kernel::attach::{EXITS, FORKS};
use crate::target::process;

impl Session {
    /// A process that ended before the kernel half knew of it is reported by nobody. Looks at those in `slots`.
    pub(super) fn notice_gone(&mut self, slots: &[u32]) {
        let mut gone = slots.to_vec();
        gone.retain(|&slot| self.targets.get(slot).is_some_and(|watched| !watched.process.is_running()));
        // Whose end was reported is not running any more after this.
        while self.drain() {}
        let now = clock::monotonic_ns();
        for &slot in &gone {
            let Some(watched) = self.targets.get_mut(slot).filter(|watched| watched.running()) else { continue };
            let pid = watched.process.pid;
            watched.exited(pid, &mut self.table, now);
            self.targets.forget(pid);
            // It ended before its entry was made: nobody else takes that away.
            self.kernel.remove_target(pid);
        }
        // Those whose children live on keep theirs.
        gone.retain(|&slot| self.targets.get(slot).is_some_and(|watched| watched.members().is_empty()));
        if !gone.is_empty() {
            self.kernel.forget_threads_of(&gone);
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
        for slot in self.targets.slots() {
            let Some(watched) = self.targets.get(slot) else { continue };
            let Some(entry) = self.kernel.target(watched.process.pid).filter(|_| watched.running()) else { continue };
            let root = watched.process.pid;
            for child in watched.process.same_image_children() {
                if self.targets.slot_of(child).is_some() {
                    continue;
                }
                self.kernel.set_target(child, entry)?;
                self.targets.forked(root, child);
                self.tally.forks_unseen += 1;
                if let Some(watched) = self.targets.get_mut(slot) {
                    watched.forked(child);
                }
            }
            if let Some(watched) = self.targets.get_mut(slot) {
                watched.follow_threads(&mut self.kernel)?;
            }
        }
        Ok(())
    }

    /// Ends of processes that nobody reported: where BPF programs can be preempted, the kernel leaves out one that comes
    /// while another of its kind runs on that CPU. Then it is looked at once, and otherwise now and then: a full ring loses
    /// reports, too.
    pub(super) fn notice_unseen_exits(&mut self, now_ns: u64) -> Result<(), KernelError> {
        let missed = self.kernel.runs_missed_by(EXITS);
        if missed == self.exits_missed && now_ns.saturating_sub(self.gone_ns) < FOLLOW_NS {
            return Ok(());
        }
        (self.exits_missed, self.gone_ns) = (missed, now_ns);
        let gone: Vec<u32> = self.targets.pids().filter(|&pid| !process::is_running(pid)).collect();
        if gone.is_empty() {
            return Ok(());
        }
        // Whose end was reported is known after this: a process is reported before it is gone.
        while self.drain() {}
        let before = self.tally.exits_unseen;
        for pid in gone {
            if self.targets.slot_of(pid).is_some() {
                self.tally.exits_unseen += 1;
                self.process_ended(pid, clock::monotonic_ns());
            }
        }
        if self.tally.exits_unseen > before {
            self.kernel.forget_threads(|tid| Path::new(&format!("/proc/{tid}")).exists())?;
        }
        Ok(())
    }
}
