//! The series of one page, by family; those that share their labels become one. Never where a value comes from.

use std::hash::{Hash as _, Hasher as _};
use std::sync::LazyLock;

use profiler_common::histogram::bucket;
use prometheus::proto;
use rustc_hash::{FxHashMap, FxHasher};

use super::table::{Id, Kind, METRICS, Merge, Unit, metric};
use crate::histogram::Histogram;

/// Upper bounds of a histogram's exported buckets: powers of two, so that they are bounds of the recorded ones too.
/// Durations: from 2^10 ns (1.024 µs) to 2^36 ns (68.7 s). Counts: from 1 to 65,536.
fn powers(unit: Unit) -> std::ops::RangeInclusive<u32> {
    match unit {
        Unit::Seconds => 10..=36,
        Unit::Bytes | Unit::Count | Unit::State => 0..=16,
    }
}

/// An exported bucket: the last recorded bucket that it holds, and its bound in the exported unit.
struct Bound {
    last: usize,
    le: f64,
}

fn bounds(unit: Unit) -> &'static [Bound] {
    static SECONDS: LazyLock<Vec<Bound>> = LazyLock::new(|| make(Unit::Seconds));
    static COUNT: LazyLock<Vec<Bound>> = LazyLock::new(|| make(Unit::Count));
    fn make(unit: Unit) -> Vec<Bound> {
        powers(unit).map(|power| Bound { last: bucket(1 << power), le: scaled(1 << power, unit) }).collect()
    }
    match unit {
        Unit::Seconds => &SECONDS,
        Unit::Bytes | Unit::Count | Unit::State => &COUNT,
    }
}

/// A recorded value in the exported unit: durations are recorded in nanoseconds.
pub fn scaled(value: u64, unit: Unit) -> f64 {
    match unit {
        Unit::Seconds => value as f64 / 1e9,
        Unit::Bytes | Unit::Count | Unit::State => value as f64,
    }
}

#[derive(Clone, Copy)]
enum Value<'a> {
    Number(f64),
    Histogram(&'a Histogram),
}

struct Series<'a> {
    target: Option<usize>,
    labels: [&'a str; 2],
    value: Value<'a>,
    /// Further histograms of the same labels.
    more: Vec<&'a Histogram>,
}

#[derive(Default)]
struct Family<'a> {
    series: Vec<Series<'a>>,
    by_labels: FxHashMap<u64, usize>,
}

/// The series of a page.
pub struct Page<'a> {
    targets: Vec<Vec<proto::LabelPair>>,
    /// For each target the first one that has the same labels.
    canonical: Vec<usize>,
    families: Vec<Family<'a>>,
}

/// The labels of a series.
#[derive(Clone, Copy)]
pub struct Labels<'a> {
    /// Index of the target.
    pub target: Option<usize>,
    /// Values of the metric's own labels; unused ones are empty.
    pub own: [&'a str; 2],
}

