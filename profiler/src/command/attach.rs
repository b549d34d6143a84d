//! `profiler attach`, `profiler run`, `profiler tree` and what `profiler agent` shares with them: one loop that takes records, answers scrapes and waits for the end.

use std::future::pending;
use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::io::unix::AsyncFd;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, interval_at, sleep};

use super::agent::Agent;
use crate::budget::Budget;
use crate::cli::{Exports, Measure, Otlp};
use crate::clock;
use crate::export::http::{self, Listener};
use crate::export::otlp::{self, Push};
use crate::export::protection::Protection;
use crate::export::{ExportError, SnapshotRequest, SnapshotSource, text, tree};
use crate::launch;
use crate::metrics::{self, Own};
use crate::model::snapshot::Snapshot;
use crate::model::table::Limits;
use crate::session::{Options, Session};

/// What `--print` measures when no time is given.
const PRINT_DURATION: Duration = Duration::from_secs(10);
/// Scrapes that may wait at the same time.
const WAITING_SCRAPES: usize = 16;

/// Attaches to running processes.
///
/// # Errors
/// It cannot start; then nothing was attached.
pub fn attach(pids: Vec<u32>, measure: &Measure, exports: &Exports) -> Result<ExitCode> {
    block_on(async {
        let endpoint = Endpoint::bind(measure, exports)?;
        let signals = Signals::catch()?;
        let session = Session::start(options(pids, measure))?;
        watch(session, endpoint, measure, signals, Whose::Named, View::Summary).await?;
        Ok(ExitCode::SUCCESS)
    })
}

/// Attaches to running processes, and prints who spawned whom in the end. Nothing is served.
///
/// # Errors
/// It cannot start; then nothing was attached.
pub fn tree(pids: Vec<u32>, measure: &Measure, json: bool) -> Result<ExitCode> {
    let measure = Measure { duration: measure.duration.or(Some(PRINT_DURATION)), print: true, ..measure.clone() };
    block_on(async {
        let endpoint = Endpoint::none();
        let signals = Signals::catch()?;
        let session = Session::start(options(pids, &measure))?;
        watch(session, endpoint, &measure, signals, Whose::Named, View::Tree { json }).await?;
        Ok(ExitCode::SUCCESS)
    })
}

/// Starts a program, attaches before its first instruction, and ends with it and with its exit status.
///
/// # Errors
/// It cannot start; then the program has not run.
pub fn run(command: &[std::ffi::OsString], measure: &Measure, exports: &Exports) -> Result<ExitCode> {
    block_on(async {
        let endpoint = Endpoint::bind(measure, exports)?;
        let signals = Signals::catch()?;
        let held = launch::hold(command)?;
        let pid = held.pid().context("the program is gone")?;
        let session = Session::start(options(vec![pid], measure))?;
        let mut child = held.release()?;
        watch(session, endpoint, measure, signals, Whose::Child, View::Summary).await?;
        let status = match child.try_wait().context("failed to wait for the program")? {
            Some(status) => status,
            // The measurement is over before the program is: it is ours to end.
            None => {
                child.kill().context("failed to end the program")?;
                child.wait().context("failed to wait for the program")?;
                return Ok(ExitCode::SUCCESS);
            }
        };
        Ok(status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
    })
}

pub(super) fn block_on(work: impl Future<Output = Result<ExitCode>>) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("failed to start the event loop")?.block_on(work)
}

pub(super) fn options(pids: Vec<u32>, measure: &Measure) -> Options {
    let mut unique = Vec::with_capacity(pids.len());
    for pid in pids {
        if !unique.contains(&pid) {
            unique.push(pid);
        }
    }
    Options {
        pids: unique,
        more: 0,
        ring_bytes: measure.ring_mib << 20,
        limits: Limits {
            tracked_tasks: measure.max_tasks as usize,
            retention_ns: u64::try_from(measure.retention.as_nanos()).unwrap_or(u64::MAX),
            minutes: usize::try_from(measure.minutes.as_secs().div_ceil(60)).unwrap_or(usize::MAX),
            epoch_offset_ns: (clock::epoch_offset_seconds().max(0.0) * 1e9) as u64,
            ..Limits::default()
        },
        force: measure.force,
        keep_capabilities: measure.keep_capabilities,
        requests: measure.requests,
        without: measure.without.clone(),
        poll_stack: measure.poll_stack,
        budget: measure.budget,
        node_budget: Budget::Off,
        trace: measure.trace.as_ref().map(|path| (path.clone(), measure.trace_limit << 20)),
        slow_poll_ns: u64::try_from(measure.slow_poll.as_nanos()).unwrap_or(u64::MAX),
    }
}

