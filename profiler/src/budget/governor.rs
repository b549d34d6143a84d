//! Decides which tiers of probes are attached, so that what they cost stays within the budget. Never attaches.
//!
//! An account per target: the CPU time that it uses earns credit, hits spend it. What is attached runs until the credit
//! is used up; then polls are measured in windows, each opened when enough was earned for it. So the share holds over
//! any longer time, whatever the load does, and the overshoot of a burst is at most the grant and what is hit before
//! somebody looks.

/// What a target may overdraw, and has to begin with, nanoseconds of CPU time.
pub const GRANT_NS: f64 = 10e6;
/// What births and ends may cost whatever the target uses: a tenth of a millisecond a second, and ten seconds of that at
/// once. Of a target that uses next to nothing a share is nothing, and its tasks would not be counted.
const FREE: f64 = 1e-4;
const MOST_FREE_NS: f64 = FREE * 10e9;
/// How deep debts are remembered. What was overspent is saved again, but no account is closed for ever.
const MAX_DEBT_NS: f64 = 2e9;
/// What costs less than this share of the budget stays attached: taking it off would win nothing.
const NEGLIGIBLE: f64 = 0.1;
/// What would cost less than this share of the budget is attached for good again.
const COMFORTABLE: f64 = 0.7;
/// Observations in a row that must find that.
const PATIENCE: u32 = 3;
/// Shortest time between two changes to continuous, nanoseconds.
const CALM_NS: u64 = 5_000_000_000;
/// Shortest and longest window, nanoseconds.
const WINDOW_NS: std::ops::RangeInclusive<u64> = 20_000_000..=500_000_000;
/// How long attaching and detaching take together, when hits cost already and are of no use, nanoseconds.
const EDGES_NS: f64 = 30e6;
/// Windows that are further apart are none.
const MAX_GAP_NS: f64 = 60e9;
/// So many times the budget over the averaging time is no burst, once that much time has passed, nanoseconds.
const LASTING: f64 = 1.5;
const LASTING_NS: f64 = 1e9;
/// Births and ends for which no window can be paid are tried again after so long, with what is free, nanoseconds.
const RETRY_NS: u64 = 60_000_000_000;
/// CPU time after which it is known what hooks cost that are always on, nanoseconds.
const KNOWN_NS: f64 = 100e6;
/// CPU time between two observations of which one tells much, nanoseconds.
const TELLING_NS: f64 = 1e6;
/// Over this time shares are averaged for people, nanoseconds.
const AVERAGED_NS: f64 = 10e9;

/// What can be switched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Tier {
    /// Births and ends of tasks.
    Lifecycle,
    /// Polls and wakes.
    Polls,
}

impl Tier {
    /// Both.
    pub const ALL: [Tier; 2] = [Tier::Lifecycle, Tier::Polls];

    /// Its name in a status.
    pub const fn label(self) -> &'static str {
        match self {
            Tier::Lifecycle => "lifecycle",
            Tier::Polls => "polls",
        }
    }
}

/// How a tier is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// All the time.
    Continuous,
    /// In windows that the budget pays for.
    Windows,
    /// Not at all: a window would cost more than is earned in a minute.
    Off,
}

impl Mode {
    /// Its name in a status.
    pub const fn label(self) -> &'static str {
        match self {
            Mode::Continuous => "continuous",
            Mode::Windows => "windows",
            Mode::Off => "off",
        }
    }
}

/// What was observed of a target: totals since it is watched.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reading {
    /// CLOCK_MONOTONIC, nanoseconds.
    pub now_ns: u64,
    /// CPU time that the target has used, nanoseconds.
    pub cpu_ns: u64,
    /// What hooks that are always attached have cost, nanoseconds.
    pub always_ns: f64,
    /// What the tiers have cost, in the order of [`Tier::ALL`], nanoseconds.
    pub tier_ns: [f64; 2],
}

/// Which tiers are to be attached now, in the order of [`Tier::ALL`].
pub type Wanted = [bool; 2];

/// One tier's state.
#[derive(Clone, Copy, Debug)]
struct State {
    mode: Mode,
    attached: bool,
    /// Cost per nanosecond that the target would use without it; learned while it is attached.
    density: f64,
    /// Observations in a row of it being comfortable.
    calm: u32,
    since_ns: u64,
}

