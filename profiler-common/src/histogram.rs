//! The log-linear histogram that both sides fill and read. Never a unit or a metric name.

/// Sub-buckets per octave; a bucket is at most 1/8 of its lower bound wide.
pub const SUB_BUCKETS: u64 = 8;

/// Buckets of one histogram: exact up to 8, then 8 per octave up to 2^42 (73 minutes in nanoseconds).
pub const BUCKETS: usize = 320;

/// One histogram: counts per bucket, and the exact sum and number of the recorded values.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Histogram {
    /// Sum of all recorded values.
    pub sum: u64,
    /// Number of recorded values.
    pub count: u64,
    /// Recorded values per bucket, see [`bucket`].
    pub buckets: [u64; BUCKETS],
}

const _: () = assert!(size_of::<Histogram>() == (BUCKETS + 2) * 8);

impl core::fmt::Debug for Histogram {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Histogram").field("count", &self.count).field("sum", &self.sum).finish_non_exhaustive()
    }
}

impl Histogram {
    /// A histogram that has recorded nothing.
    pub const EMPTY: Histogram = Histogram { sum: 0, count: 0, buckets: [0; BUCKETS] };

    /// Records one value.
    #[inline(always)]
    pub fn record(&mut self, value: u64) {
        self.record_times(value, 1);
    }

    /// Records one value so many times.
    #[inline(always)]
    pub fn record_times(&mut self, value: u64, times: u64) {
        let index = bucket(value);
        // The verifier needs the bound in front of it.
        if index < BUCKETS {
            self.buckets[index] += times;
        }
        self.sum = self.sum.wrapping_add(value.wrapping_mul(times));
        self.count += times;
    }

    /// Adds what `other` has recorded.
    pub fn merge(&mut self, other: &Histogram) {
        self.sum = self.sum.wrapping_add(other.sum);
        self.count += other.count;
        for (mine, theirs) in self.buckets.iter_mut().zip(&other.buckets) {
            *mine += theirs;
        }
    }
}

/// Buckets of [`Octaves`]: up to 2^42, as [`BUCKETS`].
pub const OCTAVES: usize = 43;

/// A histogram whose buckets are powers of two: an eighth of the memory, for what is counted by many keys.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Octaves {
    /// Sum of all recorded values.
    pub sum: u64,
    /// Recorded values per bucket, see [`octave`].
    pub buckets: [u64; OCTAVES],
}

const _: () = assert!(size_of::<Octaves>() == (OCTAVES + 1) * 8);

impl Octaves {
    /// A histogram that has recorded nothing.
    pub const EMPTY: Octaves = Octaves { sum: 0, buckets: [0; OCTAVES] };
}

/// The bucket of `value` in [`Octaves`]: the power of two that is not below it. Larger ones share the last.
#[inline(always)]
pub fn octave(value: u64) -> usize {
    let v = value.saturating_sub(1);
    let power = if v == 0 { (value > 1) as usize } else { exponent(v) as usize + 1 };
    if power < OCTAVES { power } else { OCTAVES - 1 }
}

/// The position of the highest bit; 0 for 0. Not `ilog2`: the BPF target has no count-leading-zeros before instruction
/// set v4.
#[inline(always)]
fn exponent(v: u64) -> u32 {
    let mut exponent: u32 = 0;
    let mut rest = v;
    if rest >> 32 != 0 {
        exponent += 32;
        rest >>= 32;
    }
    if rest >> 16 != 0 {
        exponent += 16;
        rest >>= 16;
    }
    if rest >> 8 != 0 {
        exponent += 8;
        rest >>= 8;
    }
    if rest >> 4 != 0 {
        exponent += 4;
        rest >>= 4;
    }
    if rest >> 2 != 0 {
        exponent += 2;
        rest >>= 2;
    }
    if rest >> 1 != 0 {
        exponent += 1;
    }
    exponent
}

/// The bucket of `value`. Buckets are (lower, upper], so that every [`upper_bound`] is an exact `le` of an
/// exposition: values 0 and 1 share bucket 0, and powers of two close their octave. Values over 2^42 share the last bucket.
#[inline(always)]
pub fn bucket(value: u64) -> usize {
    let v = value.saturating_sub(1);
    if v < SUB_BUCKETS {
        return v as usize;
    }
    let exponent = exponent(v);
    let index = ((exponent - 2) as usize) * 8 + ((v >> (exponent - 3)) & 7) as usize;
    if index >= BUCKETS { BUCKETS - 1 } else { index }
}

/// The largest value that falls into bucket `index`; for the last bucket the smallest that it is sure to hold.
pub fn upper_bound(index: usize) -> u64 {
    if index < SUB_BUCKETS as usize {
        return index as u64 + 1;
    }
    let exponent = index as u32 / 8 + 2;
    let sub = index as u64 % 8;
    (1 << exponent) + ((sub + 1) << (exponent - 3))
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn powers_of_two_are_exact_bounds() {
        for k in 3..42 {
            assert_eq!(upper_bound(bucket(1 << k)), 1 << k, "2^{k}");
            assert_ne!(bucket(1 << k), bucket((1 << k) + 1), "2^{k}");
        }
    }

    #[test]
    fn buckets_are_contiguous() {
        for index in 0..BUCKETS - 1 {
            assert_eq!(bucket(upper_bound(index)), index);
            assert_eq!(bucket(upper_bound(index) + 1), index + 1);
        }
    }

    #[test]
    fn extremes_have_a_bucket() {
        assert_eq!(bucket(0), 0);
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    proptest! {
        #[test]
        fn a_value_is_within_an_eighth_of_its_bound(value in 1u64..1 << 42) {
            let bound = upper_bound(bucket(value));
            prop_assert!(value <= bound);
            prop_assert!(bound - value <= value / 8 + 1);
        }
    }
}
