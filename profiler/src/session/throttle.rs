//! How long a CPU limit holds a target: what its cgroups counted, look by look. Never where they are.

use crate::model::snapshot::ThrottledSnapshot;
use crate::status::ProbeState;
use crate::target::throttle::{Throttle, ThrottleError};

/// How often it is looked, nanoseconds: no more than one period of the limit is usual then, while it holds.
const OFTEN_NS: u64 = 100_000_000;
const SELDOM_NS: u64 = 1_000_000_000;
/// A limit that has not held for so long does not hold just now, nanoseconds.
const CALM_NS: u64 = 10_000_000_000;

/// The throttled time of one target.
#[derive(Default)]
pub(super) struct Throttling {
    throttle: Option<Throttle>,
    looked_ns: u64,
    /// When it was found to be held.
    held_ns: Option<u64>,
    /// The cgroup that was read is gone.
    lost: bool,
    /// Since it could be told at all.
    seen: Option<ThrottledSnapshot>,
}

impl Throttling {
    /// Whether its cgroups are known, as far as they can be.
    pub fn is_found(&self) -> bool {
        !self.lost
    }

    /// Looks for the process's cgroups; a row of the target's status.
    pub fn find(&mut self, pid: u32) -> (ProbeState, String) {
        self.lost = false;
        match Throttle::find(pid) {
            Ok(throttle) => {
                let levels = throttle.levels();
                let how =
                    format!("by cpu.stat, once a second, and ten times while a limit holds it; cgroups: {levels}");
                self.throttle = Some(throttle);
                self.seen.get_or_insert_default();
                (ProbeState::Attached, how)
            }
            Err(e) => {
                self.throttle = None;
                let state = match e {
                    ThrottleError::Root | ThrottleError::NoController { .. } => ProbeState::NotApplicable,
                    ThrottleError::NotMounted | ThrottleError::OutOfSight { .. } => ProbeState::Unsupported,
                    ThrottleError::Read { .. } => ProbeState::Broken,
                };
                (state, e.to_string())
            }
        }
    }

    /// Takes what was counted since the last look, where it is time for one.
    pub fn look(&mut self, now_ns: u64) {
        let is_held = self.held_ns.is_some_and(|held| now_ns.saturating_sub(held) < CALM_NS);
        if now_ns.saturating_sub(self.looked_ns) >= if is_held { OFTEN_NS } else { SELDOM_NS } {
            self.take(now_ns);
        }
    }

    fn take(&mut self, now_ns: u64) {
        self.looked_ns = now_ns;
        let (Some(throttle), Some(seen)) = (&mut self.throttle, &mut self.seen) else { return };
        match throttle.take() {
            Ok(Some(grown)) => {
                self.held_ns = Some(now_ns);
                seen.wait.record_mean(grown.time_ns, grown.periods);
            }
            Ok(None) => {}
            // It was removed: the process has left it, or has ended.
            Err(e) => {
                log::debug!("cpu.stat: {e}");
                (self.throttle, self.lost) = (None, true);
            }
        }
    }

    /// No look any more: the process has ended.
    pub fn stop(&mut self, now_ns: u64) {
        self.take(now_ns);
        self.throttle = None;
    }

    /// What is exported of it; `None` where it could never be told.
    pub fn snapshot(&self) -> Option<ThrottledSnapshot> {
        self.seen.clone()
    }
}
