//! The maps of deferred work. Never what it is.

use std::collections::HashMap;

use aya::Pod;
use profiler_common::deferred::{Deferred, DeferredRun};
use profiler_common::map::TaskKey;

use super::KernelError;
use super::load::Kernel;
use super::maps::Value;

// SAFETY: each is `repr(C)`, made of integers only, without padding (asserted beside its definition).
unsafe impl Pod for Value<Deferred> {}
// SAFETY: as above.
unsafe impl Pod for Value<DeferredRun> {}

const DEFERRED: &str = "DEFERRED";
const RUNS: &str = "DEFERRED_RUNS";

/// Deferred work of a target, now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeferredNow {
    /// What waits to be run.
    pub waiting: u64,
    /// What is run.
    pub running: u64,
}

impl Kernel {
    /// Deferred work by slot, where there is any.
    ///
    /// # Errors
    /// A map cannot be read.
    pub fn deferred(&mut self) -> Result<HashMap<u32, DeferredNow>, KernelError> {
        let mut found: HashMap<u32, DeferredNow> = HashMap::new();
        self.each(DEFERRED, |_: &Value<TaskKey>, Value(deferred): &Value<Deferred>| {
            found.entry(deferred.slot).or_default().waiting += deferred.waiting;
        })?;
        self.each(RUNS, |_: &u32, Value(run): &Value<DeferredRun>| found.entry(run.slot).or_default().running += 1)?;
        Ok(found)
    }

    /// Forgets the deferred work of a slot: it was not watched all the time, or is not any more.
    ///
    /// # Errors
    /// A map cannot be read.
    pub fn forget_deferred_of(&mut self, slot: u32) -> Result<(), KernelError> {
        self.forget(DEFERRED, |_: &Value<TaskKey>, Value(deferred): &Value<Deferred>| deferred.slot == slot)?;
        self.forget(RUNS, |_: &u32, Value(run): &Value<DeferredRun>| run.slot == slot)
    }

    /// Forgets the deferred work of a process that is no more, or runs another image.
    ///
    /// # Errors
    /// A map cannot be read.
    pub fn forget_deferred_by(&mut self, pid: u32) -> Result<(), KernelError> {
        self.forget(DEFERRED, |Value(key): &Value<TaskKey>, _: &Value<Deferred>| key.pid == pid)?;
        self.forget(RUNS, |_: &u32, Value(run): &Value<DeferredRun>| run.pid == pid)
    }
}
