//! What is kept of connections and requests: values of BPF maps. Never what was sent.

use crate::histogram::Histogram;

/// A connection that a target accepted, and where its request stands. Key: the socket's cookie.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Connection {
    /// When its request was read first, nanoseconds; 0 where there is none.
    pub read_ns: u64,
    /// When something was written last since then, nanoseconds; 0 where nothing was.
    pub written_ns: u64,
    /// Index of its target's [`RequestStats`].
    pub slot: u32,
    /// Whether anything was read from it since it was accepted: 1 or 0. What was there before counts as read.
    pub was_read: u32,
}

impl Connection {
    /// Nothing was read yet.
    pub const NEW: Connection = Connection { read_ns: 0, written_ns: 0, slot: 0, was_read: 0 };
}

/// A thread that has replied, and is not available again. Key: thread id.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reply {
    /// When it wrote last, nanoseconds.
    pub written_ns: u64,
    /// Index of its target's [`RequestStats`].
    pub slot: u32,
    /// Always 0.
    pub reserved: u32,
}

/// Connections and requests of one target, per CPU. Times in nanoseconds.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct RequestStats {
    /// TCP connections that were accepted.
    pub opened: u64,
    /// Those of them that were closed, or reset.
    pub closed: u64,
    /// From the first read to the last write before the next read.
    pub request: Histogram,
    /// From the last write until the thread reads, accepts or waits.
    pub after_reply: Histogram,
}

impl RequestStats {
    /// Nothing counted.
    pub const EMPTY: RequestStats =
        RequestStats { opened: 0, closed: 0, request: Histogram::EMPTY, after_reply: Histogram::EMPTY };
}

const _: () = assert!(size_of::<Connection>() == 24);
const _: () = assert!(size_of::<Reply>() == 16);
const _: () = assert!(size_of::<RequestStats>() == 16 + 2 * size_of::<Histogram>());
