//! Typed access to the maps that user space writes or reads.

use std::os::fd::AsFd as _;

use aya::Pod;
use aya::maps::{HashMap, Map, MapData, MapError, PerCpuArray};
use profiler_common::counter::{COUNTERS, Counter};
use profiler_common::histogram::Histogram;
use profiler_common::map::{Listener, Target, listener_flag};
use profiler_common::sched::{SchedStats, Thread};

use super::KernelError;
use super::bpf;
use super::load::Kernel;

/// A map value of `profiler_common`, in a wrapper that aya can be told about.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub(super) struct Value<T>(pub(super) T);

// SAFETY: each is `repr(C)`, made of integers only, without padding (asserted beside its definition).
unsafe impl Pod for Value<Target> {}
// SAFETY: as above.
unsafe impl Pod for Value<Thread> {}
// SAFETY: as above.
unsafe impl Pod for Value<SchedStats> {}
// SAFETY: as above.
unsafe impl Pod for Value<Listener> {}

/// Listening sockets that are counted apart: the size of LISTENER_STATS.
pub const LISTENER_SLOTS: u32 = 64;

impl Kernel {
    /// Starts to watch a process, or changes what is known of it.
    ///
    /// # Errors
    /// The map is full.
    pub fn set_target(&mut self, pid: u32, target: Target) -> Result<(), KernelError> {
        self.hash::<u32, Value<Target>>("TARGETS")?.insert(pid, Value(target), 0).map_err(failed("TARGETS"))
    }

    /// What the kernel half knows of a process; `None` when it is not watched.
    pub fn target(&mut self, pid: u32) -> Option<Target> {
        Some(self.hash::<u32, Value<Target>>("TARGETS").ok()?.get(&pid, 0).ok()?.0)
    }

    /// Ends the watching of a process. One that has ended already is no error.
    pub fn remove_target(&mut self, pid: u32) {
        if let Ok(mut targets) = self.hash::<u32, Value<Target>>("TARGETS") {
            let _ = targets.remove(&pid);
        }
    }

    /// Watches a thread that was there before. One that the kernel half knows already is left alone.
    ///
    /// # Errors
    /// The map is full.
    pub fn add_thread(&mut self, tid: u32, slot: u32) -> Result<(), KernelError> {
        const BPF_NOEXIST: u64 = 1;
        let thread = Value(Thread { slot, ..Thread::default() });
        match self.hash::<u32, Value<Thread>>("THREADS")?.insert(tid, thread, BPF_NOEXIST) {
            Err(MapError::SyscallError(e)) if e.io_error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
            other => other.map_err(failed("THREADS")),
        }
    }

