//! `profiler agent`: finds the processes of a node, at the start and as they come, and lets those go that are no longer wanted.
//! Never which are: that is the rules'.

use std::collections::{HashSet, VecDeque};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::attach::{Endpoint, Signals, View, Whose, block_on, options, watch};
use super::names::PodBook;
use crate::cli::{Discover, Exports, Measure};
use crate::clock;
use crate::discovery::file;
use crate::discovery::pace::{Pace, Rush};
use crate::discovery::rules::{Decision, Facts, Rules};
use crate::kernel::slots;
use crate::model::groups::{Bounds, Groups};
use crate::model::snapshot::{ConfigSnapshot, DiscoverySnapshot, FailedSnapshot, Snapshot};
use crate::runtime::RUNTIMES;
use crate::session::{Options, Session, SessionError, Watching};
use crate::target::identity::{self, Identity};
use crate::target::process::{self, FileId, Image, Process, ProcessError};

/// How often the kernel half is asked for processes that have begun.
const ASK: Duration = Duration::from_millis(250);
/// The shortest rest: timers do not know a shorter one.
const REST: Duration = Duration::from_millis(1);
/// Processes are looked at, and attached to, for so long without a rest, nanoseconds.
const SLICE_NS: u64 = 30_000_000;
/// Processes that could not be watched and are said to be.
const SAID: u64 = 8;
/// Processes that could not be watched and are remembered.
const FAILED: usize = 64;

/// Watches the processes of this node.
///
/// # Errors
/// It cannot start, or the file of the rules is bad; then nothing was attached.
pub fn agent(discover: &Discover, measure: &Measure, exports: &Exports) -> Result<ExitCode> {
    block_on(async {
        let more = match discover.max_targets {
            Some(targets) => targets,
            None => room(measure.requests)?,
        };
        let options = Options { more, node_budget: discover.node_budget, ..options(Vec::new(), measure) };
        let mut agent = Agent::new(discover, options.limits.retention_ns).await?;
        let endpoint = Endpoint::bind(measure, exports)?;
        let signals = Signals::catch()?;
        let session = Session::start(options)?;
        // Not before: its thread would keep privileges that the session drops.
        agent.pods.as_mut().map_or(Ok(()), PodBook::keep)?;
        watch(session, endpoint, measure, signals, Whose::Node(Box::new(agent)), View::Summary).await?;
        Ok(ExitCode::SUCCESS)
    })
}

/// For how many targets there is room where nobody says for how many.
fn room(requests: bool) -> Result<u32> {
    let (targets, cpus) = slots::room(requests)?;
    if targets < slots::MOST {
        log::info!("room for {targets} processes, whose counts take memory on {cpus} CPUs: --max-targets gives more");
    }
    Ok(targets)
}

/// What became of processes that were looked at.
#[derive(Clone, Copy)]
enum Verdict {
    Watched,
    Excluded,
    Gone,
    Failed,
    NoRoom,
}

/// Labels of verdicts, in their order.
const VERDICTS: [&str; 5] = ["watched", "excluded", "gone", "failed", "no_room"];

/// The file of the rules.
struct Config {
    path: PathBuf,
    state: ConfigSnapshot,
}

/// Finds processes.
pub(super) struct Agent {
    rules: Rules,
    config: Option<Config>,
    pace: Pace,
    rush: Rush,
    settle_ns: u64,
    hangup: Signal,
    /// This program, which is never watched.
    own: FileId,
    waiting: VecDeque<u32>,
    /// Whether somebody found no room.
    crowded: bool,
    looked_at: [u64; VERDICTS.len()],
    failed: VecDeque<FailedSnapshot>,
    /// Targets that share their series.
    groups: Groups,
    /// Names of pods; `None` where nobody is asked for them.
    pods: Option<PodBook>,
}

