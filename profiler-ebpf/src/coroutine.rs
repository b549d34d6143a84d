//! Tasks that are coroutines: a thread goes straight from one to the next, which ends the poll of one and begins that of the
//! other. One probe sees births, ends and polls.

use core::ptr::read_volatile;

use aya_ebpf::programs::ProbeContext;
use profiler_common::coroutine::{CoroutineLayout, UNKNOWN_TYPE, wait};
use profiler_common::counter::Counter;
use profiler_common::event::{Header, TaskRecord, flag, kind};
use profiler_common::map::{PollFrame, Probe, TaskKey, Woken, target_flag};

use crate::hit::{Hit, hit};
use crate::maps::{MET, POLL_STACKS, WOKEN, count};
use crate::{emit, poll, read, shared};

/// Words that are read of a coroutine.
const WORDS: usize = 8;
/// State of one that has ended (the lower two bits).
const ENDED: u64 = 3;

/// A thread goes from one coroutine to another.
#[inline(always)]
pub fn transferred(ctx: &ProbeContext) -> u32 {
    let Some(hit) = hit(ctx, Probe::Transfer) else { return 0 };
    // SAFETY: the registers are this program's context.
    transfer(&hit, unsafe { (*ctx.regs).rsi });
    hit.end();
    0
}

/// A coroutine is about to be left, since it waits for something: the site says for what.
#[inline(always)]
pub fn waits(ctx: &ProbeContext) -> u32 {
    let Some(hit) = hit(ctx, Probe::Wait) else { return 0 };
    if let Some(stack) = POLL_STACKS.get_ptr_mut(hit.tid) {
        // SAFETY: a live map value; only this thread writes it.
        unsafe { (*stack).frames[0].first = hit.cookie.displacement() as u64 };
    }
    hit.end();
    0
}

#[inline(always)]
fn transfer(hit: &Hit, to: u64) {
    // SAFETY: a live map value.
    let layout = unsafe { &(*hit.target).layout.coroutine };
    // One after the other, in the same words: a program's stack is small.
    let mut words = Words([0; WORDS]);
    let Some(left) = Coroutine::read(&mut words, hit.task, layout) else { return };
    let Some(entered) = Coroutine::read(&mut words, to, layout) else { return };
    // That it is entered is known before anybody is told that the other one has ended.
    let is_new = entered.procedure != 0 && entered.is_new(&mut words);
    leave(hit, layout, &left);
    enter(hit, layout, &entered, to, is_new, left.procedure != 0);
}

/// What is read at once. Longer than any index, so that a masked one is in bounds.
struct Words([u64; WORDS]);

impl Words {
    /// The word at an offset in bytes.
    #[inline(always)]
    fn at(&self, offset: u16) -> u64 {
        // SAFETY: the index is below 8. Volatile, so that the array stays an array.
        unsafe { read_volatile(self.0.as_ptr().add(offset as usize / 8 & (WORDS - 1))) }
    }
}

/// What is known of a coroutine by itself.
struct Coroutine {
    /// The object that it runs; 0 where the thread itself is the coroutine.
    procedure: u64,
    /// Whether it has ended.
    ended: bool,
    /// Its saved stack pointer.
    stack: u64,
}

impl Coroutine {
    #[inline(always)]
    fn read(words: &mut Words, context: u64, layout: &CoroutineLayout) -> Option<Coroutine> {
        if !read::user_words(context.wrapping_sub(u64::from(layout.before)), &mut words.0) {
            count(Counter::TargetMemory);
            return None;
        }
        Some(Coroutine {
            procedure: words.at(layout.procedure),
            ended: words.at(layout.state) & ENDED == ENDED,
            stack: words.at(layout.before),
        })
    }

    /// Whether it has not run before: its stack holds nothing but where it will begin.
    #[inline(always)]
    fn is_new(&self, words: &mut Words) -> bool {
        if !read::user_words(self.stack, &mut words.0) {
            count(Counter::TargetMemory);
            return false;
        }
        let [a, b, c, d, e, f, start, end] = words.0;
        a | b | c | d | e | f | end == 0 && start != 0
    }
}

