//! The event loops of a target, by the names of their threads. Never how they are counted.

use std::collections::HashMap;

use profiler_common::event_loop::{LoopStats, score};

use crate::kernel::load::Kernel;
use crate::model::snapshot::LoopSnapshot;

/// Names that are told apart per target.
const NAMES: usize = 16;
/// What the others share.
const OTHER: &str = "other";

/// The loops, those that have ended among them.
#[derive(Default)]
pub(super) struct Loops {
    /// In the order of first sight: what the ended loops of a name had, and what was exported last.
    names: Vec<Name>,
    /// Place of the name by thread: the one that a loop had when it was seen first.
    known: HashMap<u32, usize>,
    /// Threads that have ended and were loops.
    ended: Vec<(u32, String)>,
}

struct Name {
    name: String,
    ended: Box<LoopStats>,
    /// Active and idle time: a counter must not fall when an open span ends between two readings.
    exported: (u64, u64),
}

impl Loops {
    /// A thread that was a loop has ended: it is counted at the next look.
    pub fn ended(&mut self, tid: u32, name: String) {
        self.ended.push((tid, name));
    }

    /// A thread that lives; `name` is asked where it is a loop that was not known.
    pub fn lives(&mut self, tid: u32, loop_score: u32, name: impl FnOnce() -> Option<String>) {
        if loop_score & score::IS_LOOP != 0
            && !self.known.contains_key(&tid)
            && let Some(name) = name()
        {
            let place = self.named(&name);
            self.known.insert(tid, place);
        }
    }

    /// Takes what ended loops had, so that their places are free again.
    pub fn collect_ended(&mut self, kernel: &mut Kernel) {
        for (tid, name) in std::mem::take(&mut self.ended) {
            let place = self.known.remove(&tid).unwrap_or_else(|| self.named(&name));
            if let Some((stats, _)) = kernel.event_loop(tid) {
                self.names[place].ended.merge(&stats);
            }
            kernel.remove_event_loop(tid);
        }
    }

    /// All loops by name.
    pub fn snapshot(&mut self, kernel: &mut Kernel, now_ns: u64) -> Vec<LoopSnapshot> {
        self.collect_ended(kernel);
        let mut sums: Vec<Box<LoopStats>> = self.names.iter().map(|name| name.ended.clone()).collect();
        for (&tid, &place) in &self.known {
            let Some((mut stats, thread)) = kernel.event_loop(tid) else { continue };
            // What is open is counted up to now, unless the thread is busy with something else than a loop.
            match thread {
                Some(thread) if thread.loop_score & score::IS_LOOP == 0 => {}
                Some(thread) if thread.active_ns == 0 => stats.idle_until(now_ns.max(stats.since_ns)),
                Some(thread) => {
                    stats.idle_until(thread.active_ns.max(stats.since_ns));
                    stats.active_ns += now_ns.saturating_sub(thread.active_ns);
                }
                None => {}
            }
            sums[place].merge(&stats);
        }
        let row = |(name, stats): (&mut Name, Box<LoopStats>)| {
            let (active_ns, idle_ns) = name.exported;
            name.exported = (active_ns.max(stats.active_ns), idle_ns.max(stats.idle_ns));
            LoopSnapshot {
                name: name.name.clone(),
                active_ns: name.exported.0,
                idle_ns: name.exported.1,
                iteration: (&stats.iteration).into(),
                delay: (&stats.delay).into(),
            }
        };
        self.names.iter_mut().zip(sums).map(row).collect()
    }

    fn named(&mut self, name: &str) -> usize {
        let name = match self.names.iter().position(|known| known.name == name) {
            Some(place) => return place,
            None if self.names.len() >= NAMES => OTHER,
            None => name,
        };
        self.names.iter().position(|known| known.name == name).unwrap_or_else(|| {
            let ended = Box::new(LoopStats::EMPTY);
            self.names.push(Name { name: name.to_owned(), ended, exported: (0, 0) });
            self.names.len() - 1
        })
    }
}
