//! What is pushed equals the page, is divided without a loss, and comes through a collector's failures. The collector is a real
//! one of each protocol, in this process.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use axum::routing::post;
use bytes::Bytes;
use hyper::server::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_server::{
    MetricsService, MetricsServiceServer,
};
use opentelemetry_proto::tonic::collector::metrics::v1::{
    ExportMetricsPartialSuccess, ExportMetricsServiceRequest, ExportMetricsServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value};
use opentelemetry_proto::tonic::metrics::v1::{ResourceMetrics, metric, number_data_point};
use prometheus::core::Collector as _;
use prometheus::proto::MetricFamily;
use prost::Message as _;
use rcgen::generate_simple_self_signed;
use rustls::pki_types::PrivateKeyDer;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::convert::{Encoded, Starts, requests, resources};
use super::*;
use crate::export::SnapshotSource;
use crate::metrics::own::PushFigures;
use crate::metrics::table::{METRICS, metric as row};
use crate::metrics::tests::everything;
use crate::metrics::{Own, SnapshotCollector, otel};

const LIMIT: Duration = Duration::from_secs(60);

fn families() -> Vec<MetricFamily> {
    let mut own = Own::read(Some(0.5));
    own.push = Some(PushFigures::default());
    SnapshotCollector::new(everything(), own).collect()
}

/// A series: its metric and its labels, and what it says.
type Series = BTreeMap<(String, BTreeSet<(String, String)>), String>;

/// What the page says, without labels that are empty.
fn of_page(families: &[MetricFamily]) -> Series {
    let mut series = Series::new();
    for family in families {
        for one in family.get_metric() {
            let labels = one.get_label().iter().map(|pair| (pair.name().to_owned(), pair.value().to_owned()));
            let labels = labels.filter(|(_, value)| !value.is_empty()).collect();
            let histogram = one.get_histogram();
            let buckets: Vec<(f64, u64)> =
                histogram.get_bucket().iter().map(|b| (b.upper_bound(), b.cumulative_count())).collect();
            let value = one.get_gauge().get_value() + one.get_counter().get_value();
            let said = format!("{value} {} {} {buckets:?}", histogram.get_sample_count(), histogram.get_sample_sum());
            assert!(series.insert((family.name().to_owned(), labels), said).is_none());
        }
    }
    series
}

fn text(of: &KeyValue) -> String {
    match of.value.as_ref().and_then(|value| value.value.as_ref()) {
        Some(any_value::Value::StringValue(text)) => text.clone(),
        Some(any_value::Value::IntValue(n)) => n.to_string(),
        other => panic!("{other:?}"),
    }
}