impl<'a> Page<'a> {
    /// A page of these targets, by their labels.
    pub fn new(targets: Vec<Vec<(&'static str, String)>>) -> Page<'a> {
        let mut first: FxHashMap<&[(&'static str, String)], usize> = FxHashMap::default();
        let canonical = targets.iter().enumerate().map(|(i, t)| *first.entry(t.as_slice()).or_insert(i)).collect();
        let pairs = |target: Vec<(&'static str, String)>| target.into_iter().map(|(n, v)| pair(n, v)).collect();
        drop(first);
        Page {
            canonical,
            targets: targets.into_iter().map(pairs).collect(),
            families: METRICS.iter().map(|_| Family::default()).collect(),
        }
    }

    /// Adds a counter's or gauge's value.
    pub fn number(&mut self, id: Id, labels: Labels<'a>, value: f64) {
        debug_assert!(metric(id).kind != Kind::Histogram);
        self.add(id, labels, Value::Number(value));
    }

    /// Adds a histogram.
    pub fn histogram(&mut self, id: Id, labels: Labels<'a>, value: &'a Histogram) {
        debug_assert!(metric(id).kind == Kind::Histogram);
        self.add(id, labels, Value::Histogram(value));
    }

    fn add(&mut self, id: Id, labels: Labels<'a>, value: Value<'a>) {
        let target = labels.target.map(|target| self.canonical[target]);
        let family = &mut self.families[id as usize];
        let mut hasher = FxHasher::default();
        (target, labels.own).hash(&mut hasher);
        let mut key = hasher.finish();
        while let Some(&at) = family.by_labels.get(&key) {
            let series = &mut family.series[at];
            if series.target == target && series.labels == labels.own {
                match (&mut series.value, value) {
                    (Value::Number(old), Value::Number(new)) => {
                        *old = match metric(id).merge {
                            Merge::Sum => *old + new,
                            Merge::Max => old.max(new),
                        }
                    }
                    (_, Value::Histogram(new)) => series.more.push(new),
                    (Value::Histogram(_), Value::Number(_)) => {}
                }
                return;
            }
            // Other labels of the same hash: the next place.
            key = key.wrapping_add(1);
        }
        family.by_labels.insert(key, family.series.len());
        family.series.push(Series { target, labels: labels.own, value, more: Vec::new() });
    }

    /// Hands the families that have a series to `see`, one by one, in the order of the table.
    pub fn families(self, see: &mut dyn FnMut(proto::MetricFamily)) {
        for (row, family) in METRICS.iter().zip(self.families) {
            if family.series.is_empty() {
                continue;
            }
            let mut out = proto::MetricFamily::default();
            out.set_name(row.full_name());
            out.set_help(row.help.to_owned());
            out.set_field_type(match row.kind {
                Kind::Counter => proto::MetricType::COUNTER,
                Kind::Gauge => proto::MetricType::GAUGE,
                Kind::Histogram => proto::MetricType::HISTOGRAM,
            });
            let series = family.series.iter().map(|series| {
                let target = series.target.map_or(&[][..], |target| &self.targets[target]);
                let own = row.labels.iter().zip(series.labels).map(|(name, value)| pair(name, value.to_owned()));
                let mut metric = proto::Metric::from_label(target.iter().cloned().chain(own).collect());
                match series.value {
                    Value::Number(value) if row.kind == Kind::Counter => {
                        let mut counter = proto::Counter::default();
                        counter.set_value(value);
                        metric.set_counter(counter);
                    }
                    Value::Number(value) => {
                        let mut gauge = proto::Gauge::default();
                        gauge.set_value(value);
                        metric.set_gauge(gauge);
                    }
                    Value::Histogram(first) => metric.set_histogram(histogram(first, &series.more, row.unit)),
                }
                metric
            });
            out.set_metric(series.collect());
            see(out);
        }
    }
}

fn pair(name: &str, value: String) -> proto::LabelPair {
    let mut pair = proto::LabelPair::default();
    pair.set_name(name.to_owned());
    pair.set_value(value);
    pair
}

fn histogram(first: &Histogram, more: &[&Histogram], unit: Unit) -> proto::Histogram {
    let mut sum;
    let value = if more.is_empty() {
        first
    } else {
        sum = first.clone();
        more.iter().for_each(|other| sum.merge(other));
        &sum
    };
    let mut counts = value.buckets().peekable();
    let mut cumulative = 0;
    let exported = bounds(unit).iter().map(|bound| {
        while let Some((_, n)) = counts.next_if(|(bucket, _)| *bucket <= bound.last) {
            cumulative += n;
        }
        let mut bucket = proto::Bucket::default();
        bucket.set_upper_bound(bound.le);
        bucket.set_cumulative_count(cumulative);
        bucket
    });
    let exported: Vec<proto::Bucket> = exported.collect();
    // `count` is read from the kernel at another moment than the buckets: what the page says must agree with itself.
    let count = cumulative + counts.map(|(_, n)| n).sum::<u64>();
    let mut out = proto::Histogram::default();
    out.set_bucket(exported);
    out.set_sample_count(count);
    out.set_sample_sum(scaled(value.sum, unit));
    out
}
