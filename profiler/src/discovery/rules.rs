//! Rules: which processes are watched. The first that matches decides; where none does, a process is not. Never where they
//! were written.

use std::fmt;

use super::glob::Glob;
use crate::target::identity::Identity;

/// What a rule says of the processes that it matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// They are watched.
    Include,
    /// They are not.
    Exclude,
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
}

/// What a rule looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// The executable's path.
    Executable,
    /// The process's name.
    Command,
    /// The path of any of its cgroups.
    Cgroup,
    /// The id of its container.
    Container,
    /// The id of its pod.
    Pod,
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
    pub const fn key(self) -> &'static str {
        match self {
            Subject::Executable => "executable",
            Subject::Command => "command",
            Subject::Cgroup => "cgroup",
            Subject::Container => "container",
            Subject::Pod => "pod",
            Subject::Unit => "unit",
            Subject::Runtime => "runtime",
        }
    }

    fn refusal(self, glob: &Glob, runtimes: &[&str]) -> Option<String> {
        let (start, whole) = glob.start();
        let text = glob.as_str();
        match self {
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
        let has = |wanted| conditions.iter().any(|(subject, _)| *subject == wanted);
        for inside in [Subject::Container, Subject::Pod] {
            if has(inside) && has(Subject::Unit) {
                return Err(format!("`{}` and `unit` exclude each other: what is in one has no unit", inside.key()));
            }
        }
        Ok(Rule { action, conditions })
    }

    /// Whether it matches all processes.
    fn is_total(&self) -> bool {
        // What stands for anything is no condition where everybody has one.
        let everybody = [Subject::Executable, Subject::Command, Subject::Cgroup];
        self.conditions.iter().all(|(subject, glob)| everybody.contains(subject) && glob.as_str() == "*")
    }

    fn matches(&self, facts: &Facts, runtime: &mut dyn FnMut() -> Option<&'static str>) -> bool {
        let identity = &facts.identity;
        let is = |glob: &Glob, text: &Option<String>| text.as_ref().is_some_and(|text| glob.matches(text));
        let mut holds = |subject: Subject, glob: &Glob| match subject {
            Subject::Executable => glob.matches(&facts.executable),
            Subject::Command => glob.matches(&facts.command),
            Subject::Cgroup => facts.cgroups.iter().any(|path| glob.matches(path)),
            Subject::Container => is(glob, &identity.container_id),
            Subject::Pod => is(glob, &identity.pod_uid),
            Subject::Unit => is(glob, &identity.systemd_unit),
            Subject::Runtime => runtime().is_some_and(|runtime| glob.matches(runtime)),
        };
        // The program is read last, if at all.
        let is_runtime = |of: &(Subject, Glob)| of.0 == Subject::Runtime;
        let (last, first): (Vec<_>, Vec<_>) = self.conditions.iter().partition(|of| is_runtime(of));
        first.into_iter().chain(last).all(|(subject, glob)| holds(*subject, glob))
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

    /// Whether a process is to be watched. `runtime` is asked only where a rule depends on it.
    pub fn include(&self, facts: &Facts, mut runtime: impl FnMut() -> Option<&'static str>) -> bool {
        let mut known = None;
        let mut once = || *known.get_or_insert_with(&mut runtime);
        let decides = self.0.iter().find(|rule| rule.matches(facts, &mut once));
        decides.is_some_and(|rule| rule.action == Action::Include)
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
