//! Reads the tasks of a running process from its memory: finds the runtimes' lists, and walks them. Never a probe.
//!
//! Whatever is read is checked before it is believed: a task by its vtable, its owner and its neighbours' links, a list
//! by its tasks, and a whole walk by the number of tasks that the runtime itself has counted.

mod figures;
mod injection;
mod list;
mod owned;
mod pool;
mod round;
mod task;
mod thread;
mod window;

use rustc_hash::{FxHashMap, FxHashSet};

use self::figures::Places;
use self::injection::{Injection, Source};
use self::list::Sink;
use self::owned::{Owned, Reading};
use self::pool::{Known, Pool};
use self::round::Round;
pub use self::task::Types;
use crate::runtime::{Effort, FoundTask, Tally, Totals, Walk, Walked};
use crate::target::elf::ThreadLocal;
use crate::target::memory::{Batch, Memory, MemoryError, Region};

/// How often runtimes that were started meanwhile are looked for, nanoseconds.
const SEARCH_NS: u64 = 10_000_000_000;
/// Runtimes whose totals are kept when they are gone.
const MOST_GONE: usize = 4096;

/// Walks one process.
pub(super) struct TokioWalk {
    local: ThreadLocal,
    types: Types,
    /// The lists that are known.
    owned: Vec<Owned>,
    regions: Vec<Region>,
    /// Where the figures of the runtimes are, by the id of their list.
    places: FxHashMap<u64, Places>,
    /// Time that workers were busy when it was read last: what does not grow is not that.
    busy_ns: FxHashMap<u64, u64>,
    /// The injection queues, by the id of their runtime's list.
    injections: FxHashMap<u64, Injection>,
    /// The pools of blocking threads, by the same.
    pools: FxHashMap<u64, Pool>,
    searched_ns: Option<u64>,
    /// Tasks that were ever spawned, by the id of their list: what was counted stays counted.
    added: FxHashMap<u64, u64>,
    /// A walk that goes on.
    round: Option<Round>,
}

impl TokioWalk {
    /// Of a process with these types.
    pub(super) fn new(types: Types, local: ThreadLocal) -> TokioWalk {
        TokioWalk {
            local,
            types,
            owned: Vec::new(),
            regions: Vec::new(),
            places: FxHashMap::default(),
            busy_ns: FxHashMap::default(),
            injections: FxHashMap::default(),
            pools: FxHashMap::default(),
            searched_ns: None,
            added: FxHashMap::default(),
            round: None,
        }
    }

    /// Looks for lists. Those that are known and were not met again stay as long as they hold tasks.
    fn search(&mut self, memory: &dyn Memory, effort: Effort) -> Result<(), MemoryError> {
        let regions = memory.regions()?;
        let pointers = thread::pointers(memory, &regions, self.local, effort)?;
        let found = owned::find(memory, &regions, &pointers, &self.types, effort)?;
        let ids: FxHashSet<u64> = found.iter().map(|owned| owned.id).collect();
        self.owned.retain(|owned| !ids.contains(&owned.id));
        let unmet = readings(memory, &self.owned)?;
        let mut unmet = unmet.iter().map(|reading| reading.is_some_and(|reading| reading.alive > Some(0)));
        self.owned.retain(|_| unmet.next().unwrap_or(false));
        self.owned.extend(found);
        let now_ns = (effort.now_ns)();
        self.places.clear();
        for owned in &self.owned {
            self.places.insert(owned.id, figures::find(memory, &regions, owned, now_ns)?);
        }
        self.injections.retain(|id, _| self.places.contains_key(id));
        self.pools.retain(|id, _| self.places.contains_key(id));
        self.regions = regions;
        self.searched_ns = Some(now_ns);
        Ok(())
    }

    /// What the lists say now. Those that are gone are forgotten.
    fn totals(&mut self, memory: &dyn Memory) -> Result<Vec<Reading>, MemoryError> {
        let readings = readings(memory, &self.owned)?;
        let mut known = readings.iter().map(Option::is_some);
        self.owned.retain(|_| known.next().unwrap_or(false));
        let readings: Vec<Reading> = readings.into_iter().flatten().collect();
        for (owned, reading) in self.owned.iter().zip(&readings) {
            if let Some(added) = reading.added
                && (self.added.len() < MOST_GONE || self.added.contains_key(&owned.id))
            {
                let most = self.added.entry(owned.id).or_default();
                *most = added.max(*most);
            }
        }
        Ok(readings)
    }

    /// Fills in what is in the queues that threads share.
    fn queues(
        &mut self,
        memory: &dyn Memory,
        effort: Effort,
        owned: &Owned,
        totals: &mut Totals,
    ) -> Result<(), MemoryError> {
        let source = Source { memory, regions: &self.regions, types: &self.types, owned, effort };
        totals.injection_queue = self.injections.entry(owned.id).or_default().read(source)?;
        if !self.pools.contains_key(&owned.id) {
            let layout = self.pools.values().next().map(|pool| pool.layout);
            let taken: Vec<u64> = self.pools.values().map(|pool| pool.queue).collect();
            let lists: Vec<u64> = self.owned.iter().map(|owned| owned.place).collect();
            let known = Known { workers: totals.workers, layout, taken: &taken, lists: &lists };
            let found = pool::find(source, known)?;
            self.pools.extend(found.map(|pool| (owned.id, pool)));
        }
        if let Some(pool) = self.pools.get(&owned.id) {
            totals.blocking_queue = pool.read(source)?;
        }
        Ok(())
    }

