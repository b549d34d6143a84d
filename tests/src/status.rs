//! The page `/status` of a profiler.

use std::collections::BTreeMap;

use serde_json::Value;

/// The whole page.
#[derive(Clone, Debug)]
pub struct Status(pub Value);

/// One target on it.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a>(pub &'a Value);

/// One type of task.
#[derive(Clone, Copy, Debug)]
pub struct Kind<'a>(pub &'a Value);

impl Status {
    /// The target of a process id.
    ///
    /// # Panics
    /// It is not on the page.
    pub fn target(&self, pid: u32) -> Target<'_> {
        let targets = self.0["targets"].as_array().expect("targets are a list");
        let target = targets.iter().find(|target| target["pid"] == pid);
        Target(target.unwrap_or_else(|| panic!("process {pid} is not in {}", self.0)))
    }

    /// Losses that are not zero.
    pub fn losses(&self) -> BTreeMap<&str, u64> {
        let losses = self.0["losses"].as_object().expect("losses are an object");
        losses.iter().map(|(reason, n)| (reason.as_str(), number(n))).filter(|(_, n)| *n > 0).collect()
    }
}

impl<'a> Target<'a> {
    /// State and detail of a probe; `None` without such a row.
    pub fn probe(self, name: &str) -> Option<(&'a str, &'a str)> {
        let row = self.0["probes"].as_array()?.iter().find(|row| row["probe"] == name)?;
        Some((row["state"].as_str()?, row["detail"].as_str()?))
    }

    /// Probes that are in a state.
    pub fn probes_in(self, state: &str) -> Vec<&'a str> {
        let rows = self.0["probes"].as_array().into_iter().flatten();
        rows.filter(|row| row["state"] == state).filter_map(|row| row["probe"].as_str()).collect()
    }

    /// Whether a probe is attached.
    pub fn is_attached(self, name: &str) -> bool {
        self.probe(name).is_some_and(|(state, _)| state == "attached")
    }

    /// Types of tasks that the application spawns; empty where tasks are not measured.
    pub fn kinds(self) -> impl Iterator<Item = Kind<'a>> {
        self.all_kinds().filter(|kind| kind.0["internal"] != true)
    }

    /// All types of tasks.
    pub fn all_kinds(self) -> impl Iterator<Item = Kind<'a>> {
        self.0["tasks"]["types"].as_array().into_iter().flatten().map(Kind)
    }

    /// Names of the application's types.
    pub fn names(self) -> Vec<String> {
        self.kinds().filter_map(|kind| kind.0["name"].as_str().map(str::to_owned)).collect()
    }

    /// The application's spawns.
    pub fn spawned(self) -> u64 {
        self.kinds().map(Kind::spawned).sum()
    }

    /// The application's ends.
    pub fn completed(self) -> u64 {
        self.kinds().map(Kind::completed).sum()
    }

    /// The application's tasks that live.
    pub fn alive(self) -> u64 {
        self.kinds().map(|kind| number(&kind.0["alive"])).sum()
    }

    /// Ends without a spawn.
    pub fn unseen_spawns(self) -> u64 {
        self.kinds().map(|kind| number(&kind.0["unseen_spawns"])).sum()
    }

    /// The application's tasks that were there at the attach.
    pub fn found(self) -> u64 {
        self.kinds().map(Kind::found).sum()
    }

    /// Spawns that have a place in the lineage.
    pub fn edges(self) -> u64 {
        self.kinds().flat_map(Kind::parents).map(|(_, n)| n).sum()
    }

    /// A listener by its address.
    ///
    /// # Panics
    /// It is not on the page.
    pub fn listener(self, name: &str) -> &'a Value {
        let listeners = self.0["listeners"].as_array().expect("listeners are a list");
        listeners.iter().find(|l| l["listener"] == name).unwrap_or_else(|| panic!("{name} is not in {listeners:?}"))
    }
}

/// Who spawned.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Parent {
    Task(String),
    None,
    Unknown,
}

impl<'a> Kind<'a> {
    /// Short name.
    pub fn name(self) -> &'a str {
        self.0["name"].as_str().expect("a type has a name")
    }

    /// Full name, where known.
    pub fn full_name(self) -> Option<&'a str> {
        self.0["full_name"].as_str()
    }

    /// Other names that its code may have.
    pub fn aliases(self) -> impl Iterator<Item = &'a str> {
        self.0["aliases"].as_array().into_iter().flatten().filter_map(Value::as_str)
    }

    /// Spawns.
    pub fn spawned(self) -> u64 {
        number(&self.0["spawned"])
    }

    /// Tasks that were there at the attach.
    pub fn found(self) -> u64 {
        number(&self.0["found"])
    }

    /// Tasks that live.
    pub fn alive(self) -> u64 {
        number(&self.0["alive"])
    }

    /// Ends, of all outcomes.
    pub fn completed(self) -> u64 {
        self.0["completed"].as_object().expect("outcomes are an object").values().map(number).sum()
    }

    /// Ends of one outcome.
    pub fn ended(self, outcome: &str) -> u64 {
        number(&self.0["completed"][outcome])
    }

    /// Who spawned tasks of this type, and how many.
    pub fn parents(self) -> impl Iterator<Item = (Parent, u64)> {
        self.0["parents"].as_array().into_iter().flatten().map(|edge| {
            let parent = match edge["kind"].as_str() {
                Some("task") => Parent::Task(edge["parent"].as_str().expect("a parent has a name").to_owned()),
                Some("none") => Parent::None,
                _ => Parent::Unknown,
            };
            (parent, number(&edge["spawns"]))
        })
    }
}

/// A count of a JSON document.
///
/// # Panics
/// It is none.
pub fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is no count"))
}
