//! The manifests without a cluster, and the units: against the schemas of Kubernetes, and against what the program and the documents say.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use serde_json::Value;
use tests::manifest::{Manifests, documents, strings};
use tests::nobody::LEAST;
use tests::place;
use tests::scratch::{Folder, Scratch};

/// All that is shipped: folder and components.
const SHIPPED: &[(&str, &[&str])] = &[
    ("base", &[]),
    ("base", &["accept-queues"]),
    ("base", &["pod-monitor"]),
    ("overlays/privileged", &[]),
    ("overlays/privileged", &["pod-metadata", "pod-monitor"]),
    ("overlays/pod-metadata", &[]),
    ("overlays/pod-metadata", &["accept-queues", "pod-monitor"]),
];
/// The oldest version of Kubernetes that is looked at, and the newest that the schemas know.
const VERSIONS: std::ops::RangeInclusive<u32> = 25..=37;
/// What the schemas of Kubernetes itself do not have.
const FOREIGN: &[&str] = &["PodMonitor"];

fn shipped() -> impl Iterator<Item = (String, Manifests)> {
    SHIPPED
        .iter()
        .map(|(folder, components)| (format!("{folder} with {components:?}"), Manifests::render(folder, components)))
}

fn own(manifests: &Manifests) -> Manifests {
    let known = |object: &&Value| !FOREIGN.iter().any(|kind| object["kind"] == *kind);
    Manifests(manifests.0.iter().filter(known).cloned().collect())
}

/// Check that no field is unknown, of a wrong type or missing, in any version.
#[test]
fn schemas_hold() {
    let file = Scratch::new("manifests.yaml");
    let text: String = shipped().map(|(_, manifests)| own(&manifests).text()).collect();
    fs::write(&file.0, text).expect("a file of our own");
    for minor in VERSIONS {
        let mut command = Command::new(place::schemas());
        command.args(["--strict", "--no-warn", "--quiet", "--kubernetes-version", &format!("1.{minor}")]).arg(&file.0);
        let output = command.output().expect("it can be run");
        let said = [output.stdout, output.stderr].concat();
        assert!(output.status.success(), "Kubernetes 1.{minor}: {}", String::from_utf8_lossy(&said));
    }
}

/// Check that the schemas would find a wrong field, so that the test above says something.
#[test]
fn schemas_find_what_is_wrong() {
    let mut manifests = own(&Manifests::render("base", &[]));
    let set = manifests.0.iter_mut().find(|object| object["kind"] == "DaemonSet").expect("a DaemonSet");
    set["spec"]["template"]["spec"]["hostPid"] = true.into();
    let file = Scratch::new("wrong.yaml");
    fs::write(&file.0, manifests.text()).expect("a file of our own");
    let status = Command::new(place::schemas()).args(["--strict", "--quiet"]).arg(&file.0).status();
    assert!(!status.expect("it can be run").success());
}

/// Check what schemas do not know: labels, volumes, ports and names that must agree.
#[test]
fn names_agree() {
    for (name, manifests) in shipped() {
        let set = manifests.one("DaemonSet");
        let labels = &set["spec"]["template"]["metadata"]["labels"];
        let selected = |selector: &Value| {
            let selector = selector["matchLabels"].as_object().expect("labels");
            !selector.is_empty() && selector.iter().all(|(key, value)| labels[key] == *value)
        };
        assert!(selected(&set["spec"]["selector"]), "{name}: the set selects its pods");
        for object in manifests.of("NetworkPolicy") {
            assert!(selected(&object["spec"]["podSelector"]), "{name}: the policy selects them");
            assert_eq!(object["spec"]["ingress"][0]["ports"][0]["port"], "metrics", "{name}");
        }
        for object in manifests.of("PodMonitor") {
            assert!(selected(&object["spec"]["selector"]), "{name}: the monitor selects them");
            assert_eq!(object["spec"]["podMetricsEndpoints"][0]["port"], "metrics", "{name}");
        }
        let (pod, container) = (manifests.pod(), manifests.container());
        let named = |list: &Value| -> BTreeSet<String> {
            list.as_array().into_iter().flatten().filter_map(|one| Some(one["name"].as_str()?.to_owned())).collect()
        };
        assert_eq!(named(&pod["volumes"]), named(&container["volumeMounts"]), "{name}: volumes are mounted");
        for mount in container["volumeMounts"].as_array().expect("mounts") {
            assert_eq!(mount["readOnly"], true, "{name}: nothing is written: {mount}");
        }
        let map = pod["volumes"].as_array().expect("volumes").iter().find_map(|v| v["configMap"]["name"].as_str());
        assert_eq!(map, manifests.one("ConfigMap")["metadata"]["name"].as_str(), "{name}");
        assert_eq!(pod["serviceAccountName"], manifests.one("ServiceAccount")["metadata"]["name"], "{name}");
        let port = container["ports"][0]["containerPort"].as_u64().expect("a port");
        let listen = manifests.arguments().iter().find_map(|a| a.rsplit_once(':')?.1.parse::<u64>().ok());
        assert_eq!(listen, Some(port), "{name}: it listens where it is scraped");
        for (probe, path) in [("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")] {
            let get = &container[probe]["httpGet"];
            assert_eq!((get["path"].as_str(), get["port"].as_str()), (Some(path), Some("metrics")), "{name}: {probe}");
        }
    }
}

