//! Names of pods: learned from a Kubernetes API, waited for where rules need them, and kept when it is gone.

use std::fs;
use std::io;
use std::path::PathBuf;

use tests::bpf::BpfObjects;
use tests::cgroup::Cgroup;
use tests::fixture::Fixture;
use tests::kubernetes::{Kubernetes, Mood};
use tests::node::{Node, compare, settle};
use tests::place;
use tests::profiler::{Profiler, run_to_end};
use tests::status::number;
use tests::table::Table;
use tests::wait;

/// A pod on this host: its cgroup, with that of its one container.
struct Pod {
    uid: String,
    id: String,
    cgroup: PathBuf,
}

impl Pod {
    fn make(within: &Cgroup, n: u32) -> io::Result<Pod> {
        let (uid, id) = (format!("{n:08x}-1f2c-11e9-b015-1ebee232acfa"), format!("{n:064x}"));
        let cgroup = within.path().join(format!("pod{uid}"));
        fs::create_dir(&cgroup)?;
        fs::create_dir(cgroup.join(&id))?;
        Ok(Pod { uid, id, cgroup })
    }

    fn take(&self, fixture: &Fixture) {
        let procs = self.cgroup.join(&self.id).join("cgroup.procs");
        fs::write(procs, fixture.pid().to_string()).expect("a process of our own");
    }

    fn remove(self) {
        for cgroup in [self.cgroup.join(&self.id), self.cgroup] {
            wait::until_true("an empty cgroup", || fs::remove_dir(&cgroup).is_ok());
        }
    }
}

/// The names that the series of a pod have, and how many of these tasks were spawned under them.
fn spawned(agent: &Profiler, pod: &str, tasks: &[String]) -> (Vec<String>, u64) {
    let labels = [("pod", pod), ("process", "web")];
    let page = agent.page();
    let names = page.series("profiler_target_up", &labels);
    let names = names.map(|one| ["namespace", "pod", "container"].map(|name| one.labels[name].as_str()).join("/"));
    let spawned = page.series("profiler_tasks_spawned_total", &labels);
    let spawned = spawned.filter(|one| tasks.contains(&one.labels["task"])).map(|one| one.value);
    (names.collect(), spawned.sum::<f64>() as u64)
}

fn kubernetes(agent: &Profiler) -> serde_json::Value {
    agent.status().0["discovery"]["kubernetes"].clone()
}

