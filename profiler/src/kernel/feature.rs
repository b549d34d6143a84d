//! What this kernel can do: a table of features, each tried once, never told by the kernel's version. What is measured
//! with them is in `signal.rs`.

use std::ffi::CString;
use std::io;
use std::os::fd::AsFd as _;
use std::path::Path;

use super::btf::Btf;
use super::{bpf, perf};

/// A feature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feature {
    /// The BTF tracepoint sched_switch, and with it those of wake-ups, forks, execs and exits.
    SchedSwitch,
    /// The BTF tracepoint inet_sock_set_state.
    SetState,
    /// The BTF tracepoint sk_data_ready.
    DataReady,
    /// The BTF tracepoints that tell what is sent and received on sockets.
    SockLength,
    /// The BTF tracepoints of io_uring, in the form that is known.
    Uring,
    /// Programs at the entries and exits of the kernel's functions.
    Fentry,
    /// The functions that enqueue and accept connections, with the parameters that are known.
    AcceptFunctions,
    /// The functions that connect and accept unix sockets, with the parameters that are known.
    UnixFunctions,
    /// Kprobes by perf events.
    Kprobe,
    /// Tracepoints of system calls by perf events.
    SyscallTracepoints,
    /// The helper that finds the registers of user mode wherever a program runs.
    UserRegisters,
    /// Clocks that sample a CPU.
    CpuClock,
    /// Uprobes by perf events.
    Uprobe,
    /// The helper that tells a program which of its probes was hit.
    AttachCookie,
    /// One link for many uprobes, scoped to a process.
    UprobeMulti,
    /// Listening sockets can be listed by netlink.
    SockDiag,
}

/// How a feature is found, and what its absence means.
pub struct FeatureRow {
    /// Which.
    pub feature: Feature,
    /// What it is called in `profiler check --json`.
    pub name: &'static str,
    /// What is missing where it is, and since when kernels have it.
    pub missing: &'static str,
    /// What can be done about it.
    pub remedy: &'static str,
    probe: fn(&Btf) -> bool,
}

const NEWER: &str = "use a newer kernel";
const BTF: &str = "use a kernel built with CONFIG_DEBUG_INFO_BTF=y";