/// The account of one target.
#[derive(Clone, Debug)]
pub struct Governor {
    share: Option<f64>,
    /// Which part of the share it has: less than 1 where the node's budget is not enough for all.
    factor: f64,
    credit_ns: f64,
    tiers: [State; 2],
    last: Option<Reading>,
    opened_ns: Option<u64>,
    /// What the tiers had cost when the last window was opened; `None` before the first.
    opened_at_ns: Option<f64>,
    /// What the last window has cost that was as short as can be: on a busy machine its edges take longer.
    dearest_ns: f64,
    /// For how long the target was observed, nanoseconds.
    watched_ns: f64,
    /// CPU time that the target uses per nanosecond, averaged.
    cpu_rate: f64,
    /// Averages for people: CPU time and cost per nanosecond, and what of the cost was charged.
    averaged: [f64; 3],
    always: f64,
    /// CPU time that the target has used, nanoseconds.
    used_ns: f64,
    /// What births and ends may cost without being charged, nanoseconds.
    free_ns: f64,
    /// No window is opened meanwhile.
    held: bool,
    why: String,
}

impl Governor {
    /// An account with the grant in it. With no share, everything stays attached.
    pub fn new(share: Option<f64>, now_ns: u64) -> Governor {
        let state = State { mode: Mode::Continuous, attached: true, density: 0.0, calm: 0, since_ns: now_ns };
        Governor {
            share,
            factor: 1.0,
            credit_ns: GRANT_NS,
            tiers: [state; 2],
            last: None,
            opened_ns: None,
            opened_at_ns: None,
            dearest_ns: 0.0,
            watched_ns: 0.0,
            cpu_rate: 0.0,
            averaged: [0.0; 3],
            always: 0.0,
            used_ns: 0.0,
            free_ns: MOST_FREE_NS,
            held: false,
            why: match share {
                Some(_) => "the cost is within the budget".to_owned(),
                None => "the budget is off".to_owned(),
            },
        }
    }

    /// From now on it has this part of its share.
    pub fn set_factor(&mut self, factor: f64) {
        self.factor = factor;
    }

    /// Where windows are to wait, it begins without polls: they are attached in windows later, and for good if that is within
    /// the budget.
    pub fn begin_without_polls(&mut self) {
        if self.share.is_some() {
            let polls = &mut self.tiers[Tier::Polls as usize];
            (polls.mode, polls.attached) = (Mode::Windows, false);
            self.held = true;
            self.why = "many processes are attached to just now: polls are looked at afterwards".to_owned();
        }
    }

    /// Whether windows are to wait. One that is open is closed as it would be.
    pub fn hold_windows(&mut self, held: bool) {
        self.held = held;
    }

    fn share(&self) -> Option<f64> {
        Some(self.share? * self.factor)
    }

    /// How a tier is measured.
    pub fn mode(&self, tier: Tier) -> Mode {
        self.tiers[tier as usize].mode
    }

    /// Why what is switched is as it is.
    pub fn why(&self) -> &str {
        &self.why
    }

    /// The cost as a share of the CPU time that the target would have used without, averaged over some ten seconds;
    /// `None` before anything was used.
    pub fn cost_share(&self) -> Option<f64> {
        self.share_of(self.averaged[1])
    }

    /// A part of what the probes cost, as a share of what the target would have used without them.
    fn share_of(&self, part: f64) -> Option<f64> {
        let [cpu, cost, _] = self.averaged;
        let own = cpu - cost;
        (own > 0.0).then(|| part / own)
    }

    /// What of the cost of births and ends is not charged.
    fn forgive(&mut self, elapsed: f64, cost: f64) -> f64 {
        self.free_ns = (self.free_ns + FREE * self.factor * elapsed).min(MOST_FREE_NS);
        // In windows it is told what they would cost all the time.
        if self.tiers[Tier::Lifecycle as usize].mode != Mode::Continuous {
            return 0.0;
        }
        let forgiven = cost.min(self.free_ns);
        self.free_ns -= forgiven;
        forgiven
    }

    /// What births and ends may cost freely, as a share of what the target uses.
    fn free_share(&self) -> f64 {
        FREE * self.factor / self.cpu_rate.max(f64::EPSILON)
    }

