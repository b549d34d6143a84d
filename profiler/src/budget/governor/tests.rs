use super::*;

const TICK_NS: u64 = 20_000_000;

/// A target that saturates one core: what the probes take, it cannot use itself.
struct Target {
    governor: Governor,
    reading: Reading,
    wanted: Wanted,
    own_ns: f64,
    cost_ns: f64,
    /// Cores that it saturates.
    rate: f64,
    /// Ticks for which what is to be detached still is attached, and for which it was.
    lag: u64,
    lags: [u64; 2],
}

impl Target {
    fn new(share: f64) -> Target {
        let mut governor = Governor::new(Some(share), 0);
        let wanted = governor.observe(Reading::default());
        Target {
            governor,
            reading: Reading::default(),
            wanted,
            own_ns: 0.0,
            cost_ns: 0.0,
            rate: 1.0,
            lag: 0,
            lags: [0; 2],
        }
    }

    fn is_hit(&mut self, tier: usize) -> bool {
        self.lags[tier] = if self.wanted[tier] { self.lag } else { self.lags[tier].saturating_sub(1) };
        self.wanted[tier] || self.lags[tier] > 0
    }

    /// Runs for a while with costs per own nanosecond of the always-on hooks and of both tiers.
    fn run(&mut self, seconds: f64, always: f64, density: [f64; 2]) {
        for _ in 0..(seconds * 1e9 / TICK_NS as f64) as u64 {
            let attached: [f64; 2] = std::array::from_fn(|t| if self.is_hit(t) { density[t] } else { 0.0 });
            let own = TICK_NS as f64 * self.rate / (1.0 + always + attached[0] + attached[1]);
            self.reading.now_ns += TICK_NS;
            self.reading.cpu_ns += (TICK_NS as f64 * self.rate) as u64;
            self.reading.always_ns += own * always;
            self.reading.tier_ns.iter_mut().zip(attached).for_each(|(total, density)| *total += own * density);
            self.own_ns += own;
            self.cost_ns += own * (always + attached[0] + attached[1]);
            self.wanted = self.governor.observe(self.reading);
        }
    }

    /// The share over the next seconds.
    fn share_over(&mut self, seconds: f64, always: f64, density: [f64; 2]) -> f64 {
        (self.own_ns, self.cost_ns) = (0.0, 0.0);
        self.run(seconds, always, density);
        self.cost_ns / self.own_ns
    }

    fn modes(&self) -> [Mode; 2] {
        Tier::ALL.map(|tier| self.governor.mode(tier))
    }
}

/// Check that what costs little is measured all the time.
#[test]
fn a_light_load_is_measured_all_the_time() {
    let mut target = Target::new(0.02);
    target.run(60.0, 0.002, [0.004, 0.01]);
    assert_eq!(target.modes(), [Mode::Continuous; 2]);
}

/// Check that we leave continuous polls within 200 ms, keep births and ends, and hold the share from then on.
#[test]
fn dear_polls_are_measured_in_windows() {
    for polls in [0.1, 0.5, 2.6, 10.0] {
        let mut target = Target::new(0.02);
        target.run(0.2, 0.001, [0.002, polls]);
        assert!(!target.wanted[1], "polls at {polls} are still attached after 200 ms");
        let share = target.share_over(120.0, 0.001, [0.002, polls]);
        assert!(share <= 0.0205, "polls at {polls} cost {share}");
        assert!(share > 0.01, "polls at {polls} are hardly measured: {share}");
        assert_eq!(target.modes()[0], Mode::Continuous);
        assert_eq!(target.modes()[1], Mode::Windows);
    }
}

/// Check that a target keeps the part of its share that the node's budget leaves it, and says so.
#[test]
fn a_part_of_the_share_holds() {
    let mut target = Target::new(0.02);
    target.run(10.0, 0.001, [0.002, 0.01]);
    assert_eq!(target.modes(), [Mode::Continuous; 2]);
    target.governor.set_factor(0.25);
    target.run(10.0, 0.001, [0.002, 0.01]);
    let share = target.share_over(120.0, 0.001, [0.002, 0.01]);
    assert!(share <= 0.0052, "{share}");
    assert_eq!(target.modes(), [Mode::Continuous, Mode::Windows]);
    assert!(target.governor.why().contains("25 % of its own"), "{}", target.governor.why());
    target.governor.set_factor(1.0);
    target.run(60.0, 0.001, [0.002, 0.01]);
    assert_eq!(target.modes(), [Mode::Continuous; 2]);
}

/// Check that a storm of tasks takes off both, within 200 ms.
#[test]
fn dear_tasks_are_sampled() {
    let mut target = Target::new(0.02);
    target.run(0.2, 0.0, [13.0, 19.0]);
    assert_eq!(target.wanted, [false; 2]);
    let share = target.share_over(300.0, 0.0, [13.0, 19.0]);
    assert!(share <= 0.0205, "{share}");
    assert!(share > 0.005, "{share}");
}

