//! Connections to the endpoint: accepted on several addresses, bounded in number and in time, in TLS where that is asked
//! for. Never what is answered.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_io_timeout::TimeoutStream;
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt as _;

use super::protection::Protection;

/// Connections at a time. Beyond, the one that has been without a request for longest is closed for the next.
const CONNECTIONS: usize = 512;
/// Who does not finish a handshake or a request's head in this time is closed; a connection may be idle so long, which is
/// longer than the usual time between two scrapes.
const HEAD: Duration = Duration::from_secs(75);
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Who does not take a byte of an answer in this time is closed.
const WRITE: Duration = Duration::from_secs(30);
/// Longest head of a request, bytes, and headers in it.
const HEAD_BYTES: usize = 16 << 10;
const HEADERS: usize = 100;
/// After an error that is not a connection's own, as of no descriptor that is left.
const REST: Duration = Duration::from_millis(100);
/// How long open requests have to be answered at the end.
const END: Duration = Duration::from_secs(2);

/// Serves until `shutdown` is done and open requests are answered.
///
/// # Errors
/// A socket failed.
pub async fn serve(
    sockets: Vec<std::net::TcpListener>,
    router: Router,
    protection: Arc<Protection>,
    shutdown: impl Future<Output = ()> + Send,
) -> io::Result<()> {
    let open = Arc::new(Open::default());
    let (end, ended) = watch::channel(());
    let mut accepting = JoinSet::new();
    for socket in sockets {
        let listener = TcpListener::from_std(socket)?;
        accepting.spawn(accept(listener, router.clone(), Arc::clone(&protection), Arc::clone(&open), ended.clone()));
    }
    drop(ended);
    shutdown.await;
    accepting.shutdown().await;
    let _ = end.send(());
    // Connections have a receiver each.
    let _ = timeout(END, end.closed()).await;
    Ok(())
}

async fn accept(
    listener: TcpListener,
    router: Router,
    protection: Arc<Protection>,
    open: Arc<Open>,
    ended: watch::Receiver<()>,
) {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(e) if is_of_the_connection(&e) => continue,
            Err(e) => {
                log::warn!("failed to accept a connection to the endpoint: {e}");
                open.close_oldest();
                sleep(REST).await;
                continue;
            }
        };
        let place = open.enter();
        let (router, protection, ended) = (router.clone(), Arc::clone(&protection), ended.clone());
        tokio::spawn(async move {
            let closed = Arc::clone(&place.closed);
            let served = connection(stream, router, &protection, &place, ended);
            tokio::select! {
                () = served => {}
                () = closed.notified() => {}
            }
        });
    }
}

fn is_of_the_connection(e: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(e.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

/// Whatever a connection is, one stream.
trait Stream: AsyncRead + AsyncWrite + Send {}
impl<T: AsyncRead + AsyncWrite + Send> Stream for T {}

async fn connection(
    stream: TcpStream,
    router: Router,
    protection: &Protection,
    place: &Place,
    mut ended: watch::Receiver<()>,
) {
    let _ = stream.set_nodelay(true);
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(WRITE));
    let stream: Pin<Box<dyn Stream>> = match &protection.current().tls {
        None => Box::pin(stream),
        Some(tls) => {
            let handshake = TlsAcceptor::from(Arc::clone(tls)).accept(Box::pin(stream));
            match timeout(HANDSHAKE, handshake).await {
                Ok(Ok(stream)) => Box::pin(stream),
                // A client that speaks no TLS, or does not trust us: its own affair, and it is told.
                Ok(Err(e)) => return log::debug!("a handshake failed: {e}"),
                Err(_) => return,
            }
        }
    };
    let service = hyper::service::service_fn(|request: Request<Incoming>| {
        place.asked();
        router.clone().oneshot(request.map(axum::body::Body::new))
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD).max_buf_size(HEAD_BYTES).max_headers(HEADERS);
    let mut served = pin!(http.serve_connection(TokioIo::new(stream), service));
    tokio::select! {
        _ = served.as_mut() => return,
        _ = ended.changed() => served.as_mut().graceful_shutdown(),
    }
    let _ = served.await;
}

/// The connections that are open.
#[derive(Default)]
struct Open(Mutex<Places>);

#[derive(Default)]
struct Places {
    next: u64,
    /// By when they were used last: the oldest first.
    by_use: BTreeMap<u64, Arc<Notify>>,
}

/// One of them; dropped, it is closed.
struct Place {
    open: Arc<Open>,
    used: Mutex<u64>,
    closed: Arc<Notify>,
}

impl Open {
    fn places(&self) -> std::sync::MutexGuard<'_, Places> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(self: &Arc<Open>) -> Place {
        let closed = Arc::new(Notify::new());
        let mut places = self.places();
        while places.by_use.len() >= CONNECTIONS {
            close_first(&mut places);
        }
        let used = places.use_now(&closed);
        Place { open: Arc::clone(self), used: Mutex::new(used), closed }
    }

    fn close_oldest(&self) {
        close_first(&mut self.places());
    }
}

fn close_first(places: &mut Places) {
    if let Some((_, closed)) = places.by_use.pop_first() {
        closed.notify_one();
    }
}

impl Places {
    fn use_now(&mut self, closed: &Arc<Notify>) -> u64 {
        self.next += 1;
        self.by_use.insert(self.next, Arc::clone(closed));
        self.next
    }
}

impl Place {
    /// There is a request: it is not the oldest any more.
    fn asked(&self) {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let mut places = self.open.places();
        // It may have been closed just now.
        if places.by_use.remove(&used).is_some() {
            *used = places.use_now(&self.closed);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let used = *self.used.lock().unwrap_or_else(PoisonError::into_inner);
        self.open.places().by_use.remove(&used);
    }
}
