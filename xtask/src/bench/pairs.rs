//! CPU time per operation with something and without it, in many short pairs: the one way in which it is told what a
//! target pays. What a target is and what drives it is workload.rs.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::{Effort, Programs, Row, spread};
use crate::target::{Profiler, cpu_ns, get, metric_if_any, pin, resident_kib};

/// Where what is measured runs.
pub const TARGET_CPU: usize = 0;
/// Where its client runs, and the profiler.
pub const CLIENT_CPU: usize = 1;
/// How long a subject is driven before each slice: another ran in between.
const LEAD_IN: Duration = Duration::from_millis(100);
/// A subject that needs more memory than this is measured no longer.
const LIMIT_KIB: u64 = 4 << 20;

/// A program, and what makes it do its operations.
pub trait Subject {
    /// Its process id.
    fn pid(&self) -> u32;
    /// Drives it for about `lasts`, and returns how many operations it did.
    fn drive(&mut self, lasts: Duration) -> Result<f64>;
}

/// Starts one subject, pinned to [`TARGET_CPU`].
pub type Start<'a> = &'a dyn Fn() -> Result<Box<dyn Subject>>;

/// What came out.
#[derive(Default)]
pub struct Outcome {
    /// CPU time per operation, nanoseconds, of each slice.
    with: Vec<f64>,
    without: Vec<f64>,
    /// Ratios of the same without anything on either; empty where there is none.
    nulls: Vec<f64>,
    null_sides: (Vec<f64>, Vec<f64>),
    /// What the profiler says that it cost, nanoseconds per operation; empty where it does not say.
    estimates: Vec<f64>,
    /// The profiler's own CPU time, as a share of a core, of each slice.
    own: Vec<f64>,
    /// Why it ended early.
    note: Option<String>,
}

/// One slice of a subject.
struct Slice {
    cost_ns: f64,
    operations: f64,
}

fn slice(subject: &mut dyn Subject, effort: &Effort) -> Result<Slice> {
    subject.drive(LEAD_IN)?;
    let before = cpu_ns(subject.pid())?;
    let operations = subject.drive(effort.slice)?;
    let cost_ns = (cpu_ns(subject.pid())? - before) as f64 / operations;
    Ok(Slice { cost_ns, operations })
}

/// A slice of each of two, in an order that is flipped on every other pair, so that a drift weighs on both alike.
fn pair<A, B>(
    number: usize,
    mut first: impl FnMut() -> Result<A>,
    mut second: impl FnMut() -> Result<B>,
) -> Result<(A, B)> {
    if number.is_multiple_of(2) {
        let a = first()?;
        Ok((a, second()?))
    } else {
        let b = second()?;
        Ok((first()?, b))
    }
}

/// The cost of the profiler: two instances live together, one of them profiled, with the roles swapped half-way; and
/// before each half the same pairs with the profiler on neither.
pub fn profiled(programs: &Programs, start: Start<'_>, flags: &[&str]) -> Result<Outcome> {
    pin(0, CLIENT_CPU)?;
    let effort = &programs.effort;
    let mut outcome = Outcome::default();
    for half in 0..2 {
        let (mut one, mut other) = (start()?, start()?);
        let (target, plain) = if half == 0 { (&mut one, &mut other) } else { (&mut other, &mut one) };
        for number in 0..effort.pairs.div_ceil(4) {
            let (a, b) = pair(number, || slice(target.as_mut(), effort), || slice(plain.as_mut(), effort))?;
            outcome.null(a.cost_ns, b.cost_ns);
        }
        let profiler = Profiler::attach(&programs.profiler, target.pid(), flags)?;
        // A budget grants something to begin with: what is measured comes after it is spent.
        target.drive(effort.settle)?;
        for number in 0..effort.pairs.div_ceil(2) {
            let watched = || watched_slice(target.as_mut(), &profiler, effort);
            let (with, without) = pair(number, watched, || slice(plain.as_mut(), effort))?;
            outcome.estimates.extend(with.estimate_ns);
            outcome.own.push(with.own);
            outcome.pair(with.slice.cost_ns, without.cost_ns);
        }
        profiler.detach()?;
    }
    Ok(outcome)
}

/// A slice of a profiled subject, and what the profiler did and said meanwhile.
struct Watched {
    slice: Slice,
    estimate_ns: Option<f64>,
    own: f64,
}

fn watched_slice(subject: &mut dyn Subject, profiler: &Profiler, effort: &Effort) -> Result<Watched> {
    const OVERHEAD: &str = "profiler_overhead_seconds_total";
    subject.drive(LEAD_IN)?;
    let said = metric_if_any(&get("/metrics")?.0, OVERHEAD);
    let (own, started) = (cpu_ns(profiler.pid())?, Instant::now());
    let before = cpu_ns(subject.pid())?;
    let operations = subject.drive(effort.slice)?;
    let slice = Slice { cost_ns: (cpu_ns(subject.pid())? - before) as f64 / operations, operations };
    let own = (cpu_ns(profiler.pid())? - own) as f64 / started.elapsed().as_nanos() as f64;
    let says = metric_if_any(&get("/metrics")?.0, OVERHEAD);
    let estimate_ns = says.zip(said).map(|(now, before)| (now - before) * 1e9 / slice.operations);
    Ok(Watched { slice, estimate_ns, own })
}

