//! Scheduling of a target: its threads, its event loops, the limits that hold it.

use profiler_common::sched::{after, cause, preempter};

use crate::histogram::Histogram;

/// Scheduling of a target. Durations in nanoseconds.
#[derive(Clone, Debug)]
pub struct SchedSnapshot {
    /// Voluntary switches.
    pub voluntary_switches: u64,
    /// Involuntary switches, by who ran instead, in the order of [`preempter::LABELS`].
    pub preemptions: [u64; preempter::COUNT],
    /// Times that a thread ran on another CPU than the last time.
    pub migrations: u64,
    /// Time on a CPU, of spans that have not ended too.
    pub on_cpu_ns: u64,
    /// Time asleep by cause, in the order of [`cause::LABELS`], of spans that have not ended too.
    pub asleep_ns: [u64; cause::COUNT],
    /// Whether causes are told.
    pub causes_told: bool,
    /// Wait from runnable to running, in the order of [`after::LABELS`].
    pub run_queue: [Histogram; after::COUNT],
    /// Uninterrupted time on a CPU.
    pub on_cpu: Histogram,
    /// Time asleep.
    pub blocked: Histogram,
    /// Its threads, by name, in the order of first sight.
    pub threads: Vec<ThreadsSnapshot>,
    /// Its event loops, by the names of their threads, in the order of first sight.
    pub loops: Vec<LoopSnapshot>,
}

/// The event loops of one name, those that have ended among them. Durations in nanoseconds.
#[derive(Clone, Debug)]
pub struct LoopSnapshot {
    /// Name of their threads.
    pub name: String,
    /// Time from wake-ups to the next waits, up to now.
    pub active_ns: u64,
    /// Time in waits, up to now.
    pub idle_ns: u64,
    /// Times from a wake-up to the next wait.
    pub iteration: Histogram,
    /// How late a timer would have fired.
    pub delay: Histogram,
}

/// The threads of one name. Durations in nanoseconds, of threads that have ended too.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ThreadsSnapshot {
    /// Their name, without numbers at its end; `main` for the first thread of a process.
    pub name: String,
    /// How many live.
    pub threads: u64,
    /// How many have started since the target is watched, and taken this name.
    pub started: u64,
    /// How many have ended since then.
    pub ended: u64,
    /// Time on a CPU, of spans that have not ended too.
    pub on_cpu_ns: u64,
    /// Time in the run queue, of waits that have ended.
    pub run_queue_ns: u64,
    /// Time asleep, of spans that have not ended too.
    pub asleep_ns: u64,
}

impl Default for SchedSnapshot {
    fn default() -> SchedSnapshot {
        SchedSnapshot {
            voluntary_switches: 0,
            preemptions: [0; preempter::COUNT],
            migrations: 0,
            on_cpu_ns: 0,
            asleep_ns: [0; cause::COUNT],
            causes_told: false,
            run_queue: [const { Histogram::EMPTY }; after::COUNT],
            on_cpu: Histogram::EMPTY,
            blocked: Histogram::EMPTY,
            threads: Vec::new(),
            loops: Vec::new(),
        }
    }
}

impl SchedSnapshot {
    /// Involuntary switches.
    pub fn involuntary_switches(&self) -> u64 {
        self.preemptions.iter().sum()
    }

    /// Time in the run queue, of waits that have ended.
    pub fn run_queue_ns(&self) -> u64 {
        self.run_queue.iter().map(|wait| wait.sum).sum()
    }

    /// All waits from runnable to running.
    pub fn all_run_queue(&self) -> Histogram {
        let mut all = Histogram::EMPTY;
        self.run_queue.iter().for_each(|wait| all.merge(wait));
        all
    }
}

/// What a CPU limit did to a target.
#[derive(Clone, Debug)]
pub struct ThrottledSnapshot {
    /// Time that it held in one period, nanoseconds, where CPUs that were held at the same time are added. Those between
    /// two looks count as their mean.
    pub wait: Histogram,
}

impl Default for ThrottledSnapshot {
    fn default() -> ThrottledSnapshot {
        ThrottledSnapshot { wait: Histogram::EMPTY }
    }
}
