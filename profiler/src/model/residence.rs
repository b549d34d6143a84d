//! Tasks that stay on a thread from sample to sample. Never a poll that was seen to begin or end.
//!
//! Samples that find one task on a thread again and again show one long poll, or many short ones of a task that has the
//! thread nearly to itself. The two look alike; what tells them apart is how likely such a run is by chance, given
//! how often the task is found on that thread otherwise. A run counts only if that is very unlikely, which is judged
//! some time after it, when the samples behind it are known too.

use std::collections::VecDeque;

use rustc_hash::FxHashMap;

use super::snapshot::LongRunSnapshot;
use crate::event::{CpuSample, TypeId};

/// The shortest run that is kept, nanoseconds from its first to its last sample.
pub const LONG_NS: u64 = 40_000_000;
/// CPU time of the shortest run, nanoseconds: less, since it may lag by a tick of the scheduler.
const LEAST_CPU_NS: u64 = 30_000_000;
/// Samples in the shortest run.
const LEAST_SAMPLES: u32 = 3;
/// A run that goes on is judged after so many samples all the same.
const ENDLESS_SAMPLES: u32 = 100;
/// How long a run waits for its judgement, nanoseconds.
const WAIT_NS: u64 = 500_000_000;
/// Samples of a thread that are remembered.
const REMEMBERED: usize = 256;
/// A thread that was not sampled for so long is forgotten, nanoseconds.
const FORGET_NS: u64 = 10_000_000_000;
/// How likely by chance a run may be that counts, per sample: at 100 a second, one in four months of a thread.
const CHANCE: f64 = 1e-9;
/// How likely a run may be that counts with another such of its type: one in half a day, and two hardly ever so close.
const CHANCE_OF_SUSPECT: f64 = 2e-7;
/// How close two such runs are to be, nanoseconds.
const SUSPECTED_NS: u64 = 5_000_000_000;

/// The threads of one target, and what was found on them.
#[derive(Default)]
pub struct Residences {
    threads: FxHashMap<u32, Thread>,
    by_type: FxHashMap<TypeId, Runs>,
}

/// Runs of one type.
#[derive(Default)]
struct Runs {
    /// Those that count.
    long: LongRunSnapshot,
    /// The last that does not count alone, and its thread.
    suspect: Option<(u32, Run)>,
}

#[derive(Default)]
struct Thread {
    /// The oldest first.
    samples: VecDeque<Sight>,
    run: Option<Run>,
    /// Runs that have ended and wait for their judgement.
    waiting: VecDeque<Run>,
}

/// A sample of a thread.
#[derive(Clone, Copy)]
struct Sight {
    time_ns: u64,
    /// How often the thread had slept.
    sleeps: u64,
    /// The task that was polled.
    id: Option<u64>,
}

#[derive(Clone, Copy)]
struct Run {
    id: u64,
    kind: TypeId,
    /// How often its thread had slept when it began.
    sleeps: u64,
    first_ns: u64,
    last_ns: u64,
    first_cpu_ns: u64,
    last_cpu_ns: u64,
    samples: u32,
    judged: bool,
}

impl Run {
    fn length_ns(&self) -> u64 {
        self.last_ns - self.first_ns
    }

    fn is_long(&self) -> bool {
        let ran_ns = self.last_cpu_ns - self.first_cpu_ns;
        self.samples >= LEAST_SAMPLES && self.length_ns() >= LONG_NS && ran_ns >= LEAST_CPU_NS
    }
}

impl Residences {
    /// A sample of a thread, and the task that it polls by its id and type.
    pub fn take(&mut self, time_ns: u64, sample: &CpuSample, task: Option<(u64, TypeId)>) {
        let thread = self.threads.entry(sample.tid).or_default();
        match (&mut thread.run, task) {
            // Whether it had the CPU all the time or waited for it: a thread that did not sleep did not wait for events.
            (Some(run), Some(task)) if (run.id, run.kind) == task && run.sleeps == sample.sleeps => {
                // A thread that hardly ran since the last sample is where it was: that shows nothing new.
                if sample.cpu_ns.saturating_sub(run.last_cpu_ns) < sample.period_ns / 2 {
                    return;
                }
                (run.last_ns, run.last_cpu_ns) = (run.last_ns.max(time_ns), sample.cpu_ns);
                run.samples += 1;
            }
            (run, task) => {
                thread.waiting.extend(run.take().filter(Run::is_long));
                *run = task.map(|(id, kind)| Run {
                    id,
                    kind,
                    sleeps: sample.sleeps,
                    first_ns: time_ns,
                    last_ns: time_ns,
                    first_cpu_ns: sample.cpu_ns,
                    last_cpu_ns: sample.cpu_ns,
                    samples: 1,
                    judged: false,
                });
            }
        }
        if thread.samples.len() == REMEMBERED {
            thread.samples.pop_front();
        }
        thread.samples.push_back(Sight { time_ns, sleeps: sample.sleeps, id: task.map(|(id, _)| id) });
    }

