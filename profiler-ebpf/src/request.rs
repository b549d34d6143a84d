//! Connections that targets accepted, and the requests on them: any protocol, seen by who reads and writes when. Never
//! what is in them.

use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use aya_ebpf::helpers::generated::{
    bpf_get_current_task, bpf_get_current_task_btf, bpf_get_socket_cookie, bpf_task_pt_regs,
};
use profiler_common::counter::Counter;
use profiler_common::map::Probe;
use profiler_common::request::{Connection, Reply};

use crate::accept::{AF_UNIX, TCP_ESTABLISHED, socket_of, target};
use crate::maps::{CONNECTIONS, LISTENERS, NOEXIST, PORTS, REPLIES, REQUESTS, UNIX_ACCEPTED, UNIX_CONNECTIONS, count};
use crate::sched::now;
use crate::{cost, job, offsets, read};

const TCP_CLOSE_WAIT: u32 = 8;
/// Descriptors of a poll that are looked at one by one: of more, one is for something to do.
const FEW: u64 = 2;
/// Bytes of a `struct pollfd`, which begins with the descriptor.
const POLLFD_BYTES: u64 = 8;

/// Whether connections and requests are asked for. User space freezes it before load.
#[inline(always)]
pub fn wanted() -> bool {
    offsets::requests() != 0
}

/// A connection has come to a listener of a target: it is given the cookie by which it is known from here on.
#[inline(always)]
pub fn arrived(socket: *const u8) {
    // SAFETY: the helper takes a tracepoint's `sock`.
    unsafe { bpf_get_socket_cookie(socket.cast_mut().cast()) };
}

/// A target accepted a connection.
#[inline(always)]
pub fn accepted(slot: u32, connection: u64) {
    available(now());
    let Some(family) = read::kernel(connection + offsets::sock_family() as u64) else { return };
    if family as u16 == AF_UNIX {
        // Its cookie is made at the first read or write.
        let _ = UNIX_ACCEPTED.insert(connection, slot, 0);
        return;
    }
    let cookie = read::kernel(connection + offsets::sock_cookie() as u64).unwrap_or(0);
    if !opened(slot, cookie) {
        count(Counter::ConnectionUnknown);
    }
}

/// A TCP connection is a target's from here on; false where it was already, or is too much.
#[inline(always)]
fn opened(slot: u32, cookie: u64) -> bool {
    let connection = Connection { slot, ..Connection::NEW };
    if cookie == 0 || CONNECTIONS.insert(cookie, connection, NOEXIST).is_err() {
        return false;
    }
    if let Some(stats) = REQUESTS.get_ptr_mut(slot) {
        // SAFETY: a per-CPU map value.
        unsafe { (*stats).opened += 1 };
    }
    true
}

/// A socket changed its state: a connection that was open may be no more.
#[inline(always)]
pub fn state_changed(socket: *const u8, old: u32, new: u32) {
    if (old != TCP_ESTABLISHED && old != TCP_CLOSE_WAIT) || new == TCP_CLOSE_WAIT {
        return;
    }
    // SAFETY: `socket` is a tracepoint's `sock`, the offset is from BTF.
    let cookie: u64 = unsafe { read::member(socket, offsets::sock_cookie()) };
    let Some(connection) = CONNECTIONS.get_ptr_mut(cookie) else { return };
    ended(connection);
    // SAFETY: live map values.
    if let Some(stats) = REQUESTS.get_ptr_mut(unsafe { (*connection).slot }) {
        // SAFETY: as above.
        unsafe { (*stats).closed += 1 };
    }
    let _ = CONNECTIONS.remove(cookie);
}

