//! Entry points of the kernel half: one line each. What they do is in the file of their question.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod accept;
mod asleep;
mod coroutine;
mod cost;
mod deferred;
mod discovery;
mod emit;
mod enqueue;
mod event_loop;
mod hit;
mod job;
mod lock;
mod maps;
mod offsets;
mod pause;
mod poll;
mod process;
mod read;
mod request;
mod ring;
mod sample;
mod sched;
mod shared;
mod stack;
mod task;
mod unix;

use aya_ebpf::macros::{btf_tracepoint, fentry, fexit, kprobe, perf_event, tracepoint, uprobe};
use aya_ebpf::programs::{
    BtfTracePointContext, FEntryContext, FExitContext, PerfEventContext, ProbeContext, TracePointContext,
};
use profiler_common::map::wake;

#[btf_tracepoint(function = "sched_wakeup")]
fn sched_wakeup(ctx: BtfTracePointContext) -> i32 {
    sched::wakeup(ctx.arg(0))
}

#[btf_tracepoint(function = "sched_wakeup_new")]
fn sched_wakeup_new(ctx: BtfTracePointContext) -> i32 {
    sched::wakeup(ctx.arg(0))
}

/// Kernels whose sched_switch passes the previous task's state as its fourth argument (5.18 and later).
#[btf_tracepoint(function = "sched_switch")]
fn sched_switch_with_state(ctx: BtfTracePointContext) -> i32 {
    sched::switch::<true>(ctx.arg(0), ctx.arg(1), ctx.arg(2), ctx.arg(3))
}

/// Kernels whose sched_switch passes three arguments: the state is read from the task.
#[btf_tracepoint(function = "sched_switch")]
fn sched_switch_without_state(ctx: BtfTracePointContext) -> i32 {
    sched::switch_reading_state::<true>(ctx.arg(0), ctx.arg(1), ctx.arg(2))
}

/// The same, where a program cannot ask for the registers of user mode (before 5.15): no cause is told.
#[btf_tracepoint(function = "sched_switch")]
fn sched_switch_without_registers(ctx: BtfTracePointContext) -> i32 {
    sched::switch_reading_state::<false>(ctx.arg(0), ctx.arg(1), ctx.arg(2))
}

#[btf_tracepoint(function = "sched_process_fork")]
fn sched_process_fork(ctx: BtfTracePointContext) -> i32 {
    process::forked(&ctx, ctx.arg(0), ctx.arg(1))
}

#[btf_tracepoint(function = "sched_process_exec")]
fn sched_process_exec(ctx: BtfTracePointContext) -> i32 {
    process::execed(ctx.arg(0), ctx.arg(1))
}

#[btf_tracepoint(function = "sched_process_exit")]
fn sched_process_exit(ctx: BtfTracePointContext) -> i32 {
    process::exited(ctx.arg(0))
}

#[btf_tracepoint(function = "inet_sock_set_state")]
fn inet_sock_set_state(ctx: BtfTracePointContext) -> i32 {
    accept::state_changed(ctx.arg(0), ctx.arg(1), ctx.arg(2))
}

#[btf_tracepoint(function = "sk_data_ready")]
fn sk_data_ready(ctx: BtfTracePointContext) -> i32 {
    accept::data_ready(ctx.arg(0))
}

/// What any process has sent on a socket (6.3 and later).
#[btf_tracepoint(function = "sock_send_length")]
fn sock_send_length(ctx: BtfTracePointContext) -> i32 {
    request::sent(ctx.arg(0), ctx.arg(1))
}

/// What any process has received on a socket (6.3 and later).
#[btf_tracepoint(function = "sock_recv_length")]
fn sock_recv_length(ctx: BtfTracePointContext) -> i32 {
    request::received(ctx.arg(0), ctx.arg(1))
}

/// A request of an io_uring is handed in.
#[btf_tracepoint(function = "io_uring_submit_req")]
fn io_uring_submit_req(ctx: BtfTracePointContext) -> i32 {
    ring::goes_on(ctx.arg(0))
}

/// What a request of an io_uring waited for has come.
#[btf_tracepoint(function = "io_uring_task_add")]
fn io_uring_task_add(ctx: BtfTracePointContext) -> i32 {
    ring::goes_on(ctx.arg(0))
}

