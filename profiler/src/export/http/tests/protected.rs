//! The endpoint against clients that it does not know, that are slow, that are many, or that speak something else.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;

use super::super::*;
use crate::model::snapshot::Snapshot;

/// More than may be open at a time.
const CROWD: usize = 600;

/// A server that answers every scrape with an empty snapshot; dropped, it ends.
struct Served {
    addresses: Vec<SocketAddr>,
    _stop: oneshot::Sender<()>,
    server: JoinHandle<Result<(), ExportError>>,
}

fn served(addresses: usize, protection: Protection) -> Served {
    let listeners: Vec<_> = (0..addresses).map(|_| bind("127.0.0.1:0".parse().unwrap()).unwrap()).collect();
    let addresses = listeners.iter().map(Listener::address).collect();
    let (source, mut requests) = SnapshotSource::channel(4);
    let (stop, stopped) = oneshot::channel::<()>();
    let server = tokio::spawn(serve(listeners, "/metrics", source, protection, None, async {
        let _ = stopped.await;
    }));
    tokio::spawn(async move {
        while let Some(reply) = requests.recv().await {
            let _ = reply.send(Arc::new(Snapshot::default()));
        }
    });
    Served { addresses, _stop: stop, server }
}

async fn exchange(mut stream: impl AsyncRead + AsyncWrite + Unpin, request: &str) -> String {
    let _ = stream.write_all(request.as_bytes()).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

fn request(path: &str, headers: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n")
}

async fn ask(address: SocketAddr, path: &str, headers: &str) -> u16 {
    let stream = TcpStream::connect(address).await.unwrap();
    let answer = exchange(stream, &request(path, headers)).await;
    answer.get(9..12).and_then(|code| code.parse().ok()).unwrap_or_else(|| panic!("no answer: {answer}"))
}

/// A folder that is removed with its files.
struct Folder(PathBuf);

impl Folder {
    fn new(what: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("profiler-endpoint-{what}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, text).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

const ALICE: &str = "Authorization: Basic YWxpY2U6c2VjcmV0\r\n";

fn users() -> String {
    format!("basic_auth_users:\n  alice: {}\n", bcrypt::hash("secret", 4).unwrap())
}

/// Check that all addresses answer, that pages take a password where there are users, and probes do not.
#[tokio::test]
async fn only_users_see_pages() {
    let folder = Folder::new("users");
    let protection = Protection::read(folder.write("web.yml", &users())).unwrap();
    let served = served(2, protection);
    for &address in &served.addresses {
        for path in ["/metrics", "/status", "/tree", "/", "/nothing"] {
            assert_eq!(ask(address, path, "").await, 401, "{path}");
            assert_eq!(ask(address, path, "Authorization: Basic YWxpY2U6d3Jvbmc=\r\n").await, 401, "{path}");
            let code = if path == "/nothing" { 404 } else { 200 };
            assert_eq!(ask(address, path, ALICE).await, code, "{path}");
        }
        assert_eq!(ask(address, "/healthz", "").await, 200);
        assert_eq!(ask(address, "/readyz", "").await, 200);
    }
}

fn certificate(folder: &Folder, name: &str) -> CertificateDer<'static> {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    folder.write(&format!("{name}.pem"), &made.cert.pem());
    folder.write(&format!("{name}.key"), &made.signing_key.serialize_pem());
    made.cert.der().clone()
}

fn tls(name: &str) -> String {
    format!("tls_server_config:\n  cert_file: {name}.pem\n  key_file: {name}.key\n")
}

/// What a client that trusts this certificate alone is answered; `None` where it does not trust.
async fn ask_tls(address: SocketAddr, trusted: &CertificateDer<'static>) -> Option<String> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(trusted.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let connector = TlsConnector::from(Arc::new(config.with_root_certificates(roots).with_no_client_auth()));
    let stream = TcpStream::connect(address).await.unwrap();
    let stream = connector.connect(ServerName::try_from("localhost").unwrap(), stream).await.ok()?;
    Some(exchange(stream, &request("/metrics", "")).await)
}

/// Waits until the files are looked at again.
async fn later(mut done: impl AsyncFnMut() -> bool) {
    for _ in 0..600 {
        if done().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("nothing has changed in half a minute");
}

/// Check that TLS is spoken, that a new certificate is used without a restart, and a broken one is not.
#[tokio::test]
async fn certificates_are_replaced() {
    let folder = Folder::new("tls");
    let (first, second) = (certificate(&folder, "first"), certificate(&folder, "second"));
    let path = folder.write("web.yml", &tls("first"));
    let served = served(1, Protection::read(path.clone()).unwrap());
    let address = served.addresses[0];
    let answered = |answer: Option<String>| answer.is_some_and(|answer| answer.starts_with("HTTP/1.1 200"));
    assert!(answered(ask_tls(address, &first).await));
    assert!(!answered(ask_tls(address, &second).await));
    // Who speaks no TLS is not answered, and harms nobody.
    let plain = exchange(TcpStream::connect(address).await.unwrap(), &request("/metrics", "")).await;
    assert!(!plain.starts_with("HTTP"), "{plain}");
    fs::write(&path, tls("second")).unwrap();
    later(async || answered(ask_tls(address, &second).await)).await;
    fs::write(folder.0.join("second.pem"), "no certificate").unwrap();
    let good = "profiler_web_config_last_reload_successful";
    later(async || ask_tls(address, &second).await.is_some_and(|page| page.contains(&format!("{good} 0")))).await;
    certificate(&folder, "second");
    fs::write(&path, tls("first")).unwrap();
    later(async || ask_tls(address, &first).await.is_some_and(|page| page.contains(&format!("{good} 1")))).await;
}

/// Check that what is no HTTP, or too much of it, is refused, and that the next one is served.
#[tokio::test]
async fn hostile_requests_harm_nobody() {
    let served = served(1, Protection::none());
    let address = served.addresses[0];
    let long = "x".repeat(64 << 10);
    let many: String = (0..500).map(|n| format!("h{n}: x\r\n")).collect();
    for hostile in [
        "\r\n\r\n\r\n".to_owned(),
        "GET\r\n\r\n".to_owned(),
        "GET /metrics HTTP/9.9\r\n\r\n".to_owned(),
        "\u{16}\u{3}\u{1}\u{2}".to_owned() + &"\0".repeat(600),
        format!("GET /{long} HTTP/1.1\r\n\r\n"),
        format!("GET / HTTP/1.1\r\nx: {long}\r\n\r\n"),
        format!("GET / HTTP/1.1\r\nHost: x\r\n{many}\r\n"),
        "POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\nConnection: close\r\n\r\n".to_owned(),
    ] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let _ = stream.write_all(hostile.as_bytes()).await;
        // It has no more to say: who waits for more waits no longer.
        let _ = stream.shutdown().await;
        let answer = exchange(stream, "").await;
        assert!(!answer.starts_with("HTTP/1.1 200"), "{hostile:.60}: {answer}");
        assert_eq!(ask(address, "/metrics", "").await, 200);
    }
}

/// Check that whoever connects and says nothing, or half of a request, or does not read, keeps nobody else away.
#[tokio::test]
async fn crowds_of_idle_clients_keep_nobody_away() {
    let served = served(1, Protection::none());
    let address = served.addresses[0];
    let mut idle = Vec::new();
    for n in 0..CROWD {
        let mut stream = TcpStream::connect(address).await.unwrap();
        match n % 3 {
            0 => {}
            1 => stream.write_all(b"GET /metrics HT").await.unwrap(),
            _ => stream.write_all(b"GET /status HTTP/1.1\r\nHost: x\r\n\r\n".repeat(20).as_slice()).await.unwrap(),
        }
        idle.push(stream);
        if n % 100 == 0 {
            assert_eq!(ask(address, "/metrics", "").await, 200);
        }
    }
    assert_eq!(ask(address, "/metrics", "").await, 200);
    assert!(!served.server.is_finished());
    // The oldest was closed for the newest.
    let mut byte = [0];
    let closed = tokio::time::timeout(Duration::from_secs(30), idle[0].read(&mut byte)).await.unwrap();
    assert!(matches!(closed, Ok(0) | Err(_)), "{closed:?}");
}

#[test]
fn a_file_that_is_refused_is_named() {
    let error = Protection::read(Path::new("/no/such/web.yml").to_owned()).err().unwrap().to_string();
    assert!(error.contains("`/no/such/web.yml`: No such file"), "{error}");
}
