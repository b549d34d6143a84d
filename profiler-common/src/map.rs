//! Keys and values of the BPF maps.

use crate::coroutine::CoroutineLayout;
use crate::histogram::{Histogram, Octaves};

/// What the kernel half must know of a process that it watches. Key: process id in the initial PID namespace.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Target {
    /// Index of the target's [`crate::sched::SchedStats`]; forked children share their parent's.
    pub slot: u32,
    /// Bits of [`target_flag`].
    pub flags: u32,
    /// The runtime's task layout.
    pub layout: TaskLayout,
    /// How polls are measured.
    pub polls: PollPolicy,
    /// The process that is watched: another one is a forked child of it, for as long as that runs the same image.
    pub root: u32,
    /// Always 0.
    pub reserved: u32,
}

/// How the polls and wakes of a target are measured, while its flags say [`target_flag::POLLS`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PollPolicy {
    /// Number of the window in which they are measured without a gap: what an earlier one left behind is void.
    pub window: u32,
    /// What the probes at both ends add to the duration of a poll, nanoseconds.
    pub added_ns: u32,
    /// What one hit costs the thread, by [`Probe`], nanoseconds.
    pub hit_ns: [u32; 5],
    /// What one hit takes of the time between two hits of one probe: of [`Probe::Transfer`], of [`Probe::Pause`].
    pub between_ns: u32,
    /// Polls of at least this duration are reported one by one, nanoseconds.
    pub slow_ns: u64,
}

/// Kinds of probe whose hits are counted for each target. Numbers are positions in [`Cost`]: only added to.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Probe {
    /// A task is created.
    Spawn = 0,
    /// A task is completed.
    Complete = 1,
    /// A poll begins.
    PollStart = 2,
    /// A poll ends.
    PollEnd = 3,
    /// A task is woken.
    Wake = 4,
    /// A thread left a CPU or got one.
    Switch = 5,
    /// A thread became runnable.
    Wakeup = 6,
    /// A call of accept returned.
    Accept = 7,
    /// The sampling clock found a thread of the target on a CPU.
    Sample = 8,
    /// Something was sent or received on a socket, where requests are measured.
    Socket = 9,
    /// A thread goes from one coroutine to another.
    Transfer = 10,
    /// The runtime begins or ends a pause.
    Pause = 11,
    /// A coroutine is about to wait for something.
    Wait = 12,
    /// A thread waits for the lock under which the runtime runs its code, or does so no longer.
    Lock = 13,
    /// Work is deferred, run, or done.
    Deferred = 14,
}

/// Number of probes.
pub const PROBES: usize = 15;

impl Probe {
    /// All probes, in the order of their numbers.
    pub const ALL: [Probe; PROBES] = [
        Probe::Spawn,
        Probe::Complete,
        Probe::PollStart,
        Probe::PollEnd,
        Probe::Wake,
        Probe::Switch,
        Probe::Wakeup,
        Probe::Accept,
        Probe::Sample,
        Probe::Socket,
        Probe::Transfer,
        Probe::Pause,
        Probe::Wait,
        Probe::Lock,
        Probe::Deferred,
    ];

    /// Value of the `probe` label.
    pub const fn label(self) -> &'static str {
        match self {
            Probe::Spawn => "task_spawn",
            Probe::Complete => "task_complete",
            Probe::PollStart => "task_poll_start",
            Probe::PollEnd => "task_poll_end",
            Probe::Wake => "task_wake",
            Probe::Switch => "sched_switch",
            Probe::Wakeup => "sched_wakeup",
            Probe::Accept => "accept",
            Probe::Sample => "cpu_clock",
            Probe::Socket => "socket",
            Probe::Transfer => "task_transfer",
            Probe::Pause => "gc_pause",
            Probe::Wait => "task_wait",
            Probe::Lock => "lock_wait",
            Probe::Deferred => "deferred",
        }
    }
}

/// What probing cost one target, per CPU. By [`Probe`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Hits.
    pub hits: [u64; PROBES],
    /// Hits of which the time in the program was taken.
    pub timed: [u64; PROBES],
    /// That time, nanoseconds.
    pub timed_ns: [u64; PROBES],
    /// Hits of uprobes: traps, which are what may storm.
    pub traps: u64,
}

/// After so many uprobe hits of one target on one CPU user space is woken to look at what they cost.
pub const STORM_HITS: u64 = 4096;

/// One program run of so many is timed: those whose start has a time that this divides.
pub const TIMED_EVERY: u64 = 64;

