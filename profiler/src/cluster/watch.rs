//! Asks the Kubernetes API for the pods of this node: lists them, then hears of each change, on a thread of its own. It may
//! `list` and `watch` pods, and asks for nothing else.

use std::borrow::Cow;
use std::path::Path;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt as _;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, ListParams, WatchEvent, WatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config, Error};
use serde::Deserialize;
use tokio::time::{Instant, sleep, timeout};

use super::PodNames;
use super::book::{Book, Failure, Pod};
use crate::remote::{Backoff, bounded, reason};

/// Parts in which a list may come.
const PAGES: usize = 50;
/// An answer takes no longer.
const ANSWER: Duration = Duration::from_secs(30);
/// After so many seconds the server ends a watch, and it is begun again from where it was.
const WATCH_SECONDS: u32 = 60;
/// One that says nothing for longer is held by nobody any more.
const SILENCE: Duration = Duration::from_secs(WATCH_SECONDS as u64 + 15);
/// A watch that ends sooner has failed.
const SHORT: Duration = Duration::from_secs(5);
/// After failures.
const BACKOFF: Backoff = Backoff { first: Duration::from_millis(500), longest: Duration::from_secs(30) };
/// Where the kubelet says which file a static pod is of: paths of its cgroups have that.
const FILE_HASH: &str = "kubernetes.io/config.hash";
/// What is missing where it is forbidden.
const REMEDY: &str =
    "; a ClusterRole with `resources: [pods], verbs: [list, watch]` must be bound to its service account";

/// Where the API is.
///
/// # Errors
/// Nothing says so, in one line.
pub async fn configuration(kubeconfig: Option<&Path>) -> Result<Config, String> {
    let mut config = match kubeconfig {
        Some(path) => {
            let failed = |e| format!("failed to read `{}`: {}", path.display(), reason(&e));
            let file = Kubeconfig::read_from(path).map_err(failed)?;
            Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.map_err(failed)?
        }
        None => Config::incluster().map_err(|e| {
            let why = reason(&e);
            format!("failed to find the Kubernetes API: {why}; outside of a pod, name it with --kubernetes.kubeconfig")
        })?,
    };
    config.connect_timeout = Some(ANSWER);
    config.write_timeout = Some(ANSWER);
    // What is wrong with its certificates is found before anything is attached to.
    Client::try_from(config.clone())
        .map_err(|e| format!("failed to use the Kubernetes API's configuration: {}", reason(&e)))?;
    Ok(config)
}

/// Keeps the book of a node's pods from now on, on a thread of its own: a long list must hold up nothing else.
///
/// # Errors
/// There is no thread.
pub fn start(config: Config, node: String, book: Arc<Mutex<Book>>) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let keep = move || {
        runtime.block_on(async {
            match Client::try_from(config) {
                Ok(client) => keep(client, &node, &book).await,
                Err(e) => fail(&book, &e.into()),
            }
        });
    };
    std::thread::Builder::new().name("cluster".to_owned()).spawn(keep)?;
    Ok(())
}

/// Lists and watches, for ever.
async fn keep(client: Client, node: &str, book: &Mutex<Book>) {
    let pods: Api<Told> = Api::all(client);
    let selector = format!("spec.nodeName={node}");
    let (mut version, mut failures) = (None, 0);
    loop {
        let began = Instant::now();
        let done = match version.take() {
            None => list(&pods, &selector, book).await,
            Some(from) => watch(&pods, &selector, from, book).await,
        };
        let (next, listed) = match done {
            Ok(Step::Listed(version)) => (Some(version), true),
            Ok(Step::Watched(version)) => (Some(version), false),
            Err((e, version)) => {
                fail(book, &e);
                (version, false)
            }
        };
        version = next;
        if listed || began.elapsed() >= SHORT {
            failures = if listed { failures } else { 0 };
            continue;
        }
        sleep(BACKOFF.pause(failures)).await;
        failures += 1;
    }
}

/// What came of an attempt: up to which version of the list all is known.
enum Step {
    Listed(String),
    Watched(String),
}

/// A failure, and from where to go on; `None` where all is to be listed again.
type Failed = (Problem, Option<String>);

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
enum Problem {
    #[error(transparent)]
    Client(#[from] Error),
    #[error("no answer for {} s", .0.as_secs())]
    Slow(Duration),
    #[error("a list without a version")]
    NoVersion,
    #[error("a list that does not end")]
    Endless,
}

async fn list(pods: &Api<Told>, selector: &str, book: &Mutex<Book>) -> Result<Step, Failed> {
    // Of any version, and at once: then it comes from the server's memory, so that all agents of a cluster may ask at the same
    // time.
    let mut parameters = ListParams::default().fields(selector).match_any();
    kept(book).begin_list();
    for _ in 0..PAGES {
        let answer = timeout(ANSWER, pods.list(&parameters)).await.map_err(|_| (Problem::Slow(ANSWER), None))?;
        let page = answer.map_err(|e| (e.into(), None))?;
        {
            let mut book = kept(book);
            page.items.into_iter().filter_map(Told::into_pod).for_each(|pod| book.put(pod));
        }
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => parameters = parameters.continue_token(&token),
            None => {
                let version = page.metadata.resource_version.ok_or((Problem::NoVersion, None))?;
                kept(book).end_list();
                return Ok(Step::Listed(version));
            }
        }
    }
    Err((Problem::Endless, None))
}

