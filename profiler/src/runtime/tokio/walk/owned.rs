//! Where a runtime keeps the list of its tasks: `OwnedTasks` of `runtime/task/list.rs`. Never the tasks themselves.
//!
//! Since 1.35 it is sharded: a slice of lists, the number ever added (since 1.40), the number of tasks, a mask, the
//! owner's id. Before, it is one list behind a lock: first task, last task, whether it is closed, the owner's id.

use rustc_hash::FxHashSet;

use super::Effort;
use super::task::{Reader, Types};
use super::thread::region_of;
use crate::target::memory::{Batch, Memory, MemoryError, Region};

/// Words from a pointer in which the list is looked for: a runtime's handle has some 140.
const WINDOW: usize = 256;
/// Lists of one runtime (`gen_shared_list_size`): a power of two.
const SHARDS: std::ops::RangeInclusive<u64> = 4..=1 << 16;
/// More than any process has.
const MOST_ALIVE: u64 = 1 << 40;
const MOST_ADDED: u64 = 1 << 56;
/// Bytes of one shard: lock, first and last task.
pub(super) const SHARD_BYTES: usize = 24;
/// Runtimes of one process.
const MOST_RUNTIMES: usize = 256;
/// First tasks that are looked at to believe a sharded list.
const PROBED: usize = 64;
/// Times that a candidate is looked at.
const LOOKS: usize = 8;
/// Candidates whose windows are read together: each system call reads 64 KiB of them.
const CANDIDATES: usize = 128;

/// The list of a runtime's tasks, and where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Owned {
    /// Address of its first word that is compared.
    pub(super) place: u64,
    /// What identifies it: no other list of the process ever has this number, and every task of it has.
    pub(super) id: u64,
    pub(super) shape: Shape,
}

/// How the tasks are linked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// `count` lists at `lists`.
    Sharded { lists: u64, count: u64, counts_added: bool },
    /// One list: its first and last task are at the place.
    Single,
}

/// What a list says of itself at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Reading {
    /// Tasks in it; `None` where it does not count them.
    pub(super) alive: Option<u64>,
    /// Tasks that were ever added.
    pub(super) added: Option<u64>,
    /// First and last task, of a single list.
    ends: Option<(u64, u64)>,
}

impl Owned {
    /// Bytes that are read to know it again.
    pub(super) const BYTES: usize = 6 * 8;

    /// What it says in these words; `None` when they are no longer this list's.
    pub(super) fn reading(&self, words: &[u64]) -> Option<Reading> {
        match self.shape {
            Shape::Sharded { .. } => sharded(self.place, words).find(|(again, _)| again == self).map(|(_, r)| r),
            Shape::Single => {
                let &[head, tail, _, id, ..] = words else { return None };
                (id == self.id).then_some(Reading { ends: Some((head, tail)), ..Reading::default() })
            }
        }
    }
}

/// The sharded lists that begin with these words, if they look like one: with and without the number ever added.
fn sharded(place: u64, words: &[u64]) -> impl Iterator<Item = (Owned, Reading)> {
    let list = |after: usize| {
        let (lists, count, id) = (*words.first()?, *words.get(1)?, *words.get(after + 2)?);
        let (alive, mask) = (*words.get(after)?, *words.get(after + 1)?);
        let added = (after == 3).then(|| words[2]);
        let plausible = SHARDS.contains(&count)
            && count.is_power_of_two()
            && mask == count - 1
            && lists % 8 == 0
            && is_id(id)
            && alive < MOST_ALIVE
            && added.is_none_or(|added| added < MOST_ADDED);
        let shape = Shape::Sharded { lists, count, counts_added: added.is_some() };
        plausible.then_some((Owned { place, id, shape }, Reading { alive: Some(alive), added, ends: None }))
    };
    [list(3), list(2)].into_iter().flatten()
}

/// Ids are counted up from 1, over all runtimes of a process.
fn is_id(word: u64) -> bool {
    word != 0 && word < 1 << 32
}

