//! One run of the profiler: the kernel half, the targets, the table. Takes records in, gives snapshots out.
//! Never a socket to a user, never a command line.

mod accept;
mod admit;
mod builds;
mod calibration;
mod claim;
mod counted;
mod image;
mod kinds;
mod loops;
mod pauses;
mod probes;
mod records;
mod request;
mod runtime;
mod sample;
mod sites;
mod snapshot;
mod spending;
mod target;
mod targets;
mod threads;
mod throttle;
mod unfinished;
mod unseen;
mod walk;

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use profiler_common::event::{ProcessRecord, kind};

pub use admit::Watching;
use builds::Builds;
pub use claim::ClaimError;
use records::{Tally, take_stack, take_task, write_trace};
use runtime::{Runtime, Tasks};
use target::Watched;
use targets::Targets;
use walk::Walker;

use crate::budget::Budget;
use crate::budget::node::NodeAccount;
use crate::clock;
use crate::decode::{Record, decode, stack};
use crate::diagnosis::Diagnoses;
use crate::event::TaskEvent;
use crate::kernel::attach::Links;
use crate::kernel::clock::online_cpus;
use crate::kernel::load::{Kernel, Sizes};
use crate::kernel::ring::Ring;
use crate::kernel::signal::{Attach, Unwanted};
use crate::kernel::{self, KernelError};
use crate::model::snapshot::TargetSnapshot;
use crate::model::table::{Limits, Table};
use crate::runtime::FoundTask;
use crate::status::ProbeState;
use crate::target::listener::Namespaces;
use crate::target::process::{Process, ProcessError, require_init_pid_namespace};
use crate::trace::{Trace, TraceError};

/// Records that are taken at once, before anything else gets its turn.
const BATCH: usize = 1 << 16;
/// The ring is drained this often, and when the kernel half says that much is waiting: less often while no window is open,
/// which would have to be closed in time.
const DRAIN: Duration = Duration::from_millis(50);
const DRAIN_CALM: Duration = Duration::from_millis(100);
/// How often listening sockets and forked children are looked at.
const REFRESH_NS: u64 = 1_000_000_000;
/// How often it is looked on which CPUs targets may run, and whether one has ended that nobody reported.
const FOLLOW_NS: u64 = 5_000_000_000;
/// Looking for what is wrong takes one in so many seconds at most: with many targets it is looked less often.
const DIAGNOSES: u64 = 100;

/// What the user chose.
#[derive(Clone, Debug)]
pub struct Options {
    /// Processes to watch from the start.
    pub pids: Vec<u32>,
    /// Processes that may be added later, at the same time; where it is not 0, the kernel half looks for them.
    pub more: u32,
    /// Bytes of the ring buffer: a power of two.
    pub ring_bytes: u32,
    /// What the table may hold.
    pub limits: Limits,
    /// Measure connections and requests.
    pub requests: bool,
    /// Watch a process even when another profiler does.
    pub force: bool,
    /// Keep the capabilities that only attaching takes.
    pub keep_capabilities: bool,
    /// Ways that are not to be used, even where the kernel has them.
    pub without: Vec<Unwanted>,
    /// Attach poll probes to find parents, even where the thread-local context tells them.
    pub poll_stack: bool,
    /// What probing may cost each target.
    pub budget: Budget,
    /// What it may cost all together, of the node's CPU time.
    pub node_budget: Budget,
    /// Polls of at least this are reported one by one, nanoseconds.
    pub slow_poll_ns: u64,
    /// Where every birth, end, poll and wake is written to, and how many bytes at most.
    pub trace: Option<(PathBuf, u64)>,
}

/// Why a session cannot start.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The kernel refuses.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// A process cannot be watched.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// Another profiler watches it.
    #[error(transparent)]
    Claim(#[from] ClaimError),
    /// No trace can be written.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// All slots are taken, or rest before they are used again.
    #[error("{limit} processes are watched, and no more can be at the same time")]
    Full {
        /// How many there is room for.
        limit: u32,
    },
}

