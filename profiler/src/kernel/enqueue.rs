//! Attaches to the kernel's functions that enqueue and accept connections. Never decides whether to.

use std::ffi::CStr;
use std::os::fd::AsFd as _;

use aya::Btf;
use aya::programs::{FEntry, FExit, KProbe, ProgramError};

use super::attach::Links;
use super::load::Kernel;
use super::{KernelError, bpf, perf};

/// Programs at entries, and the functions that they are for. The second calls the first, in some kernels by a copy of
/// its own.
const ENTRIES: [(&str, &str); 2] =
    [("enqueue_request", "inet_csk_reqsk_queue_add"), ("enqueue_handshake", "inet_csk_complete_hashdance")];
const KPROBES: [(&str, &CStr); 2] = [
    ("enqueue_request_kprobe", c"inet_csk_reqsk_queue_add"),
    ("enqueue_handshake_kprobe", c"inet_csk_complete_hashdance"),
];

impl Kernel {
    /// Attaches to the entries of the functions that enqueue a connection.
    pub(super) fn attach_enqueue(&mut self, btf: &Btf) -> Result<(), KernelError> {
        ENTRIES.iter().try_for_each(|(program, function)| self.attach_entry(btf, program, function))
    }

    /// Attaches to the exit of the function that accepts one.
    pub(super) fn attach_accept_exit(&mut self, btf: &Btf) -> Result<(), KernelError> {
        let program = match self.features.accept_parameters {
            Some(4) => "accept_exit_4",
            _ => "accept_exit_2",
        };
        self.attach_exit(btf, program, "inet_csk_accept")
    }

    /// Attaches to the functions that connect and accept unix sockets, and to where these are listed.
    pub(super) fn attach_unix(&mut self, btf: &Btf) -> Result<(), KernelError> {
        let accept = match self.features.unix_accept_parameters {
            Some(4) => "unix_accept_exit_4",
            _ => "unix_accept_exit_3",
        };
        self.attach_entry(btf, "unix_listed", "sock_diag_save_cookie")?;
        self.attach_exit(btf, "unix_connected", "unix_stream_connect")?;
        self.attach_exit(btf, accept, "unix_accept")
    }

    fn attach_entry(&mut self, btf: &Btf, program: &'static str, function: &str) -> Result<(), KernelError> {
        let failed = |source: ProgramError| KernelError::Program { program, source };
        let loaded: &mut FEntry =
            self.ebpf.program_mut(program).ok_or(KernelError::Missing(program))?.try_into().map_err(failed)?;
        loaded.load(function, btf).map_err(failed)?;
        loaded.attach().map_err(failed)?;
        Ok(())
    }

    fn attach_exit(&mut self, btf: &Btf, program: &'static str, function: &str) -> Result<(), KernelError> {
        let failed = |source: ProgramError| KernelError::Program { program, source };
        let loaded: &mut FExit =
            self.ebpf.program_mut(program).ok_or(KernelError::Missing(program))?.try_into().map_err(failed)?;
        loaded.load(function, btf).map_err(failed)?;
        loaded.attach().map_err(failed)?;
        Ok(())
    }

    /// The same as the first, by kprobes.
    pub(super) fn attach_enqueue_kprobes(&mut self) -> Result<(), KernelError> {
        let mut links = Links::default();
        for (program, function) in KPROBES {
            let failed = |source: ProgramError| KernelError::Program { program, source };
            let system = |source| KernelError::System {
                what: format!("put a kprobe at {}", function.to_string_lossy()),
                source,
            };
            let loaded: &mut KProbe =
                self.ebpf.program_mut(program).ok_or(KernelError::Missing(program))?.try_into().map_err(failed)?;
            loaded.load().map_err(failed)?;
            let event = perf::kprobe(function).map_err(system)?;
            let attached = bpf::attach_perf_event(loaded.fd().map_err(failed)?.as_fd(), event, 0).map_err(system)?;
            links.push(attached);
        }
        self.kprobes = links;
        Ok(())
    }
}
