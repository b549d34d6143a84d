//! Where metrics are pushed to, and how: from the command line, and from OpenTelemetry's environment for what it does not say.
//! Everything is refused here that could not work later. Never a connection.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::http::uri::{PathAndQuery, Scheme};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Uri};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};

/// The path of metrics below an endpoint (OTLP/HTTP specification).
const METRICS_PATH: &str = "v1/metrics";
/// What a request may take where nothing says otherwise.
const TIMEOUT: Duration = Duration::from_secs(10);

/// What was asked for.
#[derive(Clone, Debug, Default)]
pub struct Asked {
    /// Where to; empty for the environment's.
    pub endpoint: String,
    /// By which protocol.
    pub protocol: Option<Protocol>,
    /// How often.
    pub interval: Duration,
    /// A file with headers.
    pub headers_file: Option<PathBuf>,
    /// A file with certificates that are trusted.
    pub ca_file: Option<PathBuf>,
}

/// How a request is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Protobuf over HTTP/1.1.
    Http,
    /// gRPC, over HTTP/2.
    Grpc,
}

impl std::str::FromStr for Protocol {
    type Err = String;

    fn from_str(text: &str) -> Result<Protocol, String> {
        match text {
            "http/protobuf" => Ok(Protocol::Http),
            "grpc" => Ok(Protocol::Grpc),
            _ => Err("must be http/protobuf or grpc".to_owned()),
        }
    }
}

/// All that is known before the first request.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where to; of gRPC without a path.
    pub uri: Uri,
    /// By which protocol.
    pub protocol: Protocol,
    /// How often.
    pub interval: Duration,
    /// How long a request may take.
    pub timeout: Duration,
    /// Sent with each.
    pub headers: HeaderMap,
    /// Attributes of all resources.
    pub attributes: Vec<(String, String)>,
    /// Who is trusted, where it is encrypted.
    pub tls: Option<ClientConfig>,
}

impl Settings {
    /// What was asked for, completed by the environment.
    ///
    /// # Errors
    /// It cannot work, and why, in one line.
    pub fn new(asked: &Asked, environment: impl Fn(&str) -> Option<String>) -> Result<Settings, String> {
        let variable = |name: &str| {
            let of = |prefix: &str| environment(&format!("{prefix}{name}")).filter(|value| !value.is_empty());
            of("OTEL_EXPORTER_OTLP_METRICS_").or_else(|| of("OTEL_EXPORTER_OTLP_"))
        };
        let protocol = match (asked.protocol, variable("PROTOCOL")) {
            (Some(protocol), _) => protocol,
            (None, Some(text)) => {
                text.parse().map_err(|e| format!("OTEL_EXPORTER_OTLP_PROTOCOL {e}, and is `{text}`"))?
            }
            (None, None) => Protocol::Http,
        };
        let whole = environment("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT").filter(|value| !value.is_empty());
        let uri = match (asked.endpoint.as_str(), whole) {
            ("", Some(whole)) => endpoint(&whole, protocol, true)?,
            ("", None) => {
                let base = variable("ENDPOINT").ok_or(
                    "--otlp.endpoint needs a URL, as http://collector:4318, or one in OTEL_EXPORTER_OTLP_ENDPOINT",
                )?;
                endpoint(&base, protocol, false)?
            }
            (text, _) => endpoint(text, protocol, false)?,
        };
        let mut headers = HeaderMap::new();
        if let Some(text) = variable("HEADERS") {
            for (name, value) in pairs(&text).map_err(|e| format!("OTEL_EXPORTER_OTLP_HEADERS {e}"))? {
                add(&mut headers, &name, &value).map_err(|e| format!("OTEL_EXPORTER_OTLP_HEADERS {e}"))?;
            }
        }
        if let Some(path) = &asked.headers_file {
            read_headers(path, &mut headers)?;
        }
        let timeout = match variable("TIMEOUT") {
            None => TIMEOUT,
            Some(text) => match text.parse::<u64>() {
                Ok(ms) if ms > 0 => Duration::from_millis(ms),
                _ => return Err(format!("OTEL_EXPORTER_OTLP_TIMEOUT is a number of milliseconds, and is `{text}`")),
            },
        };
        let attributes = environment("OTEL_RESOURCE_ATTRIBUTES").unwrap_or_default();
        let mut attributes = pairs(&attributes).map_err(|e| format!("OTEL_RESOURCE_ATTRIBUTES {e}"))?;
        attributes.extend(host(&environment));
        let ca_file = asked.ca_file.clone().or_else(|| variable("CERTIFICATE").map(PathBuf::from));
        let tls = match uri.scheme() == Some(&Scheme::HTTPS) {
            true => Some(tls(ca_file.as_deref())?),
            false => None,
        };
        Ok(Settings { uri, protocol, interval: asked.interval, timeout, headers, attributes, tls })
    }
}