/// The cost of another program in place of a plain one: both live together.
pub fn versus(effort: &Effort, start: Start<'_>, start_plain: Start<'_>) -> Result<Outcome> {
    pin(0, CLIENT_CPU)?;
    let mut outcome = Outcome::default();
    for half in 0..2 {
        let (mut subject, mut plain) = if half == 0 {
            let subject = start()?;
            (subject, start_plain()?)
        } else {
            let plain = start_plain()?;
            (start()?, plain)
        };
        for number in 0..effort.pairs.div_ceil(2) {
            let (with, without) = pair(number, || slice(subject.as_mut(), effort), || slice(plain.as_mut(), effort))?;
            outcome.pair(with.cost_ns, without.cost_ns);
            let resident = resident_kib(subject.pid())?;
            if resident > LIMIT_KIB {
                outcome.note = Some(format!("ended early: {:.1} GiB resident", resident as f64 / (1 << 20) as f64));
                return Ok(outcome);
            }
        }
        thread::sleep(LEAD_IN);
    }
    Ok(outcome)
}

impl Outcome {
    fn pair(&mut self, with: f64, without: f64) {
        self.with.push(with);
        self.without.push(without);
    }

    fn null(&mut self, one: f64, other: f64) {
        self.nulls.push(one / other);
        self.null_sides.0.push(one);
        self.null_sides.1.push(other);
    }

    fn pairs(&self) -> impl Iterator<Item = (f64, f64)> {
        self.with.iter().copied().zip(self.without.iter().copied())
    }

    /// The result, and its null beside it. `operation` names what a figure is per.
    pub fn rows(&self, what: &str, operation: &str, bar: &'static str) -> Vec<Row> {
        let ratio = median(self.pairs().map(|(with, without)| with / without).collect());
        let (with, without) = (spread(self.with.clone()).0, spread(self.without.clone()).0);
        let mut measured =
            format!("{:.3} min/min, {ratio} ({:.2} / {:.2} µs)", with / without, with / 1e3, without / 1e3);
        if let Some(note) = &self.note {
            measured = format!("{measured}; {note}");
        }
        let mut rows = vec![Row::new(format!("{what}: CPU per {operation}, with / without"), measured, bar)];
        if !self.nulls.is_empty() {
            let minima = spread(self.null_sides.0.clone()).0 / spread(self.null_sides.1.clone()).0;
            let null = format!("{minima:.3} min/min, {}", median(self.nulls.clone()));
            rows.push(Row::new(format!("{what}: null"), null, "-"));
        }
        if !self.own.is_empty() {
            let own = spread(self.own.clone()).1;
            rows.push(Row::new(format!("{what}: the profiler itself"), format!("{:.2} % of a core", own * 100.0), "-"));
        }
        rows
    }

    /// What the profiler says that it cost, beside what it did.
    pub fn estimate(&self, what: &str, operation: &str) -> Row {
        let measured = spread(self.pairs().map(|(with, without)| with - without).collect()).1;
        let what = format!("{what}: cost per {operation}, as exported / as measured");
        let shown = if self.estimates.is_empty() {
            "the page has no profiler_overhead_seconds_total".to_owned()
        } else {
            let estimate = spread(self.estimates.clone()).1;
            format!("{:.2} ({:.2} / {:.2} µs)", estimate / measured, estimate / 1e3, measured / 1e3)
        };
        Row::new(what, shown, "0.8 to 1.2")
    }
}

/// The median of some ratios, and between which two of them it lies in 95 of 100 cases, by their ranks.
fn median(mut ratios: Vec<f64>) -> String {
    ratios.sort_by(f64::total_cmp);
    let count = ratios.len() as f64;
    let reach = 0.98 * count.sqrt();
    let at = |rank: f64| ratios.get(rank.min(count - 1.0) as usize).copied().unwrap_or(f64::NAN);
    let (low, middle, high) = (at((count / 2.0 - reach).floor()), at(count / 2.0), at((count / 2.0 + reach).ceil()));
    format!("{middle:.3} median of {} pairs (95 %: {low:.3} to {high:.3})", ratios.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Check that the median's error is that of its ranks: of 100 values the 40th to the 61st.
    #[test]
    fn error_of_a_median() {
        assert_eq!(median((0..100).map(f64::from).collect()), "50.000 median of 100 pairs (95 %: 40.000 to 60.000)");
        assert_eq!(median(vec![3.0, 1.0, 2.0]), "2.000 median of 3 pairs (95 %: 1.000 to 3.000)");
    }

    /// Check that ratios are of pairs, and minima of all slices.
    #[test]
    fn ratios_and_minima() {
        let mut outcome = Outcome::default();
        for (with, without) in [(2_000.0, 1_000.0), (3_000.0, 2_000.0), (2_200.0, 1_100.0)] {
            outcome.pair(with, without);
        }
        outcome.null(1_000.0, 1_010.0);
        outcome.estimates = vec![900.0, 1_000.0, 1_100.0];
        let rows = outcome.rows("x", "request", "-");
        assert_eq!(rows[0].measured, "2.000 min/min, 2.000 median of 3 pairs (95 %: 1.500 to 2.000) (2.00 / 1.00 µs)");
        assert_eq!(rows[1].measured, "0.990 min/min, 0.990 median of 1 pairs (95 %: 0.990 to 0.990)");
        assert_eq!(outcome.estimate("x", "request").measured, "1.00 (1.00 / 1.00 µs)");
    }

    /// Check that the order is flipped on every other pair, and the sides are not.
    #[test]
    fn order_is_flipped() {
        for number in 0..4 {
            let order = std::cell::RefCell::new(Vec::new());
            let note = |side: &'static str| {
                order.borrow_mut().push(side);
                Ok(side)
            };
            assert_eq!(pair(number, || note("a"), || note("b")).expect("both succeed"), ("a", "b"));
            assert_eq!(order.into_inner()[0], if number % 2 == 0 { "a" } else { "b" });
        }
    }
}
