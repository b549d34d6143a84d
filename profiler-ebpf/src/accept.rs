//! Accept queues: how long they are, and how long connections wait in them.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use aya_ebpf::helpers::generated::{bpf_get_current_task, bpf_get_current_task_btf, bpf_task_pt_regs};
use aya_ebpf::programs::{ProbeContext, TracePointContext};
use profiler_common::counter::Counter;
use profiler_common::map::{Listener, Probe};

use crate::maps::{ARRIVALS, LISTENER_STATS, LISTENERS, PORTS, TARGETS, count};
use crate::sched::now;
use crate::{cost, hit, offsets, read};

const TCP_ESTABLISHED: u32 = 1;
const TCP_SYN_RECV: u32 = 3;
const TCP_LISTEN: u8 = 10;

/// Offset of the return value in a syscall exit tracepoint: 8 bytes of common fields, the syscall's number, then it.
const SYSCALL_RETURN: usize = 16;

/// A socket changed its state. A connection's last handshake packet has come: it is in the accept queue now.
#[inline(always)]
pub fn state_changed(socket: *const u8, old: u64, new: u64) -> i32 {
    if old as u32 != TCP_SYN_RECV || new as u32 != TCP_ESTABLISHED {
        return 0;
    }
    // SAFETY: `socket` is a tracepoint's `sock`, the offset is from BTF.
    let port: u16 = unsafe { read::member(socket, offsets::sock_num()) };
    if PORTS.get_ptr(u32::from(port)).is_some() {
        let _ = ARRIVALS.insert(socket as u64, now(), 0);
    }
    0
}

/// A socket has something to read: when it listens, a connection was queued.
#[inline(always)]
pub fn data_ready(socket: *const u8) -> i32 {
    // SAFETY: `socket` is a tracepoint's `sock`, the offset is from BTF.
    let state: u8 = unsafe { read::member(socket, offsets::sock_state()) };
    if state != TCP_LISTEN {
        return 0;
    }
    // SAFETY: as above.
    let (cookie, backlog): (u64, u32) =
        unsafe { (read::member(socket, offsets::sock_cookie()), read::member(socket, offsets::sock_ack_backlog())) };
    queued(cookie, backlog);
    0
}

/// A connection was queued at a listening socket, whose queue is so long now.
#[inline(always)]
pub fn queued(cookie: u64, length: u32) {
    if let Some(stats) = stats(cookie) {
        // SAFETY: a per-CPU map value.
        unsafe {
            (*stats).queued += 1;
            (*stats).depth.record(u64::from(length));
        }
    }
}

/// A target's accept or accept4 returned, in its C library.
#[inline(always)]
pub fn returned(ctx: &ProbeContext) -> u32 {
    hit::stay_on_kernel_stack(ctx);
    let time = now();
    let Some(slot) = target() else {
        count(Counter::ForeignHits);
        return 0;
    };
    cost::hit(slot, Probe::Accept);
    // SAFETY: the registers are this program's context.
    let (result, listener) = unsafe { ((*ctx.regs).rax, (*ctx.regs).rdi) };
    accepted(result as i64, listener);
    cost::end(slot, Probe::Accept, time);
    0
}

/// The same, seen by the kernel's tracepoint.
#[inline(always)]
pub fn syscall_returned(ctx: &TracePointContext) -> u32 {
    let Some(slot) = target() else { return 0 };
    cost::kernel_hit(slot, Probe::Accept);
    // SAFETY: the field is part of every syscall exit tracepoint; the context is only read.
    let result: i64 = unsafe { *ctx.as_ptr().cast::<u8>().add(SYSCALL_RETURN).cast::<i64>() };
    // SAFETY: helpers without a precondition.
    let regs = unsafe { bpf_task_pt_regs(bpf_get_current_task_btf()) as u64 };
    let Some(listener) = read::kernel(regs + offsets::regs_di() as u64) else {
        count(Counter::AcceptUnknownListener);
        return 0;
    };
    accepted(result, listener);
    0
}

/// The slot of the target that runs; `None` when it is none.
#[inline(always)]
pub fn target() -> Option<u32> {
    let target = TARGETS.get_ptr((bpf_get_current_pid_tgid() >> 32) as u32)?;
    // SAFETY: a live map value.
    Some(unsafe { (*target).slot })
}

#[inline(always)]
fn accepted(result: i64, listener: u64) {
    if result < 0 {
        return;
    }
    // SAFETY: a helper without a precondition.
    let task = unsafe { bpf_get_current_task() };
    // A descriptor is an `int`: what is above it in the register is not defined.
    let cookie =
        socket_of(task, listener & 0xffff_ffff).and_then(|socket| read::kernel(socket + offsets::sock_cookie() as u64));
    let Some(stats) = cookie.and_then(stats) else {
        count(Counter::AcceptUnknownListener);
        return;
    };
    // A descriptor that leads nowhere is the address of no connection.
    matched(stats, socket_of(task, result as u64 & 0xffff_ffff).unwrap_or_default());
}

/// A connection was accepted.
#[inline(always)]
pub fn matched(stats: *mut Listener, connection: u64) {
    // SAFETY: a per-CPU map value.
    unsafe { (*stats).accepted += 1 };
    let Some(arrived) = ARRIVALS.get_ptr(connection) else {
        count(Counter::AcceptUnmatched);
        return;
    };
    // SAFETY: live map values.
    unsafe { (*stats).wait.record(now().saturating_sub(*arrived)) };
    let _ = ARRIVALS.remove(connection);
}

/// What is counted of a listening socket; `None` where it is no target's.
#[inline(always)]
pub fn stats(cookie: u64) -> Option<*mut Listener> {
    // SAFETY: a live map value.
    let slot = unsafe { *LISTENERS.get_ptr(cookie)? };
    LISTENER_STATS.get_ptr_mut(slot)
}

/// The `sock` behind a file descriptor of `task`.
#[inline(always)]
fn socket_of(task: u64, fd: u64) -> Option<u64> {
    let files = read::kernel(task + offsets::task_files() as u64)?;
    let table = read::kernel(files + offsets::files_fdt() as u64)?;
    let array = read::kernel(table + offsets::fdtable_fd() as u64)?;
    let file = read::kernel(array + fd * 8)?;
    let socket = read::kernel(file + offsets::file_private_data() as u64)?;
    read::kernel(socket + offsets::socket_sk() as u64)
}
