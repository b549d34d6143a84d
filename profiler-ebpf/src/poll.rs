//! Polls and wakes: how long each task waits, and how long it holds its thread. Never a record per poll, unless asked.

use aya_ebpf::helpers::bpf_get_smp_processor_id;
use aya_ebpf::programs::ProbeContext;
use profiler_common::coroutine::{MOST_TYPE_KEYS, UNKNOWN_TYPE};
use profiler_common::counter::Counter;
use profiler_common::event::{Header, TaskRecord, kind};
use profiler_common::map::{
    POLL_STACK_FRAMES, PollFrame, PollStack, Probe, TYPE_SHARDS, TypeKey, TypeStats, Woken, target_flag, wake,
};

use crate::hit::{Hit, hit};
use crate::maps::{NOEXIST, POLL_STACKS, TYPE_KEYS, TYPES, WOKEN, count};
use crate::task::CANCELLED_BIT;
use crate::{emit, read, shared};

/// Bits of a task's state word (runtime/task/state.rs, since 1.9).
const COMPLETE_BIT: u64 = 2;
const NOTIFIED_BIT: u64 = 4;

/// Words of a header that hold its state and, in every layout, its vtable.
const HEADER_WORDS: usize = 5;

/// What a type has before its first poll or wake. Too large for the stack of a program, as is the next.
static NEW_TYPE: TypeStats = TypeStats::EMPTY;

/// A thread that has polled nothing.
static NEW_STACK: PollStack = PollStack::EMPTY;

/// A task's poll began on this thread.
#[inline(always)]
pub fn started(ctx: &ProbeContext) -> u32 {
    let Some(hit) = hit(ctx, Probe::PollStart) else { return 0 };
    start(&hit);
    hit.end();
    0
}

#[inline(always)]
fn start(hit: &Hit) {
    let window = hit.window();
    let Some(stack) = stack_of(hit.tid) else {
        count(Counter::PollThreadsFull);
        return;
    };
    let mut frame = PollFrame { task: hit.task, start_ns: hit.time_ns, ..PollFrame::default() };
    if hit.flags() & target_flag::POLLS != 0 {
        measure(hit, window, &mut frame);
    }
    // SAFETY: a live map value; only this thread writes it.
    unsafe {
        if (*stack).window != window {
            (*stack).window = window;
            (*stack).depth = 0;
        }
        let depth = (*stack).depth as usize;
        if depth < POLL_STACK_FRAMES {
            (*stack).frames[depth] = frame;
        } else {
            count(Counter::PollStackDeep);
        }
        (*stack).depth += 1;
    }
}

/// The stack of a thread, which is empty at its first poll.
#[inline(always)]
pub fn stack_of(tid: u32) -> Option<*mut PollStack> {
    if let Some(stack) = POLL_STACKS.get_ptr_mut(tid) {
        return Some(stack);
    }
    POLL_STACKS.insert(tid, &NEW_STACK, 0).ok()?;
    POLL_STACKS.get_ptr_mut(tid)
}

/// Looks at the task that is polled: its type, and how long it has waited.
#[inline(always)]
fn measure(hit: &Hit, window: u32, frame: &mut PollFrame) {
    let Some((state, vtable)) = header(hit) else { return };
    if state & CANCELLED_BIT == 0 {
        frame.vtable = vtable;
    } else {
        cancelled(hit, vtable);
    }
    let Some(woken) = WOKEN.get_ptr_mut(hit.key(hit.task)) else { return };
    // SAFETY: a live map value. A task is polled by one thread at a time; a waker that writes at the same time has
    // woken it either before this poll or during it, and both are true.
    unsafe {
        let since = (*woken).since_ns;
        if since != 0 && (*woken).window == window {
            // At least 1: 0 says that it is not known.
            frame.delay_ns = hit.time_ns.saturating_sub(since).max(1);
            frame.first = u64::from((*woken).first);
        }
        (*woken).since_ns = 0;
        (*woken).first = 0;
    }
}

/// A poll ended on this thread: the innermost one.
#[inline(always)]
pub fn ended(ctx: &ProbeContext) -> u32 {
    let Some(hit) = hit(ctx, Probe::PollEnd) else { return 0 };
    end(&hit);
    hit.end();
    0
}

