//! What probing has cost a target, and the account that decides what stays attached. Never attaches.

use std::collections::HashMap;

use profiler_common::map::{Cost, PROBES, PollPolicy, Probe};

use crate::budget::Budget;
use crate::budget::governor::{Governor, Mode, Reading, Tier, Wanted};
use crate::budget::price::{Prices, Traps};
use crate::clock;
use crate::model::snapshot::{BudgetSnapshot, ProbeCost, TierSnapshot};
use crate::runtime::{Hook, Lineage, Plan};

/// Probes of the kernel's own hooks, which are always attached.
const ALWAYS: [Probe; 5] = [Probe::Switch, Probe::Wakeup, Probe::Accept, Probe::Sample, Probe::Socket];
/// Traps that make a mean.
const ENOUGH_TRAPS: f64 = 64.0;
/// CPU time over which it is averaged how much a target does between two traps, nanoseconds.
const APART_OVER_NS: f64 = 500e6;
/// Over this time coverage is averaged, nanoseconds.
const COVERAGE_NS: f64 = 10e9;

/// The account of one target.
pub(super) struct Spending {
    budget: Budget,
    prices: Prices,
    traps: Traps,
    governor: Governor,
    /// Probes by tier: where parents are found by polls, these are births'.
    tiers: [Vec<Probe>; 2],
    /// Whether polls are seen by the probes of births.
    polls_with_births: bool,
    last: Cost,
    spent_ns: [f64; PROBES],
    /// What of it was not yet told to the node's account.
    untold_ns: f64,
    /// CPU time that it used for itself while traps were attached, and how many it hit, of late.
    apart: (f64, f64),
    /// CPU time of its processes when they were last seen.
    cpu: HashMap<u32, u64>,
    cpu_ns: u64,
    observed_ns: u64,
    /// Time for which each tier was attached, and the share of late.
    covered_ns: [u64; 2],
    coverage: [f64; 2],
}

impl Spending {
    /// An account that begins now, when `before` was hit already.
    pub fn new(budget: Budget, traps: Traps, plan: Option<&Plan>, before: Cost) -> Spending {
        let now_ns = clock::monotonic_ns();
        let stepped: Vec<Probe> = plan
            .into_iter()
            .flat_map(|plan| plan.probes.iter().filter(|probe| !probe.emulated).map(|probe| probe_of(probe.hook)))
            .collect();
        let mut tiers = [
            vec![Probe::Spawn, Probe::Complete, Probe::Transfer, Probe::Pause, Probe::Deferred],
            vec![Probe::Wake, Probe::Wait, Probe::Lock],
        ];
        let lineage = plan.map(|plan| plan.lineage);
        let polls_with_births = matches!(lineage, Some(Lineage::PollStack | Lineage::Transfer));
        let polls = if polls_with_births { Tier::Lifecycle } else { Tier::Polls };
        tiers[polls as usize].extend([Probe::PollStart, Probe::PollEnd]);
        Spending {
            budget,
            prices: Prices::new(traps, &stepped),
            traps,
            governor: Governor::new(budget.share(), now_ns),
            tiers,
            polls_with_births,
            last: before,
            spent_ns: [0.0; PROBES],
            untold_ns: 0.0,
            apart: (0.0, 0.0),
            cpu: HashMap::new(),
            cpu_ns: 0,
            observed_ns: now_ns,
            covered_ns: [0; 2],
            coverage: [1.0; 2],
        }
    }

    /// Looks at what was spent, and says what is to be attached. `open` is what was until now.
    pub fn observe(&mut self, cost: Cost, pids: impl Iterator<Item = u32>, open: [bool; 2], now_ns: u64) -> Wanted {
        let cpu_before_ns = self.cpu_ns;
        for pid in pids {
            // A process that has ended keeps what it had used when it was last seen.
            let Some(now) = clock::process_cpu_ns(pid) else { continue };
            let before = self.cpu.insert(pid, now);
            self.cpu_ns += before.map_or(0, |before| now.saturating_sub(before));
        }
        let mut spent_ns = 0.0;
        for probe in Probe::ALL {
            let hits = cost.hits[probe as usize].saturating_sub(self.last.hits[probe as usize]);
            let spent = hits as f64 * self.prices.hit_ns(probe, &cost);
            self.spent_ns[probe as usize] += spent;
            spent_ns += spent;
        }
        self.untold_ns += spent_ns;
        if open.contains(&true) {
            let traps = cost.traps.saturating_sub(self.last.traps);
            self.learn_apart((self.cpu_ns - cpu_before_ns) as f64 - spent_ns, traps as f64);
        }
        self.last = cost;
        let elapsed = now_ns.saturating_sub(self.observed_ns);
        self.observed_ns = now_ns;
        let weight = (elapsed as f64 / COVERAGE_NS).min(1.0);
        for (tier, open) in self.seen(open).into_iter().enumerate() {
            self.covered_ns[tier] += if open { elapsed } else { 0 };
            self.coverage[tier] += (f64::from(u8::from(open)) - self.coverage[tier]) * weight;
        }
        let of = |probes: &[Probe]| probes.iter().map(|&probe| self.spent_ns[probe as usize]).sum::<f64>();
        self.governor.observe(Reading {
            now_ns,
            cpu_ns: self.cpu_ns,
            always_ns: of(&ALWAYS),
            tier_ns: [of(&self.tiers[0]), of(&self.tiers[1])],
        })
    }

