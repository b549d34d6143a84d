//! How many tasks are in a runtime's injection queue (`scheduler/inject`). Never the queues of single workers.
//!
//! It is a chain of tasks behind a lock: first task, last task, whether it is closed. An empty one cannot be told from
//! other zeros, so it is found when tasks are in it, and is known from then on. Elsewhere in the handle is its length,
//! learned by comparison: that tells of a queue which is too long to be followed.

use super::Effort;
use super::owned::{Owned, SHARD_BYTES, Shape};
use super::task::{HEADER, Types};
use super::thread::region_of;
use super::window::{Window, is_address};
use crate::target::memory::{Batch, Memory, MemoryError, Region};

/// Tasks of a queue that are followed.
const MOST_FOLLOWED: u64 = 16_384;
/// Tasks of a queue that are followed to believe that it is one.
const ENOUGH: u64 = 64;
/// What following them may take, nanoseconds.
const FOLLOWED_NS: u64 = 10_000_000;
/// A queue of more is as long as its length says, once that is known; a shorter one is followed all the same, so that
/// a length that was another number's is found out.
const TRUSTED: u64 = 64;
/// More than any process has.
const MOST_QUEUED: u64 = 1 << 40;
/// Times that a queue is read which changes meanwhile.
const ATTEMPTS: usize = 8;
/// Bytes that are read from a task's address on: more, as long as the next tasks are found among them.
const LEAST_SPAN: usize = 256;
const MOST_SPAN: usize = 8192;
/// Pairs of words that are looked at.
const MOST_PAIRS: usize = 256;

/// The injection queue of one runtime.
#[derive(Default)]
pub(super) struct Injection {
    place: Option<Place>,
    /// Addresses of words that were as long as the queue, whenever it was looked at; `None` before.
    lengths: Option<Vec<u64>>,
    /// Different lengths of it that were seen, but for none: two at most.
    seen: Vec<u64>,
}

/// Where a queue is.
#[derive(Clone, Copy, Debug)]
struct Place {
    /// Address of its first task, with that of the last one behind it.
    ends: u64,
    /// Addresses of the words that may be its lock: all are 0 while nobody holds it.
    locks: [u64; 2],
}

/// A queue that was followed.
enum Followed {
    /// To its last task: so many.
    Whole(u64),
    /// Not all of it: it is too long.
    Part,
    /// To something else.
    Lost,
}

/// What is needed to read a queue.
#[derive(Clone, Copy)]
pub(super) struct Source<'s> {
    pub(super) memory: &'s dyn Memory,
    pub(super) regions: &'s [Region],
    pub(super) types: &'s Types,
    pub(super) owned: &'s Owned,
    pub(super) effort: Effort,
}

impl Injection {
    /// Tasks in the queue; `None` where that is not known.
    ///
    /// # Errors
    /// The memory cannot be read.
    pub(super) fn read(&mut self, source: Source<'_>) -> Result<Option<u64>, MemoryError> {
        let now_ns = (source.effort.now_ns)();
        let deadline_ns = source.effort.deadline_ns.min(now_ns.saturating_add(FOLLOWED_NS));
        let source = Source { effort: Effort { deadline_ns, ..source.effort }, ..source };
        for _ in 0..ATTEMPTS {
            let window = Window::read(source.memory, source.regions, source.owned)?;
            if self.place.is_none() {
                self.place = find(source, &window)?;
            }
            let Some(place) = self.place else { return Ok(None) };
            let (Some(first), Some(last)) = (window.word(place.ends), window.word(place.ends + 8)) else {
                return Ok(None);
            };
            let length = self.length(&window);
            let count = match (first, last) {
                (0, 0) => 0,
                _ if !is_address(first) || !is_address(last) => continue,
                _ if length.is_some_and(|length| length > TRUSTED) => return Ok(length),
                _ => match follow(source, first, last, MOST_FOLLOWED)? {
                    Followed::Whole(count) => count,
                    Followed::Part => return Ok(None),
                    Followed::Lost if source.effort.is_over() => return Ok(None),
                    Followed::Lost => continue,
                },
            };
            let again = Window::read(source.memory, source.regions, source.owned)?;
            self.learn(place, &window, &again, count);
            return Ok(Some(count));
        }
        Ok(None)
    }

    /// The queue's length, once all words that it could be agree.
    fn length(&self, window: &Window) -> Option<u64> {
        let (first, rest) = self.lengths.as_deref().filter(|_| self.seen.len() > 1)?.split_first()?;
        let length = window.word(*first).filter(|length| *length < MOST_QUEUED)?;
        rest.iter().all(|&at| window.word(at) == Some(length)).then_some(length)
    }

