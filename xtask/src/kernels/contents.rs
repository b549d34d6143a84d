//! Builds what runs in the machines: what this host's tests run, and the profiler as one static file.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::machine::Contents;
use crate::fixtures;
use crate::process::{cargo, root, run};

const TARGET: &str = "x86_64-unknown-linux-gnu";

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
        ],
        profiler: profiler()?,
        guest: guest()?,
        live: live()?,
    })
}

/// The profiler as one static file. Its kernel half is the one that was built for this host: building that once more
/// takes as long as all the rest.
fn profiler() -> Result<PathBuf> {
    let folder = root().join("target/kernels/build");
    let object = built(&["build", "--release", "--package", "profiler"], |message| {
        let id = message["package_id"].as_str().unwrap_or_default();
        // As `path+file:///…/profiler#0.1.0`.
        let ours = message["reason"] == "build-script-executed" && id.contains("/profiler#");
        ours.then(|| Some(PathBuf::from(message["out_dir"].as_str()?).join("profiler-ebpf")))?
    })?;
    let mut build = cargo();
    build.args(["build", "--release", "--package", "profiler", "--target", TARGET, "--target-dir"]).arg(&folder);
    build.env("RUSTFLAGS", "-C target-feature=+crt-static").env("PROFILER_BPF_OBJECT", object);
    run(&mut build)?;
    // Lines of source are of no use in a machine, and are most of the file.
    let stripped = folder.join("profiler");
    run(Command::new("strip").arg("-o").arg(&stripped).arg(folder.join(TARGET).join("release/profiler")))?;
    Ok(stripped)
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

/// Has cargo build something, and say where it has put it.
fn built(arguments: &[&str], find: impl Fn(&Value) -> Option<PathBuf>) -> Result<PathBuf> {
    let shown = arguments.join(" ");
    eprintln!("+ cargo {shown}");
    let mut command = cargo();
    command.args(arguments).arg("--message-format=json-render-diagnostics").stderr(Stdio::inherit());
    let output = command.output().with_context(|| format!("failed to run cargo {shown}"))?;
    if !output.status.success() {
        bail!("`cargo {shown}` failed: {}", output.status);
    }
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let messages = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    messages.filter_map(|message| find(&message)).last().with_context(|| format!("`cargo {shown}` names no file"))
}
