//! Builds what runs in the machines: what this host's tests run, and the profiler as one static file.

use std::path::PathBuf;

use anyhow::Result;

use super::machine::Contents;
use crate::build::{self, built};
use crate::fixtures;
use crate::process::{cargo, root, run};

/// Builds all.
///
/// # Errors
/// Something cannot be built.
pub fn build() -> Result<Contents> {
    let fixture = |path: PathBuf| -> Result<(String, PathBuf)> {
        let place = path.strip_prefix(root().join("target/fixtures"))?.to_string_lossy().into_owned();
        Ok((place, path))
    };
    Ok(Contents {
        fixtures: vec![
            fixture(fixtures::plain("listener")?)?,
            fixture(fixtures::plain("forker")?)?,
            fixture(fixtures::tokio("latest", "release")?)?,
            fixture(fixtures::few()?)?,
        ],
        profiler: build::static_profiler()?,
        guest: guest()?,
        live: live()?,
    })
}

fn guest() -> Result<PathBuf> {
    run(cargo().args(["build", "--release", "--package", "tests", "--bin", "guest"]))?;
    Ok(root().join("target/release/guest"))
}

fn live() -> Result<PathBuf> {
    built(&["test", "--release", "--package", "tests", "--test", "live", "--no-run"], |message| {
        let ours = message["target"]["name"] == "live";
        ours.then(|| message["executable"].as_str().map(PathBuf::from))?
    })
}
