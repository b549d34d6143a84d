//! The lock under which a runtime runs its code, one thread at a time: values of BPF maps. Never which runtime has one.

/// A thread that waits for the lock. Key: thread id.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LockWait {
    /// Since when, nanoseconds.
    pub since_ns: u64,
    /// The window in which that was, see [`crate::map::PollPolicy::window`].
    pub window: u32,
    /// Always 0.
    pub reserved: u32,
}

/// What a site tells: displacements in a [`crate::map::Cookie`].
pub mod tells {
    /// The thread is about to wait for the lock.
    pub const BEGINS: i64 = 0;
    /// The thread, whose object is the argument, is about to wait: for the lock, or for another thread to make it ready.
    pub const BEGINS_UNREADY: i64 = 1;
    /// Another thread makes the one ready whose object is the argument: it waits for the lock from now on.
    pub const READY: i64 = 2;
    /// A wait is over where the zero flag is set.
    pub const ENDS: i64 = 3;
}

const _: () = assert!(size_of::<LockWait>() == 16);