/// Bits of [`Target::flags`].
pub mod target_flag {
    /// Task probes are wanted, and `layout` is valid.
    pub const TASKS: u32 = 1;
    /// `layout.current_task_tls` is valid.
    pub const CURRENT_TASK_TLS: u32 = 2;
    /// A poll stack is kept per thread, by poll probes.
    pub const POLL_STACK: u32 = 4;
    /// The task result can be inspected: `layout.result` is valid.
    pub const OUTCOME: u32 = 8;
    /// Polls and wakes are measured.
    pub const POLLS: u32 = 16;
    /// Every poll and wake is a record of its own.
    pub const TRACE: u32 = 32;
    /// Samples of the CPU clock are wanted.
    pub const SAMPLES: u32 = 1 << 16;
}

/// Where a runtime keeps what the probes read. Offsets in bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TaskLayout {
    /// Of the vtable pointer in the task header.
    pub vtable: u32,
    /// Of the id's offset in the vtable (itself a word: the offset of the id from the header); 0 where tasks have no id.
    pub id_offset_in_vtable: u32,
    /// Of the current task's id from the thread pointer; negative on x86-64.
    pub current_task_tls: i64,
    /// Lowest runtime address of the image that holds vtables.
    pub image_start: u64,
    /// End of that image.
    pub image_end: u64,
    /// Where a stored error keeps the task's id: one of [`error_order`].
    pub error_order: u32,
    /// Always 0.
    pub reserved: u32,
    /// Where tasks are coroutines; else empty.
    pub coroutine: CoroutineLayout,
    /// Runtime address of the function that runs what is deferred; 0 where nothing is.
    pub deferred_function: u64,
}

/// The order of a stored error's fields, which is the compiler's choice.
pub mod error_order {
    /// Not known: both are looked for.
    pub const UNKNOWN: u32 = 0;
    /// The id, then the payload.
    pub const ID_FIRST: u32 = 1;
    /// The payload, then the id.
    pub const PAYLOAD_FIRST: u32 = 2;
}

/// A listening socket of a target, and what was counted on it. Key: the socket's cookie.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Listener {
    /// Connections that a target accepted.
    pub accepted: u64,
    /// Connections that were queued.
    pub queued: u64,
    /// Queue length after each enqueue (connections).
    pub depth: Histogram,
    /// Wait from established to accepted, nanoseconds.
    pub wait: Histogram,
}

/// A request of an io_uring that accepts again and again.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct RingKey {
    /// Address of the ring.
    pub ring: u64,
    /// What the program calls the request.
    pub user_data: u64,
}

/// Bits beside a listener's slot.
pub mod listener_flag {
    /// The arrivals of its connections are not seen.
    pub const UNSTAMPED: u32 = 1 << 31;
}

/// Frames of a [`PollStack`].
pub const POLL_STACK_FRAMES: usize = 8;

/// The tasks that a thread polls just now, outermost first. Key: thread id.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PollStack {
    /// Number of frames in use; may exceed the frames that are kept.
    pub depth: u32,
    /// The window in which they began, see [`PollPolicy::window`].
    pub window: u32,
    /// The frames.
    pub frames: [PollFrame; POLL_STACK_FRAMES],
}

impl PollStack {
    /// No poll.
    pub const EMPTY: PollStack = PollStack {
        depth: 0,
        window: 0,
        frames: [PollFrame { task: 0, vtable: 0, start_ns: 0, delay_ns: 0, nested_ns: 0, probes_ns: 0, first: 0 };
            POLL_STACK_FRAMES],
    };
}

/// One poll that has not ended.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PollFrame {
    /// Address of the task's header.
    pub task: u64,
    /// Address of the task's vtable; 0 where the pass is no poll, since the task was cancelled before it.
    pub vtable: u64,
    /// When it began, nanoseconds.
    pub start_ns: u64,
    /// How long the task had waited since it was woken, or spawned, nanoseconds; 0 where that was not seen.
    pub delay_ns: u64,
    /// Time in polls within this one, nanoseconds.
    pub nested_ns: u64,
    /// Time that probes took within this one, nanoseconds.
    pub probes_ns: u64,
    /// Whether it is the task's first poll: 1 or 0.
    pub first: u64,
}

/// A task of a target. Key of what is known of single tasks.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct TaskKey {
    /// Address of its header.
    pub task: u64,
    /// Process id.
    pub pid: u32,
    /// Always 0.
    pub reserved: u32,
}

/// A task that was woken, or spawned, and what is known of it until it is polled. A coroutine is known for as long as it lives:
/// `since_ns` is when its last poll ended, `window` the span in which it was met, `first` what it waits for (see [`crate::coroutine::wait`]).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Woken {
    /// When it was woken first since its last poll began, nanoseconds; 0 when it was not.
    pub since_ns: u64,
    /// Address of its vtable.
    pub vtable: u64,
    /// The window in which that was, see [`PollPolicy::window`].
    pub window: u32,
    /// Whether it was not polled before: 1 or 0.
    pub first: u32,
}