/// The same, of what was pushed: names and attributes are turned back into those of the page.
fn of_push(pushed: &[ResourceMetrics]) -> Series {
    let mut series = Series::new();
    for resource in pushed {
        let attributes = &resource.resource.as_ref().expect("a resource").attributes;
        let of = |name: &str| attributes.iter().find(|attribute| attribute.key == name).map(text).unwrap_or_default();
        let who = [("process", "process.executable.name"), ("runtime", "process.runtime.name"), ("pid", "process.pid")];
        let who: Vec<(String, String)> = who.map(|(label, name)| (label.to_owned(), of(name))).into();
        let is_target = of("service.name") != "profiler";
        for metric in resource.scope_metrics.iter().flat_map(|scope| &scope.metrics) {
            let mut rows = METRICS.iter().filter(|row| otel::name(row.id, &of("process.runtime.name")) == metric.name);
            let row = rows.find(|row| (row.scope == crate::metrics::table::Scope::Target) == is_target).expect("a row");
            assert_eq!((metric.unit.as_str(), metric.description.as_str()), (otel::unit(row.id), row.help));
            let mut add = |attributes: &[KeyValue], said: String| {
                let label = |name: &str| {
                    let mut labels = row.labels.iter().filter(|label| otel::attribute(row.id, label) == name);
                    (*labels.next().expect("a label")).to_owned()
                };
                let own = attributes.iter().map(|attribute| (label(&attribute.key), text(attribute)));
                let labels = who.iter().cloned().chain(own).filter(|(_, value)| !value.is_empty()).collect();
                assert!(series.insert((row.full_name(), labels), said).is_none(), "{} is there twice", metric.name);
            };
            let points = match metric.data.as_ref().expect("data") {
                metric::Data::Gauge(gauge) => &gauge.data_points,
                metric::Data::Sum(sum) => &sum.data_points,
                metric::Data::Histogram(histogram) => {
                    for point in &histogram.data_points {
                        let mut below = 0;
                        let counts = point.bucket_counts.iter().map(|n| {
                            below += n;
                            below
                        });
                        let mut buckets: Vec<(f64, u64)> = point.explicit_bounds.iter().copied().zip(counts).collect();
                        assert_eq!(below + point.bucket_counts.last().expect("one more"), point.count);
                        buckets.truncate(point.explicit_bounds.len());
                        assert!(point.start_time_unix_nano > 0 && point.start_time_unix_nano <= point.time_unix_nano);
                        add(&point.attributes, format!("0 {} {} {buckets:?}", point.count, point.sum.unwrap_or(-1.0)));
                    }
                    continue;
                }
                other => panic!("{other:?}"),
            };
            for point in points {
                let value = match point.value.expect("a value") {
                    number_data_point::Value::AsDouble(value) => value,
                    number_data_point::Value::AsInt(value) => value as f64,
                };
                add(&point.attributes, format!("{value} 0 0 []"));
            }
        }
    }
    series
}

fn decoded(requests: &[Encoded]) -> Vec<ResourceMetrics> {
    let of = |one: &Encoded| ExportMetricsServiceRequest::decode(one.bytes.as_slice()).expect("a request");
    requests.iter().flat_map(|one| of(one).resource_metrics).collect()
}

/// Check that every series of the page is pushed with its value, and nothing else; whole, and in the smallest parts.
#[test]
fn what_is_pushed_is_the_page() {
    let families = families();
    let page = of_page(&families);
    assert!(page.len() > 100);
    let now_ns = 2_000_000_000_000_000_000;
    let of = || resources(&families, now_ns, &mut Starts::since(1), &[("team".to_owned(), "shop".to_owned())]);
    let whole = requests(of(), usize::MAX);
    assert_eq!((whole.len(), whole[0].points as usize), (1, page.len()));
    assert_eq!(of_push(&decoded(&whole)), page);
    let resources = decoded(&whole);
    assert_eq!(resources.len(), 3, "two targets and the profiler");
    for resource in &resources {
        let attributes = &resource.resource.as_ref().expect("a resource").attributes;
        let has = |name: &str| attributes.iter().filter(|attribute| attribute.key == name).count();
        assert_eq!((has("service.name"), has("team")), (1, 1));
    }
    for most in [1, 2000, 20_000] {
        let parts = requests(of(), most);
        assert!(parts.iter().all(|part| part.bytes.len() <= most || part.points == 1), "{most}");
        assert_eq!(parts.iter().map(|part| part.points as usize).sum::<usize>(), page.len());
        let series = parts.iter().map(|part| of_push(&decoded(std::slice::from_ref(part))).len()).sum::<usize>();
        assert_eq!((series, parts.len() > 1), (page.len(), true), "{most}");
        if most > 1 {
            assert!(parts.windows(2).all(|pair| pair[0].bytes.len() + pair[1].bytes.len() > most / 2), "not too many");
        }
    }
}

