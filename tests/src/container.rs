//! Containers by runc, of the shipped manifest and of the shipped image. Dropped, they are gone.

use std::fs;
use std::fs::File;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::thread;

use rustix::thread::capabilities;
use serde_json::{Value, json};

use crate::http::{self, Response};
use crate::manifest::{Manifests, strings};
use crate::place;
use crate::program::Program;
use crate::scratch::Folder;
use crate::wait;

/// A folder for bundles and for runc's own state, of one test.
pub struct Engine {
    folder: Folder,
}

/// What a container is made of.
pub struct Bundle {
    id: String,
    folder: PathBuf,
    config: Value,
}

/// A container that runs.
pub struct Container {
    id: String,
    state: PathBuf,
}

impl Engine {
    /// An engine without containers.
    ///
    /// # Panics
    /// runc is not installed.
    pub fn new(name: &str) -> Engine {
        let folder = Folder::new(name);
        fs::create_dir(folder.path("state")).expect("a folder of our own");
        Engine { folder }
    }

    /// A folder of the test's own.
    pub fn folder(&self) -> &Path {
        &self.folder.0
    }

    /// An empty bundle, as runc makes it.
    ///
    /// # Panics
    /// runc refuses.
    pub fn bundle(&self, name: &str) -> Bundle {
        let folder = self.folder.path(name);
        fs::create_dir_all(folder.join("rootfs")).expect("a folder of our own");
        expect(Command::new("runc").args(["spec", "--bundle"]).arg(&folder));
        let config = fs::read_to_string(folder.join("config.json")).expect("runc has made it");
        let mut config: Value = serde_json::from_str(&config).expect("runc writes JSON");
        config["process"]["terminal"] = false.into();
        config["process"].as_object_mut().expect("a map").remove("rlimits");
        Bundle { id: format!("profiler-{name}-{}", std::process::id()), folder, config }
    }

    /// The container of the DaemonSet: the image's files, and all that the manifest says of it. What is not said by this form
    /// is the seccomp profile, which is the container engine's. `files` are those of its ConfigMap.
    ///
    /// # Panics
    /// The manifest asks for what is not known here, or what it mounts is not there.
    pub fn of_manifest(&self, name: &str, manifests: &Manifests, files: &Path) -> Bundle {
        let (pod, container) = (manifests.pod(), manifests.container());
        let security = &container["securityContext"];
        let mut bundle = self.bundle(name);
        let image = unpack(&self.folder.path("image"), &bundle.folder.join("rootfs"));
        let process = &mut bundle.config["process"];
        process["args"] = json!([strings(&image["config"]["Entrypoint"]), manifests.arguments()].concat());
        process["env"] = json!([]);
        process["user"] = json!({ "uid": security["runAsUser"], "gid": security["runAsGroup"] });
        process["noNewPrivileges"] = json!(security["allowPrivilegeEscalation"] == false);
        let added: Vec<String> = if security["privileged"] == true {
            // All that there are here.
            let own = capabilities(None).expect("a process knows its own").permitted;
            own.iter_names().map(|(name, _)| format!("CAP_{name}")).collect()
        } else {
            assert_eq!(strings(&security["capabilities"]["drop"]), ["ALL"], "nothing that is not asked for");
            strings(&security["capabilities"]["add"]).iter().map(|name| format!("CAP_{name}")).collect()
        };
        process["capabilities"] = json!({ "bounding": added, "effective": added, "permitted": added });
        if security["privileged"] == true {
            // What an engine hides from others.
            let linux = &mut bundle.config["linux"];
            (linux["maskedPaths"], linux["readonlyPaths"]) = (json!([]), json!([]));
            linux["resources"]["devices"] = json!([{ "allow": true, "access": "rwm" }]);
        }
        bundle.config["root"]["readonly"] = security["readOnlyRootFilesystem"].clone();
        if pod["hostPID"] == true {
            bundle.share("pid");
        }
        if pod["hostNetwork"] == true {
            bundle.share("network");
        }
        let limit = container["resources"]["limits"]["memory"].as_str().expect("a limit");
        let mebibytes: u64 = limit.strip_suffix("Mi").and_then(|n| n.parse().ok()).expect("a limit in Mi");
        bundle.config["linux"]["resources"]["memory"] = json!({ "limit": mebibytes << 20 });
        for mount in container["volumeMounts"].as_array().into_iter().flatten() {
            let volumes = pod["volumes"].as_array().expect("volumes are a list");
            let volume =
                volumes.iter().find(|volume| volume["name"] == mount["name"]).expect("each mount has a volume");
            let source = match volume["hostPath"]["path"].as_str() {
                Some(path) => PathBuf::from(path),
                None => files.to_owned(),
            };
            bundle.mount(&source, mount["mountPath"].as_str().expect("a path"), mount["readOnly"] == true);
        }
        bundle
    }
}

