//! Accept queues of targets: which listening socket is counted in which slot of the kernel half, and how the kernel
//! half learns of accepts.

use std::collections::HashMap;

use crate::kernel::KernelError;
use crate::kernel::attach::{AcceptHooks, Links};
use crate::kernel::load::Kernel;
use crate::kernel::maps::LISTENER_SLOTS;
use crate::kernel::signal::{ACCEPT_WAIT, Attach};
use crate::kernel::uprobe::Site;
use crate::target::accept_site::{AcceptFinder, AcceptSites};
use crate::target::process::Process;

/// So many accepts of one socket may be on their way back to the program when its queue is looked at.
const ON_THEIR_WAY: i64 = 16;

/// Slots in use, by the socket's cookie.
#[derive(Default)]
pub(super) struct Slots {
    by_cookie: HashMap<u64, Slot>,
    /// The hooks of io_uring, once there is a reason for them.
    uring: Option<Result<Links, String>>,
    /// Connections of sockets that were closed, which nobody was seen to accept.
    unseen: u64,
    free: Vec<u32>,
    unused: u32,
}

struct Slot {
    number: u32,
    port: Option<u16>,
    unseen: Unseen,
}

/// Finds out how many connections left a queue that nobody was seen to accept.
#[derive(Default)]
struct Unseen {
    /// Connections that were queued and accepted until the last look.
    previous: Option<(i64, i64)>,
    /// What is to be taken off: those that were queued before accepts were seen.
    base: Option<i64>,
    /// How many there seemed to be at the last look.
    last: i64,
    /// How many there are at least.
    sure: i64,
}

impl Unseen {
    /// Takes what was counted, read after the queue was found to be `length` long. The counts move meanwhile, so that
    /// older ones or newer ones are taken, whichever leave less.
    fn observe(&mut self, queued: u64, accepted: u64, length: u32) {
        let (queued, accepted, length) = (queued as i64, accepted as i64, i64::from(length));
        let Some((queued_before, accepted_before)) = self.previous.replace((queued, accepted)) else { return };
        let Some(base) = self.base else {
            self.base = Some(queued - accepted_before - length);
            return;
        };
        let now = queued_before - accepted - length - base;
        self.sure = self.sure.max(now.min(self.last));
        self.last = now;
    }

    fn count(&self) -> u64 {
        if self.sure > ON_THEIR_WAY { self.sure as u64 } else { 0 }
    }
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
    pub fn assign(&mut self, kernel: &mut Kernel, cookie: u64, port: Option<u16>) -> Result<bool, KernelError> {
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
        self.by_cookie.insert(cookie, Slot { number, port, unseen: Unseen::default() });
        Ok(true)
    }

    /// Looks how many connections left a queue of `length` unseen, and says how many did so far.
    ///
    /// # Errors
    /// The kernel half's maps cannot be read.
    pub fn observe(&mut self, kernel: &mut Kernel, cookie: u64, length: u32) -> Result<u64, KernelError> {
        let Some(slot) = self.by_cookie.get_mut(&cookie) else { return Ok(0) };
        let stats = kernel.listener(slot.number)?;
        slot.unseen.observe(stats.queued, stats.accepted, length);
        Ok(slot.unseen.count())
    }

    /// Attaches to accepts by io_uring, for all processes of the machine, when there is a reason for it.
    pub fn attach_uring(&mut self, kernel: &mut Kernel) -> &Result<Links, String> {
        self.uring.get_or_insert_with(|| kernel.attach_uring_accepts().map_err(|e| e.to_string()))
    }

    /// Connections that nobody was seen to accept, of all sockets.
    pub fn unseen(&self) -> u64 {
        self.unseen + self.by_cookie.values().map(|slot| slot.unseen.count()).sum::<u64>()
    }

    /// Takes the slot of a socket that was closed.
    pub fn release(&mut self, kernel: &mut Kernel, cookie: u64) {
        let Some(slot) = self.by_cookie.remove(&cookie) else { return };
        kernel.remove_listener(cookie);
        if let Some(port) = slot.port
            && !self.by_cookie.values().any(|other| other.port == slot.port)
        {
            kernel.remove_port(port);
        }
        self.unseen += slot.unseen.count();
        self.free.push(slot.number);
    }
}

/// How accepts are seen: by probes in each target, else for the whole machine.
pub(super) struct Returns {
    /// The hooks that are the same for all targets.
    pub hooks: AcceptHooks,
    tracepoints: Option<Result<Links, String>>,
    finder: AcceptFinder,
}

/// The program behind accept in the C library.
pub(super) const PROGRAM: &str = "accept_return";

/// The probes of one process.
pub(super) struct Probed {
    sites: AcceptSites,
    links: Links,
}

impl Returns {
    pub fn new(hooks: AcceptHooks) -> Returns {
        Returns { hooks, tracepoints: None, finder: AcceptFinder::default() }
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
        if let Some(sites) = self.finder.find(process).filter(|_| uprobes) {
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
        let links = kernel.attach_uprobes(PROGRAM, mechanism, &self.sites.file, &sites, Some(pid))?;
        self.links.absorb(links);
        Ok(())
    }

    /// Hands the probes over to be detached.
    pub fn take(self) -> Links {
        self.links
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is said to be unseen after looks at (queued, accepted, length).
    fn check(looks: &[(u64, u64, u32)], unseen: u64) {
        let mut seen = Unseen::default();
        looks.iter().for_each(|&(queued, accepted, length)| seen.observe(queued, accepted, length));
        assert_eq!(seen.count(), unseen, "{looks:?}");
    }

    #[test]
    fn what_leaves_the_queue_and_is_not_accepted_is_unseen() {
        // 100 that were queued before accepts were seen, then 50 that are accepted, then 30 that only leave.
        check(&[(100, 0, 0), (100, 0, 0), (150, 40, 10), (150, 50, 0), (150, 50, 0)], 0);
        check(&[(100, 0, 0), (100, 0, 0), (150, 50, 0), (180, 50, 0), (180, 50, 0), (180, 50, 0)], 30);
    }

    #[test]
    fn what_waits_or_is_on_its_way_is_not() {
        check(&[(0, 0, 0), (0, 0, 0), (500, 0, 500), (500, 0, 500), (500, 0, 500)], 0);
        check(&[(0, 0, 0), (0, 0, 0), (500, 490, 0), (500, 490, 0), (500, 490, 0)], 0);
        // One look alone may have come in between.
        check(&[(0, 0, 0), (0, 0, 0), (500, 0, 500), (500, 400, 0), (500, 500, 0), (500, 500, 0)], 0);
    }
}