/// Check that what is counted is said to be counted since nothing was: of a target that came between two pushes since the first.
#[test]
fn starts_are_before_the_first_count() {
    let start = |resources: &[ResourceMetrics], pid: i64| {
        let is = |attribute: &KeyValue| attribute.key == "process.pid" && text(attribute) == pid.to_string();
        let of = resources.iter().find(|one| one.resource.as_ref().is_some_and(|of| of.attributes.iter().any(is)))?;
        let sums = of.scope_metrics[0].metrics.iter().find_map(|metric| match &metric.data {
            Some(metric::Data::Sum(sum)) if sum.is_monotonic => Some(sum.data_points[0].start_time_unix_nano),
            _ => None,
        });
        Some(sums.expect("a counter"))
    };
    let families = families();
    let only = |pid: &str| -> Vec<MetricFamily> {
        let keeps =
            |one: &&prometheus::proto::Metric| one.get_label().iter().any(|l| l.name() == "pid" && l.value() == pid);
        let of = |family: &MetricFamily| {
            let mut family = family.clone();
            let kept = family.get_metric().iter().filter(keeps).cloned().collect();
            family.set_metric(kept);
            family
        };
        families.iter().map(of).filter(|family| !family.get_metric().is_empty()).collect()
    };
    let mut starts = Starts::since(5);
    let push = |families: &[MetricFamily], now: u64, starts: &mut Starts| resources(families, now, starts, &[]);
    assert_eq!(start(&push(&only("1"), 100, &mut starts), 1), Some(5));
    let both = push(&families, 200, &mut starts);
    assert_eq!((start(&both, 1), start(&both, 2)), (Some(5), Some(100)));
    push(&only("1"), 300, &mut starts);
    let again = push(&families, 400, &mut starts);
    assert_eq!((start(&again, 1), start(&again, 2)), (Some(5), Some(300)), "it was gone, and is another one");
}

/// What a collector answers next; when it has nothing more to say, it takes all.
#[derive(Clone, Debug)]
enum Answer {
    Later(Option<u64>),
    Refuse,
    Reject(i64),
}

/// A collector of both protocols.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Taken>>);

/// Answers that are left, and what was taken: requests, and the key that each had.
type Taken = (VecDeque<Answer>, Vec<ExportMetricsServiceRequest>, Vec<String>);

impl Collector {
    fn answer(&self, request: ExportMetricsServiceRequest, key: String) -> Option<Answer> {
        let mut of = self.0.lock().expect("no panic");
        let answer = of.0.pop_front();
        if matches!(answer, None | Some(Answer::Reject(_))) {
            of.1.push(request);
            of.2.push(key);
        }
        answer
    }

    fn taken(&self) -> usize {
        self.0.lock().expect("no panic").1.len()
    }

    async fn serve(self, listener: TcpListener, tls: Option<TlsAcceptor>, grpc: bool) {
        while let Ok((stream, _)) = listener.accept().await {
            let (of, tls) = (self.clone(), tls.clone());
            tokio::spawn(async move {
                match tls {
                    Some(tls) => {
                        if let Ok(stream) = tls.accept(stream).await {
                            of.connection(stream, grpc).await;
                        }
                    }
                    None => of.connection(stream, grpc).await,
                }
            });
        }
    }

    async fn connection(self, stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static, grpc: bool) {
        let io = TokioIo::new(stream);
        if grpc {
            let service = TowerToHyperService::new(MetricsServiceServer::new(self));
            drop(http2::Builder::new(TokioExecutor::new()).serve_connection(io, service).await);
        } else {
            let router = Router::new().route("/v1/metrics", post(take)).with_state(self);
            drop(http1::Builder::new().serve_connection(io, TowerToHyperService::new(router)).await);
        }
    }
}

