//! The tree itself: types of one name are one, each is expanded once. Never how it is shown.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::model::snapshot::{EdgeParent, SpawnSiteSnapshot, TaskTypeSnapshot, TasksSnapshot};

/// Deeper trees are cut: each level is a call, and an indent.
const MAX_DEPTH: usize = 64;

/// What is known of a type, from whomever it was spawned. What was not measured is `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Figures<'a> {
    pub(super) spawned: u64,
    pub(super) alive: u64,
    /// Time in polls.
    pub(super) busy_ns: Option<u64>,
    /// Time on a CPU.
    pub(super) cpu_ns: Option<u64>,
    pub(super) slowest_poll_ns: Option<u64>,
    pub(super) sites: Vec<SpawnSiteSnapshot>,
    /// The name that the types share.
    name: &'a str,
}

impl<'a> Figures<'a> {
    fn add(&mut self, kind: &'a TaskTypeSnapshot) {
        let sum = |a: Option<u64>, b: Option<u64>| a.into_iter().chain(b).reduce(|a, b| a + b);
        let Measured { busy_ns, cpu_ns, slowest_poll_ns } = measured(kind);
        self.name = &kind.name;
        self.spawned += kind.spawned;
        self.alive += kind.alive;
        self.busy_ns = sum(self.busy_ns, busy_ns);
        self.cpu_ns = sum(self.cpu_ns, cpu_ns);
        self.slowest_poll_ns = self.slowest_poll_ns.max(slowest_poll_ns);
        for site in &kind.spawn_sites {
            match self.sites.iter_mut().find(|known| known.place == site.place) {
                Some(known) => known.sampled += site.sampled,
                None => self.sites.push(site.clone()),
            }
        }
        self.sites.sort_by(|a, b| b.sampled.cmp(&a.sampled).then_with(|| a.place.cmp(&b.place)));
    }
}

/// What is not measured in every mode.
struct Measured {
    busy_ns: Option<u64>,
    cpu_ns: Option<u64>,
    slowest_poll_ns: Option<u64>,
}

/// The figures of a type that need probes on polls or samples of the CPU.
fn measured(kind: &TaskTypeSnapshot) -> Measured {
    let polls = kind.polls.as_ref();
    Measured {
        busy_ns: polls.map(|polls| polls.busy_ns),
        cpu_ns: kind.cpu_ns,
        slowest_poll_ns: polls.map(|polls| polls.slowest_ns),
    }
}

/// Whether a node's type is shown elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Repeat {
    /// It is shown here.
    Not,
    /// It is its own ancestor.
    Recursion,
    /// It is shown further up.
    Above,
}

/// A type, as the child of one parent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Node<'a> {
    pub(super) name: &'a str,
    /// Spawns by this parent.
    pub(super) spawned: u64,
    pub(super) figures: Figures<'a>,
    pub(super) repeat: Repeat,
    pub(super) children: Vec<Node<'a>>,
}

/// What no type spawned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Root<'a> {
    parent: Parent<'a>,
    pub(super) spawned: u64,
    pub(super) children: Vec<Node<'a>>,
}

impl Root<'_> {
    pub(super) fn label(&self) -> &'static str {
        match self.parent {
            Parent::None => "(no task)",
            _ => "(unknown)",
        }
    }

    pub(super) fn kind(&self) -> &'static str {
        match self.parent {
            Parent::None => "none",
            _ => "unknown",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Parent<'a> {
    None,
    Unknown,
    Type(&'a str),
}

/// The trees of a target: what no task spawned, and what was spawned by it is not known whom. The runtime's own tasks
/// are left out.
pub(super) fn forest(tasks: &TasksSnapshot) -> Vec<Root<'_>> {
    let mut types: BTreeMap<&str, Figures<'_>> = BTreeMap::new();
    for kind in tasks.types.iter().filter(|kind| !kind.internal) {
        types.entry(&kind.name).or_default().add(kind);
    }
    let name = |index: usize| tasks.types.get(index).map(|kind| kind.name.as_str());
    let mut spawns: HashMap<Parent<'_>, BTreeMap<&str, u64>> = HashMap::new();
    for edge in &tasks.edges {
        let parent = match edge.parent {
            EdgeParent::None => Parent::None,
            EdgeParent::Unknown => Parent::Unknown,
            EdgeParent::Type(index) => name(index).map_or(Parent::Unknown, Parent::Type),
        };
        let Some(child) = name(edge.child).filter(|child| types.contains_key(child)) else { continue };
        *spawns.entry(parent).or_default().entry(child).or_default() += edge.spawns;
    }
    let mut grower = Grower { types, spawns, shown: HashSet::new() };
    let mut roots: Vec<Root<'_>> =
        [Parent::None, Parent::Unknown].into_iter().filter_map(|parent| grower.root(parent)).collect();
    // Types of which no spawn was seen, and those that only each other spawned: their first parent is not known.
    let rest = grower.rest();
    if !rest.is_empty() {
        match roots.iter_mut().find(|root| root.parent == Parent::Unknown) {
            Some(root) => root.children.extend(rest),
            None => roots.push(Root { parent: Parent::Unknown, spawned: 0, children: rest }),
        }
    }
    roots
}

struct Grower<'a> {
    types: BTreeMap<&'a str, Figures<'a>>,
    spawns: HashMap<Parent<'a>, BTreeMap<&'a str, u64>>,
    shown: HashSet<&'a str>,
}

impl<'a> Grower<'a> {
    fn root(&mut self, parent: Parent<'a>) -> Option<Root<'a>> {
        let children = self.children(parent, &mut Vec::new());
        let spawned = children.iter().map(|child| child.spawned).sum();
        (!children.is_empty()).then_some(Root { parent, spawned, children })
    }

    /// What `parent` spawned, the most first.
    fn children(&mut self, parent: Parent<'a>, path: &mut Vec<&'a str>) -> Vec<Node<'a>> {
        let mut children: Vec<(&str, u64)> =
            self.spawns.get(&parent).into_iter().flatten().map(|(&name, &spawned)| (name, spawned)).collect();
        children.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(b.0)));
        children.into_iter().map(|(name, spawned)| self.node(name, spawned, path)).collect()
    }

    fn node(&mut self, name: &'a str, spawned: u64, path: &mut Vec<&'a str>) -> Node<'a> {
        let figures = self.types.get(name).cloned().unwrap_or_default();
        let repeat = match (path.contains(&name), self.shown.insert(name)) {
            (true, _) => Repeat::Recursion,
            (false, false) => Repeat::Above,
            (false, true) => Repeat::Not,
        };
        let mut children = Vec::new();
        if repeat == Repeat::Not && path.len() < MAX_DEPTH {
            path.push(name);
            children = self.children(Parent::Type(name), path);
            path.pop();
        }
        Node { name, spawned, figures, repeat, children }
    }

    /// What no root leads to, with all that it spawned.
    fn rest(&mut self) -> Vec<Node<'a>> {
        let mut left: Vec<(&str, u64)> = self.types.values().map(|figures| (figures.name, figures.spawned)).collect();
        left.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(b.0)));
        let mut nodes = Vec::new();
        for (name, _) in left {
            if !self.shown.contains(name) {
                // None of its spawns is by a parent that is not shown.
                nodes.push(self.node(name, 0, &mut Vec::new()));
            }
        }
        nodes
    }
}
