//! How many closures wait for a thread of a runtime's blocking pool (`blocking/pool.rs`). Never the threads themselves.
//!
//! The handle has a pointer to the pool, which is shared. In it are a queue, and a map of the pool's threads: that is
//! what it is known by, for no other map is of threads. The workers of a runtime of several threads are among them.

use std::ops::Range;

use super::injection::Source;
use super::task::HEADER;
use super::thread::region_of;
use super::window::{Window, is_address};
use crate::target::memory::{Batch, Memory, MemoryError};

/// Bytes of a pool that are looked at, and of the counts in front of what is shared.
const POOL_BYTES: usize = 512;
const COUNTS_BYTES: usize = 16;
/// References to a pool.
const REFERENCES: Range<u64> = 1..1 << 32;
/// Bytes of one element of the queue: the closure's task, and whether it must run.
const ELEMENT_BYTES: u64 = 16;
/// Elements of a queue that has any room: the next power of two follows.
const LEAST_ROOM: u64 = 4;
const MOST_ROOM: u64 = 1 << 32;
/// Elements that are looked at to believe a queue.
const PROBED: u64 = 16;
/// Places in a map of threads (hashbrown, `RawTableInner`), and bytes of one: a number, and the handle of a thread.
const PLACES: Range<u64> = 4..1 << 16;
const PLACE_BYTES: u64 = 32;
/// Threads that are looked at to believe a map of threads.
const MOST_THREADS: usize = 16;
/// Words between the queue and the map of threads, at most: both are behind the same lock.
const NEAR: usize = 16;
/// Words around a queue in which there is no other: one of many is not the pool's.
const APART: usize = 8;
/// Times that a queue is read which changes meanwhile.
const ATTEMPTS: usize = 4;

/// Where the queue and the map of threads are in every pool of a process: bytes from its beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    queue: u64,
    threads: u64,
}

/// A pool that was found.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pool {
    /// Address of its queue.
    pub(super) queue: u64,
    pub(super) layout: Layout,
}

/// `VecDeque`: room, elements, the first of them, how many there are.
#[derive(Clone, Copy)]
struct Queue {
    room: u64,
    elements: u64,
    first: u64,
    length: u64,
}

impl Queue {
    fn of(words: &[u64]) -> Option<Queue> {
        let &[room, elements, first, length, ..] = words else { return None };
        let used = room.is_power_of_two() && (LEAST_ROOM..MOST_ROOM).contains(&room) && is_address(elements);
        (used && first < room && length <= room).then_some(Queue { room, elements, first, length })
    }

    /// Whether it never had an element: it points to nothing, aligned as elements are.
    fn is_unused(words: &[u64]) -> bool {
        words.get(..4) == Some(&[0, 8, 0, 0])
    }

    fn element(&self, n: u64) -> u64 {
        self.elements.wrapping_add((self.first + n) % self.room * ELEMENT_BYTES)
    }

    /// Whether its elements are tasks that wait and are in no list: the first ones, and the last.
    fn holds_tasks(&self, source: Source<'_>) -> Result<bool, MemoryError> {
        let probed: Vec<u64> = (0..self.length.min(PROBED)).chain(self.length.checked_sub(1)).collect();
        let mut batch = Batch::default();
        for &n in &probed {
            batch.add(self.element(n), ELEMENT_BYTES as usize);
        }
        batch.read(source.memory)?;
        let elements: Vec<(u64, u64)> =
            (0..probed.len()).filter_map(|span| Some((batch.word(span, 0)?, batch.word(span, 8)?))).collect();
        if elements.len() < probed.len() || elements.iter().any(|&(task, must)| !is_address(task) || must as u8 > 1) {
            return Ok(false);
        }
        batch.clear();
        for (task, _) in elements {
            batch.add(task, HEADER);
        }
        batch.read(source.memory)?;
        let waits = |span| source.types.queued(&batch.words(span).collect::<Vec<_>>(), 0) == Some(0);
        Ok((0..batch.len()).all(waits))
    }
}

