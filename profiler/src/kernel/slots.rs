//! Slots of targets in the kernel half's maps: emptied before they are used again. Never what is counted in them.

use aya::Pod;
use aya::maps::{MapData, PerCpuArray, PerCpuValues};
use profiler_common::map::Cost;
use profiler_common::request::RequestStats;
use profiler_common::sched::{SchedStats, Thread};

use super::KernelError;
use super::load::Kernel;
use super::maps::{Value, failed};

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
        self.clear_pauses(slot)?;
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
        let Ok(mut threads) = self.hash::<u32, Value<Thread>>("THREADS") else { return };
        let of_slot = |(tid, Value(thread)): (u32, Value<Thread>)| slots.contains(&thread.slot).then_some(tid);
        let tids: Vec<u32> = threads.iter().map_while(Result::ok).filter_map(of_slot).collect();
        for tid in tids {
            let _ = threads.remove(&tid);
        }
    }

    fn empty<V: Pod>(&mut self, map: &'static str, slot: u32, value: V) -> Result<(), KernelError> {
        let cpus = aya::util::nr_cpus()
            .map_err(|(_, source)| KernelError::System { what: "count the possible CPUs".to_owned(), source })?;
        let values = PerCpuValues::try_from(vec![value; cpus])
            .map_err(|source| KernelError::System { what: format!("prepare an empty slot of {map}"), source })?;
        let mut slots: PerCpuArray<&mut MapData, V> = self.per_cpu(map)?;
        slots.set(slot, values, 0).map_err(failed(map))
    }
}
