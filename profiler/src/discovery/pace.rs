//! How fast processes are looked at and attached to: so many attaches in a second, and seven eighths of the time at most;
//! and what waits for it meanwhile.
//! Time is an argument.

/// After so many parts of work comes one of rest.
const REST: u64 = 7;

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

    /// From `began_ns` to `ended_ns` processes were looked at, and so many attached to. It rests for a seventh of the time that
    /// took: the records of those that are watched already must not wait.
    pub fn done(&mut self, began_ns: u64, ended_ns: u64, attached: u32) {
        let rested_ns = ended_ns + ended_ns.saturating_sub(began_ns).div_ceil(REST);
        self.next_ns = rested_ns.max(began_ns + u64::from(attached) * self.interval_ns);
    }
}

/// So long windows wait for processes that are to be attached to, of so much time, nanoseconds.
const RUSH_NS: u64 = 10_000_000_000;
const RUSH_EVERY_NS: u64 = 60_000_000_000;
/// So many are attached to before.
const FEW: u32 = 16;

/// Whether attaching comes before measuring in windows: where many processes wait, and not for ever.
#[derive(Clone, Debug, Default)]
pub struct Rush {
    began_ns: Option<u64>,
    attached: u32,
}

impl Rush {
    /// Whether it does now, when so many processes wait.
    pub fn is_on(&mut self, waiting: usize, now_ns: u64) -> bool {
        if self.began_ns.is_some_and(|began| now_ns.saturating_sub(began) >= RUSH_EVERY_NS) {
            *self = Rush::default();
        }
        if waiting == 0 {
            return false;
        }
        now_ns.saturating_sub(*self.began_ns.get_or_insert(now_ns)) < RUSH_NS && self.attached >= FEW
    }

    /// So many more were attached to.
    pub fn attached(&mut self, more: u32) {
        self.attached = self.attached.saturating_add(more);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    /// Looks `n` times at processes as fast as is permitted, each of which takes `ms`; milliseconds until the last begins.
    fn check(per_second: u32, n: u64, ms: u64, attached: u32) -> u64 {
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
        assert_eq!(check(50, 200, 1, 1), 199 * 20);
        assert_eq!(check(50, 200, 7, 0), 199 * 8);
        assert_eq!(check(50, 200, 0, 0), 0);
        assert_eq!(check(50, 40, 30, 5), 39 * 100);
    }

    /// Check that windows wait for processes where they are many, ten seconds of each minute at most.
    #[test]
    fn a_rush_ends() {
        const S: u64 = 1000 * MS;
        let mut rush = Rush::default();
        assert!(!rush.is_on(0, 0));
        assert!(!rush.is_on(100, S));
        rush.attached(FEW);
        assert!(rush.is_on(1, 2 * S));
        assert!(!rush.is_on(0, 2 * S));
        assert!(rush.is_on(1, 10 * S));
        assert!(!rush.is_on(1, 11 * S));
        assert!(!rush.is_on(1, 60 * S));
        assert!(!rush.is_on(1, 61 * S));
        rush.attached(FEW);
        assert!(rush.is_on(1, 62 * S));
    }

    /// Check that no more than seven eighths of the time are taken, whatever one attach takes.
    #[test]
    fn an_eighth_of_the_time_is_left() {
        assert_eq!(check(50, 11, 70, 1), 10 * 80);
        assert_eq!(check(1, 11, 100, 1), 10 * 1000);
    }
}
