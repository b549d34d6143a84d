//! One request to the collector, over HTTP or by gRPC, and what came of it. Never when, and never again.

use std::time::Duration;

use axum::http::header::{CONTENT_TYPE, RETRY_AFTER, USER_AGENT};
use axum::http::uri::PathAndQuery;
use axum::http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use bytes::{Buf as _, BufMut as _, Bytes};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceResponse;
use prost::Message as _;
use rustls::ClientConfig;
use tokio::time::timeout;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use super::settings::{Protocol, Settings};
use crate::remote::{bounded, reason};

/// The longest answer that is read, bytes.
const ANSWER: usize = 64 << 10;
/// The method of gRPC (opentelemetry/proto/collector/metrics/v1/metrics_service.proto).
const METHOD: &str = "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export";
const AGENT: &str = concat!("profiler/", env!("CARGO_PKG_VERSION"));

/// What came of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was taken, but for so many data points, and what was said of them.
    Taken {
        /// Data points that were not.
        rejected: u64,
        /// Why; empty where nothing was said.
        why: String,
    },
    /// It may be taken later.
    Later {
        /// Why not now.
        why: String,
        /// After so long, where the collector said so.
        after: Option<Duration>,
    },
    /// It will never be taken.
    Refused {
        /// Why.
        why: String,
    },
}

/// A way to the collector. Connections are kept open between requests.
pub struct Transport {
    settings: Settings,
    way: Way,
}

type Https = HttpsConnector<HttpConnector>;

enum Way {
    Http(Client<Https, Full<Bytes>>),
    Grpc(Client<Https, tonic::body::Body>),
}

impl Transport {
    /// One that has no connection yet.
    pub fn new(settings: Settings) -> Transport {
        let mut http = HttpConnector::new();
        http.enforce_http(false);
        http.set_nodelay(true);
        http.set_connect_timeout(Some(settings.timeout));
        // Without TLS nobody's certificate is asked for.
        let tls = settings.tls.clone().unwrap_or_else(nobody);
        let builder = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http();
        let way = match settings.protocol {
            Protocol::Http => {
                Way::Http(Client::builder(TokioExecutor::new()).build(builder.enable_http1().wrap_connector(http)))
            }
            Protocol::Grpc => {
                let mut client = Client::builder(TokioExecutor::new());
                Way::Grpc(client.http2_only(true).build(builder.enable_http2().wrap_connector(http)))
            }
        };
        Transport { settings, way }
    }

    /// Sends an encoded request.
    pub async fn send(&self, body: Bytes) -> Outcome {
        let sent = async {
            match &self.way {
                Way::Http(client) => self.post(client, body).await,
                Way::Grpc(client) => self.call(client.clone(), body).await,
            }
        };
        let limit = self.settings.timeout;
        let late = || Outcome::Later { why: format!("no answer for {} s", limit.as_secs_f64()), after: None };
        timeout(limit, sent).await.unwrap_or_else(|_| late())
    }

    async fn post(&self, client: &Client<Https, Full<Bytes>>, body: Bytes) -> Outcome {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.settings.uri.clone();
        let headers = request.headers_mut();
        headers.insert(USER_AGENT, HeaderValue::from_static(AGENT));
        headers.extend(self.settings.headers.clone());
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
        match client.request(request).await {
            Ok(response) => answered(response).await,
            Err(e) => Outcome::Later { why: reason(&e), after: None },
        }
    }

    async fn call(&self, client: Client<Https, tonic::body::Body>, body: Bytes) -> Outcome {
        let mut grpc = tonic::client::Grpc::with_origin(client, self.settings.uri.clone());
        if let Err(e) = grpc.ready().await {
            return Outcome::Later { why: reason(&e), after: None };
        }
        let mut request = tonic::Request::new(body);
        let mut headers = self.settings.headers.clone();
        headers.entry(USER_AGENT).or_insert(HeaderValue::from_static(AGENT));
        *request.metadata_mut() = tonic::metadata::MetadataMap::from_headers(headers);
        match grpc.unary(request, PathAndQuery::from_static(METHOD), Raw).await {
            Ok(response) => taken(&response.into_inner()),
            Err(status) => failed(&status),
        }
    }
}

/// A client that trusts nobody.
fn nobody() -> ClientConfig {
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let versions = ClientConfig::builder_with_provider(provider).with_protocol_versions(&[&rustls::version::TLS13]);
    versions.expect("ring has TLS 1.3").with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth()
}

/// What a response of HTTP says (OTLP/HTTP specification, "Failures").
async fn answered(response: Response<Incoming>) -> Outcome {
    let status = response.status();
    let after = retry_after(response.headers());
    let body =
        Limited::new(response.into_body(), ANSWER).collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    if status.is_success() {
        // An answer that is none says at least that it was taken.
        return taken(&ExportMetricsServiceResponse::decode(body).unwrap_or_default());
    }
    // It should be a Status of protobuf; many send text.
    let said = tonic_types::Status::decode(body.clone()).map(|status| status.message).unwrap_or_default();
    let said = if said.is_empty() { String::from_utf8_lossy(&body).into_owned() } else { said };
    let why = bounded(&format!("{status} {said}"));
    match status {
        StatusCode::TOO_MANY_REQUESTS
        | StatusCode::BAD_GATEWAY
        | StatusCode::SERVICE_UNAVAILABLE
        | StatusCode::GATEWAY_TIMEOUT => Outcome::Later { why, after },
        _ => Outcome::Refused { why },
    }
}

/// In seconds; a date is not told often enough to be read.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok().map(Duration::from_secs)
}

fn taken(response: &ExportMetricsServiceResponse) -> Outcome {
    let partial = response.partial_success.clone().unwrap_or_default();
    let rejected = u64::try_from(partial.rejected_data_points).unwrap_or_default();
    Outcome::Taken { rejected, why: bounded(&partial.error_message) }
}

/// What a status of gRPC says (OTLP/gRPC specification, "Failures").
fn failed(status: &Status) -> Outcome {
    let after = status.get_details_retry_info().and_then(|info| info.retry_delay);
    // What tonic itself says of a connection is for programmers.
    let cause = std::error::Error::source(status).map(reason);
    let why = bounded(&format!("{}: {}", status.code().description(), status.message()));
    match status.code() {
        Code::Cancelled
        | Code::DeadlineExceeded
        | Code::Aborted
        | Code::OutOfRange
        | Code::Unavailable
        | Code::DataLoss => Outcome::Later { why, after },
        // Only if it says when it will be better.
        Code::ResourceExhausted if after.is_some() => Outcome::Later { why, after },
        // What the transport itself says: there was no connection.
        Code::Unknown if cause.is_some() => Outcome::Later { why: cause.unwrap_or(why), after },
        _ => Outcome::Refused { why },
    }
}

/// Requests are encoded already, once for all attempts.
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = ExportMetricsServiceResponse;
    type Encoder = Raw;
    type Decoder = Raw;

    fn encoder(&mut self) -> Raw {
        Raw
    }

    fn decoder(&mut self) -> Raw {
        Raw
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = ExportMetricsServiceResponse;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<ExportMetricsServiceResponse>, Status> {
        let bytes = from.copy_to_bytes(from.remaining());
        ExportMetricsServiceResponse::decode(bytes).map(Some).map_err(|e| Status::internal(e.to_string()))
    }
}