/// A hash map: control bytes, a mask, how many more fit, how many there are.
#[derive(Clone, Copy)]
struct Threads {
    control: u64,
    places: u64,
    count: u64,
}

impl Threads {
    fn of(words: &[u64]) -> Option<Threads> {
        let &[control, mask, left, count, ..] = words else { return None };
        let places = mask.checked_add(1).filter(|places| places.is_power_of_two() && PLACES.contains(places))?;
        let fit = if places < 8 { mask } else { places / 8 * 7 };
        let fits = left.checked_add(count).is_some_and(|all| all <= fit);
        (fits && is_address(control) && control.is_multiple_of(16)).then_some(Threads { control, places, count })
    }

    /// Whether it never had an element: its control bytes are in the program's own data.
    fn is_unused(words: &[u64], source: Source<'_>) -> bool {
        let &[control, 0, 0, 0, ..] = words else { return false };
        is_address(control) && region_of(source.regions, control).is_none()
    }

    /// Whether it is a map of threads, each of which points to a thread's control block.
    fn holds_threads(&self, memory: &dyn Memory) -> Result<bool, MemoryError> {
        let mut batch = Batch::default();
        batch.add(self.control, self.places as usize);
        batch.read(memory)?;
        let full: Vec<u64> = batch
            .bytes(0)
            .unwrap_or_default()
            .iter()
            .enumerate()
            .filter(|&(_, &control)| control & 0x80 == 0)
            .map(|(place, _)| place as u64)
            .collect();
        if full.len() as u64 != self.count {
            return Ok(false);
        }
        batch.clear();
        // They are in front of the control bytes, from there downwards.
        for place in full.iter().take(MOST_THREADS) {
            batch.add(self.control.wrapping_sub((place + 1) * PLACE_BYTES), PLACE_BYTES as usize);
        }
        batch.read(memory)?;
        let places: Vec<Vec<u64>> = (0..batch.len()).map(|span| batch.words(span).collect()).collect();
        batch.clear();
        let pointers: Vec<u64> = places.iter().flatten().copied().filter(|&word| is_address(word)).collect();
        for &pointer in &pointers {
            batch.add(pointer, 24);
        }
        batch.read(memory)?;
        // `tcbhead_t` of glibc: its own address, and two words later again.
        let is_thread = |word: &u64| {
            let span = pointers.iter().position(|pointer| pointer == word);
            span.is_some_and(|span| batch.word(span, 0) == Some(*word) && batch.word(span, 16) == Some(*word))
        };
        Ok(places.iter().all(|words| words.iter().any(is_thread)))
    }
}

/// What is known of the runtimes when a pool is looked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known<'k> {
    /// Threads that run tasks of the runtime in question.
    pub(super) workers: Option<u64>,
    /// Where the parts of a pool are, if one was found before.
    pub(super) layout: Option<Layout>,
    /// Queues of the pools of other runtimes.
    pub(super) taken: &'k [u64],
    /// Where the lists of tasks of all runtimes are.
    pub(super) lists: &'k [u64],
}