/// Check that the agent may do what the documents say, and no more.
#[test]
fn privileges_are_the_least() {
    for (name, manifests) in shipped() {
        let (pod, security) = (manifests.pod(), &manifests.container()["securityContext"]);
        assert_eq!(pod["hostPID"], true, "{name}: the kernel reports the host's ids");
        for absent in ["hostNetwork", "hostIPC"] {
            assert!(pod[absent].is_null(), "{name}: {absent}");
        }
        assert_eq!(security["readOnlyRootFilesystem"], true, "{name}");
        let enforced = &manifests.one("Namespace")["metadata"]["labels"]["pod-security.kubernetes.io/enforce"];
        assert_eq!(enforced, "privileged", "{name}: other levels refuse the host's PID namespace");
        if name.contains("privileged") {
            assert_eq!(security["privileged"], true);
            continue;
        }
        assert_eq!((&security["privileged"], &security["allowPrivilegeEscalation"]), (&false.into(), &false.into()));
        assert_eq!(security["runAsUser"], 0, "{name}: added capabilities are not ambient");
        assert_eq!(security["seccompProfile"]["type"], "RuntimeDefault", "{name}");
        assert_eq!(strings(&security["capabilities"]["drop"]), ["ALL"], "{name}");
        let mut least: BTreeSet<String> = LEAST.iter_names().map(|(name, _)| name.to_owned()).collect();
        if name.contains("accept-queues") {
            least.insert("SYS_ADMIN".to_owned());
        }
        let added: BTreeSet<String> = strings(&security["capabilities"]["add"]).into_iter().collect();
        assert_eq!(added, least, "{name}");
    }
}

/// Check that the API server tells the agent of pods and of nothing else, and only where it was asked to.
#[test]
fn the_token_lists_pods_only() {
    for (name, manifests) in shipped() {
        let asks = name.contains("pod-metadata");
        assert_eq!(manifests.pod()["automountServiceAccountToken"], asks, "{name}");
        assert_eq!(manifests.one("ServiceAccount")["automountServiceAccountToken"], false, "{name}");
        for kind in ["Role", "RoleBinding", "Secret"] {
            assert_eq!(manifests.of(kind).count(), 0, "{name}: {kind}");
        }
        for kind in ["ClusterRole", "ClusterRoleBinding"] {
            assert_eq!(manifests.of(kind).count(), usize::from(asks), "{name}: {kind}");
        }
        assert_eq!(manifests.arguments().contains(&"--kubernetes".to_owned()), asks, "{name}");
        if !asks {
            continue;
        }
        let node = &manifests.container()["env"];
        assert_eq!(node[0]["name"], "NODE_NAME", "{name}");
        assert_eq!(node[0]["valueFrom"]["fieldRef"]["fieldPath"], "spec.nodeName", "{name}");
        let rules = manifests.one("ClusterRole")["rules"].as_array().expect("rules").clone();
        assert_eq!(rules.len(), 1, "{name}");
        assert_eq!(strings(&rules[0]["apiGroups"]), [""], "{name}");
        assert_eq!(strings(&rules[0]["resources"]), ["pods"], "{name}: never nodes/proxy, never secrets");
        assert_eq!(strings(&rules[0]["verbs"]), ["list", "watch"], "{name}");
        let (binding, account) = (manifests.one("ClusterRoleBinding"), manifests.one("ServiceAccount"));
        assert_eq!(binding["roleRef"]["name"], manifests.one("ClusterRole")["metadata"]["name"], "{name}");
        assert_eq!(binding["subjects"].as_array().map(Vec::len), Some(1), "{name}");
        for key in ["name", "namespace"] {
            assert_eq!(binding["subjects"][0][key], account["metadata"][key], "{name}");
        }
    }
}

