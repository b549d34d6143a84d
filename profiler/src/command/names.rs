//! The names of this node's pods, as the agent uses them: who waits for which, and for how long. Never how they are learned.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context as _, Result, bail};

use crate::cli::Kubernetes;
use crate::cluster::{Book, Names};
use crate::discovery::rules::{Decision, Facts, Rules};
use crate::model::snapshot::{ClusterSnapshot, IdentitySnapshot, TargetSnapshot};
use crate::target::identity::{self, Identity};
use crate::target::process;

/// Has the node's name where no flag does: a manifest sets it from `spec.nodeName`.
#[cfg(feature = "kubernetes")]
const NODE_NAME: &str = "NODE_NAME";
/// For so long a process waits for names that decide, nanoseconds.
const PATIENCE_NS: u64 = 10_000_000_000;
/// Processes that wait at the same time.
const WAITING: usize = 1_024;
/// Processes of pods that have changed are looked at again after so long at the earliest, nanoseconds: all of a node are read for it.
const REST_NS: u64 = 1_000_000_000;

/// A process that waits.
struct Waiting {
    since_ns: u64,
    /// It has waited for long enough, and is about to be looked at.
    due: bool,
}

/// Names, and who waits for them.
pub(super) struct PodBook {
    book: Arc<Mutex<Book>>,
    start: Option<Start>,
    waiting: HashMap<u32, Waiting>,
    given_up: u64,
    /// When processes of pods that have changed were looked for last, nanoseconds.
    looked_ns: u64,
    /// Targets that have not all their names, and since when, nanoseconds.
    unnamed: HashMap<u32, u64>,
    late: u64,
}

/// What the watch is to be started with.
struct Start {
    #[cfg(feature = "kubernetes")]
    config: kube::Config,
    #[cfg(feature = "kubernetes")]
    node: String,
}

impl PodBook {
    /// The book that these flags ask for; `None` where they do not.
    ///
    /// # Errors
    /// There is nothing that could be asked.
    pub async fn new(flags: &Kubernetes) -> Result<Option<PodBook>> {
        if !flags.kubernetes {
            return Ok(None);
        }
        let start = Some(Start::find(flags).await?);
        Ok(Some(PodBook {
            book: Arc::default(),
            start,
            waiting: HashMap::new(),
            given_up: 0,
            looked_ns: 0,
            unnamed: HashMap::new(),
            late: 0,
        }))
    }