/// Looks for the pool of a runtime.
///
/// # Errors
/// The memory cannot be read.
pub(super) fn find(source: Source<'_>, known: Known<'_>) -> Result<Option<Pool>, MemoryError> {
    let window = Window::read(source.memory, source.regions, source.owned)?;
    let place = source.owned.place;
    // What is nearer to another list is of another handle.
    let is_ours = |address: u64| known.lists.iter().all(|&list| address.abs_diff(place) <= address.abs_diff(list));
    let mut pointers: Vec<u64> = Vec::new();
    for (at, &pointer) in window.words.iter().enumerate() {
        let is_new = is_address(pointer) && !pointers.contains(&pointer);
        if is_new && is_ours(window.address(at)) {
            pointers.push(pointer);
        }
    }
    let mut batch = Batch::default();
    for &pointer in &pointers {
        batch.add(pointer, COUNTS_BYTES);
    }
    batch.read(source.memory)?;
    let mut is_shared = (0..pointers.len()).map(|span| {
        [0, 8].into_iter().all(|at| batch.word(span, at).is_some_and(|references| REFERENCES.contains(&references)))
    });
    pointers.retain(|_| is_shared.next().unwrap_or(false));
    batch.clear();
    for &pointer in &pointers {
        let mapped = region_of(source.regions, pointer).map_or(0, |region| region.end - pointer);
        batch.add(pointer, POOL_BYTES.min(usize::try_from(mapped).unwrap_or(POOL_BYTES)));
    }
    batch.read(source.memory)?;
    let mut found: Option<Pool> = None;
    for (span, &address) in pointers.iter().enumerate() {
        let words: Vec<u64> = batch.words(span).collect();
        let Some(layout) = layout(source, &words, known)? else { continue };
        let pool = Pool { queue: address + layout.queue, layout };
        match found {
            _ if known.taken.contains(&pool.queue) => {}
            // Something else that is shared may be in front of the pool, and lead to it as well.
            Some(other) if other.queue == pool.queue && other.layout.queue <= layout.queue => {}
            Some(other) if other.queue != pool.queue => return Ok(None),
            _ => found = Some(pool),
        }
    }
    Ok(found)
}

/// Where the queue and the map of threads are among a pool's words, if these are such, and there is no doubt.
fn layout(source: Source<'_>, words: &[u64], known: Known<'_>) -> Result<Option<Layout>, MemoryError> {
    let least = known.workers.unwrap_or(1).max(1);
    if let Some(layout) = known.layout {
        let part = |at: u64| words.get(at as usize / 8..).unwrap_or_default();
        let (queue, threads) = (part(layout.queue), part(layout.threads));
        let is_pool = if least == 1 && Threads::is_unused(threads, source) {
            Queue::is_unused(queue)
        } else {
            is_used(source, queue, threads, 0)?
        };
        return Ok(is_pool.then_some(layout));
    }
    let mut found = None;
    for threads in 0..words.len() {
        if Threads::of(&words[threads..]).is_none() {
            continue;
        }
        for queue in threads.saturating_sub(NEAR)..words.len().min(threads + NEAR) {
            // Four words each: what overlaps the one or the other is part of them.
            let overlaps = |at: usize| at.abs_diff(queue) < 4 || at.abs_diff(threads) < 4;
            let mut others = (queue.saturating_sub(APART)..words.len().min(queue + APART)).filter(|&at| !overlaps(at));
            let is_alone = |at: usize| Queue::of(&words[at..]).is_none() && !Queue::is_unused(&words[at..]);
            if queue.abs_diff(threads) >= 4
                && Queue::of(&words[queue..]).is_some()
                && others.all(is_alone)
                && is_used(source, &words[queue..], &words[threads..], least)?
            {
                if found.is_some() {
                    return Ok(None);
                }
                found = Some(Layout { queue: queue as u64 * 8, threads: threads as u64 * 8 });
            }
        }
    }
    Ok(found)
}

/// Whether these are the queue of a pool and the map of its threads, of which there are some.
fn is_used(source: Source<'_>, queue: &[u64], threads: &[u64], least: u64) -> Result<bool, MemoryError> {
    let (Some(queue), Some(threads)) = (Queue::of(queue), Threads::of(threads)) else { return Ok(false) };
    Ok(threads.count >= least && queue.holds_tasks(source)? && threads.holds_threads(source.memory)?)
}

impl Pool {
    /// Closures in the queue; `None` where that cannot be told.
    ///
    /// # Errors
    /// The memory cannot be read.
    pub(super) fn read(&self, source: Source<'_>) -> Result<Option<u64>, MemoryError> {
        let mut batch = Batch::default();
        for _ in 0..ATTEMPTS {
            batch.clear();
            batch.add(self.queue, 32);
            batch.read(source.memory)?;
            let words: Vec<u64> = batch.words(0).collect();
            if Queue::is_unused(&words) {
                return Ok(Some(0));
            }
            if let Some(queue) = Queue::of(&words)
                && queue.holds_tasks(source)?
            {
                return Ok(Some(queue.length));
            }
        }
        Ok(None)
    }
}