/// A running session. Dropped, nothing is left attached.
pub struct Session {
    kernel: Kernel,
    ring: Ring,
    accept: accept::Returns,
    /// The hooks of requests, or why there are none; `None` where nobody asked for them.
    requests: Option<request::Hooks>,
    clock: sample::Clock,
    diagnoses: Diagnoses,
    targets: Targets,
    builds: Builds,
    table: Table,
    tally: Tally,
    options: Options,
    tasks: Tasks,
    trace: Option<Trace>,
    /// Processes in which many probes were hit: what they cost is looked at before anything else.
    storms: Vec<u32>,
    refreshed_ns: u64,
    followed_ns: u64,
    gone_ns: u64,
    /// When the last snapshot was taken, and how long that took.
    looked_ns: (u64, u64),
    /// Forks that the kernel half was not told of, in any process, up to when they were looked for.
    forks_missed: u64,
    exits_missed: u64,
    listener_slots: accept::Slots,
    namespaces: Namespaces,
    /// What probing costs all targets together.
    node: NodeAccount,
    /// Targets that have ended and are not kept any more.
    retired: Vec<TargetSnapshot>,
}

impl Session {
    /// Checks everything that can be refused, loads the kernel half and attaches to all processes.
    ///
    /// # Errors
    /// Nothing is left attached.
    pub fn start(options: Options) -> Result<Session, SessionError> {
        let started = Instant::now();
        require_init_pid_namespace()?;
        hurry();
        // Before the processes are looked at: who lacks these lacks them for every process.
        kernel::require_permission()?;
        let processes: Vec<Process> = options.pids.iter().map(|&pid| Process::find(pid)).collect::<Result<_, _>>()?;
        let claims =
            processes.iter().map(|process| claim::claim(process, options.force)).collect::<Result<Vec<_>, _>>()?;
        for process in &processes {
            // Whether it may be looked into is known before anything is loaded.
            process.image()?;
        }
        let trace = options.trace.as_ref().map(|(path, limit)| Trace::create(path, *limit)).transpose()?;
        // One slot more than targets, for the calibration.
        let limit = processes.len() as u32 + options.more;
        let slots = limit + 1;
        let discovery = options.more > 0;
        let sizes = Sizes { targets: slots, ring_bytes: options.ring_bytes, requests: options.requests, discovery };
        let mut kernel = Kernel::load(sizes, &options.without)?;
        keep_heap_small();
        let mut tasks = Tasks {
            budget: options.budget,
            factor: 1.0,
            traps: calibration::traps(&mut kernel, slots - 1)?,
            poll_stack: options.poll_stack,
            slow_poll_ns: options.slow_poll_ns,
            trace: options.trace.is_some(),
            held: false,
        };
        let ring = kernel.ring()?;
        let hooks = kernel.attach()?;
        let requests = options.requests.then(|| request::attach(&mut kernel));
        tasks.traps.accept_traps = hooks.wait.as_ref().is_ok_and(|way| way.attach != Attach::Fentry);
        let clock = sample::Clock::new(&mut kernel);
        let node = NodeAccount::new(options.node_budget, online_cpus().len(), clock::monotonic_ns());
        let mut session = Session {
            node,
            kernel,
            ring,
            accept: accept::Returns::new(hooks),
            requests,
            clock,
            diagnoses: Diagnoses::default(),
            targets: Targets::new(limit),
            builds: Builds::default(),
            table: Table::new(options.limits),
            tally: Tally::default(),
            options,
            tasks,
            trace,
            storms: Vec::new(),
            refreshed_ns: 0,
            followed_ns: 0,
            gone_ns: 0,
            looked_ns: (0, 0),
            forks_missed: 0,
            exits_missed: 0,
            listener_slots: accept::Slots::default(),
            namespaces: Namespaces::default(),
            retired: Vec::new(),
        };
        for (process, claim) in processes.into_iter().zip(claims) {
            session.watch(process, claim)?;
        }
        session.follow_cpus(clock::monotonic_ns());
        trim_heap();
        let watched = session.targets.slots();
        watched.iter().for_each(|&slot| session.walk(slot, Walker::first));
        session.notice_gone(&watched);
        session.refreshed_ns = clock::monotonic_ns();
        trim_heap();
        if discovery {
            session.kernel.start_holder()?;
        }
        if !session.options.keep_capabilities {
            // A target may exec into a program of a runtime that none has now.
            session.kernel.load_uprobes(probes::programs().chain([accept::PROGRAM]));
            if let Err(e) = session.kernel.load_uring_accepts() {
                log::debug!("{e}");
            }
            session.kernel.give_up_capabilities()?;
        }
        log::info!("attached in {} ms", started.elapsed().as_millis());
        Ok(session)
    }

