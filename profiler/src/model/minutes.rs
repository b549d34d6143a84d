//! How many tasks of each name were spawned and ended in each minute, for hours. Never a task, never a histogram.

use std::collections::VecDeque;
use std::sync::Arc;

use rustc_hash::FxHashMap;

use crate::event::Outcome;

/// A minute, nanoseconds.
pub const MINUTE_NS: u64 = 60_000_000_000;
/// Names that are told apart. Later ones are counted under [`OTHER`].
const NAMES: usize = 4096;
/// Counts that are kept, over all minutes: where there would be more, the oldest minutes go first.
const CELLS: usize = 1 << 17;
/// What is counted of a task, beside its end.
const COLUMNS: usize = 1 + Outcome::ALL.len();
/// The name of all that found no place.
pub const OTHER: &str = "other";

/// Which name; a position.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NameId(pub u32);

/// What happened to a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Happened {
    /// It was spawned.
    Spawned,
    /// It ended so.
    Ended(Outcome),
}

/// Counts of one name in one minute: spawned, and ended by [`Outcome`].
pub type Cell = [u64; COLUMNS];

/// One minute.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Minute {
    /// Minutes since the unix epoch.
    pub number: u64,
    /// Whether all births and ends of all targets were seen all the time: else these are fewer than there were.
    pub complete: bool,
    /// By name, in the order of the names' numbers; those of which nothing happened are left out.
    pub cells: Vec<(NameId, Cell)>,
}

/// The store. All times are monotonic nanoseconds.
pub struct Minutes {
    /// What is added to a monotonic time to make it one since the unix epoch. It stays: a clock that is set moves no minute.
    epoch_offset_ns: u64,
    most: usize,
    names: Vec<Arc<str>>,
    by_name: FxHashMap<Arc<str>, NameId>,
    /// When each was spawned last.
    last_spawn_ns: Vec<u64>,
    /// Minutes that are over, the oldest first.
    over: VecDeque<Arc<Minute>>,
    cells: usize,
    /// The minute that goes on, and the one before it: an event may come late.
    open: [Open; 2],
    gaps: usize,
}

#[derive(Default)]
struct Open {
    number: u64,
    incomplete: bool,
    cells: Vec<Cell>,
}

impl Open {
    fn close(&mut self) -> Minute {
        let cells = std::mem::take(&mut self.cells).into_iter().enumerate();
        let some = cells.filter(|(_, cell)| *cell != [0; COLUMNS]).map(|(name, cell)| (NameId(name as u32), cell));
        Minute { number: self.number, complete: !self.incomplete, cells: some.collect() }
    }
}

/// What is exported: minutes that are over are shared, and not copied.
#[derive(Clone, Debug, Default)]
pub struct MinutesSnapshot {
    /// The oldest first. The last one goes on.
    pub minutes: Vec<Arc<Minute>>,
    /// By [`NameId`].
    pub names: Vec<Arc<str>>,
    /// By [`NameId`]: when one was spawned last, nanoseconds since the unix epoch; 0 where none was.
    pub last_spawn_ns: Vec<u64>,
}

impl MinutesSnapshot {
    /// The name of a cell.
    pub fn name(&self, id: NameId) -> &str {
        &self.names[id.0 as usize]
    }

    /// When one of each name was spawned last.
    pub fn last_spawns(&self) -> impl Iterator<Item = (NameId, u64)> + '_ {
        self.last_spawn_ns.iter().enumerate().map(|(id, &at_ns)| (NameId(id as u32), at_ns))
    }
}

impl Minutes {
    /// An empty store of so many minutes.
    pub fn new(epoch_offset_ns: u64, most: usize) -> Minutes {
        let mut minutes = Minutes {
            epoch_offset_ns,
            most,
            names: Vec::new(),
            by_name: FxHashMap::default(),
            last_spawn_ns: Vec::new(),
            over: VecDeque::new(),
            cells: 0,
            open: <[Open; 2]>::default(),
            gaps: 0,
        };
        minutes.name(OTHER);
        minutes
    }

    /// The number of a name.
    pub fn name(&mut self, name: &str) -> NameId {
        if let Some(&id) = self.by_name.get(name) {
            return id;
        }
        if self.names.len() >= NAMES {
            return NameId(0);
        }
        let (id, name) = (NameId(self.names.len() as u32), Arc::<str>::from(name));
        self.names.push(Arc::clone(&name));
        self.last_spawn_ns.push(0);
        self.by_name.insert(name, id);
        id
    }

    /// Something happened to a task.
    pub fn add(&mut self, time_ns: u64, name: NameId, happened: Happened) {
        self.advance(time_ns);
        let number = self.number(time_ns);
        // What is older still is counted where it can be.
        let open = if number >= self.open[1].number { &mut self.open[1] } else { &mut self.open[0] };
        let at = name.0 as usize;
        if open.cells.len() <= at {
            open.cells.resize(at + 1, [0; COLUMNS]);
        }
        let column = match happened {
            Happened::Spawned => {
                self.last_spawn_ns[at] = self.last_spawn_ns[at].max(time_ns + self.epoch_offset_ns);
                0
            }
            Happened::Ended(outcome) => 1 + outcome as usize,
        };
        open.cells[at][column] += 1;
    }

    /// From now on, births and ends of one more target are not all seen.
    pub fn interrupt(&mut self, time_ns: u64) {
        self.advance(time_ns);
        self.gaps += 1;
        self.open[1].incomplete = true;
    }

    /// From now on they are.
    pub fn resume(&mut self, time_ns: u64) {
        self.advance(time_ns);
        self.gaps = self.gaps.saturating_sub(1);
    }

