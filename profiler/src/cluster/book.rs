//! The book of this node's pods: who is in it, who has changed, and how well it is kept. Pure: never a request, never a clock.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use super::{Names, PodNames};

/// Pods that are known at the same time. A node has some 110, and 250 where it is made for many.
const PODS: usize = 2_000;
/// Pods that are gone, and whose names are still told of those that were in them.
const DEPARTED: usize = 1_000;
/// Containers of a pod that are known.
const CONTAINERS: usize = 64;
/// Labels of a pod that are known.
const LABELS: usize = 128;

/// Why the cluster cannot be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// There is no answer.
    Unreachable,
    /// It does not say who it is, or not by a certificate that is trusted.
    Certificate,
    /// It does not know us.
    Unauthorized,
    /// It knows us, and does not tell us.
    Forbidden,
    /// What we know is too old to go on from: all is listed again.
    Expired,
    /// It says that something is wrong with itself.
    Refused,
    /// Its answer makes no sense.
    Invalid,
}

impl Failure {
    /// All.
    pub const ALL: [Failure; 7] = [
        Failure::Unreachable,
        Failure::Certificate,
        Failure::Unauthorized,
        Failure::Forbidden,
        Failure::Expired,
        Failure::Refused,
        Failure::Invalid,
    ];

    /// Its label.
    pub const fn label(self) -> &'static str {
        match self {
            Failure::Unreachable => "unreachable",
            Failure::Certificate => "certificate",
            Failure::Unauthorized => "unauthorized",
            Failure::Forbidden => "forbidden",
            Failure::Expired => "expired",
            Failure::Refused => "refused",
            Failure::Invalid => "invalid",
        }
    }
}

/// A pod, as the cluster tells it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    /// What it is called in paths of cgroups: its uid; of a static pod, the hash of its file.
    pub uid: String,
    /// Its names.
    pub names: Arc<PodNames>,
    /// Ids of its containers that have one, and their names.
    pub containers: BTreeMap<String, String>,
    /// Whether it has more of them, or of labels.
    cut: bool,
}

impl Pod {
    /// A pod, of which no more is kept than there is room for.
    pub fn new(uid: String, mut names: PodNames, mut containers: impl Iterator<Item = (String, String)>) -> Pod {
        let labels = names.labels.len();
        while names.labels.len() > LABELS {
            names.labels.pop_last();
        }
        let known = containers.by_ref().take(CONTAINERS).collect();
        let cut = labels > LABELS || containers.next().is_some();
        Pod { uid, names: Arc::new(names), containers: known, cut }
    }
}

/// All that is known.
#[derive(Debug, Default)]
pub struct Book {
    pods: HashMap<String, Pod>,
    /// Those of a list that is not complete yet.
    listed: Option<HashSet<String>>,
    departed: VecDeque<Pod>,
    changed: HashSet<String>,
    /// Whether the last that was heard of the cluster was good; `None` before anything was.
    up: Option<bool>,
    /// What was wrong, last.
    said: Option<String>,
    events: u64,
    turned_away: u64,
    failures: [u64; Failure::ALL.len()],
}

impl Book {
    /// A list of all begins.
    pub fn begin_list(&mut self) {
        self.listed = Some(HashSet::new());
    }

    /// The list is complete: who is not in it is gone.
    pub fn end_list(&mut self) {
        self.is_heard();
        let Some(listed) = self.listed.take() else { return };
        let gone: Vec<String> = self.pods.keys().filter(|uid| !listed.contains(*uid)).cloned().collect();
        gone.iter().for_each(|uid| self.depart(uid));
    }

    /// A pod is there, or has changed.
    pub fn put(&mut self, pod: Pod) {
        self.events += 1;
        let known = self.pods.get(&pod.uid);
        if known.is_none() && self.pods.len() >= PODS {
            self.turned_away += 1;
            return;
        }
        if let Some(listed) = &mut self.listed {
            listed.insert(pod.uid.clone());
        }
        // Its status changes often, and hardly ever anything that is told here.
        if known != Some(&pod) {
            self.turned_away += u64::from(pod.cut && !known.is_some_and(|known| known.cut));
            self.changed.insert(pod.uid.clone());
            self.departed.retain(|departed| departed.uid != pod.uid);
            self.pods.insert(pod.uid.clone(), pod);
        }
    }

    /// A pod is gone.
    pub fn remove(&mut self, uid: &str) {
        self.events += 1;
        self.depart(uid);
    }

    fn depart(&mut self, uid: &str) {
        let Some(pod) = self.pods.remove(uid) else { return };
        if self.departed.len() == DEPARTED {
            self.departed.pop_front();
        }
        self.departed.push_back(pod);
    }

    /// Something good was heard.
    pub fn is_heard(&mut self) {
        (self.up, self.said) = (Some(true), None);
    }

    /// It cannot be asked. Returns whether that is news.
    pub fn fail(&mut self, failure: Failure, why: &str) -> bool {
        self.failures[failure as usize] += 1;
        let news = self.said.as_deref() != Some(why);
        // A list that is to be made again is ordinary.
        if failure != Failure::Expired {
            (self.up, self.said) = (Some(false), Some(why.to_owned()));
        }
        news
    }

    /// Pods that have changed since this was asked last.
    pub fn take_changed(&mut self) -> HashSet<String> {
        std::mem::take(&mut self.changed)
    }

