//! What is counted of a target's scheduling, and what is known of its threads. Never how it is measured.

use crate::histogram::Histogram;

/// Scheduling of one target, per CPU. Times in nanoseconds.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct SchedStats {
    /// Switches away from threads that went to sleep.
    pub voluntary_switches: u64,
    /// Switches away from threads that could have run on, by who ran instead: see [`preempter`].
    pub preemptions: [u64; preempter::COUNT],
    /// Times that a thread ran on another CPU than the last time.
    pub migrations: u64,
    /// Time asleep by cause: see [`cause`].
    pub asleep_ns: [u64; cause::COUNT],
    /// Wait from runnable to running: see [`after`].
    pub run_queue: [Histogram; after::COUNT],
    /// Uninterrupted time on a CPU.
    pub on_cpu: Histogram,
    /// Time asleep, from the switch out to the wake-up.
    pub blocked: Histogram,
}

impl SchedStats {
    /// Nothing counted.
    pub const EMPTY: SchedStats = SchedStats {
        voluntary_switches: 0,
        preemptions: [0; preempter::COUNT],
        migrations: 0,
        asleep_ns: [0; cause::COUNT],
        run_queue: [Histogram::EMPTY; after::COUNT],
        on_cpu: Histogram::EMPTY,
        blocked: Histogram::EMPTY,
    };

    /// Adds what another CPU has counted.
    pub fn merge(&mut self, other: &SchedStats) {
        self.voluntary_switches += other.voluntary_switches;
        self.migrations += other.migrations;
        self.preemptions.iter_mut().zip(other.preemptions).for_each(|(all, one)| *all += one);
        self.asleep_ns.iter_mut().zip(other.asleep_ns).for_each(|(all, one)| *all += one);
        self.run_queue.iter_mut().zip(&other.run_queue).for_each(|(all, one)| all.merge(one));
        self.on_cpu.merge(&other.on_cpu);
        self.blocked.merge(&other.blocked);
    }
}

/// What is known of a thread of a target. Key: thread id.
///
/// Its totals come first: whoever copies it from the front while it is written sees no span both in a total and open.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Thread {
    /// Time on a CPU, of spans that have ended. Nanoseconds.
    pub on_cpu_total_ns: u64,
    /// Time in the run queue, of waits that have ended. Nanoseconds.
    pub run_queue_total_ns: u64,
    /// Time asleep, of sleeps after which it has run again. Nanoseconds.
    pub asleep_total_ns: u64,
    /// When it became runnable; 0 while it runs or sleeps. Nanoseconds.
    pub runnable_ns: u64,
    /// When it left the CPU; 0 while it runs. Nanoseconds.
    pub off_cpu_ns: u64,
    /// When it got the CPU; 0 while it does not run. Nanoseconds.
    pub on_cpu_ns: u64,
    /// Index of its target's [`SchedStats`].
    pub slot: u32,
    /// The CPU that it left last, plus one; 0 where that was not seen.
    pub cpu: u32,
    /// Why it went to sleep last: see [`cause`].
    pub cause: u32,
    /// How sure it is that it is an event loop: see [`crate::event_loop::score`].
    pub loop_score: u32,
    /// When it was woken from a wait for events; 0 while it is in one. Nanoseconds.
    pub active_ns: u64,
    /// When it ran after that first. Nanoseconds.
    pub active_runs_ns: u64,
    /// CPU time that the scheduler had charged it with when it left the CPU last; 0 before. Nanoseconds.
    pub charged_ns: u64,
}

/// What a wait in the run queue follows: positions in [`SchedStats::run_queue`].
pub mod after {
    /// The thread slept and was woken, or is new.
    pub const WAKEUP: usize = 0;
    /// The thread ran, could have run on, and lost its CPU: to another thread, to a CPU limit, or by yielding it.
    pub const PREEMPTION: usize = 1;
    /// How many there are.
    pub const COUNT: usize = 2;
    /// Their labels.
    pub const LABELS: [&str; COUNT] = ["wakeup", "preemption"];
}

/// Who ran instead of a thread that could have run on: positions in [`SchedStats::preemptions`].
pub mod preempter {
    /// A thread of the same process.
    pub const OWN: usize = 0;
    /// A thread of another process.
    pub const OTHER: usize = 1;
    /// A thread of the kernel.
    pub const KERNEL: usize = 2;
    /// Nobody: the CPU was idle, while a CPU limit held the thread.
    pub const IDLE: usize = 3;
    /// How many there are.
    pub const COUNT: usize = 4;
    /// Their labels.
    pub const LABELS: [&str; COUNT] = ["self", "other", "kernel", "idle"];
}

