//! A histogram of user space: the buckets of the kernel half's, of which only those that hold something take memory.

use profiler_common::histogram::{self as kernel, Octaves, bucket, upper_bound};

/// Counts per bucket, and the exact sum and number of the recorded values. Most have a dozen buckets of 320.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Histogram {
    /// Sum of all recorded values.
    pub sum: u64,
    /// Number of recorded values.
    pub count: u64,
    /// Buckets that are not empty, see [`bucket`], and their counts; in order.
    buckets: Vec<(u16, u64)>,
}

impl Histogram {
    /// A histogram that has recorded nothing.
    pub const EMPTY: Histogram = Histogram { sum: 0, count: 0, buckets: Vec::new() };

    /// Records one value.
    pub fn record(&mut self, value: u64) {
        self.record_times(value, 1);
    }

    /// Records one value so many times.
    pub fn record_times(&mut self, value: u64, times: u64) {
        self.add(bucket(value), times);
        self.sum = self.sum.wrapping_add(value.wrapping_mul(times));
        self.count += times;
    }

    /// Adds values of which only the sum is known: each counts as their mean.
    pub fn record_mean(&mut self, sum: u64, times: u64) {
        let Some(mean) = sum.checked_div(times) else { return };
        self.add(bucket(mean), times);
        self.count += times;
        self.sum = self.sum.wrapping_add(sum);
    }

    fn add(&mut self, bucket: usize, times: u64) {
        let bucket = bucket as u16;
        match self.buckets.binary_search_by_key(&bucket, |(bucket, _)| *bucket) {
            Ok(at) => self.buckets[at].1 += times,
            Err(at) if times > 0 => self.buckets.insert(at, (bucket, times)),
            Err(_) => {}
        }
    }

    /// Adds what `other` has recorded.
    pub fn merge(&mut self, other: &Histogram) {
        self.sum = self.sum.wrapping_add(other.sum);
        self.count += other.count;
        other.buckets.iter().for_each(|&(bucket, n)| self.add(usize::from(bucket), n));
    }

    /// The buckets that are not empty, and their counts; in order.
    pub fn buckets(&self) -> impl Iterator<Item = (usize, u64)> + '_ {
        self.buckets.iter().map(|&(bucket, n)| (usize::from(bucket), n))
    }

    /// The upper bound of the bucket in which the `q` quantile (0 to 1) falls; `None` when nothing was recorded.
    pub fn quantile(&self, q: f64) -> Option<u64> {
        if self.count == 0 {
            return None;
        }
        let rank = ((q * self.count as f64) as u64).clamp(1, self.count);
        let mut seen = 0;
        let reaches = |(_, n): &(usize, u64)| {
            seen += n;
            seen >= rank
        };
        // The count may be a moment ahead of the buckets.
        let bucket = self.buckets().find(reaches).or_else(|| self.buckets().last());
        bucket.map(|(bucket, _)| upper_bound(bucket))
    }
}

impl From<&kernel::Histogram> for Histogram {
    fn from(counted: &kernel::Histogram) -> Histogram {
        let full = counted.buckets.iter().enumerate().filter(|(_, n)| **n > 0);
        let buckets = full.map(|(bucket, n)| (bucket as u16, *n)).collect();
        Histogram { sum: counted.sum, count: counted.count, buckets }
    }
}

impl Histogram {
    /// Adds what the kernel half has recorded in powers of two, at the upper bounds.
    pub fn add_octaves(&mut self, counted: &Octaves) {
        for (power, &n) in counted.buckets.iter().enumerate() {
            self.add(bucket(1 << power), n);
            self.count += n;
        }
        self.sum = self.sum.wrapping_add(counted.sum);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Check that throttlings and the like keep number and sum, and are in the bucket of their mean.
    #[test]
    fn means_are_recorded() {
        let mut histogram = Histogram::EMPTY;
        histogram.record_mean(301, 3);
        histogram.record_mean(0, 0);
        assert_eq!((histogram.count, histogram.sum), (3, 301));
        assert_eq!(histogram.buckets().collect::<Vec<_>>(), [(bucket(100), 3)]);
    }

    fn dense(values: &[u64]) -> kernel::Histogram {
        let mut histogram = kernel::Histogram::EMPTY;
        values.iter().for_each(|&value| histogram.record(value));
        histogram
    }

    fn sparse(values: &[u64]) -> Histogram {
        let mut histogram = Histogram::EMPTY;
        values.iter().for_each(|&value| histogram.record(value));
        histogram
    }

    proptest! {
        /// Check that it is what the kernel half records of the same values, merged or not.
        #[test]
        fn it_equals_the_kernels(one in prop::collection::vec(any::<u64>(), 0..40), other in prop::collection::vec(0_u64..1 << 44, 0..40)) {
            prop_assert_eq!(sparse(&one), Histogram::from(&dense(&one)));
            let (mut merged, mut expected) = (sparse(&one), dense(&one));
            merged.merge(&sparse(&other));
            expected.merge(&dense(&other));
            prop_assert_eq!(&merged, &Histogram::from(&expected));
        }

        /// Check that quantiles are those of the sorted values.
        #[test]
        fn quantiles_agree_with_sorting(mut values in prop::collection::vec(0_u64..1 << 36, 1..200)) {
            let histogram = sparse(&values);
            values.sort_unstable();
            prop_assert_eq!(histogram.count, values.len() as u64);
            prop_assert_eq!(histogram.sum, values.iter().sum::<u64>());
            for (q, rank) in [(0.0, 1), (0.5, (values.len() / 2).max(1)), (1.0, values.len())] {
                prop_assert_eq!(histogram.quantile(q), Some(upper_bound(bucket(values[rank - 1]))));
            }
        }
    }

    /// Check that powers of two stay what they are.
    #[test]
    fn octaves_are_counted_at_their_bounds() {
        let mut octaves = Octaves::EMPTY;
        (octaves.buckets[3], octaves.buckets[40], octaves.sum) = (2, 1, 77);
        let mut histogram = sparse(&[8]);
        histogram.add_octaves(&octaves);
        assert_eq!((histogram.count, histogram.sum), (4, 85));
        assert_eq!(histogram.buckets().collect::<Vec<_>>(), [(bucket(8), 3), (bucket(1 << 40), 1)]);
    }
}