#[inline(always)]
fn end(hit: &Hit) {
    let Some(stack) = POLL_STACKS.get_ptr_mut(hit.tid) else {
        count(Counter::PollStartUnseen);
        return;
    };
    // SAFETY: a live map value; only this thread writes it.
    unsafe {
        if (*stack).window != hit.window() || (*stack).depth == 0 {
            count(Counter::PollStartUnseen);
            return;
        }
        (*stack).depth -= 1;
        let depth = (*stack).depth as usize;
        if depth >= POLL_STACK_FRAMES || hit.flags() & target_flag::POLLS == 0 {
            return;
        }
        let frame: *const PollFrame = &raw const (*stack).frames[depth];
        let policy = &raw const (*hit.target).polls;
        let probes = (*frame).probes_ns + u64::from((*policy).added_ns);
        let duration = (hit.time_ns - (*frame).start_ns).saturating_sub(probes);
        let busy = duration.saturating_sub((*frame).nested_ns);
        if depth > 0 {
            let hits = (*policy).hit_ns;
            let outer = frame_below(stack, depth);
            (*outer).nested_ns += duration;
            (*outer).probes_ns += (*frame).probes_ns
                + u64::from(hits[Probe::PollStart as usize])
                + u64::from(hits[Probe::PollEnd as usize]);
        }
        if (*frame).vtable != 0 {
            polled(hit, frame, duration, busy, (*policy).slow_ns);
        }
    }
}

/// Counts a poll.
#[inline(always)]
pub fn polled(hit: &Hit, frame: *const PollFrame, duration: u64, busy: u64, slow_ns: u64) {
    // SAFETY: a live map value, of this thread.
    let PollFrame { task, vtable, delay_ns, first, .. } = unsafe { *frame };
    let Some(stats) = stats(hit, vtable) else { return };
    let slow = duration >= slow_ns;
    // SAFETY: a live map value.
    unsafe {
        shared::add(&raw mut (*stats).busy_ns, busy);
        shared::record(&raw mut (*stats).poll, duration);
        if delay_ns != 0 {
            if first != 0 {
                shared::record(&raw mut (*stats).first_delay, delay_ns);
            } else {
                shared::record(&raw mut (*stats).delay, delay_ns);
            }
        }
        // Slow ones have records: of two of them at the same time, user space knows the longer one.
        if duration > (*stats).slowest_ns {
            (*stats).slowest_ns = duration;
        }
        if slow {
            shared::add(&raw mut (*stats).slow, 1);
        }
    }
    if slow {
        record(hit, kind::TASK_SLOW_POLL, task, vtable, duration);
    }
    if hit.flags() & target_flag::TRACE != 0 {
        record(hit, kind::TASK_POLLED, task, vtable, duration);
    }
}

/// A task was woken, by value or (`by_ref`) by reference.
#[inline(always)]
pub fn woken(ctx: &ProbeContext, way: usize) -> u32 {
    let Some(hit) = hit(ctx, Probe::Wake) else { return 0 };
    wake(&hit, way);
    hit.end();
    0
}

#[inline(always)]
fn wake(hit: &Hit, way: usize) {
    let Some((state, vtable)) = header(hit) else { return };
    let window = hit.window();
    let by_self = charge(hit, Probe::Wake) == Some(hit.task);
    let by_value = way == wake::BY_VALUE;
    let way = if by_self { wake::BY_SELF } else { way };
    if let Some(stats) = stats(hit, vtable)
        && way < wake::LABELS.len()
    {
        // SAFETY: a live map value, and in bounds.
        unsafe { shared::add((&raw mut (*stats).wakes).cast::<u64>().add(way), 1) };
    }
    if hit.flags() & target_flag::TRACE != 0 {
        record(hit, kind::TASK_WOKEN, hit.task, vtable, way as u64);
    }
    // Before a wake by value its task's state tells whether it was woken before; a wake by reference has set it already.
    let before = if by_value { NOTIFIED_BIT } else { 0 };
    // It has been woken already, or will never be polled again.
    if state & (before | COMPLETE_BIT) != 0 {
        return;
    }
    match WOKEN.get_ptr_mut(hit.key(hit.task)) {
        // SAFETY: a live map value; of wakers at the same time, one is as good as the other.
        Some(woken) => unsafe {
            if (*woken).since_ns == 0 || (*woken).window != window {
                *woken = Woken { since_ns: hit.time_ns, vtable, window, first: 0 };
            }
        },
        None => {
            let _ = WOKEN.insert(hit.key(hit.task), Woken { since_ns: hit.time_ns, vtable, window, first: 0 }, 0);
        }
    }
}

/// A task was created: it waits for its first poll.
#[inline(always)]
pub fn spawned(hit: &Hit) {
    if hit.flags() & target_flag::POLLS == 0 {
        return;
    }
    charge(hit, Probe::Spawn);
    let woken = Woken { since_ns: hit.time_ns, vtable: 0, window: hit.window(), first: 1 };
    let _ = WOKEN.insert(hit.key(hit.task), woken, 0);
}

