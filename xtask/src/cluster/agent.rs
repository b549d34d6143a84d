//! The DaemonSet's pod as the cluster has it, from being rolled out to being gone. Never what it measures.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::kubectl::{Kubectl, until};
use super::target::processes;
use crate::manifest::Manifests;

pub const NAMESPACE: &str = "profiler";
/// Where its endpoint is.
pub const PORT: u16 = 9909;
const DAEMON_SET: &str = "daemonset/profiler-agent";
const SELECTOR: &str = "app.kubernetes.io/name=profiler,app.kubernetes.io/component=agent";
const TOKEN: &str = "var/run/secrets/kubernetes.io/serviceaccount/token";
/// A kubelet that finds the cgroup of a pod still there looks again a minute later.
const ROLLOUT: Duration = Duration::from_secs(240);

/// One pod of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agent {
    pub pod: String,
    pub address: String,
    pub restarts: u64,
    pub pids: Vec<u32>,
}

impl Agent {
    /// Rolls out the shipped manifests of a folder, as they are.
    pub fn roll_out(kubectl: &Kubectl, folder: &str) -> Result<Agent> {
        kubectl.apply(&Manifests::render(folder, &[]).text())?;
        Agent::rolled_out(kubectl)
    }

    /// Rolls it out once more, as it is.
    pub fn roll_out_again(kubectl: &Kubectl) -> Result<Agent> {
        kubectl.run(&["rollout", "restart", DAEMON_SET, "--namespace", NAMESPACE])?;
        Agent::rolled_out(kubectl)
    }

    /// The one that is left when all is rolled out.
    fn rolled_out(kubectl: &Kubectl) -> Result<Agent> {
        let limit = format!("--timeout={}s", ROLLOUT.as_secs());
        kubectl.run(&["rollout", "status", DAEMON_SET, "--namespace", NAMESPACE, &limit]).map_err(|e| {
            let events = kubectl.run(&["get", "events", "--namespace", NAMESPACE, "-o", "custom-columns=M:.message"]);
            e.context(format!("the events are: {}", events.unwrap_or_default().replace('\n', "; ")))
        })?;
        until("agent that is alone and ready", ROLLOUT, || Agent::find(kubectl))
    }

    fn find(kubectl: &Kubectl) -> Result<Agent> {
        let pods = kubectl.get(&["pods", "--namespace", NAMESPACE, "--selector", SELECTOR])?;
        let pods = pods["items"].as_array().context("pods are a list")?;
        let [pod] = &pods[..] else { bail!("there are {} pods of it", pods.len()) };
        let status = &pod["status"]["containerStatuses"][0];
        if status["ready"] != true || !pod["metadata"]["deletionTimestamp"].is_null() {
            bail!("its pod is not ready");
        }
        let id =
            status["containerID"].as_str().and_then(|id| id.strip_prefix("containerd://")).context("it has no id")?;
        Ok(Agent {
            pod: pod["metadata"]["name"].as_str().context("it has no name")?.to_owned(),
            address: pod["status"]["podIP"].as_str().context("it has no address")?.to_owned(),
            restarts: status["restartCount"].as_u64().unwrap_or_default(),
            pids: processes(id)?,
        })
    }

    /// Deletes the DaemonSet, and waits until its pod is gone.
    pub fn delete(&self, kubectl: &Kubectl) -> Result<()> {
        kubectl.run(&["delete", DAEMON_SET, "--namespace", NAMESPACE])?;
        until("end of the agent's pod", ROLLOUT, || {
            let pods = kubectl.run(&["get", "pods", "--namespace", NAMESPACE, "-o", "name"])?;
            if pods.is_empty() { Ok(()) } else { bail!("{pods} is still there") }
        })
    }

    /// A page of its endpoint, by way of the API server.
    pub fn page(&self, kubectl: &Kubectl, path: &str) -> Result<String> {
        let path = format!("/api/v1/namespaces/{NAMESPACE}/pods/{}:{PORT}/proxy/{path}", self.pod);
        kubectl.run(&["get", "--raw", &path])
    }

    /// The token in its files, as it is in there.
    pub fn token(&self) -> Result<Option<String>> {
        let pid = self.pids.first().context("the agent has no process")?;
        let path = PathBuf::from(format!("/proc/{pid}/root")).join(TOKEN);
        match fs::read_to_string(&path) {
            Ok(token) => Ok(Some(token)),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e).with_context(|| format!("failed to read `{}`", path.display())),
        }
    }
}