    /// Time has passed.
    pub fn advance(&mut self, time_ns: u64) {
        let number = self.number(time_ns);
        while self.open[1].number < number {
            self.open.swap(0, 1);
            let next = self.open[0].number + 1;
            // The first minute is the one in which there is something. After a gap only the last two can get anything.
            let first = self.open[0].number == 0;
            let skip = if first { number } else { next.max(number.saturating_sub(1)) };
            if self.open[1].number != 0 {
                let over = self.open[1].close();
                self.keep(over);
            }
            self.open[1] = Open { number: skip, incomplete: self.gaps > 0, cells: Vec::new() };
        }
    }

    fn keep(&mut self, minute: Minute) {
        self.cells += minute.cells.len();
        self.over.push_back(Arc::new(minute));
        while self.over.len() > self.most || (self.cells > CELLS && self.over.len() > 1) {
            let Some(oldest) = self.over.pop_front() else { break };
            self.cells -= oldest.cells.len();
        }
    }

    fn number(&self, time_ns: u64) -> u64 {
        (time_ns + self.epoch_offset_ns) / MINUTE_NS
    }

    /// All that is kept.
    pub fn snapshot(&self) -> MinutesSnapshot {
        let open = self.open.iter().filter(|open| open.number != 0).map(|open| {
            let copy = Open { number: open.number, incomplete: open.incomplete, cells: open.cells.clone() }.close();
            Arc::new(copy)
        });
        MinutesSnapshot {
            minutes: self.over.iter().cloned().chain(open).collect(),
            names: self.names.clone(),
            last_spawn_ns: self.last_spawn_ns.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OFFSET: u64 = 1_700_000_000_000_000_000;
    const SECOND: u64 = 1_000_000_000;
    /// How far into a minute the monotonic clock's zero is.
    const INTO: u64 = OFFSET % MINUTE_NS;

    /// A time in the `minute`th minute from the beginning of the first whole one.
    fn at(minute: u64, second: u64) -> u64 {
        MINUTE_NS - INTO + minute * MINUTE_NS + second * SECOND
    }

    fn spawned(minutes: &Minutes, name: &str) -> Vec<u64> {
        let snapshot = minutes.snapshot();
        let of = |minute: &Arc<Minute>| {
            minute.cells.iter().find(|(id, _)| snapshot.name(*id) == name).map_or(0, |(_, cell)| cell[0])
        };
        snapshot.minutes.iter().map(of).collect()
    }

    #[test]
    fn events_are_counted_in_their_minutes() {
        let mut minutes = Minutes::new(OFFSET, 100);
        let (a, b) = (minutes.name("a"), minutes.name("b"));
        assert_eq!(minutes.name("a"), a);
        minutes.add(at(0, 10), a, Happened::Spawned);
        minutes.add(at(0, 59), a, Happened::Spawned);
        minutes.add(at(1, 0), b, Happened::Spawned);
        // Late.
        minutes.add(at(0, 58), a, Happened::Ended(Outcome::ALL[0]));
        minutes.add(at(3, 30), a, Happened::Spawned);
        assert_eq!(spawned(&minutes, "a"), [2, 0, 0, 1]);
        assert_eq!(spawned(&minutes, "b"), [0, 1, 0, 0]);
        let snapshot = minutes.snapshot();
        let first = (OFFSET + at(0, 0)) / MINUTE_NS;
        assert_eq!(snapshot.minutes.iter().map(|m| m.number - first).collect::<Vec<_>>(), [0, 1, 2, 3]);
        assert_eq!(
            snapshot.minutes[0].cells,
            [(a, {
                let mut cell = [0; COLUMNS];
                (cell[0], cell[1]) = (2, 1);
                cell
            })]
        );
        assert_eq!(snapshot.last_spawn_ns[1..], [OFFSET + at(3, 30), OFFSET + at(1, 0)]);
        assert!(snapshot.minutes.iter().all(|minute| minute.complete));
    }

    #[test]
    fn minutes_with_gaps_are_marked() {
        let mut minutes = Minutes::new(OFFSET, 100);
        minutes.advance(at(0, 0));
        minutes.interrupt(at(1, 30));
        minutes.resume(at(2, 5));
        minutes.advance(at(4, 0));
        let complete: Vec<bool> = minutes.snapshot().minutes.iter().map(|minute| minute.complete).collect();
        assert_eq!(complete, [true, false, false, true, true]);
    }

    /// Check that neither a day, nor many names, nor a pause of a year makes it grow.
    #[test]
    fn memory_is_bounded() {
        let mut minutes = Minutes::new(OFFSET, 60);
        for minute in 0..24 * 60 {
            for n in 0..10 {
                let name = minutes.name(&format!("task {}", minute * 10 + n));
                minutes.add(at(minute, n), name, Happened::Spawned);
            }
        }
        let snapshot = minutes.snapshot();
        assert_eq!(snapshot.minutes.len(), 62);
        assert_eq!(snapshot.names.len(), NAMES);
        assert_eq!(spawned(&minutes, OTHER)[..61], [10; 61]);
        let (year, a) = (365 * 24 * 60, minutes.name("a"));
        minutes.add(at(year, 0), a, Happened::Spawned);
        assert!(minutes.snapshot().minutes.len() <= 62);
        let mut wide = Minutes::new(OFFSET, 1000);
        for minute in 0..100 {
            for n in 0..NAMES as u64 {
                let name = wide.name(&format!("task {n}"));
                wide.add(at(minute, 0), name, Happened::Spawned);
            }
        }
        let cells: usize = wide.snapshot().minutes.iter().map(|minute| minute.cells.len()).sum();
        assert!(cells <= CELLS + 2 * NAMES, "{cells}");
    }
}
