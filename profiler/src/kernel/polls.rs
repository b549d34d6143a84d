//! The maps of polls, wakes and costs. Never what is made of them.

use std::collections::HashMap;

use aya::Pod;
use aya::maps::{MapData, PerCpuArray, PerCpuHashMap};
use profiler_common::histogram::Histogram;
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
        let map = self.type_map()?;
        let mut found: HashMap<u32, Vec<TypePolls>> = HashMap::new();
        for key in map.keys() {
            let Value(key) = key.map_err(failed(TYPES))?;
            // It may be removed at any time, but by this process only.
            let cpus = map.get(&Value(key), 0).map_err(failed(TYPES))?;
            let mut polls = TypePolls::new(key.vtable);
            cpus.iter().for_each(|Value(cpu)| polls.add(cpu));
            found.entry(key.slot).or_default().push(polls);
        }
        Ok(found)
    }

    /// Forgets the polls and wakes of a slot: its process runs another image.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn clear_types(&mut self, slot: u32) -> Result<(), KernelError> {
        let mut map = self.type_map()?;
        let keys: Vec<Value<TypeKey>> =
            map.keys().filter_map(Result::ok).filter(|Value(key)| key.slot == slot).collect();
        for key in keys {
            map.remove(&key).map_err(failed(TYPES))?;
        }
        Ok(())
    }

    fn type_map(&mut self) -> Result<PerCpuHashMap<&mut MapData, Value<TypeKey>, Value<TypeStats>>, KernelError> {
        let map = self.ebpf.map_mut(TYPES).ok_or(KernelError::Missing(TYPES))?;
        PerCpuHashMap::try_from(map).map_err(failed(TYPES))
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

/// Polls and wakes of one type, over all CPUs. Times in nanoseconds.
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
    pub poll: Box<Histogram>,
    /// Waits from the wake to the poll.
    pub delay: Box<Histogram>,
    /// Waits from the spawn to the first poll.
    pub first_delay: Box<Histogram>,
}

impl TypePolls {
    fn new(vtable: u64) -> TypePolls {
        let empty = || Box::new(Histogram::EMPTY);
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

    fn add(&mut self, cpu: &TypeStats) {
        self.busy_ns += cpu.busy_ns;
        self.slow += cpu.slow;
        self.slowest_ns = self.slowest_ns.max(cpu.slowest_ns);
        self.wakes.iter_mut().zip(cpu.wakes).for_each(|(sum, cpu)| *sum += cpu);
        cpu.poll.add_to(&mut self.poll);
        cpu.delay.add_to(&mut self.delay);
        cpu.first_delay.add_to(&mut self.first_delay);
    }
}