/// The thread leaves a coroutine.
#[inline(always)]
fn leave(hit: &Hit, layout: &CoroutineLayout, left: &Coroutine) {
    if left.procedure == 0 {
        return;
    }
    let known = known(hit, layout, hit.task);
    let vtable = match known {
        // SAFETY: a live map value.
        Some(known) => unsafe { (*known).vtable },
        None => type_of(hit, layout, left.procedure),
    };
    let reason = if hit.flags() & target_flag::POLLS != 0 { end_poll(hit, vtable) } else { None };
    if left.ended {
        emit_task(hit, kind::TASK_COMPLETED, 0, vtable, hit.task, 0);
        let _ = WOKEN.remove(hit.key(hit.task));
        return;
    }
    // It waits from now on, if it is known for what.
    let (since_ns, first) = match reason {
        Some(reason) => (hit.time_ns, reason),
        None => (0, 0),
    };
    match known {
        // SAFETY: a live map value; a coroutine is left by one thread at a time.
        Some(known) => unsafe {
            (*known).since_ns = since_ns;
            (*known).first = first;
        },
        None => {
            let _ = WOKEN.insert(hit.key(hit.task), Woken { since_ns, vtable, window: layout.span, first }, 0);
            emit_task(hit, kind::TASK_FOUND, 0, vtable, hit.task, 0);
        }
    }
}

/// The thread enters a coroutine, from another one or from itself.
#[inline(always)]
fn enter(hit: &Hit, layout: &CoroutineLayout, entered: &Coroutine, context: u64, is_new: bool, from_coroutine: bool) {
    if entered.procedure == 0 {
        begin_poll(hit, 0, 0);
        return;
    }
    if let Some(known) = known(hit, layout, context).filter(|_| !is_new) {
        // SAFETY: a live map value; a coroutine is entered by one thread at a time.
        let (vtable, since_ns, reason) = unsafe { ((*known).vtable, (*known).since_ns, (*known).first) };
        if since_ns != 0 && hit.flags() & target_flag::POLLS != 0 {
            // SAFETY: a live map value.
            let slot = unsafe { (*hit.target).slot };
            shared::lasted(slot, 1 + reason, hit.time_ns.saturating_sub(since_ns));
        }
        begin_poll(hit, context, vtable);
        return;
    }
    let (what, parent, flags) = match (is_new, from_coroutine) {
        (true, true) => (kind::TASK_SPAWNED, hit.task, flag::PARENT_KNOWN | flag::PARENT_IS_ADDRESS),
        (true, false) => (kind::TASK_SPAWNED, 0, flag::PARENT_KNOWN),
        _ => (kind::TASK_FOUND, 0, 0),
    };
    let vtable = type_of(hit, layout, entered.procedure);
    let _ = WOKEN.insert(hit.key(context), Woken { since_ns: 0, vtable, window: layout.span, first: 0 }, 0);
    emit_task(hit, what, flags, vtable, context, parent);
    begin_poll(hit, context, vtable);
}

/// A coroutine that was met before.
#[inline(always)]
fn known(hit: &Hit, layout: &CoroutineLayout, context: u64) -> Option<*mut Woken> {
    let known = WOKEN.get_ptr_mut(hit.key(context))?;
    // SAFETY: a live map value.
    unsafe { ((*known).window == layout.span).then_some(known) }
}

/// What the thread runs from now on; no coroutine where `context` is 0.
#[inline(always)]
fn begin_poll(hit: &Hit, context: u64, vtable: u64) {
    if hit.flags() & target_flag::POLLS == 0 {
        return;
    }
    let Some(stack) = poll::stack_of(hit.tid) else {
        count(Counter::PollThreadsFull);
        return;
    };
    // SAFETY: a live map value; only this thread writes it.
    unsafe {
        (*stack).window = (*hit.target).polls.window;
        (*stack).depth = (context != 0) as u32;
        (*stack).frames[0] = PollFrame { task: context, vtable, start_ns: hit.time_ns, ..PollFrame::default() };
    }
}

