//! The endpoint, over a socket.

mod protected;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::oneshot;

use super::*;
use crate::model::snapshot::Snapshot;

async fn ask(address: SocketAddr, request: &str) -> (u16, String) {
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    stream.write_all(format!("{request} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    (answer[9..12].parse().unwrap(), answer)
}

#[tokio::test]
async fn pages_are_served_until_shutdown() {
    let listener = bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = listener.address();
    let busy = bind(address).unwrap_err();
    assert!(busy.to_string().contains("the address is in use"), "{busy}");

    let (source, mut requests) = SnapshotSource::channel(4);
    let (stop, stopped) = oneshot::channel::<()>();
    let server = tokio::spawn(serve(vec![listener], "/metrics", source, Protection::none(), None, async {
        let _ = stopped.await;
    }));
    let answers = tokio::spawn(async move {
        let mut not_ready = Some("no target <yet>".to_owned());
        while let Some(reply) = requests.recv().await {
            let mut snapshot = Snapshot::default();
            snapshot.profiler.not_ready = not_ready.take();
            let _ = reply.send(Arc::new(snapshot));
        }
    });

    let (code, answer) = ask(address, "GET /readyz").await;
    assert_eq!((code, answer.contains("no target <yet>")), (503, true));
    assert_eq!(ask(address, "GET /readyz").await.0, 200);
    assert_eq!(ask(address, "GET /healthz").await.0, 200);
    let (code, answer) = ask(address, "GET /metrics").await;
    assert_eq!(code, 200);
    assert!(answer.contains("content-type: text/plain; version=0.0.4; charset=utf-8\r\n"), "{answer}");
    assert!(answer.contains("profiler_build_info{version="));
    assert!(ask(address, "GET /metrics").await.1.contains("profiler_scrape_duration_seconds "));
    let (code, answer) = ask(address, "GET /status").await;
    assert_eq!((code, answer.contains("\"targets\":[]")), (200, true));
    assert_eq!(ask(address, "GET /").await.0, 200);
    assert_eq!(ask(address, "GET /nothing").await.0, 404);
    assert_eq!(ask(address, "POST /metrics").await.0, 405);

    answers.abort();
    let _ = answers.await;
    let (code, answer) = ask(address, "GET /metrics").await;
    assert_eq!((code, answer.contains("shutting down")), (503, true));
    // Health does not depend on the main loop: a slow one must not be restarted.
    assert_eq!(ask(address, "GET /healthz").await.0, 200);

    let _ = stop.send(());
    server.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_scrape_without_an_answer_gives_up() {
    let (source, _requests) = SnapshotSource::channel(1);
    assert_eq!(source.snapshot().await.unwrap_err(), NoSnapshot::Late);
}

#[test]
fn a_path_that_is_taken_is_refused() {
    for path in ["", "metrics", "/", "/status", "/{a}"] {
        let (source, _requests) = SnapshotSource::channel(1);
        assert!(router(path, source, Arc::new(Protection::none()), None).is_err(), "{path}");
    }
}
