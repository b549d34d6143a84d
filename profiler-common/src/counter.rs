//! The kernel half's own counters: one per-CPU array, indexed by [`Counter`].

/// What the kernel half counts about itself. Numbers are positions in a map: never reused, only added to.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counter {
    /// Task events that found the ring full.
    RingFullTask = 0,
    /// Process events that found the ring full.
    RingFullProcess = 1,
    /// Threads that found the thread map full: their scheduling is not measured.
    ThreadsFull = 2,
    /// Forked processes that found the target map full: they are not followed.
    TargetsFull = 3,
    /// Accepted connections whose arrival was not seen: their wait is not measured.
    AcceptUnmatched = 4,
    /// Task hits at which the target's memory could not be read.
    TargetMemory = 5,
    /// Task hits whose poll stack was deeper than is kept.
    PollStackDeep = 6,
    /// Task hits in targets while nothing is to be measured: a probe comes or goes.
    IdleHits = 7,
    /// Types of task that found the map of types full: their polls and wakes are not counted.
    TypesFull = 8,
    /// Polls whose thread found the map of polling threads full.
    PollThreadsFull = 9,
    /// Uprobe hits in processes that are not targets.
    ForeignHits = 10,
    /// Ends of polls that began before they were measured.
    PollStartUnseen = 11,
    /// Accepted connections on a listener that user space has not registered yet.
    AcceptUnknownListener = 12,
    /// Samples of the CPU clock that found the ring full.
    RingFullSample = 13,
    /// Spawns whose stack was copied.
    SpawnStacks = 14,
    /// Spawns whose stack was to be copied, and was not: the ring had to be kept for other records, or it could not be
    /// read. A sample is smaller, and nothing is lost.
    SpawnStacksSkipped = 15,
    /// Accepted connections that are not followed: their arrival was not seen, or there are too many.
    ConnectionUnknown = 16,
    /// Ends of threads that found the ring full: what they had since the last scrape is in no thread's sum.
    RingFullThread = 17,
    /// Event loops that found the map of loops full.
    LoopsFull = 18,
    /// Processes that found the map of young ones full: they are not found.
    YoungFull = 19,
    /// Threads that take jobs and found the map of those full: their jobs are not measured.
    WorkersFull = 20,
    /// Deferred work that found the map of it full, or threads that run it: its wait, or its run, is not measured.
    DeferredFull = 21,
    /// Threads that run deferred work although the end of what they ran before was not seen: that run is not measured.
    DeferredEndUnseen = 22,
}

/// Number of counters.
pub const COUNTERS: usize = 23;

impl Counter {
    /// All counters, in the order of their numbers.
    pub const ALL: [Counter; COUNTERS] = [
        Counter::RingFullTask,
        Counter::RingFullProcess,
        Counter::ThreadsFull,
        Counter::TargetsFull,
        Counter::AcceptUnmatched,
        Counter::TargetMemory,
        Counter::PollStackDeep,
        Counter::IdleHits,
        Counter::TypesFull,
        Counter::PollThreadsFull,
        Counter::ForeignHits,
        Counter::PollStartUnseen,
        Counter::AcceptUnknownListener,
        Counter::RingFullSample,
        Counter::SpawnStacks,
        Counter::SpawnStacksSkipped,
        Counter::ConnectionUnknown,
        Counter::RingFullThread,
        Counter::LoopsFull,
        Counter::YoungFull,
        Counter::WorkersFull,
        Counter::DeferredFull,
        Counter::DeferredEndUnseen,
    ];

    /// The label value of this counter where it counts something lost; `None` where it counts hits.
    pub const fn loss_reason(self) -> Option<&'static str> {
        Some(match self {
            Counter::RingFullTask => "ring_full_task",
            Counter::RingFullProcess => "ring_full_process",
            Counter::ThreadsFull => "thread_map_full",
            Counter::TargetsFull => "target_map_full",
            Counter::AcceptUnmatched => "accept_arrival_unseen",
            Counter::AcceptUnknownListener => "accept_listener_unknown",
            Counter::RingFullSample => "ring_full_sample",
            Counter::RingFullThread => "ring_full_thread",
            Counter::LoopsFull => "loop_map_full",
            Counter::YoungFull => "young_map_full",
            Counter::WorkersFull => "job_worker_map_full",
            Counter::DeferredFull => "deferred_map_full",
            Counter::DeferredEndUnseen => "deferred_end_unseen",
            Counter::TargetMemory => "target_memory_unreadable",
            Counter::PollStackDeep => "poll_stack_deep",
            Counter::TypesFull => "type_map_full",
            Counter::PollThreadsFull => "poll_thread_map_full",
            Counter::ConnectionUnknown => "connection_unknown",
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_numbered_without_a_gap() {
        for (index, counter) in Counter::ALL.iter().enumerate() {
            assert_eq!(*counter as usize, index);
        }
    }

    #[test]
    fn loss_reasons_are_unique() {
        for (i, a) in Counter::ALL.iter().enumerate() {
            for b in &Counter::ALL[i + 1..] {
                assert!(a.loss_reason().is_none() || a.loss_reason() != b.loss_reason());
            }
        }
    }
}
