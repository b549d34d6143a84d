//! Images of the cluster's own: of one static program each, as the profiler's is. Nothing is fetched from a registry.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use super::components::PAUSE;
use super::source::{Programs, fresh};
use crate::image::buildah;
use crate::process::{cargo, root, run};

/// The image of the target.
pub const TARGET: &str = "localhost/fixture:latest";
const PLATFORM: &str = "x86_64-unknown-linux-gnu";

/// Builds what pods need besides the profiler.
pub fn build(programs: &Programs) -> Result<()> {
    archive(PAUSE, &programs.built("pause"))?;
    archive(TARGET, &fixture()?)
}

/// Where that is.
pub fn archives() -> [PathBuf; 2] {
    ["pause", "fixture"].map(|title| folder(title).join("image.tar"))
}

fn folder(title: &str) -> PathBuf {
    root().join("target/cluster/images").join(title)
}

/// Gives an archive to containerd, for pods.
pub fn import(archive: &Path, socket: &str, path: &str) -> Result<()> {
    let mut ctr = Command::new("ctr");
    ctr.args(["--address", socket, "--namespace", "k8s.io", "images", "import"]).arg(archive).env("PATH", path);
    let output = ctr.output().context("failed to run ctr")?;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr);
        bail!("failed to import `{}`: {}", archive.display(), words.lines().last().unwrap_or_default());
    }
    Ok(())
}

/// The Tokio fixture as one static file.
fn fixture() -> Result<PathBuf> {
    let target = root().join("target/cluster/fixture");
    let mut build = cargo();
    build.args(["build", "--quiet", "--locked", "--release", "--target", PLATFORM, "--target-dir"]).arg(&target);
    build.env("RUSTFLAGS", "-C target-feature=+crt-static").current_dir(root().join("tests/fixtures/tokio/latest"));
    run(&mut build)?;
    Ok(target.join(PLATFORM).join("release/fixture"))
}

/// An image of one program, whose name is its own, as an archive.
fn archive(name: &str, program: &Path) -> Result<()> {
    let title = program.file_name().context("a program has a name")?.to_string_lossy().into_owned();
    let folder = fresh(&folder(&title))?;
    fs::copy(program, folder.join(&title)).with_context(|| format!("failed to copy `{}`", program.display()))?;
    fs::write(
        folder.join("Containerfile"),
        format!("FROM scratch\nCOPY {title} /{title}\nENTRYPOINT [\"/{title}\"]\n"),
    )?;
    let archive = folder.join("image.tar");
    let mut build = buildah();
    build.args(["bud", "--quiet", "--timestamp", "0", "--format", "oci", "--no-cache", "--tag", name]).arg(&folder);
    run(build.stdout(Stdio::null()))?;
    run(buildah().args(["push", "--quiet", name]).arg(format!("docker-archive:{}:{name}", archive.display())))?;
    run(buildah().args(["rmi", name]).stdout(Stdio::null()))
}
