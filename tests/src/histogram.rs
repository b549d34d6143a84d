//! A histogram on a page of metrics: its buckets, and in which of them a quantile is.

use std::collections::BTreeMap;

use crate::page::Page;

/// The sum of all series of one name.
#[derive(Clone, Debug, PartialEq)]
pub struct Histogram {
    /// Upper bounds, in the metric's unit, and how many values are up to there.
    buckets: Vec<(f64, f64)>,
}

impl Histogram {
    /// The sum of the series of `name` (without `_bucket`) with at least these labels; `None` without any.
    ///
    /// # Panics
    /// A bucket has no bound.
    pub fn read(page: &Page, name: &str, labels: &[(&str, &str)]) -> Option<Histogram> {
        let bucket = format!("{name}_bucket");
        let mut sums: BTreeMap<u64, (f64, f64)> = BTreeMap::new();
        for sample in page.series(&bucket, labels) {
            let bound: f64 = sample.labels["le"].parse().expect("a bound is a number");
            // The bits of floats that are not negative have the order of the floats.
            sums.entry(bound.to_bits()).or_insert((bound, 0.0)).1 += sample.value;
        }
        (!sums.is_empty()).then(|| Histogram { buckets: sums.into_values().collect() })
    }

    /// How many values there are.
    pub fn count(&self) -> f64 {
        self.buckets.last().map_or(0.0, |(_, count)| *count)
    }

    /// What came since an earlier reading.
    pub fn since(&self, before: Option<&Histogram>) -> Histogram {
        let mut buckets = self.buckets.clone();
        for (mine, theirs) in buckets.iter_mut().zip(before.into_iter().flat_map(|before| &before.buckets)) {
            mine.1 -= theirs.1;
        }
        Histogram { buckets }
    }

    /// The number of the bucket that a value falls into.
    pub fn bucket_of(&self, value: f64) -> usize {
        self.buckets.partition_point(|(bound, _)| *bound < value)
    }

    /// The number of the bucket in which the quantile is: the first that at least this share is up to.
    pub fn quantile_bucket(&self, share: f64) -> usize {
        let wanted = (self.count() * share).ceil();
        self.buckets.partition_point(|(_, count)| *count < wanted)
    }

    /// The upper bound of a bucket.
    pub fn bound(&self, bucket: usize) -> f64 {
        self.buckets.get(bucket).map_or(f64::INFINITY, |(bound, _)| *bound)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Check that series are summed, and that a value on a bound is below it.
    #[test]
    fn quantiles_are_in_buckets() {
        let page = Page::parse(
            "h_bucket{t=\"a\",le=\"0.5\"} 1\nh_bucket{t=\"a\",le=\"1\"} 3\nh_bucket{t=\"a\",le=\"+Inf\"} 3\n\
             h_bucket{t=\"b\",le=\"0.5\"} 0\nh_bucket{t=\"b\",le=\"1\"} 0\nh_bucket{t=\"b\",le=\"+Inf\"} 1\n",
        );
        let all = Histogram::read(&page, "h", &[]).expect("there are series");
        assert_eq!(all.count(), 4.0);
        assert_eq!([0.25, 0.5, 0.75, 0.99].map(|share| all.quantile_bucket(share)), [0, 1, 1, 2]);
        assert_eq!([0.5, 0.6, 1.0, 7.0].map(|value| all.bucket_of(value)), [0, 1, 1, 2]);
        let one = Histogram::read(&page, "h", &[("t", "a")]).expect("there is a series");
        assert_eq!(all.since(Some(&one)).count(), 1.0);
        assert_eq!(Histogram::read(&page, "h", &[("t", "c")]), None);
    }
}
