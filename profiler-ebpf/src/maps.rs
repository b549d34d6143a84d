//! All maps. Sizes are the defaults; user space sets those that depend on the targets before load.

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, LruHashMap, PerCpuArray, ProgramArray, RingBuf};
use profiler_common::counter::{COUNTERS, Counter};
use profiler_common::deferred::{Deferred, DeferredRun};
use profiler_common::duration::{Clocks, Durations, Pause};
use profiler_common::event::SampleRecord;
use profiler_common::event_loop::LoopStats;
use profiler_common::job::Worker;
use profiler_common::lock::LockWait;
use profiler_common::map::{Cost, Listener, PollStack, RingKey, Target, TaskKey, TypeKey, TypeStats, Woken};
use profiler_common::request::{Connection, Reply, RequestStats};
use profiler_common::sched::{SchedStats, Thread};

/// Watched processes by process id.
#[map]
pub static TARGETS: HashMap<u32, Target> = HashMap::with_max_entries(8192, 0);

/// Threads of watched processes by thread id. That a thread is here says that it is a target's.
#[map]
pub static THREADS: HashMap<u32, Thread> = HashMap::with_max_entries(32768, 0);

/// Scheduling by target slot.
#[map]
pub static SCHED: PerCpuArray<SchedStats> = PerCpuArray::with_max_entries(1, 0);

/// Event loops of targets by thread id. Allocated beforehand: an allocation at a switch may fail.
#[map]
pub static LOOPS: HashMap<u32, LoopStats> = HashMap::with_max_entries(128, 0);

/// Local ports on which a target listens, so that other connections are not stamped.
#[map]
pub static PORTS: HashMap<u32, u32> = HashMap::with_max_entries(4096, 0);

/// When a connection was established, by the address of its socket. The least recent one is evicted: connections
/// that were closed before they were accepted leave their stamp behind.
#[map]
pub static ARRIVALS: LruHashMap<u64, u64> = LruHashMap::with_max_entries(65536, 0);

/// The connection that is being enqueued on this CPU.
#[map]
pub static ENQUEUED: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// Programs that are never called: see [`crate::hit::stay_on_kernel_stack`].
#[map]
pub static NO_PROGRAMS: ProgramArray = ProgramArray::with_max_entries(1, 0);

/// Slots of the targets' listening sockets in [`LISTENER_STATS`], by cookie, with `listener_flag`. User space assigns and
/// frees them.
#[map]
pub static LISTENERS: HashMap<u64, u32> = HashMap::with_max_entries(1024, 0);

/// What was counted per listener slot.
#[map]
pub static LISTENER_STATS: PerCpuArray<Listener> = PerCpuArray::with_max_entries(64, 0);

/// TCP connections that targets accepted and have not closed, by cookie; only as large where requests are measured. Not
/// allocated beforehand: few servers have so many.
#[map]
pub static CONNECTIONS: HashMap<u64, Connection> = HashMap::with_max_entries(1, BPF_F_NO_PREALLOC);

/// The same of unix sockets, whose end nobody tells: the least recent one is evicted.
#[map]
pub static UNIX_CONNECTIONS: LruHashMap<u64, Connection> = LruHashMap::with_max_entries(1, 0);

/// Listening unix sockets of targets by the address of their name, which their connections have, too. What is left of
/// closed ones is evicted.
#[map]
pub static UNIX_LISTENERS: LruHashMap<u64, u64> = LruHashMap::with_max_entries(256, 0);

/// Slots of the targets that accepted connections of unix sockets which have no cookie yet, by the socket's address.
#[map]
pub static UNIX_ACCEPTED: LruHashMap<u64, u32> = LruHashMap::with_max_entries(1, 0);

/// Threads that have replied and are not available again, by thread id.
#[map]
pub static REPLIES: LruHashMap<u32, Reply> = LruHashMap::with_max_entries(1, 0);

/// Threads that take jobs, by thread id.
#[map]
pub static WORKERS: HashMap<u32, Worker> = HashMap::with_max_entries(1, 0);

/// Connections and requests, by target slot.
#[map]
pub static REQUESTS: PerCpuArray<RequestStats> = PerCpuArray::with_max_entries(1, 0);

/// Cookies of the listening sockets on which rings accept. The least recent one is evicted: who accepts comes here again.
#[map]
pub static RING_ACCEPTS: LruHashMap<RingKey, u64> = LruHashMap::with_max_entries(1024, 0);

