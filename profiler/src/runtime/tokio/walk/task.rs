//! One task in memory: header, links, id (`runtime/task/core.rs`). Never its list.

use rustc_hash::FxHashMap;

use crate::event::TypeId;
use crate::runtime::Activity;
use crate::runtime::tokio::vtable::Vtable;
use crate::target::memory::{Batch, Memory, MemoryError};

/// State bits of `runtime/task/state.rs`.
const RUNNING: u64 = 1;
const COMPLETE: u64 = 2;
const NOTIFIED: u64 = 4;
const CANCELLED: u64 = 0x20;

/// Bytes of a header: state, next in a queue, vtable, owner's id.
const HEADER: usize = 32;

/// Where the parts of a type's tasks are.
#[derive(Clone, Copy, Debug)]
struct Parts {
    kind: TypeId,
    /// The links of the list of tasks: the first two words of the trailer.
    links: u64,
    id: u64,
}

/// The types of tasks of a process, by the addresses of their vtables.
#[derive(Clone, Debug)]
pub(super) struct Types(FxHashMap<u64, Parts>);

impl Types {
    /// Of the types of a binary, loaded at `load_bias`. `None` where the vtables do not tell the parts.
    pub(super) fn new(vtables: &[Vtable], load_bias: u64) -> Option<Types> {
        let parts = |(number, vtable): (usize, &Vtable)| {
            let parts = Parts { kind: TypeId(number as u32), links: vtable.trailer?, id: vtable.id? };
            Some((vtable.address.wrapping_add(load_bias), parts))
        };
        vtables.iter().enumerate().map(parts).collect::<Option<_>>().map(Types)
    }
}

/// A task as it was read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Node {
    pub(super) kind: TypeId,
    state: u64,
    /// The id of the list that it is in.
    pub(super) owner: u64,
    pub(super) id: u64,
    /// Towards the first.
    pub(super) previous: u64,
    /// Towards the last.
    pub(super) next: u64,
}

impl Node {
    /// What it was doing; nothing when it has ended, and only waits to leave the list.
    pub(super) fn activity(&self) -> Option<Activity> {
        match self.state {
            state if state & COMPLETE != 0 => None,
            state if state & RUNNING != 0 => Some(Activity::Running),
            state if state & CANCELLED != 0 => Some(Activity::Cancelled),
            state if state & NOTIFIED != 0 => Some(Activity::Runnable),
            _ => Some(Activity::Idle),
        }
    }

    /// Whether it is in a queue.
    pub(super) fn waits_for_thread(&self) -> bool {
        self.state & (COMPLETE | RUNNING) == 0 && self.state & NOTIFIED != 0
    }
}

/// Reads tasks, many at once.
#[derive(Default)]
pub(super) struct Reader {
    headers: Batch,
    parts: Batch,
}

impl Reader {
    /// Reads the tasks at `addresses`; `None` for what is none.
    ///
    /// # Errors
    /// The memory cannot be read.
    pub(super) fn read(
        &mut self,
        memory: &dyn Memory,
        types: &Types,
        addresses: &[u64],
    ) -> Result<Vec<Option<Node>>, MemoryError> {
        self.headers.clear();
        self.parts.clear();
        for &address in addresses {
            self.headers.add(address, HEADER);
        }
        self.headers.read(memory)?;
        let parts: Vec<Option<(Parts, usize)>> = addresses
            .iter()
            .enumerate()
            .map(|(span, &address)| {
                let parts = *types.0.get(&self.headers.word(span, 16).filter(|_| address % 8 == 0)?)?;
                let links = self.parts.add(address.wrapping_add(parts.links), 16);
                self.parts.add(address.wrapping_add(parts.id), 8);
                Some((parts, links))
            })
            .collect();
        self.parts.read(memory)?;
        let node = |(span, parts): (usize, Option<(Parts, usize)>)| {
            let (parts, links) = parts?;
            let id = self.parts.word(links + 1, 0).filter(|&id| id != 0)?;
            Some(Node {
                kind: parts.kind,
                state: self.headers.word(span, 0)?,
                owner: self.headers.word(span, 24)?,
                id,
                previous: self.parts.word(links, 0)?,
                next: self.parts.word(links, 8)?,
            })
        };
        Ok(parts.into_iter().enumerate().map(node).collect())
    }
}