/// A task was completed: nobody waits for it any more.
#[inline(always)]
pub fn completed(hit: &Hit) {
    if hit.flags() & target_flag::POLLS == 0 {
        return;
    }
    charge(hit, Probe::Complete);
    let _ = WOKEN.remove(hit.key(hit.task));
}

/// The task that a thread polls; 0 for none, `None` where that is not known.
#[inline(always)]
pub fn current(tid: u32) -> Option<u64> {
    let Some(stack) = POLL_STACKS.get_ptr(tid) else { return Some(0) };
    // SAFETY: a live map value; only this thread writes it.
    unsafe {
        let depth = (*stack).depth as usize;
        if depth == 0 {
            return Some(0);
        }
        if depth > POLL_STACK_FRAMES {
            return None;
        }
        Some((*frame_below(stack.cast_mut(), depth)).task)
    }
}

/// Charges the poll that runs on this thread with this hit, and tells whose poll it is.
#[inline(always)]
fn charge(hit: &Hit, probe: Probe) -> Option<u64> {
    let stack = POLL_STACKS.get_ptr_mut(hit.tid)?;
    // SAFETY: a live map value; only this thread writes it.
    unsafe {
        let depth = (*stack).depth as usize;
        if (*stack).window != hit.window() || depth == 0 || depth > POLL_STACK_FRAMES {
            return None;
        }
        let frame = frame_below(stack, depth);
        (*frame).probes_ns += u64::from((*hit.target).polls.hit_ns[probe as usize]);
        Some((*frame).task)
    }
}

/// The frame below a depth from 1 to [`POLL_STACK_FRAMES`]. Masked: the verifier does not follow that it is in bounds.
#[inline(always)]
fn frame_below(stack: *mut PollStack, depth: usize) -> *mut PollFrame {
    // SAFETY: a live map value, and the mask keeps the index within its frames.
    unsafe {
        (&raw mut (*stack).frames).cast::<PollFrame>().add((depth + POLL_STACK_FRAMES - 1) & (POLL_STACK_FRAMES - 1))
    }
}

/// A pass over a task that was cancelled before.
#[inline(always)]
fn cancelled(hit: &Hit, vtable: u64) {
    if let Some(stats) = stats(hit, vtable) {
        // SAFETY: a live map value.
        unsafe { shared::add(&raw mut (*stats).cancelled_passes, 1) };
    }
}

/// State and vtable of the task.
#[inline(always)]
fn header(hit: &Hit) -> Option<(u64, u64)> {
    let mut words = [0_u64; HEADER_WORDS];
    if !read::user_words(hit.task, &mut words) {
        count(Counter::TargetMemory);
        return None;
    }
    // SAFETY: a live map value.
    let (at, start, end) = unsafe {
        let layout = &(*hit.target).layout;
        (layout.vtable, layout.image_start, layout.image_end)
    };
    // 16 since 1.21, 32 before.
    let vtable = if at == 16 { words[2] } else { words[4] };
    (vtable >= start && vtable < end).then_some((words[0], vtable))
}

/// What is counted of a type.
#[inline(always)]
fn stats(hit: &Hit, vtable: u64) -> Option<*mut TypeStats> {
    // SAFETY: a live map value, and a call without arguments.
    let (slot, cpu) = unsafe { ((*hit.target).slot, bpf_get_smp_processor_id()) };
    let mut key = TypeKey { vtable, slot, shard: cpu & (TYPE_SHARDS - 1) };
    if let Some(stats) = TYPES.get_ptr_mut(key) {
        return Some(stats);
    }
    let keys = TYPE_KEYS.get_ptr_mut(slot)?;
    // A build has so many types as it has; those that are met while it runs have no end.
    // SAFETY: live map values.
    if unsafe { *keys >= MOST_TYPE_KEYS && (*hit.target).layout.coroutine.before != 0 } {
        key.vtable = UNKNOWN_TYPE;
        if let Some(stats) = TYPES.get_ptr_mut(key) {
            return Some(stats);
        }
    }
    if TYPES.insert(key, &NEW_TYPE, NOEXIST).is_ok() {
        // SAFETY: a live map value.
        unsafe { shared::add(keys, 1) };
    } else if TYPES.get_ptr(key).is_none() {
        // Another CPU may have been faster; it was not.
        count(Counter::TypesFull);
    }
    TYPES.get_ptr_mut(key)
}

#[inline(always)]
fn record(hit: &Hit, kind: u16, task: u64, vtable: u64, what: u64) {
    let header = Header { time_ns: hit.time_ns, pid: hit.pid, tid: hit.tid, kind, flags: 0, site: hit.cookie.site() };
    emit::task(TaskRecord { header, task, vtable, id: 0, parent: what });
}
