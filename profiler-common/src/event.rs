//! Records of the ring buffer. Fixed layouts without padding holes; user space checks length and kind before reading.

/// Kinds of record: the `kind` of every [`Header`]. Never reused, only added to.
pub mod kind {
    /// A [`super::TaskRecord`]: a task was created.
    pub const TASK_SPAWNED: u16 = 1;
    /// A [`super::TaskRecord`]: a task was completed.
    pub const TASK_COMPLETED: u16 = 2;
    /// A [`super::TaskRecord`]: a poll that was slow has ended; `parent` is its duration, nanoseconds.
    pub const TASK_SLOW_POLL: u16 = 3;
    /// A [`super::TaskRecord`], when all are asked for: a poll has ended; `parent` is its duration, nanoseconds.
    pub const TASK_POLLED: u16 = 4;
    /// A [`super::TaskRecord`], when all are asked for: a task was woken; `parent` is how, see [`crate::map::wake`].
    pub const TASK_WOKEN: u16 = 5;
    /// A [`super::TaskRecord`]: a task lives that was not seen to be created; `parent` is 0.
    pub const TASK_FOUND: u16 = 6;
    /// A [`super::TaskRecord`]: tasks of a type are met that was not met before. `vtable` is the type's key; `task` and `id`
    /// are the addresses of the code that they run and of the block that their creator was given, 0 where there is none.
    pub const TASK_TYPE: u16 = 7;
    /// A [`super::ProcessRecord`]: many probes were hit on one CPU; it is time to look at what they cost.
    pub const HIT_STORM: u16 = 10;
    /// A [`super::SampleHead`] and a piece of stack: a target's thread was on a CPU when the sampling clock ticked.
    pub const SAMPLE: u16 = 9;
    /// A [`super::SpawnStack`]: the stack on which a task was created.
    pub const SPAWN_STACK: u16 = 8;
    /// A [`super::ProcessRecord`]: a target forked; `other` is the child.
    pub const PROCESS_FORKED: u16 = 16;
    /// A [`super::ProcessRecord`]: a target replaced its image.
    pub const PROCESS_EXECED: u16 = 17;
    /// A [`super::ProcessRecord`]: a target's last thread ended.
    pub const PROCESS_EXITED: u16 = 18;
    /// A [`super::ThreadRecord`]: a thread of a target ended.
    pub const THREAD_ENDED: u16 = 19;
}

/// Bits of [`Header::flags`].
pub mod flag {
    /// The runtime says that the task was cancelled (its CANCELLED state bit is set).
    pub const CANCEL_REQUESTED: u16 = 1;
    /// The task's stored result is an error of the runtime whose payload is a panic's.
    pub const PANICKED: u16 = 2;
    /// The task's stored result is an error of the runtime without a payload: it was cancelled.
    pub const CANCELLED: u16 = 4;
    /// `parent` is an address (from the poll stack), not a task id (from the thread-local context).
    pub const PARENT_IS_ADDRESS: u16 = 8;
    /// `parent` was looked for: when it is 0, there is none. Without this bit 0 means unknown.
    pub const PARENT_KNOWN: u16 = 16;
    /// Whether `CANCELLED` and `PANICKED` could be told at all.
    pub const OUTCOME_KNOWN: u16 = 32;
}

/// Bits of [`Header::flags`] of samples.
pub mod sample_flag {
    /// The thread ran in user mode. Without this bit, in the kernel.
    pub const USER_MODE: u16 = 1;
    /// `task` was read: when it is 0, no task is polled. Without this bit 0 means unknown.
    pub const TASK_KNOWN: u16 = 2;
    /// `ip` and `sp` were read.
    pub const REGISTERS_KNOWN: u16 = 4;
}

/// Bits of [`Header::flags`] of ends of threads.
pub mod thread_flag {
    /// It is, or was, an event loop.
    pub const LOOP: u16 = 1;
}

/// The head of every record. 24 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// CLOCK_MONOTONIC, nanoseconds.
    pub time_ns: u64,
    /// Process id in the initial PID namespace.
    pub pid: u32,
    /// Thread id in the initial PID namespace.
    pub tid: u32,
    /// One of [`kind`].
    pub kind: u16,
    /// Bits of [`flag`].
    pub flags: u16,
    /// Number of the probe site that was hit (the upper half of its cookie); 0 for records of the kernel's own hooks.
    pub site: u32,
}

/// A task's birth or end. 56 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskRecord {
    /// Time, thread, kind and flags.
    pub header: Header,
    /// Address of the task's header in the target.
    pub task: u64,
    /// Address of the task's vtable in the target, which tells its type; 0 where the site tells it.
    pub vtable: u64,
    /// The runtime's id of the task; 0 where unknown.
    pub id: u64,
    /// Id or address of the task that spawned it (see [`flag`]); 0 at completions.
    pub parent: u64,
}

/// Bytes of a stack that are copied at most.
pub const STACK_BYTES: usize = 4096;

/// The stack on which a task was created, and the registers that its unwinding begins with. 4,200 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpawnStack {
    /// Time, thread, kind.
    pub header: Header,
    /// Address of the task's vtable in the target, which tells its type; 0 where the site tells it.
    pub vtable: u64,
    /// Instruction pointer.
    pub rip: u64,
    /// Stack pointer: the address of the first byte of `stack`.
    pub rsp: u64,
    /// Frame pointer.
    pub rbp: u64,
    /// A register that calls keep.
    pub rbx: u64,
    /// A register that calls keep.
    pub r12: u64,
    /// A register that calls keep.
    pub r13: u64,
    /// A register that calls keep.
    pub r14: u64,
    /// A register that calls keep.
    pub r15: u64,
    /// Bytes of `stack` that were copied.
    pub length: u64,
    /// The innermost part of the stack.
    pub stack: [u8; STACK_BYTES],
}

