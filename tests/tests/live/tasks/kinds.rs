//! Which kind of the fixture a type of the profiler's is: by the name of the function in its full name.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;

use profiler::runtime::{Plan, RUNTIMES};
use profiler::target::elf::Binary;
use serde_json::Value;
use tests::place;
use tests::status::{Kind, Parent, Target, number};

/// The names in the build with symbols that has the same addresses; nothing for a build that has symbols itself.
#[derive(Default)]
pub struct Twin {
    /// All names of the type that has this short name in the stripped build.
    names: HashMap<String, Vec<String>>,
}

impl Twin {
    /// Of a build: the plans of both files have the same types, in the same order.
    pub fn of_build(version: &str, profile: &str) -> Twin {
        let Some(with_symbols) = profile.strip_suffix("-stripped") else { return Twin::default() };
        let (stripped, whole) = (plan(version, profile), plan(version, with_symbols));
        assert_eq!(stripped.types.len(), whole.types.len(), "both builds have the same types");
        assert_eq!(stripped.type_by_vtable, whole.type_by_vtable, "at the same addresses");
        let mut names: HashMap<String, Vec<String>> = HashMap::new();
        for (mine, other) in stripped.types.iter().zip(whole.types) {
            let all = names.entry(mine.name.clone()).or_default();
            all.extend(other.full_name);
            all.extend(other.aliases);
        }
        Twin { names }
    }
}

fn plan(version: &str, profile: &str) -> Plan {
    let data = fs::read(place::tokio(version, profile)).expect("the fixture can be read");
    let binary = Binary::parse(&data).expect("the fixture is a program");
    let plan = RUNTIMES.iter().find_map(|runtime| runtime.detect(&binary).expect("the fixture is well-formed"));
    plan.expect("the fixture uses Tokio")
}

/// Groups of kinds that cannot be told apart, since the compiler merged their code; most groups have one member.
pub struct Kinds {
    /// The group of each kind, named after its members.
    group: HashMap<String, String>,
    /// The group of each short name of a type.
    by_type: HashMap<String, String>,
    unknown: Vec<String>,
}

/// The parent of what no task spawns, and of what is spawned by it is not known whom.
const NONE: &str = "none";
const UNKNOWN: &str = "unknown";

impl Kinds {
    /// Of all types that were seen, and all kinds that the truth knows.
    pub fn of(truth: &Value, target: Target<'_>, twin: &Twin) -> Kinds {
        let kinds: BTreeSet<&str> = truth["spawned"].as_object().expect("counts").keys().map(String::as_str).collect();
        let mut sets: Vec<BTreeSet<&str>> = kinds.iter().map(|&kind| BTreeSet::from([kind])).collect();
        let mut types: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for kind in target.kinds() {
            let names = twin.names.get(kind.name()).into_iter().flatten().map(String::as_str);
            let all = kind.full_name().into_iter().chain(kind.aliases()).chain(names);
            types.entry(kind.name()).or_default().extend(all.filter_map(|name| kind_in(name, &kinds)));
        }
        for members in types.values().filter(|members| members.len() > 1) {
            let (joined, apart): (Vec<_>, Vec<_>) = sets.into_iter().partition(|set| !set.is_disjoint(members));
            sets = apart;
            sets.push(joined.into_iter().flatten().collect());
        }
        let mut group = HashMap::new();
        for set in sets {
            let name = set.iter().copied().collect::<Vec<_>>().join("|");
            group.extend(set.into_iter().map(|kind| (kind.to_owned(), name.clone())));
        }
        let mut unknown = Vec::new();
        let mut by_type = HashMap::new();
        for (name, members) in types {
            match members.first() {
                Some(&kind) => drop(by_type.insert(name.to_owned(), group[kind].clone())),
                None => unknown.push(name.to_owned()),
            }
        }
        Kinds { group, by_type, unknown }
    }

    /// Types whose name is that of no kind.
    pub fn unknown(&self) -> &[String] {
        &self.unknown
    }

    /// The truth's counts per group.
    pub fn truth(&self, counts: &Value) -> BTreeMap<String, u64> {
        let counts = counts.as_object().expect("counts").iter();
        sums(counts.map(|(kind, n)| (self.group[kind].clone(), number(n))))
    }

    /// The profiler's counts per group.
    pub fn seen(&self, target: Target<'_>, count: &dyn Fn(Kind<'_>) -> u64) -> BTreeMap<String, u64> {
        sums(target.kinds().map(|kind| (self.group_of(kind.name()), count(kind))))
    }

    /// The truth's spawns per parent and child.
    pub fn true_edges(&self, parents: &Value) -> BTreeMap<String, u64> {
        sums(parents.as_object().expect("counts").iter().map(|(edge, n)| {
            let (parent, child) = edge.split_once('>').expect("an edge has two ends");
            let parent = self.group.get(parent).map_or(NONE, String::as_str);
            (format!("{parent} > {}", self.group[child]), number(n))
        }))
    }

    /// The profiler's spawns per parent and child.
    pub fn seen_edges(&self, target: Target<'_>) -> BTreeMap<String, u64> {
        let edges = target.kinds().flat_map(|kind| {
            let child = self.group_of(kind.name());
            kind.parents().map(move |(parent, n)| (parent, child.clone(), n))
        });
        sums(edges.map(|(parent, child, n)| {
            let parent = match parent {
                Parent::Task(name) => self.group_of(&name),
                Parent::None => NONE.to_owned(),
                Parent::Unknown => UNKNOWN.to_owned(),
            };
            (format!("{parent} > {child}"), n)
        }))
    }

    /// The group of a kind.
    ///
    /// # Panics
    /// None was spawned.
    pub fn group_of_kind(&self, kind: &str) -> String {
        self.group[kind].clone()
    }

    /// The group of the type that has this short name.
    pub fn group_of(&self, name: &str) -> String {
        self.by_type.get(name).cloned().unwrap_or_else(|| format!("({name})"))
    }
}

fn sums(counts: impl Iterator<Item = (String, u64)>) -> BTreeMap<String, u64> {
    let mut sums = BTreeMap::new();
    for (name, n) in counts.filter(|(_, n)| *n > 0) {
        *sums.entry(name).or_default() += n;
    }
    sums
}

/// The kind in a type's name: the last of its path that is one, or else one in its generic arguments.
fn kind_in<'k>(name: &str, kinds: &BTreeSet<&'k str>) -> Option<&'k str> {
    let in_text = |text: &str| {
        let words = text.rsplit(|c: char| !c.is_alphanumeric() && c != '_');
        words.filter_map(|word| kinds.get(word).copied()).next()
    };
    let mut depth = 0;
    let outside: String = name
        .chars()
        .map(|letter| {
            depth += i32::from(letter == '<') - i32::from(letter == '>');
            if depth > 0 { ' ' } else { letter }
        })
        .collect();
    in_text(&outside).or_else(|| in_text(name))
}
