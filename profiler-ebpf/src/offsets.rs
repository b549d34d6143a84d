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
    /// `task_struct.flags`
    task_flags = TASK_FLAGS;
    /// The byte of `task_struct` that has `in_iowait`
    task_in_iowait = TASK_IN_IOWAIT;
    /// Not an offset: the bit of that byte
    task_in_iowait_mask = TASK_IN_IOWAIT_MASK;
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
    /// `file.f_inode`
    file_inode = FILE_INODE;
    /// `inode.i_mode`
    inode_mode = INODE_MODE;
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
    /// `sock.__sk_common.skc_family`
    sock_family = SOCK_FAMILY;
    /// `sock.sk_socket`
    sock_socket = SOCK_SOCKET;
    /// `sock.sk_receive_queue`
    sock_receive_queue = SOCK_RECEIVE_QUEUE;
    /// `sock.sk_receive_queue.qlen`
    sock_receive_queue_length = SOCK_RECEIVE_QUEUE_LENGTH;
    /// `sk_buff.prev`, which is also where the head of a queue has it
    sk_buff_prev = SK_BUFF_PREV;
    /// `sk_buff.sk`
    sk_buff_sk = SK_BUFF_SK;
    /// `unix_sock.addr`; 0 where BTF does not tell
    unix_addr = UNIX_ADDR;
    /// `unix_sock.peer`; 0 where BTF does not tell
    unix_peer = UNIX_PEER;
    /// `pt_regs.di`
    regs_di = REGS_DI;
    /// `pt_regs.dx`
    regs_dx = REGS_DX;
    /// `io_kiocb.ctx`
    io_kiocb_ctx = IO_KIOCB_CTX;
    /// `io_kiocb.opcode`
    io_kiocb_opcode = IO_KIOCB_OPCODE;
    /// `io_kiocb.file`
    io_kiocb_file = IO_KIOCB_FILE;
    /// `io_kiocb.flags`
    io_kiocb_flags = IO_KIOCB_FLAGS;
    /// `io_kiocb.cqe.fd`: the descriptor, until the file is looked up
    io_kiocb_fd = IO_KIOCB_FD;
    /// `io_kiocb.cqe.user_data`
    io_kiocb_user_data = IO_KIOCB_USER_DATA;
    /// `io_accept.file_slot`: a request begins with what is its operation's own
    io_accept_file_slot = IO_ACCEPT_FILE_SLOT;
    /// `io_uring_cqe.res`
    io_uring_cqe_res = IO_URING_CQE_RES;
    /// `pt_regs.orig_ax`
    regs_orig_ax = REGS_ORIG_AX;
    /// `pt_regs.si`
    regs_si = REGS_SI;
    /// `pt_regs.r10`
    regs_r10 = REGS_R10;
    /// `pt_regs.cs`
    regs_cs = REGS_CS;
    /// `pt_regs.sp`
    regs_sp = REGS_SP;
    /// `pt_regs.ip`
    regs_ip = REGS_IP;
    /// Not an offset: always 0, which the verifier knows and the compiler does not.
    never = NEVER;
    /// Not an offset: the ring holds this many bytes when its reader is woken.
    ring_wakeup_bytes = RING_WAKEUP_BYTES;
    /// Not an offset: 1 where connections and requests are measured, else 0.
    requests = REQUESTS_WANTED;
    /// Not an offset: 1 where processes of all programs are to be found, else 0.
    discovery = DISCOVERY_WANTED;
}
