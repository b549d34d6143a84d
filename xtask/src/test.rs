//! `cargo xtask test`: all tests, in the order in which a failure is cheapest to find.

use anyhow::Result;

use crate::process::{self, cargo};
use crate::{build, fixtures, image, kernels, setup};

/// Runs everything, or (with `live`) only the live tests whose name contains it.
fn live_tests(live: Option<&str>) -> Result<()> {
    // Live tests share one kernel and compare its lists of programs: one at a time.
    let mut command = cargo();
    command.args(["test", "--release", "--package", "tests", "--test", "live", "--"]);
    command.args(["--test-threads=1", "--nocapture"]);
    if let Some(name) = live {
        command.arg(name);
    }
    process::run(&mut command)
}

/// The task.
pub fn run(live: Option<&str>) -> Result<()> {
    setup::run(false)?;
    if live.is_none() {
        process::run(cargo().args(["fmt", "--all", "--check"]))?;
        process::run(cargo().args(["clippy", "--release", "--all-targets", "--quiet", "--", "-D", "warnings"]))?;
        process::run(cargo().arg("test").args(build::PROFILER).args([
            "--package",
            "profiler-common",
            "--package",
            "xtask",
        ]))?;
        process::run(cargo().args([
            "test",
            "--release",
            "--package",
            "tests",
            "--test",
            "edges",
            "--test",
            "replay",
            "--test",
            "deploy",
        ]))?;
    }
    fixtures::all()?;
    build::profiler()?;
    if live.is_none() {
        build::check_least()?;
    }
    if live.is_none_or(|name| name.contains("deploy")) {
        image::build("latest")?;
    }
    live_tests(live)?;
    if live.is_none() {
        kernels::ordinary()?;
    }
    Ok(())
}