/// Why a thread sleeps: positions in [`SchedStats::asleep_ns`].
pub mod cause {
    /// Not told: the kernel does not give the registers of user mode, or they are not those of a 64-bit program's thread.
    pub const UNTOLD: usize = 0;
    /// None of the others: another system call, a file that is neither a socket nor a disk's, or it was stopped.
    pub const OTHER: usize = 1;
    /// It waits for events: the wait of an event loop.
    pub const EPOLL: usize = 2;
    /// A lock, a condition variable, or another thread's end.
    pub const FUTEX: usize = 3;
    /// It sleeps for a time.
    pub const SLEEP: usize = 4;
    /// A file on a disk.
    pub const DISK: usize = 5;
    /// A connection.
    pub const SOCKET: usize = 6;
    /// A connection that has yet to come.
    pub const ACCEPT: usize = 7;
    /// A page of memory that has yet to be there.
    pub const PAGE_FAULT: usize = 8;
    /// How many there are.
    pub const COUNT: usize = 9;
    /// Their labels. What is not told has the name that all of it has where no cause is.
    pub const LABELS: [&str; COUNT] =
        ["blocked", "other", "epoll", "futex", "sleep", "disk", "socket", "accept", "page_fault"];

    /// No cause, but what [`OF_SYSCALL`] says of calls whose cause is the type of the file that they are on.
    pub const BY_FILE: u8 = COUNT as u8;
    /// No cause, but a wait that a signal has interrupted goes on: for the cause that it had.
    pub const AGAIN: u8 = COUNT as u8 + 1;
    /// Numbers that [`OF_SYSCALL`] has: a power of two, above all that there are.
    pub const SYSCALLS: usize = 512;
    /// Why a thread that sleeps in a system call does, by the call's number.
    pub const OF_SYSCALL: [u8; SYSCALLS] = {
        let mut table = [OTHER as u8; SYSCALLS];
        let mut row = 0;
        while row < ROWS.len() {
            table[ROWS[row].0] = ROWS[row].1;
            row += 1;
        }
        table
    };

    /// `poll`, whose third argument is how many milliseconds it waits at most.
    pub const POLL: u64 = 7;
    /// `epoll_wait` and `epoll_pwait`, of which the fourth one is that.
    pub const EPOLL_WAIT: [u64; 2] = [232, 281];

    /// arch/x86/entry/syscalls/syscall_64.tbl
    const ROWS: &[(usize, u8)] = &[
        (0, BY_FILE),        // read
        (1, BY_FILE),        // write
        (7, EPOLL as u8),    // poll
        (17, BY_FILE),       // pread64
        (18, BY_FILE),       // pwrite64
        (19, BY_FILE),       // readv
        (20, BY_FILE),       // writev
        (23, EPOLL as u8),   // select
        (26, DISK as u8),    // msync
        (35, SLEEP as u8),   // nanosleep
        (40, BY_FILE),       // sendfile
        (42, SOCKET as u8),  // connect
        (43, ACCEPT as u8),  // accept
        (44, SOCKET as u8),  // sendto
        (45, SOCKET as u8),  // recvfrom
        (46, SOCKET as u8),  // sendmsg
        (47, SOCKET as u8),  // recvmsg
        (74, DISK as u8),    // fsync
        (75, DISK as u8),    // fdatasync
        (162, DISK as u8),   // sync
        (202, FUTEX as u8),  // futex
        (208, DISK as u8),   // io_getevents
        (219, AGAIN),        // restart_syscall
        (230, SLEEP as u8),  // clock_nanosleep
        (232, EPOLL as u8),  // epoll_wait
        (270, EPOLL as u8),  // pselect6
        (271, EPOLL as u8),  // ppoll
        (275, BY_FILE),      // splice
        (277, DISK as u8),   // sync_file_range
        (281, EPOLL as u8),  // epoll_pwait
        (288, ACCEPT as u8), // accept4
        (295, BY_FILE),      // preadv
        (296, BY_FILE),      // pwritev
        (299, SOCKET as u8), // recvmmsg
        (306, DISK as u8),   // syncfs
        (307, SOCKET as u8), // sendmmsg
        (326, BY_FILE),      // copy_file_range
        (327, BY_FILE),      // preadv2
        (328, BY_FILE),      // pwritev2
        (333, DISK as u8),   // io_pgetevents
        (426, EPOLL as u8),  // io_uring_enter
        (441, EPOLL as u8),  // epoll_pwait2
        (449, FUTEX as u8),  // futex_waitv
        (455, FUTEX as u8),  // futex_wait
    ];
}

const _: () = assert!(size_of::<Thread>() == 88);
const _: () = assert!(
    size_of::<SchedStats>() == 8 * (2 + preempter::COUNT + cause::COUNT) + (after::COUNT + 2) * size_of::<Histogram>()
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_unique() {
        fn unique(labels: &[&str]) -> bool {
            labels.iter().enumerate().all(|(i, label)| !labels[i + 1..].contains(label))
        }
        assert!(unique(&after::LABELS) && unique(&preempter::LABELS) && unique(&cause::LABELS));
    }

    #[test]
    fn every_system_call_has_a_cause_or_is_decided_by_its_file() {
        assert!(cause::OF_SYSCALL.iter().all(|&cause| cause != cause::UNTOLD as u8 && cause <= cause::AGAIN));
        assert_eq!(usize::from(cause::OF_SYSCALL[232]), cause::EPOLL);
        assert_eq!(usize::from(cause::OF_SYSCALL[61]), cause::OTHER);
    }
}
