//! The table of metrics, the label policy, and the page made of a snapshot. Never how a page is served.

pub mod collector;
pub mod document;
pub mod labels;
pub mod otel;
pub mod own;
pub mod series;
pub mod table;

use std::sync::Arc;

use prometheus::TextEncoder;

pub use collector::SnapshotCollector;
pub use document::document;
pub use own::Own;

use crate::model::snapshot::Snapshot;

/// Content type of [`page`].
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// A page that could not be encoded.
#[derive(Debug, thiserror::Error)]
#[error("failed to encode the page of metrics: {0}")]
pub struct PageError(#[from] prometheus::Error);

/// The page of a snapshot in the Prometheus text format, version 0.0.4.
///
/// # Errors
/// A family has no name or no series, which the collector excludes.
pub fn page(snapshot: Arc<Snapshot>, own: Own) -> Result<String, PageError> {
    let mut page = String::new();
    let mut encoded = Ok(());
    SnapshotCollector::new(snapshot, own).each(&mut |family| {
        if encoded.is_ok() {
            encoded = TextEncoder::new().encode_utf8(&[family], &mut page);
        }
    });
    encoded?;
    Ok(page)
}

#[cfg(test)]
pub(crate) mod tests;
