//! The label policy: which values a label may have. Never an id, an address or a port of a client.

use rustc_hash::FxHashMap;

use super::table::{GROUP_LABELS, TARGET_LABELS};
use crate::model::snapshot::{GroupKey, TargetSnapshot};

/// Values of one bounded label per target, before the rest is summed in [`OTHER`].
pub const BOUND: usize = 100;

/// The value under which everything over the bound is summed.
pub const OTHER: &str = "other";

/// The labels of a target that has its own series, and their values.
pub fn target(target: &TargetSnapshot) -> Vec<(&'static str, String)> {
    let values = [target.process.clone(), target.runtime.to_owned(), target.pid.to_string()];
    TARGET_LABELS.into_iter().zip(values).collect()
}

/// The labels of a group of targets, and their values.
pub fn group(key: &GroupKey) -> Vec<(&'static str, String)> {
    let GroupKey { namespace, pod, container, process, runtime } = key;
    GROUP_LABELS.into_iter().zip([namespace, pod, container, process, *runtime].map(str::to_owned)).collect()
}

/// Maps names to label values: the first `bound` different names are their own, in the order in which they come.
/// That order is the order of first sight, so that a name never moves to or from [`OTHER`] later.
pub struct Bounded<'a> {
    bound: usize,
    names: FxHashMap<&'a str, ()>,
}

impl<'a> Bounded<'a> {
    /// Lets `bound` names through.
    pub fn new(bound: usize) -> Bounded<'a> {
        Bounded { bound, names: FxHashMap::default() }
    }

    /// The same, where these came first already.
    #[must_use]
    pub fn after(mut self, names: &'a [String]) -> Bounded<'a> {
        names.iter().for_each(|name| _ = self.value(name));
        self
    }

    /// The label value of `name`.
    pub fn value(&mut self, name: &'a str) -> &'a str {
        if name == OTHER || self.names.contains_key(name) {
            return name;
        }
        if self.names.len() >= self.bound {
            return OTHER;
        }
        self.names.insert(name, ());
        name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_over_the_bound_are_other() {
        let mut labels = Bounded::new(2);
        let values: Vec<&str> = ["a", "other", "b", "a", "c", "b"].into_iter().map(|name| labels.value(name)).collect();
        assert_eq!(values, ["a", "other", "b", "a", "other", "b"]);
    }
}
