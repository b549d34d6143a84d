//! What a node and its control plane are made of: one table of programs with their arguments, started in this order. Each
//! has a log of its own. Who ends them is `room`.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, bail};
use serde_json::json;

use super::keys::{Keys, NODE_NAME};
use super::room::{CGROUP, NODE};
use super::source::Programs;

/// The image that holds a pod's namespaces.
pub const PAUSE: &str = "localhost/pause:latest";
/// In the node's own /run: names of sockets are short.
const SOCKET: &str = "/run/containerd.sock";
const ETCD: &str = "http://127.0.0.1:2379";
const PEERS: &str = "http://127.0.0.1:2380";
/// Pods' addresses.
const PODS: &str = "10.77.0.0/24";
const SERVICES: &str = "10.96.0.0/16";

/// A program that runs until the end.
struct Component {
    name: &'static str,
    arguments: fn(&Node<'_>) -> Vec<String>,
}

const COMPONENTS: [Component; 7] = [
    Component { name: "etcd", arguments: etcd },
    Component { name: "containerd", arguments: containerd },
    Component { name: "kube-apiserver", arguments: api_server },
    Component { name: "kube-controller-manager", arguments: controller_manager },
    Component { name: "kube-scheduler", arguments: scheduler },
    Component { name: "kubelet", arguments: kubelet },
    Component { name: "prometheus", arguments: prometheus },
];

/// The places of one run.
pub struct Node<'a> {
    pub programs: &'a Programs,
    pub keys: &'a Keys,
    /// What is gone after the run.
    pub folder: &'a Path,
    /// What stays.
    pub logs: &'a Path,
}

impl Node<'_> {
    /// Starts all.
    pub fn start(&self) -> Result<Components> {
        self.configure()?;
        let mut running = Vec::new();
        for component in &COMPONENTS {
            let log = self.logs.join(format!("{}.log", component.name));
            let output = File::create(&log).with_context(|| format!("failed to write `{}`", log.display()))?;
            let built = self.programs.built(component.name);
            let mut command = Command::new(if built.exists() { built } else { PathBuf::from(component.name) });
            command.args((component.arguments)(self)).env("PATH", self.programs.path()).stdin(Stdio::null());
            command.stdout(output.try_clone()?).stderr(output).current_dir(self.folder);
            let child = command.spawn().with_context(|| format!("failed to start {}", component.name))?;
            running.push((component.name, child, log));
        }
        Ok(Components(running))
    }

    /// Where containerd listens.
    pub fn socket(&self) -> &'static str {
        SOCKET
    }

    /// The targets of Prometheus, a file that it reads again when it changes.
    pub fn targets(&self) -> PathBuf {
        self.folder.join("targets.json")
    }

    fn at(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    fn key(&self, name: &str) -> String {
        self.keys.path(name).display().to_string()
    }

    fn configure(&self) -> Result<()> {
        let networks = self.folder.join("networks");
        fs::create_dir_all(&networks)?;
        let addresses = json!({ "type": "host-local", "subnet": PODS, "routes": [{ "dst": "0.0.0.0/0" }] });
        let bridge =
            json!({ "type": "bridge", "bridge": "pods", "isGateway": true, "ipMasq": false, "ipam": addresses });
        let network = json!({ "cniVersion": "0.4.0", "name": "pods", "plugins": [bridge] });
        fs::write(networks.join("pods.conflist"), network.to_string())?;
        fs::write(self.at("resolv.conf"), "")?;
        fs::write(self.at("kubelet.json"), self.of_kubelet().to_string())?;
        fs::write(self.at("containerd.toml"), self.of_containerd())?;
        fs::write(self.targets(), "[]")?;
        // Labels of the page are the targets', not the agent's own: as the shipped PodMonitor has it.
        let scrape = json!({
            "job_name": "profiler", "honor_labels": true, "file_sd_configs": [{ "files": [self.targets()] }],
        });
        let intervals = json!({ "scrape_interval": "1s", "scrape_timeout": "1s" });
        let configuration = json!({ "global": intervals, "scrape_configs": [scrape] });
        Ok(fs::write(self.at("prometheus.json"), configuration.to_string())?)
    }

    fn of_kubelet(&self) -> serde_json::Value {
        json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
            "authentication": {
                "anonymous": { "enabled": false }, "webhook": { "enabled": true },
                "x509": { "clientCAFile": self.key("ca.crt") },
            },
            "authorization": { "mode": "Webhook" },
            "address": NODE, "healthzPort": 0,
            "cgroupDriver": "cgroupfs", "cgroupRoot": CGROUP, "kubeletCgroups": "",
            "failSwapOn": false, "makeIPTablesUtilChains": false, "oomScoreAdj": 0,
            "evictionHard": { "memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%" },
            "imageGCHighThresholdPercent": 100,
            "resolvConf": self.at("resolv.conf"), "volumePluginDir": self.at("volume-plugins"),
        })
    }

    fn of_containerd(&self) -> String {
        format!(
            r#"version = 2
root = "{root}"
state = "/run/containerd"
[grpc]
  address = "{SOCKET}"
[plugins."io.containerd.internal.v1.opt"]
  path = "{opt}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE}"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{plugins}"
    conf_dir = "{networks}"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
"#,
            root = self.at("containerd"),
            opt = self.at("opt"),
            plugins = self.programs.plugins().display(),
            networks = self.at("networks"),
        )
    }
}

