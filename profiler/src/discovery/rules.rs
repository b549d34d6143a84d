//! Rules: which processes are watched. The first that matches decides; where none does, a process is not. Never where they
//! were written.

use std::borrow::Cow;
use std::fmt;

use super::glob::Glob;
use crate::cluster::{Names, PodNames};
use crate::target::identity::Identity;

/// What a rule says of the processes that it matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// They are watched.
    Include,
    /// They are not.
    Exclude,
}

/// What is decided of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It is watched.
    Include,
    /// It is not.
    Exclude,
    /// Its names decide, and are not known yet.
    Undecided,
}

/// What is known of a process without reading its program.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// Path of its executable, as it sees it.
    pub executable: String,
    /// Its name.
    pub command: String,
    /// Paths of its cgroups.
    pub cgroups: Vec<String>,
    /// Who manages it.
    pub identity: Identity,
    /// What the cluster calls it.
    pub names: Names,
    /// Names that are not known yet are waited for no longer: no condition on them holds.
    pub final_names: bool,
}

/// What a rule looks at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// The executable's path.
    Executable,
    /// The process's name.
    Command,
    /// The path of any of its cgroups.
    Cgroup,
    /// The id of its container.
    ContainerId,
    /// The id of its pod.
    PodUid,
    /// The namespace of its pod.
    Namespace,
    /// The name of its pod.
    Pod,
    /// The name of its container.
    Container,
    /// The label of its pod that has this name.
    Label(String),
    /// Its unit of systemd.
    Unit,
    /// The runtime that its program has.
    Runtime,
}

/// One rule: all of its conditions must hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// What follows.
    pub action: Action,
    conditions: Vec<(Subject, Glob)>,
}

/// Longest name of a process (TASK_COMM_LEN, include/linux/sched.h).
const COMMAND: usize = 15;

impl Subject {
    /// Its key in a file.
    pub fn key(&self) -> Cow<'static, str> {
        Cow::Borrowed(match self {
            Subject::Executable => "executable",
            Subject::Command => "command",
            Subject::Cgroup => "cgroup",
            Subject::ContainerId => "container_id",
            Subject::PodUid => "pod_uid",
            Subject::Namespace => "namespace",
            Subject::Pod => "pod",
            Subject::Container => "container",
            Subject::Label(name) => return Cow::Owned(format!("labels.{name}")),
            Subject::Unit => "unit",
            Subject::Runtime => "runtime",
        })
    }

    /// Whether only the cluster knows it.
    pub fn is_name(&self) -> bool {
        matches!(self, Subject::Namespace | Subject::Pod | Subject::Container | Subject::Label(_))
    }

    /// Whether it is in a container or a pod only.
    fn is_inside(&self) -> bool {
        self.is_name() || matches!(self, Subject::ContainerId | Subject::PodUid)
    }

    fn refusal(&self, glob: &Glob, runtimes: &[&str]) -> Option<String> {
        let (start, whole) = glob.start();
        let text = glob.as_str();
        match self {
            Subject::Label(_) if text.is_empty() => None,
            _ if text.is_empty() => Some("is empty".to_owned()),
            Subject::Executable | Subject::Cgroup if !start.is_empty() && !start.starts_with('/') => {
                Some(format!("is a path, and `{text}` does not begin with `/` or `*`"))
            }
            Subject::Command if start.len() > COMMAND => {
                Some(format!("has {COMMAND} bytes at most, and `{text}` is longer: the kernel cuts names off there"))
            }
            Subject::Runtime if !runtimes.iter().any(|runtime| glob.matches(runtime)) => {
                Some(format!("`{text}` is none that is known: {}", runtimes.join(", ")))
            }
            Subject::Unit if whole && ![".service", ".scope", ".slice"].iter().any(|kind| text.ends_with(kind)) => {
                Some(format!("`{text}` has no ending: as {text}.service"))
            }
            _ => None,
        }
    }
}

impl Rule {
    /// A rule with these conditions. `runtimes` are the names of all that there are.
    ///
    /// # Errors
    /// It can never match, and why.
    pub fn new(action: Action, conditions: Vec<(Subject, Glob)>, runtimes: &[&str]) -> Result<Rule, String> {
        for (subject, glob) in &conditions {
            if let Some(refusal) = subject.refusal(glob, runtimes) {
                return Err(format!("`{}` {refusal}", subject.key()));
            }
        }
        if conditions.iter().any(|(subject, _)| *subject == Subject::Unit)
            && let Some((inside, _)) = conditions.iter().find(|(subject, _)| subject.is_inside())
        {
            return Err(format!("`{}` and `unit` exclude each other: what is in one has no unit", inside.key()));
        }
        Ok(Rule { action, conditions })
    }

    /// Whether it matches all processes.
    fn is_total(&self) -> bool {
        // What stands for anything is no condition where everybody has one.
        let everybody = [Subject::Executable, Subject::Command, Subject::Cgroup];
        self.conditions.iter().all(|(subject, glob)| everybody.contains(subject) && glob.as_str() == "*")
    }

    /// Whether it looks at what only the cluster knows.
    pub fn asks_for_names(&self) -> bool {
        self.conditions.iter().any(|(subject, _)| subject.is_name())
    }

