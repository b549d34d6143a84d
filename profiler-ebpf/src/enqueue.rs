//! Accept queues, by the kernel's functions that enqueue and accept connections. Never by tracepoints: `accept.rs`.

use aya_ebpf::programs::{FEntryContext, FExitContext, ProbeContext};
use profiler_common::counter::Counter;
use profiler_common::map::Probe;

use crate::maps::{ARRIVALS, ENQUEUED, LISTENERS, count};
use crate::sched::now;
use crate::{accept, cost, offsets, read};

/// `inet_csk_reqsk_queue_add(listener, request, child)` begins: also within the other, where that has no copy of it.
#[inline(always)]
pub fn request(ctx: &FEntryContext) -> i32 {
    let child: u64 = ctx.arg(2);
    if !told(child) {
        enqueued(ctx.arg(0), child);
    }
    0
}

/// `inet_csk_complete_hashdance(listener, child, request, own)` begins. A request that is another's is not enqueued.
#[inline(always)]
pub fn handshake(ctx: &FEntryContext) -> i32 {
    let (child, own): (u64, u64) = (ctx.arg(1), ctx.arg(3));
    if own as u8 != 0 {
        tell(child);
        enqueued(ctx.arg(0), child);
    }
    0
}

/// As above, seen by a kprobe.
#[inline(always)]
pub fn request_probed(ctx: &ProbeContext) -> u32 {
    // SAFETY: the registers are this program's context.
    let (listener, child) = unsafe { ((*ctx.regs).rdi, (*ctx.regs).rdx) };
    if !told(child) {
        lengthened(listener);
    }
    0
}

/// As above, seen by a kprobe.
#[inline(always)]
pub fn handshake_probed(ctx: &ProbeContext) -> u32 {
    // SAFETY: the registers are this program's context.
    let (listener, child, own) = unsafe { ((*ctx.regs).rdi, (*ctx.regs).rsi, (*ctx.regs).rcx) };
    if own as u8 != 0 {
        tell(child);
        lengthened(listener);
    }
    0
}

/// `inet_csk_accept` of so many parameters returns: a connection, or none.
#[inline(always)]
pub fn accepted(ctx: &FExitContext, parameters: usize) -> i32 {
    let connection: u64 = ctx.arg(parameters);
    if connection == 0 {
        return 0;
    }
    let Some(slot) = accept::target() else { return 0 };
    cost::kernel_hit(slot, Probe::Accept);
    // SAFETY: the function's `sock`, the offset is from BTF.
    let cookie: u64 = unsafe { read::member(ctx.arg(0), offsets::sock_cookie()) };
    match accept::stats(cookie) {
        Some((stats, unstamped)) => accept::matched(slot, stats, unstamped, Some(connection)),
        None => count(Counter::AcceptUnknownListener),
    }
    0
}

/// Before the connection is in the queue, so that nobody can have accepted it.
#[inline(always)]
fn enqueued(listener: *const u8, child: u64) {
    // SAFETY: the function's `sock`, the offsets are from BTF.
    let (cookie, length): (u64, u32) = unsafe {
        (read::member(listener, offsets::sock_cookie()), read::member(listener, offsets::sock_ack_backlog()))
    };
    if LISTENERS.get_ptr(cookie).is_some() {
        let _ = ARRIVALS.insert(child, now(), 0);
        let _ = accept::queued(cookie, length + 1);
    }
}

#[inline(always)]
fn lengthened(listener: u64) {
    let cookie = read::kernel(listener + offsets::sock_cookie() as u64);
    let length = read::kernel_u32(listener + offsets::sock_ack_backlog() as u64);
    if let (Some(cookie), Some(length)) = (cookie, length) {
        let _ = accept::queued(cookie, length + 1);
    }
}

/// Notes which connection the outer function enqueues, for the inner one on this CPU.
#[inline(always)]
fn tell(child: u64) {
    if let Some(enqueued) = ENQUEUED.get_ptr_mut(0) {
        // SAFETY: a per-CPU value.
        unsafe { *enqueued = child };
    }
}

/// Whether the outer function has told of it.
#[inline(always)]
fn told(child: u64) -> bool {
    let Some(enqueued) = ENQUEUED.get_ptr_mut(0) else { return false };
    // SAFETY: a per-CPU value.
    unsafe {
        let told = *enqueued == child;
        *enqueued = 0;
        told
    }
}
