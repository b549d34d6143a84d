//! The families of a page as OTLP: a resource for each target and one for the profiler, and requests that are not too large. Pure:
//! never a clock, never a connection.

use std::collections::HashMap;
use std::sync::LazyLock;

use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value};
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, Gauge, Histogram, HistogramDataPoint, Metric, NumberDataPoint, ResourceMetrics,
    ScopeMetrics, Sum, metric, number_data_point,
};
use opentelemetry_proto::tonic::resource::v1::Resource;
use prometheus::proto;
use prost::Message as _;

use crate::metrics::otel::{self, Instrument};
use crate::metrics::table::{self, GROUP_LABELS, Id, METRICS, Scope, TARGET_LABELS, Unit};

/// Who says all of this.
const SCOPE: &str = env!("CARGO_PKG_NAME");

/// Since when each resource has counted. What counts of one that was not there at the last push began after it.
#[derive(Debug)]
pub struct Starts {
    known: HashMap<Vec<String>, u64>,
    last_ns: u64,
}

impl Starts {
    /// Whoever is there at the first push has counted since this time at the earliest, nanoseconds since the epoch.
    pub fn since(start_ns: u64) -> Starts {
        Starts { known: HashMap::new(), last_ns: start_ns }
    }
}

/// A request in the making, encoded, and how many data points it has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    /// An `ExportMetricsServiceRequest`.
    pub bytes: Vec<u8>,
    /// Data points in it.
    pub points: u64,
}

/// The resources of a page, at `now_ns` since the epoch. `common` are attributes that all of them have.
pub fn resources(
    families: &[proto::MetricFamily],
    now_ns: u64,
    starts: &mut Starts,
    common: &[(String, String)],
) -> Vec<ResourceMetrics> {
    let mut places: HashMap<Vec<String>, usize> = HashMap::new();
    let mut resources: Vec<Building> = Vec::new();
    let own_start_ns = value_of(families, Id::ProcessStartTimeSeconds).map_or(starts.last_ns, |s| (s * 1e9) as u64);
    for family in families {
        // Another family is none of ours.
        let Some(&id) = IDS.get(family.name()) else { continue };
        let row = table::metric(id);
        for series in family.get_metric() {
            let (who, own) = split(row.scope, series.get_label());
            let place =
                *places.entry(who.iter().map(|(_, value)| (*value).to_owned()).collect()).or_insert_with_key(|key| {
                    let last_ns = starts.last_ns;
                    let start_ns = match row.scope {
                        Scope::Target => *starts.known.entry(key.clone()).or_insert(last_ns),
                        Scope::Profiler => own_start_ns,
                    };
                    // A clock that was set back must not have it begin later than now.
                    resources.push(Building::new(row.scope, &who, common, start_ns.min(now_ns)));
                    resources.len() - 1
                });
            resources[place].add(id, series, &own, now_ns);
        }
    }
    starts.known.retain(|key, _| places.contains_key(key));
    starts.last_ns = now_ns;
    resources.into_iter().map(Building::done).collect()
}

/// Requests of at most `most` bytes, as few as there may be. A data point is never divided.
pub fn requests(resources: Vec<ResourceMetrics>, most: usize) -> Vec<Encoded> {
    // What a field needs beside its content: a key and a length.
    const FRAME: usize = 6;
    let mut requests = Vec::new();
    let (mut open, mut size) = (Vec::new(), 0);
    let mut waiting: Vec<ResourceMetrics> = resources.into_iter().rev().collect();
    while let Some(mut resource) = waiting.pop() {
        let bytes = resource.encoded_len() + FRAME;
        if bytes > most
            && let Some(half) = halve(&mut resource)
        {
            waiting.push(half);
            waiting.push(resource);
            continue;
        }
        if size + bytes > most && !open.is_empty() {
            requests.push(encode(std::mem::take(&mut open)));
            size = 0;
        }
        size += bytes;
        open.push(resource);
    }
    if !open.is_empty() {
        requests.push(encode(open));
    }
    requests
}

fn encode(resource_metrics: Vec<ResourceMetrics>) -> Encoded {
    let points = resource_metrics.iter().flat_map(metrics_of).map(points_of).sum::<usize>() as u64;
    Encoded { bytes: ExportMetricsServiceRequest { resource_metrics }.encode_to_vec(), points }
}

fn metrics_of(resource: &ResourceMetrics) -> impl Iterator<Item = &Metric> {
    resource.scope_metrics.iter().flat_map(|scope| &scope.metrics)
}

fn points_of(of: &Metric) -> usize {
    match &of.data {
        Some(metric::Data::Gauge(gauge)) => gauge.data_points.len(),
        Some(metric::Data::Sum(sum)) => sum.data_points.len(),
        Some(metric::Data::Histogram(histogram)) => histogram.data_points.len(),
        _ => 0,
    }
}

