//! What a runtime counts of its workers, found beside its list of tasks by shape. Never the tasks.
//!
//! No offset is taken from a version: what is found must look in every worker as only this looks, or it is not read.

use super::owned::Owned;
use super::thread::region_of;
use super::window::Window;
use crate::runtime::Totals;
use crate::target::memory::{Batch, Memory, MemoryError, Region};

/// More workers than any runtime has.
const MOST_WORKERS: u64 = 1024;
/// Bytes of one worker's metrics, and their alignment (`runtime/metrics/worker.rs`).
const METRICS_BYTES: u64 = 128;
/// Times that workers must have parked, altogether, to be believed.
const PARKS: u64 = 4;
/// Bytes of what others know of one worker: its queue and its unparker (`Remote`, `scheduler/multi_thread/worker.rs`).
const REMOTE_BYTES: u64 = 16;
/// Tasks in one worker's queue, at most (`LOCAL_QUEUE_CAPACITY`, `scheduler/multi_thread/queue.rs`).
const QUEUE: u32 = 256;

/// Where the figures of a runtime are.
#[derive(Clone, Debug, Default)]
pub(super) struct Places {
    metrics: Option<MetricsPlace>,
    /// What others know of the workers: address, number of workers.
    remotes: Option<(u64, u64)>,
}

/// Metrics of workers.
#[derive(Clone, Copy, Debug)]
struct MetricsPlace {
    address: u64,
    workers: u64,
    /// The word that counts parks.
    park: usize,
    /// Whether they are in the handle itself: a runtime of one thread, whose queue has its length here.
    in_place: bool,
}

/// Looks for the figures of a runtime.
///
/// # Errors
/// The memory cannot be read.
pub(super) fn find(memory: &dyn Memory, regions: &[Region], owned: &Owned, now_ns: u64) -> Result<Places, MemoryError> {
    let mut places = Places::default();
    let window = Window::read(memory, regions, owned)?;
    for at in window.nearest(owned.place) {
        let here = window.address(at);
        let (pointer, Some(&count)) = (window.words[at], window.words.get(at + 1)) else { continue };
        let is_slice = (1..=MOST_WORKERS).contains(&count) && pointer % 8 == 0 && region_of(regions, pointer).is_some();
        if is_slice && places.remotes.is_none() && queues(memory, regions, pointer, count)?.is_some() {
            places.remotes = Some((pointer, count));
        }
        if places.metrics.is_none() {
            let (address, workers) = if is_slice { (pointer, count) } else { (here, 1) };
            if address.is_multiple_of(METRICS_BYTES) {
                let park = (3..METRICS_BYTES as usize / 8 - 1).find_map(|park| {
                    let found = metrics(memory, address, workers, park, now_ns).transpose()?;
                    Some(found.map(|metrics| (metrics.parks >= PARKS).then_some(park)))
                });
                let park = park.transpose()?.flatten();
                places.metrics = park.map(|park| MetricsPlace { address, workers, park, in_place: !is_slice });
            }
        }
    }
    Ok(places)
}

/// Fills in what is there now.
///
/// # Errors
/// The memory cannot be read.
pub(super) fn read(
    memory: &dyn Memory,
    regions: &[Region],
    places: &Places,
    totals: &mut Totals,
    now_ns: u64,
) -> Result<(), MemoryError> {
    if let Some(MetricsPlace { address, workers, park, in_place }) = places.metrics
        && let Some(metrics) = metrics(memory, address, workers, park, now_ns)?
    {
        totals.workers = Some(workers);
        totals.busy_ns = Some(metrics.busy_ns);
        totals.local_queue = in_place.then_some(metrics.queue);
    }
    if let Some((address, count)) = places.remotes
        && let Some(waiting) = queues(memory, regions, address, count)?
    {
        totals.workers = Some(count);
        totals.local_queue = Some(waiting);
    }
    Ok(())
}

