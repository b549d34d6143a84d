//! The maps of pauses, and of other durations by kind. Never what they are of.

use aya::Pod;
use aya::maps::MapError;
use profiler_common::map::{Clocks, DURATION_KINDS, Durations, durations_key};

use super::KernelError;
use super::load::Kernel;
use super::maps::{Value, failed};
use crate::histogram::Histogram;

// SAFETY: each is `repr(C)`, made of integers only, without padding (asserted beside its definition).
unsafe impl Pod for Value<Durations> {}
// SAFETY: as above.
unsafe impl Pod for Value<Clocks> {}

const DURATIONS: &str = "DURATIONS";
const CLOCKS: &str = "CLOCKS";

impl Kernel {
    /// Durations of one kind of a slot, nanoseconds; none where there was none.
    pub fn durations(&mut self, slot: u32, kind: u32) -> Histogram {
        let map = self.hash::<u32, Value<Durations>>(DURATIONS);
        let stats = map.ok().and_then(|map| map.get(&durations_key(slot, kind), 0).ok());
        let mut durations = Histogram::EMPTY;
        if let Some(Value(stats)) = stats {
            durations.add_octaves(&stats.octaves);
        }
        durations
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
        for kind in 0..DURATION_KINDS {
            match map.remove(&durations_key(slot, kind)) {
                Ok(()) | Err(MapError::KeyNotFound) => {}
                Err(MapError::SyscallError(e)) if e.io_error.raw_os_error() == Some(libc::ENOENT) => {}
                Err(e) => return Err(failed(DURATIONS)(e)),
            }
        }
        Ok(())
    }
}
