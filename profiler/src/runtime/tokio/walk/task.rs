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
pub(super) const HEADER: usize = 32;

/// Where the parts of a type's tasks are.
#[derive(Clone, Copy, Debug)]
struct Parts {
    kind: TypeId,
    /// The links of the list of tasks: the first two words of the trailer.
    links: u64,
    id: u64,
}

/// The types of tasks of a binary, or of a process that runs it, by the addresses of their vtables.
#[derive(Clone, Debug)]
pub struct Types(FxHashMap<u64, Parts>);

impl Types {
    /// Of the types of a binary, by the addresses in its file. `None` where the vtables do not tell the parts.
    pub fn new(vtables: &[Vtable]) -> Option<Types> {
        let parts = |(number, vtable): (usize, &Vtable)| {
            let parts = Parts { kind: TypeId(number as u32), links: vtable.trailer?, id: vtable.id? };
            Some((vtable.address, parts))
        };
        vtables.iter().enumerate().map(parts).collect::<Option<_>>().map(Types)
    }

    /// The same of a process, where the binary was loaded at `load_bias`.
    pub fn at(&self, load_bias: u64) -> Types {
        Types(self.0.iter().map(|(address, parts)| (address.wrapping_add(load_bias), *parts)).collect())
    }
}

impl Types {
    /// The next task in the queue that a task is in, if these are the words of the header of one that waits for a
    /// thread and is in the list of this owner. The last one's next is 0.
    pub(super) fn queued(&self, header: &[u64], owner: u64) -> Option<u64> {
        let &[state, next, vtable, of, ..] = header else { return None };
        (self.0.contains_key(&vtable) && of == owner && is_queued(state)).then_some(next)
    }
}

/// Whether a task in this state is in a queue.
fn is_queued(state: u64) -> bool {
    state & (COMPLETE | RUNNING) == 0 && state & NOTIFIED != 0
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
        is_queued(self.state)
    }
}

/// Bytes that are read from a task's address on: more, as long as the next tasks are found among them.
const LEAST_WINDOW: usize = 256;
const MOST_WINDOW: usize = 8192;
/// Bytes of all windows that are read together.
const WINDOWS: usize = 64 * 1024;

/// Reads tasks, many at once.
#[derive(Default)]
pub(super) struct Reader {
    windows: Batch,
    addresses: Vec<u64>,
    window: usize,
    /// Tasks that were met in the windows of others.
    met: usize,
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
        let most = (WINDOWS / addresses.len().max(1)).clamp(LEAST_WINDOW, MOST_WINDOW);
        let fitting = if self.met * 2 >= self.addresses.len() { self.window * 2 } else { self.window / 2 };
        self.window = fitting.clamp(LEAST_WINDOW, most);
        self.met = 0;
        self.addresses.clear();
        self.addresses.extend_from_slice(addresses);
        self.windows.clear();
        for &address in addresses {
            self.windows.add(address, self.window);
        }
        self.windows.read(memory)?;
        let mut nodes: Vec<Option<Node>> =
            addresses.iter().enumerate().map(|(span, &address)| self.node(types, span, address)).collect();
        // What does not fit into its window, or lies close to the end of what is mapped.
        let rest: Vec<usize> = (0..nodes.len()).filter(|&span| nodes[span].is_none()).collect();
        if !rest.is_empty() {
            let addresses: Vec<u64> = rest.iter().map(|&span| addresses[span]).collect();
            for (span, node) in rest.into_iter().zip(self.read_parts(memory, types, &addresses)?) {
                nodes[span] = node;
            }
        }
        Ok(nodes)
    }

    /// The task at an address that lies in the window of the task at `span`, read in the same moment.
    pub(super) fn meet(&mut self, types: &Types, span: usize, address: u64) -> Option<Node> {
        let node = self.node(types, span, address);
        self.met += usize::from(node.is_some());
        node
    }

    fn node(&self, types: &Types, span: usize, address: u64) -> Option<Node> {
        let offset = usize::try_from(address.checked_sub(*self.addresses.get(span)?)?).ok()?;
        let word = |at: u64| self.windows.word(span, offset.checked_add(usize::try_from(at).ok()?)?);
        let parts = types.0.get(&word(16).filter(|_| address.is_multiple_of(8))?)?;
        Some(Node {
            kind: parts.kind,
            state: word(0)?,
            owner: word(24)?,
            id: word(parts.id).filter(|&id| id != 0)?,
            previous: word(parts.links)?,
            next: word(parts.links.checked_add(8)?)?,
        })
    }

    /// Reads tasks part by part: first the headers, which tell where the rest is.
    fn read_parts(
        &mut self,
        memory: &dyn Memory,
        types: &Types,
        addresses: &[u64],
    ) -> Result<Vec<Option<Node>>, MemoryError> {
        let mut headers = Batch::default();
        self.parts.clear();
        for &address in addresses {
            headers.add(address, HEADER);
        }
        headers.read(memory)?;
        let parts: Vec<Option<(Parts, usize)>> = addresses
            .iter()
            .enumerate()
            .map(|(span, &address)| {
                let parts = *types.0.get(&headers.word(span, 16).filter(|_| address % 8 == 0)?)?;
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
                state: headers.word(span, 0)?,
                owner: headers.word(span, 24)?,
                id,
                previous: self.parts.word(links, 0)?,
                next: self.parts.word(links, 8)?,
            })
        };
        Ok(parts.into_iter().enumerate().map(node).collect())
    }
}
