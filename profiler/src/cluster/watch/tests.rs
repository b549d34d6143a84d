//! The watch against a server that says what it is told to: what is asked, what is kept, and what a failure does. The clock is
//! stopped, but where there is a network.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::fs;

use axum::body::Body;
use futures_util::stream;
use hyper::http::{Request, Response};
use serde_json::{Value, json};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;

use super::super::Names;
use super::*;

/// What is answered to one request.
enum Reply {
    /// This status and this text.
    Text(u16, String),
    /// Lines as they come, each after some seconds; then the end.
    Lines(Vec<(u64, String)>),
    /// Lines, then nothing any more, for ever.
    Hangs(Vec<(u64, String)>),
    /// No answer.
    None,
    /// No connection.
    Refused,
}

/// A request: when, in whole seconds, and for what.
type Asked = (u64, String);

/// What the watch asks when it gets these answers, up to the first request for which there is none.
async fn asked(replies: Vec<Reply>, book: &Mutex<Book>) -> Vec<Asked> {
    let began = Instant::now();
    let log: Arc<Mutex<(VecDeque<Reply>, Vec<Asked>)>> = Arc::new(Mutex::new((replies.into(), Vec::new())));
    let server = Arc::clone(&log);
    let over = Arc::new(tokio::sync::Notify::new());
    let told = Arc::clone(&over);
    let service = tower::service_fn(move |request: Request<kube::client::Body>| {
        let mut log = server.lock().expect("no panic");
        log.1.push((began.elapsed().as_secs(), format!("{} {}", request.method(), request.uri())));
        let reply = log.0.pop_front();
        let told = Arc::clone(&told);
        async move {
            let response = |status: u16, body| Response::builder().status(status).body(body).expect("a response");
            match reply {
                Some(Reply::Text(status, text)) => Ok(response(status, Body::from(text))),
                Some(Reply::Lines(lines)) => Ok(response(200, Body::from_stream(slowly(lines)))),
                Some(Reply::Hangs(lines)) => {
                    Ok(response(200, Body::from_stream(slowly(lines).chain(stream::pending()))))
                }
                Some(Reply::Refused) => Err(std::io::Error::from(std::io::ErrorKind::ConnectionRefused)),
                Some(Reply::None) => std::future::pending().await,
                None => {
                    told.notify_one();
                    std::future::pending().await
                }
            }
        }
    });
    tokio::select! {
        () = keep(Client::new(service, "default"), "node-1", book) => {}
        () = over.notified() => {}
    }
    let log = log.lock().expect("no panic");
    log.1.clone()
}

fn slowly(lines: Vec<(u64, String)>) -> impl futures_util::Stream<Item = Result<String, Infallible>> {
    stream::iter(lines).then(|(seconds, line)| async move {
        sleep(Duration::from_secs(seconds)).await;
        Ok(format!("{line}\n"))
    })
}

fn pod(version: u32, name: &str, labels: &Value, statuses: &Value) -> Value {
    let metadata = json!({ "uid": format!("uid-{name}"), "name": name, "namespace": "shop", "labels": labels, "resourceVersion": version.to_string() });
    json!({ "apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": { "containers": [] }, "status": statuses })
}

fn event(kind: &str, object: &Value) -> (u64, String) {
    (1, json!({ "type": kind, "object": object }).to_string())
}

fn page(pods: &[Value], version: u32, more: Option<&str>) -> Reply {
    let metadata = json!({ "resourceVersion": version.to_string(), "continue": more });
    Reply::Text(200, json!({ "apiVersion": "v1", "kind": "PodList", "metadata": metadata, "items": pods }).to_string())
}

fn status(code: u16, reason: &str) -> Value {
    json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": reason, "reason": reason, "code": code })
}

fn refusal(code: u16, reason: &str) -> Reply {
    Reply::Text(code, status(code, reason).to_string())
}

fn none() -> Value {
    json!({})
}

fn running(name: &str, id: &str) -> Value {
    json!({ "containerStatuses": [{ "name": name, "containerID": format!("containerd://{id}") }] })
}

/// Namespace, pod and container of one that is known.
fn told(book: &Mutex<Book>, uid: &str, id: &str) -> String {
    match kept(book).names(Some(uid), Some(id)) {
        Names::Known { pod, container } => format!("{}/{}/{container:?} {:?}", pod.namespace, pod.name, pod.labels),
        names => format!("{names:?}"),
    }
}