    /// Looks at the account, and says what is to be attached from now on.
    pub fn observe(&mut self, reading: Reading) -> Wanted {
        let Some(last) = self.last.replace(reading) else { return self.wanted() };
        let elapsed = reading.now_ns.saturating_sub(last.now_ns) as f64;
        if elapsed <= 0.0 {
            return self.wanted();
        }
        let cpu = reading.cpu_ns.saturating_sub(last.cpu_ns) as f64;
        let always = (reading.always_ns - last.always_ns).max(0.0);
        let tiers = [0, 1].map(|tier| (reading.tier_ns[tier] - last.tier_ns[tier]).max(0.0));
        let cost = always + tiers.iter().sum::<f64>();
        let forgiven = self.forgive(elapsed, tiers[0]);
        self.average(elapsed, [cpu, cost, cost - forgiven]);
        let Some(share) = self.share() else { return self.wanted() };
        self.learn(elapsed, cpu, cost, always, [tiers[0] - forgiven, tiers[1]]);
        let most = GRANT_NS.max(self.window_cost() * 1.25);
        self.watched_ns += elapsed;
        // The grant is for bursts. A target that uses little would otherwise be slowed by it for minutes.
        let charged = self.share_of(self.averaged[2]);
        let lasting = self.watched_ns > LASTING_NS && charged.is_some_and(|charged| charged > share * LASTING);
        let most = if lasting { most.min(0.0) } else { most };
        self.credit_ns = (self.credit_ns + share * (cpu - cost).max(0.0) - (cost - forgiven)).clamp(-MAX_DEBT_NS, most);
        let sampled = self.tiers.iter().zip(reading.tier_ns).filter(|(tier, _)| tier.mode != Mode::Continuous);
        let spent_ns = sampled.map(|(_, spent)| spent).sum();
        self.switch(share, reading.now_ns, spent_ns);
        self.wanted()
    }

    fn wanted(&self) -> Wanted {
        self.tiers.map(|tier| tier.attached)
    }

    fn average(&mut self, elapsed: f64, spent: [f64; 3]) {
        let weight = (elapsed / AVERAGED_NS).min(1.0);
        self.averaged.iter_mut().zip(spent).for_each(|(old, new)| *old += (new / elapsed - *old) * weight);
    }

    /// What each tier is charged per nanosecond of the target's own.
    fn learn(&mut self, elapsed: f64, cpu: f64, cost: f64, always: f64, tiers: [f64; 2]) {
        self.used_ns += cpu;
        let weight = (elapsed / 500e6).min(1.0);
        self.cpu_rate += (cpu / elapsed - self.cpu_rate) * weight;
        let own = cpu - cost;
        // Costs are estimates, and may come out above what was used.
        let own = own.max(cpu * 0.02);
        if own <= 0.0 {
            return;
        }
        let weight = (cpu / 50e6).min(1.0);
        // Two births in the first microseconds of a target's work are no density.
        let least = if cpu < TELLING_NS { 0.0 } else { 0.2 };
        self.always += (always / own - self.always) * weight;
        for (state, cost) in self.tiers.iter_mut().zip(tiers) {
            if state.attached {
                state.density += (cost / own - state.density) * weight.max(least);
            }
        }
    }

    /// What the shortest window costs, nanoseconds: its edges are paid for, too.
    fn window_cost(&self) -> f64 {
        let density: f64 =
            self.tiers.iter().filter(|tier| tier.mode != Mode::Continuous).map(|tier| tier.density).sum();
        let expected = density / (1.0 + density) * self.cpu_rate * (*WINDOW_NS.start() as f64 + EDGES_NS);
        expected.max(self.dearest_ns)
    }

    /// Takes from what the last window has cost what the next one may. Its last hits are counted by now.
    fn remember(&mut self, spent_ns: f64) {
        if let Some(before) = self.opened_at_ns.replace(spent_ns) {
            self.dearest_ns = self.dearest_ns * 0.5 + (spent_ns - before).max(0.0) * 0.5;
        }
    }

    fn switch(&mut self, share: f64, now_ns: u64, spent_ns: f64) {
        if self.credit_ns <= 0.0 {
            self.retreat(share, now_ns);
        }
        self.step_windows(share, now_ns, spent_ns);
        self.advance(share, now_ns);
    }

    /// The credit is used up: takes off what costs most of what may be taken off.
    fn retreat(&mut self, share: f64, now_ns: u64) {
        if self.opened_ns.is_some() {
            self.close();
        }
        let [lifecycle, polls] = Tier::ALL.map(|tier| self.tiers[tier as usize]);
        let matters = |state: State| state.mode == Mode::Continuous && state.density > share * NEGLIGIBLE;
        if matters(polls) {
            self.leave(Tier::Polls, now_ns);
        }
        // Births and ends go only if they are too dear without polls. What the hooks cost that are always on is not known
        // before some CPU time was used: one tick of a clock may be a large share of it.
        let always = if self.used_ns >= KNOWN_NS { self.always } else { 0.0 };
        if matters(lifecycle) && lifecycle.density + always > share {
            self.leave(Tier::Lifecycle, now_ns);
        }
    }

