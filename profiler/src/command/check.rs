//! `profiler check`: what this kernel and these privileges permit, and the remedy for what they do not. It says what
//! attaching goes by: the same table, evaluated in the same way.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use crate::kernel::KernelError;
use crate::kernel::btf::Btf;
use crate::kernel::capability::{CAPABILITIES, Capability, Effective};
use crate::kernel::feature::Features;
use crate::kernel::signal::{Evaluated, Signals, Unwanted};
use crate::kernel::{lockdown, locked_memory};
use crate::target::process::require_init_pid_namespace;

/// Width of the names.
const WIDTH: usize = 22;

/// What was found.
pub struct Report {
    capabilities: Vec<(&'static Capability, bool)>,
    namespace: Result<(), String>,
    lockdown: Result<(), String>,
    locked_memory: Result<(), String>,
    /// Number of types.
    types: Result<usize, String>,
    /// `None` where they cannot be told.
    kernel: Option<(Features, Signals)>,
}

/// Looks at the host. `without` are ways that are not to be used.
///
/// # Errors
/// /proc cannot be read.
pub fn check(without: &[Unwanted]) -> Result<Report, KernelError> {
    let effective = Effective::current()?;
    let mut report = Report {
        capabilities: CAPABILITIES.iter().map(|capability| (capability, effective.has(capability))).collect(),
        namespace: require_init_pid_namespace().map_err(|e| e.to_string()),
        lockdown: lockdown::require_open().map_err(|e| e.to_string()),
        // Only who may make maps can try.
        locked_memory: effective
            .require()
            .map_or(Ok(()), |()| locked_memory::require_room().map_err(|e| e.to_string())),
        types: Ok(0),
        kernel: None,
    };
    match Btf::of_running_kernel() {
        Ok(btf) => {
            report.types = Ok(btf.len());
            // Without the capabilities every attempt fails, whatever the kernel can do.
            if report.usable() {
                let features = Features::probe(&btf);
                let signals = Signals::evaluate(&features, without);
                report.kernel = Some((features, signals));
            }
        }
        Err(e) => report.types = Err(e.to_string()),
    }
    Ok(report)
}

impl Report {
    /// Whether a process can be attached to.
    pub fn usable(&self) -> bool {
        self.capabilities.iter().all(|(capability, there)| *there || !capability.required)
            && self.namespace.is_ok()
            && self.lockdown.is_ok()
            && self.locked_memory.is_ok()
            && self.types.is_ok()
    }

    /// For people: one line per finding, and below it what would be better.
    pub fn text(&self) -> String {
        let mut text = Text(String::new());
        for (capability, there) in &self.capabilities {
            let detail = match (there, capability.required) {
                (true, _) => capability.purpose.to_owned(),
                (false, true) => format!("needed to {}: run as root, or grant it", capability.purpose),
                (false, false) => format!("missing: cannot {}", capability.purpose),
            };
            text.row(capability.name, *there, &detail);
        }
        match &self.namespace {
            Ok(()) => text.row("PID namespace", true, "the host's"),
            Err(why) => text.row("PID namespace", false, why),
        }
        match &self.lockdown {
            Ok(()) => text.row("kernel memory", true, "not locked down"),
            Err(why) => text.row("kernel memory", false, why),
        }
        match &self.locked_memory {
            Ok(()) => text.row("locked memory", true, "enough, or not counted"),
            Err(why) => text.row("locked memory", false, why),
        }
        match &self.types {
            Ok(types) => text.row("kernel types (BTF)", true, &format!("{types} types")),
            Err(why) => text.row("kernel types (BTF)", false, why),
        }
        match &self.kernel {
            Some((_, signals)) => signals.iter().for_each(|evaluated| text.signal(evaluated)),
            None => text.row("signals", false, "cannot be told: see the rows above"),
        }
        let verdict = if self.usable() {
            "processes can be profiled on this host"
        } else {
            "processes cannot be profiled: see the rows marked no"
        };
        let _ = writeln!(text.0, "\n{verdict}");
        text.0
    }