/// Polled tasks by thread id, where poll probes are attached.
#[map]
pub static POLL_STACKS: LruHashMap<u32, PollStack> = LruHashMap::with_max_entries(8192, 0);

/// Tasks that wait to be polled, and coroutines that live. The least recent one is evicted: those of a window that is over are never polled in it.
#[map]
pub static WOKEN: LruHashMap<TaskKey, Woken> = LruHashMap::with_max_entries(65536, 0);

/// Types of coroutines that user space was told of.
#[map]
pub static MET: LruHashMap<TaskKey, u32> = LruHashMap::with_max_entries(4096, 0);

/// Polls and wakes by type of task. Allocated beforehand: an allocation at a hit may fail. Not per CPU: the memory of a large
/// machine's CPUs would be more than all other maps'.
#[map]
pub static TYPES: HashMap<TypeKey, TypeStats> = HashMap::with_max_entries(2048, 0);

/// How many keys of [`TYPES`] a target has, by slot.
#[map]
pub static TYPE_KEYS: Array<u64> = Array::with_max_entries(1, 0);

/// Pauses that have begun, by thread id. The least recent one is evicted: its thread has ended.
#[map]
pub static PAUSES: LruHashMap<u32, Pause> = LruHashMap::with_max_entries(1024, 0);

/// Threads that wait for the lock under which their runtime runs its code. The least recent one is evicted: its thread has ended.
#[map]
pub static LOCK_WAITS: LruHashMap<u32, LockWait> = LruHashMap::with_max_entries(8192, 0);

/// Thread ids by the runtime's objects of threads, of those that have waited. Key: [`TaskKey`], of the object.
#[map]
pub static LOCK_THREADS: LruHashMap<TaskKey, u32> = LruHashMap::with_max_entries(8192, 0);

/// Deferred work that waits. Allocated beforehand: an allocation at a hit may fail.
#[map]
pub static DEFERRED: HashMap<TaskKey, Deferred> = HashMap::with_max_entries(16384, 0);

/// Threads that run deferred work, by thread id. Allocated beforehand, as above.
#[map]
pub static DEFERRED_RUNS: HashMap<u32, DeferredRun> = HashMap::with_max_entries(4096, 0);

/// Where processes' runtimes keep when their pauses began.
#[map]
pub static CLOCKS: LruHashMap<u32, Clocks> = LruHashMap::with_max_entries(4096, 0);

/// Durations by target slot and kind. Allocated beforehand: an allocation at a hit may fail.
#[map]
pub static DURATIONS: HashMap<u32, Durations> = HashMap::with_max_entries(1, 0);

/// What probing costs, by target slot.
#[map]
pub static COSTS: PerCpuArray<Cost> = PerCpuArray::with_max_entries(1, 0);

/// When the last tick of the sampling clock was due.
#[map]
pub static TICKS: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// Where a sample is put together: too large for a program's stack.
#[map]
pub static SAMPLE: PerCpuArray<SampleRecord> = PerCpuArray::with_max_entries(1, 0);

/// Spawns by creation site, of which some have their stack copied. Sites may share a place.
#[map]
pub static SPAWNS: PerCpuArray<u64> = PerCpuArray::with_max_entries(SPAWN_PLACES, 0);

/// Places in [`SPAWNS`]: a power of two.
pub const SPAWN_PLACES: u32 = 4096;

/// `BPF_NOEXIST`: an entry that is there stays as it is, and that is an error.
pub const NOEXIST: u64 = 1;

/// Processes that were forked or have replaced their image, and when, where they are to be found. User space takes out who has
/// lived for a while; who ends before leaves nothing. Allocated beforehand: an allocation at a fork may fail.
#[map]
pub static YOUNG: HashMap<u32, u64> = HashMap::with_max_entries(1, 0);

/// All records, to user space.
#[map]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(1 << 22, 0);

#[map]
static COUNTS: PerCpuArray<u64> = PerCpuArray::with_max_entries(COUNTERS as u32, 0);

/// Takes one back from a counter, perhaps on another CPU: only the sum over all counts.
#[inline(always)]
pub fn uncount(counter: Counter) {
    if let Some(value) = COUNTS.get_ptr_mut(counter as u32) {
        // SAFETY: as for `count`.
        unsafe { *value = (*value).wrapping_sub(1) }
    }
}

/// Adds one to a counter.
#[inline(always)]
pub fn count(counter: Counter) {
    if let Some(value) = COUNTS.get_ptr_mut(counter as u32) {
        // SAFETY: a per-CPU value, and a program is not interrupted by itself.
        unsafe { *value += 1 }
    }
}