    /// Keeps the words that are equal to the length that the queue had at two moments, with nobody in it between.
    fn learn(&mut self, place: Place, before: &Window, after: &Window, count: u64) {
        let ends = |window: &Window| (window.word(place.ends), window.word(place.ends + 8));
        // The length is stored after the ends are: whoever holds the lock may just be between them.
        let is_free =
            |window: &Window| place.locks.iter().all(|&at| window.word(at).is_some_and(|lock| lock as u8 == 0));
        if before.start != after.start || ends(before) != ends(after) || !is_free(before) || !is_free(after) {
            return;
        }
        let is_length = |&at: &u64| before.word(at) == Some(count) && after.word(at) == Some(count);
        let mut lengths = match self.lengths.take() {
            Some(lengths) => lengths,
            None => (0..before.words.len()).map(|at| before.address(at)).collect(),
        };
        lengths.retain(is_length);
        if lengths.is_empty() {
            // None of them was it. Perhaps the next time.
            self.seen.clear();
            return;
        }
        self.lengths = Some(lengths);
        if count > 0 && self.seen.len() < 2 && !self.seen.contains(&count) {
            self.seen.push(count);
        }
    }
}

/// Looks for the queue: two tasks of this owner that wait for a thread, the first of which leads to the last.
fn find(source: Source<'_>, window: &Window) -> Result<Option<Place>, MemoryError> {
    let words = &window.words;
    let of_list = |at: usize| {
        let address = window.address(at);
        // The list of tasks, which has a first and a last one too. It may begin with its lock.
        let list = source.owned.place.saturating_sub(8)..source.owned.place.saturating_add(Owned::BYTES as u64);
        let shards = match source.owned.shape {
            Shape::Sharded { lists, count, .. } => lists..lists.saturating_add(count * SHARD_BYTES as u64),
            Shape::Single => 0..0,
        };
        list.contains(&address) || shards.contains(&address)
    };
    let is_closed = |at: usize| words.get(at + 2).is_none_or(|&closed| closed as u8 > 1);
    let mut batch = Batch::default();
    let mut pairs = Vec::new();
    for at in 1..words.len().saturating_sub(1) {
        let (first, last) = (words[at], words[at + 1]);
        if first != last && is_address(first) && is_address(last) && !of_list(at) && pairs.len() < MOST_PAIRS {
            pairs.push(at);
            batch.add(first, HEADER);
            batch.add(last, HEADER);
        }
    }
    batch.read(source.memory)?;
    let queued = |span: usize| source.types.queued(&batch.words(span).collect::<Vec<_>>(), source.owned.id);
    let mut found = None;
    for (n, at) in pairs.into_iter().enumerate() {
        let leads = queued(2 * n).is_some_and(|next| next != 0) && queued(2 * n + 1) == Some(0);
        if !leads || is_closed(at) || matches!(follow(source, words[at], words[at + 1], ENOUGH)?, Followed::Lost) {
            continue;
        }
        if found.is_some() {
            return Ok(None);
        }
        found = Some(Place {
            ends: window.address(at),
            locks: locks(source.regions, words, at).map(|lock| window.address(lock)),
        });
    }
    Ok(found)
}

/// Which words may be the lock of the queue whose ends are at a word: the one in front of them. In 1.38 and 1.44 the
/// same lock may guard the list of sleeping workers too, a vector; when that is in front, the lock is in front of it.
fn locks(regions: &[Region], words: &[u64], ends: usize) -> [usize; 2] {
    let is_vector = |vector: &[u64]| {
        let pointers = vector.iter().filter(|&&word| is_address(word) && region_of(regions, word).is_some());
        pointers.count() == 1 && vector.iter().filter(|&&word| word < 1 << 16).count() == 2
    };
    // What another field is there has any value.
    let is_lock = |word: u64| word as u8 <= 3;
    let before = ends.checked_sub(4).filter(|&lock| is_lock(words[lock]) && is_vector(&words[lock + 1..ends]));
    [ends - 1, before.unwrap_or(ends - 1)]
}

/// Follows a queue from its first task to its last, for at most so many.
fn follow(source: Source<'_>, first: u64, last: u64, most: u64) -> Result<Followed, MemoryError> {
    let mut batch = Batch::default();
    let (mut at, mut count, mut length) = (first, 0, LEAST_SPAN);
    loop {
        batch.clear();
        let mapped = region_of(source.regions, at).map_or(HEADER as u64, |region| region.end - at);
        batch.add(at, length.min(usize::try_from(mapped).unwrap_or(HEADER)));
        batch.read(source.memory)?;
        let words: Vec<u64> = batch.words(0).collect();
        let (start, before) = (at, count);
        while let Some(header) = at
            .checked_sub(start)
            .and_then(|offset| words.get(usize::try_from(offset / 8).ok()?..))
            .and_then(|words| words.get(..HEADER / 8))
        {
            let Some(next) = source.types.queued(header, source.owned.id) else { return Ok(Followed::Lost) };
            count += 1;
            if at == last {
                return Ok(Followed::Whole(count));
            }
            if !is_address(next) {
                return Ok(Followed::Lost);
            }
            if count >= most {
                return Ok(Followed::Part);
            }
            at = next;
        }
        if count == before || source.effort.is_over() {
            return Ok(Followed::Lost);
        }
        length = if count > before + 1 { length * 2 } else { length / 2 }.clamp(LEAST_SPAN, MOST_SPAN);
    }
}
