//! Builds the programs that live tests and measurements attach to: `tests/fixtures/README.md` says what they are.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::thread;

use anyhow::{Result, bail};

use crate::process::{cargo, root, run};

/// Versions of Tokio that the fixture is built against: the names of its packages.
pub const TOKIO: [&str; 5] = ["1.20", "1.28", "1.38", "1.44", "latest"];
/// Build profiles of the fixture.
pub const PROFILES: [&str; 3] = ["release", "thin", "fat"];
/// The folder of the twin that is built with `--cfg tokio_unstable`.
const UNSTABLE: &str = "latest-unstable";
/// Fixtures without Tokio.
const PLAIN: [&str; 3] = ["listener", "forker", "looper"];

/// The fixture built against a version of Tokio with a profile.
pub fn tokio(version: &str, profile: &str) -> Result<PathBuf> {
    tokio_in(version, version, profile, &[])
}

/// The program with a single type of task.
pub fn few() -> Result<PathBuf> {
    Ok(tokio("latest", "release")?.with_file_name("few"))
}

/// The twin of the newest version's fixture whose runtime counts for itself: built with `--cfg tokio_unstable`.
pub fn unstable(profile: &str) -> Result<PathBuf> {
    tokio_in("latest", UNSTABLE, profile, &["--cfg", "tokio_unstable"])
}

fn tokio_in(version: &str, folder: &str, profile: &str, rustflags: &[&str]) -> Result<PathBuf> {
    let target = target().join(folder);
    build(&root().join("tests/fixtures/tokio").join(version), &target, profile, rustflags)?;
    let program = target.join(profile).join("fixture");
    if profile == "fat" {
        // The same addresses with and without symbols: the one can be checked against the other.
        let stripped = program.with_file_name("fixture-stripped");
        run(Command::new("strip").arg("-s").arg("-o").arg(&stripped).arg(&program))?;
    }
    Ok(program)
}

/// A server with another tool in it, for comparison only.
pub fn compared(tool: &str) -> Result<PathBuf> {
    let target = target().join("compare").join(tool);
    build(&root().join("tests/fixtures/compare").join(tool), &target, "fat", &[])?;
    Ok(target.join("fat/server"))
}

/// A fixture without Tokio.
pub fn plain(name: &str) -> Result<PathBuf> {
    let target = target().join(name);
    build(&root().join("tests/fixtures").join(name), &target, "release", &[])?;
    Ok(target.join("release").join(name))
}

/// All fixtures, as many at a time as there are CPUs: the last steps of a build, which take longest, keep one busy.
pub fn all() -> Result<()> {
    let mut builds: Vec<Box<dyn FnOnce() -> Result<PathBuf> + Send>> = vec![Box::new(|| unstable("release"))];
    for version in TOKIO {
        builds.extend(PROFILES.map(|profile| Box::new(move || tokio(version, profile)) as Box<_>));
    }
    builds.extend(PLAIN.map(|name| Box::new(move || plain(name)) as Box<_>));
    let builds = Mutex::new(builds);
    let next = || builds.lock().unwrap_or_else(PoisonError::into_inner).pop();
    let work = || -> Result<()> {
        while let Some(build) = next() {
            build()?;
        }
        Ok(())
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..thread::available_parallelism()?.get()).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| worker.join().unwrap_or_else(|_| bail!("a build panicked")))
    })
}

fn target() -> PathBuf {
    root().join("target/fixtures")
}

fn build(package: &Path, target: &Path, profile: &str, rustflags: &[&str]) -> Result<()> {
    let mut command = cargo();
    command.current_dir(package);
    command.args(["build", "--quiet", "--locked", "--profile", profile, "--target-dir"]).arg(target);
    if !rustflags.is_empty() {
        command.env("RUSTFLAGS", rustflags.join(" "));
    }
    run(&mut command)
}
