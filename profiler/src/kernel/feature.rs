//! What this kernel can do: a table of features, each probed once by trying it, never by version.

use std::ffi::CString;
use std::os::fd::AsFd as _;

use super::bpf;
use super::btf::Btf;

/// One feature, and whether this kernel has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Feature {
    /// What it is called in `profiler check`.
    pub name: &'static str,
    /// `Ok` with how it is, or `Err` with what is missing and what follows.
    pub state: Result<String, String>,
}

/// The features that decide what is attached and how.
#[derive(Clone, Debug)]
pub struct Features {
    /// Arguments of the sched_switch tracepoint: 4 with the previous task's state.
    pub sched_switch_arity: Option<usize>,
    /// The tracepoint that tells the queue length at each enqueue (6.12 and later).
    pub sk_data_ready: bool,
    /// The tracepoints that tell what is sent and received on sockets (6.3 and later).
    pub sock_length: bool,
    /// The tracepoints that tell of accepts by io_uring.
    pub uring_accepts: bool,
    /// One link for many uprobes.
    pub uprobe_multi: bool,
    /// A program can ask for the registers of user mode wherever it runs (5.15 and later).
    pub user_registers: bool,
}

impl Features {
    /// Probes the running kernel. Needs CAP_BPF and CAP_PERFMON: without them everything looks absent.
    pub fn probe(btf: &Btf) -> Features {
        Features {
            sched_switch_arity: btf.tracepoint_arity("sched_switch"),
            sk_data_ready: btf.tracepoint_arity("sk_data_ready").is_some(),
            sock_length: ["sock_send_length", "sock_recv_length"].iter().all(|t| btf.tracepoint_arity(t).is_some()),
            uring_accepts: super::uring::is_there(btf),
            uprobe_multi: uprobe_multi(),
            user_registers: btf.has_function("bpf_task_pt_regs"),
        }
    }

    /// One row per feature, for people.
    pub fn rows(&self) -> Vec<Feature> {
        let row = |name, there: bool, how: &str, why: &str| Feature {
            name,
            state: if there { Ok(how.to_owned()) } else { Err(why.to_owned()) },
        };
        vec![
            row(
                "run queue",
                self.sched_switch_arity.is_some(),
                "by BTF tracepoints",
                "the kernel's BTF has no sched_switch: run-queue latency is not measured",
            ),
            row(
                "accept queue depth",
                self.sk_data_ready,
                "by BTF tracepoint sk_data_ready",
                "no tracepoint sk_data_ready (it came with 6.12): the length is sampled by sock_diag at each scrape, and its histogram is absent",
            ),
            row(
                "requests",
                self.sock_length,
                "by BTF tracepoints sock_send_length and sock_recv_length, where asked for",
                NO_SOCK_LENGTH,
            ),
            row("CPU by task", self.user_registers, "by a clock per CPU", NO_USER_REGISTERS),
            row(
                "task probes",
                self.uprobe_multi,
                "by uprobe_multi",
                "no usable uprobe_multi (it came with 6.6, its PID filter was mended in 6.10): up to 20 perf-event uprobes per process",
            ),
        ]
    }
}

/// Why requests are not measured.
pub const NO_SOCK_LENGTH: &str = "no tracepoints sock_send_length and sock_recv_length (they came with 6.3): connections and requests are not measured";

/// Why the CPU clock does not sample.
pub(super) const NO_USER_REGISTERS: &str =
    "no helper bpf_task_pt_regs (it came with 5.15): CPU time by task is not sampled";

/// Whether links to many uprobes exist and filter by process. The way of libbpf: an impossible file is refused with
/// EBADF where they exist, and an impossible PID with EINVAL where the filter compares processes and not threads.
fn uprobe_multi() -> bool {
    // `r0 = 0; exit`
    let program = [[0xb7, 0, 0, 0, 0, 0, 0, 0], [0x95, 0, 0, 0, 0, 0, 0, 0]];
    let (license, path): (CString, CString) = (c"GPL".into(), c"/".into());
    let Ok(program) = bpf::load_uprobe_multi("probe", &program, &license) else { return false };
    let error =
        |pid| bpf::link_uprobe_multi(program.as_fd(), &path, &[0], &[0], pid).err().and_then(|e| e.raw_os_error());
    error(None) == Some(libc::EBADF) && error(Some(u32::MAX)) == Some(libc::EINVAL)
}
