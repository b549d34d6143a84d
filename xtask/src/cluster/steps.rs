//! The steps, each of which says in one line what was seen: from an empty cluster over the shipped manifests, of which each
//! is rolled out over the one before, to a node on which nothing is left.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use super::agent::Agent;
use super::code;
use super::components::Node;
use super::keys::NODE_NAME;
use super::kubectl::{Kubectl, until};
use super::target::{self, POD, Target};
use super::{images, prometheus, rights};
use crate::bpf::BpfObjects;
use crate::image;

/// From starting the programs to a node that takes pods.
const READY: Duration = Duration::from_secs(120);
/// From something that happens to its series.
const SEEN: Duration = Duration::from_secs(30);
const WATCHED: Duration = Duration::from_secs(60);
/// Longer than from one scrape to the next but one.
const SETTLED: Duration = Duration::from_secs(3);
/// Work as a server does it, of tasks that use a CPU for a while: what probing them costs is within the budget of the
/// manifests, and so they are counted in full.
const WORK: &str = "busy 50 2000";
const SMALL_WORK: &str = "busy 2 2000";
/// Between two commands while agents are exchanged.
const PACE: Duration = Duration::from_millis(200);
const SPAWNED: &str = "profiler_tasks_spawned_total";
const COMPLETED: &str = "profiler_tasks_completed_total";

/// Steps with the time that each was done at.
struct Report(Instant);

impl Report {
    fn seen(&self, what: &str) {
        println!("{:6.1} s  {what}", self.0.elapsed().as_secs_f64());
    }
}

/// What all steps need.
struct Stage<'a> {
    node: &'a Node<'a>,
    kubectl: Kubectl,
    report: Report,
    targets: Vec<Target>,
    /// What BPF objects there were before there was an agent.
    before: BpfObjects,
}

/// Goes through all of them.
pub fn all(node: &Node<'_>) -> Result<()> {
    let report = Report(Instant::now());
    let kubectl = Kubectl::new(node.programs.built("kubectl"), node.keys.of("admin"));
    let mut components = node.start()?;
    // Which one has ended will not come up by waiting.
    let version = until("node that is ready", READY, || match components.all_run() {
        Ok(()) => ready(&kubectl).map(Ok),
        Err(e) => Ok(Err(e)),
    })??;
    report.seen(&format!("a node of Kubernetes {version} is ready"));
    for archive in images::archives().into_iter().chain([image::path()]) {
        images::import(&archive, node.socket(), &node.programs.path())?;
    }
    let targets = target::start(&kubectl, node.logs)?;
    let pids: Vec<String> = targets.iter().map(|target| format!("{} as {}", target.container, target.pid)).collect();
    report.seen(&format!("the target {}/{POD} runs: {}", target::NAMESPACE, pids.join(", ")));
    let mut stage = Stage { node, kubectl, report, targets, before: BpfObjects::all() };

    let base = Agent::roll_out(&stage.kubectl, "base")?;
    ensure!(base.token()?.is_none(), "the base mounts a token");
    stage.report.seen(&format!("the base is rolled out: {} is ready, and no token is mounted", base.pod));
    stage.measured(&base, short_ids)?;
    let named = stage.rolled_over(&base, |kubectl| Agent::roll_out(kubectl, "overlays/pod-metadata"))?;
    stage.measured(&named, names)?;
    stage.rights(&named)?;
    let again = stage.rolled_over(&named, Agent::roll_out_again)?;
    stage.measured(&again, names)?;
    stage.gone(&again)?;
    components.all_run()
}

/// The version of the node, once it takes pods.
fn ready(kubectl: &Kubectl) -> Result<String> {
    let node = kubectl.get(&["node", NODE_NAME])?;
    let conditions = node["status"]["conditions"].as_array().context("it has no conditions yet")?;
    let ready = conditions.iter().find(|condition| condition["type"] == "Ready").context("it says nothing yet")?;
    ensure!(ready["status"] == "True", "it is not ready: {}", ready["message"]);
    Ok(node["status"]["nodeInfo"]["kubeletVersion"].as_str().context("it has no version")?.to_owned())
}