    /// Time has passed: judges what has waited.
    pub fn advance(&mut self, now_ns: u64) {
        let Residences { threads, by_type } = self;
        threads.retain(|&tid, thread| {
            thread.judge(now_ns, |run, chance| by_type.entry(run.kind).or_default().take(tid, run, chance));
            !thread.waiting.is_empty()
                || thread.samples.back().is_some_and(|last| now_ns.saturating_sub(last.time_ns) < FORGET_NS)
        });
    }

    /// The long runs of one type.
    pub fn of_type(&self, kind: TypeId) -> Option<LongRunSnapshot> {
        self.by_type.get(&kind).map(|runs| runs.long).filter(|long| long.count > 0)
    }
}

impl Runs {
    /// A run of thread `tid` that is as likely as `chance`; whether it counts.
    fn take(&mut self, tid: u32, run: &Run, chance: f64) -> bool {
        if !run.judged && chance >= CHANCE {
            if chance >= CHANCE_OF_SUSPECT {
                return false;
            }
            let near = |(_, other): &(u32, Run)| run.last_ns.abs_diff(other.last_ns) <= SUSPECTED_NS;
            match self.suspect.take().filter(near) {
                Some((tid, other)) => self.record(tid, &other),
                None => {
                    self.suspect = Some((tid, *run));
                    return false;
                }
            }
        }
        self.record(tid, run);
        true
    }

    fn record(&mut self, tid: u32, run: &Run) {
        let long = &mut self.long;
        long.count += u64::from(!run.judged);
        long.longest_ns = long.longest_ns.max(run.length_ns());
        long.last_ns = long.last_ns.max(run.last_ns);
        long.last_length_ns = run.length_ns();
        (long.last_id, long.last_tid) = (run.id, tid);
    }
}

impl Thread {
    /// Calls `counts` with what is to be judged now, and how likely it is by chance.
    fn judge(&mut self, now_ns: u64, mut counts: impl FnMut(&Run, f64) -> bool) {
        if let Some(mut run) = self.run {
            // Once it has counted, it counts on: only its length grows.
            if run.is_long() && (run.judged || run.samples >= ENDLESS_SAMPLES) {
                run.judged = counts(&run, self.chance(&run));
                self.run = Some(run);
            } else if now_ns.saturating_sub(run.last_ns) > WAIT_NS {
                // The thread sleeps.
                self.waiting.extend(self.run.take().filter(Run::is_long));
            }
        }
        while let Some(run) = self.waiting.front().copied()
            && now_ns.saturating_sub(run.last_ns) > WAIT_NS
        {
            self.waiting.pop_front();
            counts(&run, self.chance(&run));
        }
    }

