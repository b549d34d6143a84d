//! Numbered places for the tasks that live, in chunks. Never how a task is found among them.

use super::task::Task;
use crate::event::TypeId;

/// Tasks of one chunk: large enough to be an allocation of its own, which is given back when it is freed.
const CHUNK: usize = 8192;
/// No place.
const NONE: u32 = u32::MAX;
/// Flags beside the type.
const HAS_ID: u32 = 1 << 31;
const FOUND: u32 = 1 << 30;
/// Types that can be told apart: the bits that the flags leave.
const KINDS: u32 = FOUND;

/// Address, id, time: 24 bytes. Of a place that is free, the address is the next free one.
#[derive(Clone, Copy)]
struct Words {
    address: u64,
    id: u64,
    since_ns: u64,
}

/// A type and its flags are kept apart from the words: together they would be padded to 32 bytes.
const _: () = assert!(size_of::<Words>() + size_of::<u32>() == 28);

/// Places that are allocated together. Pages of it that were never used are not resident.
struct Chunk {
    words: Vec<Words>,
    kinds: Vec<u32>,
    /// The first of those that are free, and were used before.
    free: u32,
    live: usize,
}

impl Chunk {
    fn new() -> Chunk {
        Chunk { words: Vec::with_capacity(CHUNK), kinds: Vec::with_capacity(CHUNK), free: NONE, live: 0 }
    }
}

/// Tasks by the number of their place. The lowest chunk that has room is filled first: after a burst those above it
/// become empty, and are freed.
#[derive(Default)]
pub(super) struct Slots {
    chunks: Vec<Option<Chunk>>,
    /// One bit for each chunk that has room.
    roomy: Vec<u64>,
    len: usize,
    /// Places of all chunks.
    places: usize,
}

impl Slots {
    /// Takes a task, and returns its place.
    ///
    /// # Panics
    /// Its type is over 2^30: no plan has so many.
    pub fn insert(&mut self, address: u64, task: Task) -> u32 {
        assert!(task.kind().0 < KINDS, "a type that does not fit");
        let number = self.with_room();
        let words = Words { address, id: task.id().unwrap_or_default(), since_ns: task.since_ns };
        let flags = if task.id().is_some() { HAS_ID } else { 0 } | if task.spawn_ns().is_none() { FOUND } else { 0 };
        let kind = task.kind().0 | flags;
        let chunk = self.chunks[number].get_or_insert_with(Chunk::new);
        let at = if chunk.free == NONE {
            chunk.words.push(words);
            chunk.kinds.push(kind);
            chunk.words.len() - 1
        } else {
            let at = chunk.free as usize;
            chunk.free = chunk.words[at].address as u32;
            (chunk.words[at], chunk.kinds[at]) = (words, kind);
            at
        };
        chunk.live += 1;
        if chunk.live == CHUNK {
            self.roomy[number / 64] &= !(1 << (number % 64));
        }
        self.len += 1;
        (number * CHUNK + at) as u32
    }

    /// The lowest chunk that has room.
    fn with_room(&mut self) -> usize {
        let word = self.roomy.iter().position(|&word| word != 0);
        if let Some(word) = word {
            return word * 64 + self.roomy[word].trailing_zeros() as usize;
        }
        let number = self.chunks.iter().position(Option::is_none).unwrap_or(self.chunks.len());
        if number == self.chunks.len() {
            self.chunks.push(None);
        }
        self.roomy.resize(self.chunks.len().div_ceil(64), 0);
        self.roomy[number / 64] |= 1 << (number % 64);
        self.places += CHUNK;
        number
    }

    fn chunk(&self, slot: u32) -> Option<(&Chunk, usize)> {
        let slot = slot as usize;
        self.chunks.get(slot / CHUNK)?.as_ref().map(|chunk| (chunk, slot % CHUNK))
    }

    /// The address of the task at a place; zero where there is no such place.
    pub fn address(&self, slot: u32) -> u64 {
        self.chunk(slot).and_then(|(chunk, at)| chunk.words.get(at)).map_or(0, |words| words.address)
    }

    /// The id of the task at a place; zero where it has none.
    pub fn id(&self, slot: u32) -> u64 {
        self.chunk(slot).and_then(|(chunk, at)| chunk.words.get(at)).map_or(0, |words| words.id)
    }

    /// The task at a place that is taken.
    pub fn get(&self, slot: u32) -> Option<Task> {
        let (chunk, at) = self.chunk(slot)?;
        let (words, kind) = (chunk.words.get(at)?, *chunk.kinds.get(at)?);
        let id = (kind & HAS_ID != 0).then_some(words.id);
        Some(Task::new(TypeId(kind & (KINDS - 1)), id, words.since_ns, kind & FOUND != 0))
    }

    /// The spawn of the task at a place became known.
    pub fn spawn_seen(&mut self, slot: u32, spawn_ns: u64) {
        let (number, at) = (slot as usize / CHUNK, slot as usize % CHUNK);
        if let Some(Some(chunk)) = self.chunks.get_mut(number) {
            chunk.words[at].since_ns = spawn_ns;
            chunk.kinds[at] &= !FOUND;
        }
    }

    /// Frees a place that is taken.
    pub fn remove(&mut self, slot: u32) {
        let (number, at) = (slot as usize / CHUNK, slot as usize % CHUNK);
        let Some(Some(chunk)) = self.chunks.get_mut(number) else { return };
        chunk.words[at].address = u64::from(chunk.free);
        chunk.free = at as u32;
        chunk.live -= 1;
        self.len -= 1;
        self.roomy[number / 64] |= 1 << (number % 64);
        // Room for as many is kept: who frees and takes in turns does not allocate each time.
        if chunk.live == 0 && self.places - self.len >= 2 * CHUNK {
            self.chunks[number] = None;
            self.roomy[number / 64] &= !(1 << (number % 64));
            self.places -= CHUNK;
        }
    }

    /// Number of tasks.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Number of places.
    #[cfg(test)]
    pub fn places(&self) -> usize {
        self.places
    }
}
