//! `cargo xtask build`: the profiler itself.

use std::path::PathBuf;

use anyhow::Result;

use crate::process::{cargo, root, run};

/// Builds the release binary and returns its path.
pub fn profiler() -> Result<PathBuf> {
    run(cargo().args(["build", "--release", "--package", "profiler"]))?;
    Ok(root().join("target/release/profiler"))
}
