//! The maps of pauses. Never what a pause is.

use aya::Pod;
use profiler_common::map::{Clocks, PauseStats};

use super::KernelError;
use super::load::Kernel;
use super::maps::{Value, failed};
use crate::histogram::Histogram;

// SAFETY: each is `repr(C)`, made of integers only, without padding (asserted beside its definition).
unsafe impl Pod for Value<PauseStats> {}
// SAFETY: as above.
unsafe impl Pod for Value<Clocks> {}

const PAUSE_STATS: &str = "PAUSE_STATS";
const CLOCKS: &str = "CLOCKS";

impl Kernel {
    /// Durations of the pauses of a slot, nanoseconds; none where there was none.
    pub fn pauses(&mut self, slot: u32) -> Histogram {
        let map = self.hash::<u32, Value<PauseStats>>(PAUSE_STATS);
        let stats = map.ok().and_then(|map| map.get(&slot, 0).ok());
        let mut pauses = Histogram::EMPTY;
        if let Some(Value(stats)) = stats {
            pauses.add_octaves(&stats.pause);
        }
        pauses
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

    /// Forgets the pauses of a slot.
    ///
    /// # Errors
    /// The map cannot be written.
    pub fn clear_pauses(&mut self, slot: u32) -> Result<(), KernelError> {
        let mut map = self.hash::<u32, Value<PauseStats>>(PAUSE_STATS)?;
        match map.remove(&slot) {
            Ok(()) | Err(aya::maps::MapError::KeyNotFound) => Ok(()),
            Err(aya::maps::MapError::SyscallError(e)) if e.io_error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            Err(e) => Err(failed(PAUSE_STATS)(e)),
        }
    }
}