    /// Fills in what the runtime counts of its workers.
    fn figures(
        &mut self,
        memory: &dyn Memory,
        effort: Effort,
        owned: &Owned,
        totals: &mut Totals,
    ) -> Result<(), MemoryError> {
        let Some(places) = self.places.get(&owned.id) else { return Ok(()) };
        figures::read(memory, &self.regions, places, totals, (effort.now_ns)())?;
        if let Some(busy_ns) = totals.busy_ns
            && self.busy_ns.insert(owned.id, busy_ns).is_some_and(|earlier| busy_ns < earlier)
        {
            *totals = Totals { alive: totals.alive, spawned: totals.spawned, ..Totals::default() };
            self.places.remove(&owned.id);
        }
        Ok(())
    }
}

impl Walk for TokioWalk {
    fn walk(
        &mut self,
        memory: &dyn Memory,
        effort: Effort,
        found: &mut dyn FnMut(&[FoundTask]),
    ) -> Result<Walked, MemoryError> {
        let known = self.owned.len();
        let mut readings = self.totals(memory)?;
        let now_ns = (effort.now_ns)();
        if readings.len() < known || readings.is_empty() {
            self.searched_ns = None;
        }
        let is_due = self.searched_ns.is_none_or(|searched| now_ns.saturating_sub(searched) > SEARCH_NS);
        // A walk that goes on is finished first: whether runtimes were added is told between two of them.
        if is_due && (self.round.is_none() || !effort.goes_on || readings.is_empty()) {
            self.search(memory, effort.of_search())?;
            readings = self.totals(memory)?;
        }
        let mut sink = Sink::new(found);
        let mut runtimes: Vec<Totals> = readings
            .iter()
            .map(|reading| Totals { alive: reading.alive, spawned: reading.added, ..Totals::default() })
            .collect();
        for (owned, totals) in self.owned.clone().iter().zip(&mut runtimes) {
            self.figures(memory, effort, owned, totals)?;
            self.queues(memory, effort, owned, totals)?;
        }
        let tasks = self.tasks(memory, effort, &mut sink, &mut runtimes)?;
        sink.flush();
        let counts = readings.iter().all(|reading| reading.added.is_some()) && !self.added.is_empty();
        let spawned = counts.then(|| self.added.values().sum());
        let earlier = self.round.as_mut().map_or(0, |round| round.add_handed(sink.handed) - sink.handed);
        Ok(Walked { runtimes, spawned, tasks, handed: sink.handed + earlier, goes_on: self.round.is_some() })
    }

    fn restart(&mut self) {
        self.round = None;
    }
}

impl TokioWalk {
    fn tasks(
        &mut self,
        memory: &dyn Memory,
        effort: Effort,
        sink: &mut Sink<'_>,
        runtimes: &mut [Totals],
    ) -> Result<Result<Tally, String>, MemoryError> {
        let earlier = self.round.take();
        if self.owned.is_empty() {
            return Ok(Err("no runtime with tasks was found in its memory".to_owned()));
        }
        let alive: u64 = runtimes.iter().filter_map(|totals| totals.alive).sum();
        if alive > effort.most_tasks {
            return Ok(Err(format!("{alive} tasks are more than the {} that are read one by one", effort.most_tasks)));
        }
        let earlier = earlier.filter(|_| effort.goes_on);
        let mut round = earlier.unwrap_or_else(|| Round::new(self.owned.clone()));
        if !round.go_on(memory, &self.types, effort, sink)? {
            self.round = Some(round);
            return Ok(Err("they are still being read".to_owned()));
        }
        for (owned, totals) in self.owned.iter().zip(runtimes) {
            totals.alive = round.alive(owned.id).or(totals.alive);
            // Every task in the queue is in the list too: where none waits, none is queued.
            if round.is_idle(owned.id) {
                totals.injection_queue.get_or_insert(0);
            }
        }
        let all = round.counted;
        if all.broken > 0 {
            let why = if effort.is_over() { "time was up" } else { "they changed too fast" };
            return Ok(Err(format!("{} lists of tasks were not read to their end: {why}", all.broken)));
        }
        let by_type = all.by_type.into_iter().filter(|(_, count)| *count > 0).collect();
        Ok(Ok(Tally { by_type, runnable: all.runnable, consistent: round.consistent }))
    }
}

/// What a list says now; `None` when it is gone.
fn reading(memory: &dyn Memory, owned: &Owned) -> Result<Option<Reading>, MemoryError> {
    Ok(readings(memory, std::slice::from_ref(owned))?.pop().flatten())
}

fn readings(memory: &dyn Memory, owned: &[Owned]) -> Result<Vec<Option<Reading>>, MemoryError> {
    let mut batch = Batch::default();
    for list in owned {
        batch.add(list.place, Owned::BYTES);
    }
    batch.read(memory)?;
    let reading = |(span, list): (usize, &Owned)| list.reading(&batch.words(span).collect::<Vec<_>>());
    Ok(owned.iter().enumerate().map(reading).collect())
}

#[cfg(test)]
mod tests;
