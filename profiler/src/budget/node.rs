//! What probing may cost all targets of a node together: where they cost more, each may cost less. Pure: time is an argument.

use super::Budget;

/// How often it is looked, nanoseconds.
const EVERY_NS: u64 = 1_000_000_000;
/// Over this time the cost is averaged: a burst of one target is its own account's matter.
const AVERAGED_NS: f64 = 5e9;
/// The most that one look takes from what each target may cost, and the most that it gives back.
const DOWN: f64 = 0.5;
const UP: f64 = 1.1;
/// Below this share of the budget it is given back.
const COMFORTABLE: f64 = 0.7;
/// The least that is left to each: below, nothing is probed anyway.
const LEAST: f64 = 0.01;

/// The account of a node.
#[derive(Clone, Debug)]
pub struct NodeAccount {
    budget: Budget,
    /// CPU time that the node has in a nanosecond: the number of its CPUs.
    cpus: f64,
    spent_ns: f64,
    looked_ns: u64,
    /// What it costs, as a share of the node's CPU time, of late.
    cost_share: f64,
    factor: f64,
}

impl NodeAccount {
    /// An account of a node with so many CPUs that begins now.
    pub fn new(budget: Budget, cpus: usize, now_ns: u64) -> NodeAccount {
        let cpus = cpus.max(1) as f64;
        NodeAccount { budget, cpus, spent_ns: 0.0, looked_ns: now_ns, cost_share: 0.0, factor: 1.0 }
    }

    /// Some target was made to spend CPU time, nanoseconds.
    pub fn spend(&mut self, ns: f64) {
        self.spent_ns += ns;
    }

    /// Looks at the account, where it is time for it. Returns which part of its own budget each target has from now on, where
    /// that has changed.
    pub fn observe(&mut self, now_ns: u64) -> Option<f64> {
        let elapsed = now_ns.saturating_sub(self.looked_ns);
        if elapsed < EVERY_NS {
            return None;
        }
        self.looked_ns = now_ns;
        let share = std::mem::take(&mut self.spent_ns) / (elapsed as f64 * self.cpus);
        self.cost_share += (share - self.cost_share) * (elapsed as f64 / AVERAGED_NS).min(1.0);
        let limit = self.budget.share()?;
        let before = self.factor;
        // What it costs now is believed where it is less: the average would go on to take.
        let cost = self.cost_share.min(share);
        if cost > limit {
            self.factor = (self.factor * (limit / cost).max(DOWN)).max(LEAST);
        } else if self.cost_share < limit * COMFORTABLE {
            self.factor = (self.factor * UP).min(1.0);
        }
        (self.factor != before).then_some(self.factor)
    }

    /// The budget.
    pub fn budget(&self) -> Budget {
        self.budget
    }

    /// What probing costs all targets, as a share of the node's CPU time, of late.
    pub fn cost_share(&self) -> f64 {
        self.cost_share
    }

    /// Which part of its own budget each target has.
    pub fn factor(&self) -> f64 {
        self.factor
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    /// Lets targets spend what they would with their own budgets, `wanted` of the node's CPU time, times what they may;
    /// returns the mean of the last minute and the factor.
    fn run(account: &mut NodeAccount, seconds: std::ops::Range<u64>, wanted: f64) -> (f64, f64) {
        let mut last = 0.0;
        let from = seconds.end - 60;
        for second in seconds {
            let spent = wanted * account.factor() * 2.0;
            account.spend(spent * SECOND as f64);
            last += if second >= from { spent / 2.0 } else { 0.0 };
            account.observe((second + 1) * SECOND);
        }
        (last / 60.0, account.factor())
    }

    /// Check that targets keep their own budgets while the node's is enough, that they share it when it is not, and that they
    /// have their own again afterwards.
    #[test]
    fn all_together_keep_the_budget() {
        let mut account = NodeAccount::new(Budget::Share(0.01), 2, 0);
        let (mean, factor) = run(&mut account, 0..120, 0.005);
        assert!((mean - 0.005).abs() < 1e-9 && factor == 1.0, "{mean} {factor}");
        let (mean, factor) = run(&mut account, 120..360, 0.08);
        assert!((0.006..=0.0101).contains(&mean), "{mean} {factor}");
        let (mean, factor) = run(&mut account, 360..600, 0.005);
        assert!((mean - 0.005).abs() < 1e-9 && factor == 1.0, "{mean} {factor}");
    }

    /// Check that a budget that is off takes nothing, and still tells what it costs.
    #[test]
    fn off_takes_nothing() {
        let mut account = NodeAccount::new(Budget::Off, 2, 0);
        let (mean, factor) = run(&mut account, 0..120, 0.3);
        assert!((mean - 0.3).abs() < 1e-9 && factor == 1.0 && (account.cost_share() - 0.3).abs() < 1e-3);
    }
}