    fn leave(&mut self, tier: Tier, now_ns: u64) {
        let state = &mut self.tiers[tier as usize];
        (state.mode, state.attached, state.calm, state.since_ns) = (Mode::Windows, false, 0, now_ns);
        let what = match tier {
            Tier::Lifecycle => "births and ends of tasks",
            Tier::Polls => "polls and wakes",
        };
        self.why =
            format!("measuring {what} all the time would cost {:.1} % of the target's CPU time", state.density * 100.0);
        if self.factor < 1.0 {
            self.why += &format!(", and the budget of the node leaves it {:.0} % of its own", self.factor * 100.0);
        }
        log::info!("{}: in windows from now on", self.why);
    }

    /// Opens and closes windows of what is not continuous.
    fn step_windows(&mut self, share: f64, now_ns: u64, spent_ns: f64) {
        if self.tiers.iter().all(|tier| tier.mode == Mode::Continuous) {
            return;
        }
        let cost = self.window_cost();
        // What is earned besides what the hooks cost that stay attached.
        let stays: f64 = self.tiers.iter().filter(|tier| tier.mode == Mode::Continuous).map(|tier| tier.density).sum();
        let earned = (share - self.always - stays) * self.cpu_rate;
        let off = earned <= 0.0 || cost / earned > MAX_GAP_NS;
        for tier in self.tiers.iter_mut().filter(|tier| tier.mode != Mode::Continuous) {
            tier.mode = if off { Mode::Off } else { Mode::Windows };
        }
        match self.opened_ns {
            None if !off && !self.held && self.credit_ns >= cost.max(GRANT_NS * 0.1) => {
                self.remember(spent_ns);
                self.opened_ns = Some(now_ns);
                self.tiers.iter_mut().filter(|tier| tier.mode == Mode::Windows).for_each(|tier| tier.attached = true);
            }
            Some(opened) => {
                let open = now_ns.saturating_sub(opened);
                // What detaching will cost.
                let density = cost / (*WINDOW_NS.start() as f64 + EDGES_NS);
                let spent = open >= *WINDOW_NS.start() && self.credit_ns <= density * EDGES_NS / 2.0;
                if spent || open >= *WINDOW_NS.end() {
                    self.close();
                }
            }
            None => {}
        }
    }

    fn close(&mut self) {
        self.opened_ns = None;
        let share = self.share().unwrap_or(f64::INFINITY);
        let (always, free) = (self.always, self.free_share());
        let stays = self.tiers.map(|tier| (tier.mode, tier.density));
        let continuous: f64 = stays.iter().filter(|(mode, _)| *mode == Mode::Continuous).map(|(_, d)| d).sum();
        let mut before = always + continuous;
        // Births and ends come back first: polls must fit in beside them.
        // Also what was switched off while the window was open.
        for (tier, free) in self.tiers.iter_mut().zip([free, 0.0]).filter(|(tier, _)| tier.mode != Mode::Continuous) {
            tier.attached = false;
            let charged = (tier.density - free * COMFORTABLE).max(0.0);
            before += charged;
            let comfortable = before < share * COMFORTABLE || charged < share * NEGLIGIBLE;
            tier.calm = if comfortable { tier.calm + 1 } else { 0 };
        }
    }

    /// Attaches for good again what has been comfortable for a while.
    fn advance(&mut self, share: f64, now_ns: u64) {
        for at in 0..self.tiers.len() {
            let tier = self.tiers[at];
            let calm = tier.calm >= PATIENCE && now_ns.saturating_sub(tier.since_ns) >= CALM_NS;
            let first = at == 0 || self.tiers[0].mode == Mode::Continuous || tier.density < share * NEGLIGIBLE;
            let again = at == 0
                && tier.mode == Mode::Off
                && self.free_ns >= MOST_FREE_NS
                && now_ns.saturating_sub(tier.since_ns) >= RETRY_NS;
            if (again || tier.mode == Mode::Windows && calm && first) && self.credit_ns > 0.0 {
                let state = &mut self.tiers[at];
                (state.mode, state.attached, state.calm, state.since_ns) = (Mode::Continuous, true, 0, now_ns);
                self.why = "the cost is within the budget again".to_owned();
                log::info!("{}: {} are measured all the time", self.why, Tier::ALL[at].label());
            }
        }
        if self.tiers.iter().all(|tier| tier.mode == Mode::Continuous) {
            self.opened_ns = None;
        }
    }
}

#[cfg(test)]
mod tests;