/// A type of task of a target.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct TypeKey {
    /// Address of its vtable in the target.
    pub vtable: u64,
    /// The target's slot.
    pub slot: u32,
    /// Below [`TYPE_SHARDS`]: CPUs that count in the same entry are few, and entries do not grow with CPUs.
    pub shard: u32,
}

/// Entries that a type has at most, a power of two.
pub const TYPE_SHARDS: u32 = 4;

/// Ways of waking, positions in [`TypeStats::wakes`].
pub mod wake {
    /// The waker was used up.
    pub const BY_VALUE: usize = 0;
    /// The waker was kept.
    pub const BY_REF: usize = 1;
    /// On the thread that polls that very task, in either way.
    pub const BY_SELF: usize = 2;
    /// Their labels.
    pub const LABELS: [&str; 3] = ["by_value", "by_ref", "self"];
}

/// Polls and wakes of one type of task, as some of the CPUs saw them. Times in nanoseconds.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct TypeStats {
    /// Time in polls, without polls of other tasks within them.
    pub busy_ns: u64,
    /// Polls that were slow, see [`PollPolicy::slow_ns`].
    pub slow: u64,
    /// The longest poll, but where two end at the same time perhaps the other one: slow ones have records.
    pub slowest_ns: u64,
    /// Passes over tasks that were cancelled before: no polls.
    pub cancelled_passes: u64,
    /// Wakes, see [`wake`].
    pub wakes: [u64; 3],
    /// Always 0.
    pub reserved: u64,
    /// Durations of polls.
    pub poll: Octaves,
    /// Waits from the wake to the poll.
    pub delay: Octaves,
    /// Waits from the spawn to the first poll.
    pub first_delay: Octaves,
}

impl TypeStats {
    /// Nothing counted.
    pub const EMPTY: TypeStats = TypeStats {
        busy_ns: 0,
        slow: 0,
        slowest_ns: 0,
        cancelled_passes: 0,
        wakes: [0; 3],
        reserved: 0,
        poll: Octaves::EMPTY,
        delay: Octaves::EMPTY,
        first_delay: Octaves::EMPTY,
    };
}

/// The cookie of a task probe: where the task pointer and the task's id are at this site, and which site it is.
///
/// Bits 0–3: [`Argument`] code; 4–6: one of [`id_place`]; 7: the site tells the type, the vtable is not to be read;
/// 16–31: signed displacement of the task pointer; 32–47: signed displacement of the id; 48–63: site number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cookie(pub u64);

impl Cookie {
    /// Packs what is known of a site.
    pub const fn new(argument: Argument, displacement: i16, id: IdPlace, kind_told: bool, site: u16) -> Cookie {
        let (place, id_displacement) = match id {
            IdPlace::Vtable => (id_place::VTABLE, 0),
            IdPlace::Task(at) => (id_place::TASK, at),
            IdPlace::Stack(at) => (id_place::STACK, at),
            IdPlace::Frame(at) => (id_place::FRAME, at),
            IdPlace::Nowhere => (id_place::NOWHERE, 0),
            IdPlace::Register(register) => (id_place::REGISTER, register as i16),
        };
        Cookie(
            argument as u64
                | (place << 4)
                | ((kind_told as u64) << 7)
                | ((displacement as u16 as u64) << 16)
                | ((id_displacement as u16 as u64) << 32)
                | ((site as u64) << 48),
        )
    }

    /// The same site, where stacks are to be copied.
    #[must_use]
    pub const fn with_stacks(self) -> Cookie {
        Cookie(self.0 | 1 << 15)
    }

    /// Whether the stacks of some of the hits are to be copied.
    #[inline(always)]
    pub const fn wants_stacks(self) -> bool {
        self.0 & (1 << 15) != 0
    }

    /// Code of the register, see [`Argument`].
    #[inline(always)]
    pub const fn argument(self) -> u8 {
        self.0 as u8 & 15
    }

    /// Whether the site alone tells the type of its tasks.
    #[inline(always)]
    pub const fn kind_told(self) -> bool {
        self.0 & 128 != 0
    }

    /// Signed displacement from the stack pointer, for [`Argument::Stack`].
    #[inline(always)]
    pub const fn displacement(self) -> i64 {
        (self.0 >> 16) as u16 as i16 as i64
    }

    /// Where the id is: one of [`id_place`].
    #[inline(always)]
    pub const fn id_place(self) -> u64 {
        (self.0 >> 4) & 7
    }