fn failures(book: &Mutex<Book>) -> Vec<(&'static str, u64)> {
    kept(book).failures().filter(|(_, n)| *n > 0).collect()
}

/// Check that all pages are listed, that each change is heard, and that a watch which ends is begun again from where it was; and
/// that nothing but this node's pods is asked for.
#[tokio::test(start_paused = true)]
async fn pods_are_listed_and_watched() {
    let book = Mutex::new(Book::default());
    let replies = vec![
        page(&[pod(1, "a", &none(), &none())], 5, Some("more")),
        page(&[pod(2, "b", &none(), &running("web", "c2"))], 5, None),
        Reply::Lines(vec![
            event("MODIFIED", &pod(6, "a", &json!({ "app": "web" }), &running("main", "c1"))),
            event(
                "ADDED",
                &pod(7, "c", &none(), &json!({ "initContainerStatuses": [{ "name": "first", "containerID": null }] })),
            ),
            event("DELETED", &pod(8, "b", &none(), &none())),
            event("BOOKMARK", &json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "resourceVersion": "9" } })),
        ]),
        Reply::Lines(vec![event("MODIFIED", &pod(10, "c", &none(), &running("second", "c3")))]),
    ];
    let asked = asked(replies, &book).await;
    let whole = "GET /api/v1/pods?";
    assert!(
        asked.iter().all(|(_, of)| of.starts_with(whole) && of.contains("fieldSelector=spec.nodeName%3Dnode-1")),
        "{asked:?}"
    );
    assert!(asked[0].1.contains("resourceVersion=0") && asked[1].1.contains("continue=more"), "{asked:?}");
    for (of, version) in [(2, 5), (3, 9), (4, 10)] {
        let part = format!("resourceVersion={version}");
        assert!(asked[of].1.contains("watch=true") && asked[of].1.contains(&part), "{asked:?}");
    }
    assert_eq!(told(&book, "uid-a", "c1"), "shop/a/Some(\"main\") {\"app\": \"web\"}");
    assert_eq!(told(&book, "uid-b", "c2"), "shop/b/Some(\"web\") {}", "it is remembered");
    assert_eq!(told(&book, "uid-c", "c3"), "shop/c/Some(\"second\") {}");
    assert_eq!(failures(&book), vec![]);
    let book = kept(&book);
    assert_eq!((book.len(), book.up()), (2, Some(true)));
}

/// Check what is said of each failure, that it is asked again after a while, and that only a list that is too old, or makes no
/// sense, is made again.
#[tokio::test(start_paused = true)]
async fn failures_are_told_apart() {
    for (reply, failure, reason) in [
        (refusal(403, "Forbidden"), "forbidden", "verbs: [list, watch]"),
        (refusal(401, "Unauthorized"), "unauthorized", "Unauthorized"),
        (refusal(500, "InternalError"), "refused", "InternalError"),
        (Reply::Text(200, "no JSON at all".to_owned()), "invalid", ""),
        (Reply::Text(200, "{\"items\": 3}".to_owned()), "invalid", ""),
        (Reply::None, "unreachable", "no answer for 30 s"),
        (Reply::Refused, "unreachable", "refused"),
    ] {
        let book = Mutex::new(Book::default());
        let asked = asked(vec![reply], &book).await;
        assert_eq!(failures(&book), [(failure, 1)], "{asked:?}");
        let book = kept(&book);
        let said = book.said().unwrap_or_default();
        assert!(book.up() == Some(false) && said.contains(reason) && !said.contains('\n'), "{failure}: {said}");
        assert!(
            !said.is_empty() && asked.len() == 2 && asked[1].1.contains("resourceVersion=0"),
            "{failure}: {asked:?}"
        );
    }
    let gone = json!({ "type": "ERROR", "object": status(410, "Expired") }).to_string();
    for (reply, failure, from) in [
        (Reply::Lines(vec![(0, gone)]), "expired", "resourceVersion=0"),
        (Reply::Lines(vec![(0, "{\"type\": \"ADDED\", \"object\": 3}".to_owned())]), "invalid", "resourceVersion=0"),
        (refusal(410, "Expired"), "expired", "resourceVersion=0"),
        (refusal(500, "InternalError"), "refused", "resourceVersion=5"),
        (Reply::Refused, "unreachable", "resourceVersion=5"),
        (Reply::Hangs(vec![]), "unreachable", "resourceVersion=5"),
    ] {
        let book = Mutex::new(Book::default());
        let asked = asked(vec![page(&[pod(1, "a", &none(), &none())], 5, None), reply], &book).await;
        assert_eq!(failures(&book), [(failure, 1)], "{asked:?}");
        assert!(asked[2].1.contains(from), "{failure}: {asked:?}");
        assert_eq!(kept(&book).len(), 1, "what was known is known");
    }
}

