//! Attaches the kernel's own hooks: scheduler, processes, accept queue. Uprobes are in `uprobe.rs`.

use std::os::fd::{AsFd as _, OwnedFd};

use aya::Btf;
use aya::programs::{BtfTracePoint, ProgramError, TracePoint};

use super::holder::{Held, close};
use super::load::Kernel;
use super::{KernelError, bpf, perf};

/// What is attached; dropped, it is not.
#[derive(Default)]
pub struct Links {
    /// Links, each with the perf events that it is on.
    own: Vec<Vec<OwnedFd>>,
    held: Vec<Held>,
}

impl Links {
    pub(super) fn push(&mut self, link: Vec<OwnedFd>) {
        self.own.push(link);
    }

    /// What another process holds.
    pub(super) fn of(held: Vec<Held>) -> Links {
        Links { own: Vec::new(), held }
    }

    /// Whether nothing is attached.
    pub fn is_empty(&self) -> bool {
        self.own.is_empty() && self.held.is_empty()
    }

    /// Takes over what `other` holds.
    pub fn absorb(&mut self, mut other: Links) {
        self.own.append(&mut other.own);
        self.held.append(&mut other.held);
    }
}

impl Drop for Links {
    /// Closing one waits for every CPU to have left the probe, some 40 ms: they wait together.
    fn drop(&mut self) {
        std::thread::scope(|scope| {
            for held in self.held.drain(..) {
                scope.spawn(|| drop(held));
            }
            close(self.own.drain(..));
        });
    }
}

/// Which of the accept-queue hooks are attached, and why not where one is not.
pub struct AcceptHooks {
    /// The queue length at each enqueue.
    pub depth: Result<(), String>,
    /// When a connection was established.
    pub arrival: Result<(), String>,
}

const ACCEPT_SYSCALLS: [&str; 2] = ["syscalls/sys_exit_accept4", "syscalls/sys_exit_accept"];

impl Kernel {
    /// Attaches the hooks that concern every target.
    ///
    /// # Errors
    /// The kernel refuses one that follows processes or measures scheduling; those of the accept queue are optional.
    pub fn attach(&mut self) -> Result<AcceptHooks, KernelError> {
        let btf = Btf::from_sys_fs()?;
        self.attach_sched(&btf)?;
        let depth = if self.features.sk_data_ready {
            self.attach_btf(&btf, "sk_data_ready", "sk_data_ready").map_err(|e| e.to_string())
        } else {
            Err("this kernel has no tracepoint sk_data_ready (6.12 and later)".to_owned())
        };
        let arrival = self.attach_btf(&btf, "inet_sock_set_state", "inet_sock_set_state").map_err(|e| e.to_string());
        Ok(AcceptHooks { depth, arrival })
    }

    /// Attaches the hooks that follow processes and measure scheduling.
    ///
    /// # Errors
    /// The kernel refuses one of them.
    fn attach_sched(&mut self, btf: &Btf) -> Result<(), KernelError> {
        let switch = match (self.features.sched_switch_arity, self.features.user_registers) {
            (_, false) => "sched_switch_without_registers",
            (Some(4), true) => "sched_switch_with_state",
            (_, true) => "sched_switch_without_state",
        };
        // Forks first, so that no thread is created unseen once scheduling is measured.
        for (program, tracepoint) in [
            ("sched_process_fork", "sched_process_fork"),
            ("sched_process_exec", "sched_process_exec"),
            ("sched_process_exit", "sched_process_exit"),
            ("sched_wakeup", "sched_wakeup"),
            ("sched_wakeup_new", "sched_wakeup_new"),
            (switch, "sched_switch"),
        ] {
            self.attach_btf(btf, program, tracepoint)?;
        }
        Ok(())
    }

    pub(super) fn attach_btf(&mut self, btf: &Btf, program: &'static str, tracepoint: &str) -> Result<(), KernelError> {
        let failed = |source: ProgramError| KernelError::Program { program, source };
        let loaded: &mut BtfTracePoint =
            self.ebpf.program_mut(program).ok_or(KernelError::Missing(program))?.try_into().map_err(failed)?;
        loaded.load(tracepoint, btf).map_err(failed)?;
        loaded.attach().map_err(failed)?;
        Ok(())
    }

    /// Attaches to accept(2) for all processes of the machine. Every system call of every process then takes the
    /// kernel's slow path, some 80 ns more: only for targets that have no place of their own to probe.
    ///
    /// # Errors
    /// The kernel refuses, or tracefs cannot be read.
    pub fn attach_accept_tracepoints(&mut self) -> Result<Links, KernelError> {
        const PROGRAM: &str = "sys_exit_accept";
        let remedy = self.remedy();
        let failed = |source: ProgramError| KernelError::Program { program: PROGRAM, source };
        let loaded: &mut TracePoint =
            self.ebpf.program_mut(PROGRAM).ok_or(KernelError::Missing(PROGRAM))?.try_into().map_err(failed)?;
        loaded.load().map_err(failed)?;
        let program = loaded.fd().map_err(failed)?.as_fd();
        let mut links = Links::default();
        for name in ACCEPT_SYSCALLS {
            let system = |source| KernelError::System { what: format!("attach to tracepoint {name}{remedy}"), source };
            let event = perf::tracepoint(name).map_err(system)?;
            let link = bpf::link_perf_event(program, event.as_fd(), 0).map_err(system)?;
            links.push(vec![link, event]);
        }
        Ok(links)
    }
}
