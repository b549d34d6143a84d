//! Why a thread goes to sleep, from the registers with which it entered the kernel. Never for how long.

use aya_ebpf::helpers::generated::bpf_task_pt_regs;
use profiler_common::sched::cause;

use crate::{offsets, read};

static OF_SYSCALL: [u8; cause::SYSCALLS] = cause::OF_SYSCALL;

/// Bits of a thread's state that say that it is stopped, traced or frozen (include/linux/sched.h): it waits for that to
/// end, wherever it was.
const STOPPED: u32 = 0x4 | 0x8 | 0x8000;
/// The code segment of 32-bit programs (`__USER32_CS`), whose system calls have other numbers.
const USER32_CS: u64 = 0x23;
/// What `orig_ax` is where no system call was made, but an exception was taken. One that sleeps is a page fault.
const NO_SYSCALL: u64 = u64::MAX;
// Types of files, include/uapi/linux/stat.h.
const TYPE: u32 = 0o170_000;
const SOCKET: u32 = 0o140_000;
const REGULAR: u32 = 0o100_000;
const BLOCK: u32 = 0o060_000;

/// Why `task` sleeps, that has the type of a BTF tracepoint's argument, is in `state`, and slept for `last` before: one
/// of [`cause`].
#[inline(always)]
pub fn cause(task: *const u8, state: u32, last: u32) -> usize {
    if state & STOPPED != 0 {
        return cause::OTHER;
    }
    // SAFETY: the task's registers in user mode, whose type the verifier knows; the offsets are from BTF.
    let (number, file, code, at): (u64, u64, u16, u64) = unsafe {
        let regs = bpf_task_pt_regs(task.cast_mut().cast()) as *const u8;
        (
            read::member(regs, offsets::regs_orig_ax()),
            read::member(regs, offsets::regs_di()),
            read::member(regs, offsets::regs_cs()),
            read::member(regs, offsets::regs_ip()),
        )
    };
    // The kernel's own threads in a process, io_uring's, never were in user mode.
    if at == 0 || u64::from(code) == USER32_CS {
        return cause::UNTOLD;
    }
    if number == NO_SYSCALL {
        return cause::PAGE_FAULT;
    }
    let told = OF_SYSCALL.get(number as usize).map_or(cause::OTHER, |&told| usize::from(told));
    if told == usize::from(cause::BY_FILE) {
        return by_file(task, file);
    }
    if told == usize::from(cause::AGAIN) {
        return last as usize;
    }
    if told == cause::OTHER && waits_for_disk(task) { cause::DISK } else { told }
}

/// For how long a task that waits for events does so at most, nanoseconds: 0 where that is not known or has no end.
#[inline(always)]
pub fn asked_ns(task: *const u8) -> u64 {
    // SAFETY: the task's registers in user mode, whose type the verifier knows; the offsets are from BTF.
    let (number, third, fourth): (u64, u64, u64) = unsafe {
        let regs = bpf_task_pt_regs(task.cast_mut().cast()) as *const u8;
        (
            read::member(regs, offsets::regs_orig_ax()),
            read::member(regs, offsets::regs_dx()),
            read::member(regs, offsets::regs_r10()),
        )
    };
    let milliseconds = match number {
        cause::POLL => third,
        _ if cause::EPOLL_WAIT.contains(&number) => fourth,
        _ => 0,
    } as i32;
    if milliseconds > 0 { milliseconds as u64 * 1_000_000 } else { 0 }
}

/// The cause that the type of an open file tells.
#[inline(always)]
fn by_file(task: *const u8, number: u64) -> usize {
    match file_type(task, number).unwrap_or_default() {
        SOCKET => cause::SOCKET,
        REGULAR | BLOCK => cause::DISK,
        _ if waits_for_disk(task) => cause::DISK,
        _ => cause::OTHER,
    }
}

#[inline(always)]
fn file_type(task: *const u8, number: u64) -> Option<u32> {
    // SAFETY: the members are pointers to structures whose types the verifier knows; the offsets are from BTF.
    let array: u64 = unsafe {
        let files: *const u8 = read::member(task, offsets::task_files());
        let table: *const u8 = read::member(files, offsets::files_fdt());
        read::member(table, offsets::fdtable_fd())
    };
    let file = read::kernel(array + u64::from(number as u32) * 8)?;
    let inode = read::kernel(file + offsets::file_inode() as u64)?;
    Some(read::kernel_u32(inode + offsets::inode_mode() as u64)? & TYPE)
}

/// Whether the kernel says that it waits for input or output of a disk.
#[inline(always)]
fn waits_for_disk(task: *const u8) -> bool {
    // SAFETY: `task` is a tracepoint's `task_struct`, the offset is from BTF.
    let bits: u8 = unsafe { read::member(task, offsets::task_in_iowait()) };
    bits as usize & offsets::task_in_iowait_mask() != 0
}