/// Where this runs: a container's own name says nothing, and is not told.
fn host(environment: &impl Fn(&str) -> Option<String>) -> Option<(String, String)> {
    if let Some(node) = environment("NODE_NAME").filter(|node| !node.is_empty()) {
        return Some(("k8s.node.name".to_owned(), node));
    }
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    (!name.is_empty()).then(|| ("host.name".to_owned(), name))
}

fn endpoint(text: &str, protocol: Protocol, is_whole: bool) -> Result<Uri, String> {
    let wrong = |why: &str| format!("`{text}` is no endpoint of OTLP: {why}, as http://collector:4318");
    let uri: Uri = text.parse().map_err(|_| wrong("it is no URL"))?;
    let mut parts = uri.into_parts();
    if !parts.scheme.as_ref().is_some_and(|scheme| [Scheme::HTTP, Scheme::HTTPS].contains(scheme)) {
        return Err(wrong("it must begin with http:// or https://"));
    }
    if parts.authority.as_ref().is_none_or(|authority| authority.host().is_empty() || authority.as_str().contains('@'))
    {
        return Err(wrong("it must have a host, and no user (headers are in --otlp.headers-file)"));
    }
    let path = parts.path_and_query.as_ref().map_or("/", PathAndQuery::as_str);
    let path = match protocol {
        Protocol::Grpc if path == "/" => "/".to_owned(),
        Protocol::Grpc => return Err(wrong("that of gRPC has no path")),
        Protocol::Http if is_whole || path.trim_end_matches('/').ends_with(METRICS_PATH) => path.to_owned(),
        Protocol::Http => format!("{}/{METRICS_PATH}", path.trim_end_matches('/')),
    };
    parts.path_and_query = Some(path.parse().map_err(|_| wrong("its path is none"))?);
    Uri::from_parts(parts).map_err(|_| wrong("it is no URL"))
}

/// `name=value,name=value`, where values are percent-encoded (W3C Baggage).
fn pairs(text: &str) -> Result<Vec<(String, String)>, String> {
    let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
    items
        .map(|item| {
            let (name, value) = item.split_once('=').ok_or_else(|| format!("has `{item}`, which is no name=value"))?;
            let value = decode(value.trim()).ok_or_else(|| format!("has a value of `{name}` that is not encoded"))?;
            Ok((name.trim().to_owned(), value))
        })
        .collect()
}

fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        if first == b'%' {
            let digits = std::str::from_utf8(after.get(..2)?).ok()?;
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
            rest = &after[2..];
        } else {
            bytes.push(first);
            rest = after;
        }
    }
    String::from_utf8(bytes).ok()
}

fn add(headers: &mut HeaderMap, name: &str, value: &str) -> Result<(), String> {
    let header: HeaderName = name.parse().map_err(|_| format!("has `{name}`, which is no name of a header"))?;
    let mut value: HeaderValue =
        value.parse().map_err(|_| format!("has a value of `{name}` that no header can have"))?;
    value.set_sensitive(true);
    headers.insert(header, value);
    Ok(())
}

/// A line each, as `name: value`; empty ones and those that begin with # are passed over.
fn read_headers(path: &Path, headers: &mut HeaderMap) -> Result<(), String> {
    let text = std::fs::read_to_string(path).map_err(|e| format!("failed to read `{}`: {e}", path.display()))?;
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let place = format!("`{}`, line {}", path.display(), number + 1);
        let (name, value) = line.split_once(':').ok_or_else(|| format!("{place}: a header is as `name: value`"))?;
        add(headers, name.trim(), value.trim()).map_err(|e| format!("{place} {e}"))?;
    }
    Ok(())
}