/// Where metrics go. They are served nowhere when a page is printed instead.
pub(super) struct Endpoint {
    listeners: Vec<Listener>,
    path: String,
    protection: Protection,
    push: Option<otlp::Settings>,
}

impl Endpoint {
    pub fn bind(measure: &Measure, exports: &Exports) -> Result<Endpoint> {
        let push = push_settings(&exports.otlp)?;
        if measure.print {
            return Ok(Endpoint { push, ..Endpoint::none() });
        }
        let web = &exports.web;
        let protection = web.config_file.clone().map_or_else(|| Ok(Protection::none()), Protection::read);
        let protection = protection.map_err(ExportError::from)?;
        let listeners = web.listen_addresses.iter().map(|&address| http::bind(address)).collect::<Result<_, _>>()?;
        Ok(Endpoint { listeners, path: web.telemetry_path.clone(), protection, push })
    }

    fn none() -> Endpoint {
        Endpoint { listeners: Vec::new(), path: String::new(), protection: Protection::none(), push: None }
    }
}

/// Where metrics are pushed to; `None` where nobody asks for that.
fn push_settings(flags: &Otlp) -> Result<Option<otlp::Settings>> {
    let Some(endpoint) = &flags.endpoint else { return Ok(None) };
    let asked = otlp::Asked {
        endpoint: endpoint.clone(),
        protocol: flags.protocol,
        interval: flags.interval,
        headers_file: flags.headers_file.clone(),
        ca_file: flags.ca_file.clone(),
    };
    let settings = otlp::Settings::new(&asked, |name| std::env::var(name).ok());
    Ok(Some(settings.map_err(ExportError::Push)?))
}