async fn take(State(of): State<Collector>, headers: axum::http::HeaderMap, body: Bytes) -> Response {
    assert_eq!(headers["content-type"], "application/x-protobuf");
    let key = headers.get("api-key").map(|key| key.to_str().expect("text").to_owned()).unwrap_or_default();
    let request = ExportMetricsServiceRequest::decode(body).expect("a request");
    let mut response = ExportMetricsServiceResponse::default();
    match of.answer(request, key) {
        None => {}
        Some(Answer::Reject(n)) => response.partial_success = Some(partial(n)),
        Some(Answer::Refuse) => return (StatusCode::BAD_REQUEST, "no such tenant").into_response(),
        Some(Answer::Later(None)) => return StatusCode::SERVICE_UNAVAILABLE.into_response(),
        Some(Answer::Later(Some(after))) => {
            return (StatusCode::TOO_MANY_REQUESTS, [("retry-after", after.to_string())], "slowly").into_response();
        }
    }
    response.encode_to_vec().into_response()
}

#[tonic::async_trait]
impl MetricsService for Collector {
    async fn export(
        &self,
        request: tonic::Request<ExportMetricsServiceRequest>,
    ) -> Result<tonic::Response<ExportMetricsServiceResponse>, tonic::Status> {
        use tonic_types::{ErrorDetails, StatusExt as _};
        let key = request.metadata().get("api-key").map(|key| key.to_str().expect("text").to_owned());
        let mut response = ExportMetricsServiceResponse::default();
        match self.answer(request.into_inner(), key.unwrap_or_default()) {
            None => {}
            Some(Answer::Reject(n)) => response.partial_success = Some(partial(n)),
            Some(Answer::Refuse) => return Err(tonic::Status::invalid_argument("no such tenant")),
            Some(Answer::Later(None)) => return Err(tonic::Status::unavailable("not now")),
            Some(Answer::Later(Some(after))) => {
                let details = ErrorDetails::with_retry_info(Some(Duration::from_secs(after)));
                return Err(tonic::Status::with_error_details(tonic::Code::ResourceExhausted, "slowly", details));
            }
        }
        Ok(tonic::Response::new(response))
    }
}

fn partial(rejected: i64) -> ExportMetricsPartialSuccess {
    ExportMetricsPartialSuccess { rejected_data_points: rejected, error_message: "too old".to_owned() }
}

fn asked(endpoint: String, grpc: bool) -> Asked {
    let protocol = Some(if grpc { Protocol::Grpc } else { Protocol::Http });
    Asked { endpoint, protocol, interval: Duration::from_millis(50), ..Asked::default() }
}

fn environment(name: &str) -> Option<String> {
    (name == "OTEL_EXPORTER_OTLP_HEADERS").then(|| "api-key=secret".to_owned())
}

/// Snapshots for whoever asks.
fn snapshots() -> SnapshotSource {
    let (source, mut requests) = SnapshotSource::channel(4);
    tokio::spawn(async move {
        while let Some(reply) = requests.recv().await {
            let _ = reply.send(everything());
        }
    });
    source
}

async fn until(what: &str, figures: &Figures, done: impl Fn(&PushFigures) -> bool) {
    let waiting = async {
        while !done(&figures.read()) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LIMIT, waiting).await.unwrap_or_else(|_| panic!("{what}: {:?}", figures.read()));
}