async fn watch(pods: &Api<Told>, selector: &str, mut version: String, book: &Mutex<Book>) -> Result<Step, Failed> {
    let parameters = WatchParams::default().fields(selector).timeout(WATCH_SECONDS);
    let answer = timeout(ANSWER, pods.watch(&parameters, &version)).await;
    let changes = match answer {
        Err(_) => return Err((Problem::Slow(ANSWER), Some(version))),
        Ok(Err(e)) => return Err(or_again(e, version)),
        Ok(Ok(changes)) => changes,
    };
    kept(book).is_heard();
    let mut changes = pin!(changes);
    loop {
        let change = match timeout(SILENCE, changes.next()).await {
            Err(_) => return Err((Problem::Slow(SILENCE), Some(version))),
            Ok(None) => return Ok(Step::Watched(version)),
            Ok(Some(Err(e))) => return Err(or_again(e, version)),
            Ok(Some(Ok(change))) => change,
        };
        match change {
            WatchEvent::Added(told) | WatchEvent::Modified(told) => {
                version = told.version().unwrap_or(version);
                if let Some(pod) = told.into_pod() {
                    kept(book).put(pod);
                }
            }
            WatchEvent::Deleted(told) => {
                version = told.version().unwrap_or(version);
                if let Some(pod) = told.into_pod() {
                    kept(book).remove(&pod.uid);
                }
            }
            WatchEvent::Bookmark(bookmark) => version = bookmark.metadata.resource_version,
            WatchEvent::Error(status) => return Err(or_again(Error::Api(status), version)),
        }
    }
}

/// A failure of a watch. It goes on from where it was, unless that is too old, or is followed by what makes no sense.
fn or_again(e: Error, version: String) -> Failed {
    let problem = e.into();
    let lists = matches!(kind(&problem), Failure::Expired | Failure::Invalid);
    (problem, (!lists).then_some(version))
}

fn kept(book: &Mutex<Book>) -> std::sync::MutexGuard<'_, Book> {
    book.lock().unwrap_or_else(PoisonError::into_inner)
}

fn fail(book: &Mutex<Book>, problem: &Problem) {
    let failure = kind(problem);
    let mut why = match problem {
        // The rest of it is noise.
        Problem::Client(Error::Api(status)) if !status.message.is_empty() => bounded(&status.message),
        _ => reason(problem),
    };
    if failure == Failure::Forbidden {
        why.push_str(REMEDY);
    }
    if !kept(book).fail(failure, &why) {
        return;
    }
    match failure {
        Failure::Expired => log::debug!("the pods of this node are listed again: {why}"),
        _ => log::warn!(
            "failed to watch the pods of this node, and goes on without their names ({}): {why}",
            failure.label()
        ),
    }
}

fn kind(problem: &Problem) -> Failure {
    let e = match problem {
        Problem::Client(e) => e,
        Problem::Slow(_) => return Failure::Unreachable,
        Problem::NoVersion | Problem::Endless => return Failure::Invalid,
    };
    match e {
        Error::Api(status) => match status.code {
            // What is no event is read as a status, of which nothing need be there.
            0 => Failure::Invalid,
            401 => Failure::Unauthorized,
            403 => Failure::Forbidden,
            410 => Failure::Expired,
            _ => Failure::Refused,
        },
        Error::Auth(_) => Failure::Unauthorized,
        Error::RustlsTls(_) => Failure::Certificate,
        Error::Service(_) | Error::HyperError(_) if reason(e).contains("certificate") => Failure::Certificate,
        Error::Service(_) | Error::HyperError(_) | Error::ReadEvents(_) => Failure::Unreachable,
        _ => Failure::Invalid,
    }
}

/// What is read of a pod. Its specification, which is most of it, is skipped.
#[derive(Clone, Debug, Deserialize)]
struct Told {
    metadata: ObjectMeta,
    #[serde(default)]
    status: Status,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Status {
    container_statuses: Option<Vec<Container>>,
    init_container_statuses: Option<Vec<Container>>,
    ephemeral_container_statuses: Option<Vec<Container>>,
}

#[derive(Clone, Debug, Deserialize)]
struct Container {
    name: String,
    /// As `containerd://ID`; absent until it was started.
    #[serde(rename = "containerID")]
    id: Option<String>,
}

impl Told {
    fn version(&self) -> Option<String> {
        self.metadata.resource_version.clone()
    }

    /// `None` where it says not even who it is.
    fn into_pod(self) -> Option<Pod> {
        let ObjectMeta { uid, name, namespace, labels, annotations, .. } = self.metadata;
        let hash = annotations.and_then(|mut all| all.remove(FILE_HASH));
        let names = PodNames { namespace: namespace?, name: name?, labels: labels.unwrap_or_default() };
        let Status { container_statuses, init_container_statuses, ephemeral_container_statuses } = self.status;
        let all = [container_statuses, init_container_statuses, ephemeral_container_statuses];
        let containers = all.into_iter().flatten().flatten().filter_map(|Container { name, id }| {
            let id = id.as_deref().and_then(|id| id.rsplit("://").next()).filter(|id| !id.is_empty())?.to_owned();
            Some((id, name))
        });
        Some(Pod::new(hash.or(uid)?, names, containers))
    }
}

impl kube::Resource for Told {
    type DynamicType = ();
    type Scope = NamespaceResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        "Pod".into()
    }

    fn group((): &()) -> Cow<'_, str> {
        "".into()
    }

    fn version((): &()) -> Cow<'_, str> {
        "v1".into()
    }

    fn plural((): &()) -> Cow<'_, str> {
        "pods".into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

#[cfg(test)]
mod tests;
