//! Event loops: which threads are some, and what is counted of them. Never how a wait is recognised.

use crate::histogram::Histogram;

/// The period of the timer that is replayed over a loop's busy spans, nanoseconds.
pub const TIMER_NS: u64 = 10_000_000;

/// Bits and numbers of [`crate::sched::Thread::loop_score`]: how sure it is that a thread is a loop.
pub mod score {
    /// The thread is a loop.
    pub const IS_LOOP: u32 = 1 << 16;
    /// It is one, or was.
    pub const EVER: u32 = 1 << 17;
    /// So many waits for events more than the others make a loop.
    pub const SURE: u32 = 32;
    /// No more are remembered.
    const MOST: u32 = 64;
    /// So many waits for events weigh as much as one other sleep.
    const OTHER: u32 = 4;
    const NUMBER: u32 = 0xffff;

    /// The score after a wait for events.
    #[inline(always)]
    pub const fn after_wait(score: u32) -> u32 {
        let number = if score & NUMBER < MOST { (score & NUMBER) + 1 } else { MOST };
        let flags = if number >= SURE { IS_LOOP | EVER } else { score & (IS_LOOP | EVER) };
        number | flags
    }

    /// The score after any other sleep: a loop is none any more when nothing is left.
    #[inline(always)]
    pub const fn after_other(score: u32) -> u32 {
        let number = (score & NUMBER).saturating_sub(OTHER);
        if number == 0 { score & EVER } else { number | score & (IS_LOOP | EVER) }
    }
}

/// What is counted of a loop. Key: its thread's id. Times in nanoseconds.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct LoopStats {
    /// Up to when it is counted: when its last wait began.
    pub since_ns: u64,
    /// When the replayed timer fires next.
    pub due_ns: u64,
    /// Time from wake-ups to the next waits.
    pub active_ns: u64,
    /// Time in waits.
    pub idle_ns: u64,
    /// Times from a wake-up to the next wait.
    pub iteration: Histogram,
    /// How late the replayed timer fired.
    pub delay: Histogram,
}

impl LoopStats {
    /// Nothing counted.
    pub const EMPTY: LoopStats = LoopStats {
        since_ns: 0,
        due_ns: 0,
        active_ns: 0,
        idle_ns: 0,
        iteration: Histogram::EMPTY,
        delay: Histogram::EMPTY,
    };

    /// Counts from a wait on that begins now.
    #[inline(always)]
    pub fn begin(&mut self, now_ns: u64) {
        (self.since_ns, self.due_ns) = (now_ns, now_ns + TIMER_NS);
    }

    /// It was idle up to now: the timer fired in time.
    #[inline(always)]
    pub fn idle_until(&mut self, now_ns: u64) {
        self.idle_ns += now_ns.saturating_sub(self.since_ns);
        if self.due_ns <= now_ns {
            let fired = (now_ns - self.due_ns) / TIMER_NS + 1;
            self.delay.buckets[0] += fired;
            self.delay.count += fired;
            self.due_ns += fired * TIMER_NS;
        }
        self.since_ns = now_ns;
    }

    /// It was busy since it was idle last, and waits again: a timer that was due meanwhile fires now.
    #[inline(always)]
    pub fn busy_until(&mut self, now_ns: u64) {
        let busy = now_ns.saturating_sub(self.since_ns);
        self.active_ns += busy;
        self.iteration.record(busy);
        if self.due_ns <= now_ns {
            self.delay.record(now_ns - self.due_ns);
            self.due_ns = now_ns + TIMER_NS;
        }
        self.since_ns = now_ns;
    }

    /// Adds what another loop has counted.
    pub fn merge(&mut self, other: &LoopStats) {
        self.active_ns += other.active_ns;
        self.idle_ns += other.idle_ns;
        self.iteration.merge(&other.iteration);
        self.delay.merge(&other.delay);
    }
}

const _: () = assert!(size_of::<LoopStats>() == 32 + 2 * size_of::<Histogram>());

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_mostly_waits_for_events_is_a_loop() {
        let rounds = |others: u32, waits: u32| {
            let mut score = 0;
            for _ in 0..100 {
                (0..waits).for_each(|_| score = score::after_wait(score));
                (0..others).for_each(|_| score = score::after_other(score));
            }
            score & score::IS_LOOP != 0
        };
        assert!(rounds(0, 1));
        assert!(rounds(1, 8));
        assert!(!rounds(1, 3));
        assert!(!rounds(1, 0));
        let mut score = (0..200).fold(0, |score, _| score::after_wait(score));
        (0..16).for_each(|_| score = score::after_other(score));
        assert_eq!(score, score::EVER);
    }

    #[test]
    fn a_timer_fires_in_time_while_idle_and_late_while_busy() {
        const MS: u64 = 1_000_000;
        let mut stats = LoopStats::EMPTY;
        stats.begin(0);
        stats.idle_until(35 * MS);
        assert_eq!((stats.delay.count, stats.delay.sum), (3, 0));
        // Due at 40: 7 ms late. Due again at 57.
        stats.busy_until(47 * MS);
        assert_eq!((stats.delay.count, stats.delay.sum), (4, 7 * MS));
        stats.idle_until(50 * MS);
        stats.busy_until(56 * MS);
        stats.idle_until(57 * MS);
        assert_eq!((stats.delay.count, stats.delay.sum), (5, 7 * MS));
        assert_eq!((stats.active_ns, stats.idle_ns, stats.iteration.count), (18 * MS, 39 * MS, 2));
    }
}
