//! What is wrong with a target, as far as its figures show: one table of rows, each with its evidence. Pure: never a
//! clock, never how a figure was measured, never where a finding is shown.

mod history;
mod rows;
#[cfg(test)]
mod tests;

use rustc_hash::FxHashMap;

use self::history::History;
use self::rows::ROWS;
use crate::model::snapshot::{DiagnosisSnapshot, Evidence, Severity, Snapshot};

/// Observations are no closer than this, nanoseconds: rates over less say little.
const INTERVAL_NS: u64 = 1_000_000_000;
/// What is not found for so long has ended, nanoseconds: one that comes and goes is one.
const LINGER_NS: u64 = 15_000_000_000;
/// Findings of one row for one target: the rest of a thousand types in trouble says nothing new.
const MAX_FOUND: usize = 20;

/// One thing that may be wrong.
struct Row {
    /// What it is called.
    name: &'static str,
    /// How bad it is.
    severity: Severity,
    /// Finds it in what was observed of a target.
    check: fn(&History) -> Vec<Found>,
}

/// A row that holds for a target.
struct Found {
    /// Of what: a type of task, a listener; empty where it is the target itself.
    subject: String,
    /// What it is, for people: one line.
    summary: String,
    /// The figures that show it.
    evidence: Vec<(&'static str, Evidence)>,
}

/// What has changed: worth a line in the log.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// It was found, and was not before.
    Appeared(DiagnosisSnapshot),
    /// It was not found any more for a while.
    Ended(DiagnosisSnapshot),
}

/// Observes snapshots, one after the other, and knows what is wrong now.
#[derive(Default)]
pub struct Diagnoses {
    observed_ns: Option<u64>,
    histories: FxHashMap<u32, History>,
    current: Vec<Current>,
}

struct Current {
    diagnosis: DiagnosisSnapshot,
    seen_ns: u64,
}

impl Diagnoses {
    /// Whether an observation is due.
    pub fn is_due(&self, now_ns: u64) -> bool {
        self.observed_ns.is_none_or(|last| now_ns.saturating_sub(last) >= INTERVAL_NS)
    }

    /// Takes an observation, unless one was taken just before; says what has changed.
    pub fn observe(&mut self, snapshot: &Snapshot) -> Vec<Change> {
        let now_ns = snapshot.time_ns;
        if !self.is_due(now_ns) {
            return Vec::new();
        }
        self.observed_ns = Some(now_ns);
        let mut changes = Vec::new();
        self.histories.retain(|pid, _| snapshot.targets.iter().any(|target| target.running && target.pid == *pid));
        for target in snapshot.targets.iter().filter(|target| target.running) {
            let history = self.histories.entry(target.pid).or_default();
            history.observe(now_ns, target);
            for row in ROWS {
                for found in (row.check)(history).into_iter().take(MAX_FOUND) {
                    changes.extend(found_now(&mut self.current, now_ns, row, target.pid, found));
                }
            }
        }
        let ended = |current: &mut Current| {
            let running = self.histories.contains_key(&current.diagnosis.pid);
            !running || now_ns.saturating_sub(current.seen_ns) >= LINGER_NS
        };
        changes.extend(self.current.extract_if(.., ended).map(|current| Change::Ended(current.diagnosis)));
        changes
    }

    /// What is wrong now, the oldest first.
    pub fn current(&self) -> Vec<DiagnosisSnapshot> {
        self.current.iter().map(|current| current.diagnosis.clone()).collect()
    }
}

fn found_now(current: &mut Vec<Current>, now_ns: u64, row: &Row, pid: u32, found: Found) -> Option<Change> {
    let Found { subject, summary, evidence } = found;
    let known = current
        .iter_mut()
        .find(|c| c.diagnosis.pid == pid && c.diagnosis.name == row.name && c.diagnosis.subject == subject);
    if let Some(known) = known {
        known.seen_ns = now_ns;
        (known.diagnosis.summary, known.diagnosis.evidence) = (summary, evidence);
        return None;
    }
    let diagnosis =
        DiagnosisSnapshot { name: row.name, severity: row.severity, pid, subject, since_ns: now_ns, summary, evidence };
    current.push(Current { diagnosis: diagnosis.clone(), seen_ns: now_ns });
    Some(Change::Appeared(diagnosis))
}
