//! The map of event loops. Never what is made of it.

use aya::Pod;
use profiler_common::event_loop::LoopStats;
use profiler_common::sched::Thread;

use super::load::Kernel;
use super::maps::Value;

// SAFETY: `repr(C)`, made of integers only, without padding (asserted beside its definition).
unsafe impl Pod for Value<LoopStats> {}

const LOOPS: &str = "LOOPS";
/// How often both parts of a loop are read again that changed between.
const TRIES: usize = 8;

impl Kernel {
    /// What was counted of an event loop, and what its thread does just now; `None` where the thread is none.
    pub fn event_loop(&mut self, tid: u32) -> Option<(Box<LoopStats>, Option<Thread>)> {
        let mut thread = self.thread(tid);
        for _ in 0..TRIES {
            let Value(stats) = self.hash::<u32, Value<LoopStats>>(LOOPS).ok()?.get(&tid, 0).ok()?;
            let now = self.thread(tid);
            if now.map(|t| t.active_ns) == thread.map(|t| t.active_ns) {
                return Some((Box::new(stats), now));
            }
            thread = now;
        }
        None
    }

    /// Forgets an event loop.
    pub fn remove_event_loop(&mut self, tid: u32) {
        if let Ok(mut loops) = self.hash::<u32, Value<LoopStats>>(LOOPS) {
            let _ = loops.remove(&tid);
        }
    }
}