/// Check that rules by namespace and label decide, that who has no names yet waits for them, that series have the names once they
/// are known, that a label which changes decides again, and that an API which is gone changes nothing but what is new.
#[test]
fn names_of_pods() {
    place::require_root();
    let Some(cgroup) = Cgroup::where_permitted(100) else { return };
    let before = BpfObjects::all();
    let pods: Vec<Pod> = (1..=4).map(|n| Pod::make(&cgroup, n).expect("a cgroup of our own")).collect();
    let server = Kubernetes::start();
    let node = Node::new("pods");
    let folder = node.path("*").display().to_string();
    node.write(&format!(
        "[[rules]]\naction = \"include\"\nexecutable = \"{folder}\"\nnamespace = \"shop\"\nlabels = {{ app = \"web*\" }}\n"
    ));
    fs::write(node.path("kubeconfig"), server.kubeconfig()).expect("a file of our own");
    let mut table = Table::new("names of pods");
    let start = |pod: &Pod| {
        let fixture = node.start("web");
        pod.take(&fixture);
        fixture
    };

    // The first has all its names, the second the wrong label, and of the third nothing is known.
    server.put("web-1", &pods[0].uid, "web", Some(("main", &pods[0].id)));
    server.put("db-1", &pods[1].uid, "db", Some(("main", &pods[1].id)));
    let (mut first, second, mut third) = (start(&pods[0]), start(&pods[1]), start(&pods[2]));
    let kubeconfig = node.path("kubeconfig").display().to_string();
    let flags = ["--kubernetes", "--kubernetes.node-name", "node-1", "--kubernetes.kubeconfig", &kubeconfig];
    let mut agent = node.agent(&flags).serving();
    settle(&agent, &mut table, "who has the names", &[&first]);
    compare(&agent, &mut table, "who has the names", &mut first);
    let tasks = agent.status().target(first.pid()).names();
    let told = || spawned(&agent, "web-1", &tasks);
    let right = |name: &str, n: u64| (vec![format!("shop/{name}/main")], n);
    let n = number(&first.ask("truth")["tasks"]["spawned"]);
    table.equal("its series", format!("{:?}", right("web-1", n)), format!("{:?}", told()));
    table.equal("undecided", 1, number(&kubernetes(&agent)["undecided"]));

    // The pod's names come first, the container's later: it is watched at once, and exported when it has them all.
    server.put("web-2", &pods[2].uid, "web-late", None);
    settle(&agent, &mut table, "whose names came late", &[&first, &third]);
    compare(&agent, &mut table, "whose names came late", &mut third);
    server.put("web-2", &pods[2].uid, "web-late", Some(("main", &pods[2].id)));
    let n = number(&third.ask("truth")["tasks"]["spawned"]);
    let seen = wait::until_or_last(|| spawned(&agent, "web-2", &tasks), |seen| *seen == right("web-2", n));
    table.equal("its series", format!("{:?}", right("web-2", n)), format!("{seen:?}"));
    table.equal("undecided", 0, number(&kubernetes(&agent)["undecided"]));

    // A label decides again, in both directions.
    server.put("web-1", &pods[0].uid, "db", Some(("main", &pods[0].id)));
    settle(&agent, &mut table, "whose label has changed", &[&third]);
    server.put("db-1", &pods[1].uid, "web", Some(("main", &pods[1].id)));
    settle(&agent, &mut table, "another's, too", &[&second, &third]);

    // Forbidden is said with what to do.
    server.is(Mood::Forbids);
    let why = || kubernetes(&agent)["why"].as_str().unwrap_or_default().to_owned();
    wait::until_true("a refusal", || why().contains("verbs: [list, watch]"));
    let said = agent.program().error_line(|line| line.contains("forbidden")).unwrap_or_default();
    table.holds("it says", "what to do", &said, said.contains("ClusterRole"));

    // Without the API all goes on; a process of a pod that it never told of is not wanted, after a while.
    server.is(Mood::Down);
    let up = || (agent.page().value("profiler_kubernetes_up", &[]), kubernetes(&agent)["why"].is_string());
    let seen = wait::until_or_last(up, |seen| *seen == (0.0, true));
    table.equal("up, and why not", format!("{:?}", (0.0, true)), format!("{seen:?}"));
    compare(&agent, &mut table, "without the API", &mut third);
    let fourth = start(&pods[3]);
    let unnamed = || number(&kubernetes(&agent)["decided_without_names"]);
    wait::until_true("a process that was decided on without its names", || unnamed() == 1);
    settle(&agent, &mut table, "a pod that nobody told of", &[&second, &third]);

    server.is(Mood::Up);
    server.put("web-3", &pods[3].uid, "web", Some(("main", &pods[3].id)));
    wait::until_true("an API that is asked again", || kubernetes(&agent)["up"] == true);
    settle(&agent, &mut table, "told of at last", &[&second, &third, &fourth]);
    let secret = |line: &String| line.contains("secret");
    table.equal("the token in the log", false, agent.program().errors().iter().any(secret));
    let asked = server.asked();
    let is_ours = |line: &&String| line.starts_with("GET /api/v1/pods?") && line.contains("spec.nodeName%3Dnode-1");
    table.equal("asked for this node's pods only", asked.len(), asked.iter().filter(is_ours).count());
    agent.stop();
    let left = wait::until_or_last(|| BpfObjects::left_over_since(&before), BpfObjects::is_empty);
    table.holds("BPF objects left", "none", format!("{left:?}"), left.is_empty());
    for fixture in [first, second, third, fourth] {
        fixture.quit();
    }
    pods.into_iter().for_each(Pod::remove);
    table.finish();
}

/// Check that what cannot work is refused in one line, before anything is attached.
#[test]
fn bad_flags() {
    place::require_root();
    let node = Node::new("pods-bad");
    let mut table = Table::new("names of pods that cannot be asked for");
    let missing = node.path("missing").display().to_string();
    node.write("[[rules]]\naction = \"include\"\npod = \"web-*\"\n");
    let config = node.config();
    for (flags, reason) in [
        (&["--kubernetes"][..], "NODE_NAME"),
        (&["--kubernetes", "--kubernetes.node-name", "a,b"], "is no name of a node"),
        (&["--kubernetes", "--kubernetes.node-name", "a"], "--kubernetes.kubeconfig"),
        (&["--kubernetes", "--kubernetes.node-name", "a", "--kubernetes.kubeconfig", &missing], "missing"),
        (&["--kubernetes.node-name", "a"], "--kubernetes"),
        (&["--config.file", &config], "line 1: `pod` is known to the Kubernetes API only"),
    ] {
        let ended = run_to_end(&[&["agent"], flags].concat());
        let said = ended.stderr.join(" ");
        let right = ended.code().is_some_and(|code| code != 0) && said.contains(reason) && !said.contains("serving");
        table.holds(format!("{flags:?}"), reason, &said, right);
    }
    table.finish();
}