/// The poll of the coroutine that the thread leaves ends, where its beginning was seen in this window. Returns what the coroutine
/// waits for from now on.
#[inline(always)]
fn end_poll(hit: &Hit, vtable: u64) -> Option<u32> {
    let Some(stack) = poll::stack_of(hit.tid) else {
        count(Counter::PollThreadsFull);
        return None;
    };
    // SAFETY: a live map value; only this thread writes it.
    unsafe {
        let frame: *mut PollFrame = &raw mut (*stack).frames[0];
        let policy = &raw const (*hit.target).polls;
        if (*stack).window != (*policy).window || (*stack).depth != 1 || (*frame).task != hit.task {
            count(Counter::PollStartUnseen);
            return None;
        }
        // Between two hits lies as much of the probe's own time as one takes.
        let probe = u64::from((*policy).between_ns);
        let duration = (hit.time_ns - (*frame).start_ns).saturating_sub(probe);
        let reason = (*frame).first as u32 & (wait::COUNT as u32 - 1);
        (*frame).vtable = vtable;
        poll::polled(hit, frame, duration, duration, (*policy).slow_ns);
        Some(reason)
    }
}

/// The key of a coroutine's type: of the code that it runs, and of the block that was given to the method which made it, where
/// a library makes coroutines for others.
#[inline(always)]
fn type_of(hit: &Hit, layout: &CoroutineLayout, procedure: u64) -> u64 {
    let Some(block) = data_of(procedure, layout) else { return UNKNOWN_TYPE };
    let Some(code) = code_of(block, layout) else { return UNKNOWN_TYPE };
    let given = read::user(block + u64::from(layout.environment))
        .and_then(|environment| given_block(environment, layout))
        .unwrap_or_default();
    // What is collected leaves its address to others: the line tells most of them apart.
    let body = read::user(code + u64::from(layout.body)).unwrap_or_default();
    let line = read::user(body + u64::from(layout.line)).unwrap_or_default();
    let vtable = code ^ line.rotate_left(48) ^ given.rotate_left(24);
    let met = TaskKey { task: vtable, pid: hit.pid, reserved: layout.span };
    if MET.get_ptr(met).is_none() && emit_task(hit, kind::TASK_TYPE, 0, vtable, code, given) {
        let _ = MET.insert(met, 0, 0);
    }
    vtable
}

/// The code of the block that was given to the method whose environment this is; `None` where it is no method's.
#[inline(always)]
fn given_block(environment: u64, layout: &CoroutineLayout) -> Option<u64> {
    let mut words = [0_u64; 2];
    if !read::user_words(environment.wrapping_sub(8), &mut words) {
        return None;
    }
    let [handler, flags] = words;
    if flags & u64::from(layout.local_bit) == 0 {
        return None;
    }
    match handler & 3 {
        // A block on the stack: its first words are those of a procedure's.
        1 => read::user((handler & !3) + u64::from(layout.code)),
        // An object: symbols and what is none are not read.
        0 if handler & 4 == 0 && handler > 4096 => code_of(data_of(handler, layout)?, layout),
        _ => None,
    }
}

/// The data of an object that is a handle.
#[inline(always)]
fn data_of(object: u64, layout: &CoroutineLayout) -> Option<u64> {
    let at = object + u64::from(layout.handle);
    let mut words = [0_u64; 2];
    if !read::user_words(at, &mut words) {
        count(Counter::TargetMemory);
        return None;
    }
    Some(if words[0] & 2 != 0 { at + 8 } else { words[1] })
}

/// The code of a block; `None` where it is not written in the interpreter's language.
#[inline(always)]
fn code_of(block: u64, layout: &CoroutineLayout) -> Option<u64> {
    let kind = read::user(block + u64::from(layout.block_kind))?;
    if kind as u32 != 0 {
        return None;
    }
    read::user(block + u64::from(layout.code))
}

/// Submits a record; false where there was no room.
#[inline(always)]
fn emit_task(hit: &Hit, what: u16, flags: u16, vtable: u64, task: u64, other: u64) -> bool {
    let header =
        Header { time_ns: hit.time_ns, pid: hit.pid, tid: hit.tid, kind: what, flags, site: hit.cookie.site() };
    let (id, parent) = if what == kind::TASK_TYPE { (other, 0) } else { (0, other) };
    emit::task(TaskRecord { header, task, vtable, id, parent })
}
