//! Walks the lists of tasks while the process changes them. Never where they are.
//!
//! Tasks are added in front (`push_front` of `util/linked_list.rs`), so the last one is the oldest. A list is walked
//! from there: what comes and goes most is met last, and what was there when the walk began is met in any case.

use std::collections::VecDeque;

use rustc_hash::FxHashMap;

use super::Effort;
use super::owned::{Owned, SHARD_BYTES, Shape};
use super::task::{Node, Reader, Types};
use crate::event::{TaskRef, TypeId};
use crate::runtime::{Activity, FoundTask};
use crate::target::memory::{Batch, Memory, MemoryError};

/// Lists that are walked side by side: one step of all of them is two system calls.
const LANES: usize = 256;
/// Lists whose ends are read together.
const ENDS: usize = 1024;
/// Tasks that are handed over together.
const CHUNK: usize = 4096;
/// Tasks are handed over no later than this after they were read, nanoseconds.
const CHUNK_NS: u64 = 10_000_000;
/// Tasks of a list that a walk can step back to when the one that it stands on is gone.
const TRAIL: usize = 16;
/// Times that one list is begun anew.
const ATTEMPTS: u32 = 8;
/// How much higher the id of a task may be that is no younger than another: ids are taken before tasks are added.
const ID_SLACK: u64 = 1 << 16;

/// What was counted in the lists of one runtime.
#[derive(Default)]
pub(super) struct Counted {
    /// Tasks by type; those that have ended and wait to leave the list are not among them.
    pub(super) by_type: FxHashMap<TypeId, u64>,
    /// Of those, the ones that wait for a thread.
    pub(super) runnable: u64,
    /// All that are in the lists.
    pub(super) members: u64,
    /// Lists that were not walked to their end.
    pub(super) broken: u64,
}

impl Counted {
    fn add(&mut self, passed: Passed) {
        self.members += 1;
        if let Some((kind, runnable)) = passed.alive {
            *self.by_type.entry(kind).or_default() += 1;
            self.runnable += u64::from(runnable);
        }
    }

    fn take(&mut self, passed: Passed) {
        self.members -= 1;
        if let Some((kind, runnable)) = passed.alive {
            self.by_type.entry(kind).and_modify(|count| *count -= 1);
            self.runnable -= u64::from(runnable);
        }
    }

    /// Adds what was counted elsewhere.
    pub(super) fn absorb(&mut self, other: Counted) {
        for (kind, count) in other.by_type {
            *self.by_type.entry(kind).or_default() += count;
        }
        self.runnable += other.runnable;
        self.members += other.members;
        self.broken += other.broken;
    }
}

/// Takes the tasks that are found, and hands them on in chunks.
pub(super) struct Sink<'f> {
    found: &'f mut dyn FnMut(&[FoundTask]),
    chunk: Vec<FoundTask>,
    /// A time before what is put was read.
    now_ns: u64,
    /// When the oldest of the chunk was read.
    since_ns: u64,
    pub(super) handed: u64,
}

impl<'f> Sink<'f> {
    pub(super) fn new(found: &'f mut dyn FnMut(&[FoundTask])) -> Sink<'f> {
        Sink { found, chunk: Vec::new(), now_ns: 0, since_ns: 0, handed: 0 }
    }

    /// What is put from now on was not read before `now_ns`.
    fn reads_from(&mut self, now_ns: u64) {
        if self.chunk.len() >= CHUNK || now_ns.saturating_sub(self.since_ns) > CHUNK_NS {
            self.flush();
        }
        if self.chunk.is_empty() {
            self.since_ns = now_ns;
        }
        self.now_ns = now_ns;
    }

    fn put(&mut self, task: TaskRef, kind: TypeId, activity: Activity) {
        self.chunk.push(FoundTask { time_ns: self.now_ns, task, kind, activity });
        self.handed += 1;
    }

    /// Hands on what is left.
    pub(super) fn flush(&mut self) {
        if !self.chunk.is_empty() {
            (self.found)(&self.chunk);
            self.chunk.clear();
        }
    }
}

/// A task that was passed, and as what it was counted; nothing when it has ended.
#[derive(Clone, Copy)]
struct Passed {
    address: u64,
    alive: Option<(TypeId, bool)>,
}

/// One list that is being walked.
struct Cursor {
    /// Where its ends are.
    shard: u64,
    /// The next task to read.
    at: u64,
    /// The first task when the walk began: what is in front of it is younger.
    head: u64,
    /// The id of `head`; `None` if it has ended already.
    newest: Option<u64>,
    /// The last tasks that were passed.
    trail: VecDeque<Passed>,
    /// Whether tasks were passed that are no longer in `trail`.
    trail_is_cut: bool,
    /// Whether `at` was passed before, and handed over.
    again: bool,
    /// Steps back since the last task that was new.
    setbacks: usize,
    attempts: u32,
    state: State,
    counted: Counted,
}

/// How a walk through a list stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Walking,
    /// It lost its way.
    Lost,
    Done,
}

/// A walk through all lists of a runtime, that can be interrupted: what was walked is checked again when it goes on.
pub(super) struct Pass {
    /// The lists, and how often they were begun.
    shards: Vec<(u64, u32)>,
    /// Lists of `shards` that were begun.
    begun: usize,
    cursors: Vec<Cursor>,
    counted: Counted,
    reader: Reader,
}

impl Pass {
    pub(super) fn new(owned: &Owned) -> Pass {
        let (first, count) = match owned.shape {
            Shape::Sharded { lists, count, .. } => (lists, count),
            // It begins with its lock, as a shard does.
            Shape::Single => (owned.place.saturating_sub(8), 1),
        };
        let shards = (0..count).map(|n| (first.wrapping_add(n * SHARD_BYTES as u64), 0)).collect();
        Pass { shards, begun: 0, cursors: Vec::new(), counted: Counted::default(), reader: Reader::default() }
    }

