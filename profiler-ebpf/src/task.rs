//! Tasks of a runtime: births and ends, and who spawned whom.

use core::ptr::read_volatile;

use aya_ebpf::helpers::generated::bpf_get_current_task_btf;
use aya_ebpf::programs::ProbeContext;
use profiler_common::counter::Counter;
use profiler_common::event::{Header, TaskRecord, flag, kind};
use profiler_common::map::{Probe, TaskLayout, error_order, id_place, target_flag};

use crate::hit::{Hit, hit};
use crate::maps::count;
use crate::{emit, offsets, poll, read, stack};

/// A task was created.
#[inline(always)]
pub fn spawned(ctx: &ProbeContext) -> u32 {
    let Some(hit) = hit(ctx, Probe::Spawn) else { return 0 };
    let (vtable, id) = identity(&hit);
    let (parent, flags) = parent(&hit);
    emit_task(&hit, kind::TASK_SPAWNED, flags, vtable, id, parent);
    poll::spawned(&hit);
    if hit.cookie.wants_stacks() {
        // SAFETY: a live map value.
        stack::spawned(ctx, header(&hit, kind::SPAWN_STACK, 0), unsafe { (*hit.target).slot }, vtable);
    }
    hit.end();
    0
}

/// A task was completed. Each read of the target's memory costs the target some 60 ns here: its header, its id and its
/// stored result are read at once.
#[inline(always)]
pub fn completed(ctx: &ProbeContext) -> u32 {
    let Some(hit) = hit(ctx, Probe::Complete) else { return 0 };
    complete(&hit);
    poll::completed(&hit);
    hit.end();
    0
}

#[inline(always)]
fn complete(hit: &Hit) {
    // SAFETY: a live map value.
    let (flags, layout) = unsafe { ((*hit.target).flags, &(*hit.target).layout) };
    let mut words = TaskWords([0; 16]);
    if !words.read(hit.task) {
        count(Counter::TargetMemory);
        return;
    }
    let vtable = words.get(layout.vtable as usize / 8);
    let mut id = 0;
    let mut told = if words.get(0) & CANCELLED_BIT != 0 { flag::CANCEL_REQUESTED } else { 0 };
    if layout.id_offset_in_vtable != 0 {
        let Some(offset) = read::user(vtable + u64::from(layout.id_offset_in_vtable)) else {
            count(Counter::TargetMemory);
            return;
        };
        if offset <= MAX_ID_OFFSET {
            let at = offset as usize / 8;
            id = words.get(at);
            if flags & target_flag::OUTCOME != 0 && id != 0 {
                told |= flag::OUTCOME_KNOWN | outcome(layout, &words, at, id, told);
            }
        } else {
            id = read::user(hit.task + offset).unwrap_or_default();
        }
    }
    emit_task(hit, kind::TASK_COMPLETED, told, vtable, id, 0);
}

/// The bit of a task's state word that says that it was asked to cancel (runtime/task/state.rs, since 1.9).
pub const CANCELLED_BIT: u64 = 0x20;
/// Words of a task that are read: no task is shorter.
const TASK_WORDS: usize = 13;
/// Words behind the id among which a task's stored error is.
const RESULT_WORDS: usize = 6;
/// The largest offset of an id for which the result behind it is among the words that are read (0x30; Tokio's own
/// are 0x20 to 0x30).
const MAX_ID_OFFSET: u64 = (TASK_WORDS as u64 - 1 - RESULT_WORDS as u64) * 8;
/// No panic payload's type is larger or more aligned.
const MAX_PAYLOAD_SIZE: u64 = 1 << 20;
const MAX_PAYLOAD_ALIGN: u64 = 4096;

/// The beginning of a task. Longer than what is read of it, so that any masked index is in bounds.
struct TaskWords([u64; 16]);

impl TaskWords {
    #[inline(always)]
    fn read(&mut self, task: u64) -> bool {
        read::user_bytes(task, self.0.as_mut_ptr().cast(), TASK_WORDS * 8)
    }

    #[inline(always)]
    fn get(&self, index: usize) -> u64 {
        // SAFETY: the index is below 16. Volatile, so that the array stays an array.
        unsafe { read_volatile(self.0.as_ptr().add(index & 15)) }
    }
}

