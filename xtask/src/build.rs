//! `cargo xtask build`: the profiler itself, as it is used here, and as one static file.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::process::{cargo, root, run};

/// What is built as one static file is built for this target, named so that the flags keep from build scripts.
pub const TARGET: &str = "x86_64-unknown-linux-gnu";
/// For one static file.
pub const STATIC: (&str, &str) = ("RUSTFLAGS", "-C target-feature=+crt-static");
/// The profiler with all that it can have.
pub const PROFILER: &[&str] = &["--release", "--package", "profiler", "--features", "kubernetes"];

/// Builds the release binary and returns its path.
pub fn profiler() -> Result<PathBuf> {
    run(cargo().arg("build").args(PROFILER))?;
    Ok(root().join("target/release/profiler"))
}

/// The profiler as one static file, without lines of source, which are most of it. Its kernel half is the one that was built
/// for this host: building that once more takes as long as all the rest.
pub fn static_profiler() -> Result<PathBuf> {
    let folder = root().join("target/static");
    let object = kernel_half()?;
    let mut build = cargo();
    build.arg("build").args(PROFILER).args(["--target", TARGET, "--target-dir"]).arg(&folder);
    build.env(STATIC.0, STATIC.1).env("PROFILER_BPF_OBJECT", object);
    run(&mut build)?;
    let stripped = folder.join("profiler");
    run(Command::new("strip").arg("-o").arg(&stripped).arg(folder.join(TARGET).join("release/profiler")))?;
    Ok(stripped)
}

/// Checks that it can be built without all that it need not have.
pub fn check_least() -> Result<()> {
    let mut check = cargo();
    check.args(["clippy", "--release", "--package", "profiler", "--quiet", "--", "-D", "warnings"]);
    run(check.env("PROFILER_BPF_OBJECT", kernel_half()?))
}

/// The kernel half, built for this host.
fn kernel_half() -> Result<PathBuf> {
    built(&[&["build"], PROFILER].concat(), |message| {
        let id = message["package_id"].as_str().unwrap_or_default();
        // As `path+file:///…/profiler#0.1.0`.
        let ours = message["reason"] == "build-script-executed" && id.contains("/profiler#");
        ours.then(|| Some(PathBuf::from(message["out_dir"].as_str()?).join("profiler-ebpf")))?
    })
}

/// Has cargo build something, and say where it has put it.
pub fn built(arguments: &[&str], find: impl Fn(&Value) -> Option<PathBuf>) -> Result<PathBuf> {
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