impl Bundle {
    /// What it runs.
    pub fn runs(mut self, arguments: &[&str]) -> Bundle {
        self.config["process"]["args"] = json!(arguments);
        self
    }

    /// Mounts a folder or a file of the host.
    ///
    /// # Panics
    /// It is not there.
    pub fn mount(&mut self, source: &Path, destination: &str, read_only: bool) {
        assert!(source.exists(), "`{}` cannot be mounted: it is not there", source.display());
        let mounts = self.config["mounts"].as_array_mut().expect("mounts are a list");
        mounts.retain(|mount| mount["destination"] != destination);
        let access = if read_only { "ro" } else { "rw" };
        mounts.push(json!({
            "destination": destination, "type": "bind", "source": source, "options": ["rbind", "rprivate", access]
        }));
    }

    /// Shares a namespace with the host.
    fn share(&mut self, namespace: &str) {
        let all = self.config["linux"]["namespaces"].as_array_mut().expect("namespaces are a list");
        all.retain(|one| one["type"] != namespace);
    }

    /// The command that runs it, and the container that is there once it has been run.
    ///
    /// # Panics
    /// The folder is gone.
    pub fn command(self, engine: &Engine) -> (Command, Container) {
        fs::write(self.folder.join("config.json"), self.config.to_string()).expect("a file of our own");
        let state = engine.folder.path("state");
        let mut command = Command::new("runc");
        command.arg("--root").arg(&state).args(["run", "--bundle"]).arg(&self.folder).arg(&self.id);
        (command, Container { id: self.id, state })
    }

    /// Runs it.
    pub fn start(self, engine: &Engine) -> (Program, Container) {
        let (mut command, container) = self.command(engine);
        (Program::start(&mut command), container)
    }
}

impl Container {
    /// The id of its first process, as the host has it.
    ///
    /// # Panics
    /// It does not run.
    pub fn pid(&self) -> u32 {
        wait::until("a container that runs", || {
            let output = self.runc(&["state", &self.id]).output().map_err(|e| e.to_string())?;
            let state: Value = serde_json::from_slice(&output.stdout).map_err(|_| format!("{output:?}"))?;
            let pid = state["pid"].as_u64().filter(|_| state["status"] == "running");
            pid.map(|pid| pid as u32).ok_or_else(|| state.to_string())
        })
    }

    /// Gets a page of it, from within its network.
    ///
    /// # Panics
    /// There is no answer.
    pub fn get(&self, port: u16, path: &str) -> Option<Response> {
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        within_network(self.pid(), || http::get(address, path).ok())
    }

    /// Connects to it, within its network.
    ///
    /// # Panics
    /// It does not listen.
    pub fn connect(&self, port: u16, count: u64) -> Vec<TcpStream> {
        let connect = |_| TcpStream::connect(("127.0.0.1", port)).expect("it listens");
        within_network(self.pid(), || (0..count).map(connect).collect())
    }

    fn runc(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("runc");
        command.arg("--root").arg(&self.state).args(arguments);
        command
    }

    /// Ends it as a kubelet does.
    ///
    /// # Panics
    /// runc refuses.
    pub fn stop(&self) {
        expect(&mut self.runc(&["kill", &self.id, "TERM"]));
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let _ = self.runc(&["delete", "--force", &self.id]).output();
    }
}

/// Does something in the network namespace of a process. A thread of its own enters it, and ends.
fn within_network<T: Send>(pid: u32, act: impl FnOnce() -> T + Send) -> T {
    let namespace = File::open(format!("/proc/{pid}/ns/net")).expect("the process lives");
    let act = move || {
        // SAFETY: a live descriptor; only this thread changes its namespace.
        let entered = unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) };
        assert_eq!(entered, 0, "a namespace can be entered: {}", std::io::Error::last_os_error());
        act()
    };
    thread::scope(|scope| scope.spawn(act).join().expect("the thread does not panic"))
}

/// Unpacks the image, and returns what it says of itself.
fn unpack(archive: &Path, rootfs: &Path) -> Value {
    let image = place::image();
    fs::create_dir_all(archive).expect("a folder of our own");
    expect(Command::new("tar").arg("-C").arg(archive).arg("-xf").arg(image));
    let read = |name: &str| -> Value {
        let text = fs::read_to_string(archive.join(name)).expect("the archive has it");
        serde_json::from_str(&text).expect("it is JSON")
    };
    let manifest = read("manifest.json");
    for layer in strings(&manifest[0]["Layers"]) {
        expect(Command::new("tar").arg("-C").arg(rootfs).arg("-xf").arg(archive.join(layer)));
    }
    read(manifest[0]["Config"].as_str().expect("an image has a configuration"))
}

fn expect(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|e| panic!("failed to run {command:?}: {e}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}
