//! How long a CPU limit holds a target: what its cgroups counted, look by look. Never where they are.

use profiler_common::histogram::{Histogram, bucket};

use crate::model::snapshot::ThrottledSnapshot;
use crate::status::ProbeState;
use crate::target::throttle::{Throttle, ThrottleError, Throttled};

/// The throttled time of one target.
#[derive(Default)]
pub(super) struct Throttling {
    throttle: Option<Throttle>,
    /// Since it could be told at all.
    seen: Option<ThrottledSnapshot>,
}

impl Throttling {
    /// Looks for the process's cgroups, unless they are known; a row of the target's status, where there is news.
    pub fn find(&mut self, pid: u32) -> Option<(ProbeState, String)> {
        if self.throttle.as_ref().is_some_and(|throttle| throttle.is_of(pid)) {
            return None;
        }
        match Throttle::find(pid) {
            Ok(throttle) => {
                let how = format!("by cpu.stat, ten times a second; cgroups: {}", throttle.levels());
                self.throttle = Some(throttle);
                self.seen.get_or_insert_default();
                Some((ProbeState::Attached, how))
            }
            Err(e) => {
                self.throttle = None;
                let state = match e {
                    ThrottleError::Root | ThrottleError::NoController { .. } => ProbeState::NotApplicable,
                    ThrottleError::NotMounted | ThrottleError::OutOfSight { .. } => ProbeState::Unsupported,
                    ThrottleError::Read { .. } => ProbeState::Broken,
                };
                Some((state, e.to_string()))
            }
        }
    }

    /// Takes what was counted since the last look.
    pub fn look(&mut self) {
        let (Some(throttle), Some(seen)) = (&mut self.throttle, &mut self.seen) else { return };
        match throttle.take() {
            Ok(Some(grown)) => record(&mut seen.wait, grown),
            Ok(None) => {}
            // It was removed: the process has left it, or has ended.
            Err(e) => {
                log::debug!("cpu.stat: {e}");
                self.throttle = None;
            }
        }
    }

    /// No look any more: the process has ended.
    pub fn stop(&mut self) {
        self.look();
        self.throttle = None;
    }

    /// What is exported of it; `None` where it could never be told.
    pub fn snapshot(&self) -> Option<ThrottledSnapshot> {
        self.seen.clone()
    }
}

/// Throttlings of which only the sum is known: each counts as their mean.
fn record(wait: &mut Histogram, grown: Throttled) {
    let Some(mean) = grown.time_ns.checked_div(grown.periods) else { return };
    wait.buckets[bucket(mean)] += grown.periods;
    wait.count += grown.periods;
    wait.sum = wait.sum.wrapping_add(grown.time_ns);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Check that we keep number and sum, and put each into the bucket of the mean.
    #[test]
    fn throttlings_count_as_their_mean() {
        let mut wait = Histogram::EMPTY;
        record(&mut wait, Throttled { periods: 3, time_ns: 301 });
        assert_eq!((wait.count, wait.sum, wait.buckets[bucket(100)]), (3, 301, 3));
    }
}
