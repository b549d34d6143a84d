//! One walk through the lists of all runtimes of a process, in as many goes as it takes. Never a single list.

use rustc_hash::{FxHashMap, FxHashSet};

use super::list::{Counted, Pass, Sink};
use super::owned::{Owned, Reading};
use super::reading;
use super::task::Types;
use crate::runtime::Effort;
use crate::target::memory::{Memory, MemoryError};

/// How often a walk that was overtaken by changes is repeated.
const ATTEMPTS: usize = 3;
/// Lists of more tasks are not walked once more for a count that is exact.
const MOST_REPEATED: u64 = 100_000;

/// A walk, as far as it is.
pub(super) struct Round {
    lists: Vec<Owned>,
    /// Of `lists`, those that are done.
    done: usize,
    /// Times that the list in hand was walked.
    attempts: usize,
    /// The list in hand, and what it said when the walk began.
    pass: Option<(Reading, Pass)>,
    handed: u64,
    /// Tasks by the id of the list, where it was read.
    alive: FxHashMap<u64, u64>,
    /// Ids of the lists of which no task waited for a thread.
    idle: FxHashSet<u64>,
    pub(super) counted: Counted,
    /// Whether all lists were as they say, before and after.
    pub(super) consistent: bool,
}

impl Round {
    pub(super) fn new(lists: Vec<Owned>) -> Round {
        Round {
            lists,
            done: 0,
            attempts: 0,
            pass: None,
            handed: 0,
            alive: FxHashMap::default(),
            idle: FxHashSet::default(),
            counted: Counted::default(),
            consistent: true,
        }
    }

    /// Adds what was handed over; returns all that was.
    pub(super) fn add_handed(&mut self, handed: u64) -> u64 {
        self.handed += handed;
        self.handed
    }

    /// Tasks of a list.
    pub(super) fn alive(&self, id: u64) -> Option<u64> {
        self.alive.get(&id).copied()
    }

    /// Whether no task of a list was in any queue.
    pub(super) fn is_idle(&self, id: u64) -> bool {
        self.idle.contains(&id)
    }

    fn next(&mut self) {
        (self.done, self.attempts, self.pass) = (self.done + 1, 0, None);
    }

    /// Walks until all lists are done, or time is up; whether they are done. A walk that does not go on is done then.
    ///
    /// # Errors
    /// The memory cannot be read.
    pub(super) fn go_on(
        &mut self,
        memory: &dyn Memory,
        types: &Types,
        effort: Effort,
        sink: &mut Sink<'_>,
    ) -> Result<bool, MemoryError> {
        while let Some(owned) = self.lists.get(self.done).copied() {
            let (before, mut pass) = match self.pass.take() {
                Some(pass) => pass,
                None => match reading(memory, &owned)? {
                    Some(before) => (before, Pass::new(&owned)),
                    // It was shut down just now, and its tasks are gone with it.
                    None => {
                        self.next();
                        continue;
                    }
                },
            };
            if !pass.go_on(memory, &owned, types, effort, sink)? && effort.goes_on {
                self.pass = Some((before, pass));
                return Ok(false);
            }
            let counted = pass.end();
            let Some(after) = reading(memory, &owned)? else {
                self.next();
                continue;
            };
            let whole = counted.broken == 0 && after.alive.is_none_or(|alive| alive == counted.members);
            let consistent = whole && before == after;
            self.attempts += 1;
            let repeats = self.attempts < ATTEMPTS && counted.members <= MOST_REPEATED;
            if !consistent && repeats && !effort.is_over() {
                continue;
            }
            let alive = after.alive.or_else(|| (counted.broken == 0).then(|| counted.by_type.values().sum()));
            self.alive.extend(alive.map(|alive| (owned.id, alive)));
            if consistent && counted.runnable == 0 {
                self.idle.insert(owned.id);
            }
            self.consistent &= consistent;
            self.counted.absorb(counted);
            self.next();
        }
        Ok(true)
    }
}
