//! The two tasks that push: one takes a snapshot at each interval and queues it, the other sends what is queued, and again what
//! was not taken. Neither waits for the other, and the measuring loop for none of them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use prometheus::core::Collector as _;
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep, timeout};

use super::convert::{Starts, requests, resources};
use super::queue::{Batch, Queue};
use super::settings::Settings;
use super::transport::{Outcome, Transport};
use crate::export::SnapshotSource;
use crate::metrics::own::PushFigures;
use crate::metrics::{Own, SnapshotCollector};
use crate::model::snapshot::Snapshot;
use crate::remote::Backoff;

/// The largest request, bytes: collectors take 4 MiB by gRPC.
const REQUEST: usize = 3 << 20;
/// What may wait to be sent, bytes.
const WAITING: usize = 16 << 20;
/// After failures. A collector may not ask for a longer pause, either.
const BACKOFF: Backoff = Backoff { first: Duration::from_secs(1), longest: Duration::from_secs(60) };
/// What is left to be sent at the end has so long.
const END: Duration = Duration::from_secs(3);

/// What pushing has come to, shared with the pages.
#[derive(Clone, Debug, Default)]
pub struct Figures(Arc<Mutex<PushFigures>>);

impl Figures {
    /// As they are now.
    pub fn read(&self) -> PushFigures {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, PushFigures> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn drop_points(&self, reason: &'static str, points: u64) {
        *self.lock().dropped.entry(reason).or_default() += points;
    }
}

/// Pushing that is under way.
pub struct Push {
    end: oneshot::Sender<Arc<Snapshot>>,
    task: JoinHandle<()>,
}

impl Push {
    /// Sends one more snapshot, the last, and what waits: as much as can be sent in a moment.
    pub async fn finish(self, last: Arc<Snapshot>) {
        if self.end.send(last).is_ok() {
            let _ = self.task.await;
        }
    }
}

/// What both tasks share.
struct Shared {
    queue: Mutex<Queue>,
    news: Notify,
    /// Whether one is on its way.
    is_sending: AtomicBool,
    /// None waits, and none is on its way.
    idle: Notify,
    /// The end has come: what may be taken later will not be.
    is_ending: AtomicBool,
    ending: Notify,
    figures: Figures,
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the queue, and counts what it drops.
    fn change(&self, change: impl FnOnce(&mut Queue) -> u64) {
        let (dropped, bytes) = {
            let mut queue = self.queue();
            (change(&mut queue), queue.bytes())
        };
        if dropped > 0 {
            self.figures.drop_points("queue_full", dropped);
        }
        self.figures.lock().queue_bytes = bytes as u64;
    }
}

/// Pushes from now on.
pub fn start(settings: Settings, source: SnapshotSource, figures: Figures) -> Push {
    let (end, ended) = oneshot::channel();
    let shared = Arc::new(Shared {
        queue: Mutex::new(Queue::new(WAITING)),
        news: Notify::new(),
        is_sending: AtomicBool::new(false),
        idle: Notify::new(),
        is_ending: AtomicBool::new(false),
        ending: Notify::new(),
        figures,
    });
    let task = tokio::spawn(take(settings, source, shared, ended));
    Push { end, task }
}

/// Takes snapshots until the end, and sees to it that they are sent.
async fn take(
    settings: Settings,
    source: SnapshotSource,
    shared: Arc<Shared>,
    mut ended: oneshot::Receiver<Arc<Snapshot>>,
) {
    let attributes = settings.attributes.clone();
    let mut ticks = interval_at(Instant::now() + settings.interval, settings.interval);
    // After a delay there is one snapshot, and not all those that were missed.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let transport = Transport::new(settings);
    let mut sending = Box::pin(send_all(&transport, &shared));
    let mut starts = Starts::since(start_ns());
    let mut add = |snapshot: Arc<Snapshot>, shared: &Shared| {
        let now_ns = (snapshot.epoch_offset_seconds.max(0.0) * 1e9) as u64 + snapshot.time_ns;
        let mut own = Own::read(None);
        own.push = Some(shared.figures.read());
        let families = SnapshotCollector::new(snapshot, own).collect();
        for encoded in requests(resources(&families, now_ns, &mut starts, &attributes), REQUEST) {
            shared.change(|queue| queue.push(encoded));
        }
        shared.news.notify_one();
    };
    let last = loop {
        tokio::select! {
            last = &mut ended => break last,
            _ = ticks.tick() => match source.snapshot().await {
                Ok(snapshot) => add(snapshot, &shared),
                Err(e) => log::debug!("nothing was pushed: {e}"),
            },
            () = &mut sending => {}
        }
    };
    // Whoever ends without a word has no last snapshot.
    let Ok(last) = last else { return };
    add(last, &shared);
    shared.is_ending.store(true, Ordering::Relaxed);
    shared.ending.notify_one();
    let all_sent = async {
        // It may have been idle before the last snapshot came.
        while shared.is_sending.load(Ordering::Relaxed) || shared.queue().bytes() > 0 {
            shared.idle.notified().await;
        }
    };
    tokio::select! {
        () = &mut sending => {}
        _ = timeout(END, all_sent) => {}
    }
    drop(sending);
    // What was on its way when the time was over is there again.
    while let Some(batch) = { shared.queue().pop() } {
        shared.figures.drop_points("end", batch.points);
    }
    let mut figures = shared.figures.lock();
    figures.queue_bytes = 0;
    if let Some(lost) = figures.dropped.get("end") {
        log::warn!("{lost} data points could not be pushed before the end");
    }
}

/// When this process began, nanoseconds since the epoch: nothing was counted before.
fn start_ns() -> u64 {
    Own::read(None).start_seconds().map_or(0, |seconds| (seconds * 1e9) as u64)
}

/// Sends what is queued, for ever.
async fn send_all(transport: &Transport, shared: &Shared) {
    let mut failures = 0;
    loop {
        let Some(mut held) = Held::take(shared) else {
            shared.idle.notify_one();
            shared.news.notified().await;
            continue;
        };
        let outcome = transport.send(held.bytes()).await;
        let pause = match &outcome {
            Outcome::Later { after, .. } => Some(pause(failures, *after)),
            _ => None,
        };
        failures = if pause.is_some() { failures + 1 } else { 0 };
        if let Some(batch) = held.batch.take() {
            note(shared, batch, outcome);
        }
        drop(held);
        if let Some(pause) = pause {
            tokio::select! {
                () = sleep(pause) => {}
                () = shared.ending.notified() => {}
            }
        }
    }
}

/// A request that is being sent. Given up in the middle, it waits again, so that an end does not lose it.
struct Held<'a> {
    shared: &'a Shared,
    batch: Option<Batch>,
}

