//! The application that is watched: a pod of two containers, each of which counts for itself and is asked by `kubectl
//! attach`. Never what is seen of it.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{ChildStdin, ChildStdout, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use super::images::TARGET;
use super::kubectl::{Kubectl, until};
use crate::process::Ended;

pub const NAMESPACE: &str = "shop";
pub const POD: &str = "orders";
pub const CONTAINERS: [&str; 2] = ["server", "worker"];
/// From being asked for to running.
const START: Duration = Duration::from_secs(60);

/// One container of it.
pub struct Target {
    pub container: &'static str,
    /// As the engine knows it, and as the host knows its only process.
    pub id: String,
    pub pid: u32,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    _attached: Ended,
}

/// Makes the pod, and attaches to its containers.
pub fn start(kubectl: &Kubectl, logs: &Path) -> Result<Vec<Target>> {
    let container = |name: &str| json!({ "name": name, "image": TARGET, "imagePullPolicy": "Never", "args": ["--workers", "2", "tasks"], "stdin": true });
    let namespace = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": NAMESPACE } });
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": POD, "namespace": NAMESPACE },
        "spec": { "containers": CONTAINERS.map(container), "automountServiceAccountToken": false },
    });
    kubectl.apply(&namespace.to_string())?;
    // The account of a new namespace's pods takes a moment to be made.
    until("target pod", START, || kubectl.apply(&pod.to_string()))?;
    CONTAINERS.into_iter().map(|name| Target::attach(kubectl, name, logs)).collect()
}

/// How often its containers were started again, and whether they run.
pub fn restarts(kubectl: &Kubectl) -> Result<u64> {
    let pod = kubectl.get(&["pod", "--namespace", NAMESPACE, POD])?;
    let statuses = pod["status"]["containerStatuses"].as_array().context("the target pod has no containers")?;
    if !statuses.iter().all(|status| status["state"]["running"].is_object()) {
        bail!("a container of the target does not run: {}", pod["status"]);
    }
    Ok(statuses.iter().filter_map(|status| status["restartCount"].as_u64()).sum())
}

impl Target {
    fn attach(kubectl: &Kubectl, container: &'static str, logs: &Path) -> Result<Target> {
        let id = until("target that runs", START, || {
            let pod = kubectl.get(&["pod", "--namespace", NAMESPACE, POD])?;
            let statuses = pod["status"]["containerStatuses"].as_array().context("it has no containers yet")?;
            let status =
                statuses.iter().find(|status| status["name"] == container).context("it has not that container")?;
            if !status["state"]["running"].is_object() {
                bail!("its container is {}", status["state"]);
            }
            let id = status["containerID"].as_str().and_then(|id| id.strip_prefix("containerd://"));
            Ok(id.context("its container has no id")?.to_owned())
        })?;
        let pids = processes(&id)?;
        let [pid] = pids[..] else {
            bail!("the container {container} of the target has processes {pids:?}, and not one")
        };
        let mut attach =
            kubectl.command(&["attach", "--namespace", NAMESPACE, POD, "--container", container, "--stdin"]);
        let log = logs.join(format!("attach-{container}.log"));
        let pipes = attach.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(File::create(&log)?);
        let mut child = pipes.spawn().context("failed to run kubectl")?;
        let input = child.stdin.take().context("no input")?;
        let output = BufReader::new(child.stdout.take().context("no output")?);
        Ok(Target { container, id, pid, input, output, _attached: Ended(child) })
    }

    /// Has it do something, and returns its truth.
    pub fn ask(&mut self, command: &str) -> Result<Value> {
        let name = self.container;
        writeln!(self.input, "{command}").with_context(|| format!("failed to ask the target's {name}"))?;
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        let answer: Value = serde_json::from_str(&line).with_context(|| {
            format!("the target's {} has answered `{command}` with `{}`", self.container, line.trim())
        })?;
        match answer["error"].as_str() {
            Some(error) => bail!("the target's {} has failed to `{command}`: {error}", self.container),
            None => Ok(answer),
        }
    }

    /// Tasks that it has spawned since it began, by its own count, all of which have ended.
    pub fn spawned(&mut self) -> Result<u64> {
        let truth = self.ask("truth")?;
        truth["tasks"]["spawned"].as_u64().with_context(|| format!("the target does not count: {truth}"))
    }
}

/// Processes of a container, by its id in their cgroups.
pub fn processes(container: &str) -> Result<Vec<u32>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let pid: Option<u32> = entry.file_name().to_str().and_then(|name| name.parse().ok());
        let cgroups = fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
        found.extend(pid.filter(|_| cgroups.contains(container)));
    }
    Ok(found)
}