    /// Signed displacement of the id; for [`id_place::REGISTER`] the register's code.
    #[inline(always)]
    pub const fn id_displacement(self) -> i64 {
        (self.0 >> 32) as u16 as i16 as i64
    }

    /// Site number.
    #[inline(always)]
    pub const fn site(self) -> u32 {
        (self.0 >> 48) as u32
    }
}

/// Where a probe finds the id of its task, which is one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum IdPlace {
    /// In the task, at the offset that its vtable tells.
    Vtable,
    /// At the task's address plus this displacement.
    Task(i16),
    /// At the stack pointer plus this displacement: the task is not yet where it will be, and holds nothing.
    Stack(i16),
    /// At the frame pointer (rbp) plus this displacement: as for the stack pointer.
    Frame(i16),
    /// In this register: the task is not yet filled.
    Register(Argument),
    /// Nowhere that is known.
    Nowhere,
}

/// Codes of [`IdPlace`] in a [`Cookie`].
pub mod id_place {
    /// [`super::IdPlace::Vtable`]
    pub const VTABLE: u64 = 0;
    /// [`super::IdPlace::Task`]
    pub const TASK: u64 = 1;
    /// [`super::IdPlace::Stack`]
    pub const STACK: u64 = 2;
    /// [`super::IdPlace::Frame`]
    pub const FRAME: u64 = 3;
    /// [`super::IdPlace::Nowhere`]
    pub const NOWHERE: u64 = 4;
    /// [`super::IdPlace::Register`]
    pub const REGISTER: u64 = 5;
}

/// Where a probe finds the task pointer (x86-64).
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Argument {
    /// The register rdi.
    Rdi = 0,
    /// The register rsi.
    Rsi = 1,
    /// The register rdx.
    Rdx = 2,
    /// The register rcx.
    Rcx = 3,
    /// The register rax.
    Rax = 4,
    /// The register rbx.
    Rbx = 5,
    /// The register rbp.
    Rbp = 6,
    /// The register r8.
    R8 = 7,
    /// The register r9.
    R9 = 8,
    /// The register r10.
    R10 = 9,
    /// The register r11.
    R11 = 10,
    /// The register r12.
    R12 = 11,
    /// The register r13.
    R13 = 12,
    /// The register r14.
    R14 = 13,
    /// The register r15.
    R15 = 14,
    /// The word at stack pointer + displacement.
    Stack = 15,
}

const _: () = assert!(size_of::<TaskLayout>() == 72);
const _: () = assert!(size_of::<PollPolicy>() == 40);
const _: () = assert!(size_of::<Target>() == 128);
const _: () = assert!(size_of::<Cost>() == 8 * (3 * PROBES + 1));
const _: () = assert!(size_of::<PollFrame>() == 56);
const _: () = assert!(size_of::<TaskKey>() == 16);
const _: () = assert!(size_of::<RingKey>() == 16);
const _: () = assert!(size_of::<Woken>() == 24);
const _: () = assert!(size_of::<TypeKey>() == 16);
const _: () = assert!(size_of::<TypeStats>() == 64 + 3 * size_of::<Octaves>());
const _: () = assert!(size_of::<PollStack>() == 8 + POLL_STACK_FRAMES * size_of::<PollFrame>());
const _: () = assert!(size_of::<Listener>() == 16 + 2 * size_of::<Histogram>());

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cookie_keeps_its_parts() {
        for (id, place, displacement) in [
            (IdPlace::Vtable, id_place::VTABLE, 0),
            (IdPlace::Task(40), id_place::TASK, 40),
            (IdPlace::Stack(-8), id_place::STACK, -8),
            (IdPlace::Frame(-300), id_place::FRAME, -300),
            (IdPlace::Register(Argument::R15), id_place::REGISTER, 14),
            (IdPlace::Nowhere, id_place::NOWHERE, 0),
        ] {
            let cookie = Cookie::new(Argument::Stack, -24, id, true, u16::MAX);
            assert_eq!(cookie.argument(), Argument::Stack as u8);
            assert_eq!(cookie.displacement(), -24);
            assert_eq!(cookie.site(), u32::from(u16::MAX));
            assert_eq!((cookie.id_place(), cookie.id_displacement()), (place, displacement));
            assert!(cookie.kind_told());
            assert!(!cookie.wants_stacks());
            let with_stacks = cookie.with_stacks();
            assert!(with_stacks.wants_stacks() && with_stacks.kind_told());
            assert_eq!((with_stacks.site(), with_stacks.displacement()), (cookie.site(), cookie.displacement()));
        }
        assert!(!Cookie::new(Argument::Rdi, 0, IdPlace::Vtable, false, 1).kind_told());
    }
}
