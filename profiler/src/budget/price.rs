//! What one hit of a probe costs the target: the trap as it was calibrated on this host, and the program as it is timed
//! on the target. Never how many hits there are.

use profiler_common::map::{Cost, PROBES, Probe};

/// What a trap takes, nanoseconds: more when its thread has done something else since the last one, which took its code
/// and data out of the caches, and which finds its own taken out in turn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Trap {
    /// One right after another.
    pub warm_ns: f64,
    /// With [`COLD_NS`] and more of other work in between.
    pub cold_ns: f64,
}

/// Other work after which the caches hold little of a trap, nanoseconds.
pub const COLD_NS: f64 = 3000.0;
/// What a program with twice as much work between traps loses after one besides: what the caches and the branch predictors held for
/// it is no more there, which a loop that does nothing but trap does not show. Measured on an interpreter (Ruby's fibers, 5.4 µs
/// between traps): a hit cost it 1.23 µs of its CPU time, of which 0.87 were seen; nanoseconds. With less work between them the
/// trap and the program are all of it.
pub const AFTER_NS: f64 = 300.0;

/// How cold a trap is with so much other work before it: 0 to 1.
fn cold_share(apart_ns: f64) -> f64 {
    (apart_ns / COLD_NS).clamp(0.0, 1.0)
}

impl Trap {
    /// What one takes when there are `apart_ns` of other work between two.
    pub fn ns(self, apart_ns: f64) -> f64 {
        self.warm_ns + (self.cold_ns - self.warm_ns) * cold_share(apart_ns)
    }
}

/// What a hit costs outside of the program that it runs, nanoseconds. Measured on this host at start.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Traps {
    /// A uprobe on an instruction that the kernel emulates.
    pub emulated: Trap,
    /// A uprobe on an instruction that it single-steps.
    pub stepped: Trap,
    /// A BTF tracepoint's trampoline.
    pub tracepoint_ns: f64,
    /// A tick of the CPU clock: an interrupt, which a virtual machine leaves and enters several times.
    pub interrupt_ns: f64,
    /// Whether an accept traps in the target: not where the kernel's own function tells of it.
    pub accept_traps: bool,
    /// What the probes at both ends of a poll add to its measured duration.
    pub poll_added_ns: f64,
}

/// What a program takes until it was timed, nanoseconds: what was measured elsewhere.
const UNTIMED_NS: f64 = 300.0;
/// Runs that make a mean.
const ENOUGH: u64 = 16;

/// The prices of one target's probes.
#[derive(Clone, Copy, Debug)]
pub struct Prices {
    traps: Traps,
    /// Whether a site of the probe is single-stepped: the dearest decides.
    stepped: [bool; PROBES],
    /// How much the target does between two traps, nanoseconds.
    apart_ns: f64,
}

impl Prices {
    /// Prices where all sites are emulated, but those of the probes in `stepped`.
    pub fn new(traps: Traps, stepped: &[Probe]) -> Prices {
        let mut prices = Prices { traps, stepped: [false; PROBES], apart_ns: 2.0 * COLD_NS };
        stepped.iter().for_each(|&probe| prices.stepped[probe as usize] = true);
        prices
    }

    /// How much the target does between two traps, nanoseconds of CPU time. Until it is known, much.
    pub fn set_apart(&mut self, apart_ns: f64) {
        self.apart_ns = apart_ns;
    }

    /// What a hit costs the target, nanoseconds of CPU time: with what the target's own work takes longer after it.
    pub fn hit_ns(&self, probe: Probe, cost: &Cost) -> f64 {
        let traps = match probe {
            Probe::Switch | Probe::Wakeup | Probe::Socket | Probe::Sample => false,
            Probe::Accept => self.traps.accept_traps,
            _ => true,
        };
        self.takes_ns(probe, cost) + if traps { AFTER_NS * cold_share(self.apart_ns - COLD_NS) } else { 0.0 }
    }

    /// How long a hit takes, nanoseconds.
    pub fn takes_ns(&self, probe: Probe, cost: &Cost) -> f64 {
        let at = probe as usize;
        let trap = match probe {
            Probe::Switch | Probe::Wakeup | Probe::Socket => self.traps.tracepoint_ns,
            Probe::Accept if !self.traps.accept_traps => self.traps.tracepoint_ns,
            Probe::Sample => self.traps.interrupt_ns,
            _ if self.stepped[at] => self.traps.stepped.ns(self.apart_ns),
            _ => self.traps.emulated.ns(self.apart_ns),
        };
        let program =
            if cost.timed[at] >= ENOUGH { cost.timed_ns[at] as f64 / cost.timed[at] as f64 } else { UNTIMED_NS };
        trap + program
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRAPS: Traps = Traps {
        emulated: Trap { warm_ns: 600.0, cold_ns: 1200.0 },
        stepped: Trap { warm_ns: 9000.0, cold_ns: 9600.0 },
        tracepoint_ns: 20.0,
        interrupt_ns: 40_000.0,
        accept_traps: true,
        poll_added_ns: 900.0,
    };

    /// Check that we take the program's mean once there is one, and the dearest kind of site.
    #[test]
    fn a_hit_costs_its_trap_and_its_program() {
        let mut prices = Prices::new(TRAPS, &[Probe::Wake]);
        prices.set_apart(0.0);
        let mut cost = Cost::default();
        cost.hits[Probe::Spawn as usize] = 1000;
        assert_eq!(prices.hit_ns(Probe::Spawn, &cost), 900.0);
        cost.timed[Probe::Spawn as usize] = 20;
        cost.timed_ns[Probe::Spawn as usize] = 20 * 500;
        assert_eq!(prices.hit_ns(Probe::Spawn, &cost), 1100.0);
        assert_eq!(prices.hit_ns(Probe::Wake, &cost), 9300.0);
        assert_eq!(prices.hit_ns(Probe::Switch, &cost), 320.0);
        assert_eq!(prices.hit_ns(Probe::Sample, &cost), 40_300.0);
        assert_eq!(prices.hit_ns(Probe::Accept, &cost), 900.0);
        let by_function = Prices::new(Traps { accept_traps: false, ..TRAPS }, &[]);
        assert_eq!(by_function.hit_ns(Probe::Accept, &cost), 320.0);
    }

    /// Check that a trap is dearer the more its target does besides, up to a limit, and that a tracepoint is not.
    #[test]
    fn rare_traps_are_cold() {
        let cost = Cost::default();
        let mut prices = Prices::new(TRAPS, &[]);
        assert_eq!(prices.hit_ns(Probe::Spawn, &cost), 1500.0 + AFTER_NS, "until it is known");
        for (apart_ns, hit_ns) in [
            (-1.0, 900.0),
            (0.0, 900.0),
            (COLD_NS / 2.0, 1200.0),
            (COLD_NS * 1.5, 1500.0 + AFTER_NS / 2.0),
            (COLD_NS * 9.0, 1500.0 + AFTER_NS),
        ] {
            prices.set_apart(apart_ns);
            assert_eq!(prices.hit_ns(Probe::Spawn, &cost), hit_ns, "{apart_ns} ns apart");
        }
        assert_eq!(prices.hit_ns(Probe::Switch, &cost), 320.0);
    }
}