/// Takes half of its metrics, or of the data points of its only one; `None` where it has no more than one.
fn halve(resource: &mut ResourceMetrics) -> Option<ResourceMetrics> {
    let [scope] = resource.scope_metrics.as_mut_slice() else { return None };
    let metrics = if scope.metrics.len() > 1 {
        scope.metrics.split_off(scope.metrics.len() / 2)
    } else {
        let one = scope.metrics.first_mut().filter(|one| points_of(one) > 1)?;
        let at = points_of(one) / 2;
        let mut half = one.clone();
        match (&mut one.data, &mut half.data) {
            (Some(metric::Data::Gauge(one)), Some(metric::Data::Gauge(half))) => {
                half.data_points = one.data_points.split_off(at);
            }
            (Some(metric::Data::Sum(one)), Some(metric::Data::Sum(half))) => {
                half.data_points = one.data_points.split_off(at);
            }
            (Some(metric::Data::Histogram(one)), Some(metric::Data::Histogram(half))) => {
                half.data_points = one.data_points.split_off(at);
            }
            _ => return None,
        }
        vec![half]
    };
    let scope_metrics = vec![ScopeMetrics { scope: scope.scope.clone(), metrics, ..ScopeMetrics::default() }];
    Some(ResourceMetrics { resource: resource.resource.clone(), scope_metrics, ..ResourceMetrics::default() })
}

static IDS: LazyLock<HashMap<String, Id>> =
    LazyLock::new(|| METRICS.iter().map(|row| (row.full_name(), row.id)).collect());

fn value_of(families: &[proto::MetricFamily], id: Id) -> Option<f64> {
    let name = table::metric(id).full_name();
    let series = families.iter().find(|family| family.name() == name)?.get_metric().first()?;
    Some(series.get_gauge().get_value())
}

type Labels<'a> = Vec<(&'a str, &'a str)>;

/// The labels that say whose series it is, and its own.
fn split(scope: Scope, labels: &[proto::LabelPair]) -> (Labels<'_>, Labels<'_>) {
    let is_of_target =
        |name: &str| scope == Scope::Target && (TARGET_LABELS.contains(&name) || GROUP_LABELS.contains(&name));
    labels.iter().map(|pair| (pair.name(), pair.value())).partition(|(name, _)| is_of_target(name))
}

/// A resource, and its metrics so far: those of one family come one after the other.
struct Building {
    attributes: Vec<KeyValue>,
    runtime: String,
    start_ns: u64,
    metrics: Vec<(Id, Metric)>,
}

