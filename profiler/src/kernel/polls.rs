//! The maps of polls, wakes and costs. Never what is made of them.

use std::collections::HashMap;

use crate::histogram::Histogram;
use aya::Pod;
use aya::maps::{Array, MapData, PerCpuArray};
use profiler_common::map::{Cost, PollStack, TaskKey, TypeKey, TypeStats, Woken};

use super::KernelError;
use super::load::Kernel;
use super::maps::{Value, failed};

// SAFETY: each is `repr(C)`, made of integers only, without padding (asserted beside its definition).
unsafe impl Pod for Value<Cost> {}
// SAFETY: as above.
unsafe impl Pod for Value<TypeStats> {}
// SAFETY: as above.
unsafe impl Pod for Value<TypeKey> {}
// SAFETY: as above.
unsafe impl Pod for Value<TaskKey> {}
// SAFETY: as above.
unsafe impl Pod for Value<Woken> {}
// SAFETY: as above.
unsafe impl Pod for Value<PollStack> {}

impl Kernel {
    /// What probing has cost a slot, over all CPUs.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn cost(&mut self, slot: u32) -> Result<Cost, KernelError> {
        let map: PerCpuArray<&mut MapData, Value<Cost>> = self.per_cpu("COSTS")?;
        let mut sum = Cost::default();
        for Value(cpu) in map.get(&slot, 0).map_err(failed("COSTS"))?.iter() {
            for (all, one) in
                [(&mut sum.hits, &cpu.hits), (&mut sum.timed, &cpu.timed), (&mut sum.timed_ns, &cpu.timed_ns)]
            {
                all.iter_mut().zip(one).for_each(|(all, one)| *all += one);
            }
            sum.traps += cpu.traps;
        }
        Ok(sum)
    }

    /// What a thread polls just now; `None` where it was not seen to poll. Its frames may change while they are read.
    pub fn poll_stack(&mut self, tid: u32) -> Option<PollStack> {
        Some(self.hash::<u32, Value<PollStack>>("POLL_STACKS").ok()?.get(&tid, 0).ok()?.0)
    }

    /// Polls and wakes by type, of all slots.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn types(&mut self) -> Result<HashMap<u32, Vec<TypePolls>>, KernelError> {
        let mut found: HashMap<u32, HashMap<u64, TypePolls>> = HashMap::new();
        self.each(TYPES, |Value(key): &Value<TypeKey>, Value(stats): &Value<TypeStats>| {
            let of_slot = found.entry(key.slot).or_default();
            of_slot.entry(key.vtable).or_insert_with(|| TypePolls::new(key.vtable)).add(stats);
        })?;
        Ok(found.into_iter().map(|(slot, types)| (slot, types.into_values().collect())).collect())
    }

    /// Forgets the polls and wakes of a slot: its process runs another image, or it is another's.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn clear_types(&mut self, slots: &[u32]) -> Result<(), KernelError> {
        self.forget(TYPES, |Value(key): &Value<TypeKey>, _: &Value<TypeStats>| slots.contains(&key.slot))?;
        let map = self.ebpf.map_mut(TYPE_KEYS).ok_or(KernelError::Missing(TYPE_KEYS))?;
        let mut counts: Array<&mut MapData, u64> = Array::try_from(map).map_err(failed(TYPE_KEYS))?;
        slots.iter().try_for_each(|&slot| counts.set(slot, 0, 0).map_err(failed(TYPE_KEYS)))
    }

    /// Hands every task that waits to be polled to `see`, at most `limit` of them; true when there may be more.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn woken(&mut self, limit: usize, mut see: impl FnMut(TaskKey, Woken)) -> Result<bool, KernelError> {
        let map = self.hash::<Value<TaskKey>, Value<Woken>>("WOKEN")?;
        for (n, entry) in map.iter().enumerate() {
            if n == limit {
                return Ok(true);
            }
            // An entry that is removed meanwhile ends the walk early, as the kernel does.
            let Ok((Value(key), Value(woken))) = entry else { return Ok(true) };
            see(key, woken);
        }
        Ok(false)
    }
}

const TYPES: &str = "TYPES";
const TYPE_KEYS: &str = "TYPE_KEYS";

/// Polls and wakes of one type, over all shards. Times in nanoseconds.
#[derive(Clone, Debug)]
pub struct TypePolls {
    /// Address of the type's vtable.
    pub vtable: u64,
    /// Time in polls, without polls of other tasks within them.
    pub busy_ns: u64,
    /// Slow polls.
    pub slow: u64,
    /// The longest poll.
    pub slowest_ns: u64,
    /// Wakes, see [`profiler_common::map::wake`].
    pub wakes: [u64; 3],
    /// Durations of polls.
    pub poll: Histogram,
    /// Waits from the wake to the poll.
    pub delay: Histogram,
    /// Waits from the spawn to the first poll.
    pub first_delay: Histogram,
}

impl TypePolls {
    fn new(vtable: u64) -> TypePolls {
        let empty = || Histogram::EMPTY;
        TypePolls {
            vtable,
            busy_ns: 0,
            slow: 0,
            slowest_ns: 0,
            wakes: [0; 3],
            poll: empty(),
            delay: empty(),
            first_delay: empty(),
        }
    }

    fn add(&mut self, shard: &TypeStats) {
        self.busy_ns += shard.busy_ns;
        self.slow += shard.slow;
        self.slowest_ns = self.slowest_ns.max(shard.slowest_ns);
        self.wakes.iter_mut().zip(shard.wakes).for_each(|(sum, more)| *sum += more);
        self.poll.add_octaves(&shard.poll);
        self.delay.add_octaves(&shard.delay);
        self.first_delay.add_octaves(&shard.first_delay);
    }
}
