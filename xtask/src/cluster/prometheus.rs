//! What a real Prometheus has of the agent's page. Never the page itself.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use super::agent::PORT;

const SERVER: &str = "http://127.0.0.1:9090";

/// Has it scrape this address, and no other.
pub fn scrape(targets: &Path, address: &str) -> Result<()> {
    let new = targets.with_extension("new");
    fs::write(&new, json!([{ "targets": [format!("{address}:{PORT}")] }]).to_string())?;
    Ok(fs::rename(new, targets)?)
}

/// The series that an expression gives at this moment.
pub fn query(expression: &str) -> Result<Vec<Series>> {
    let mut promtool = Command::new("promtool");
    let output = promtool.args(["query", "instant", "--format", "json", SERVER, expression]).output();
    let output = output.context("failed to run promtool")?;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr);
        bail!("failed to query `{expression}`: {}", words.lines().last().unwrap_or_default());
    }
    let answer: Value = serde_json::from_slice(&output.stdout).context("promtool has printed no JSON")?;
    Ok(answer.as_array().into_iter().flatten().filter_map(series).collect())
}

/// A series and its value.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    labels: Value,
    pub value: f64,
}

impl Series {
    /// A label's value; empty where there is none, as Prometheus has it.
    pub fn label(&self, name: &str) -> &str {
        self.labels[name].as_str().unwrap_or_default()
    }
}

fn series(entry: &Value) -> Option<Series> {
    Some(Series { labels: entry["metric"].clone(), value: entry["value"][1].as_str()?.parse().ok()? })
}
