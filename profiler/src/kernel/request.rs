//! The hooks and maps of connections and requests. Never what is made of them.

use std::collections::{HashMap, HashSet};

use aya::maps::{MapData, MapError, PerCpuArray};
use aya::{Btf, Pod};
use profiler_common::job::Worker;
use profiler_common::request::{Connection, Reply, RequestStats};

use super::KernelError;
use super::load::Kernel;
use super::maps::{Value, failed};

/// Entries of maps that have one where requests are not measured.
pub(super) const SIZES: &[(&str, u32)] = &[
    ("CONNECTIONS", 65536),
    ("UNIX_CONNECTIONS", 8192),
    ("UNIX_ACCEPTED", 4096),
    ("REPLIES", 8192),
    ("WORKERS", 8192),
];

const REPLIES: &str = "REPLIES";
const WORKERS: &str = "WORKERS";

/// The kernel's tracepoints, which are the programs' names too.
const HOOKS: [&str; 2] = ["sock_send_length", "sock_recv_length"];

// SAFETY: each is `repr(C)`, made of integers only, without padding (asserted beside its definition).
unsafe impl Pod for Value<Connection> {}
// SAFETY: as above.
unsafe impl Pod for Value<RequestStats> {}
// SAFETY: as above.
unsafe impl Pod for Value<Reply> {}
// SAFETY: as above.
unsafe impl Pod for Value<Worker> {}

/// Connections of which the kernel half learns the end, and those that it forgets in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectionKind {
    /// TCP, of any family.
    Tcp,
    /// Unix stream sockets.
    Unix,
}

impl ConnectionKind {
    const fn map(self) -> &'static str {
        match self {
            ConnectionKind::Tcp => "CONNECTIONS",
            ConnectionKind::Unix => "UNIX_CONNECTIONS",
        }
    }
}

/// What the threads of one target do just now for those who ask something of it.
#[derive(Debug, Default)]
pub struct OpenRequests {
    /// Requests over TCP of which something was read, and that were not answered.
    pub in_progress: u64,
    /// Threads that have replied and are not available again.
    pub after_reply: u64,
    /// Cookies of TCP connections from which nothing was read since they were accepted.
    pub unread: HashSet<u64>,
    /// Connections of unix sockets from which something was read, by cookie, and whether that was not answered. Some may be closed:
    /// their end is not told.
    pub read_unix: HashMap<u64, bool>,
    /// Threads that do a job.
    pub busy: u64,
    /// Threads that wait for a job.
    pub idle: u64,
}

impl Kernel {
    /// Attaches to what every process of the machine sends and receives on sockets.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn attach_requests(&mut self) -> Result<(), KernelError> {
        let btf = Btf::from_sys_fs()?;
        // They tell of new connections and of their ends.
        self.attach_state_changes(&btf)?;
        HOOKS.iter().try_for_each(|hook| self.attach_btf(&btf, hook, hook))
    }

    /// Follows a connection that was accepted before; false where it is followed already.
    ///
    /// # Errors
    /// The map is full.
    pub fn add_connection(&mut self, kind: ConnectionKind, cookie: u64, slot: u32) -> Result<bool, KernelError> {
        const BPF_NOEXIST: u64 = 1;
        let map = kind.map();
        let connection = Value(Connection { slot, was_read: 1, ..Connection::NEW });
        match self.hash::<u64, Value<Connection>>(map)?.insert(cookie, connection, BPF_NOEXIST) {
            Ok(()) => Ok(true),
            Err(MapError::SyscallError(e)) if e.io_error.raw_os_error() == Some(libc::EEXIST) => Ok(false),
            Err(e) => Err(failed(map)(e)),
        }
    }

    /// Forgets a connection; false where it was not followed.
    pub fn remove_connection(&mut self, kind: ConnectionKind, cookie: u64) -> bool {
        self.hash::<u64, Value<Connection>>(kind.map()).is_ok_and(|mut map| map.remove(&cookie).is_ok())
    }

    /// What threads do just now, by slot; none where nobody asks for anything.
    ///
    /// # Errors
    /// A map cannot be read.
    pub fn open_requests(&mut self) -> Result<HashMap<u32, OpenRequests>, KernelError> {
        let mut open: HashMap<u32, OpenRequests> = HashMap::new();
        let in_progress = |connection: &Connection| connection.read_ns != 0 && connection.written_ns == 0;
        self.each(ConnectionKind::Tcp.map(), |cookie: &u64, Value(connection): &Value<Connection>| {
            let of = open.entry(connection.slot).or_default();
            of.in_progress += u64::from(in_progress(connection));
            if connection.was_read == 0 {
                of.unread.insert(*cookie);
            }
        })?;
        self.each(ConnectionKind::Unix.map(), |cookie: &u64, Value(connection): &Value<Connection>| {
            if connection.was_read != 0 {
                open.entry(connection.slot).or_default().read_unix.insert(*cookie, in_progress(connection));
            }
        })?;
        self.each(REPLIES, |_: &u32, Value(reply): &Value<Reply>| {
            open.entry(reply.slot).or_default().after_reply += 1
        })?;
        self.each(WORKERS, |_: &u32, Value(worker): &Value<Worker>| {
            let of = open.entry(worker.slot).or_default();
            *(if worker.works == 1 { &mut of.busy } else { &mut of.idle }) += 1;
        })?;
        Ok(open)
    }

    /// Forgets what these slots' connections and threads do: they are not watched any more.
    ///
    /// # Errors
    /// A map cannot be read.
    pub fn forget_requests_of(&mut self, slots: &[u32]) -> Result<(), KernelError> {
        for kind in [ConnectionKind::Tcp, ConnectionKind::Unix] {
            self.forget(kind.map(), |_: &u64, Value(connection): &Value<Connection>| slots.contains(&connection.slot))?;
        }
        self.forget(REPLIES, |_: &u32, Value(reply): &Value<Reply>| slots.contains(&reply.slot))?;
        self.forget(WORKERS, |_: &u32, Value(worker): &Value<Worker>| slots.contains(&worker.slot))
    }

    /// Connections and requests of a slot, over all CPUs.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn requests(&mut self, slot: u32) -> Result<Box<RequestStats>, KernelError> {
        let map: PerCpuArray<&mut MapData, Value<RequestStats>> = self.per_cpu("REQUESTS")?;
        let mut sum = Box::new(RequestStats::EMPTY);
        for Value(cpu) in map.get(&slot, 0).map_err(failed("REQUESTS"))?.iter() {
            sum.opened += cpu.opened;
            sum.closed += cpu.closed;
            sum.request.merge(&cpu.request);
            sum.after_reply.merge(&cpu.after_reply);
        }
        Ok(sum)
    }
}