/// Check for each protocol that all is pushed, with its headers, that what may come later does, that what is refused or rejected is
/// counted, that a collector that comes back is found, and that there is a last push.
#[tokio::test]
async fn pushing_comes_through() {
    for grpc in [false, true] {
        let socket = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = socket.local_addr().expect("a port");
        // Down at first.
        drop(socket);
        let settings = Settings::new(&asked(format!("http://{address}"), grpc), environment).expect("good settings");
        let figures = Figures::default();
        let push = start(settings, snapshots(), figures.clone());
        until("nobody is there", &figures, |of| of.why.is_some()).await;
        let of = figures.read();
        assert!(of.requests["later"] > 0 && of.points == 0, "{of:?}");
        let why = of.why.unwrap_or_default();
        assert!(why.contains("refused") && !why.contains('{'), "grpc {grpc}: {why}");

        let collector = Collector::default();
        let answers = [Answer::Later(None), Answer::Later(Some(1)), Answer::Refuse, Answer::Reject(3)];
        collector.0.lock().expect("no panic").0.extend(answers);
        let server = TcpListener::bind(address).await.expect("the same port");
        let server = tokio::spawn(collector.clone().serve(server, None, grpc));
        until("it is taken", &figures, |of| of.requests.get("taken").is_some_and(|n| *n >= 3)).await;
        let of = figures.read();
        assert_eq!((of.requests["refused"], of.dropped["rejected"]), (1, 3), "grpc {grpc}: {of:?}");
        assert!(of.dropped["refused"] > 100 && of.requests["later"] >= 3 && of.why.is_none(), "grpc {grpc}: {of:?}");
        assert!(of.last_success_seconds.is_some() && !of.dropped.contains_key("queue_full"), "grpc {grpc}: {of:?}");
        let before = collector.taken();
        tokio::time::timeout(LIMIT, push.finish(everything())).await.expect("it ends");
        assert!(collector.taken() > before, "there is a last one");
        let (requests, keys) = {
            let of = collector.0.lock().expect("no panic");
            (of.1.clone(), of.2.clone())
        };
        let names: BTreeSet<_> = of_page(&families()).into_keys().map(|(name, _)| name).collect();
        for request in &requests {
            let seen: BTreeSet<_> = of_push(&request.resource_metrics).into_keys().map(|(name, _)| name).collect();
            assert!(seen.len() >= names.len() - 2, "grpc {grpc}: {:?}", names.difference(&seen));
        }
        assert!(keys.iter().all(|key| key == "secret"), "{keys:?}");
        let sent: u64 = requests.iter().map(|one| of_push(&one.resource_metrics).len() as u64).sum();
        assert_eq!(figures.read().points + 3, sent, "grpc {grpc}: what was taken is counted");
        server.abort();
    }
}

/// Check for each protocol that a collector must prove who it is, and that it is pushed to when it does.
#[tokio::test]
async fn collectors_are_known_by_their_certificates() {
    let path = std::env::temp_dir().join(format!("profiler-otlp-ca-{}.pem", std::process::id()));
    for grpc in [false, true] {
        let made = || generate_simple_self_signed(vec!["localhost".to_owned()]).expect("a certificate");
        let (own, other) = (made(), made());
        let key = PrivateKeyDer::try_from(own.signing_key.serialize_der()).expect("a key");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let server = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let server = server.expect("versions").with_no_client_auth();
        let mut server = server.with_single_cert(vec![own.cert.der().clone()], key).expect("a server");
        server.alpn_protocols = vec![if grpc { b"h2".to_vec() } else { b"http/1.1".to_vec() }];
        let listener = TcpListener::bind("localhost:0").await.expect("a port");
        let port = listener.local_addr().expect("a port").port();
        let collector = Collector::default();
        let server = tokio::spawn(collector.clone().serve(listener, Some(TlsAcceptor::from(Arc::new(server))), grpc));
        for (authority, is_right) in [(&other, false), (&own, true)] {
            std::fs::write(&path, authority.cert.pem()).expect("a file of our own");
            let asked = Asked { ca_file: Some(path.clone()), ..asked(format!("https://localhost:{port}"), grpc) };
            let settings = Settings::new(&asked, environment).expect("good settings");
            let figures = Figures::default();
            let push = start(settings, snapshots(), figures.clone());
            until("it says something", &figures, |of| !of.requests.is_empty()).await;
            let of = figures.read();
            assert_eq!(of.requests.contains_key("taken"), is_right, "grpc {grpc}: {of:?}");
            let why = of.why.unwrap_or_default();
            assert!(is_right || why.contains("certificate"), "grpc {grpc}: {why}");
            drop(push);
        }
        assert!(collector.taken() > 0);
        server.abort();
    }
    std::fs::remove_file(&path).expect("a file of our own");
}

