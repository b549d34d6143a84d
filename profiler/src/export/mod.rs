//! Ways out: HTTP, OTLP, and text for people. Exporters read a snapshot, never the table.

pub mod http;
pub mod landing;
pub mod minutes;
pub mod otlp;
pub mod protection;
mod server;
pub mod status;
pub mod text;
pub mod tree;
mod web_config;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use crate::model::snapshot::Snapshot;

pub use web_config::WebConfigError;

/// How long a request waits for a snapshot.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// An exporter that could not begin, or ended.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The address is taken.
    #[error("failed to listen on {address}: the address is in use (choose another with --web.listen-address)")]
    AddressInUse {
        /// The address.
        address: SocketAddr,
    },
    /// It could not be bound for another reason.
    #[error("failed to listen on {address}: {source}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The path is none, or belongs to another page.
    #[error("failed to serve metrics at `{path}`: {reason}")]
    Path {
        /// The path.
        path: String,
        /// Why.
        reason: &'static str,
    },
    /// The file that protects the endpoint is refused.
    #[error("failed to protect the endpoint: {0}")]
    Protection(#[from] WebConfigError),
    /// Metrics cannot be pushed as it was asked for.
    #[error("failed to push metrics: {0}")]
    Push(String),
    /// The server failed.
    #[error("failed to serve: {0}")]
    Serve(std::io::Error),
}

/// A snapshot that was asked for and did not come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoSnapshot {
    /// The main loop is busy.
    #[error("no snapshot within {} s: the profiler is overloaded", PATIENCE.as_secs())]
    Late,
    /// The main loop has ended.
    #[error("no snapshot: the profiler is shutting down")]
    Closed,
}

/// Asks the main loop, which owns the table, for a snapshot.
pub type SnapshotRequest = oneshot::Sender<Arc<Snapshot>>;

/// Where exporters get their snapshots.
#[derive(Clone, Debug)]
pub struct SnapshotSource {
    requests: mpsc::Sender<SnapshotRequest>,
}

impl SnapshotSource {
    /// A source, and the requests that the main loop answers. At most `waiting` requests wait at a time.
    pub fn channel(waiting: usize) -> (SnapshotSource, mpsc::Receiver<SnapshotRequest>) {
        let (requests, receiver) = mpsc::channel(waiting);
        (SnapshotSource { requests }, receiver)
    }

    /// A fresh snapshot.
    ///
    /// # Errors
    /// There was none in time.
    pub async fn snapshot(&self) -> Result<Arc<Snapshot>, NoSnapshot> {
        let ask = async {
            let (reply, answer) = oneshot::channel();
            self.requests.send(reply).await.map_err(|_| NoSnapshot::Closed)?;
            answer.await.map_err(|_| NoSnapshot::Closed)
        };
        tokio::time::timeout(PATIENCE, ask).await.unwrap_or(Err(NoSnapshot::Late))
    }
}
