//! The watched processes, each in a slot of the kernel half's maps, and whose a process is. Never how one is watched.

use std::collections::{HashMap, VecDeque};

use super::target::Watched;

/// A slot that was in use rests for so long, nanoseconds: a program of the kernel half may still be at work that has
/// looked it up just before.
const REST_NS: u64 = 1_000_000_000;

/// Watched processes by slot.
pub(super) struct Targets {
    by_slot: Vec<Option<Watched>>,
    /// Slots that were in use, and since when they are not.
    freed: VecDeque<(u32, u64)>,
    limit: u32,
    /// Slots of the watched processes and of their forked children.
    by_pid: HashMap<u32, u32>,
}

/// A slot that is free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FreeSlot {
    pub number: u32,
    /// Whether there are counts of an earlier target in it.
    pub used: bool,
}

impl Targets {
    /// Room for `limit` targets.
    pub fn new(limit: u32) -> Targets {
        Targets { by_slot: Vec::new(), freed: VecDeque::new(), limit, by_pid: HashMap::new() }
    }

    /// How many there is room for.
    pub fn limit(&self) -> u32 {
        self.limit
    }

    /// How many slots are free, those among them that rest.
    pub fn free(&self) -> u32 {
        self.limit - self.iter().count() as u32
    }

    /// A slot for one more target; `None` where there is no room. It stays free until [`Targets::insert`].
    pub fn free_slot(&self, now_ns: u64) -> Option<FreeSlot> {
        let unused = self.by_slot.len() as u32;
        if unused < self.limit {
            return Some(FreeSlot { number: unused, used: false });
        }
        let &(number, since_ns) = self.freed.front()?;
        (now_ns.saturating_sub(since_ns) >= REST_NS).then_some(FreeSlot { number, used: true })
    }

    /// Keeps a target in the slot that was free for it.
    pub fn insert(&mut self, slot: FreeSlot, watched: Watched) {
        let place = slot.number as usize;
        self.freed.retain(|(freed, _)| *freed != slot.number);
        if self.by_slot.len() <= place {
            self.by_slot.resize_with(place + 1, || None);
        }
        for pid in watched.members() {
            self.by_pid.insert(pid, slot.number);
        }
        self.by_slot[place] = Some(watched);
    }

    /// Takes a target out of its slot, which is free after a while.
    pub fn remove(&mut self, slot: u32, now_ns: u64) -> Option<Watched> {
        let watched = self.by_slot.get_mut(slot as usize)?.take()?;
        self.by_pid.retain(|_, of| *of != slot);
        self.freed.push_back((slot, now_ns));
        Some(watched)
    }

    /// The slot of the target that a process belongs to.
    pub fn slot_of(&self, pid: u32) -> Option<u32> {
        self.by_pid.get(&pid).copied()
    }

    /// The target in a slot.
    pub fn get(&self, slot: u32) -> Option<&Watched> {
        self.by_slot.get(slot as usize)?.as_ref()
    }

    /// The target in a slot, to be changed.
    pub fn get_mut(&mut self, slot: u32) -> Option<&mut Watched> {
        self.by_slot.get_mut(slot as usize)?.as_mut()
    }

    /// The target that a process belongs to.
    pub fn of(&self, pid: u32) -> Option<&Watched> {
        self.get(self.slot_of(pid)?)
    }

    /// The target that a process belongs to, to be changed.
    pub fn of_mut(&mut self, pid: u32) -> Option<&mut Watched> {
        self.get_mut(self.slot_of(pid)?)
    }

    /// A process of a target has forked.
    pub fn forked(&mut self, parent: u32, child: u32) {
        if let Some(slot) = self.slot_of(parent) {
            self.by_pid.insert(child, slot);
        }
    }

    /// A process has ended, or is no longer the target's. Returns the slot that it was in.
    pub fn forget(&mut self, pid: u32) -> Option<u32> {
        self.by_pid.remove(&pid)
    }

    /// All processes of all targets.
    pub fn pids(&self) -> impl Iterator<Item = u32> + '_ {
        self.by_pid.keys().copied()
    }

    /// Slots in use.
    pub fn slots(&self) -> Vec<u32> {
        let used = |(slot, watched): (usize, &Option<Watched>)| watched.is_some().then_some(slot as u32);
        self.by_slot.iter().enumerate().filter_map(used).collect()
    }

    /// All targets.
    pub fn iter(&self) -> impl Iterator<Item = &Watched> {
        self.by_slot.iter().flatten()
    }

    /// All targets, to be changed.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Watched> {
        self.by_slot.iter_mut().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::claim::claim;
    use crate::target::process::Process;

    fn watched(slot: u32) -> Watched {
        let process = Process::find(std::process::id()).expect("this process");
        let claim = claim(&process, true).expect("it is forced");
        Watched::new(slot, process, claim)
    }

    fn add(targets: &mut Targets, now_ns: u64) -> FreeSlot {
        let slot = targets.free_slot(now_ns).expect("room");
        targets.insert(slot, watched(slot.number));
        slot
    }

    /// Check that slots are bounded, and used again after a rest only, the one that has rested longest first.
    #[test]
    fn slots_are_used_again() {
        let mut targets = Targets::new(2);
        assert_eq!(add(&mut targets, 0), FreeSlot { number: 0, used: false });
        assert_eq!(add(&mut targets, 0), FreeSlot { number: 1, used: false });
        assert_eq!(targets.free_slot(REST_NS), None);
        assert!(targets.remove(1, 10).is_some() && targets.remove(0, 20).is_some());
        assert!(targets.remove(0, 30).is_none() && targets.remove(7, 30).is_none());
        assert_eq!(targets.free_slot(REST_NS), None);
        assert_eq!(add(&mut targets, REST_NS + 10), FreeSlot { number: 1, used: true });
        assert_eq!(targets.free_slot(REST_NS + 10), None);
        assert_eq!(add(&mut targets, REST_NS + 20), FreeSlot { number: 0, used: true });
        assert_eq!(targets.slots(), [0, 1]);
    }

    /// Check that processes are their target's until that is gone.
    #[test]
    fn processes_belong_to_targets() {
        let mut targets = Targets::new(1);
        let me = std::process::id();
        add(&mut targets, 0);
        targets.forked(me, 4_000_000_000);
        targets.forked(4_000_000_001, 4_000_000_002);
        assert_eq!(targets.slot_of(4_000_000_000), Some(0));
        assert_eq!(targets.slot_of(4_000_000_002), None);
        assert!(targets.of(me).is_some());
        assert_eq!(targets.forget(4_000_000_000), Some(0));
        assert_eq!(targets.slot_of(4_000_000_000), None);
        assert!(targets.remove(0, 0).is_some() && targets.of(me).is_none());
    }
}