/// Labels of a target's series: namespace, pod, container. Without names the container is a short id.
fn short_ids(target: &Target) -> [String; 3] {
    [String::new(), String::new(), target.id.chars().take(12).collect()]
}

/// With names they are those of the API.
fn names(target: &Target) -> [String; 3] {
    [target::NAMESPACE, POD, target.container].map(str::to_owned)
}

impl Stage<'_> {
    /// What the agent's account may do, by the API server's word and by the token that is mounted.
    fn rights(&self, agent: &Agent) -> Result<()> {
        let told = rights::as_told(&self.kubectl)?;
        let token = agent.token()?.context("no token is mounted, which the overlay is for")?;
        let nobody = Kubectl::new(self.node.programs.built("kubectl"), self.node.keys.of_nobody());
        let tried = rights::as_tried(&nobody, &token)?;
        self.report.seen(&format!(
            "the agent may list and watch pods, and neither secrets nor nodes/proxy: {told} rights by the API server's word, \
             {tried} requests with the mounted token"
        ));
        Ok(())
    }

    /// Has the targets do something, and compares what Prometheus has of it with their own counts.
    fn measured(&mut self, agent: &Agent, labels: fn(&Target) -> [String; 3]) -> Result<()> {
        prometheus::scrape(&self.node.targets(), &agent.address)?;
        until("target that is watched", WATCHED, || self.watched(agent))?;
        let equal = self.equal(labels);
        // Whatever came of it: a difference is looked into there.
        let kept = self.keep_pages(agent);
        equal.and(kept)
    }

    fn equal(&mut self, labels: fn(&Target) -> [String; 3]) -> Result<()> {
        for n in 0..self.targets.len() {
            let labels = labels(&self.targets[n]);
            // What was done while it was attached to may be seen in part, and its series may wait for names.
            self.targets[n].ask(SMALL_WORK)?;
            let earlier = settled(&labels)?;
            let target = &mut self.targets[n];
            let before = target.spawned()?;
            for _ in 0..=n {
                target.ask(WORK)?;
            }
            let truth = target.spawned()? - before;
            let seen = until("count equal to the target's", SEEN, || {
                let seen = [total(SPAWNED, &labels)?, total(COMPLETED, &labels)?];
                let due = earlier.map(|count| count + truth);
                ensure!(seen == due, "spawned and ended are {due:?}, and seen are {seen:?}");
                Ok(seen[0] - earlier[0])
            })?;
            let [namespace, pod, container] = labels;
            self.report.seen(&format!(
                "namespace=\"{namespace}\" pod=\"{pod}\" container=\"{container}\": {seen} tasks in Prometheus, {truth} \
                 by the count of {} itself",
                self.targets[n].container
            ));
        }
        // Nothing of them is told by other names.
        let known: Vec<[String; 3]> = self.targets.iter().map(labels).collect();
        for series in
            prometheus::query(&format!("sum by (namespace, pod, container) ({SPAWNED}{{process=\"fixture\"}})"))?
        {
            let labels = ["namespace", "pod", "container"].map(|name| series.label(name).to_owned());
            ensure!(known.contains(&labels), "{SPAWNED} has the labels {labels:?}, which are no target's");
        }
        Ok(())
    }

    /// Keeps what the agent says at this moment beside the logs.
    fn keep_pages(&self, agent: &Agent) -> Result<()> {
        for (page, file) in [("metrics", "agent.metrics"), ("status", "agent.json")] {
            std::fs::write(self.node.logs.join(file), agent.page(&self.kubectl, page)?)?;
        }
        Ok(())
    }

    /// Whether all targets are on the agent's own page, with probes in their code.
    fn watched(&self, agent: &Agent) -> Result<()> {
        let status: Value = serde_json::from_str(&agent.page(&self.kubectl, "status")?)?;
        let watched = status["targets"].as_array().context("it says nothing of targets")?;
        for target in &self.targets {
            let is_it = |one: &&Value| one["pid"] == target.pid && one["running"] == true;
            ensure!(watched.iter().any(|one| is_it(&one)), "{} is not watched", target.container);
            ensure!(code::changed(target.pid)? > 0, "{} has no probe in its code", target.container);
        }
        Ok(())
    }

    /// Rolls out another agent over one while the targets work, and looks at what the old one leaves.
    fn rolled_over(&mut self, old: &Agent, next: fn(&Kubectl) -> Result<Agent>) -> Result<Agent> {
        let probes = BpfObjects::all().without(&self.before);
        ensure!(probes.probes() > 0, "the agent has no BPF objects");
        let done = AtomicBool::new(false);
        let (kubectl, targets) = (&self.kubectl, &mut self.targets);
        let (new, worked) = thread::scope(|scope| {
            let work = scope.spawn(|| work(targets, &done));
            let new = next(kubectl);
            done.store(true, Ordering::Relaxed);
            let worked = work.join().unwrap_or_else(|_| bail!("the targets' work has panicked"));
            anyhow::Ok((new?, worked?))
        })?;
        ensure!(new.pod != old.pod, "no pod was rolled out: it is still {}", old.pod);
        until("end of what the old agent had", SEEN, || {
            let left = probes.among(&BpfObjects::all());
            ensure!(left.probes() == 0, "{left} of the old agent are left");
            Ok(())
        })?;
        let restarts = target::restarts(&self.kubectl)?;
        ensure!(restarts == 0 && new.restarts == 0, "containers were started again");
        self.report.seen(&format!(
            "{} is rolled out over {}: of its {probes} none is left; meanwhile the target has done {worked} commands, none \
             failed",
            new.pod, old.pod
        ));
        Ok(new)
    }

    /// Deletes the DaemonSet, and looks at what is left.
    fn gone(&mut self, agent: &Agent) -> Result<()> {
        let probed = self.changed_code()?;
        agent.delete(&self.kubectl)?;
        until("end of what the agent had", SEEN, || {
            let left = BpfObjects::all().without(&self.before);
            ensure!(left.probes() == 0, "{left} are left");
            let changed = self.changed_code()?;
            ensure!(changed == 0, "{changed} bytes of the targets' code are not as they were");
            let alive = agent.pids.iter().filter(|pid| Path::new(&format!("/proc/{pid}")).exists()).count();
            ensure!(alive == 0, "{alive} processes of it live");
            Ok(())
        })?;
        for target in &mut self.targets {
            target.ask(WORK)?;
        }
        let restarts = target::restarts(&self.kubectl)?;
        ensure!(restarts == 0, "containers of the target were started again");
        self.report.seen(&format!(
            "the DaemonSet is deleted: no BPF object, no process and no probe is left, of {probed} in the targets' code; \
             the target works on, and was never started again"
        ));
        Ok(())
    }

    fn changed_code(&self) -> Result<usize> {
        self.targets.iter().map(|target| code::changed(target.pid)).sum()
    }
}

