//! The maps of pauses, and of other durations by kind. Never what they are of.

use std::collections::HashMap;

use aya::Pod;
use profiler_common::duration::{Clocks, DURATION_KINDS, Durations, durations_key, durations_of};

use super::KernelError;
use super::load::Kernel;
use super::maps::{Value, failed, gone};
use crate::histogram::Histogram;

// SAFETY: each is `repr(C)`, made of integers only, without padding (asserted beside its definition).
unsafe impl Pod for Value<Durations> {}
// SAFETY: as above.
unsafe impl Pod for Value<Clocks> {}

const DURATIONS: &str = "DURATIONS";
const CLOCKS: &str = "CLOCKS";

impl Kernel {
    /// Durations by slot and kind, nanoseconds, where there were any.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn durations(&mut self) -> Result<HashMap<u32, HashMap<u32, Histogram>>, KernelError> {
        let mut found: HashMap<u32, HashMap<u32, Histogram>> = HashMap::new();
        self.each(DURATIONS, |&key: &u32, Value(stats): &Value<Durations>| {
            let (slot, kind) = durations_of(key);
            found.entry(slot).or_default().entry(kind).or_insert(Histogram::EMPTY).add_octaves(&stats.octaves);
        })?;
        Ok(found)
    }

    /// Where a process's runtime keeps when its pauses began; `None` where it has not paused.
    pub fn clocks(&mut self, pid: u32) -> Option<Clocks> {
        Some(self.hash::<u32, Value<Clocks>>(CLOCKS).ok()?.get(&pid, 0).ok()?.0)
    }

    /// Forgets where a process's runtime keeps it: it runs another image, or there is another process.
    pub fn forget_clocks(&mut self, pid: u32) {
        if let Ok(mut map) = self.hash::<u32, Value<Clocks>>(CLOCKS) {
            let _ = map.remove(&pid);
        }
    }

    /// Forgets all durations of a slot.
    ///
    /// # Errors
    /// The map cannot be written.
    pub fn clear_durations(&mut self, slot: u32) -> Result<(), KernelError> {
        let mut map = self.hash::<u32, Value<Durations>>(DURATIONS)?;
        let mut kinds = 0..DURATION_KINDS;
        kinds.try_for_each(|kind| gone(map.remove(&durations_key(slot, kind)))).map_err(failed(DURATIONS))
    }
}