    /// Reads what a target's runtime keeps in memory. Tasks that are found there become known once all records were
    /// taken that may be older.
    fn walk(&mut self, slot: u32, how: impl FnOnce(&mut Walker, &mut dyn FnMut(&[FoundTask]))) {
        let Some((mut walker, image)) = self.targets.get_mut(slot).and_then(Watched::take_walker) else { return };
        let went_on = walker.goes_on();
        how(&mut walker, &mut |tasks| {
            while self.drain() {}
            let Some(table) = self.targets.get(slot).and_then(Watched::probed).map(Runtime::table_id) else { return };
            for found in tasks {
                self.table.apply(table, found.time_ns, TaskEvent::Found { task: found.task, kind: found.kind });
            }
        });
        if went_on && !walker.goes_on() {
            trim_heap();
        }
        if let Some(watched) = self.targets.get_mut(slot) {
            watched.put_walker(walker, image);
        }
    }

    /// A descriptor that becomes readable when the ring should be drained at once.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn ring_fd(&self) -> io::Result<OwnedFd> {
        self.ring.as_fd().try_clone_to_owned()
    }

    /// Takes what is in the ring, at most one batch; true when more may be there.
    pub fn drain(&mut self) -> bool {
        let Session { ring, table, tally, targets, storms, trace, .. } = self;
        let mut ended = None;
        let mut processes = Vec::new();
        let n = ring.drain(BATCH, |bytes| match decode(bytes) {
            _ if stack::is_stack(bytes) => take_stack(bytes, targets, tally),
            Ok(Record::Task(record)) => {
                if let Some(open) = trace.as_mut().filter(|_| ended.is_none()) {
                    ended = write_trace(open, &record, targets).err();
                }
                take_task(&record, targets, table, tally);
            }
            Ok(Record::Process(record)) if record.header.kind == kind::HIT_STORM => storms.push(record.header.pid),
            Ok(Record::Process(record)) => {
                // A fork is known at once: the child's first task may be the next record.
                if record.header.kind == kind::PROCESS_FORKED {
                    targets.forked(record.header.pid, record.other);
                }
                processes.push(record);
            }
            Ok(Record::Thread(record)) => {
                tally.threads_ended += 1;
                match targets.of_mut(record.header.pid) {
                    Some(watched) => watched.thread_ended(&record),
                    None => tally.foreign_process += 1,
                }
            }
            Ok(Record::Sample(sample)) => {
                tally.sampled += 1;
                tally.foreign_process += u64::from(!sample::take(&sample, targets, table));
            }
            Err(_) => tally.malformed += 1,
        });
        for record in processes {
            self.take_process(&record);
        }
        if let Some(why) = ended {
            log::warn!("{why}");
            self.end_trace();
        }
        if !self.storms.is_empty() {
            let slots = std::mem::take(&mut self.storms).into_iter().filter_map(|pid| self.targets.slot_of(pid));
            let slots: HashSet<u32> = slots.collect();
            self.balance(slots, clock::monotonic_ns());
        }
        n == BATCH
    }

    /// Nothing more is traced.
    fn end_trace(&mut self) {
        let Some(trace) = self.trace.take() else { return };
        self.tasks.trace = false;
        for watched in self.targets.iter_mut() {
            if let Err(e) = watched.stop_trace(&mut self.kernel) {
                log::warn!("{e}");
            }
        }
        let path = trace.path().display().to_string();
        match trace.finish() {
            Ok(events) => log::info!("the trace of {events} events is in `{path}`"),
            Err(e) => log::warn!("{e}"),
        }
    }

    fn take_process(&mut self, record: &ProcessRecord) {
        let pid = record.header.pid;
        let Some(watched) = self.targets.of_mut(pid) else {
            self.tally.foreign_process += 1;
            return;
        };
        match record.header.kind {
            kind::PROCESS_FORKED => {
                self.tally.forked += 1;
                watched.forked(record.other);
            }
            kind::PROCESS_EXECED => {
                self.tally.execed += 1;
                watched.forget_deferred(&mut self.kernel, pid);
                if pid == watched.process.pid {
                    let at = record.header.time_ns;
                    watched.execed(&mut self.kernel, &mut self.table, &mut self.builds, at, self.tasks);
                    watched.sample(&mut self.kernel, &mut self.table, &self.clock);
                    self.followed_ns = 0;
                } else {
                    // A child that runs another program is that program, and not the target. The kernel half knows, unless
                    // something was to be measured of it just now.
                    self.kernel.remove_target(pid);
                    watched.child_left(pid, &mut self.table, record.header.time_ns);
                    self.targets.forget(pid);
                }
            }
            kind::PROCESS_EXITED => {
                self.tally.exited += 1;
                self.process_ended(pid, record.header.time_ns);
            }
            _ => self.tally.malformed += 1,
        }
    }

    /// A process of a target has ended.
    fn process_ended(&mut self, pid: u32, time_ns: u64) {
        let Some(watched) = self.targets.of_mut(pid) else { return };
        watched.forget_deferred(&mut self.kernel, pid);
        self.tally.ended_unprobed += u64::from(watched.lacks_probes(pid));
        watched.exited(pid, &mut self.table, time_ns);
        self.targets.forget(pid);
        // The kernel half has taken its entry away, unless something was told of it between that and this.
        self.kernel.remove_target(pid);
    }

    /// Looks at what probing costs these targets, and switches what costs too much.
    fn balance(&mut self, slots: impl IntoIterator<Item = u32>, now_ns: u64) {
        let mut gone = Links::default();
        for slot in slots {
            let Some(watched) = self.targets.get_mut(slot) else { continue };
            gone.absorb(watched.balance(&mut self.kernel, &mut self.table, now_ns));
            self.node.spend(watched.take_spent_ns());
        }
        detach(gone);
    }

    /// Lets the clock tick on the CPUs on which a target may run, and on no others.
    fn follow_cpus(&mut self, now_ns: u64) {
        self.followed_ns = now_ns;
        let cpus = self.targets.iter_mut().flat_map(|watched| watched.cpus(now_ns)).collect();
        detach(self.clock.follow(&mut self.kernel, &cpus));
        if self.clock.state().0 != ProbeState::Attached {
            self.targets.iter_mut().for_each(|w| w.sample(&mut self.kernel, &mut self.table, &self.clock));
        }
    }

    /// What is due by the clock: the budget, listening sockets that came or went, forked children, retention.
    ///
    /// # Errors
    /// Nothing is measured any more.
    pub fn tick(&mut self) -> Result<(), SessionError> {
        let now = clock::monotonic_ns();
        self.table.advance(now);
        let mut due = self.targets.slots();
        due.retain(|&slot| self.targets.get(slot).is_some_and(|watched| watched.wants_balance(now)));
        self.balance(due, now);
        if let Some(factor) = self.node.observe(now) {
            self.tasks.factor = factor;
            self.targets.iter_mut().for_each(|watched| watched.set_factor(factor));
        }
        self.targets.iter_mut().for_each(|watched| watched.look_for_throttling(now));
        for slot in self.targets.slots() {
            if self.targets.get(slot).is_some_and(|watched| watched.wants_walk(now)) {
                self.walk(slot, Walker::later);
            }
        }
        let refresh = now.saturating_sub(self.refreshed_ns) >= REFRESH_NS;
        self.targets.iter_mut().for_each(|watched| watched.find_sites(&mut self.table, refresh));
        if !refresh {
            return Ok(());
        }
        self.kernel.check_probes()?;
        self.refreshed_ns = now;
        self.notice_unseen_forks()?;
        self.notice_unseen_exits(now)?;
        self.kernel.flush_log();
        for watched in self.targets.iter_mut() {
            watched.refresh_listeners(&mut self.kernel, &mut self.listener_slots, now);
            if watched.attach_awaited(&mut self.kernel, &mut self.table, &mut self.builds, self.tasks) {
                watched.sample(&mut self.kernel, &mut self.table, &self.clock);
            }
            watched.look_for_extension(&mut self.kernel, &mut self.builds, now);
            watched.adopt_children(&mut self.kernel);
            watched.collect_ended_loops(&mut self.kernel);
            watched.look_at_cgroups(now);
            watched.attach_accept(&mut self.kernel, &mut self.accept);
        }
        if now.saturating_sub(self.followed_ns) >= FOLLOW_NS {
            self.follow_cpus(now);
        }
        self.expire(now);
        // A scrape may just have done it.
        let (looked_ns, took_ns) = self.looked_ns;
        if self.diagnoses.is_due(now) && now.saturating_sub(looked_ns) >= took_ns.saturating_mul(DIAGNOSES) {
            self.snapshot_since(now);
        }
        Ok(())
    }

    /// When [`Session::tick`] should be called again.
    pub fn pause(&self) -> Duration {
        if self.targets.iter().any(Watched::has_windows) { DRAIN } else { DRAIN_CALM }
    }

    /// Whether any target still runs.
    pub fn any_running(&self) -> bool {
        self.targets.iter().any(|watched| watched.running())
    }

    /// Whether nothing is left to be exported of any target.
    pub fn all_expired(&self) -> bool {
        self.targets.iter().next().is_none()
    }

    /// Detaches everything, and says how long that took.
    pub fn stop(mut self) -> Duration {
        let started = Instant::now();
        while self.drain() {}
        self.end_trace();
        let mut links = self.accept.take_tracepoints();
        links.absorb(self.clock.take());
        for watched in self.targets.iter_mut() {
            links.absorb(watched.stop(&mut self.kernel));
        }
        drop(links);
        drop(self);
        started.elapsed()
    }
}

/// Where the machine is saturated, what costs the target too much is to be taken off at once: a thread that must wait for
/// its CPU meanwhile makes it cost more. Threads that are started from here on inherit it. It is no matter if it fails.
fn hurry() {
    const NICE: libc::c_int = -10;
    // SAFETY: plain numbers; 0 is this thread.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) };
}

/// Detaches in the background: closing a probe waits for every CPU to have left it.
fn detach(gone: Links) {
    if !gone.is_empty() {
        std::thread::spawn(move || drop(gone));
    }
}

/// Gives back what the start-up needed (symbol tables, kernel types) and no longer does.
fn trim_heap() {
    // SAFETY: no precondition.
    unsafe { libc::malloc_trim(0) };
}

/// Lets what is freed in large pieces go back to the kernel at once, however large the pieces were that were freed
/// before: the allocator would learn from those to keep it.
fn keep_heap_small() {
    // SAFETY: no precondition.
    unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, 128 * 1024) };
}