/// All features, in the order of [`Feature`].
pub const FEATURES: &[FeatureRow] = &[
    FeatureRow {
        feature: Feature::SchedSwitch,
        name: "sched_switch",
        missing: "no BTF tracepoint sched_switch",
        remedy: BTF,
        probe: |btf| btf.tracepoint_arity("sched_switch").is_some(),
    },
    FeatureRow {
        feature: Feature::SetState,
        name: "inet_sock_set_state",
        missing: "no BTF tracepoint inet_sock_set_state",
        remedy: BTF,
        probe: |btf| btf.tracepoint_arity("inet_sock_set_state").is_some(),
    },
    FeatureRow {
        feature: Feature::DataReady,
        name: "sk_data_ready",
        missing: "no BTF tracepoint sk_data_ready (it came with 6.12)",
        remedy: NEWER,
        probe: |btf| btf.tracepoint_arity("sk_data_ready").is_some(),
    },
    FeatureRow {
        feature: Feature::SockLength,
        name: "sock_length",
        missing: "no BTF tracepoints sock_send_length and sock_recv_length (they came with 6.3)",
        remedy: NEWER,
        probe: |btf| ["sock_send_length", "sock_recv_length"].iter().all(|t| btf.tracepoint_arity(t).is_some()),
    },
    FeatureRow {
        feature: Feature::Uring,
        name: "io_uring",
        missing: "the tracepoints of io_uring are not those that are known",
        remedy: NEWER,
        probe: super::uring::is_there,
    },
    FeatureRow {
        feature: Feature::Fentry,
        name: "fentry",
        missing: "no programs at the entry of functions (fentry)",
        remedy: "use a kernel with CONFIG_DYNAMIC_FTRACE_WITH_DIRECT_CALLS=y that is not locked down",
        probe: fentry,
    },
    FeatureRow {
        feature: Feature::AcceptFunctions,
        name: "accept_functions",
        missing: "the functions that enqueue and accept connections are not those that are known",
        remedy: "report this kernel",
        probe: |btf| {
            accept_parameters(btf).is_some()
                && btf.parameters(QUEUE_ADD) == Some(3)
                && btf.parameters("inet_csk_complete_hashdance") == Some(4)
        },
    },
    FeatureRow {
        feature: Feature::UnixFunctions,
        name: "unix_functions",
        missing: "the functions that connect and accept unix sockets are not those that are known",
        remedy: "report this kernel",
        probe: |btf| {
            unix_accept_parameters(btf).is_some()
                && btf.parameters("unix_stream_connect") == Some(4)
                && btf.parameters("sock_diag_save_cookie") == Some(2)
                && ["unix_sock.peer", "unix_sock.addr"].iter().all(|member| btf.offset(member).is_ok())
        },
    },
    FeatureRow {
        feature: Feature::Kprobe,
        name: "kprobe",
        missing: "no kprobes",
        remedy: "use a kernel with CONFIG_KPROBES=y that is not locked down",
        probe: |_| perf::kprobe(c"inet_csk_reqsk_queue_add").is_ok(),
    },
    FeatureRow {
        feature: Feature::SyscallTracepoints,
        name: "syscall_tracepoints",
        missing: "tracepoints of system calls cannot be opened",
        remedy: "grant CAP_DAC_READ_SEARCH, or CAP_SYS_ADMIN where tracefs is not mounted",
        probe: |_| perf::tracepoint("syscalls/sys_exit_accept4").is_ok(),
    },
    FeatureRow {
        feature: Feature::UserRegisters,
        name: "user_registers",
        missing: "no helper bpf_task_pt_regs (it came with 5.15)",
        remedy: NEWER,
        probe: |btf| btf.has_function("bpf_task_pt_regs"),
    },
    FeatureRow {
        feature: Feature::CpuClock,
        name: "cpu_clock",
        missing: "no perf clock of a CPU (where kernel.perf_event_paranoid is 3, that takes CAP_SYS_ADMIN)",
        remedy: "use a kernel with CONFIG_PERF_EVENTS=y",
        probe: |_| perf::own_clock(CLOCK_NS).is_ok(),
    },
    FeatureRow {
        feature: Feature::Uprobe,
        name: "uprobe",
        missing: "no uprobes (where kernel.perf_event_paranoid is 3, they take CAP_SYS_ADMIN)",
        remedy: "use a kernel with CONFIG_UPROBE_EVENTS=y",
        // Who may open no perf event may not open these. To try one of them takes long: it must be taken out again.
        probe: |_| Path::new(perf::UPROBE_TYPE).exists() && perf::own_clock(CLOCK_NS).is_ok(),
    },
    FeatureRow {
        feature: Feature::AttachCookie,
        name: "attach_cookie",
        missing: "no helper bpf_get_attach_cookie (it came with 5.15)",
        remedy: NEWER,
        probe: |_| attach_cookie(),
    },
    FeatureRow {
        feature: Feature::UprobeMulti,
        name: "uprobe_multi",
        missing: "no usable uprobe_multi (it came with 6.6, its filter by process was mended in 6.10)",
        remedy: NEWER,
        probe: |_| uprobe_multi(),
    },
    FeatureRow {
        feature: Feature::SockDiag,
        name: "sock_diag",
        missing: "listening sockets cannot be listed",
        remedy: "load the module tcp_diag",
        probe: |_| sock_diag().is_ok(),
    },
];

const QUEUE_ADD: &str = "inet_csk_reqsk_queue_add";
/// Any: the clock is closed at once.
const CLOCK_NS: u64 = 1_000_000_000;

/// Which features the running kernel has.
#[derive(Clone, Debug)]
pub struct Features {
    has: Vec<bool>,
    /// Arguments of the sched_switch tracepoint: 4 with the previous task's state.
    pub sched_switch_arity: Option<usize>,
    /// Parameters of the function that accepts a connection: 2 or 4.
    pub accept_parameters: Option<usize>,
    /// The same of unix sockets: 3 or 4.
    pub unix_accept_parameters: Option<usize>,
}

impl Features {
    /// Probes the running kernel. Needs CAP_BPF and CAP_PERFMON: without them everything looks absent.
    pub fn probe(btf: &Btf) -> Features {
        Features {
            has: FEATURES.iter().map(|row| (row.probe)(btf)).collect(),
            sched_switch_arity: btf.tracepoint_arity("sched_switch"),
            accept_parameters: accept_parameters(btf),
            unix_accept_parameters: unix_accept_parameters(btf),
        }
    }

    /// None: what the table of signals is like without any.
    #[cfg(test)]
    pub fn none() -> Features {
        Features {
            has: vec![false; FEATURES.len()],
            sched_switch_arity: None,
            accept_parameters: None,
            unix_accept_parameters: None,
        }
    }

    /// Whether this kernel has it.
    pub fn has(&self, feature: Feature) -> bool {
        self.has[feature as usize]
    }

