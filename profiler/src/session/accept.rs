//! Accept queues of targets: which listening socket is counted in which slot of the kernel half, and how the kernel
//! half learns of accepts.

use std::collections::HashMap;

use crate::kernel::KernelError;
use crate::kernel::attach::{AcceptHooks, Links};
use crate::kernel::load::Kernel;
use crate::kernel::maps::LISTENER_SLOTS;
use crate::kernel::signal::{ACCEPT_WAIT, Attach};
use crate::kernel::uprobe::Site;
use crate::target::accept_site::{self, AcceptSites};
use crate::target::process::Process;

/// Slots in use, by the socket's cookie.
#[derive(Default)]
pub(super) struct Slots {
    by_cookie: HashMap<u64, Slot>,
    free: Vec<u32>,
    unused: u32,
}

struct Slot {
    number: u32,
    port: u16,
}

impl Slots {
    /// The slot of a socket.
    pub fn get(&self, cookie: u64) -> Option<u32> {
        Some(self.by_cookie.get(&cookie)?.number)
    }

    /// Gives a socket a slot, where one is left; one that has a slot keeps it. Returns whether it has one.
    ///
    /// # Errors
    /// The kernel half's maps cannot be written.
    pub fn assign(&mut self, kernel: &mut Kernel, cookie: u64, port: u16) -> Result<bool, KernelError> {
        if self.by_cookie.contains_key(&cookie) {
            return Ok(true);
        }
        let number = match self.free.pop() {
            Some(number) => {
                kernel.clear_listener(number)?;
                number
            }
            None if self.unused < LISTENER_SLOTS => {
                self.unused += 1;
                self.unused - 1
            }
            None => return Ok(false),
        };
        kernel.set_listener(cookie, port, number)?;
        self.by_cookie.insert(cookie, Slot { number, port });
        Ok(true)
    }

    /// Takes the slot of a socket that was closed.
    pub fn release(&mut self, kernel: &mut Kernel, cookie: u64) {
        let Some(slot) = self.by_cookie.remove(&cookie) else { return };
        kernel.remove_listener(cookie);
        if !self.by_cookie.values().any(|other| other.port == slot.port) {
            kernel.remove_port(slot.port);
        }
        self.free.push(slot.number);
    }
}

/// How accepts are seen: by probes in each target, else for the whole machine.
pub(super) struct Returns {
    /// The hooks that are the same for all targets.
    pub hooks: AcceptHooks,
    tracepoints: Option<Result<Links, String>>,
}

/// The probes of one process.
pub(super) struct Probed {
    sites: AcceptSites,
    links: Links,
}

impl Returns {
    pub fn new(hooks: AcceptHooks) -> Returns {
        Returns { hooks, tracepoints: None }
    }

    /// Attaches to one process, and says how.
    ///
    /// # Errors
    /// Why its accepts cannot be seen.
    pub fn attach(
        &mut self,
        kernel: &mut Kernel,
        process: &Process,
        pids: &[u32],
    ) -> Result<(Option<Probed>, String), String> {
        let way = self.hooks.wait.clone()?;
        if way.attach == Attach::Fentry {
            return Ok((None, way.how.to_owned()));
        }
        let signal = kernel.signals.get(ACCEPT_WAIT);
        let uprobes = signal.permits(Attach::UprobeMulti) || signal.permits(Attach::Uprobe);
        let tracepoint = signal.permits(Attach::Tracepoint);
        if let Some(sites) = accept_site::find(process).filter(|_| uprobes) {
            let mut probed = Probed { sites, links: Links::default() };
            for &pid in pids {
                probed.add(kernel, pid).map_err(|e| e.to_string())?;
            }
            let detail =
                format!("by {} uprobes behind accept in `{}`", probed.sites.offsets.len(), probed.sites.file.display());
            return Ok((Some(probed), detail));
        }
        if !tracepoint {
            return Err("this program has no C library whose accept could be probed, and no other way is there: see \
                        `profiler check`"
                .to_owned());
        }
        let attach = || kernel.attach_accept_tracepoints().map_err(|e| e.to_string());
        match self.tracepoints.get_or_insert_with(attach) {
            Ok(_) => Ok((
                None,
                "by tracepoint sys_exit_accept, since this program has no C library whose accept could be probed; \
                 that costs every system call on this machine some 80 ns"
                    .to_owned(),
            )),
            Err(why) => Err(why.clone()),
        }
    }

    /// Hands the machine-wide hooks over to be detached.
    pub fn take_tracepoints(&mut self) -> Links {
        self.tracepoints.take().and_then(Result::ok).unwrap_or_default()
    }
}

impl Probed {
    /// Attaches to another process that runs the same image.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn add(&mut self, kernel: &mut Kernel, pid: u32) -> Result<(), KernelError> {
        let sites: Vec<Site> = self.sites.offsets.iter().map(|&offset| Site { offset, cookie: 0 }).collect();
        let mechanism = kernel.few_uprobes();
        let links = kernel.attach_uprobes("accept_return", mechanism, &self.sites.file, &sites, Some(pid))?;
        self.links.absorb(links);
        Ok(())
    }

    /// Hands the probes over to be detached.
    pub fn take(self) -> Links {
        self.links
    }
}
