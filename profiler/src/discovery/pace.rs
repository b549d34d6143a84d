//! How fast processes are looked at and attached to: so many attaches in a second, and three quarters of the time at most.
//! Time is an argument.

/// One part of the time in so many is rest.
const REST: u64 = 3;

/// Shares the time between discovery and everything else.
#[derive(Clone, Debug)]
pub struct Pace {
    /// From the beginning of one attach to that of the next, nanoseconds.
    interval_ns: u64,
    /// Nothing is done before.
    next_ns: u64,
}

impl Pace {
    /// At most `per_second` attaches.
    pub fn new(per_second: u32) -> Pace {
        Pace { interval_ns: 1_000_000_000 / u64::from(per_second.max(1)), next_ns: 0 }
    }

    /// Whether the next process may be looked at.
    pub fn is_ready(&self, now_ns: u64) -> bool {
        now_ns >= self.next_ns
    }

    /// When it may be.
    pub fn next_ns(&self) -> u64 {
        self.next_ns
    }

    /// A process was looked at from `began_ns` to `ended_ns`, and attached to or not. It rests for a third of the time that took:
    /// the records of those that are watched already must not wait.
    pub fn done(&mut self, began_ns: u64, ended_ns: u64, attached: bool) {
        let rested_ns = ended_ns + ended_ns.saturating_sub(began_ns).div_ceil(REST);
        let interval_ns = if attached { self.interval_ns } else { 0 };
        self.next_ns = rested_ns.max(began_ns + interval_ns);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    /// Works through `n` processes as fast as is permitted, each of which takes `ms`; milliseconds until the last begins.
    fn check(per_second: u32, n: u64, ms: u64, attached: bool) -> u64 {
        let mut pace = Pace::new(per_second);
        let mut now_ns = 0;
        for _ in 1..n {
            assert!(pace.is_ready(now_ns));
            pace.done(now_ns, now_ns + ms * MS, attached);
            assert!(!pace.is_ready(now_ns + ms * MS) || ms == 0);
            now_ns = pace.next_ns().max(now_ns);
        }
        now_ns / MS
    }

    /// Check that attaches are as far apart as asked for, and that what is only looked at is not held up.
    #[test]
    fn attaches_are_paced() {
        assert_eq!(check(50, 200, 1, true), 199 * 20);
        assert_eq!(check(50, 200, 3, false), 199 * 4);
        assert_eq!(check(50, 200, 0, false), 0);
    }

    /// Check that no more than three quarters of the time are taken, whatever one attach takes.
    #[test]
    fn a_quarter_of_the_time_is_left() {
        assert_eq!(check(50, 11, 90, true), 10 * 120);
        assert_eq!(check(1, 11, 100, true), 10 * 1000);
    }
}