/// What workers count of themselves, in total.
struct Metrics {
    busy_ns: u64,
    queue: u64,
    parks: u64,
}

/// Reads the metrics of `count` workers at `address`, if they are such: each has a thread of its own, was busy for no
/// longer than the clock runs, and has been unparked as often as it parked, or once less. In front of the number of
/// parks are the lock and the id of the thread, the time that it was busy, and the length of a queue (since 1.45).
fn metrics(
    memory: &dyn Memory,
    address: u64,
    count: u64,
    park: usize,
    now_ns: u64,
) -> Result<Option<Metrics>, MemoryError> {
    let mut batch = Batch::default();
    for worker in 0..count {
        batch.add(address + worker * METRICS_BYTES, METRICS_BYTES as usize);
    }
    batch.read(memory)?;
    let mut total = Metrics { busy_ns: 0, queue: 0, parks: 0 };
    let mut threads = Vec::new();
    for worker in 0..batch.len() {
        let word = |back: usize| batch.word(worker, (park + 1).checked_sub(back)? * 8);
        let (Some(thread), Some(busy_ns), Some(queue), Some(parks), Some(both)) =
            (word(4), word(3), word(2), word(1), word(0))
        else {
            return Ok(None);
        };
        // The two are stored one after the other.
        let paired = both >= (2 * parks.min(1 << 62)).saturating_sub(2) && both <= 2 * parks.min(1 << 62) + 1;
        let plausible = thread < 1 << 32 && queue < 1 << 32 && busy_ns <= now_ns && paired;
        let began = parks == 0 || (thread != 0 && busy_ns > queue && !threads.contains(&thread));
        if !plausible || !began {
            return Ok(None);
        }
        threads.push(thread);
        total.busy_ns += busy_ns;
        total.queue += queue;
        total.parks += parks;
    }
    Ok(Some(total))
}

/// Tasks that wait in the queues of `count` workers, if there are such at `address`: each has a shared queue, whose
/// heads and tail are no farther apart than it is long, and a shared unparker.
fn queues(memory: &dyn Memory, regions: &[Region], address: u64, count: u64) -> Result<Option<u64>, MemoryError> {
    let mut batch = Batch::default();
    batch.add(address, (count * REMOTE_BYTES) as usize);
    batch.read(memory)?;
    let remotes: Vec<u64> = batch.words(0).collect();
    let is_pointer = |word: u64| word != 0 && word.is_multiple_of(8) && region_of(regions, word).is_some();
    if remotes.len() as u64 != count * 2 || !remotes.iter().all(|&word| is_pointer(word)) {
        return Ok(None);
    }
    batch.clear();
    for &shared in &remotes {
        batch.add(shared, 40);
    }
    batch.read(memory)?;
    let mut waiting = 0;
    let mut buffers = Vec::new();
    for (worker, remote) in remotes.chunks(2).enumerate() {
        let queue: Vec<u64> = batch.words(worker * 2).collect();
        let unparker: Vec<u64> = batch.words(worker * 2 + 1).take(3).collect();
        let (&[strong, weak, buffer, heads, tail], &[strong_2, weak_2, park]) = (&queue[..], &unparker[..]) else {
            return Ok(None);
        };
        let is_count = |count: u64| (1..1 << 20).contains(&count);
        let shared = [strong, weak, strong_2, weak_2].into_iter().all(is_count) && is_pointer(park);
        // The high half is where thieves are; the low one is the head; the tail is a half word.
        let (head, thief, tail) = (heads as u32, (heads >> 32) as u32, tail as u32);
        let fits = tail.wrapping_sub(head) <= QUEUE && head.wrapping_sub(thief) <= QUEUE;
        if !shared || !fits || !is_pointer(buffer) || buffers.contains(&buffer) || remote[0] == remote[1] {
            return Ok(None);
        }
        buffers.push(buffer);
        waiting += u64::from(tail.wrapping_sub(head));
    }
    Ok(Some(waiting))
}