impl Building {
    fn new(scope: Scope, who: &Labels<'_>, common: &[(String, String)], start_ns: u64) -> Building {
        let label = |name: &str| who.iter().find(|(label, _)| *label == name).map_or("", |(_, value)| *value);
        let [process, runtime, pid] = TARGET_LABELS.map(label);
        let [namespace, pod, container] = ["namespace", "pod", "container"].map(label);
        let of_common = |name: &str| common.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str());
        let node = of_common("k8s.node.name").or_else(|| of_common("host.name")).unwrap_or_default();
        let mut named = Vec::new();
        if scope == Scope::Target {
            // As the conventions have it: what a service is called where nobody says so, and which one of its instances.
            let service = if pod.is_empty() || container.is_empty() { process } else { container };
            let instance = instance(&[node, namespace, pod, container, process, runtime, pid]);
            named.extend([("service.name", service.to_owned()), ("service.instance.id", instance)]);
            named.extend([
                ("process.executable.name", process.to_owned()),
                ("process.runtime.name", runtime.to_owned()),
                ("k8s.namespace.name", namespace.to_owned()),
                ("k8s.pod.name", pod.to_owned()),
                // Its short id where its name is not known.
                (if pod.is_empty() { "container.id" } else { "k8s.container.name" }, container.to_owned()),
            ]);
        } else {
            named.push(("service.name", SCOPE.to_owned()));
            named.push(("service.version", env!("CARGO_PKG_VERSION").to_owned()));
            // One is named by whoever runs it, or by where it runs: there is one on each node.
            if common.iter().all(|(name, _)| name != "service.instance.id") {
                named.push(("service.instance.id", instance(&[node, &std::process::id().to_string()])));
            }
        }
        let mut attributes: Vec<KeyValue> =
            named.into_iter().filter(|(_, value)| !value.is_empty()).map(|(name, value)| text(name, value)).collect();
        if let Ok(pid) = pid.parse::<i64>() {
            attributes.push(attribute("process.pid", any_value::Value::IntValue(pid)));
        }
        for (name, value) in common {
            if attributes.iter().all(|known| known.key != *name) {
                attributes.push(text(name, value.clone()));
            }
        }
        Building { attributes, runtime: runtime.to_owned(), start_ns, metrics: Vec::new() }
    }

    fn add(&mut self, id: Id, series: &proto::Metric, labels: &Labels<'_>, now_ns: u64) {
        let row = table::metric(id);
        let instrument = Instrument::of(row);
        if self.metrics.last().is_none_or(|(last, _)| *last != id) {
            let data = match instrument {
                Instrument::Gauge => metric::Data::Gauge(Gauge::default()),
                Instrument::Histogram => metric::Data::Histogram(Histogram {
                    aggregation_temporality: AggregationTemporality::Cumulative.into(),
                    ..Histogram::default()
                }),
                Instrument::Counter | Instrument::UpDownCounter => metric::Data::Sum(Sum {
                    aggregation_temporality: AggregationTemporality::Cumulative.into(),
                    is_monotonic: instrument == Instrument::Counter,
                    ..Sum::default()
                }),
            };
            let metric = Metric {
                name: otel::name(id, &self.runtime),
                description: row.help.to_owned(),
                unit: otel::unit(id).to_owned(),
                data: Some(data),
                ..Metric::default()
            };
            self.metrics.push((id, metric));
        }
        let names = row.labels.iter().filter_map(|label| {
            let value = labels.iter().find(|(name, _)| name == label)?.1;
            Some(text(otel::attribute(id, label), value.to_owned()))
        });
        let attributes: Vec<KeyValue> = names.collect();
        let number = |value: f64, start_ns| NumberDataPoint {
            attributes: attributes.clone(),
            start_time_unix_nano: start_ns,
            time_unix_nano: now_ns,
            value: Some(match row.unit {
                Unit::Count | Unit::Bytes => number_data_point::Value::AsInt(value as i64),
                Unit::Seconds | Unit::State => number_data_point::Value::AsDouble(value),
            }),
            ..NumberDataPoint::default()
        };
        match self.metrics.last_mut().and_then(|(_, metric)| metric.data.as_mut()) {
            Some(metric::Data::Gauge(gauge)) => gauge.data_points.push(number(series.get_gauge().get_value(), 0)),
            Some(metric::Data::Sum(sum)) => {
                let value =
                    if sum.is_monotonic { series.get_counter().get_value() } else { series.get_gauge().get_value() };
                // 0 is a start that is not known: a later one would make a rate of what was counted long before.
                sum.data_points.push(number(value, if otel::is_older(id) { 0 } else { self.start_ns }));
            }
            Some(metric::Data::Histogram(histogram)) => {
                let of = series.get_histogram();
                histogram.data_points.push(point(of, attributes, self.start_ns, now_ns));
            }
            _ => {}
        }
    }

    fn done(self) -> ResourceMetrics {
        let scope = InstrumentationScope {
            name: SCOPE.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..InstrumentationScope::default()
        };
        let metrics = self.metrics.into_iter().map(|(_, metric)| metric).collect();
        let scope_metrics = vec![ScopeMetrics { scope: Some(scope), metrics, ..ScopeMetrics::default() }];
        let resource = Resource { attributes: self.attributes, ..Resource::default() };
        ResourceMetrics { resource: Some(resource), scope_metrics, ..ResourceMetrics::default() }
    }
}

/// Which instance of its service it is, among those of all nodes: stores may keep no other attribute of a resource with its series.
fn instance(parts: &[&str]) -> String {
    parts.iter().filter(|part| !part.is_empty()).copied().collect::<Vec<_>>().join("/")
}

/// A histogram: OTLP has the count of each bucket by itself, and one more bucket for what is above the last bound.
fn point(of: &proto::Histogram, attributes: Vec<KeyValue>, start_ns: u64, now_ns: u64) -> HistogramDataPoint {
    let mut below = 0;
    let mut bucket_counts: Vec<u64> = of
        .get_bucket()
        .iter()
        .map(|bucket| bucket.cumulative_count() - std::mem::replace(&mut below, bucket.cumulative_count()))
        .collect();
    bucket_counts.push(of.get_sample_count() - below);
    HistogramDataPoint {
        attributes,
        start_time_unix_nano: start_ns,
        time_unix_nano: now_ns,
        count: of.get_sample_count(),
        sum: Some(of.get_sample_sum()),
        bucket_counts,
        explicit_bounds: of.get_bucket().iter().map(proto::Bucket::upper_bound).collect(),
        ..HistogramDataPoint::default()
    }
}

fn text(name: &str, value: String) -> KeyValue {
    attribute(name, any_value::Value::StringValue(value))
}

fn attribute(name: &str, value: any_value::Value) -> KeyValue {
    KeyValue { key: name.to_owned(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
}
