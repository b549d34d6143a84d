//! Polls that have not ended: those that hold their thread just now, and those that outlasted the window in which they
//! began. Never what is done about them.

use profiler_common::map::{POLL_STACK_FRAMES, PollFrame, PollStack};
use rustc_hash::FxHashMap;

use crate::event::TypeId;
use crate::kernel::load::Kernel;
use crate::model::snapshot::{SlowPoll, UnfinishedPolls};

/// A type of task, of those that are to end their polls soon.
pub(super) type KindOf<'a> = &'a dyn Fn(u64) -> Option<TypeId>;

/// The unfinished polls of one target that are slow already.
#[derive(Default)]
pub(super) struct Unfinished {
    /// By type, when it was looked last; `None` where it could not be seen.
    now: Option<FxHashMap<TypeId, UnfinishedPolls>>,
    /// By type, since polls were measured without a gap: no end of these was seen.
    outlasted: FxHashMap<TypeId, UnfinishedPolls>,
}

impl Unfinished {
    /// Takes what holds a thread now; `None` where that is not known.
    pub fn set(&mut self, polls: Option<&[SlowPoll]>) {
        self.now = polls.map(|polls| {
            let mut now = FxHashMap::default();
            polls.iter().for_each(|poll| add(&mut now, poll));
            now
        });
    }

    /// Takes what still held a thread when its window ended.
    pub fn outlast(&mut self, polls: &[SlowPoll]) {
        polls.iter().for_each(|poll| add(&mut self.outlasted, poll));
    }

    /// All ends are seen from now on.
    pub fn forget_outlasted(&mut self) {
        self.outlasted.clear();
    }

    /// Those of a type that hold a thread.
    pub fn of(&self, kind: TypeId) -> Option<UnfinishedPolls> {
        Some(self.now.as_ref()?.get(&kind).copied().unwrap_or_default())
    }

    /// Types of which a poll holds a thread.
    pub fn kinds(&self) -> impl Iterator<Item = TypeId> + '_ {
        self.now.iter().flat_map(FxHashMap::keys).copied()
    }

    /// Those of a type that outlasted their windows.
    pub fn outlasted(&self, kind: TypeId) -> UnfinishedPolls {
        self.outlasted.get(&kind).copied().unwrap_or_default()
    }
}

fn add(polls: &mut FxHashMap<TypeId, UnfinishedPolls>, poll: &SlowPoll) {
    let one = UnfinishedPolls { count: 1, longest_ns: poll.duration_ns, tid: poll.tid };
    polls.entry(poll.kind).or_default().add(one);
}

/// Looks for polls on `threads` that began in this window and have lasted for `slow_ns`. Of polls within polls, the
/// innermost holds the thread.
pub(super) fn find(
    kernel: &mut Kernel,
    threads: &[u32],
    window: u32,
    slow_ns: u64,
    now_ns: u64,
    kind_of: KindOf<'_>,
) -> Vec<SlowPoll> {
    let mut found = Vec::new();
    for &tid in threads {
        let mut innermost = || innermost(&kernel.poll_stack(tid)?, window);
        let Some(frame) = innermost() else { continue };
        let duration_ns = now_ns.saturating_sub(frame.start_ns);
        let Some(kind) = kind_of(frame.vtable).filter(|_| duration_ns >= slow_ns) else { continue };
        // The thread writes while it is read: only what is there twice was there.
        if innermost() == Some(frame) {
            found.push(SlowPoll { time_ns: now_ns, kind, duration_ns, tid });
        }
    }
    found
}

fn innermost(stack: &PollStack, window: u32) -> Option<PollFrame> {
    let depth = stack.depth as usize;
    let is_kept = stack.window == window && (1..=POLL_STACK_FRAMES).contains(&depth);
    is_kept.then(|| stack.frames[depth - 1])
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: u32 = 3;

    fn stack(depth: u32, window: u32) -> PollStack {
        let mut stack = PollStack { depth, window, ..PollStack::EMPTY };
        for (number, frame) in stack.frames.iter_mut().enumerate() {
            frame.task = number as u64 + 1;
        }
        stack
    }

    /// Check that the innermost frame counts, if it is of this window and was kept.
    #[test]
    fn the_innermost_poll_holds_the_thread() {
        let task = |stack: PollStack| innermost(&stack, WINDOW).map(|frame| frame.task);
        assert_eq!(task(stack(0, WINDOW)), None);
        assert_eq!(task(stack(1, WINDOW)), Some(1));
        assert_eq!(task(stack(8, WINDOW)), Some(8));
        assert_eq!(task(stack(9, WINDOW)), None, "it was not kept");
        assert_eq!(task(stack(1, WINDOW + 1)), None, "it may be over");
    }

    /// Check that what holds a thread is told from what has outlasted its window, and nothing from what is not known.
    #[test]
    fn counts_by_type() {
        let kind = TypeId(1);
        let poll = |duration_ns, tid| SlowPoll { time_ns: 9, kind, duration_ns, tid };
        let mut unfinished = Unfinished::default();
        assert_eq!(unfinished.of(kind), None);
        unfinished.set(Some(&[poll(20, 7), poll(30, 8), poll(25, 9)]));
        assert_eq!(unfinished.of(kind), Some(UnfinishedPolls { count: 3, longest_ns: 30, tid: 8 }));
        assert_eq!(unfinished.of(TypeId(2)), Some(UnfinishedPolls::default()));
        unfinished.outlast(&[poll(40, 7)]);
        unfinished.outlast(&[poll(20, 7)]);
        assert_eq!(unfinished.outlasted(kind), UnfinishedPolls { count: 2, longest_ns: 40, tid: 7 });
        unfinished.set(None);
        assert_eq!(unfinished.of(kind), None);
        unfinished.forget_outlasted();
        assert_eq!(unfinished.outlasted(kind), UnfinishedPolls::default());
    }
}