/// Check that a silent server is left, that pauses grow and are bounded, and that a list that never ends is left.
#[tokio::test(start_paused = true)]
async fn a_bad_server_costs_little() {
    let book = Mutex::new(Book::default());
    let list = page(&[], 5, None);
    let silent = asked(vec![list, Reply::Hangs(vec![])], &book).await;
    assert!((75..=76).contains(&silent[2].0), "{silent:?}");
    let down = asked((0..20).map(|_| Reply::Refused).collect(), &book).await;
    let pauses: Vec<u64> = down.windows(2).map(|pair| pair[1].0 - pair[0].0).collect();
    assert!(pauses[0] <= 1 && pauses[10..].iter().all(|pause| (14..=30).contains(pause)), "{pauses:?}");
    assert!(pauses[10..].iter().any(|pause| *pause != pauses[10]), "not all at the same time: {pauses:?}");
    let endless = asked((0..PAGES).map(|_| page(&[], 5, Some("more"))).collect(), &book).await;
    assert_eq!(endless.len(), PAGES + 1);
    assert!(failures(&book).contains(&("invalid", 1)));
}

/// Check that a server is asked only if it proves who it is, and that a configuration that cannot work is refused.
#[tokio::test]
async fn certificates_are_checked() {
    let made = |name: &str| rcgen::generate_simple_self_signed(vec![name.to_owned()]).expect("a certificate");
    let (own, other) = (made("localhost"), made("localhost"));
    let key = PrivateKeyDer::try_from(own.signing_key.serialize_der()).expect("a key");
    let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
    let server = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().expect("versions");
    let server = server.with_no_client_auth().with_single_cert(vec![own.cert.der().clone()], key).expect("a server");
    let listener = tokio::net::TcpListener::bind("localhost:0").await.expect("a port");
    let port = listener.local_addr().expect("a port").port();
    let acceptor = TlsAcceptor::from(Arc::new(server));
    let serve = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            drop(acceptor.accept(stream).await);
        }
    });
    let path = std::env::temp_dir().join(format!("profiler-kubeconfig-{}.json", std::process::id()));
    let mut seen = Vec::new();
    for authority in [&own, &other] {
        use base64::Engine as _;
        let authority = base64::engine::general_purpose::STANDARD.encode(authority.cert.pem());
        let cluster = json!({ "server": format!("https://localhost:{port}"), "certificate-authority-data": authority });
        let config = json!({ "apiVersion": "v1", "kind": "Config", "current-context": "c", "contexts": [{ "name": "c", "context": { "cluster": "c", "user": "u" } }],
            "clusters": [{ "name": "c", "cluster": cluster }], "users": [{ "name": "u", "user": { "token": "t" } }] });
        fs::write(&path, config.to_string()).expect("a file of our own");
        let config = configuration(Some(&path)).await.expect("a good configuration");
        let book = Mutex::new(Book::default());
        let client = Client::try_from(config).expect("a client");
        let done = timeout(ANSWER, async {
            tokio::select! {
                () = keep(client, "node-1", &book) => {}
                () = async { while failures(&book).is_empty() { sleep(Duration::from_millis(5)).await } } => {}
            }
        });
        done.await.expect("it says something");
        seen.push(failures(&book)[0].0);
    }
    assert_eq!(seen, ["unreachable", "certificate"]);
    fs::write(&path, "{ \"clusters\": 3").expect("a file of our own");
    let refused = configuration(Some(&path)).await.map(|_| ()).expect_err("no configuration");
    assert!(refused.contains(&path.display().to_string()) && !refused.contains('\n'), "{refused}");
    fs::remove_file(&path).expect("a file of our own");
    let refused = configuration(None).await.map(|_| ()).expect_err("this is no pod");
    assert!(refused.contains("--kubernetes.kubeconfig"), "{refused}");
    serve.abort();
}
