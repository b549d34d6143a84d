//! Accept queues: how long they are, and how long connections wait in them.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use aya_ebpf::helpers::generated::{bpf_get_current_task, bpf_get_current_task_btf, bpf_task_pt_regs};
use aya_ebpf::programs::{ProbeContext, TracePointContext};
use profiler_common::counter::Counter;
use profiler_common::map::{Listener, Probe, listener_flag};

use crate::maps::{ARRIVALS, LISTENER_STATS, LISTENERS, NOEXIST, PORTS, TARGETS, count, uncount};
use crate::sched::now;
use crate::{cost, hit, offsets, read, request};

pub const TCP_ESTABLISHED: u32 = 1;
const TCP_SYN_RECV: u32 = 3;
const TCP_CLOSE: u8 = 7;
pub const TCP_LISTEN: u8 = 10;
pub const AF_UNIX: u16 = 1;
/// Number of connect(2) on x86-64.
const CONNECT: u64 = 42;
/// In place of an arrival: a connection of a unix socket that was accepted before it was announced.
const ACCEPTED_FIRST: u64 = 0;

/// Offset of the return value in a syscall exit tracepoint: 8 bytes of common fields, the syscall's number, then it.
const SYSCALL_RETURN: usize = 16;

/// A socket changed its state. A connection's last handshake packet has come: it is in the accept queue now.
#[inline(always)]
pub fn state_changed(socket: *const u8, old: u64, new: u64) -> i32 {
    if request::wanted() {
        request::state_changed(socket, old as u32, new as u32);
    }
    if old as u32 != TCP_SYN_RECV || new as u32 != TCP_ESTABLISHED {
        return 0;
    }
    // SAFETY: `socket` is a tracepoint's `sock`, the offset is from BTF.
    let port: u16 = unsafe { read::member(socket, offsets::sock_num()) };
    if PORTS.get_ptr(u32::from(port)).is_some() {
        let _ = ARRIVALS.insert(socket as u64, now(), 0);
        if request::wanted() {
            request::arrived(socket);
        }
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
    let (cookie, family): (u64, u16) =
        unsafe { (read::member(socket, offsets::sock_cookie()), read::member(socket, offsets::sock_family())) };
    let length = if family == AF_UNIX { offsets::sock_receive_queue_length() } else { offsets::sock_ack_backlog() };
    // SAFETY: as above; both lengths are half words. A connection of a unix socket is announced after the lock is let go:
    // it may be gone again.
    let length: u32 = unsafe { read::member(socket, length) };
    let Some(stats) = queued(cookie, length) else { return 0 };
    if family == AF_UNIX
        && let Some(connection) = unix_connection(socket)
    {
        unix_arrived(stats, connection);
    }
    0
}

/// A connection was queued at a listening socket, whose queue is so long now. Returns what is counted of a target's.
#[inline(always)]
pub fn queued(cookie: u64, length: u32) -> Option<*mut Listener> {
    let (stats, _) = stats(cookie)?;
    // SAFETY: a per-CPU map value.
    unsafe {
        (*stats).queued += 1;
        (*stats).depth.record(u64::from(length));
    }
    Some(stats)
}

/// Stamps the connection that was queued at a unix socket just now, or counts its wait where it has been accepted before.
#[inline(always)]
pub fn unix_arrived(stats: *mut Listener, connection: u64) {
    // Whoever accepts it, on another CPU at the same time, finds the stamp, or has left word before.
    if ARRIVALS.insert(connection, now(), NOEXIST).is_ok() {
        return;
    }
    // SAFETY: a live map value.
    let word = ARRIVALS.get_ptr(connection).is_some_and(|arrived| unsafe { *arrived } == ACCEPTED_FIRST);
    // What an earlier socket of this address left behind is no sign: a socket that was accepted has a file, or was closed
    // already.
    let file = read::kernel(connection + offsets::sock_socket() as u64);
    let state = read::kernel_u32(connection + offsets::sock_state() as u64).map(|state| state as u8);
    if word && (file.is_some_and(|file| file != 0) || state == Some(TCP_CLOSE)) {
        let _ = ARRIVALS.remove(connection);
        // SAFETY: a per-CPU map value.
        unsafe { (*stats).wait.record(0) };
        uncount(Counter::AcceptUnmatched);
        return;
    }
    let _ = ARRIVALS.insert(connection, now(), 0);
}

/// The accepting side of the connection that the current thread makes.
#[inline(always)]
fn unix_connection(listener: *const u8) -> Option<u64> {
    // SAFETY: helpers without a precondition.
    let (task, regs) = unsafe { (bpf_get_current_task(), bpf_task_pt_regs(bpf_get_current_task_btf()) as u64) };
    if offsets::unix_peer() != 0 && read::kernel(regs + offsets::regs_orig_ax() as u64) == Some(CONNECT) {
        let client = socket_of(task, read::kernel(regs + offsets::regs_di() as u64)? & 0xffff_ffff)?;
        return read::kernel(client + offsets::unix_peer() as u64);
    }
    // Made in another way, as by io_uring: the last one in the queue, if it is there still.
    let queue = listener as u64 + offsets::sock_receive_queue() as u64;
    let last = read::kernel(queue + offsets::sk_buff_prev() as u64)?;
    if last == queue { None } else { read::kernel(last + offsets::sk_buff_sk() as u64) }
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
    accepted(slot, result as i64, listener);
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
    accepted(slot, result, listener);
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
fn accepted(slot: u32, result: i64, listener: u64) {
    if result < 0 {
        return;
    }
    // SAFETY: a helper without a precondition.
    let task = unsafe { bpf_get_current_task() };
    // A descriptor is an `int`: what is above it in the register is not defined.
    let cookie =
        socket_of(task, listener & 0xffff_ffff).and_then(|socket| read::kernel(socket + offsets::sock_cookie() as u64));
    // No socket has the cookie 0.
    accepted_from(slot, task, cookie.unwrap_or(0), result as u64);
}

/// `task` accepted the connection that its descriptor `result` is, from the socket with that cookie.
#[inline(always)]
pub fn accepted_from(slot: u32, task: u64, cookie: u64, result: u64) {
    let Some((stats, unstamped)) = stats(cookie) else {
        count(Counter::AcceptUnknownListener);
        return;
    };
    matched(slot, stats, unstamped, socket_of(task, result & 0xffff_ffff));
}

/// A target accepted a connection; `None` where its descriptor leads nowhere.
#[inline(always)]
pub fn matched(slot: u32, stats: *mut Listener, unstamped: bool, connection: Option<u64>) {
    // SAFETY: a per-CPU map value.
    unsafe { (*stats).accepted += 1 };
    if request::wanted()
        && let Some(connection) = connection
    {
        request::accepted(slot, connection);
    }
    if unstamped {
        return;
    }
    let Some(connection) = connection else {
        count(Counter::AcceptUnmatched);
        return;
    };
    let Some(arrived) = stamp(connection).or_else(|| stamp_after_word(connection)) else {
        count(Counter::AcceptUnmatched);
        return;
    };
    // SAFETY: a per-CPU map value.
    unsafe { (*stats).wait.record(now().saturating_sub(arrived)) };
    let _ = ARRIVALS.remove(connection);
}

/// When a connection arrived, if that was seen.
#[inline(always)]
fn stamp(connection: u64) -> Option<u64> {
    // SAFETY: a live map value.
    ARRIVALS.get_ptr(connection).map(|arrived| unsafe { *arrived }).filter(|&arrived| arrived != ACCEPTED_FIRST)
}

/// Leaves word that a connection of a unix socket was accepted before its arrival was seen, or finds the stamp of an
/// arrival that is seen at the same time.
#[inline(always)]
fn stamp_after_word(connection: u64) -> Option<u64> {
    let family = read::kernel(connection + offsets::sock_family() as u64)?;
    if family as u16 != AF_UNIX || ARRIVALS.insert(connection, ACCEPTED_FIRST, NOEXIST).is_ok() {
        return None;
    }
    stamp(connection)
}

/// What is counted of a listener, and whether its connections have no time of arrival.
#[inline(always)]
pub fn stats(cookie: u64) -> Option<(*mut Listener, bool)> {
    // SAFETY: a live map value.
    let slot = unsafe { *LISTENERS.get_ptr(cookie)? };
    Some((LISTENER_STATS.get_ptr_mut(slot & !listener_flag::UNSTAMPED)?, slot & listener_flag::UNSTAMPED != 0))
}

/// The `sock` behind a file descriptor of `task`.
#[inline(always)]
pub fn socket_of(task: u64, fd: u64) -> Option<u64> {
    let files = read::kernel(task + offsets::task_files() as u64)?;
    let table = read::kernel(files + offsets::files_fdt() as u64)?;
    let array = read::kernel(table + offsets::fdtable_fd() as u64)?;
    let file = read::kernel(array + fd * 8)?;
    let socket = read::kernel(file + offsets::file_private_data() as u64)?;
    read::kernel(socket + offsets::socket_sk() as u64)
}
