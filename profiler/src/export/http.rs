//! The endpoint: `/metrics`, `/status`, `/tree`, `/minutes`, `/healthz`, `/readyz` and a landing page. Never what is on a page.

use std::future::Future;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use axum::Router;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;

use super::protection::Protection;
use super::status::Document;
use super::{ExportError, NoSnapshot, SnapshotSource, landing, minutes, otlp, server, status, tree};
use crate::metrics::{self, Own};

/// Where metrics are served by default.
pub const DEFAULT_PATH: &str = "/metrics";

const RESERVED: [&str; 6] = ["/", "/status", "/tree", "/minutes", "/healthz", "/readyz"];

/// A bound address that does not serve yet.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
    address: SocketAddr,
}

impl Listener {
    /// The address, with the port that the kernel chose where 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// Binds first, so that a start that must fail does so before anything is attached.
///
/// # Errors
/// The address is in use, or may not be used.
pub fn bind(address: SocketAddr) -> Result<Listener, ExportError> {
    let failed = |source: std::io::Error| match source.kind() {
        ErrorKind::AddrInUse => ExportError::AddressInUse { address },
        _ => ExportError::Bind { address, source },
    };
    let socket = TcpListener::bind(address).map_err(failed)?;
    socket.set_nonblocking(true).map_err(failed)?;
    let address = socket.local_addr().map_err(failed)?;
    Ok(Listener { socket, address })
}

/// Serves until `shutdown` is done and open requests are answered. `path` is where metrics are.
///
/// # Errors
/// The path is taken or none; or a socket failed.
pub async fn serve(
    listeners: Vec<Listener>,
    path: &str,
    source: SnapshotSource,
    protection: Protection,
    push: Option<otlp::Figures>,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), ExportError> {
    let protection = Arc::new(protection);
    let router = router(path, source, Arc::clone(&protection), push)?;
    let sockets = listeners.into_iter().map(|listener| listener.socket).collect();
    server::serve(sockets, router, protection, shutdown).await.map_err(ExportError::Serve)
}

/// Whether metrics can be served at `path`.
///
/// # Errors
/// The path is taken or none.
pub fn check_path(path: &str) -> Result<(), &'static str> {
    if !path.starts_with('/') || path.contains(['{', '}', '?', '#', '*']) {
        return Err("it must begin with / and be a plain path");
    }
    if RESERVED.contains(&path) {
        return Err("another page is served there");
    }
    Ok(())
}

/// All pages.
///
/// # Errors
/// The path of the metrics is taken or none.
fn router(
    path: &str,
    source: SnapshotSource,
    protection: Arc<Protection>,
    push: Option<otlp::Figures>,
) -> Result<Router, ExportError> {
    check_path(path).map_err(|reason| ExportError::Path { path: path.to_owned(), reason })?;
    let last_scrape_ns = AtomicU64::new(0);
    let pages =
        Arc::new(Pages { path: path.to_owned(), source, protection: Arc::clone(&protection), push, last_scrape_ns });
    Ok(Router::new()
        .route(path, get(metrics_page))
        .route("/status", get(status_page))
        .route("/tree", get(tree_page))
        .route("/minutes", get(minutes_page))
        .route("/", get(landing_page))
        .fallback(|| async { StatusCode::NOT_FOUND })
        .layer(middleware::from_fn_with_state(protection, admit))
        // Whoever restarts what is not healthy has no password.
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready_page))
        .with_state(pages))
}

/// Answers whom the file admits that protects the endpoint, and nobody else.
async fn admit(State(protection): State<Arc<Protection>>, request: Request, next: Next) -> Response {
    if protection.admits(request.headers()).await {
        return next.run(request).await;
    }
    (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, "Basic")], "Unauthorized\n").into_response()
}

struct Pages {
    path: String,
    source: SnapshotSource,
    protection: Arc<Protection>,
    /// `None` where nothing is pushed.
    push: Option<otlp::Figures>,
    /// 0 before the first scrape.
    last_scrape_ns: AtomicU64,
}

impl IntoResponse for NoSnapshot {
    fn into_response(self) -> Response {
        (StatusCode::SERVICE_UNAVAILABLE, format!("{self}\n")).into_response()
    }
}

async fn metrics_page(State(pages): State<Arc<Pages>>) -> Response {
    let begin = Instant::now();
    let snapshot = match pages.source.snapshot().await {
        Ok(snapshot) => snapshot,
        Err(none) => return none.into_response(),
    };
    let last = Some(pages.last_scrape_ns.load(Ordering::Relaxed)).filter(|&ns| ns > 0).map(|ns| ns as f64 / 1e9);
    let mut own = Own::read(last);
    own.web_config_is_good = pages.protection.refusal().map(|refusal| refusal.is_none());
    own.push = pages.push.as_ref().map(otlp::Figures::read);
    let page = metrics::page(snapshot, own);
    pages.last_scrape_ns.store((begin.elapsed().as_nanos() as u64).max(1), Ordering::Relaxed);
    match page {
        Ok(page) => ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], page).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

async fn status_page(State(pages): State<Arc<Pages>>) -> Result<Response, NoSnapshot> {
    let snapshot = pages.source.snapshot().await?;
    let mut document = Document::new(&snapshot);
    document.add("web_config_refused", pages.protection.refusal().flatten());
    document.add("otlp", pages.push.as_ref().map(|push| status::push(&push.read())));
    Ok(match serde_json::to_vec(&document) {
        Ok(json) => ([(header::CONTENT_TYPE, "application/json")], json).into_response(),
        Err(e) => (StatusCode::INTERNAL_SERVER_ERROR, format!("failed to write the status: {e}\n")).into_response(),
    })
}

async fn tree_page(State(pages): State<Arc<Pages>>) -> Result<Response, NoSnapshot> {
    let snapshot = pages.source.snapshot().await?;
    Ok(([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], tree::render(&snapshot)).into_response())
}

async fn minutes_page(
    State(pages): State<Arc<Pages>>,
    query: Result<Query<minutes::Query>, QueryRejection>,
) -> Result<Response, NoSnapshot> {
    let Query(query) = match query {
        Ok(query) => query,
        Err(e) => return Ok((StatusCode::BAD_REQUEST, format!("{}\n", e.body_text())).into_response()),
    };
    let snapshot = pages.source.snapshot().await?;
    let json = minutes::document(&snapshot.minutes, &query).to_string();
    Ok(([(header::CONTENT_TYPE, "application/json")], json).into_response())
}

async fn ready_page(State(pages): State<Arc<Pages>>) -> Result<Response, NoSnapshot> {
    let snapshot = pages.source.snapshot().await?;
    Ok(match &snapshot.profiler.not_ready {
        None => "ready\n".into_response(),
        Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {reason}\n")).into_response(),
    })
}

async fn landing_page(State(pages): State<Arc<Pages>>) -> Result<Html<String>, NoSnapshot> {
    let snapshot = pages.source.snapshot().await?;
    Ok(Html(landing::page(&snapshot, &pages.path)))
}

#[cfg(test)]
mod tests;
