//! The sockets on which a watched process listens, and what becomes of their connections: which of them are not seen, and whether
//! requests are measured. Never how they are counted.

use super::super::accept::Returns;
use super::super::request::{self, Connections, Hooks};
use super::{Slots, Watched};
use crate::kernel::attach::UnixHooks;
use crate::kernel::load::Kernel;
use crate::kernel::signal::ACCEPT_WAIT;
use crate::status::ProbeState;
use crate::target::listener::{ListenerError, Listeners, Namespaces, has_io_uring};

impl Watched {
    pub fn open_listeners(&mut self, namespaces: &mut Namespaces) {
        match Listeners::open(self.process.pid, namespaces) {
            Ok(listeners) => {
                self.listeners = Some(listeners);
                self.status.set("accept_queue", ProbeState::Attached, "by sock_diag at each scrape");
            }
            // A privilege that the user has not given is nothing that broke.
            Err(e @ ListenerError::Namespace { .. }) => {
                self.status.set("accept_queue", ProbeState::Unsupported, e.to_string());
            }
            Err(e) => self.status.set("accept_queue", ProbeState::Broken, e.to_string()),
        }
    }

    /// Attaches to accept where it is not: a program that listens on nothing pays nothing.
    pub fn attach_accept(&mut self, kernel: &mut Kernel, returns: &mut Returns) {
        if !self.running() || self.accept_tried {
            return;
        }
        match &returns.hooks.depth {
            Ok(way) => self.status.set("accept_depth", ProbeState::Attached, way.how),
            Err(why) => self.status.set("accept_depth", ProbeState::Unsupported, why),
        }
        self.accept_tried = true;
        match returns.attach(kernel, &self.process, &self.members()) {
            Ok((probed, how)) => {
                self.accepts = probed;
                self.status.set("accept_wait", ProbeState::Attached, how);
            }
            Err(why) => {
                let state =
                    if kernel.signals.way(ACCEPT_WAIT).is_ok() { ProbeState::Broken } else { ProbeState::Unsupported };
                self.status.set("accept_wait", state, why);
            }
        }
    }

    /// Looks at the listening sockets as they were at `since_ns` or later: new ones get a slot, closed ones give theirs back.
    pub fn refresh_listeners(&mut self, kernel: &mut Kernel, slots: &mut Slots, since_ns: u64) {
        if !self.running() {
            return;
        }
        let Some(listeners) = &mut self.listeners else { return };
        let sockets = match listeners.list(since_ns) {
            Ok(sockets) => sockets,
            // It is about to end: the kernel will say so.
            Err(_) if !self.process.is_running() => return,
            Err(e) => {
                self.status.set("accept_queue", ProbeState::Broken, e.to_string());
                return;
            }
        };
        let without_unix = listeners.without_unix().map(str::to_owned);
        for socket in &self.sockets {
            if !sockets.iter().any(|s| s.cookie == socket.cookie) {
                slots.release(kernel, socket.cookie);
            }
        }
        let mut without_slot = Vec::new();
        for socket in &sockets {
            match slots.assign(kernel, socket.cookie, socket.address.port()) {
                Ok(true) => {}
                Ok(false) => without_slot.push(&socket.address),
                Err(e) => self.status.set("accept_wait", ProbeState::Broken, e.to_string()),
            }
        }
        self.status.probes.retain(|row| row.probe != "accept_listeners");
        if let Some(first) = without_slot.first() {
            let (n, all) = (without_slot.len(), sockets.len());
            let why =
                format!("the connections of {n} of {all} listening sockets are not counted, as of {first}: 64 can be");
            self.status.set("accept_listeners", ProbeState::Broken, why);
        }
        self.sockets = sockets;
        self.look_for_unseen_accepts(kernel, slots);
        self.state_unix(without_unix, kernel.unix);
    }

    /// Measures connections and requests from now on, where that was asked for.
    pub fn follow_requests(&mut self, kernel: &mut Kernel, hooks: Option<&Hooks>) {
        let Some(hooks) = hooks else {
            for row in ["requests", "jobs"] {
                self.status.set(row, ProbeState::NotApplicable, "not asked for: see --requests");
            }
            return;
        };
        match hooks {
            Ok(()) => self.status.set("jobs", ProbeState::Attached, request::HOW_JOBS),
            Err((state, why)) => self.status.set("jobs", *state, why.clone()),
        }
        let (state, detail) = match (hooks, &mut self.listeners) {
            (Err((state, why)), _) => (*state, why.clone()),
            _ if !self.status.is_attached("accept_wait") => {
                (ProbeState::Broken, "its accepts are not seen: see `accept_wait`".to_owned())
            }
            (Ok(()), None) => (ProbeState::Broken, "its sockets cannot be listed: see `accept_queue`".to_owned()),
            (Ok(()), Some(listeners)) => {
                let pids: Vec<u32> = self.members.iter().copied().collect();
                match Connections::find(kernel, listeners, &pids, self.slot) {
                    Ok(connections) => {
                        self.connections = Some(connections);
                        (ProbeState::Attached, request::HOW.to_owned())
                    }
                    Err(why) => (ProbeState::Broken, why),
                }
            }
        };
        self.status.set("requests", state, detail);
    }

    /// Attaches to accepts by io_uring, where it has one.
    pub fn look_for_uring(&mut self, kernel: &mut Kernel, slots: &mut Slots) {
        if self.members.iter().any(|&pid| has_io_uring(pid)) {
            self.attach_uring(kernel, slots);
        }
    }

    fn attach_uring(&mut self, kernel: &mut Kernel, slots: &mut Slots) {
        match slots.attach_uring(kernel) {
            Ok(_) => self.status.set("accept_uring", ProbeState::Attached, kernel.how_uring_accepts()),
            Err(why) => self.status.set("accept_uring", ProbeState::Unsupported, why),
        }
    }

    /// Says how many connections it accepted in a way that is not seen.
    pub(super) fn look_for_unseen_accepts(&mut self, kernel: &mut Kernel, slots: &mut Slots) {
        if !self.status.is_attached("accept_depth") || !self.status.is_attached("accept_wait") {
            return;
        }
        let mut unseen = 0;
        for socket in &self.sockets {
            match slots.observe(kernel, socket.cookie, socket.length) {
                Ok(n) => unseen += n,
                Err(e) => log::warn!("{e}"),
            }
        }
        if unseen > 0 {
            let why = format!(
                "{unseen} connections left its accept queues and were not seen to be accepted: by io_uring, by a child in \
                 the first second after its fork, or by a process that is not watched; their waits are not measured"
            );
            self.status.set("accept_unseen", ProbeState::Broken, why);
            self.attach_uring(kernel, slots);
        }
    }

    /// Says what is known of its unix sockets, where it listens on some or they cannot be listed.
    pub(super) fn state_unix(&mut self, without: Option<String>, hooks: UnixHooks) {
        let (state, detail) = match without {
            Some(why) => (ProbeState::Broken, why),
            None if self.sockets.iter().all(|socket| socket.address.port().is_some()) => return,
            None if hooks.arrivals && hooks.accepts => {
                (ProbeState::Attached, format!("by sock_diag at each scrape, and {}", hooks.how))
            }
            None => {
                let why = "length and limit by sock_diag; no depths and no waits: they take fentry of functions that are known, or \
                           the tracepoint sk_data_ready (6.12 and later)";
                (ProbeState::Unsupported, why.to_owned())
            }
        };
        self.status.set("accept_unix", state, detail);
    }
}
