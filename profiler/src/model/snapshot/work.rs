//! What comes to a target from elsewhere, or waits in it to be done: connections, requests, jobs, deferred work.

use crate::histogram::Histogram;

/// One listening socket. Every field that was not measured is `None`.
#[derive(Clone, Debug, Default)]
pub struct ListenerSnapshot {
    /// Local address, as `127.0.0.1:8080`, `[::1]:8080`, `unix:/run/a.sock` or `unix:@abstract`; `#2` and so on is appended to the second and later
    /// socket that share an address (SO_REUSEPORT), in the order of their inodes.
    pub listener: String,
    /// Connections that wait now.
    pub length: Option<u64>,
    /// Most connections that may wait.
    pub limit: Option<u64>,
    /// Connections that the kernel dropped at this listener, since it was opened.
    pub overflows: Option<u64>,
    /// Connections that the target accepted since it is observed.
    pub accepted: Option<u64>,
    /// Queue length after each enqueue.
    pub depth: Option<Histogram>,
    /// Wait from established to accepted, nanoseconds.
    pub wait: Option<Histogram>,
}

/// Connections that a target accepted, and the requests on them. Durations in nanoseconds.
#[derive(Clone, Debug)]
pub struct RequestsSnapshot {
    /// Connections that are open now.
    pub open: u64,
    /// Those that were accepted and from which nothing was read, although something has come; `None` where sockets do not tell.
    pub unread: Option<u64>,
    /// Requests of which something was read, and that were not answered.
    pub in_progress: u64,
    /// Threads that have replied and are not available again.
    pub replied: u64,
    /// From the first read to the last write before the next read.
    pub request: Histogram,
    /// From the last write until the thread reads, accepts or waits.
    pub after_reply: Histogram,
}

/// Jobs that a target's threads take from a queue elsewhere. Durations in nanoseconds.
#[derive(Clone, Debug)]
pub struct JobsSnapshot {
    /// From a job to when its thread asks for the next one.
    pub job: Histogram,
    /// From there to the next job.
    pub fetch: Histogram,
    /// Threads that do a job now.
    pub busy: u64,
    /// Threads that wait for one now.
    pub idle: u64,
}

/// Work that a runtime puts into a queue, to be run later. Durations in nanoseconds.
#[derive(Clone, Debug)]
pub struct DeferredSnapshot {
    /// From when it was deferred until it was run.
    pub wait: Histogram,
    /// From there until it was done.
    pub run: Histogram,
    /// How much waits and how much is run, now; `None` where it was not seen all the time.
    pub now: Option<(u64, u64)>,
}