    /// What was counted; lists that were not walked to their end are broken.
    pub(super) fn end(mut self) -> Counted {
        self.counted.broken += (self.cursors.len() + self.shards.len() - self.begun) as u64;
        self.counted
    }

    /// Walks until all lists are done, or time is up; whether they are done.
    ///
    /// # Errors
    /// The memory cannot be read.
    pub(super) fn go_on(
        &mut self,
        memory: &dyn Memory,
        owned: &Owned,
        types: &Types,
        effort: Effort,
        sink: &mut Sink<'_>,
    ) -> Result<bool, MemoryError> {
        loop {
            if self.cursors.is_empty() {
                let some = &self.shards[self.begun..(self.begun + ENDS).min(self.shards.len())];
                if some.is_empty() {
                    return Ok(true);
                }
                self.begun += some.len();
                self.cursors = begin(memory, types, &mut self.reader, some, &mut self.counted)?;
                continue;
            }
            if effort.is_over() {
                return Ok(false);
            }
            sink.reads_from((effort.now_ns)());
            let lanes = self.cursors.len().min(LANES);
            let mut lost = Vec::new();
            let addresses: Vec<u64> = self.cursors[..lanes].iter().map(|cursor| cursor.at).collect();
            let nodes = self.reader.read(memory, types, &addresses)?;
            for (lane, (cursor, node)) in self.cursors.iter_mut().zip(nodes).enumerate() {
                match node.filter(|node| cursor.follows(node, owned.id)) {
                    Some(node) => cursor.pass(node, effort.most_tasks, sink),
                    None => cursor.step_back(),
                }
                while cursor.state == State::Walking
                    && let Some(node) = self.reader.meet(types, lane, cursor.at)
                    && cursor.follows(&node, owned.id)
                {
                    cursor.pass(node, effort.most_tasks, sink);
                }
                match cursor.state {
                    State::Walking => {}
                    State::Done => self.counted.absorb(std::mem::take(&mut cursor.counted)),
                    State::Lost if cursor.attempts < ATTEMPTS => lost.push((cursor.shard, cursor.attempts + 1)),
                    State::Lost => self.counted.broken += 1,
                }
            }
            self.cursors.retain(|cursor| cursor.state == State::Walking);
            if !lost.is_empty() {
                self.cursors.extend(begin(memory, types, &mut self.reader, &lost, &mut self.counted)?);
            }
        }
    }
}

/// Reads the ends of some lists; those that are empty are left out.
fn begin(
    memory: &dyn Memory,
    types: &Types,
    reader: &mut Reader,
    shards: &[(u64, u32)],
    counted: &mut Counted,
) -> Result<Vec<Cursor>, MemoryError> {
    let mut batch = Batch::default();
    for &(shard, _) in shards {
        batch.add(shard, SHARD_BYTES);
    }
    batch.read(memory)?;
    let mut cursors = Vec::new();
    for (span, &(shard, attempts)) in shards.iter().enumerate() {
        let (head, tail) = match (batch.word(span, 8), batch.word(span, 16)) {
            (Some(0), Some(0)) => continue,
            (Some(head), Some(tail)) if head != 0 && tail != 0 => (head, tail),
            _ => {
                counted.broken += 1;
                continue;
            }
        };
        cursors.push(Cursor {
            shard,
            at: tail,
            head,
            newest: None,
            trail: VecDeque::with_capacity(TRAIL),
            trail_is_cut: false,
            again: false,
            setbacks: 0,
            attempts,
            state: State::Walking,
            counted: Counted::default(),
        });
    }
    let heads: Vec<u64> = cursors.iter().map(|cursor| cursor.head).collect();
    for (cursor, head) in cursors.iter_mut().zip(reader.read(memory, types, &heads)?) {
        cursor.newest = head.map(|head| head.id);
    }
    Ok(cursors)
}

impl Cursor {
    /// Whether a task that was read is the one in front of the last that was passed.
    fn follows(&self, node: &Node, owner: u64) -> bool {
        node.owner == owner && node.next == self.trail.back().map_or(0, |last| last.address)
    }

    fn pass(&mut self, node: Node, most: u64, sink: &mut Sink<'_>) {
        // A program that spawns faster than this walks would never be done.
        if self.newest.is_some_and(|newest| node.id > newest.saturating_add(ID_SLACK)) {
            self.state = State::Done;
            return;
        }
        if self.counted.members > most {
            self.state = State::Lost;
            self.attempts = ATTEMPTS;
            return;
        }
        let passed = Passed { address: self.at, alive: node.activity().map(|_| (node.kind, node.waits_for_thread())) };
        self.counted.add(passed);
        if let Some(activity) = node.activity().filter(|_| !self.again) {
            sink.put(TaskRef { address: self.at, id: Some(node.id) }, node.kind, activity);
        }
        if !self.again {
            self.setbacks = 0;
        }
        self.again = false;
        if self.trail.len() == TRAIL {
            self.trail.pop_front();
            self.trail_is_cut = true;
        }
        self.trail.push_back(passed);
        if node.previous == 0 || self.at == self.head {
            self.state = State::Done;
        }
        self.at = node.previous;
    }

    /// The next task is gone: the one before it is read again, for it knows who is there now.
    fn step_back(&mut self) {
        self.setbacks += 1;
        match self.trail.pop_back() {
            // Of the last one of a cut trail it cannot be told whether it is still in the list.
            Some(last) if !(self.trail.is_empty() && self.trail_is_cut) && self.setbacks <= 2 * TRAIL => {
                self.counted.take(last);
                self.at = last.address;
                self.again = true;
            }
            _ => self.state = State::Lost,
        }
    }
}
