//! `cargo xtask docs`: writes the generated pages again. The tests compare them with what is committed.

use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::build;
use crate::process::root;

/// Writes docs/metrics.md from the table of metrics.
pub fn write() -> Result<()> {
    let profiler = build::profiler()?;
    let output = Command::new(profiler).arg("metrics-doc").output().context("failed to run the profiler")?;
    let path = root().join("docs/metrics.md");
    fs::write(&path, output.stdout).with_context(|| format!("failed to write `{}`", path.display()))
}
