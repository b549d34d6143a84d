//! Where the programs are that live tests need. What is missing fails with what to run; nothing is skipped.

use std::env;
use std::path::{Path, PathBuf};

/// The root of the workspace.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map_or_else(PathBuf::new, Path::to_path_buf)
}

/// The profiler that was built last.
///
/// # Panics
/// It was not built.
pub fn profiler() -> PathBuf {
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    built(target.join("release/profiler"), "cargo build --release --package profiler")
}

/// A build of the Tokio fixture: `profile` is `release`, `thin`, `fat` or `fat-stripped`.
///
/// # Panics
/// It was not built.
pub fn tokio(version: &str, profile: &str) -> PathBuf {
    let (profile, file) = match profile.strip_suffix("-stripped") {
        Some(profile) => (profile, "fixture-stripped"),
        None => (profile, "fixture"),
    };
    built(fixtures().join(version).join(profile).join(file), "cargo xtask test --live tasks")
}

/// The fixture with listening sockets.
///
/// # Panics
/// It was not built.
pub fn listener() -> PathBuf {
    built(fixtures().join("listener/release/listener"), "cargo xtask test --live accept")
}

/// The fixture that forks, execs and contends.
///
/// # Panics
/// It was not built.
pub fn forker() -> PathBuf {
    built(fixtures().join("forker/release/forker"), "cargo xtask test --live sched")
}

/// The fixture that is an event loop.
///
/// # Panics
/// It was not built.
pub fn looper() -> PathBuf {
    built(fixtures().join("looper/release/looper"), "cargo xtask test --live loops")
}

/// Node, as the distribution has it.
///
/// # Panics
/// It is not installed.
pub fn node() -> PathBuf {
    built(PathBuf::from("/usr/bin/node"), "cargo xtask setup")
}

/// The container image, an archive.
///
/// # Panics
/// It was not built.
pub fn image() -> PathBuf {
    built(root().join("target/image/profiler.tar"), "cargo xtask image")
}

/// The Tokio program with a single type of task.
///
/// # Panics
/// It was not built.
pub fn few() -> PathBuf {
    built(tokio("latest", "release").with_file_name("few"), "cargo xtask test")
}

/// The program that knows the schemas of Kubernetes.
///
/// # Panics
/// It was not installed.
pub fn schemas() -> PathBuf {
    built(root().join("target/python/bin/kubernetes-validate"), "cargo xtask setup")
}

/// A Python that has OpenTelemetry's messages.
///
/// # Panics
/// It was not installed.
pub fn python() -> PathBuf {
    built(root().join("target/python/bin/python3"), "cargo xtask setup")
}

/// Live tests attach to programs.
///
/// # Panics
/// This is not root.
pub fn require_root() {
    // SAFETY: always succeeds.
    let user = unsafe { libc::geteuid() };
    assert_eq!(user, 0, "live tests attach to programs: run them as root, as `sudo -E cargo xtask test`");
}

fn fixtures() -> PathBuf {
    env::var_os("PROFILER_FIXTURES").map_or_else(|| root().join("target/fixtures"), PathBuf::from)
}

fn built(path: PathBuf, command: &str) -> PathBuf {
    assert!(path.exists(), "`{}` is missing: `{command}` builds it", path.display());
    path
}
