//! What one hit of a probe costs the target: the trap as it was calibrated on this host, and the program as it is timed
//! on the target. Never how many hits there are.

use profiler_common::map::{Cost, PROBES, Probe};

/// What a hit costs outside of the program that it runs, nanoseconds. Measured on this host at start.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Traps {
    /// A uprobe on an instruction that the kernel emulates.
    pub emulated_ns: f64,
    /// A uprobe on an instruction that it single-steps.
    pub stepped_ns: f64,
    /// A BTF tracepoint's trampoline.
    pub tracepoint_ns: f64,
    /// What the probes at both ends of a poll add to its measured duration.
    pub poll_added_ns: f64,
}

/// What a program takes until it was timed, nanoseconds: what was measured elsewhere.
const UNTIMED_NS: f64 = 300.0;
/// A timer's interrupt, in and out: too rare to be worth a calibration.
const INTERRUPT_NS: f64 = 1500.0;
/// Runs that make a mean.
const ENOUGH: u64 = 16;

/// The prices of one target's probes.
#[derive(Clone, Copy, Debug)]
pub struct Prices {
    traps: Traps,
    /// Whether a site of the probe is single-stepped: the dearest decides.
    stepped: [bool; PROBES],
}

impl Prices {
    /// Prices where all sites are emulated, but those of the probes in `stepped`.
    pub fn new(traps: Traps, stepped: &[Probe]) -> Prices {
        let mut prices = Prices { traps, stepped: [false; PROBES] };
        stepped.iter().for_each(|&probe| prices.stepped[probe as usize] = true);
        prices
    }

    /// What a hit costs, nanoseconds.
    pub fn hit_ns(&self, probe: Probe, cost: &Cost) -> f64 {
        let at = probe as usize;
        let trap = match probe {
            Probe::Switch | Probe::Wakeup => self.traps.tracepoint_ns,
            Probe::Sample => INTERRUPT_NS,
            _ if self.stepped[at] => self.traps.stepped_ns,
            _ => self.traps.emulated_ns,
        };
        let program =
            if cost.timed[at] >= ENOUGH { cost.timed_ns[at] as f64 / cost.timed[at] as f64 } else { UNTIMED_NS };
        trap + program
    }

    /// What all hits so far have cost, by probe, nanoseconds.
    pub fn total_ns(&self, cost: &Cost) -> [f64; PROBES] {
        Probe::ALL.map(|probe| cost.hits[probe as usize] as f64 * self.hit_ns(probe, cost))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRAPS: Traps = Traps { emulated_ns: 600.0, stepped_ns: 9000.0, tracepoint_ns: 20.0, poll_added_ns: 900.0 };

    /// Check that we take the program's mean once there is one, and the dearest kind of site.
    #[test]
    fn a_hit_costs_its_trap_and_its_program() {
        let prices = Prices::new(TRAPS, &[Probe::Wake]);
        let mut cost = Cost::default();
        cost.hits[Probe::Spawn as usize] = 1000;
        assert_eq!(prices.hit_ns(Probe::Spawn, &cost), 900.0);
        cost.timed[Probe::Spawn as usize] = 20;
        cost.timed_ns[Probe::Spawn as usize] = 20 * 500;
        assert_eq!(prices.hit_ns(Probe::Spawn, &cost), 1100.0);
        assert_eq!(prices.total_ns(&cost)[Probe::Spawn as usize], 1_100_000.0);
        assert_eq!(prices.hit_ns(Probe::Wake, &cost), 9300.0);
        assert_eq!(prices.hit_ns(Probe::Switch, &cost), 320.0);
    }
}