/// The signals that end a measurement. Caught before anything is attached: one that comes meanwhile detaches, too.
pub(super) struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    pub fn catch() -> Result<Signals> {
        Ok(Signals {
            interrupt: signal(SignalKind::interrupt()).context("failed to catch SIGINT")?,
            terminate: signal(SignalKind::terminate()).context("failed to catch SIGTERM")?,
        })
    }

    async fn recv(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// The ways out that are under way, and the snapshots that they ask for.
struct Ways {
    requests: mpsc::Receiver<SnapshotRequest>,
    server: Option<Server>,
    push: Option<Push>,
}

impl Ways {
    fn start(mut endpoint: Endpoint) -> Ways {
        let (source, requests) = SnapshotSource::channel(WAITING_SCRAPES);
        let push = endpoint.push.take().map(|settings| {
            log::info!("pushing to {} every {:?}", settings.uri, settings.interval);
            let figures = otlp::Figures::default();
            (otlp::start(settings, source.clone(), figures.clone()), figures)
        });
        let (push, figures) = push.unzip();
        Ways { requests, server: serve(endpoint, source, figures), push }
    }

    /// The next that asks for a snapshot; never, where nobody does.
    async fn next(&mut self) -> SnapshotRequest {
        match self.requests.recv().await {
            Some(request) => request,
            None => pending().await,
        }
    }

    /// Ends them all. `last` is what is pushed in the end.
    async fn finish(self, last: Option<Arc<Snapshot>>) -> Result<()> {
        drop(self.requests);
        if let (Some(push), Some(last)) = (self.push, last) {
            push.finish(last).await;
        }
        if let Some(server) = self.server {
            let _ = server.stop.send(());
            server.task.await.context("the server panicked")??;
        }
        Ok(())
    }
}

/// The server, and how to end it.
struct Server {
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<(), ExportError>>,
}

fn serve(endpoint: Endpoint, source: SnapshotSource, push: Option<otlp::Figures>) -> Option<Server> {
    if endpoint.listeners.is_empty() {
        return None;
    }
    let scheme = if endpoint.protection.current().tls.is_some() { "https" } else { "http" };
    for listener in &endpoint.listeners {
        log::info!("serving {scheme}://{}{}", listener.address(), endpoint.path);
    }
    let (stop, stopped) = oneshot::channel();
    let Endpoint { listeners, path, protection, .. } = endpoint;
    let task = tokio::spawn(async move {
        http::serve(listeners, &path, source, protection, push, async {
            let _ = stopped.await;
        })
        .await
    });
    Some(Server { stop, task })
}

/// Whose processes are watched, which says when it is over.
pub(super) enum Whose {
    /// Those that were named.
    Named,
    /// A program that was started for it.
    Child,
    /// Those of this node, as they come and go.
    Node(Box<Agent>),
}

impl Whose {
    /// The snapshot that is exported.
    fn fill(&mut self, mut snapshot: Snapshot, session: &mut Session) -> Snapshot {
        if let Whose::Node(agent) = self {
            agent.fill(&mut snapshot, session);
        }
        snapshot
    }

    /// Waits until the rules are to be read again.
    async fn hangup(&mut self) {
        match self {
            Whose::Node(agent) => agent.hangup().await,
            _ => pending().await,
        }
    }

    fn reload(&mut self, session: &mut Session) {
        if let Whose::Node(agent) = self {
            agent.reload(session);
        }
    }

    /// Looks for processes. Returns when to do so again.
    fn look(&mut self, session: &mut Session) -> Result<Duration> {
        match self {
            Whose::Node(agent) => agent.step(session),
            _ => Ok(Duration::MAX),
        }
    }
}

pub(super) async fn watch(
    mut session: Session,
    endpoint: Endpoint,
    measure: &Measure,
    mut signals: Signals,
    mut whose: Whose,
    view: View,
) -> Result<()> {
    let mut ways = Ways::start(endpoint);
    let ring = session.ring_fd().context("failed to watch the ring")?;
    // SAFETY: the descriptor is owned, and stays open and the same for as long as it is registered.
    let ring = unsafe { AsyncFd::register(ring) }.context("failed to watch the ring")?;
    let drain = sleep(Duration::ZERO);
    tokio::pin!(drain);
    let mut shown = measure.watch.map(|every| interval_at(Instant::now() + every, every));
    let duration = measure.duration.or_else(|| measure.print.then_some(PRINT_DURATION));
    let end = async {
        match duration {
            Some(duration) => sleep(duration).await,
            None => pending().await,
        }
    };
    tokio::pin!(end);
    let look = sleep(Duration::ZERO);
    tokio::pin!(look);
    loop {
        tokio::select! {
            biased;
            () = signals.recv() => break,
            () = &mut end => break,
            request = ways.next() => {
                // Whoever asked may have hung up.
                let snapshot = session.snapshot();
                let _ = request.send(Arc::new(whose.fill(snapshot, &mut session)));
            }
            _ = tick(&mut shown) => show(&mut session, view),
            () = whose.hangup() => whose.reload(&mut session),
            ready = ring.readable() => {
                if session.drain() {
                    // More is there: scrapes and signals get their turn first.
                    tokio::task::yield_now().await;
                } else if let Ok(mut ready) = ready {
                    ready.clear_ready();
                }
            }
            () = &mut drain => {
                while session.drain() {
                    tokio::task::yield_now().await;
                }
                session.tick()?;
                drain.as_mut().reset(Instant::now() + session.pause());
                if matches!(whose, Whose::Node(_)) {
                    continue;
                }
                if !session.any_running() && (matches!(whose, Whose::Child) || ways.server.is_none()) {
                    break;
                }
                if !session.any_running() && measure.duration.is_none() && session.all_expired() {
                    log::info!("all processes have ended and their series have been kept for the retention time");
                    break;
                }
            }
            () = &mut look, if matches!(whose, Whose::Node(_)) => {
                let pause = whose.look(&mut session)?;
                look.as_mut().reset(Instant::now() + pause);
            }
        }
    }
    let last = (measure.print || ways.push.is_some()).then(|| {
        let snapshot = session.last_snapshot();
        Arc::new(whose.fill(snapshot, &mut session))
    });
    if let Some(last) = last.as_ref().filter(|_| measure.print) {
        let page = view.last(Arc::clone(last))?;
        std::io::stdout().write_all(page.as_bytes()).context("failed to print what was measured")?;
    }
    let took = session.stop();
    log::info!("detached in {} ms", took.as_millis());
    ways.finish(last).await
}

async fn tick(shown: &mut Option<tokio::time::Interval>) {
    match shown {
        Some(shown) => {
            shown.tick().await;
        }
        None => pending().await,
    }
}

/// What is printed of a snapshot.
#[derive(Clone, Copy)]
pub(super) enum View {
    /// A summary as it goes, and the page of metrics in the end.
    Summary,
    /// Who spawned whom.
    Tree {
        /// For programs.
        json: bool,
    },
}

impl View {
    /// What is printed in the end.
    fn last(self, snapshot: Arc<Snapshot>) -> Result<String> {
        Ok(match self {
            View::Summary => metrics::page(snapshot, Own::read(None))?,
            View::Tree { json: true } => format!("{}\n", tree::document(&snapshot)),
            View::Tree { json: false } => tree::render(&snapshot),
        })
    }
}

fn show(session: &mut Session, view: View) {
    let mut out = std::io::stdout().lock();
    let snapshot = session.snapshot();
    let text = match view {
        View::Summary => text::render(&snapshot, out.is_terminal()),
        View::Tree { json: true } => tree::document(&snapshot).to_string(),
        View::Tree { json: false } => tree::render(&snapshot),
    };
    // A reader that went away is no reason to stop measuring.
    let _ = writeln!(out, "{text}");
}
