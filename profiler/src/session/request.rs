//! Connections and requests of a target: whether they are seen, and how many connections are older than that.

use std::collections::HashSet;

use profiler_common::duration::{FETCH_KIND, JOB_KIND};

use super::counted::OfSlot;
use crate::kernel::load::Kernel;
use crate::kernel::request::{ConnectionKind, OpenRequests};
use crate::kernel::signal::REQUESTS;
use crate::model::snapshot::{JobsSnapshot, RequestsSnapshot};
use crate::status::ProbeState;
use crate::target::listener::{ListenerError, Listeners};

/// Whether what is sent and received is seen, or why not.
pub(super) type Hooks = Result<(), (ProbeState, String)>;

/// What the row of the status says where requests are measured.
pub(super) const HOW: &str = "by BTF tracepoints sock_send_length and sock_recv_length; every process of this machine pays for \
     them, some 120 ns per call on a socket";

/// What the row of the status says of jobs.
pub(super) const HOW_JOBS: &str =
    "those that are taken by BRPOP from Redis over a connection without TLS, as Sidekiq takes its own";

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
        let cookies = |open: Vec<(u64, bool)>| open.into_iter().map(|(cookie, _)| cookie).collect();
        follow(kernel, ConnectionKind::Unix, slot, || listeners.unix_connections().map(cookies))?;
        Ok(Connections { found: added })
    }

    /// What is exported of them and of their requests, of which `open` are open; of what sockets tell, since `since_ns`.
    pub fn snapshot(
        &self,
        kernel: &mut Kernel,
        listeners: Option<&mut Listeners>,
        (slot, open): (u32, &OpenRequests),
        since_ns: u64,
    ) -> Option<RequestsSnapshot> {
        let stats = *kernel.requests(slot).inspect_err(|e| log::warn!("{e}")).ok()?;
        let listed = listeners.map(|listeners| {
            let unix = listeners.unix_connections()?;
            let unread = listeners.unread(&open.unread, since_ns)?;
            // Those that are open still, of all that were seen.
            let count = |is: &dyn Fn(Option<bool>, bool) -> bool| {
                unix.iter().filter(|(cookie, waits)| is(open.read_unix.get(cookie).copied(), *waits)).count() as u64
            };
            let unread_unix = count(&|read, waits| waits && read.is_none());
            let in_progress_unix = count(&|read, _| read == Some(true));
            Ok::<_, ListenerError>((unix.len() as u64, unread + unread_unix, in_progress_unix))
        });
        let listed = listed.and_then(|listed| listed.inspect_err(|e| log::debug!("{e}")).ok());
        let (unix, in_progress_unix) = listed.map_or((0, 0), |(unix, _, in_progress)| (unix, in_progress));
        Some(RequestsSnapshot {
            open: (self.found + stats.opened).saturating_sub(stats.closed) + unix,
            unread: listed.map(|(_, unread, _)| unread),
            in_progress: open.in_progress + in_progress_unix,
            replied: open.after_reply,
            request: (&stats.request).into(),
            after_reply: (&stats.after_reply).into(),
        })
    }
}

/// What is exported of a target's threads that take jobs; `None` where none has been seen to.
pub(super) fn jobs(counted: &mut OfSlot) -> Option<JobsSnapshot> {
    let (job, fetch) = (counted.durations(JOB_KIND), counted.durations(FETCH_KIND));
    let (busy, idle) = (counted.open.busy, counted.open.idle);
    (busy + idle > 0 || job.count > 0 || fetch.count > 0).then_some(JobsSnapshot { job, fetch, busy, idle })
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
