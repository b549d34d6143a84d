//! What probing costs a watched process, and what is attached or detached for it. Never how the account decides.

use super::{Runtime, Spending, Watched, extension};
use crate::budget::governor::{Mode, Tier};
use crate::kernel::attach::Links;
use crate::kernel::load::Kernel;
use crate::model::table::Table;
use crate::status::ProbeState;

/// How often it is looked at what probing costs a target: less often while nothing is measured in windows, which would have
/// to be closed in time. A storm of hits waits for neither.
const BALANCE_NS: u64 = 40_000_000;
const CALM_BALANCE_NS: u64 = 200_000_000;
/// Rows of the status that the budget switches, by tier.
const LIFECYCLE: &[&str] = &["task_spawn", "task_complete", "task_parent", "task_outcome", "gc_pause", extension::ROW];
const POLLS: &[&str] = &["task_polls", "task_wakes", "task_wait", "lock_wait"];

impl Watched {
    /// What probing has cost it since this was asked last, nanoseconds of its CPU time.
    pub fn take_spent_ns(&mut self) -> f64 {
        self.spending.as_mut().map_or(0.0, Spending::take_spent_ns)
    }

    /// From now on it has this part of its budget.
    pub fn set_factor(&mut self, factor: f64) {
        if let Some(spending) = &mut self.spending {
            spending.set_factor(factor);
        }
    }

    /// Whether windows are to wait.
    pub fn hold_windows(&mut self, held: bool) {
        if let Some(spending) = &mut self.spending {
            spending.hold_windows(held);
        }
    }

    /// Whether it is time to look at what probing costs.
    pub fn wants_balance(&self, now_ns: u64) -> bool {
        let every_ns = if self.has_windows() { BALANCE_NS } else { CALM_BALANCE_NS };
        now_ns.saturating_sub(self.balanced_ns) >= every_ns
    }

    /// Looks at what probing costs, and attaches or detaches what follows. Returns what is to be detached.
    pub fn balance(&mut self, kernel: &mut Kernel, table: &mut Table, now_ns: u64) -> Links {
        self.balanced_ns = now_ns;
        let Some(spending) = &mut self.spending else { return Links::default() };
        let cost = match kernel.cost(self.slot) {
            Ok(cost) => cost,
            Err(e) => {
                log::warn!("{e}");
                return Links::default();
            }
        };
        let open = self.runtime.as_ref().map_or([false; 2], Runtime::open_tiers);
        let wanted = spending.observe(cost, self.members.iter().copied(), open, now_ns);
        let Some(runtime) = self.runtime.as_mut().filter(|runtime| runtime.differs(spending, wanted)) else {
            return Links::default();
        };
        if let Some(walker) = &mut self.walker
            && runtime.begins(spending, Tier::Lifecycle)
        {
            // Whoever was born while births were not seen is there to be found.
            walker.search_again();
        }
        if runtime.ends_window(spending, wanted) {
            runtime.count_outlasting(kernel, self.threads.ids(&self.members, now_ns), now_ns);
        }
        let changed = runtime.apply(kernel, table, spending, wanted, now_ns);
        for (tier, rows) in [(Tier::Lifecycle, LIFECYCLE), (Tier::Polls, POLLS)] {
            let (state, detail) = measured(spending, tier);
            rows.iter().for_each(|row| self.status.restate(row, state, &detail));
        }
        changed.unwrap_or_else(|e| {
            log::warn!("process {}: {e}", self.process.pid);
            Links::default()
        })
    }

    /// Whether something is measured in windows.
    pub fn has_windows(&self) -> bool {
        let in_windows = |spending: &Spending| Tier::ALL.iter().any(|&tier| spending.mode(tier) == Mode::Windows);
        self.spending.as_ref().is_some_and(in_windows)
    }
}

/// How a tier is measured: a row of the status.
pub(super) fn measured(spending: &Spending, tier: Tier) -> (ProbeState, String) {
    match spending.mode(tier) {
        Mode::Continuous => (ProbeState::Attached, "all the time".to_owned()),
        mode => (ProbeState::Sampled, format!("{}: {}", mode.label(), spending.why())),
    }
}