/// Check that the share holds also where detaching takes ten times as long as thought: a busy machine.
#[test]
fn late_detaching_is_paid_for() {
    let mut target = Target::new(0.02);
    target.lag = 10;
    target.run(0.4, 0.0, [13.0, 19.0]);
    let share = target.share_over(600.0, 0.0, [13.0, 19.0]);
    assert!(share <= 0.0205, "{share}");
}

/// Check that no window is opened while windows are to wait, and that they go on afterwards.
#[test]
fn windows_wait() {
    let mut target = Target::new(0.02);
    target.run(5.0, 0.002, [0.004, 1.0]);
    assert_eq!(target.modes(), [Mode::Continuous, Mode::Windows]);
    target.governor.hold_windows(true);
    // One that was open has ended by then.
    target.run(1.0, 0.002, [0.004, 1.0]);
    let before = target.reading.tier_ns[1];
    target.run(60.0, 0.002, [0.004, 1.0]);
    assert!(target.reading.tier_ns[1] <= before);
    target.governor.hold_windows(false);
    assert!(target.share_over(60.0, 0.002, [0.004, 1.0]) > 0.01);
    // One that begins meanwhile is measured all the time afterwards, where that is within the budget.
    let mut target = Target::new(0.02);
    target.governor.begin_without_polls();
    target.run(5.0, 0.002, [0.004, 0.005]);
    assert_eq!((target.modes(), target.wanted), ([Mode::Continuous, Mode::Windows], [true, false]));
    target.governor.hold_windows(false);
    target.run(20.0, 0.002, [0.004, 0.005]);
    assert_eq!(target.modes(), [Mode::Continuous; 2]);
}

/// Check that births and ends of a target that uses next to nothing are seen all the time, at the most that is free, and that
/// its polls keep to the share.
#[test]
fn an_idle_targets_tasks_are_counted() {
    let mut target = Target::new(0.02);
    target.rate = 1e-3;
    target.run(60.0, 0.005, [0.08, 0.5]);
    assert_eq!(target.modes()[0], Mode::Continuous);
    assert_ne!(target.modes()[1], Mode::Continuous);
    let before = target.reading.tier_ns[1] + target.reading.always_ns;
    target.share_over(600.0, 0.005, [0.08, 0.5]);
    let share = (target.reading.tier_ns[1] + target.reading.always_ns - before) / target.own_ns;
    assert!(share <= 0.0205, "polls and what is always on cost {share}");
    // More than what is free is not.
    target.run(60.0, 0.005, [0.5, 0.5]);
    assert_ne!(target.modes()[0], Mode::Continuous);
    // And it comes back.
    target.run(120.0, 0.005, [0.03, 0.01]);
    assert_eq!(target.modes()[0], Mode::Continuous);
}

/// Check that births and ends stay while the hooks that are always attached cost the whole budget, and tasks nothing.
#[test]
fn what_costs_nothing_stays() {
    let mut target = Target::new(0.02);
    target.run(60.0, 0.03, [0.0005, 0.3]);
    assert_eq!(target.modes(), [Mode::Continuous, Mode::Off]);
    assert_eq!(target.wanted, [true, false]);
}

/// Check that we come back once the load is gone, and only then.
#[test]
fn calm_loads_are_measured_all_the_time_again() {
    let mut target = Target::new(0.02);
    target.run(30.0, 0.001, [13.0, 19.0]);
    assert_ne!(target.modes(), [Mode::Continuous; 2]);
    target.run(60.0, 0.001, [0.003, 0.006]);
    assert_eq!(target.modes(), [Mode::Continuous; 2]);
    // Just below the budget, but not comfortably: no flapping.
    let mut changes = 0;
    target.run(10.0, 0.001, [0.003, 2.0]);
    for _ in 0..60 {
        let before = target.modes();
        target.run(1.0, 0.001, [0.003, 0.015]);
        changes += usize::from(target.modes() != before);
    }
    assert!(changes <= 1, "{changes} changes");
}

/// Check that no budget switches nothing, and still tells the share.
#[test]
fn no_budget_switches_nothing() {
    let mut target = Target::new(0.02);
    target.governor = Governor::new(None, 0);
    target.run(20.0, 0.1, [13.0, 19.0]);
    assert_eq!(target.wanted, [true; 2]);
    assert!((target.governor.cost_share().expect("it was used") - 32.1).abs() < 0.5);
}

proptest::proptest! {
    /// Check that whatever the load does, no window is open for longer than one may be.
    #[test]
    fn windows_end(phases in proptest::collection::vec((0.01..3.0, 0.0..0.05, 0.0..2.0, 0.0..20.0), 1..20)) {
        let mut target = Target::new(0.02);
        let mut open = [0_u64; 2];
        for (seconds, always, births, polls) in phases {
            for _ in 0..(seconds * 1e9 / TICK_NS as f64) as u64 {
                target.run(TICK_NS as f64 / 1e9, always, [births, polls]);
                for (tier, open) in Tier::ALL.into_iter().zip(&mut open) {
                    let window = target.governor.mode(tier) != Mode::Continuous && target.wanted[tier as usize];
                    *open = if window { *open + TICK_NS } else { 0 };
                    proptest::prop_assert!(*open <= WINDOW_NS.end() + TICK_NS, "{} for {open} ns", tier.label());
                }
            }
        }
    }
}
