//! Event loops: which threads are some, and what is counted of them. Never how a wait is recognised.

use crate::histogram::Histogram;

/// The period of the timer that is replayed over a loop's busy spans, nanoseconds.
pub const TIMER_NS: u64 = 10_000_000;
/// What the time of a loop is counted in, and its waits are given in, nanoseconds: epoll_wait knows no less.
const TICK_NS: u64 = 1_000_000;

/// How long before its thread is switched away a loop has looked at the clock and begun its wait, about, nanoseconds.
const BEFORE_NS: u64 = 30_000;
/// A wait that was longer by more than this did not end by its time, or not for want of precision, nanoseconds.
const MOST_LAG_NS: u64 = 1_000_000;

/// The time of a loop at a moment.
#[inline(always)]
const fn ticks(time_ns: u64) -> u64 {
    time_ns - time_ns % TICK_NS
}

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
    /// Up to when it is counted: when its thread was switched away for its last wait.
    pub since_ns: u64,
    /// When the replayed timer is due, in the time of the loop.
    pub due_ns: u64,
    /// When it fired last.
    pub fired_ns: u64,
    /// By how much it fired too early since the last time that it was late: whole ticks make it so.
    pub early_ns: u64,
    /// For how long the loop asked to wait at most, 0 where that is not known or has no end.
    pub asked_ns: u64,
    /// How long after the time of its last wait was over it ran: the kernel's timers and a waking CPU take that.
    pub lag_ns: u64,
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
        fired_ns: 0,
        early_ns: 0,
        asked_ns: 0,
        lag_ns: 0,
        active_ns: 0,
        idle_ns: 0,
        iteration: Histogram::EMPTY,
        delay: Histogram::EMPTY,
    };

    /// Counts from a wait on that begins now.
    #[inline(always)]
    pub fn begin(&mut self, now_ns: u64) {
        self.since_ns = now_ns;
        self.set(now_ns);
    }

    /// Sets the timer.
    #[inline(always)]
    fn set(&mut self, now_ns: u64) {
        (self.fired_ns, self.due_ns) = (now_ns, ticks(now_ns - BEFORE_NS) + TIMER_NS);
    }

    /// The timer fires, and is set again: what it was late adds up to all the time that was more than its periods.
    #[inline(always)]
    fn fire(&mut self, now_ns: u64) {
        let should_ns = self.fired_ns + TIMER_NS + self.early_ns;
        self.early_ns = should_ns.saturating_sub(now_ns);
        self.delay.record(now_ns.saturating_sub(should_ns));
        self.set(now_ns);
    }

    /// It was idle up to now: the timer fired in time, which is as long after the wait began as the loop asked to wait,
    /// and late by what its own waits are.
    #[inline(always)]
    pub fn idle_until(&mut self, now_ns: u64) {
        // Read by user space before it has begun: nothing is known of it yet.
        if self.since_ns == 0 {
            return;
        }
        self.idle_ns += now_ns.saturating_sub(self.since_ns);
        let wakes_ns = self.due_ns + (self.since_ns - BEFORE_NS) % TICK_NS;
        if wakes_ns <= now_ns {
            self.fire(wakes_ns + self.lag_ns);
            let period_ns = TIMER_NS + self.lag_ns;
            // Never 0, which only the compiler does not know.
            let more = (now_ns - wakes_ns).checked_div(period_ns).unwrap_or_default();
            if let Some(early_ns) = self.early_ns.checked_div(more) {
                let late_ns = self.lag_ns.saturating_sub(early_ns);
                self.early_ns -= (self.lag_ns - late_ns) * more;
                self.delay.record_times(late_ns, more);
                self.set(wakes_ns + self.lag_ns + more * period_ns);
            }
        }
        self.since_ns = now_ns;
    }

    /// It waited up to now, and runs since `runs_ns`.
    #[inline(always)]
    pub fn woken(&mut self, began_ns: u64, now_ns: u64, runs_ns: u64) {
        let asked_until_ns = began_ns - BEFORE_NS + self.asked_ns;
        let lag_ns = runs_ns.saturating_sub(asked_until_ns);
        if self.asked_ns != 0 && now_ns >= asked_until_ns && lag_ns <= MOST_LAG_NS {
            self.lag_ns = lag_ns;
        }
    }

    /// It was busy since it was idle last, and waits again: a timer that was due meanwhile fires now.
    #[inline(always)]
    pub fn busy_until(&mut self, now_ns: u64) {
        let busy = now_ns.saturating_sub(self.since_ns);
        self.active_ns += busy;
        self.iteration.record(busy);
        if self.due_ns <= now_ns - BEFORE_NS {
            self.fire(now_ns);
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

const _: () = assert!(size_of::<LoopStats>() == 64 + 2 * size_of::<Histogram>());

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
        // A wait begins a little before its thread is switched away: here, on the tick.
        let at = |ms: u64| 1_000_000 * MS + ms * MS + BEFORE_NS;
        let mut stats = LoopStats::EMPTY;
        stats.idle_until(at(0));
        assert_eq!((stats.delay.count, stats.idle_ns), (0, 0));
        stats.begin(at(0));
        stats.idle_until(at(35));
        assert_eq!((stats.delay.count, stats.delay.sum), (3, 0));
        // Due at 40, and 7 ms late. The one before was early by what a wait begins early. Due again at 57.
        stats.busy_until(at(47));
        assert_eq!((stats.delay.count, stats.delay.sum), (4, 7 * MS));
        stats.idle_until(at(50));
        stats.busy_until(at(56));
        stats.idle_until(at(57));
        assert_eq!((stats.delay.count, stats.delay.sum), (5, 7 * MS));
        assert_eq!((stats.active_ns, stats.idle_ns, stats.iteration.count), (18 * MS, 39 * MS, 2));
    }

    /// Check that all intervals of the timer together are the time that has passed, with waits that begin within ticks.
    #[test]
    fn delays_add_up() {
        const US: u64 = 1_000;
        let mut stats = LoopStats::EMPTY;
        let mut now = 123_456;
        stats.begin(now);
        stats.lag_ns = 120 * US;
        let began = now;
        for n in 1..1000_u64 {
            now += (n * 7_919) % 17_000 * US;
            stats.idle_until(now);
            now += (n * 104_729) % 23_000 * US + n;
            stats.busy_until(now);
        }
        let intervals = stats.delay.count * TIMER_NS + stats.delay.sum - stats.early_ns;
        assert_eq!(stats.fired_ns - began, intervals);
        assert!(stats.early_ns < 2 * TICK_NS);
        assert!(now - stats.fired_ns < TIMER_NS + 2 * TICK_NS);
    }
}
