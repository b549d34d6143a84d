//! Work that is deferred: queued by one function, and run by another one later. Values of BPF maps; never which library has the queue.

/// Work at one address that waits. Key: [`crate::map::TaskKey`]. The same may wait several times.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Deferred {
    /// When it was deferred first, nanoseconds.
    pub first_ns: u64,
    /// How much later than that it was deferred, summed over all that wait, nanoseconds.
    pub later_ns: u64,
    /// How many wait.
    pub waiting: u64,
    /// The target's slot.
    pub slot: u32,
    /// Always 0.
    pub reserved: u32,
}

/// A thread that runs what was deferred. Key: thread id.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeferredRun {
    /// Since when, nanoseconds.
    pub since_ns: u64,
    /// The target's slot.
    pub slot: u32,
    /// Its process.
    pub pid: u32,
}

/// What a site tells: displacements in a [`crate::map::Cookie`].
pub mod tells {
    /// Work is deferred: its address is the argument, and rdi is the function that will run it.
    pub const DEFERRED: i64 = 0;
    /// The work whose address is the argument is run.
    pub const BEGINS: i64 = 1;
    /// What the thread has run is done.
    pub const ENDS: i64 = 2;
}

const _: () = assert!(size_of::<Deferred>() == 32);
const _: () = assert!(size_of::<DeferredRun>() == 16);