    /// For programs. What cannot be told is `null`.
    pub fn document(&self) -> Value {
        let capability = |(capability, there): &(&Capability, bool)| {
            json!({
                "name": capability.name,
                "there": there,
                "required": capability.required,
                "purpose": capability.purpose,
            })
        };
        let features = |(features, _): &(Features, Signals)| {
            features.by_name().map(|(name, has)| (name.to_owned(), has.into())).collect::<Map<String, Value>>()
        };
        let signals = |(_, signals): &(Features, Signals)| signals.iter().map(signal).collect::<Vec<_>>();
        json!({
            "usable": self.usable(),
            "capabilities": self.capabilities.iter().map(capability).collect::<Vec<_>>(),
            "pid_namespace": { "host": self.namespace.is_ok(), "why_not": self.namespace.as_ref().err() },
            "lockdown": { "state": lockdown::state(), "why_not": self.lockdown.as_ref().err() },
            "locked_memory": { "why_not": self.locked_memory.as_ref().err() },
            "btf": { "types": self.types.as_ref().ok(), "why_not": self.types.as_ref().err() },
            "features": self.kernel.as_ref().map(features),
            "signals": self.kernel.as_ref().map(signals),
        })
    }
}

fn signal(evaluated: &Evaluated) -> Value {
    let way = evaluated.way();
    let chosen = way.as_ref().ok();
    let refused = evaluated
        .refused
        .iter()
        .map(|refusal| json!({ "way": refusal.way.attach.label(), "why": refusal.why, "remedy": refusal.remedy }));
    json!({
        "signal": evaluated.signal.name,
        "measures": evaluated.signal.measures,
        "way": chosen.map(|way| way.attach.label()),
        "how": chosen.map(|way| way.how),
        "lacks": chosen.map(|way| way.lacks).filter(|lacks| !lacks.is_empty()),
        "why_not": way.as_ref().err(),
        "otherwise": evaluated.ways().skip(1).map(|way| way.attach.label()).collect::<Vec<_>>(),
        "refused": refused.collect::<Vec<_>>(),
    })
}

struct Text(String);

impl Text {
    fn row(&mut self, name: &str, there: bool, detail: &str) {
        let _ = writeln!(self.0, "{:<WIDTH$} {:<4} {detail}", name, if there { "yes" } else { "no" });
    }

    fn signal(&mut self, evaluated: &Evaluated) {
        let name = evaluated.signal.name.replace('_', " ");
        match evaluated.way() {
            Ok(way) => {
                self.row(&name, true, way.how);
                if !way.lacks.is_empty() {
                    self.note(way.lacks);
                }
            }
            Err(why) => self.row(&name, false, &why),
        }
        for refusal in better(evaluated) {
            self.note(&refusal);
        }
    }

    fn note(&mut self, note: &str) {
        let _ = writeln!(self.0, "{:WIDTH$}      {note}", "");
    }
}

/// Ways that would be better than the one that is chosen, with the remedy.
fn better(evaluated: &Evaluated) -> Vec<String> {
    let chosen = evaluated.way().ok().map(|way| way.attach);
    let place = |attach| evaluated.signal.ways.iter().position(|way| way.attach == attach);
    let limit = chosen.and_then(place).unwrap_or(evaluated.signal.ways.len());
    let better = evaluated.refused.iter().filter(|refusal| place(refusal.way.attach).is_some_and(|at| at < limit));
    better
        .map(|refusal| match refusal.remedy {
            "" => format!("not by {}: {}", refusal.way.attach.label(), refusal.why),
            remedy => format!("not by {}: {}; {remedy}", refusal.way.attach.label(), refusal.why),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::signal::{Attach, SIGNALS};

    #[test]
    fn every_capability_and_signal_has_a_row() {
        let report = check(&[]).unwrap();
        let text = report.text();
        for name in ["CAP_BPF", "CAP_PERFMON", "CAP_SYS_PTRACE", "PID namespace", "BTF"] {
            assert!(text.contains(name), "{name} is missing from\n{text}");
        }
        let document = report.document();
        for signal in SIGNALS {
            assert!(text.contains(&signal.name.replace('_', " ")), "{} is missing from\n{text}", signal.name);
            let rows = document["signals"].as_array().expect("root is needed");
            assert!(rows.iter().any(|row| row["signal"] == signal.name), "{} is missing from {document}", signal.name);
        }
    }

    #[test]
    fn a_way_that_is_not_wanted_is_not_chosen() {
        let document = check(&Attach::ALL.map(Unwanted::everywhere)).unwrap().document();
        for row in document["signals"].as_array().expect("root is needed") {
            assert_eq!(row["way"], Value::Null);
            assert!(row["why_not"].is_string(), "{row}");
        }
    }
}