    /// How likely a sample begins such a run of short polls: that each further one finds the same task again.
    ///
    /// By how often the samples around it come to the task from another: one long poll before must not make the next
    /// likely.
    fn chance(&self, run: &Run) -> f64 {
        let (mut came, mut could) = (0_u32, 0_u32);
        let mut before: Option<&Sight> = None;
        for sight in &self.samples {
            let is_it = sight.id == Some(run.id);
            let stayed = before.is_some_and(|before| before.id == Some(run.id) && before.sleeps == sight.sleeps);
            if !stayed && !(run.first_ns..=run.last_ns).contains(&sight.time_ns) {
                (came, could) = (came + u32::from(is_it), could + 1);
            }
            before = Some(sight);
        }
        let share = f64::from(came + 1) / f64::from(could + 4);
        share.powf(f64::from(run.samples - 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Current;

    const PERIOD: u64 = 10_101_010;
    const KIND: TypeId = TypeId(3);

    fn take(residences: &mut Residences, time_ns: u64, tid: u32, sleeps: u64, id: u64) {
        take_after(residences, time_ns, time_ns, tid, sleeps, id);
    }

    fn take_after(residences: &mut Residences, time_ns: u64, cpu_ns: u64, tid: u32, sleeps: u64, id: u64) {
        let sample = CpuSample { tid, sleeps, cpu_ns, period_ns: PERIOD, current: Current::Unknown, stack: None };
        residences.take(time_ns, &sample, (id != 0).then_some((id, KIND)));
    }

    /// Samples one thread once per period with the given ids, 0 for none, and lets enough time pass.
    fn check(ids: &[u64], expected: Option<(u64, u64)>) {
        let mut residences = Residences::default();
        let mut time = 1_000_000_000;
        for &id in ids {
            time += PERIOD;
            take(&mut residences, time, 5, 0, id);
            residences.advance(time);
        }
        residences.advance(time + 2 * WAIT_NS);
        let found = residences.of_type(KIND).map(|runs| (runs.count, runs.longest_ns / PERIOD));
        assert_eq!(found, expected, "{ids:?}");
    }

    /// Check that a task that stays counts: the more is known of its thread, the sooner.
    #[test]
    fn a_long_stay_counts() {
        check(&[vec![0; 200], vec![1; 5], vec![0; 40]].concat(), Some((1, 4)));
        check(&[vec![0; 200], vec![1; 4], vec![0; 40]].concat(), None);
        check(&[vec![0; 20], vec![1; 8], vec![0; 10]].concat(), Some((1, 7)));
        check(&[vec![0; 20], vec![1; 6], vec![0; 10]].concat(), None);
        check(&[1; 16], Some((1, 15)));
        check(&[1; 15], None);
    }

    /// Check that two stays that would not count alone count together, where they are close.
    #[test]
    fn a_second_stay_confirms_the_first() {
        // The task is found elsewhere, too: every 80th time.
        let stays = |firsts: [usize; 2]| -> Vec<u64> {
            let is_stay = |n: usize| firsts.iter().any(|first| (*first..first + 5).contains(&n));
            (0..1500).map(|n| u64::from(n % 80 == 0 || is_stay(n))).collect()
        };
        check(&stays([300, 500]), Some((2, 4)));
        check(&stays([300, 1100]), None);
    }

    /// Check that tasks that share a busy thread in short polls are found to hold it as good as never.
    #[test]
    fn short_polls_in_a_row_are_no_long_stay() {
        let mut state = 1_u64;
        let mut residences = Residences::default();
        for n in 1..2_000_000 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let time = n * PERIOD;
            take(&mut residences, time, 5, 0, 1 + (state >> 33) % 16);
            residences.advance(time);
        }
        assert_eq!(residences.of_type(KIND), None);
    }

    /// Check that a task that has the thread nearly to itself in short polls is not taken for one that blocks it.
    #[test]
    fn a_busy_thread_is_no_long_stay() {
        let busy: Vec<u64> = (0..300).map(|n| u64::from(n % 9 != 0)).collect();
        check(&busy, None);
        // Nor at its beginning, when nothing else is known yet.
        check(&busy[1..40], None);
    }

    /// Check that a stay without an end counts while it lasts, once.
    #[test]
    fn a_stay_without_an_end_counts_once() {
        check(&[1; 150], Some((1, 149)));
        let hog: Vec<u64> = [vec![0, 2, 0, 0, 2], vec![1; 150], vec![0, 0]].concat();
        check(&hog, Some((1, 149)));
    }

    /// Check that a stay goes on while its thread waits for a CPU, and ends when it sleeps.
    #[test]
    fn sleep_ends_a_stay() {
        for (sleeps, expected) in [([4; 6], Some(1)), ([4, 4, 4, 5, 5, 5], None)] {
            let mut residences = Residences::default();
            let others = 300;
            (1..=others).for_each(|n| take(&mut residences, n * PERIOD, 5, 4, 0));
            for (time, sleeps) in [1, 2, 3, 9, 10, 11].into_iter().zip(sleeps) {
                take(&mut residences, (others + time) * PERIOD, 5, sleeps, 1);
            }
            residences.advance((others + 100) * PERIOD);
            assert_eq!(residences.of_type(KIND).map(|runs| runs.count), expected);
        }
    }

    /// Check that a thread that was preempted within a short poll, and found there again, is no long stay.
    #[test]
    fn waiting_for_a_cpu_is_no_stay() {
        let mut residences = Residences::default();
        for n in 1..30 {
            take_after(&mut residences, n * PERIOD, 7 + n * 1000, 5, 0, 1);
        }
        residences.advance(200 * PERIOD);
        assert_eq!(residences.of_type(KIND), None);
    }

    /// Check that threads that are not sampled any more are forgotten.
    #[test]
    fn threads_are_forgotten() {
        let mut residences = Residences::default();
        (0..100).for_each(|tid| take(&mut residences, 1, tid, 0, 1));
        residences.advance(2 + FORGET_NS);
        assert!(residences.threads.is_empty());
    }
}