/// Has the targets work at a slow pace; how many commands they have done.
fn work(targets: &mut [Target], done: &AtomicBool) -> Result<u64> {
    let mut commands = 0;
    while !done.load(Ordering::Relaxed) {
        for target in &mut *targets {
            target.ask(SMALL_WORK)?;
            commands += 1;
        }
        thread::sleep(PACE);
    }
    Ok(commands)
}

/// What Prometheus has counted of a target that has done something, once that does not change any more.
fn settled(labels: &[String; 3]) -> Result<[u64; 2]> {
    let counts = || anyhow::Ok([total(SPAWNED, labels)?, total(COMPLETED, labels)?]);
    until("count that settles", SEEN, || {
        let last = counts()?;
        thread::sleep(SETTLED);
        let now = counts()?;
        ensure!(now == last && now[0] > 0, "it was {last:?} spawned and ended, and is {now:?}");
        Ok(now)
    })
}

/// The sum of a metric of these labels; what has no series yet has counted nothing.
fn total(metric: &str, [namespace, pod, container]: &[String; 3]) -> Result<u64> {
    let labels = format!("namespace=\"{namespace}\",pod=\"{pod}\",container=\"{container}\"");
    let series = prometheus::query(&format!("sum({metric}{{{labels}}})"))?;
    Ok(series.iter().map(|series| series.value as u64).sum())
}