    /// Whether it matches; `None` where names that are not known yet decide.
    fn matches(&self, facts: &Facts, runtime: &mut dyn FnMut() -> Option<&'static str>) -> Option<bool> {
        let is_runtime = |of: &&(Subject, Glob)| of.0 == Subject::Runtime;
        let (last, first): (Vec<_>, Vec<_>) = self.conditions.iter().partition(is_runtime);
        let mut known = true;
        for (subject, glob) in first {
            match facts.holds(subject, glob) {
                Some(false) => return Some(false),
                Some(true) => {}
                None if facts.final_names => return Some(false),
                None => known = false,
            }
        }
        // The program is read last, if at all.
        known.then(|| last.into_iter().all(|(_, glob)| runtime().is_some_and(|runtime| glob.matches(runtime))))
    }
}

impl Facts {
    /// Whether a condition holds that is not the runtime's; `None` where that is not known yet.
    fn holds(&self, subject: &Subject, glob: &Glob) -> Option<bool> {
        let identity = &self.identity;
        let is = |text: &Option<String>| text.as_ref().is_some_and(|text| glob.matches(text));
        let named = |name: &dyn Fn(&PodNames) -> bool| match &self.names {
            Names::None => Some(false),
            Names::Awaited => None,
            Names::Known { pod, .. } => Some(name(pod)),
        };
        match subject {
            Subject::Executable => Some(glob.matches(&self.executable)),
            Subject::Command => Some(glob.matches(&self.command)),
            Subject::Cgroup => Some(self.cgroups.iter().any(|path| glob.matches(path))),
            Subject::ContainerId => Some(is(&identity.container_id)),
            Subject::PodUid => Some(is(&identity.pod_uid)),
            Subject::Unit => Some(is(&identity.systemd_unit)),
            Subject::Namespace => named(&|pod| glob.matches(&pod.namespace)),
            Subject::Pod => named(&|pod| glob.matches(&pod.name)),
            Subject::Label(label) => named(&|pod| pod.labels.get(label).is_some_and(|value| glob.matches(value))),
            Subject::Container => match &self.names {
                Names::Known { container, .. } => container.as_ref().map(|container| glob.matches(container)),
                Names::None => Some(false),
                Names::Awaited => None,
            },
            // The rule asks for it itself, last.
            Subject::Runtime => Some(true),
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.action == Action::Include { "include" } else { "exclude" })?;
        for (subject, glob) in &self.conditions {
            write!(f, " {}={}", subject.key(), glob.as_str())?;
        }
        if self.conditions.is_empty() { f.write_str(" all") } else { Ok(()) }
    }
}

/// All rules, in their order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules(Vec<Rule>);

impl Rules {
    /// What is right for a node of which nothing is known: every process whose runtime is known.
    pub fn of_any_node() -> Rules {
        Rules(vec![Rule { action: Action::Include, conditions: vec![(Subject::Runtime, Glob::new("*"))] }])
    }

    /// These rules.
    ///
    /// # Errors
    /// The number of one that makes no sense among the others, counted from 0, and why.
    pub fn new(rules: Vec<Rule>) -> Result<Rules, (usize, String)> {
        for (at, rule) in rules.iter().enumerate() {
            if let Some(earlier) = rules[..at].iter().find(|earlier| earlier.is_total()) {
                return Err((at, format!("no process comes to this rule: `{earlier}` is before it")));
            }
            if let Some(earlier) = rules[..at].iter().find(|earlier| earlier.conditions == rule.conditions) {
                return Err((at, format!("no process comes to this rule: `{earlier}` has the same conditions")));
            }
        }
        if !rules.iter().any(|rule| rule.action == Action::Include) {
            return Err((0, "no rule includes anything: no process would ever be watched".to_owned()));
        }
        Ok(Rules(rules))
    }

    /// What is decided of a process. `runtime` is asked only where a rule depends on it.
    pub fn decide(&self, facts: &Facts, mut runtime: impl FnMut() -> Option<&'static str>) -> Decision {
        let mut known = None;
        let mut once = || *known.get_or_insert_with(&mut runtime);
        for rule in &self.0 {
            match (rule.matches(facts, &mut once), rule.action) {
                (Some(true), Action::Include) => return Decision::Include,
                (Some(true), Action::Exclude) => return Decision::Exclude,
                (Some(false), _) => {}
                // What is after it does not count: the first that matches decides.
                (None, _) => return Decision::Undecided,
            }
        }
        Decision::Exclude
    }

    /// Whether any looks at what only the cluster knows.
    pub fn ask_for_names(&self) -> bool {
        self.0.iter().any(Rule::asks_for_names)
    }

    /// What is not in `earlier` any more or was not before, a line each; the order, where only that has changed.
    pub fn changes(&self, earlier: &Rules) -> Vec<String> {
        let not_in = |rules: &Rules, others: &Rules, sign: &str| -> Vec<String> {
            rules.0.iter().filter(|rule| !others.0.contains(rule)).map(|rule| format!("{sign} {rule}")).collect()
        };
        let mut lines = not_in(earlier, self, "-");
        lines.extend(not_in(self, earlier, "+"));
        if lines.is_empty() && self != earlier {
            lines.push("the order of the rules".to_owned());
        }
        lines
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Never: nothing would be watched.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests;