/// How the task ended, from its stored result. A `JoinError` there holds the task's own id, and beside it a
/// `Box<dyn Any>`: the payload of a panic, or null when it was cancelled (runtime/task/error.rs). `at` is the place of
/// the id in the task; behind it are the tag of the stage, and where there is one that of the result.
#[inline(always)]
fn outcome(layout: &TaskLayout, words: &TaskWords, at: usize, id: u64, asked: u16) -> u16 {
    let word = |n: usize| words.get(at + n);
    let mut told = 0;
    if layout.error_order != error_order::PAYLOAD_FIRST {
        if word(2) == id {
            told = payload(layout, asked, word(3), word(4));
        }
        if told == 0 && word(3) == id {
            told = payload(layout, asked, word(4), word(5));
        }
    }
    if layout.error_order != error_order::ID_FIRST {
        if told == 0 && word(4) == id {
            told = payload(layout, asked, word(2), word(3));
        }
        if told == 0 && word(5) == id {
            told = payload(layout, asked, word(3), word(4));
        }
    }
    told
}

/// Whether two words are an error's `Box<dyn Any>`, and of which kind. What an earlier poll left behind may look like
/// one: a cancellation needs the mark in the task's state besides, a panic a payload whose vtable is one.
#[inline(always)]
fn payload(layout: &TaskLayout, asked: u16, data: u64, vtable: u64) -> u16 {
    if data == 0 {
        return if asked != 0 { flag::CANCELLED } else { 0 };
    }
    let in_image = |address: u64| address >= layout.image_start && address < layout.image_end;
    if !in_image(vtable) {
        return 0;
    }
    let mut words = [0_u64; 4];
    if !read::user_words(vtable, &mut words) {
        return 0;
    }
    let [_drop, size, align, type_id] = words;
    let plausible = size < MAX_PAYLOAD_SIZE && align != 0 && align & (align - 1) == 0 && align <= MAX_PAYLOAD_ALIGN;
    if plausible && in_image(type_id) { flag::PANICKED } else { 0 }
}

#[inline(always)]
fn emit_task(hit: &Hit, kind: u16, flags: u16, vtable: u64, id: u64, parent: u64) {
    let header = header(hit, kind, flags);
    emit::task(TaskRecord { header, task: hit.task, vtable, id, parent });
}

#[inline(always)]
fn header(hit: &Hit, kind: u16, flags: u16) -> Header {
    Header { time_ns: hit.time_ns, pid: hit.pid, tid: hit.tid, kind, flags, site: hit.cookie.site() }
}

/// The task's vtable and id; 0 where they cannot be read, and for the vtable where the site tells the type.
#[inline(always)]
fn identity(hit: &Hit) -> (u64, u64) {
    // SAFETY: a live map value.
    let layout = unsafe { &(*hit.target).layout };
    let place = hit.cookie.id_place();
    let at = hit.cookie.id_displacement();
    let in_vtable = place == id_place::VTABLE && layout.id_offset_in_vtable != 0;
    let mut vtable = 0;
    if in_vtable || !hit.cookie.kind_told() {
        let Some(read) = read::user(hit.task + u64::from(layout.vtable)) else {
            count(Counter::TargetMemory);
            return (0, 0);
        };
        vtable = read;
    }
    let id = match place {
        id_place::VTABLE if in_vtable => {
            read::user(vtable + u64::from(layout.id_offset_in_vtable)).and_then(|offset| read::user(hit.task + offset))
        }
        id_place::TASK => read::user(hit.task.wrapping_add_signed(at)),
        id_place::STACK => read::user(hit.registers.stack().wrapping_add_signed(at)),
        id_place::FRAME => read::user(hit.registers.frame().wrapping_add_signed(at)),
        id_place::REGISTER => Some(hit.registers.get(at as usize)),
        _ => return (vtable, 0),
    };
    if id.is_none() {
        count(Counter::TargetMemory);
    }
    (vtable, id.unwrap_or_default())
}

/// The task that this thread polls, and the flags that say how it was told.
#[inline(always)]
fn parent(hit: &Hit) -> (u64, u16) {
    // SAFETY: a live map value.
    let (flags, tls) = unsafe { ((*hit.target).flags, (*hit.target).layout.current_task_tls) };
    if flags & target_flag::CURRENT_TASK_TLS != 0 {
        // SAFETY: the helper has no precondition; its result is the current `task_struct`, the offset is from BTF.
        let fs: u64 = unsafe { read::member(bpf_get_current_task_btf().cast(), offsets::task_fsbase()) };
        let id = read::user(fs.wrapping_add_signed(tls));
        return match id {
            Some(id) => (id, flag::PARENT_KNOWN),
            None => (0, 0),
        };
    }
    if flags & target_flag::POLL_STACK != 0 {
        return match poll::current(hit.tid) {
            Some(task) => (task, flag::PARENT_KNOWN | flag::PARENT_IS_ADDRESS),
            None => (0, 0),
        };
    }
    (0, 0)
}
