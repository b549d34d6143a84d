//! `cargo xtask rubies`: the tests of Ruby and its servers with those of a later Debian, in a directory of its own.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Result, bail};

use crate::process::{cargo, root, run as command};
use crate::{build, setup};

/// The distribution, and what is in it besides the least.
const SUITE: &str = "trixie";
const PACKAGES: &str = "ruby,ruby-async,puma,ruby-rack,unicorn,ruby-sidekiq";
/// What the tests look for.
const ROOT: &str = "PROFILER_RUBY_ROOT";
const TESTS: [&str; 10] = [
    "deferred",
    "fibers",
    "garbage",
    "locks",
    "async_tasks",
    "reactor_of_fibers",
    "puma_cluster",
    "saturated",
    "unicorn",
    "jobs",
];
/// The last of them that is installed: an older directory lacks it.
const LAST: &str = "usr/bin/sidekiq";

/// Installs it once, and runs the tests on it.
///
/// # Errors
/// It cannot be installed, or a test fails.
pub fn run() -> Result<()> {
    // SAFETY: always succeeds.
    if unsafe { libc::geteuid() } != 0 {
        bail!("another root takes root: run this as `sudo -E cargo xtask rubies`");
    }
    let folder = installed()?;
    build::profiler()?;
    let mut tests = cargo();
    tests.args(["test", "--release", "--package", "tests", "--test", "live", "--", "--test-threads=1", "--nocapture"]);
    command(tests.args(TESTS).env(ROOT, folder))
}

/// The directory, which is whole or not there.
fn installed() -> Result<PathBuf> {
    let folder = root().join("target/rubies").join(SUITE);
    if folder.join(LAST).exists() {
        return Ok(folder);
    }
    setup::have("debootstrap")?;
    let unfinished = folder.with_extension("unfinished");
    if unfinished.exists() {
        fs::remove_dir_all(&unfinished)?;
    }
    fs::create_dir_all(&unfinished)?;
    let include = format!("--include={PACKAGES}");
    command(Command::new("debootstrap").args(["--variant=minbase", &include, SUITE]).arg(&unfinished))?;
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    fs::rename(&unfinished, &folder)?;
    Ok(folder)
}
