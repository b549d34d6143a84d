//! `cargo xtask image`: the profiler as one static file, and the container image of nothing else. It is pushed to nowhere.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::build;
use crate::process::{output, root, run};
use crate::setup;

const CONTAINERFILE: &str = "deploy/Containerfile";
const TITLE: &str = "profiler";

/// Builds the image, and writes it as an archive that container engines load.
pub fn build(tag: &str) -> Result<()> {
    setup::have("buildah")?;
    let program = build::static_profiler()?;
    let archive = archive(&program, tag)?;
    println!(
        "{}: {}, of which the program is {}; load it by `ctr -n k8s.io images import` or `podman load --input`",
        archive.display(),
        mebibytes(&archive)?,
        mebibytes(&program)?
    );
    Ok(())
}

/// Where the archive is.
pub fn path() -> PathBuf {
    root().join("target/image/profiler.tar")
}

/// The image of a program. Nothing of it tells when or where it was made: the same program of the same commit makes the same
/// image.
fn archive(program: &Path, tag: &str) -> Result<PathBuf> {
    let folder = root().join("target/image/context");
    fs::create_dir_all(&folder)?;
    fs::copy(program, folder.join("profiler"))?;
    let archive = path();
    pack(&name(tag), &root().join(CONTAINERFILE), &folder, &labels(tag), &archive)?;
    Ok(archive)
}

/// Builds the image that a file describes of the folder's content, and writes it as an archive.
pub fn pack(name: &str, containerfile: &Path, folder: &Path, labels: &[(&str, String)], archive: &Path) -> Result<()> {
    let _ = fs::remove_file(archive);
    let mut bud = buildah();
    bud.args(["bud", "--quiet", "--timestamp", "0", "--format", "oci", "--no-cache"]);
    for (label, value) in labels {
        bud.arg("--label").arg(format!("org.opencontainers.image.{label}={value}"));
    }
    bud.arg("--tag").arg(name).arg("--file").arg(containerfile).arg(folder);
    run(&mut bud)?;
    // This form has the name in it, so that whoever loads it need not know it.
    run(buildah().args(["push", "--quiet", name]).arg(format!("docker-archive:{}:{name}", archive.display())))?;
    run(buildah().args(["rmi", name]).stdout(Stdio::null()))
}

/// The name with its tag: where no place is named, it is this host's.
pub fn name(tag: &str) -> String {
    format!("localhost/{TITLE}:{tag}")
}

/// buildah with a store of its own: images of this host are none of our business.
fn buildah() -> Command {
    let folder = root().join("target/image/store");
    let mut command = Command::new("buildah");
    command.arg("--root").arg(folder.join("root")).arg("--runroot").arg(folder.join("run"));
    command.args(["--storage-driver", "vfs"]);
    command
}

fn labels(tag: &str) -> Vec<(&'static str, String)> {
    let commit = output("git", &["-C", &root().display().to_string(), "rev-parse", "HEAD"]);
    let mut labels = vec![
        ("title", TITLE.to_owned()),
        ("description", "Shows where work waits in running servers, by eBPF".to_owned()),
        ("version", if tag == "latest" { env!("CARGO_PKG_VERSION").to_owned() } else { tag.to_owned() }),
        ("licenses", "MIT OR Apache-2.0".to_owned()),
    ];
    labels.extend(commit.map(|commit| ("revision", commit)));
    labels
}

/// Only what a tag may be.
pub fn tag(text: &str) -> Result<String, String> {
    let first = text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_');
    let rest = text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b));
    if first && rest && text.len() <= 128 { Ok(text.to_owned()) } else { Err("a tag is as 0.1.0 or latest".to_owned()) }
}

fn mebibytes(path: &Path) -> Result<String> {
    let size = fs::metadata(path).with_context(|| format!("failed to read `{}`", path.display()))?.len();
    if size == 0 {
        bail!("`{}` is empty", path.display());
    }
    Ok(format!("{:.1} MiB", size as f64 / (1 << 20) as f64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_no_name() {
        assert!(tag("0.1.0").is_ok() && tag("latest").is_ok());
        assert!(tag("a/b").is_err() && tag(":1").is_err() && tag("").is_err() && tag("-x").is_err());
        assert_eq!(name("0.1.0"), "localhost/profiler:0.1.0");
    }
}