impl Agent {
    async fn new(discover: &Discover, retention_ns: u64) -> Result<Agent> {
        let pods = PodBook::new(&discover.kubernetes).await?;
        let (rules, config) = match &discover.config {
            None => (Rules::of_any_node(), None),
            Some(path) => {
                let state = ConfigSnapshot { loaded_seconds: seconds_since_epoch(), refusal: None };
                (file::read(path, &runtimes(), pods.is_some())?, Some(Config { path: path.clone(), state }))
            }
        };
        Ok(Agent {
            rules,
            config,
            pace: Pace::new(discover.attach_rate),
            rush: Rush::default(),
            settle_ns: u64::try_from(discover.settle.as_nanos()).unwrap_or(u64::MAX),
            hangup: signal(SignalKind::hangup()).context("failed to catch SIGHUP")?,
            own: Process::find(std::process::id())?.image()?.file_id,
            // Whoever begins from now on is in the kernel half's map.
            waiting: VecDeque::new(),
            crowded: true,
            looked_at: [0; VERDICTS.len()],
            failed: VecDeque::new(),
            groups: Groups::new(Bounds { retention_ns, ..Bounds::default() }),
            pods,
        })
    }

    /// Waits until the rules are to be read again.
    pub async fn hangup(&mut self) {
        self.hangup.recv().await;
    }

    /// Looks at processes for a moment, and says when to go on.
    pub fn step(&mut self, session: &mut Session) -> Result<Duration> {
        self.keep_retired(session);
        self.waiting.extend(session.take_grown(self.settle_ns)?);
        if self.crowded && session.has_room() {
            // At the start, too: those that are there already were not seen to begin.
            self.crowded = false;
            self.find_all();
        }
        let began_ns = clock::monotonic_ns();
        if let Some(pods) = &mut self.pods {
            let again = pods.again(began_ns, self.rules.ask_for_names());
            if !again.is_empty() {
                let known: HashSet<u32> = self.waiting.iter().copied().collect();
                self.waiting.extend(again.into_iter().filter(|pid| !known.contains(pid)));
            }
        }
        session.hold_windows(self.rush.is_on(self.waiting.len(), began_ns));
        if self.pace.is_ready(began_ns) {
            let (mut now_ns, mut attached) = (began_ns, 0);
            while now_ns - began_ns < SLICE_NS {
                let Some(pid) = self.waiting.pop_front() else { break };
                let verdict = self.look(session, pid);
                attached += u32::from(matches!(verdict, Some(Verdict::Watched)));
                if let Some(verdict) = verdict {
                    self.looked_at[verdict as usize] += 1;
                }
                now_ns = clock::monotonic_ns();
            }
            self.pace.done(began_ns, now_ns, attached);
            self.rush.attached(attached);
        }
        if self.waiting.is_empty() {
            return Ok(ASK);
        }
        Ok(Duration::from_nanos(self.pace.next_ns().saturating_sub(clock::monotonic_ns())).max(REST))
    }

    /// All processes are to be looked at.
    fn find_all(&mut self) {
        self.waiting = process::all().into();
    }

    /// Looks at one process; `None` where there is nothing to decide.
    fn look(&mut self, session: &mut Session, pid: u32) -> Option<Verdict> {
        let known = session.watches(pid);
        if known == Watching::AsChild {
            return None;
        }
        let (process, image, mut facts) = match facts(pid) {
            Ok(found) => found,
            Err(ProcessError::KernelThread { .. } | ProcessError::NotALeader { .. }) => return None,
            Err(ProcessError::NoSuchProcess { .. }) => {
                self.pods.iter_mut().for_each(|pods| pods.forget(pid));
                return Some(Verdict::Gone);
            }
            Err(e) => return Some(self.fail(pid, &process::comm(pid).unwrap_or_default(), &e)),
        };
        if image.file_id == self.own {
            return None;
        }
        let runtime = || session.runtime_of(&image);
        let decision = match &mut self.pods {
            Some(pods) => pods.decide(pid, &mut facts, clock::monotonic_ns(), &self.rules, runtime),
            None => self.rules.decide(&facts, runtime),
        };
        let wanted = match decision {
            Decision::Include => true,
            Decision::Exclude => false,
            // It stays as it is, and is looked at again.
            Decision::Undecided => return None,
        };
        match (wanted, known) {
            (true, Watching::Not) => Some(match session.add(pid) {
                Ok(()) => Verdict::Watched,
                Err(SessionError::Full { .. }) => {
                    self.crowded = true;
                    Verdict::NoRoom
                }
                Err(SessionError::Process(ProcessError::NoSuchProcess { .. })) => Verdict::Gone,
                Err(e) => self.fail(pid, &process.comm, &e),
            }),
            (true, _) => None,
            (false, Watching::Not) => Some(Verdict::Excluded),
            (false, _) => {
                session.let_go(pid);
                Some(Verdict::Excluded)
            }
        }
    }