/// Check that the rollout reaches every node, a few at a time.
#[test]
fn every_node_has_one() {
    let manifests = Manifests::render("base", &[]);
    let tolerations = manifests.pod()["tolerations"].as_array().expect("tolerations").clone();
    assert_eq!(tolerations, [serde_json::json!({ "operator": "Exists" })], "all taints");
    let strategy = &manifests.one("DaemonSet")["spec"]["updateStrategy"];
    assert_eq!(
        (&strategy["type"], &strategy["rollingUpdate"]["maxUnavailable"]),
        (&"RollingUpdate".into(), &"10%".into())
    );
    let resources = &manifests.container()["resources"];
    assert!(resources["limits"]["memory"].is_string() && resources["requests"]["cpu"].is_string());
    assert!(resources["limits"]["cpu"].is_null(), "a limit would hold it while it has probes in others");
}

/// Check that what is tested is what kubectl makes of it, where there is one that knows components.
#[test]
fn rendered_as_kubectl_does() {
    let works =
        Command::new("kubectl").args(["kustomize", "--help"]).output().is_ok_and(|output| output.status.success());
    if !works {
        println!("no kubectl with kustomize here: compared with nothing");
        return;
    }
    for folder in ["base", "overlays/privileged", "overlays/pod-metadata"] {
        let path = place::root().join("deploy/kubernetes").join(folder);
        let output = Command::new("kubectl").arg("kustomize").arg(path).output().expect("it can be run");
        assert!(output.status.success(), "{folder}: {}", String::from_utf8_lossy(&output.stderr));
        let theirs = String::from_utf8(output.stdout).expect("text");
        let mut theirs: Vec<Value> = serde_saphyr::from_multiple(&theirs).expect("YAML");
        let mut ours = Manifests::render(folder, &[]).0;
        let key = |object: &Value| format!("{} {}", object["kind"], object["metadata"]["name"]);
        theirs.sort_by_key(key);
        ours.sort_by_key(key);
        assert_eq!(ours, theirs, "{folder}");
    }
}

/// Check that systemd understands the units, and how far they are shut in: 2.6 of 10, as it counts.
#[test]
fn units_are_hardened() {
    for unit in ["profiler-agent.service", "profiler@.service"] {
        let path = place::root().join("deploy/systemd").join(unit);
        let text = fs::read_to_string(&path).expect("a unit");
        let folder = Folder::new("unit");
        // The program need not be installed here, nor the unit that is watched.
        let there = text.replace("/usr/bin/profiler ", "/bin/true ").replace("/usr/local/bin/profiler ", "/bin/true ");
        let file = folder.write(unit, &there);
        let run = |arguments: &[&str]| {
            let output = Command::new("systemd-analyze").args(arguments).arg(&file).output();
            output.unwrap_or_else(|e| panic!("failed to run systemd-analyze: {e}; `cargo xtask setup` installs it"))
        };
        let verified = (!unit.contains('@')).then(|| run(&["verify"]));
        let security = run(&["security", "--offline=true", "--threshold=30"]);
        for output in verified.iter().chain([&security]) {
            let said = [output.stdout.as_slice(), &output.stderr].concat();
            assert!(output.status.success(), "{unit}: {}", String::from_utf8_lossy(&said));
        }
        if let Some(verified) = verified {
            // It reads the units of the host as well, and says what it thinks of them.
            let said = String::from_utf8_lossy(&verified.stderr);
            let own: Vec<&str> = said.lines().filter(|line| line.contains(unit)).collect();
            assert!(own.is_empty(), "{unit}: {own:?}");
        }
    }
}

/// Check that every alert leads to a section of the runbook, and that every section has its alert.
#[test]
fn alerts_have_a_runbook() {
    let rules = documents(&place::root().join("deploy/prometheus/rules.yml")).remove(0);
    let groups = rules["groups"].as_array().expect("groups").iter();
    let rules = groups.flat_map(|group| group["rules"].as_array().into_iter().flatten());
    let alerts: BTreeSet<(String, String)> = rules
        .filter_map(|rule| {
            Some((rule["alert"].as_str()?, rule["annotations"]["runbook_url"].as_str().unwrap_or_default()))
        })
        .map(|(alert, url)| (alert.to_owned(), url.to_owned()))
        .collect();
    let text = fs::read_to_string(place::root().join("docs/runbook.md")).expect("the runbook");
    let sections = text.lines().filter_map(|line| line.strip_prefix("## "));
    let sections: BTreeSet<(String, String)> =
        sections.map(|name| (name.to_owned(), format!("docs/runbook.md#{}", name.to_lowercase()))).collect();
    assert_eq!(alerts, sections);
}