/// A process's fork, exec or exit. 32 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessRecord {
    /// Time, process, kind.
    pub header: Header,
    /// The child of a fork; else 0.
    pub other: u32,
    /// Always 0.
    pub reserved: u32,
}

/// What a thread had when it ended. 64 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ThreadRecord {
    /// Time, thread, kind.
    pub header: Header,
    /// Its name, filled up with zeros.
    pub name: [u8; 16],
    /// Time on a CPU, nanoseconds.
    pub on_cpu_ns: u64,
    /// Time in the run queue, nanoseconds.
    pub run_queue_ns: u64,
    /// Time asleep, nanoseconds.
    pub asleep_ns: u64,
}

/// Words of a stack that a sample has at most.
pub const SAMPLE_STACK_WORDS: usize = 1024;

/// What a sample begins with; `length` bytes of the stack follow it, from `sp` upwards. 72 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SampleHead {
    /// Time, thread, kind, and bits of [`sample_flag`].
    pub header: Header,
    /// The runtime's id of the task that the thread polls.
    pub task: u64,
    /// The instruction that user mode is at or will return to.
    pub ip: u64,
    /// The user stack pointer.
    pub sp: u64,
    /// Bytes of the stack that follow: a multiple of 8.
    pub length: u32,
    /// Ticks that this one stands for besides itself, since its CPU did not take them in time: on a virtual machine that
    /// had to wait for its host.
    pub missed: u32,
    /// Times that the thread went to sleep since it began.
    pub sleeps: u64,
    /// CPU time of the thread since it began, nanoseconds: as of the scheduler's last look, up to a tick ago.
    pub cpu_ns: u64,
}

/// How far apart the ticks of the sampling clock are, nanoseconds. 99 Hz: no multiple of the frequencies at which
/// programs and kernels tick.
pub const SAMPLE_PERIOD_NS: u64 = 10_101_010;

/// No more ticks are missed than would come in this time, nanoseconds: behind a longer gap the clock was off.
const LONGEST_GAP_NS: u64 = 1_000_000_000;

/// How many ticks a CPU has missed when one comes at `now_ns`, and when the last one was due: what is to be passed as
/// `due_ns` the next time, 0 before the first. A late tick does not make the next one late: they are due a period apart,
/// and one that comes sooner than that shows that the last one was late itself.
#[inline(always)]
pub fn missed_ticks(due_ns: u64, now_ns: u64) -> (u32, u64) {
    let gap_ns = now_ns.saturating_sub(due_ns);
    if due_ns == 0 || !(SAMPLE_PERIOD_NS..=LONGEST_GAP_NS).contains(&gap_ns) {
        return (0, now_ns);
    }
    let ticks = gap_ns / SAMPLE_PERIOD_NS;
    ((ticks - 1) as u32, due_ns + ticks * SAMPLE_PERIOD_NS)
}

/// The longest sample. 8264 bytes.
#[repr(C)]
pub struct SampleRecord {
    /// What it begins with.
    pub head: SampleHead,
    /// The stack.
    pub stack: [u64; SAMPLE_STACK_WORDS],
}

const _: () = assert!(size_of::<Header>() == 24);
const _: () = assert!(size_of::<SampleHead>() == 72);
const _: () = assert!(size_of::<SampleRecord>() == 72 + 8 * SAMPLE_STACK_WORDS);
const _: () = assert!(size_of::<TaskRecord>() == 56);
const _: () = assert!(size_of::<ProcessRecord>() == 32);
const _: () = assert!(size_of::<ThreadRecord>() == 64);
const _: () = assert!(size_of::<SpawnStack>() == 104 + STACK_BYTES);

#[cfg(test)]
mod tests {
    use super::*;

    /// Ticks that come at these times, in periods, and how many each has missed.
    fn check(times: &[f64], expected: &[u32]) {
        let mut due_ns = 0;
        let missed = times.iter().map(|time| {
            let (missed, due) = missed_ticks(due_ns, 7 + (time * SAMPLE_PERIOD_NS as f64) as u64);
            due_ns = due;
            missed
        });
        assert!(missed.eq(expected.iter().copied()), "{times:?}");
    }

    /// Check that a tick stands for those that did not come.
    #[test]
    fn ticks_that_did_not_come_are_missed() {
        check(&[1.0, 2.001, 3.0, 4.002], &[0; 4]);
        check(&[1.0, 4.3, 5.0], &[0, 2, 0]);
        // The first one was late.
        check(&[1.7, 2.0, 3.0, 6.1], &[0, 0, 0, 2]);
    }

    /// Check that ticks that come late, and the next one in time, are no more than there are.
    #[test]
    fn late_ticks_are_not_missed() {
        check(&[1.0, 2.9, 3.0, 4.6, 5.0, 6.0], &[0; 6]);
        check(&[1.0, 2.6, 3.6, 4.0], &[0; 4]);
    }

    /// Check that nothing is missed in the time in which no clock was on.
    #[test]
    fn a_long_gap_is_no_gap() {
        check(&[1.0, 99.0, 300.0, 301.0], &[0, 97, 0, 0]);
    }
}
