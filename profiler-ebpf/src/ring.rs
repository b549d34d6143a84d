//! Accepts by io_uring, which no system call shows. Never other operations.

use aya_ebpf::helpers::generated::bpf_get_current_task;
use profiler_common::map::{Probe, RingKey};

use crate::accept::{accepted_from, socket_of, target};
use crate::maps::{LISTENERS, RING_ACCEPTS};
use crate::{cost, offsets, read};

/// IORING_OP_ACCEPT
const ACCEPT: u64 = 13;
/// REQ_F_FIXED_FILE: its descriptor is one of the ring's own.
const FIXED_FILE: u64 = 1;

/// A request is handed in, or goes on: where it accepts without end, its completions will not tell that they are its.
#[inline(always)]
pub fn goes_on(request: u64) -> i32 {
    let Some(cookie) = listener(request) else { return 0 };
    if LISTENERS.get_ptr(cookie).is_some()
        && let Some(ring) = read::kernel(request + offsets::io_kiocb_ctx() as u64)
        && let Some(user_data) = read::kernel(request + offsets::io_kiocb_user_data() as u64)
    {
        let _ = RING_ACCEPTS.insert(RingKey { ring, user_data }, cookie, 0);
    }
    0
}

/// A request, or one round of it, is completed. `request` is 0 where more rounds follow.
#[inline(always)]
pub fn completed(ring: u64, request: u64, entry: u64) -> i32 {
    let Some(slot) = target() else { return 0 };
    let (Some(user_data), Some(result)) =
        (read::kernel(entry), read::kernel_u32(entry + offsets::io_uring_cqe_res() as u64))
    else {
        return 0;
    };
    if (result as i32) < 0 {
        return 0;
    }
    let cookie = if request != 0 {
        listener(request)
    } else {
        // SAFETY: a live map value.
        RING_ACCEPTS.get_ptr(RingKey { ring, user_data }).map(|cookie| unsafe { *cookie })
    };
    let Some(cookie) = cookie else { return 0 };
    cost::kernel_hit(slot, Probe::Accept);
    // SAFETY: a helper without a precondition.
    let task = unsafe { bpf_get_current_task() };
    accepted_from(slot, task, cookie, u64::from(result));
    0
}

/// The cookie of the socket on which a request accepts; `None` where it does something else, or its connections get no
/// descriptors.
#[inline(always)]
fn listener(request: u64) -> Option<u64> {
    if read::kernel(request + offsets::io_kiocb_opcode() as u64)? & 0xff != ACCEPT
        || read::kernel_u32(request + offsets::io_accept_file_slot() as u64)? != 0
    {
        return None;
    }
    let file = read::kernel(request + offsets::io_kiocb_file() as u64)?;
    let socket = if file != 0 {
        let socket = read::kernel(file + offsets::file_private_data() as u64)?;
        read::kernel(socket + offsets::socket_sk() as u64)?
    } else {
        // It was handed in just now, by this thread: the file is not looked up yet.
        if read::kernel(request + offsets::io_kiocb_flags() as u64)? & FIXED_FILE != 0 {
            return None;
        }
        let fd = read::kernel_u32(request + offsets::io_kiocb_fd() as u64)?;
        // SAFETY: a helper without a precondition.
        socket_of(unsafe { bpf_get_current_task() }, u64::from(fd))?
    };
    read::kernel(socket + offsets::sock_cookie() as u64)
}