impl<'a> Held<'a> {
    /// The oldest that waits.
    fn take(shared: &'a Shared) -> Option<Held<'a>> {
        let batch = shared.queue().pop()?;
        shared.is_sending.store(true, Ordering::Relaxed);
        Some(Held { shared, batch: Some(batch) })
    }

    fn bytes(&self) -> Bytes {
        self.batch.as_ref().map(|batch| batch.bytes.clone()).unwrap_or_default()
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.shared.is_sending.store(false, Ordering::Relaxed);
        if let Some(batch) = self.batch.take() {
            self.shared.change(|queue| queue.restore(batch));
        }
    }
}

/// Counts what came of a request, and puts it back where it may be taken later.
fn note(shared: &Shared, batch: Batch, outcome: Outcome) {
    let figures = &shared.figures;
    match outcome {
        Outcome::Taken { rejected, why } => {
            let mut of = figures.lock();
            if let Some(before) = of.why.take() {
                log::info!("metrics are pushed again, after: {before}");
            }
            *of.requests.entry("taken").or_default() += 1;
            of.points += batch.points.saturating_sub(rejected);
            of.last_success_seconds = Some(seconds_since_epoch());
            drop(of);
            if rejected > 0 {
                figures.drop_points("rejected", rejected);
                log::debug!("the collector has rejected {rejected} data points: {why}");
            }
        }
        Outcome::Later { why, .. } => {
            say(figures, "later", &why);
            if shared.is_ending.load(Ordering::Relaxed) {
                figures.drop_points("end", batch.points);
            } else {
                shared.change(|queue| queue.restore(batch));
            }
        }
        Outcome::Refused { why } => {
            say(figures, "refused", &why);
            figures.drop_points("refused", batch.points);
        }
    }
    let bytes = shared.queue().bytes() as u64;
    figures.lock().queue_bytes = bytes;
}

/// A failure is news once.
fn say(figures: &Figures, result: &'static str, why: &str) {
    let mut of = figures.lock();
    *of.requests.entry(result).or_default() += 1;
    if of.why.as_deref() != Some(why) {
        log::warn!("failed to push metrics ({result}): {why}");
        of.why = Some(why.to_owned());
    }
}

/// How long to wait after so many failures; longer where the collector asks for that. One that asks for no pause at all is not
/// believed, or nothing would be between two attempts.
fn pause(failures: u32, asked: Option<Duration>) -> Duration {
    BACKOFF.pause(failures).max(asked.unwrap_or_default().min(BACKOFF.longest))
}

fn seconds_since_epoch() -> f64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Check that pauses grow up to a bound, are not the same for all, and are not shorter than the collector asks for, nor none
    /// at all because it asks for that.
    #[test]
    fn pauses() {
        let seconds = |failures, asked: Option<u64>| pause(failures, asked.map(Duration::from_secs)).as_secs_f64();
        for (failures, whole) in [(0, 1.0), (1, 2.0), (3, 8.0), (6, 60.0), (u32::MAX, 60.0)] {
            for asked in [None, Some(0)] {
                let pause = seconds(failures, asked);
                assert!((whole / 2.0..=whole).contains(&pause), "{failures} failures: {pause} s");
            }
        }
        assert_eq!((seconds(0, Some(30)), seconds(0, Some(3600))), (30.0, 60.0));
        assert!(seconds(6, Some(1)) >= 30.0);
        let pauses: Vec<f64> = (0..20).map(|_| seconds(6, None)).collect();
        assert!(pauses.iter().any(|pause| *pause != pauses[0]), "{pauses:?}");
    }
}