    /// Has it kept, from now on.
    ///
    /// # Errors
    /// There is no thread for it.
    pub fn keep(&mut self) -> Result<()> {
        let Some(start) = self.start.take() else { return Ok(()) };
        start.run(Arc::clone(&self.book)).context("failed to start the thread that asks the Kubernetes API")
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a process is called.
    pub fn names(&self, identity: &Identity) -> Names {
        self.book().names(identity.pod_uid.as_deref(), identity.container_id.as_deref())
    }

    /// Processes that are to be looked at again: those that have waited for long enough, and with `changes` those of pods that
    /// have changed.
    pub fn again(&mut self, now_ns: u64, changes: bool) -> Vec<u32> {
        let mut pids = Vec::new();
        for (&pid, waiting) in &mut self.waiting {
            if !waiting.due && now_ns.saturating_sub(waiting.since_ns) >= PATIENCE_NS {
                waiting.due = true;
                pids.push(pid);
            }
        }
        if now_ns.saturating_sub(self.looked_ns) < REST_NS {
            return pids;
        }
        let changed = self.book().take_changed();
        if changes && !changed.is_empty() {
            self.looked_ns = now_ns;
            let book = self.book();
            let has_changed = |identity: &Identity| {
                let id = identity.container_id.as_deref();
                identity
                    .pod_uid
                    .as_ref()
                    .map_or_else(|| book.pod_of(id?), |uid| Some(uid.as_str()))
                    .map(|uid| changed.contains(uid))
            };
            let all = process::all().into_iter().filter(|&pid| !pids.contains(&pid));
            let identity = |pid| identity::cgroup_lines(pid).map(|lines| Identity::parse(&lines));
            let is_one = |&pid: &u32| identity(pid).is_some_and(|of| has_changed(&of) == Some(true));
            let of: Vec<u32> = all.filter(is_one).collect();
            pids.extend(of);
        }
        pids
    }

    /// What the rules decide of a process: without its names, once it has waited for long enough.
    pub fn decide(
        &mut self,
        pid: u32,
        facts: &mut Facts,
        now_ns: u64,
        rules: &Rules,
        mut runtime: impl FnMut() -> Option<&'static str>,
    ) -> Decision {
        let due = self.waiting.get(&pid).is_some_and(|waiting| waiting.due);
        if due {
            self.waiting.remove(&pid);
        }
        facts.names = self.names(&facts.identity);
        facts.final_names = false;
        match rules.decide(facts, &mut runtime) {
            Decision::Undecided if !due && (self.waiting.len() < WAITING || self.waiting.contains_key(&pid)) => {
                self.waiting.entry(pid).or_insert(Waiting { since_ns: now_ns, due: false });
                Decision::Undecided
            }
            Decision::Undecided => {
                self.given_up += 1;
                facts.final_names = true;
                rules.decide(facts, runtime)
            }
            decided => {
                self.waiting.remove(&pid);
                decided
            }
        }
    }

    /// A process has ended.
    pub fn forget(&mut self, pid: u32) {
        self.waiting.remove(&pid);
    }

    /// Tells the names of all targets that there are. What has not all of them is awaited for a while.
    pub fn name(&mut self, targets: &mut [TargetSnapshot], now_ns: u64) {
        let before = std::mem::take(&mut self.unnamed);
        for target in targets {
            let since_ns = before.get(&target.pid).copied();
            let is_complete = self.name_one(&mut target.identity);
            let is_late = |since_ns| now_ns.saturating_sub(since_ns) >= PATIENCE_NS;
            if !is_complete {
                let since_ns = *self.unnamed.entry(target.pid).or_insert(since_ns.unwrap_or(now_ns));
                target.identity.awaited = !is_late(since_ns);
            } else if since_ns.is_some_and(is_late) {
                self.late += 1;
            }
        }
    }

    /// Tells the names of one target. Returns whether none is missing.
    pub fn name_one(&self, of: &mut IdentitySnapshot) -> bool {
        match self.book().names(of.pod_uid.as_deref(), of.container_id.as_deref()) {
            Names::None => true,
            Names::Awaited => false,
            Names::Known { pod, container } => {
                of.namespace = Some(pod.namespace.clone());
                of.pod = Some(pod.name.clone());
                of.container = container;
                of.container.is_some() || of.container_id.is_none()
            }
        }
    }

    /// What is exported of it.
    pub fn snapshot(&self) -> ClusterSnapshot {
        let book = self.book();
        ClusterSnapshot {
            up: book.up(),
            why: book.said().map(str::to_owned),
            pods: book.len() as u64,
            turned_away: book.turned_away(),
            events: book.events(),
            failures: book.failures().collect(),
            undecided: self.waiting.len() as u64,
            given_up: self.given_up,
            late: self.late,
        }
    }
}

#[cfg(feature = "kubernetes")]
impl Start {
    async fn find(flags: &Kubernetes) -> Result<Start> {
        let node = flags.node_name.clone().or_else(|| std::env::var(NODE_NAME).ok());
        let Some(node) = node.filter(|node| !node.is_empty()) else {
            bail!("--kubernetes needs the name of this node: give --kubernetes.node-name, or set {NODE_NAME}");
        };
        // It becomes a part of a selector, where a comma would begin another one.
        if !node.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-' || c == b'.') {
            bail!("`{node}` is no name of a node: it has letters, digits, `-` and `.` only");
        }
        let config =
            crate::cluster::watch::configuration(flags.kubeconfig.as_deref()).await.map_err(anyhow::Error::msg)?;
        Ok(Start { config, node })
    }

    fn run(self, book: Arc<Mutex<Book>>) -> std::io::Result<()> {
        crate::cluster::watch::start(self.config, self.node, book)
    }
}

#[cfg(not(feature = "kubernetes"))]
impl Start {
    async fn find(_: &Kubernetes) -> Result<Start> {
        bail!(
            "--kubernetes is not in this build: build it with `--features kubernetes`, or use the image, which has it"
        )
    }

    fn run(self, _: Arc<Mutex<Book>>) -> std::io::Result<()> {
        Ok(())
    }
}
