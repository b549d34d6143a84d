//! The label policy: which values a label may have. Never an id, an address or a port of a client.

use rustc_hash::FxHashMap;

use crate::model::snapshot::TargetSnapshot;

/// Values of one bounded label per target, before the rest is summed in [`OTHER`].
pub const BOUND: usize = 100;

/// The value under which everything over the bound is summed.
pub const OTHER: &str = "other";

/// Values of [`super::table::TARGET_LABELS`] for `target`.
pub fn target(target: &TargetSnapshot) -> [String; 3] {
    [target.process.clone(), target.runtime.to_owned(), target.pid.to_string()]
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