    /// How much the target does between two traps: `own_ns` is what it used for itself while it hit `traps` of them.
    fn learn_apart(&mut self, own_ns: f64, traps: f64) {
        if self.apart.0 > APART_OVER_NS {
            self.apart = (self.apart.0 / 2.0, self.apart.1 / 2.0);
        }
        self.apart.0 += own_ns.max(0.0);
        self.apart.1 += traps;
        if self.apart.1 >= ENOUGH_TRAPS {
            self.prices.set_apart(self.apart.0 / self.apart.1);
        }
    }

    /// What was spent since this was asked last, nanoseconds of the target's CPU time.
    pub fn take_spent_ns(&mut self) -> f64 {
        std::mem::take(&mut self.untold_ns)
    }

    /// From now on the target has this part of its budget.
    pub fn set_factor(&mut self, factor: f64) {
        self.governor.set_factor(factor);
    }

    /// Where windows are to wait, it begins without polls.
    pub fn begin_without_polls(&mut self) {
        self.governor.begin_without_polls();
    }

    /// Whether windows are to wait.
    pub fn hold_windows(&mut self, held: bool) {
        self.governor.hold_windows(held);
    }

    /// Which tiers are seen while these are attached.
    pub fn seen(&self, [births, polls]: [bool; 2]) -> [bool; 2] {
        [births, polls && (births || !self.polls_with_births)]
    }

    /// How a tier is measured.
    pub fn mode(&self, tier: Tier) -> Mode {
        let births = self.governor.mode(Tier::Lifecycle);
        match tier {
            Tier::Polls if self.polls_with_births && births != Mode::Continuous => births,
            tier => self.governor.mode(tier),
        }
    }

    /// Why it is measured so.
    pub fn why(&self) -> &str {
        self.governor.why()
    }

    /// How polls are measured in the next window.
    pub fn policy(&self, window: u32, slow_ns: u64) -> PollPolicy {
        let hit = |probe| self.prices.takes_ns(probe, &self.last) as u32;
        PollPolicy {
            window,
            added_ns: self.traps.poll_added_ns as u32,
            hit_ns: [Probe::Spawn, Probe::Complete, Probe::PollStart, Probe::PollEnd, Probe::Wake].map(hit),
            between_ns: hit(Probe::Transfer),
            slow_ns,
        }
    }

    /// What is exported of it.
    pub fn snapshot(&self) -> BudgetSnapshot {
        let probe = |probe: Probe| ProbeCost {
            probe: probe.label(),
            hits: self.last.hits[probe as usize],
            cost_ns: self.spent_ns[probe as usize],
            hit_ns: self.prices.hit_ns(probe, &self.last),
        };
        let tier = |tier: Tier| TierSnapshot {
            tier: tier.label(),
            mode: self.mode(tier).label(),
            coverage: self.coverage[tier as usize],
            covered_ns: self.covered_ns[tier as usize],
        };
        BudgetSnapshot {
            budget: self.budget.to_string(),
            share: self.budget.share(),
            cost_share: self.governor.cost_share(),
            probes: Probe::ALL.map(probe).to_vec(),
            tiers: Tier::ALL.map(tier).to_vec(),
            poll_added_ns: self.traps.poll_added_ns,
            why: self.why().to_owned(),
        }
    }
}

const fn probe_of(hook: Hook) -> Probe {
    match hook {
        Hook::Spawn => Probe::Spawn,
        Hook::Complete => Probe::Complete,
        Hook::PollStart => Probe::PollStart,
        Hook::PollEnd => Probe::PollEnd,
        Hook::WakeByValue | Hook::WakeByRef => Probe::Wake,
        Hook::Transfer => Probe::Transfer,
        Hook::Pause => Probe::Pause,
        Hook::Wait => Probe::Wait,
        Hook::Lock => Probe::Lock,
        Hook::Deferred => Probe::Deferred,
    }
}
