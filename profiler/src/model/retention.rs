//! How long what has ended is still shown. Never what is shown.

use std::collections::VecDeque;

/// What has ended, in the order of its end: expiry looks at the front only, never at all entries.
pub struct Retention<K> {
    window_ns: u64,
    ended: VecDeque<(u64, K)>,
}

impl<K> Retention<K> {
    /// Retains for `window_ns`.
    pub fn new(window_ns: u64) -> Retention<K> {
        Retention { window_ns, ended: VecDeque::new() }
    }

    /// `key` has ended.
    pub fn end(&mut self, time_ns: u64, key: K) {
        // Ends are reported nearly in order. One that is late waits for its predecessor: longer, never shorter.
        let time_ns = self.ended.back().map_or(time_ns, |(last, _)| time_ns.max(*last));
        self.ended.push_back((time_ns, key));
    }

    /// The next key whose window has passed at `now_ns`; it is forgotten here.
    pub fn expire(&mut self, now_ns: u64) -> Option<K> {
        let (ended_ns, _) = self.ended.front()?;
        if now_ns < ended_ns.saturating_add(self.window_ns) {
            return None;
        }
        self.ended.pop_front().map(|(_, key)| key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Check that everything stays for its window at least, and goes once all windows have passed.
        #[test]
        fn each_stays_for_its_window(ends in proptest::collection::vec(0u64..1000, 1..50), now in 0u64..3000) {
            let mut retention = Retention::new(500);
            for (key, &time) in ends.iter().enumerate() {
                retention.end(time, key);
            }
            let gone: Vec<usize> = std::iter::from_fn(|| retention.expire(now)).collect();
            for &key in &gone {
                prop_assert!(ends[key] + 500 <= now);
            }
            let rest = std::iter::from_fn(|| retention.expire(1500)).count();
            prop_assert_eq!(gone.len() + rest, ends.len());
        }
    }
}
