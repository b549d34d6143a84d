//! Accept queues of unix sockets, by the kernel's functions that connect and accept. Never by tracepoints: `accept.rs`.

use aya_ebpf::programs::{FEntryContext, FExitContext};
use profiler_common::counter::Counter;
use profiler_common::map::Probe;

use crate::accept::{self, AF_UNIX, TCP_LISTEN};
use crate::maps::{LISTENERS, UNIX_LISTENERS, count};
use crate::{cost, offsets, read};

/// `sock_diag_save_cookie(socket, cookie)` begins: somebody lists sockets, as user space does each second. A connection
/// does not lead to the socket that it waits at, but shares its address with it: this is where those of targets are learnt.
#[inline(always)]
pub fn listed(ctx: &FEntryContext) -> i32 {
    let socket: *const u8 = ctx.arg(0);
    // SAFETY: the function's `sock`, the offsets are from BTF.
    let (family, state, cookie): (u16, u8, u64) = unsafe {
        (
            read::member(socket, offsets::sock_family()),
            read::member(socket, offsets::sock_state()),
            read::member(socket, offsets::sock_cookie()),
        )
    };
    if family == AF_UNIX
        && state == TCP_LISTEN
        && LISTENERS.get_ptr(cookie).is_some()
        && let Some(address) = read::kernel(socket as u64 + offsets::unix_addr() as u64)
    {
        let _ = UNIX_LISTENERS.insert(address, socket as u64, 0);
    }
    0
}

/// `unix_stream_connect(socket, address, length, flags)` returns: where it succeeds, a connection was queued.
#[inline(always)]
pub fn connected(ctx: &FExitContext) -> i32 {
    let result: i32 = ctx.arg(4);
    if result == 0 {
        arrived(ctx.arg::<u64>(0));
    }
    0
}

#[inline(always)]
fn arrived(socket: u64) -> Option<()> {
    let client = read::kernel(socket + offsets::socket_sk() as u64)?;
    let connection = read::kernel(client + offsets::unix_peer() as u64)?;
    let address = read::kernel(connection + offsets::unix_addr() as u64)?;
    // SAFETY: a live map value.
    let listener = unsafe { *UNIX_LISTENERS.get_ptr(address)? };
    // One that was closed is no target's any more, and its memory may be another's: then the cookie is not known.
    let cookie = read::kernel(listener + offsets::sock_cookie() as u64)?;
    let length = read::kernel_u32(listener + offsets::sock_receive_queue_length() as u64)?;
    let stats = accept::queued(cookie, length)?;
    accept::unix_arrived(stats, connection);
    Some(())
}

/// `unix_accept` of so many parameters returns: the connection is at the new socket.
#[inline(always)]
pub fn accepted(ctx: &FExitContext, parameters: usize) -> i32 {
    let result: i32 = ctx.arg(parameters);
    if result != 0 {
        return 0;
    }
    let Some(slot) = accept::target() else { return 0 };
    cost::kernel_hit(slot, Probe::Accept);
    let (listening, new): (u64, u64) = (ctx.arg(0), ctx.arg(1));
    let sk = |socket: u64| read::kernel(socket + offsets::socket_sk() as u64);
    let cookie = sk(listening).and_then(|listener| read::kernel(listener + offsets::sock_cookie() as u64));
    match accept::stats(cookie.unwrap_or(0)) {
        Some((stats, unstamped)) => accept::matched(slot, stats, unstamped, sk(new)),
        None => count(Counter::AcceptUnknownListener),
    }
    0
}
