//! A Kubernetes API that knows pods, and says of them what a test wants. Never more of its protocol than a watch needs, and never
//! a certificate: that is tested where it is checked.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};

/// How it answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mood {
    /// As it should.
    Up,
    /// Not at all.
    Down,
    /// It refuses to tell.
    Forbids,
}

struct State {
    mood: Mood,
    version: u64,
    pods: Vec<Value>,
    /// What has changed, in its order: a watch goes on from any number of these.
    changes: Vec<Value>,
    /// Requests, as their first lines.
    asked: Vec<String>,
}

/// The server. It ends with the test's process.
pub struct Kubernetes {
    state: Arc<Mutex<State>>,
    address: SocketAddr,
}

impl Kubernetes {
    /// One that knows no pod.
    ///
    /// # Panics
    /// There is no port.
    pub fn start() -> Kubernetes {
        let state = State { mood: Mood::Up, version: 1, pods: Vec::new(), changes: Vec::new(), asked: Vec::new() };
        let state = Arc::new(Mutex::new(state));
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("a port");
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = Arc::clone(&shared);
                // Whoever leaves in the middle is none of our business.
                std::thread::spawn(move || serve(&stream, &shared));
            }
        });
        Kubernetes { state, address }
    }

    /// A configuration that leads to it.
    pub fn kubeconfig(&self) -> String {
        let cluster = json!({ "server": format!("http://{}", self.address) });
        let context = json!({ "cluster": "test", "user": "test" });
        json!({ "apiVersion": "v1", "kind": "Config", "current-context": "test",
                "clusters": [{ "name": "test", "cluster": cluster }],
                "contexts": [{ "name": "test", "context": context }],
                "users": [{ "name": "test", "user": { "token": "secret" } }] })
        .to_string()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on it answers so. Watches that are under way end, unless it is up.
    pub fn is(&self, mood: Mood) {
        self.state().mood = mood;
    }

    /// Says that a pod is there, or has changed: its name, uid and label `app`, and its container's name and id where it has one.
    pub fn put(&self, name: &str, uid: &str, app: &str, container: Option<(&str, &str)>) {
        let mut state = self.state();
        state.version += 1;
        let metadata = json!({ "name": name, "namespace": "shop", "uid": uid, "labels": { "app": app },
                               "resourceVersion": state.version.to_string() });
        let statuses: Vec<Value> = container
            .iter()
            .map(|(name, id)| json!({ "name": name, "containerID": format!("containerd://{id}") }))
            .collect();
        let pod = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": { "nodeName": "node-1" },
                          "status": { "containerStatuses": statuses } });
        let known = state.pods.iter().position(|known| known["metadata"]["uid"] == uid);
        let kind = if known.is_some() { "MODIFIED" } else { "ADDED" };
        match known {
            Some(at) => state.pods[at] = pod.clone(),
            None => state.pods.push(pod.clone()),
        }
        state.changes.push(json!({ "type": kind, "object": pod }));
    }

    /// What it was asked for.
    pub fn asked(&self) -> Vec<String> {
        self.state().asked.clone()
    }
}

fn serve(stream: &TcpStream, state: &Mutex<State>) -> Option<()> {
    let lock = || state.lock().unwrap_or_else(PoisonError::into_inner);
    let mut lines = BufReader::new(stream.try_clone().ok()?).lines();
    let mut out = stream;
    loop {
        let request = lines.next()?.ok()?;
        while !lines.next()?.ok()?.is_empty() {}
        let (answer, mut told) = {
            let mut state = lock();
            if state.mood == Mood::Down {
                return None;
            }
            state.asked.push(request.clone());
            let list = json!({ "apiVersion": "v1", "kind": "PodList", "items": state.pods,
                               "metadata": { "resourceVersion": state.version.to_string() } });
            let refusal = json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                                  "reason": "Forbidden", "code": 403, "message": "pods is forbidden: User \"test\"" });
            let whole = |status: &str, body: &Value| {
                let text = body.to_string();
                let length = text.len();
                format!("HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{text}")
            };
            match state.mood {
                Mood::Forbids => (whole("403 Forbidden", &refusal), None),
                _ if request.contains("watch=true") => {
                    let head =
                        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n";
                    // Each change raises the version by one, from 1.
                    let from = request.split("resourceVersion=").nth(1)?.split(['&', ' ']).next()?;
                    (head.to_owned(), Some(from.parse::<usize>().ok()?.saturating_sub(1)))
                }
                _ => (whole("200 OK", &list), None),
            }
        };
        out.write_all(answer.as_bytes()).ok()?;
        while let Some(n) = &mut told {
            let more: Vec<Value> = {
                let state = lock();
                if state.mood != Mood::Up {
                    return None;
                }
                state.changes.get(*n..)?.to_vec()
            };
            *n += more.len();
            for change in more {
                let line = format!("{change}\n");
                write!(out, "{:x}\r\n{line}\r\n", line.len()).ok()?;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
