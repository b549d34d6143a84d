//! What a cluster calls the processes of this node: namespaces, pods, containers, labels. Never which of them are wanted, and
//! never a request for anything but this node's pods.

mod book;
#[cfg(feature = "kubernetes")]
pub mod watch;

use std::collections::BTreeMap;
use std::sync::Arc;

pub use book::{Book, Failure, Pod};

/// Names of a process in a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Names {
    /// It has none: it is in no pod, or nobody tells them.
    #[default]
    None,
    /// They are not known yet.
    Awaited,
    /// They are known.
    Known {
        /// The pod's.
        pod: Arc<PodNames>,
        /// The container's; `None` where only that is not known yet.
        container: Option<String>,
    },
}

/// What the cluster calls a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodNames {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}
