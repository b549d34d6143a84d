//! The hooks and maps of connections and requests. Never what is made of them.

use aya::maps::{MapData, MapError, PerCpuArray};
use aya::{Btf, Pod};
use profiler_common::request::{Connection, RequestStats};

use super::KernelError;
use super::load::Kernel;
use super::maps::{Value, failed};

/// Entries of maps that have one where requests are not measured.
pub(super) const SIZES: &[(&str, u32)] =
    &[("CONNECTIONS", 65536), ("UNIX_CONNECTIONS", 8192), ("UNIX_ACCEPTED", 4096), ("REPLIES", 8192)];

/// The kernel's tracepoints, which are the programs' names too.
const HOOKS: [&str; 2] = ["sock_send_length", "sock_recv_length"];

// SAFETY: each is `repr(C)`, made of integers only, without padding (asserted beside its definition).
unsafe impl Pod for Value<Connection> {}
// SAFETY: as above.
unsafe impl Pod for Value<RequestStats> {}

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
        let connection = Value(Connection { slot, ..Connection::NEW });
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
