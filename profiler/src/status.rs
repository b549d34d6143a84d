//! What is attached, unsupported or broken on each target, and why. Never how it was attached.

use serde::Serialize;

/// The state of one probe or signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ProbeState {
    /// It is attached and measures.
    Attached,
    /// It measures in windows, or not at all for now: that is what the budget permits.
    Sampled,
    /// This kernel or this build of the target does not permit it.
    Unsupported,
    /// It should work, and failed.
    Broken,
    /// It does not concern this target.
    NotApplicable,
    /// It was attached, and the target has ended.
    Detached,
}

impl ProbeState {
    /// All states.
    pub const ALL: [ProbeState; 6] = [
        ProbeState::Attached,
        ProbeState::Sampled,
        ProbeState::Unsupported,
        ProbeState::Broken,
        ProbeState::NotApplicable,
        ProbeState::Detached,
    ];

    /// Whether something is measured, or was while the target ran.
    pub const fn is_measured(self) -> bool {
        matches!(self, ProbeState::Attached | ProbeState::Sampled | ProbeState::Detached)
    }

    /// The value of the `state` label.
    pub const fn label(self) -> &'static str {
        match self {
            ProbeState::Attached => "attached",
            ProbeState::Sampled => "sampled",
            ProbeState::Unsupported => "unsupported",
            ProbeState::Broken => "broken",
            ProbeState::NotApplicable => "not_applicable",
            ProbeState::Detached => "detached",
        }
    }
}

/// One row of a target's status.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ProbeRow {
    /// The probe or signal: `run_queue`, `accept_queue`, `accept_wait`, `task_spawn`, …
    pub probe: String,
    /// Its state.
    pub state: ProbeState,
    /// How it is measured when it is; else why it is not, and the remedy.
    pub detail: String,
}

/// All rows of one target.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TargetStatus {
    /// The rows, in the order in which they were set up.
    pub probes: Vec<ProbeRow>,
}

impl TargetStatus {
    /// Sets the row of `probe`, replacing an earlier one.
    pub fn set(&mut self, probe: impl Into<String>, state: ProbeState, detail: impl Into<String>) {
        let row = ProbeRow { probe: probe.into(), state, detail: detail.into() };
        match self.probes.iter_mut().find(|r| r.probe == row.probe) {
            Some(existing) => *existing = row,
            None => self.probes.push(row),
        }
    }

    /// What was found to work is measured otherwise from now on; what never worked stays as it is.
    pub fn restate(&mut self, probe: &str, state: ProbeState, detail: &str) {
        let works = |row: &&mut ProbeRow| [ProbeState::Attached, ProbeState::Sampled].contains(&row.state);
        if let Some(row) = self.probes.iter_mut().filter(works).find(|row| row.probe == probe) {
            (row.state, row.detail) = (state, detail.to_owned());
        }
    }

    /// The row of `probe`; `None` where there is none.
    pub fn row(&self, probe: &str) -> Option<&ProbeRow> {
        self.probes.iter().find(|row| row.probe == probe)
    }

    /// Whether something is measured, or was while the target ran; `None` where there is no such row.
    pub fn is_measured(&self, probe: &str) -> Option<bool> {
        Some(self.row(probe)?.state.is_measured())
    }

    /// Whether it is attached now, and measured all the time.
    pub fn is_attached(&self, probe: &str) -> bool {
        self.row(probe).is_some_and(|row| row.state == ProbeState::Attached)
    }

    /// The target has ended: whatever was attached no longer is.
    pub fn ended(&mut self) {
        for row in &mut self.probes {
            if [ProbeState::Attached, ProbeState::Sampled].contains(&row.state) {
                row.state = ProbeState::Detached;
            }
        }
    }
}
