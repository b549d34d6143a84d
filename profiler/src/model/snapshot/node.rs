//! What an agent exports of its node: how processes are found, what the cluster tells of them, and what all of it costs. Never what
//! is measured of one.

/// What probing costs all targets of a node.
#[derive(Clone, Debug)]
pub struct NodeBudgetSnapshot {
    /// The budget as the user gave it.
    pub budget: String,
    /// As a share of the node's CPU time; `None` where it is off.
    pub share: Option<f64>,
    /// The cost as such a share, of late.
    pub cost_share: f64,
    /// Which part of its own budget each target has.
    pub factor: f64,
}

/// How processes of a node are found.
#[derive(Clone, Debug, Default)]
pub struct DiscoverySnapshot {
    /// Processes that were looked at, by what was decided.
    pub looked_at: Vec<(&'static str, u64)>,
    /// Processes that have yet to be looked at.
    pub waiting: u64,
    /// Processes that are watched.
    pub watched: u64,
    /// Processes that can be watched at the same time.
    pub limit: u64,
    /// The file of the rules; `None` where there is none.
    pub config: Option<ConfigSnapshot>,
    /// The processes that could not be watched, the last ones.
    pub failed: Vec<FailedSnapshot>,
    /// Groups of targets, and names in them, that found no room, and were summed in `other`.
    pub turned_away: u64,
    /// What the cluster tells; `None` where it is not asked.
    pub cluster: Option<ClusterSnapshot>,
}

/// What the cluster tells of this node's pods.
#[derive(Clone, Debug, Default)]
pub struct ClusterSnapshot {
    /// Whether it can be asked; `None` before it has answered or failed.
    pub up: Option<bool>,
    /// Why it cannot.
    pub why: Option<String>,
    /// Pods that are known.
    pub pods: u64,
    /// Pods that found no room.
    pub turned_away: u64,
    /// Pods that it has told of, or that have changed or gone.
    pub events: u64,
    /// How often it could not be asked, by why.
    pub failures: Vec<(&'static str, u64)>,
    /// Processes of which rules want to know names that are not known yet.
    pub undecided: u64,
    /// Processes of which they were decided without.
    pub given_up: u64,
    /// Targets that were shown without all their names, which came later.
    pub late: u64,
}

/// A file that is read again on demand.
#[derive(Clone, Debug)]
pub struct ConfigSnapshot {
    /// When what is in force was read, seconds since the epoch.
    pub loaded_seconds: f64,
    /// Why it was refused when it was read last; `None` where it was not.
    pub refusal: Option<String>,
}

/// A process that was to be watched, and is not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailedSnapshot {
    /// Process id.
    pub pid: u32,
    /// Name of the process.
    pub process: String,
    /// Why.
    pub why: String,
}