/// Check that while nobody takes anything no more waits than may, and that what is dropped for it is counted.
#[tokio::test]
async fn what_waits_is_bounded() {
    let settings = Settings::new(&asked("http://127.0.0.1:9".to_owned(), false), environment).expect("good settings");
    let mut settings = settings;
    settings.interval = Duration::from_millis(1);
    let figures = Figures::default();
    let push = start(settings, snapshots(), figures.clone());
    until("the oldest is dropped", &figures, |of| of.dropped.contains_key("queue_full")).await;
    let of = figures.read();
    assert!(of.queue_bytes <= 16 << 20 && of.queue_bytes > 8 << 20, "{of:?}");
    assert!(of.points == 0 && row(crate::metrics::table::Id::OtlpPointsTotal).name == "otlp_points_total");
    tokio::time::timeout(LIMIT, push.finish(everything())).await.expect("it ends");
    assert!(figures.read().dropped["end"] > 0);
}

/// Check that no two resources are the same instance: two runtimes in a container, two hosts that run the same, two profilers.
#[test]
fn instances_are_different() {
    let mut of = (*everything()).clone();
    of.groups = Some(Vec::new());
    of.targets[1].process = of.targets[0].process.clone();
    of.targets[1].runtime = "another";
    let families = SnapshotCollector::new(Arc::new(of), Own::read(None)).collect();
    let mut seen = BTreeSet::new();
    for host in ["one", "two"] {
        let common = [("host.name".to_owned(), host.to_owned())];
        for resource in resources(&families, 2_000_000_000_000_000_000, &mut Starts::since(1), &common) {
            let attributes = resource.resource.expect("a resource").attributes;
            let value = |name: &str| attributes.iter().find(|known| known.key == name).map(text).expect("it is there");
            let instance = (value("service.name"), value("service.instance.id"));
            assert!(instance.1.starts_with(host) && seen.insert(instance.clone()), "{instance:?}");
        }
    }
    assert_eq!(seen.len(), 6, "two targets and the profiler, on each");
}

/// Check that what counts from before the profiler came has no start, and whatever else counts has one.
#[test]
fn older_counts_have_no_start() {
    let now_ns = 2_000_000_000_000_000_000;
    let pushed = resources(&families(), now_ns, &mut Starts::since(1), &[]);
    let mut without = BTreeSet::new();
    for metric in pushed.iter().flat_map(|resource| &resource.scope_metrics[0].metrics) {
        if let Some(metric::Data::Sum(sum)) = &metric.data
            && sum.data_points.iter().any(|point| point.start_time_unix_nano == 0)
        {
            without.insert(metric.name.as_str());
        }
    }
    let runtime = everything().targets[0].runtime;
    let older = METRICS.iter().filter(|row| otel::is_older(row.id)).map(|row| otel::name(row.id, runtime));
    assert_eq!(without.into_iter().map(str::to_owned).collect::<BTreeSet<_>>(), older.collect());
}

/// Check that what is on its way at the end, to a collector that does not answer, is counted as dropped and not forgotten.
#[tokio::test(start_paused = true)]
async fn what_is_on_its_way_at_the_end_is_counted() {
    for grpc in [false, true] {
        let silent = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = silent.local_addr().expect("a port");
        let mut settings =
            Settings::new(&asked(format!("http://{address}"), grpc), environment).expect("good settings");
        // Only the last snapshot is pushed.
        settings.interval = Duration::from_secs(3600);
        let figures = Figures::default();
        let push = start(settings, snapshots(), figures.clone());
        push.finish(everything()).await;
        let of = figures.read();
        assert!(of.dropped.get("end").is_some_and(|points| *points > 100), "grpc {grpc}: {of:?}");
        assert_eq!((of.points, of.queue_bytes, of.dropped.len()), (0, 0, 1), "grpc {grpc}: {of:?}");
    }
}