/// Those that run.
pub struct Components(Vec<(&'static str, Child, PathBuf)>);

impl Components {
    /// Fails where one has ended, with where its log is.
    pub fn all_run(&mut self) -> Result<()> {
        for (name, child, log) in &mut self.0 {
            if let Some(status) = child.try_wait()? {
                bail!("{name} has ended, {status}: see `{}`", log.display());
            }
        }
        Ok(())
    }
}

fn etcd(node: &Node<'_>) -> Vec<String> {
    vec![
        format!("--data-dir={}", node.at("etcd")),
        format!("--listen-client-urls={ETCD}"),
        format!("--advertise-client-urls={ETCD}"),
        format!("--listen-peer-urls={PEERS}"),
        format!("--initial-advertise-peer-urls={PEERS}"),
        format!("--initial-cluster=default={PEERS}"),
        // What it holds is gone with the run.
        "--unsafe-no-fsync".to_owned(),
    ]
}

fn containerd(node: &Node<'_>) -> Vec<String> {
    vec!["--config".to_owned(), node.at("containerd.toml")]
}

fn api_server(node: &Node<'_>) -> Vec<String> {
    vec![
        format!("--etcd-servers={ETCD}"),
        // Where pods know it: so nothing needs to be translated.
        "--secure-port=443".to_owned(),
        format!("--advertise-address={NODE}"),
        format!("--tls-cert-file={}", node.key("server.crt")),
        format!("--tls-private-key-file={}", node.key("server.key")),
        format!("--client-ca-file={}", node.key("ca.crt")),
        format!("--kubelet-client-certificate={}", node.key("client.crt")),
        format!("--kubelet-client-key={}", node.key("client.key")),
        "--kubelet-preferred-address-types=InternalIP".to_owned(),
        format!("--token-auth-file={}", node.key("tokens")),
        "--authorization-mode=Node,RBAC".to_owned(),
        "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
        format!("--service-account-signing-key-file={}", node.key("accounts.key")),
        format!("--service-account-key-file={}", node.key("accounts.key")),
        format!("--service-cluster-ip-range={SERVICES}"),
        "--allow-privileged=true".to_owned(),
        format!("--cert-dir={}", node.at("api-server")),
    ]
}

fn controller_manager(node: &Node<'_>) -> Vec<String> {
    vec![
        format!("--kubeconfig={}", node.keys.of("kube-controller-manager").display()),
        "--use-service-account-credentials=true".to_owned(),
        format!("--service-account-private-key-file={}", node.key("accounts.key")),
        format!("--root-ca-file={}", node.key("ca.crt")),
        "--leader-elect=false".to_owned(),
        "--bind-address=127.0.0.1".to_owned(),
        "--port=0".to_owned(),
        format!("--cert-dir={}", node.at("controller-manager")),
    ]
}

fn scheduler(node: &Node<'_>) -> Vec<String> {
    vec![
        format!("--kubeconfig={}", node.keys.of("kube-scheduler").display()),
        "--leader-elect=false".to_owned(),
        "--bind-address=127.0.0.1".to_owned(),
        "--port=0".to_owned(),
        format!("--cert-dir={}", node.at("scheduler")),
    ]
}

fn kubelet(node: &Node<'_>) -> Vec<String> {
    vec![
        format!("--kubeconfig={}", node.keys.of("kubelet").display()),
        format!("--config={}", node.at("kubelet.json")),
        format!("--root-dir={}", node.at("kubelet")),
        format!("--cert-dir={}", node.at("kubelet-keys")),
        format!("--hostname-override={NODE_NAME}"),
        format!("--node-ip={NODE}"),
        "--container-runtime=remote".to_owned(),
        format!("--container-runtime-endpoint=unix://{SOCKET}"),
        format!("--pod-infra-container-image={PAUSE}"),
        "--runtime-cgroups=/".to_owned(),
    ]
}

fn prometheus(node: &Node<'_>) -> Vec<String> {
    vec![
        format!("--config.file={}", node.at("prometheus.json")),
        format!("--storage.tsdb.path={}", node.at("prometheus")),
        "--web.listen-address=127.0.0.1:9090".to_owned(),
    ]
}