/// A request of an io_uring is completed.
#[btf_tracepoint(function = "io_uring_complete")]
fn io_uring_complete(ctx: BtfTracePointContext) -> i32 {
    ring::completed(ctx.arg(0), ctx.arg(1), ctx.arg(2))
}

#[fentry(function = "inet_csk_reqsk_queue_add")]
fn enqueue_request(ctx: FEntryContext) -> i32 {
    enqueue::request(&ctx)
}

#[fentry(function = "inet_csk_complete_hashdance")]
fn enqueue_handshake(ctx: FEntryContext) -> i32 {
    enqueue::handshake(&ctx)
}

#[kprobe(function = "inet_csk_reqsk_queue_add")]
fn enqueue_request_kprobe(ctx: ProbeContext) -> u32 {
    enqueue::request_probed(&ctx)
}

#[kprobe(function = "inet_csk_complete_hashdance")]
fn enqueue_handshake_kprobe(ctx: ProbeContext) -> u32 {
    enqueue::handshake_probed(&ctx)
}

/// Kernels that accept with `(sk, arg)` (6.10 and later).
#[fexit(function = "inet_csk_accept")]
fn accept_exit_2(ctx: FExitContext) -> i32 {
    enqueue::accepted(&ctx, 2)
}

/// Kernels that accept with `(sk, flags, err, kern)`.
#[fexit(function = "inet_csk_accept")]
fn accept_exit_4(ctx: FExitContext) -> i32 {
    enqueue::accepted(&ctx, 4)
}

#[fentry(function = "sock_diag_save_cookie")]
fn unix_listed(ctx: FEntryContext) -> i32 {
    unix::listed(&ctx)
}

#[fexit(function = "unix_stream_connect")]
fn unix_connected(ctx: FExitContext) -> i32 {
    unix::connected(&ctx)
}

/// Kernels that accept with `(socket, new, arg)` (6.10 and later).
#[fexit(function = "unix_accept")]
fn unix_accept_exit_3(ctx: FExitContext) -> i32 {
    unix::accepted(&ctx, 3)
}

/// Kernels that accept with `(socket, new, flags, kern)`.
#[fexit(function = "unix_accept")]
fn unix_accept_exit_4(ctx: FExitContext) -> i32 {
    unix::accepted(&ctx, 4)
}

/// Where the C library returns from accept(2).
#[uprobe]
fn accept_return(ctx: ProbeContext) -> u32 {
    accept::returned(&ctx)
}

/// The same for programs that have no such place: costs every system call of the machine.
#[tracepoint]
fn sys_exit_accept(ctx: TracePointContext) -> u32 {
    accept::syscall_returned(&ctx)
}

#[uprobe]
fn task_spawn(ctx: ProbeContext) -> u32 {
    task::spawned(&ctx)
}

#[uprobe]
fn task_complete(ctx: ProbeContext) -> u32 {
    task::completed(&ctx)
}

#[uprobe]
fn task_poll_start(ctx: ProbeContext) -> u32 {
    poll::started(&ctx)
}

#[uprobe]
fn task_poll_end(ctx: ProbeContext) -> u32 {
    poll::ended(&ctx)
}

#[uprobe]
fn task_wake_by_value(ctx: ProbeContext) -> u32 {
    poll::woken(&ctx, wake::BY_VALUE)
}

#[uprobe]
fn task_wake_by_ref(ctx: ProbeContext) -> u32 {
    poll::woken(&ctx, wake::BY_REF)
}

#[uprobe]
fn task_transfer(ctx: ProbeContext) -> u32 {
    coroutine::transferred(&ctx)
}

#[uprobe]
fn task_wait(ctx: ProbeContext) -> u32 {
    coroutine::waits(&ctx)
}

#[uprobe]
fn gc_pause(ctx: ProbeContext) -> u32 {
    pause::clocked(&ctx)
}

#[uprobe]
fn lock_wait(ctx: ProbeContext) -> u32 {
    lock::told(&ctx)
}

#[uprobe]
fn deferred_work(ctx: ProbeContext) -> u32 {
    deferred::told(&ctx)
}

/// Each tick of a CPU's sampling clock.
#[perf_event]
fn cpu_clock(ctx: PerfEventContext) -> u32 {
    sample::taken(&ctx)
}

/// Costs a trap and nothing else: what a hit costs on this host is measured with it.
#[uprobe]
fn empty(_ctx: ProbeContext) -> u32 {
    0
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
