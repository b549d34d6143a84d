//! Stacks on which tasks are created: copies of some, for user space to unwind. Never unwound here.

use aya_ebpf::programs::ProbeContext;
use profiler_common::event::{Header, STACK_BYTES, SpawnStack};

use crate::maps::{SPAWN_PLACES, SPAWNS};
use crate::{emit, read};

/// Spawns of one site, per CPU, whose stacks are copied at first.
const FIRST: u64 = 4;
/// Later, the stack of one spawn out of so many is copied: a prime, so that it keeps no step with what repeats.
const EVERY: u64 = 251;

/// A task of the type of `vtable` was created at the site in `header`. `slot` is the target's.
#[inline(always)]
pub fn spawned(ctx: &ProbeContext, header: Header, slot: u32, vtable: u64) {
    // Sites that share a place share their counter: which of their spawns are taken is still not theirs to choose.
    let place = slot.wrapping_mul(769).wrapping_add(header.site) & (SPAWN_PLACES - 1);
    let Some(spawns) = SPAWNS.get_ptr_mut(place) else { return };
    // SAFETY: a per-CPU value. A program that is interrupted by another hit on this CPU may count one too few.
    let nth = unsafe {
        let nth = *spawns;
        *spawns = nth + 1;
        nth
    };
    if nth < FIRST || nth % EVERY == 0 {
        emit::spawn_stack(|to| copy(ctx, header, vtable, to));
    }
}

/// Fills in a record; false where no part of the stack can be read.
#[inline(always)]
fn copy(ctx: &ProbeContext, header: Header, vtable: u64, to: *mut SpawnStack) -> bool {
    let regs = ctx.regs.cast_const();
    // SAFETY: `to` is a reserved entry of the ring, `regs` this program's context.
    unsafe {
        (&raw mut (*to).header).write(header);
        (&raw mut (*to).vtable).write(vtable);
        (&raw mut (*to).rip).write((*regs).rip);
        (&raw mut (*to).rsp).write((*regs).rsp);
        (&raw mut (*to).rbp).write((*regs).rbp);
        (&raw mut (*to).rbx).write((*regs).rbx);
        (&raw mut (*to).r12).write((*regs).r12);
        (&raw mut (*to).r13).write((*regs).r13);
        (&raw mut (*to).r14).write((*regs).r14);
        (&raw mut (*to).r15).write((*regs).r15);
        let stack = (&raw mut (*to).stack).cast::<u8>();
        let rsp = (*regs).rsp;
        // The stack may end before so much of it.
        let length = if read::user_bytes(rsp, stack, STACK_BYTES) {
            STACK_BYTES
        } else if read::user_bytes(rsp, stack, STACK_BYTES / 4) {
            STACK_BYTES / 4
        } else if read::user_bytes(rsp, stack, STACK_BYTES / 16) {
            STACK_BYTES / 16
        } else {
            0
        };
        (&raw mut (*to).length).write(length as u64);
        length != 0
    }
}