    /// Forgets the threads that have ended unseen: those of which `lives` says that they do not live.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn forget_threads(&mut self, lives: impl Fn(u32) -> bool) -> Result<(), KernelError> {
        let mut threads = self.hash::<u32, Value<Thread>>("THREADS")?;
        let known: Vec<u32> = threads.keys().collect::<Result<_, _>>().map_err(failed("THREADS"))?;
        for tid in known.into_iter().filter(|&tid| !lives(tid)) {
            let _ = threads.remove(&tid);
        }
        Ok(())
    }

    /// What a thread does just now.
    pub fn thread(&mut self, tid: u32) -> Option<Thread> {
        Some(self.hash::<u32, Value<Thread>>("THREADS").ok()?.get(&tid, 0).ok()?.0)
    }

    /// Scheduling of a slot, over all CPUs.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn sched(&mut self, slot: u32) -> Result<Box<SchedStats>, KernelError> {
        let map: PerCpuArray<&mut MapData, Value<SchedStats>> = self.per_cpu("SCHED")?;
        let mut sum = Box::new(SchedStats::EMPTY);
        for Value(cpu) in map.get(&slot, 0).map_err(failed("SCHED"))?.iter() {
            sum.merge(cpu);
        }
        Ok(sum)
    }

    /// Counts the connections of a listening socket in `slot` from now on.
    ///
    /// # Errors
    /// A map is full.
    pub fn set_listener(&mut self, cookie: u64, port: Option<u16>, slot: u32) -> Result<(), KernelError> {
        // Connections of a socket without a port are stamped where they are announced.
        let unstamped = port.is_none() && !self.unix.arrivals;
        let value = if unstamped { slot | listener_flag::UNSTAMPED } else { slot };
        self.hash::<u64, u32>("LISTENERS")?.insert(cookie, value, 0).map_err(failed("LISTENERS"))?;
        let Some(port) = port else { return Ok(()) };
        self.hash::<u32, u32>("PORTS")?.insert(u32::from(port), 1, 0).map_err(failed("PORTS"))
    }

    /// Forgets a listening socket that was closed.
    pub fn remove_listener(&mut self, cookie: u64) {
        if let Ok(mut listeners) = self.hash::<u64, u32>("LISTENERS") {
            let _ = listeners.remove(&cookie);
        }
    }

    /// Forgets a port on which no listening socket is left.
    pub fn remove_port(&mut self, port: u16) {
        if let Ok(mut ports) = self.hash::<u32, u32>("PORTS") {
            let _ = ports.remove(&u32::from(port));
        }
    }

    /// Empties a listener slot, so that it can be used for another socket.
    ///
    /// # Errors
    /// The map cannot be written.
    pub fn clear_listener(&mut self, slot: u32) -> Result<(), KernelError> {
        let mut map: PerCpuArray<&mut MapData, Value<Listener>> = self.per_cpu("LISTENER_STATS")?;
        let cpus = aya::util::nr_cpus()
            .map_err(|(_, source)| KernelError::System { what: "count the possible CPUs".to_owned(), source })?;
        let empty = Value(EMPTY_LISTENER);
        let values = aya::maps::PerCpuValues::try_from(vec![empty; cpus])
            .map_err(|source| KernelError::System { what: "prepare empty listener counts".to_owned(), source })?;
        map.set(slot, values, 0).map_err(failed("LISTENER_STATS"))
    }

    /// What was counted in a listener slot, over all CPUs.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn listener(&mut self, slot: u32) -> Result<Box<Listener>, KernelError> {
        let map: PerCpuArray<&mut MapData, Value<Listener>> = self.per_cpu("LISTENER_STATS")?;
        let mut sum = Box::new(EMPTY_LISTENER);
        for Value(cpu) in map.get(&slot, 0).map_err(failed("LISTENER_STATS"))?.iter() {
            sum.accepted += cpu.accepted;
            sum.queued += cpu.queued;
            sum.depth.merge(&cpu.depth);
            sum.wait.merge(&cpu.wait);
        }
        Ok(sum)
    }

    /// The kernel half's own counters, in the order of [`Counter::ALL`].
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn counters(&mut self) -> Result<[u64; COUNTERS], KernelError> {
        let map: PerCpuArray<&mut MapData, u64> = self.per_cpu("COUNTS")?;
        let mut sums = [0; COUNTERS];
        for counter in Counter::ALL {
            // What was counted on one CPU may be taken back on another.
            let counts = map.get(&(counter as u32), 0).map_err(failed("COUNTS"))?;
            sums[counter as usize] = counts.iter().fold(0, |sum: u64, count| sum.wrapping_add(*count));
        }
        Ok(sums)
    }

    pub(super) fn hash<K: Pod, V: Pod>(
        &mut self,
        name: &'static str,
    ) -> Result<HashMap<&mut MapData, K, V>, KernelError> {
        let map = self.ebpf.map_mut(name).ok_or(KernelError::Missing(name))?;
        HashMap::try_from(map).map_err(failed(name))
    }

    /// Hands every entry of a hash map to `see`. What is added or removed meanwhile may be seen or not.
    ///
    /// # Errors
    /// The map is none of these sizes, or cannot be read.
    pub(super) fn each<K: Pod, V: Pod>(
        &mut self,
        name: &'static str,
        see: impl FnMut(&K, &V),
    ) -> Result<(), KernelError> {
        // Of these sizes, which this checks.
        self.hash::<K, V>(name)?;
        let Some(Map::HashMap(map) | Map::LruHashMap(map)) = self.ebpf.map(name) else {
            return Err(KernelError::Missing(name));
        };
        let read = bpf::for_each(map.fd().as_fd(), see);
        read.map_err(|source| KernelError::System { what: format!("read map {name}"), source })
    }

    /// Takes every entry out of a hash map for which `which` is true.
    ///
    /// # Errors
    /// As for [`Kernel::each`], or the map cannot be written.
    pub(super) fn forget<K: Pod, V: Pod>(
        &mut self,
        name: &'static str,
        which: impl Fn(&K, &V) -> bool,
    ) -> Result<(), KernelError> {
        let mut keys: Vec<K> = Vec::new();
        self.each(name, |key: &K, value: &V| {
            if which(key, value) {
                keys.push(*key);
            }
        })?;
        let mut map = self.hash::<K, V>(name)?;
        keys.iter().try_for_each(|key| gone(map.remove(key))).map_err(failed(name))
    }

    pub(super) fn per_cpu<V: Pod>(&mut self, name: &'static str) -> Result<PerCpuArray<&mut MapData, V>, KernelError> {
        let map = self.ebpf.map_mut(name).ok_or(KernelError::Missing(name))?;
        PerCpuArray::try_from(map).map_err(failed(name))
    }
}

const EMPTY_LISTENER: Listener = Listener { accepted: 0, queued: 0, depth: Histogram::EMPTY, wait: Histogram::EMPTY };

/// An entry that is to be gone, and was not there, is no error.
pub(super) fn gone(removed: Result<(), MapError>) -> Result<(), MapError> {
    match removed {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(e)) if e.io_error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        other => other,
    }
}

pub(super) fn failed(map: &'static str) -> impl Fn(MapError) -> KernelError {
    move |source| KernelError::Map { map, source }
}