/// Something was received, or was to be.
#[inline(always)]
pub fn received(socket: *const u8, result: i32) -> i32 {
    let Some(slot) = target() else { return 0 };
    let time = now();
    cost::kernel_hit(slot, Probe::Socket);
    if let Some(connection) = connection(slot, socket) {
        // Whoever reads a request is available again, also when there is none.
        available(time);
        // SAFETY: a live map value.
        unsafe {
            if result >= 0 && (*connection).written_ns != 0 {
                ended(connection);
            }
            if result > 0 {
                (*connection).was_read = 1;
                if (*connection).read_ns == 0 {
                    (*connection).read_ns = time;
                }
            }
        }
    } else if result > 0 {
        job::received(slot, time);
    }
    cost::end(slot, Probe::Socket, time);
    0
}

/// Something was sent, or was to be.
#[inline(always)]
pub fn sent(socket: *const u8, result: i32) -> i32 {
    let Some(slot) = target() else { return 0 };
    let time = now();
    cost::kernel_hit(slot, Probe::Socket);
    if result > 0 {
        match connection(slot, socket) {
            Some(connection) => replied(slot, connection, time),
            None => job::sent(slot, result, time),
        }
    }
    cost::end(slot, Probe::Socket, time);
    0
}

/// The current thread wrote on a connection that a target accepted.
#[inline(always)]
fn replied(slot: u32, connection: *mut Connection, time: u64) {
    // What was not asked for is no reply.
    // SAFETY: a live map value.
    if unsafe { (*connection).read_ns } == 0 {
        return;
    }
    // SAFETY: as above.
    unsafe { (*connection).written_ns = time };
    let tid = bpf_get_current_pid_tgid() as u32;
    let _ = REPLIES.insert(tid, Reply { written_ns: time, slot, reserved: 0 }, 0);
}

/// The current thread, which is a target's, goes to sleep: it is available when it waits for something to do.
#[inline(always)]
pub fn sleeps(time: u64) {
    let tid = bpf_get_current_pid_tgid() as u32;
    if REPLIES.get_ptr(tid).is_some() && waits() {
        available(time);
    }
}

/// A thread ended.
#[inline(always)]
pub fn thread_ended(tid: u32) {
    let _ = REPLIES.remove(tid);
}

/// The current thread is available, since `time`.
#[inline(always)]
fn available(time: u64) {
    let tid = bpf_get_current_pid_tgid() as u32;
    let Some(reply) = REPLIES.get_ptr(tid) else { return };
    // SAFETY: live map values.
    unsafe {
        let (slot, written_ns) = ((*reply).slot, (*reply).written_ns);
        if let Some(stats) = REQUESTS.get_ptr_mut(slot) {
            (*stats).after_reply.record(time.saturating_sub(written_ns));
        }
    }
    let _ = REPLIES.remove(tid);
}

/// A request is over, if it was answered: it took until its last write.
#[inline(always)]
fn ended(connection: *mut Connection) {
    // SAFETY: live map values.
    unsafe {
        let Connection { slot, read_ns, written_ns, .. } = *connection;
        if read_ns != 0
            && written_ns != 0
            && let Some(stats) = REQUESTS.get_ptr_mut(slot)
        {
            (*stats).request.record(written_ns.saturating_sub(read_ns));
        }
        ((*connection).read_ns, (*connection).written_ns) = (0, 0);
    }
}

/// What is known of a socket that the target in `slot` uses, if a target accepted it.
#[inline(always)]
fn connection(slot: u32, socket: *const u8) -> Option<*mut Connection> {
    // SAFETY: `socket` is a tracepoint's `sock`, the offsets are from BTF.
    let (family, cookie): (u16, u64) =
        unsafe { (read::member(socket, offsets::sock_family()), read::member(socket, offsets::sock_cookie())) };
    if family != AF_UNIX {
        if let Some(connection) = CONNECTIONS.get_ptr_mut(cookie) {
            return Some(connection);
        }
        if cookie == 0 || !is_served(socket) {
            return None;
        }
        // Accepted unseen: a child that was forked just now has no probes behind its accepts yet. Where there is no room, that
        // has been counted, or is as an accept.
        let _ = opened(slot, cookie);
        return CONNECTIONS.get_ptr_mut(cookie);
    }
    if let Some(connection) = UNIX_CONNECTIONS.get_ptr_mut(cookie) {
        return Some(connection);
    }
    // SAFETY: a live map value.
    let slot = unsafe { *UNIX_ACCEPTED.get_ptr(socket as u64)? };
    let _ = UNIX_ACCEPTED.remove(socket as u64);
    // SAFETY: the helper takes a tracepoint's `sock`.
    let cookie = unsafe { bpf_get_socket_cookie(socket.cast_mut().cast()) };
    let _ = UNIX_CONNECTIONS.insert(cookie, Connection { slot, ..Connection::NEW }, 0);
    UNIX_CONNECTIONS.get_ptr_mut(cookie)
}