/// The single list that begins with these words, if it looks like one. An empty one cannot be told from other zeros.
fn single(place: u64, words: &[u64], regions: &[Region]) -> Option<Owned> {
    let &[head, tail, closed, id, ..] = words else { return None };
    let is_task = |word: u64| word.is_multiple_of(8) && region_of(regions, word).is_some();
    let plausible = is_id(id) && closed & 0xff <= 1 && is_task(head) && is_task(tail);
    plausible.then_some(Owned { place, id, shape: Shape::Single })
}

/// The lists of all runtimes that threads point to.
pub(super) fn find(
    memory: &dyn Memory,
    regions: &[Region],
    pointers: &[u64],
    types: &Types,
    effort: Effort,
) -> Result<Vec<Owned>, MemoryError> {
    let mut found: Vec<Owned> = Vec::new();
    let mut looked_at = FxHashSet::default();
    let mut batch = Batch::default();
    for pointers in pointers.chunks(CANDIDATES) {
        batch.clear();
        for &pointer in pointers {
            let end = region_of(regions, pointer).map_or(pointer, |region| region.end);
            batch.add(pointer, (end - pointer).min(WINDOW as u64 * 8) as usize);
        }
        batch.read(memory)?;
        let mut candidates = Vec::new();
        for (span, &pointer) in pointers.iter().enumerate() {
            let words: Vec<u64> = batch.words(span).collect();
            for at in 0..words.len().saturating_sub(5) {
                let (place, words) = (pointer + at as u64 * 8, &words[at..]);
                if looked_at.insert(place) {
                    candidates.extend(sharded(place, words).map(|(owned, _)| owned));
                    candidates.extend(single(place, words, regions));
                }
            }
        }
        for candidate in candidates {
            if found.len() >= MOST_RUNTIMES || effort.is_over() {
                return Ok(found);
            }
            if is_believed_soon(memory, regions, &candidate, types)? && !found.iter().any(|f| f.id == candidate.id) {
                found.push(candidate);
            }
        }
    }
    Ok(found)
}

/// Looks again at lists that were not believed: a busy runtime's first tasks may be gone before they are read.
fn is_believed_soon(
    memory: &dyn Memory,
    regions: &[Region],
    owned: &Owned,
    types: &Types,
) -> Result<bool, MemoryError> {
    for _ in 0..LOOKS {
        if is_believed(memory, regions, owned, types)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether the lists hold tasks of this owner, and nothing else.
fn is_believed(memory: &dyn Memory, regions: &[Region], owned: &Owned, types: &Types) -> Result<bool, MemoryError> {
    let mut batch = Batch::default();
    let (at, length) = match owned.shape {
        Shape::Sharded { lists, count, .. } => (lists, count as usize * SHARD_BYTES),
        // As a shard, it begins with the lock.
        Shape::Single => (owned.place.saturating_sub(8), SHARD_BYTES),
    };
    if region_of(regions, at).is_none_or(|region| region.end - at < length as u64) {
        return Ok(false);
    }
    batch.add(at, length);
    batch.add(owned.place, Owned::BYTES);
    batch.read(memory)?;
    let shards: Vec<u64> = batch.words(0).collect();
    let again: Vec<u64> = batch.words(1).collect();
    let Some(reading) = owned.reading(&again) else { return Ok(false) };
    let ends: Vec<u64> =
        shards.as_chunks::<3>().0.iter().flat_map(|&[_, head, tail]| [head, tail]).filter(|&end| end != 0).collect();
    if shards.is_empty() || ends.iter().any(|&end| end % 8 != 0 || region_of(regions, end).is_none()) {
        return Ok(false);
    }
    if ends.is_empty() {
        return Ok(reading.alive == Some(0));
    }
    let probed = &ends[..ends.len().min(PROBED)];
    let nodes = Reader::default().read(memory, types, probed)?;
    let ours = nodes.iter().flatten().filter(|node| node.owner == owned.id).count();
    // Some may have ended since they were read; what is no list of tasks has none.
    Ok(ours > 0 && ours * 2 >= probed.len())
}
