//! Connections and requests of a target: whether they are seen, and how many connections are older than that.

use std::collections::HashSet;

use crate::kernel::load::Kernel;
use crate::kernel::request::ConnectionKind;
use crate::kernel::signal::REQUESTS;
use crate::model::snapshot::RequestsSnapshot;
use crate::status::ProbeState;
use crate::target::listener::{ListenerError, Listeners};

/// Whether what is sent and received is seen, or why not.
pub(super) type Hooks = Result<(), (ProbeState, String)>;

/// What the row of the status says where requests are measured.
pub(super) const HOW: &str = "by BTF tracepoints sock_send_length and sock_recv_length; every process of this machine pays for \
     them, some 120 ns per call on a socket";

/// Attaches, for the whole machine.
pub(super) fn attach(kernel: &mut Kernel) -> Hooks {
    kernel.signals.way(REQUESTS).map_err(|why| (ProbeState::Unsupported, why))?;
    kernel.attach_requests().map_err(|e| (ProbeState::Broken, e.to_string()))
}

/// The connections of one target.
pub(super) struct Connections {
    /// How many of TCP were accepted before, and were open when they were looked for.
    found: u64,
}

impl Connections {
    /// Follows those that are open already. One that is accepted or closed meanwhile is counted by the kernel half.
    pub fn find(
        kernel: &mut Kernel,
        listeners: &mut Listeners,
        pids: &[u32],
        slot: u32,
    ) -> Result<Connections, String> {
        let added = follow(kernel, ConnectionKind::Tcp, slot, || listeners.tcp_connections(pids))?;
        follow(kernel, ConnectionKind::Unix, slot, || listeners.unix_connections())?;
        Ok(Connections { found: added })
    }

    /// What is exported of them and of their requests.
    pub fn snapshot(
        &self,
        kernel: &mut Kernel,
        listeners: Option<&mut Listeners>,
        slot: u32,
    ) -> Option<RequestsSnapshot> {
        let stats = *kernel.requests(slot).inspect_err(|e| log::warn!("{e}")).ok()?;
        let unix = listeners.and_then(|l| l.unix_connections().inspect_err(|e| log::debug!("{e}")).ok());
        Some(RequestsSnapshot {
            open: (self.found + stats.opened).saturating_sub(stats.closed) + unix.map_or(0, |open| open.len() as u64),
            request: (&stats.request).into(),
            after_reply: (&stats.after_reply).into(),
        })
    }
}

/// Follows the connections that `list` finds, and says how many.
fn follow(
    kernel: &mut Kernel,
    kind: ConnectionKind,
    slot: u32,
    mut list: impl FnMut() -> Result<Vec<u64>, ListenerError>,
) -> Result<u64, String> {
    let mut open = || list().map_err(|e| e.to_string());
    let mut added = Vec::new();
    for cookie in open()? {
        if kernel.add_connection(kind, cookie, slot).map_err(|e| e.to_string())? {
            added.push(cookie);
        }
    }
    // One that was closed before it was followed would be open forever.
    let still: HashSet<u64> = open()?.into_iter().collect();
    added.retain(|cookie| still.contains(cookie) || !kernel.remove_connection(kind, *cookie));
    Ok(added.len() as u64)
}