    /// All by name.
    pub fn by_name(&self) -> impl Iterator<Item = (&'static str, bool)> + '_ {
        FEATURES.iter().zip(&self.has).map(|(row, &has)| (row.name, has))
    }
}

impl Feature {
    /// Its row.
    pub fn row(self) -> &'static FeatureRow {
        &FEATURES[self as usize]
    }
}

/// `struct sock *inet_csk_accept(sk, flags, err, kern)`, from 6.10 on `(sk, arg)`.
fn accept_parameters(btf: &Btf) -> Option<usize> {
    btf.parameters("inet_csk_accept").filter(|n| matches!(n, 2 | 4))
}

/// `int unix_accept(socket, new, flags, kern)`, from 6.10 on `(socket, new, arg)`.
fn unix_accept_parameters(btf: &Btf) -> Option<usize> {
    btf.parameters("unix_accept").filter(|n| matches!(n, 3 | 4))
}

/// `r0 = 0; exit`
const NOTHING: [[u8; 8]; 2] = [[0xb7, 0, 0, 0, 0, 0, 0, 0], EXIT];
const EXIT: [u8; 8] = [0x95, 0, 0, 0, 0, 0, 0, 0];

/// Whether a program that does nothing can be put at the entry of a function. Where that is refused it may be so at
/// either step.
fn fentry(btf: &Btf) -> bool {
    let Some(function) = btf.function(QUEUE_ADD) else { return false };
    bpf::load_fentry("probe", &NOTHING, c"GPL", function).and_then(|program| bpf::link_tracing(program.as_fd())).is_ok()
}

/// Whether a uprobe's program may call the helper: `call bpf_get_attach_cookie; exit`.
fn attach_cookie() -> bool {
    const HELPER: u8 = 174;
    bpf::load_uprobe("probe", &[[0x85, 0, 0, 0, HELPER, 0, 0, 0], EXIT], c"GPL").is_ok()
}

/// Whether links to many uprobes exist and filter by process. The way of libbpf: an impossible file is refused with
/// EBADF where they exist, and an impossible PID with EINVAL where the filter compares processes and not threads.
fn uprobe_multi() -> bool {
    let (license, path): (CString, CString) = (c"GPL".into(), c"/".into());
    let Ok(program) = bpf::load_uprobe_multi("probe", &NOTHING, &license) else { return false };
    let error =
        |pid| bpf::link_uprobe_multi(program.as_fd(), &path, &[0], &[0], pid).err().and_then(|e| e.raw_os_error());
    error(None) == Some(libc::EBADF) && error(Some(u32::MAX)) == Some(libc::EINVAL)
}

/// Asks for all listening TCP sockets of version 4, and looks only whether that is answered by an error.
fn sock_diag() -> io::Result<()> {
    use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with};
    const SOCK_DIAG_BY_FAMILY: u16 = 20;
    const REQUEST_DUMP: u16 = 0x301;
    const NLMSG_ERROR: u16 = 2;
    const TCP_LISTEN: u32 = 10;
    /// `struct nlmsghdr` and `struct inet_diag_req_v2`.
    const LENGTH: usize = 16 + 56;
    let mut request = [0_u8; LENGTH];
    request[..4].copy_from_slice(&(LENGTH as u32).to_ne_bytes());
    request[4..6].copy_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    request[6..8].copy_from_slice(&REQUEST_DUMP.to_ne_bytes());
    request[16] = libc::AF_INET as u8;
    request[17] = libc::IPPROTO_TCP as u8;
    request[20..24].copy_from_slice(&(1_u32 << TCP_LISTEN).to_ne_bytes());
    let socket =
        socket_with(AddressFamily::NETLINK, SocketType::DGRAM, SocketFlags::CLOEXEC, Some(netlink::SOCK_DIAG))?;
    send(&socket, &request, SendFlags::empty())?;
    let mut answer = [0_u8; 1 << 13];
    let (length, _) = recv(&socket, &mut answer[..], RecvFlags::empty())?;
    let kind = u16::from_ne_bytes([answer[4], answer[5]]);
    if length < 16 || kind == NLMSG_ERROR { Err(io::ErrorKind::Unsupported.into()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Check that the table is complete, and in the order by which it is indexed.
    #[test]
    fn every_feature_has_its_row() {
        for (n, row) in FEATURES.iter().enumerate() {
            assert_eq!(row.feature as usize, n, "{}", row.name);
            assert!(!row.missing.is_empty() && !row.remedy.is_empty());
            assert_eq!(FEATURES.iter().filter(|other| other.name == row.name).count(), 1, "{}", row.name);
        }
    }
}
