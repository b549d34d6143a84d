//! Attaches the kernel's own hooks: scheduler, processes, accept queue. Uprobes are in `uprobe.rs`.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

use aya::Btf;
use aya::programs::{BtfTracePoint, ProgramError, TracePoint};

use super::feature::Feature;
use super::holder::{Held, close};
use super::load::Kernel;
use super::signal::{ACCEPT_DEPTH, ACCEPT_WAIT, Attach, Evaluated, RUN_QUEUE, Way};
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

/// By which ways the accept queues of all targets are watched, and why not where they are not.
pub struct AcceptHooks {
    /// The queue length at each enqueue.
    pub depth: Result<&'static Way, String>,
    /// When a connection was queued, and that it was accepted: all is attached but what is put into each target.
    pub wait: Result<&'static Way, String>,
}

/// What is seen of unix sockets: the kernel's functions that enqueue and accept are those of TCP.
#[derive(Clone, Copy, Debug, Default)]
pub struct UnixHooks {
    /// That a connection was queued, and the queue's length.
    pub arrivals: bool,
    /// That one was accepted.
    pub accepts: bool,
    /// By which way; empty where neither is seen.
    pub how: &'static str,
}

/// The program that sees threads and processes begin.
pub const FORKS: &str = "sched_process_fork";
/// The program that sees them end.
pub const EXITS: &str = "sched_process_exit";

const ACCEPT_SYSCALLS: [&str; 2] = ["syscalls/sys_exit_accept4", "syscalls/sys_exit_accept"];

/// The best way that can be attached. One that should work and does not is said, and the next one is tried.
fn best(
    signal: &Evaluated,
    mut attach: impl FnMut(&'static Way) -> Result<(), KernelError>,
) -> Result<&'static Way, String> {
    let mut failed = None;
    for way in signal.ways() {
        match attach(way) {
            Ok(()) => return Ok(way),
            Err(e) => {
                log::warn!("{} is not measured {}: {e}", signal.signal.name, way.how);
                failed.get_or_insert(e.to_string());
            }
        }
    }
    match failed {
        Some(why) => Err(why),
        None => signal.way(),
    }
}

impl Kernel {
    /// Attaches the hooks that concern every target.
    ///
    /// # Errors
    /// The kernel refuses one that follows processes or measures scheduling; those of the accept queue are optional.
    pub fn attach(&mut self) -> Result<AcceptHooks, KernelError> {
        let btf = Btf::from_sys_fs()?;
        self.signals
            .way(RUN_QUEUE)
            .map_err(|why| KernelError::System { what: "follow processes".into(), source: io::Error::other(why) })?;
        self.attach_sched(&btf)?;
        let (depth, wait) = (self.signals.get(ACCEPT_DEPTH).clone(), self.signals.get(ACCEPT_WAIT).clone());
        // Fentry tells both: where it can be had, that one program at each function does.
        let mut enqueued = false;
        let depth = best(&depth, |way| match way.attach {
            Attach::Fentry => self.attach_enqueue(&btf).inspect(|()| enqueued = true),
            Attach::BtfTracepoint => self.attach_btf(&btf, "sk_data_ready", "sk_data_ready"),
            _ => self.attach_enqueue_kprobes(),
        });
        let wait = best(&wait, |way| match way.attach {
            Attach::Fentry if !enqueued => Err(KernelError::Missing("program at the entry of functions")),
            Attach::Fentry => self.attach_accept_exit(&btf),
            _ => self.attach_state_changes(&btf),
        });
        let is = |way: &Result<&'static Way, String>, attach| way.as_ref().is_ok_and(|way| way.attach == attach);
        self.accepts_by_fentry = is(&wait, Attach::Fentry);
        self.unix = if self.accepts_by_fentry {
            self.attach_unix_functions(&btf)
        } else {
            let arrivals = is(&depth, Attach::BtfTracepoint);
            UnixHooks {
                arrivals,
                accepts: wait.is_ok(),
                how: if arrivals { "BTF tracepoint sk_data_ready" } else { "" },
            }
        };
        Ok(AcceptHooks { depth, wait })
    }

    /// What fentry tells of unix sockets: nothing, where the kernel's functions are others.
    fn attach_unix_functions(&mut self, btf: &Btf) -> UnixHooks {
        if !self.features.has(Feature::UnixFunctions) {
            return UnixHooks::default();
        }
        match self.attach_unix(btf) {
            Ok(()) => {
                UnixHooks { arrivals: true, accepts: true, how: "fentry of the functions that connect and accept" }
            }
            Err(e) => {
                log::warn!("accept queues of unix sockets are not measured: {e}");
                UnixHooks::default()
            }
        }
    }

    /// Attaches to changes of TCP sockets' states, once.
    pub(super) fn attach_state_changes(&mut self, btf: &Btf) -> Result<(), KernelError> {
        if !self.state_changes {
            self.attach_btf(btf, "inet_sock_set_state", "inet_sock_set_state")?;
            self.state_changes = true;
        }
        Ok(())
    }

    /// Attaches the hooks that follow processes and measure scheduling.
    ///
    /// # Errors
    /// The kernel refuses one of them.
    fn attach_sched(&mut self, btf: &Btf) -> Result<(), KernelError> {
        let switch = match (self.features.sched_switch_arity, self.features.has(Feature::UserRegisters)) {
            (_, false) => "sched_switch_without_registers",
            (Some(4), true) => "sched_switch_with_state",
            (_, true) => "sched_switch_without_state",
        };
        // Forks first, so that no thread is created unseen once scheduling is measured.
        for (program, tracepoint) in [
            (FORKS, "sched_process_fork"),
            ("sched_process_exec", "sched_process_exec"),
            (EXITS, "sched_process_exit"),
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

    /// How often each program was not run, since another run of it was on that CPU: where BPF programs can be preempted.
    /// Empty where the kernel does not tell.
    pub fn runs_missed(&self) -> Vec<(String, u64)> {
        let missed = self.ebpf.programs().filter_map(|(name, program)| {
            let missed = bpf::runs_missed(program.fd().ok()?.as_fd()).ok()??;
            Some((name.to_owned(), missed))
        });
        missed.collect()
    }

    /// The same of one program; 0 where the kernel does not tell.
    pub fn runs_missed_by(&self, program: &str) -> u64 {
        let program = self.ebpf.program(program).and_then(|program| program.fd().ok());
        program.and_then(|program| bpf::runs_missed(program.as_fd()).ok()?).unwrap_or_default()
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
            links.push(bpf::attach_perf_event(program, event, 0).map_err(system)?);
        }
        Ok(links)
    }
}
