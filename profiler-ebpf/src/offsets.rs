//! Member offsets of kernel structures. User space reads them from BTF and freezes them before load; nothing else sets them.

use core::ptr::read_volatile;

/// One frozen global per offset: its symbol is the name that user space writes to.
macro_rules! offsets {
    ($($(#[$doc:meta])* $function:ident = $symbol:ident;)*) => {
        $(
            #[unsafe(no_mangle)]
            static $symbol: u64 = 0;

            $(#[$doc])*
            #[inline(always)]
            pub fn $function() -> usize {
                // SAFETY: a static of this program; volatile because user space replaces its value before load.
                unsafe { read_volatile(&raw const $symbol) as usize }
            }
        )*
    };
}

offsets! {
    /// `task_struct.pid`
    task_pid = TASK_PID;
    /// `task_struct.tgid`
    task_tgid = TASK_TGID;
    /// `task_struct.__state`, or `state` before 5.14
    task_state = TASK_STATE;
    /// `task_struct.signal`
    task_signal = TASK_SIGNAL;
    /// `task_struct.files`
    task_files = TASK_FILES;
    /// `task_struct.nvcsw`
    task_nvcsw = TASK_NVCSW;
    /// `task_struct.se.sum_exec_runtime`
    task_sum_exec_runtime = TASK_SUM_EXEC_RUNTIME;
    /// `task_struct.thread.fsbase`
    task_fsbase = TASK_FSBASE;
    /// `signal_struct.live`
    signal_live = SIGNAL_LIVE;
    /// `files_struct.fdt`
    files_fdt = FILES_FDT;
    /// `fdtable.fd`
    fdtable_fd = FDTABLE_FD;
    /// `file.private_data`
    file_private_data = FILE_PRIVATE_DATA;
    /// `socket.sk`
    socket_sk = SOCKET_SK;
    /// `sock.__sk_common.skc_num`
    sock_num = SOCK_NUM;
    /// `sock.__sk_common.skc_state`
    sock_state = SOCK_STATE;
    /// `sock.__sk_common.skc_cookie`
    sock_cookie = SOCK_COOKIE;
    /// `sock.sk_ack_backlog`
    sock_ack_backlog = SOCK_ACK_BACKLOG;
    /// `pt_regs.di`
    regs_di = REGS_DI;
    /// `pt_regs.sp`
    regs_sp = REGS_SP;
    /// `pt_regs.ip`
    regs_ip = REGS_IP;
    /// Not an offset: always 0, which the verifier knows and the compiler does not.
    never = NEVER;
    /// Not an offset: the ring holds this many bytes when its reader is woken.
    ring_wakeup_bytes = RING_WAKEUP_BYTES;
}