    /// What a process is called.
    pub fn names(&self, pod_uid: Option<&str>, container_id: Option<&str>) -> Names {
        let of = |pod: &Pod| {
            let container = container_id.and_then(|id| pod.containers.get(id)).cloned();
            Names::Known { pod: Arc::clone(&pod.names), container }
        };
        match (pod_uid, container_id) {
            (Some(uid), _) => {
                let departed = || self.departed.iter().find(|pod| pod.uid == uid);
                self.pods.get(uid).or_else(departed).map_or(Names::Awaited, of)
            }
            // Not each way of naming cgroups has the pod.
            (None, Some(id)) => self.with_container(id).map_or(Names::None, of),
            (None, None) => Names::None,
        }
    }

    fn with_container(&self, id: &str) -> Option<&Pod> {
        self.pods.values().find(|pod| pod.containers.contains_key(id))
    }

    /// The uid of the pod that has a container.
    pub fn pod_of(&self, container_id: &str) -> Option<&str> {
        self.with_container(container_id).map(|pod| pod.uid.as_str())
    }

    /// How many pods there are.
    pub fn len(&self) -> usize {
        self.pods.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.pods.is_empty()
    }

    /// Whether the cluster can be asked; `None` before it has answered.
    pub fn up(&self) -> Option<bool> {
        self.up
    }

    /// Why it cannot.
    pub fn said(&self) -> Option<&str> {
        self.said.as_deref()
    }

    /// What it has told.
    pub fn events(&self) -> u64 {
        self.events
    }

    /// Pods that found no room.
    pub fn turned_away(&self) -> u64 {
        self.turned_away
    }

    /// How often it could not be asked, and why.
    pub fn failures(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        Failure::ALL.iter().map(|&failure| (failure.label(), self.failures[failure as usize]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(uid: &str, name: &str, containers: &[(&str, &str)]) -> Pod {
        let names = PodNames { namespace: "shop".to_owned(), name: name.to_owned(), labels: BTreeMap::new() };
        let containers = containers.iter().map(|(id, name)| ((*id).to_owned(), (*name).to_owned()));
        Pod::new(uid.to_owned(), names, containers)
    }

    /// Namespace, pod and container, as far as they are known.
    fn told(book: &Book, uid: Option<&str>, id: Option<&str>) -> String {
        match book.names(uid, id) {
            Names::None => "none".to_owned(),
            Names::Awaited => "awaited".to_owned(),
            Names::Known { pod, container } => format!("{}/{}/{container:?}", pod.namespace, pod.name),
        }
    }

    /// Check that names come as they are known: nothing, the pod, the container; and that they stay when the pod has gone.
    #[test]
    fn names_come_one_by_one_and_stay() {
        let mut book = Book::default();
        assert_eq!(told(&book, None, None), "none");
        assert_eq!(told(&book, Some("1"), Some("c1")), "awaited");
        book.put(pod("1", "web-1", &[]));
        assert_eq!(told(&book, Some("1"), Some("c1")), "shop/web-1/None");
        assert_eq!(told(&book, None, Some("c1")), "none");
        book.put(pod("1", "web-1", &[("c1", "web")]));
        assert_eq!(told(&book, Some("1"), Some("c1")), "shop/web-1/Some(\"web\")");
        assert_eq!(told(&book, None, Some("c1")), "shop/web-1/Some(\"web\")");
        book.remove("1");
        assert_eq!((told(&book, Some("1"), Some("c1")).as_str(), book.len()), ("shop/web-1/Some(\"web\")", 0));
    }

    /// Check that only what is told here counts as a change, and that a list removes who is not in it.
    #[test]
    fn changes_and_lists() {
        let mut book = Book::default();
        book.put(pod("1", "a", &[]));
        book.put(pod("2", "b", &[]));
        assert_eq!(book.take_changed().len(), 2);
        book.put(pod("1", "a", &[]));
        assert!(book.take_changed().is_empty());
        book.begin_list();
        book.put(pod("1", "a", &[("c", "x")]));
        assert_eq!(book.len(), 2, "a list that is not complete removes nobody");
        book.end_list();
        assert_eq!((book.len(), book.up(), book.take_changed().len()), (1, Some(true), 1));
    }

    /// Check that more pods than there is room for are counted, and that those that are there go on being told.
    #[test]
    fn the_book_is_bounded() {
        let mut book = Book::default();
        (0..PODS + 5).for_each(|n| book.put(pod(&n.to_string(), "a", &[])));
        assert_eq!((book.len(), book.turned_away()), (PODS, 5));
        (0..PODS).for_each(|n| book.remove(&n.to_string()));
        assert_eq!((book.len(), book.departed.len()), (0, DEPARTED));
        let many = || (0..1000).map(|n| (n.to_string(), "x".to_owned()));
        let names = PodNames { labels: many().collect(), ..PodNames::default() };
        let of = Pod::new("1".to_owned(), names, many());
        assert_eq!((of.containers.len(), of.names.labels.len()), (CONTAINERS, LABELS));
        (0..2).for_each(|_| book.put(of.clone()));
        assert_eq!(book.turned_away(), 6, "it is counted once");
    }

    /// Check that a failure is news once, and that an expired list is none of the cluster's failures.
    #[test]
    fn failures_are_news_once() {
        let mut book = Book::default();
        assert!(book.fail(Failure::Forbidden, "no") && !book.fail(Failure::Forbidden, "no"));
        assert_eq!((book.up(), book.said()), (Some(false), Some("no")));
        book.is_heard();
        assert!(book.fail(Failure::Expired, "too old"));
        assert_eq!((book.up(), book.said()), (Some(true), None));
        assert!(book.failures().any(|failure| failure == ("forbidden", 2)));
    }
}
