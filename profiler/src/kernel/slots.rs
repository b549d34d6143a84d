//! Slots of targets in the kernel half's maps: how many there are, and that they are emptied before they are used again.
//! Never what is counted in them.

use aya::Pod;
use aya::maps::{MapData, PerCpuArray, PerCpuValues};
use profiler_common::map::Cost;
use profiler_common::request::RequestStats;
use profiler_common::sched::{SchedStats, Thread};

use super::KernelError;
use super::load::Kernel;
use super::maps::{Value, failed};

/// Targets of a node where nobody says how many, and what their slots may take together: the agent is to stay within the 256 MiB
/// of its manifest, whatever the machine is.
pub const MOST: u32 = 256;
const ROOM_BYTES: u64 = 80 << 20;
/// On a machine of a thousand CPUs, too.
const LEAST: u32 = 16;

/// For how many targets there is room where nobody says for how many, and on how many CPUs each takes memory.
///
/// # Errors
/// The kernel does not tell its CPUs.
pub fn room(requests: bool) -> Result<(u32, usize), KernelError> {
    let cpus = possible_cpus()?;
    Ok((room_on(cpus, requests), cpus))
}

fn room_on(cpus: usize, requests: bool) -> u32 {
    let targets = ROOM_BYTES / (slot_bytes(requests) * cpus.max(1) as u64);
    u32::try_from(targets).unwrap_or(MOST).clamp(LEAST, MOST)
}

/// What a slot takes on each CPU that there may be, whether it is in use or not.
fn slot_bytes(requests: bool) -> u64 {
    let always = size_of::<SchedStats>() + size_of::<Cost>();
    (always + if requests { size_of::<RequestStats>() } else { 0 }) as u64
}

fn possible_cpus() -> Result<usize, KernelError> {
    aya::util::nr_cpus()
        .map_err(|(_, source)| KernelError::System { what: "count the possible CPUs".to_owned(), source })
}

impl Kernel {
    /// Empties a slot of all that was counted in it; with `requests`, of those, too.
    ///
    /// # Errors
    /// A map cannot be written.
    pub fn clear_slot(&mut self, slot: u32, requests: bool) -> Result<(), KernelError> {
        self.empty("SCHED", slot, Value(SchedStats::EMPTY))?;
        self.empty("COSTS", slot, Value(Cost::default()))?;
        if requests {
            self.empty("REQUESTS", slot, Value(RequestStats::EMPTY))?;
        }
        self.clear_durations(slot)?;
        self.clear_types(&[slot])
    }

    /// Watches threads no longer. Those that are not watched are left alone.
    pub fn remove_threads(&mut self, tids: &[u32]) {
        if let Ok(mut threads) = self.hash::<u32, Value<Thread>>("THREADS") {
            for tid in tids {
                let _ = threads.remove(tid);
            }
        }
        tids.iter().for_each(|&tid| self.remove_event_loop(tid));
    }

    /// Watches the threads of these slots no longer, whoever they are: one that ended while it was made known has left an entry
    /// that nobody takes out.
    pub fn forget_threads_of(&mut self, slots: &[u32]) {
        let of_slot = |_: &u32, Value(thread): &Value<Thread>| slots.contains(&thread.slot);
        if let Err(e) = self.forget("THREADS", of_slot) {
            log::warn!("{e}");
        }
    }

    fn empty<V: Pod>(&mut self, map: &'static str, slot: u32, value: V) -> Result<(), KernelError> {
        let values = PerCpuValues::try_from(vec![value; possible_cpus()?])
            .map_err(|source| KernelError::System { what: format!("prepare an empty slot of {map}"), source })?;
        let mut slots: PerCpuArray<&mut MapData, V> = self.per_cpu(map)?;
        slots.set(slot, values, 0).map_err(failed(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Check that slots take no more than they may on machines of any size, and that small ones have room for all.
    #[test]
    fn slots_fit_on_large_machines() {
        for (cpus, targets) in [(1, 256), (8, 256), (30, 256), (31, 250), (64, 121), (192, 40), (1024, 16)] {
            assert_eq!(room_on(cpus, false), targets, "{cpus} CPUs");
        }
        for cpus in 1..=512 {
            for requests in [false, true] {
                let targets = u64::from(room_on(cpus, requests));
                let bytes = targets * slot_bytes(requests) * cpus as u64;
                assert!(bytes <= ROOM_BYTES || targets == u64::from(LEAST), "{cpus} CPUs, {targets} targets: {bytes}");
            }
        }
    }
}
