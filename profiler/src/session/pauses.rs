//! Pauses of a target's processes: how long, and how often the runtime itself says that it collected. Never how it is read.

use std::collections::{HashMap, HashSet};

use super::builds::Build;
use crate::histogram::Histogram;
use crate::kernel::load::Kernel;
use crate::model::snapshot::PauseSnapshot;
use crate::target::memory::ProcessMemory;

/// What processes said.
#[derive(Default)]
pub(super) struct Pauses {
    /// Collections by process: where those of a forked child begin, which has its parent's, and the last ones that were read.
    by_process: HashMap<u32, (u64, u64)>,
    /// Collections of processes that have ended.
    ended: u64,
    /// Whether any was read.
    read: bool,
}

impl Pauses {
    /// Reads what the processes say now. `pause` are the durations, `root` is the process that forked the others.
    pub fn snapshot(
        &mut self,
        kernel: &mut Kernel,
        build: Option<&Build>,
        pause: Histogram,
        root: u32,
        processes: &HashSet<u32>,
    ) -> PauseSnapshot {
        if let Some(build) = build {
            for &pid in processes {
                let Some(clocks) = kernel.clocks(pid) else { continue };
                let read = build.runtime.collections(&build.plan, &ProcessMemory { pid }, clocks.low, clocks.high);
                let Some(now) = read else { continue };
                self.read = true;
                let known = self.by_process.entry(pid).or_insert((if pid == root { 0 } else { now }, now));
                known.1 = known.1.max(now);
            }
        }
        let collections = self.by_process.values().map(|(base, last)| last - base).sum::<u64>() + self.ended;
        PauseSnapshot { pause, collections: self.read.then_some(collections) }
    }

    /// A process has ended, or runs another image: what it said last stays.
    pub fn ended(&mut self, pid: u32) {
        if let Some((base, last)) = self.by_process.remove(&pid) {
            self.ended += last - base;
        }
    }
}