/// Whether a TCP socket is a connection to a port on which a target listens, and not closed from here.
#[inline(always)]
fn is_served(socket: *const u8) -> bool {
    // SAFETY: `socket` is a tracepoint's `sock`, the offsets are from BTF.
    let (port, state): (u16, u8) =
        unsafe { (read::member(socket, offsets::sock_num()), read::member(socket, offsets::sock_state())) };
    let is_open = u32::from(state) == TCP_ESTABLISHED || u32::from(state) == TCP_CLOSE_WAIT;
    is_open && PORTS.get_ptr(u32::from(port)).is_some()
}

/// Whether the system call in which the current thread sleeps waits for something to do: for events, for a connection,
/// for a request. Who sleeps for a time, or waits for another's answer, is busy.
#[inline(always)]
fn waits() -> bool {
    // SAFETY: helpers without a precondition.
    let (task, regs) = unsafe { (bpf_get_current_task(), bpf_task_pt_regs(bpf_get_current_task_btf()) as u64) };
    let register = |offset: usize| read::kernel(regs + offset as u64).unwrap_or(0);
    match register(offsets::regs_orig_ax()) {
        // epoll_wait, epoll_pwait, epoll_pwait2, accept, accept4, io_uring_enter
        232 | 281 | 441 | 43 | 288 | 426 => true,
        // poll, whose limit is an `int` of milliseconds, and ppoll, whose limit is a pointer
        number @ (7 | 271) => {
            let limit = register(offsets::regs_dx());
            let is_limited = if number == 7 { limit as i32 >= 0 } else { limit != 0 };
            polls(task, register(offsets::regs_di()), register(offsets::regs_si()) & 0xffff_ffff, is_limited)
        }
        // select, pselect6
        23 | 270 => register(offsets::regs_di()) != 0,
        // futex: with a timeout it is a sleep, or one's turn to look at the clock
        202 => register(offsets::regs_r10()) == 0,
        // read, readv, recvfrom, recvmsg
        0 | 19 | 45 | 47 => is_for_clients(task, register(offsets::regs_di())),
        _ => false,
    }
}

/// Whether a poll of so many descriptors waits for something to do. Without any it is a sleep; with one or two and a limit
/// it may be one that can be broken off, as Ruby's main thread sleeps, or a wait for another's answer.
#[inline(always)]
fn polls(task: u64, descriptors: u64, count: u64, is_limited: bool) -> bool {
    if count > FEW || !is_limited {
        return count != 0;
    }
    for number in 0..FEW {
        if number < count
            && let Some(word) = read::user(descriptors + number * POLLFD_BYTES)
            && word as i32 >= 0
            && is_for_clients(task, word)
        {
            return true;
        }
    }
    false
}

/// Whether a descriptor is of a connection that a target accepted, or of a socket on which it listens.
#[inline(always)]
fn is_for_clients(task: u64, fd: u64) -> bool {
    let Some(socket) = socket_of(task, fd & 0xffff_ffff) else { return false };
    let Some(cookie) = read::kernel(socket + offsets::sock_cookie() as u64) else { return false };
    CONNECTIONS.get_ptr(cookie).is_some()
        || LISTENERS.get_ptr(cookie).is_some()
        || UNIX_CONNECTIONS.get_ptr(cookie).is_some()
        || UNIX_ACCEPTED.get_ptr(socket).is_some()
}