/// Who is trusted: whose certificates are in the file, or else whom the host trusts.
fn tls(ca_file: Option<&Path>) -> Result<ClientConfig, String> {
    let mut roots = RootCertStore::empty();
    match ca_file {
        Some(path) => {
            let failed =
                |e: &dyn std::fmt::Display| format!("failed to read certificates of `{}`: {e}", path.display());
            for certificate in CertificateDer::pem_file_iter(path).map_err(|e| failed(&e))? {
                roots.add(certificate.map_err(|e| failed(&e))?).map_err(|e| failed(&e))?;
            }
            if roots.is_empty() {
                return Err(failed(&"there is none in it"));
            }
        }
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            if roots.is_empty() {
                return Err("this host trusts nobody's certificate: name a file with --otlp.ca-file".to_owned());
            }
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.map_err(|e| format!("failed to set up TLS: {e}"))?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(asked: &Asked, environment: &[(&str, &str)]) -> Result<Settings, String> {
        let of =
            |name: &str| environment.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
        Settings::new(asked, of)
    }

    fn asked(endpoint: &str, protocol: Option<Protocol>) -> Asked {
        Asked { endpoint: endpoint.to_owned(), protocol, ..Asked::default() }
    }

    #[test]
    fn endpoints() {
        let (http, grpc) = (Some(Protocol::Http), Some(Protocol::Grpc));
        for (endpoint, protocol, uri) in [
            ("http://c:4318", None, "http://c:4318/v1/metrics"),
            ("http://c:4318/", http, "http://c:4318/v1/metrics"),
            ("http://c/otlp/", http, "http://c/otlp/v1/metrics"),
            ("http://c/otlp/v1/metrics", http, "http://c/otlp/v1/metrics"),
            ("http://c:4317", grpc, "http://c:4317/"),
        ] {
            let settings = settings(&asked(endpoint, protocol), &[]).expect("a good endpoint");
            assert_eq!(settings.uri.to_string(), uri);
        }
        for (endpoint, protocol, reason) in [
            ("c:4318", None, "http://"),
            ("ftp://c", None, "http://"),
            ("http://user:secret@c", None, "no user"),
            ("http://c/x", grpc, "no path"),
            ("", None, "OTEL_EXPORTER_OTLP_ENDPOINT"),
        ] {
            let refused = settings(&asked(endpoint, protocol), &[]).expect_err("a bad endpoint");
            assert!(refused.contains(reason) && !refused.contains('\n'), "{refused}");
        }
    }

    /// Check that the environment completes the command line and does not replace it, and that what is of metrics comes first.
    #[test]
    fn the_environment_completes() {
        let environment = [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://base:1/x"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "api-key=a%20b, other=c"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "1500"),
            ("OTEL_RESOURCE_ATTRIBUTES", "team=shop"),
            ("NODE_NAME", "node-1"),
        ];
        let of = settings(&asked("", None), &environment).expect("a good environment");
        assert_eq!(of.uri.to_string(), "http://base:1/x/v1/metrics");
        assert_eq!((of.headers["api-key"].as_bytes(), of.timeout.as_millis()), (&b"a b"[..], 1500));
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(of.attributes, [pair("team", "shop"), pair("k8s.node.name", "node-1")]);
        assert_eq!(settings(&asked("http://flag", None), &environment).expect("a flag").uri.host(), Some("flag"));
        let whole = [environment.as_slice(), &[("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "http://whole/y")]].concat();
        assert_eq!(settings(&asked("", None), &whole).expect("its own").uri.to_string(), "http://whole/y");
        for bad in [
            ("OTEL_EXPORTER_OTLP_HEADERS", "a"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "a b=c"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "a=%zz"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json"),
            ("OTEL_RESOURCE_ATTRIBUTES", "x"),
        ] {
            let refused = settings(&asked("http://c", None), &[bad]).expect_err("a bad variable");
            assert!(refused.contains(bad.0) && !refused.contains('\n'), "{refused}");
        }
    }

    #[test]
    fn files() {
        let path = std::env::temp_dir().join(format!("profiler-otlp-{}", std::process::id()));
        let with = |text: &str, asked: &Asked| {
            std::fs::write(&path, text).expect("a file of our own");
            settings(asked, &[])
        };
        let headers = Asked { headers_file: Some(path.clone()), ..asked("http://c", None) };
        let good = with("# A comment.\nAuthorization: Bearer x:y\n", &headers).expect("good headers");
        assert_eq!(good.headers["authorization"], "Bearer x:y");
        assert!(!format!("{good:?}").contains("Bearer"), "no log has it");
        assert!(with("\nAuthorization\n", &headers).expect_err("no value").contains("line 2"));
        let trusted = Asked { ca_file: Some(path.clone()), ..asked("https://c", None) };
        assert!(with("nothing\n", &trusted).expect_err("no certificate").contains("none in it"));
        std::fs::remove_file(&path).expect("a file of our own");
        assert!(settings(&trusted, &[]).expect_err("no file").contains("failed to read"));
    }
}