    fn fail(&mut self, pid: u32, comm: &str, why: &dyn std::error::Error) -> Verdict {
        // Where a privilege is missing it is the same for all: the first ones are said, and /status has the last ones.
        let level = if self.looked_at[Verdict::Failed as usize] < SAID { log::Level::Warn } else { log::Level::Debug };
        log::log!(level, "process {pid} ({comm}) is not watched: {why}");
        if self.failed.len() == FAILED {
            self.failed.pop_front();
        }
        self.failed.push_back(FailedSnapshot { pid, process: comm.to_owned(), why: why.to_string() });
        Verdict::Failed
    }

    /// Reads the rules again. A bad file changes nothing.
    pub fn reload(&mut self, session: &mut Session) {
        let Some(config) = &mut self.config else {
            log::info!("no file of rules was given: there is nothing to be read again");
            return;
        };
        let rules = match file::read(&config.path, &runtimes(), self.pods.is_some()) {
            Ok(rules) => rules,
            Err(e) => {
                log::error!("the rules are as before: {e}");
                config.state.refusal = Some(e.to_string());
                return;
            }
        };
        config.state = ConfigSnapshot { loaded_seconds: seconds_since_epoch(), refusal: None };
        let changes = rules.changes(&self.rules);
        log::info!("read `{}` again: {} rules, {} changes", config.path.display(), rules.len(), changes.len());
        changes.iter().for_each(|change| log::info!("changed: {change}"));
        self.rules = rules;
        // First those that are watched: their slots may be needed.
        self.waiting = session.watched().into();
        self.waiting.extend(process::all().into_iter().filter(|&pid| session.watches(pid) == Watching::Not));
    }

    /// Adds what is exported of it, and of targets that have ended.
    pub fn fill(&mut self, snapshot: &mut Snapshot, session: &mut Session) {
        self.keep_retired(session);
        if let Some(pods) = &mut self.pods {
            pods.name(&mut snapshot.targets, snapshot.time_ns);
        }
        self.groups.advance(&snapshot.targets, snapshot.time_ns);
        snapshot.groups = Some(self.groups.snapshot());
        snapshot.profiler.discovery = Some(self.snapshot(session));
    }

    /// What ended targets have counted stays with their groups.
    fn keep_retired(&mut self, session: &mut Session) {
        let now_ns = clock::monotonic_ns();
        for mut target in session.take_retired() {
            self.pods.iter().for_each(|pods| _ = pods.name_one(&mut target.identity));
            self.groups.retire(target, now_ns);
        }
    }

    fn snapshot(&self, session: &Session) -> DiscoverySnapshot {
        DiscoverySnapshot {
            looked_at: VERDICTS.into_iter().zip(self.looked_at).collect(),
            waiting: self.waiting.len() as u64,
            watched: session.watched().len() as u64,
            limit: u64::from(session.limit()),
            config: self.config.as_ref().map(|config| config.state.clone()),
            failed: self.failed.iter().cloned().collect(),
            turned_away: self.groups.turned_away(),
            cluster: self.pods.as_ref().map(PodBook::snapshot),
        }
    }
}

/// What the rules look at.
fn facts(pid: u32) -> Result<(Process, Image, Facts), ProcessError> {
    let process = Process::find(pid)?;
    let image = process.image()?;
    let executable = process.executable()?;
    let lines = identity::cgroup_lines(pid).ok_or(ProcessError::NoSuchProcess { pid })?;
    let facts = Facts {
        executable,
        command: process.comm.clone(),
        cgroups: identity::cgroup_paths(&lines),
        identity: Identity::parse(&lines),
        ..Facts::default()
    };
    Ok((process, image, facts))
}

fn runtimes() -> Vec<&'static str> {
    RUNTIMES.iter().map(|runtime| runtime.name()).collect()
}

fn seconds_since_epoch() -> f64 {
    clock::epoch_offset_seconds() + clock::monotonic_ns() as f64 / 1e9
}
