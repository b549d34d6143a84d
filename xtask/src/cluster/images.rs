//! Images of the cluster's own: of one static program each, as the profiler's is. Nothing is fetched from a registry.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::components::PAUSE;
use super::source::{Programs, fresh};
use crate::build::{STATIC, TARGET as PLATFORM};
use crate::image;
use crate::process::{cargo, root, run};

/// The image of the target.
pub const TARGET: &str = "localhost/fixture:latest";

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
    build.env(STATIC.0, STATIC.1).current_dir(root().join("tests/fixtures/tokio/latest"));
    run(&mut build)?;
    Ok(target.join(PLATFORM).join("release/fixture"))
}

/// An image of one program, whose name is its own, as an archive.
fn archive(name: &str, program: &Path) -> Result<()> {
    let title = program.file_name().context("a program has a name")?.to_string_lossy().into_owned();
    let folder = fresh(&folder(&title))?;
    fs::copy(program, folder.join(&title)).with_context(|| format!("failed to copy `{}`", program.display()))?;
    let containerfile = folder.join("Containerfile");
    fs::write(&containerfile, format!("FROM scratch\nCOPY {title} /{title}\nENTRYPOINT [\"/{title}\"]\n"))?;
    image::pack(name, &containerfile, &folder, &[], &folder.join("image.tar"))
}
