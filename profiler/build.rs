//! Compiles the kernel half with whichever BPF toolchain is there, and says what to run when there is none.

use std::path::Path;
use std::process::{Command, Stdio};
use std::{env, fs};

use anyhow::{Context as _, Result, bail};
use aya_build::{Package, Toolchain, build_ebpf};

/// An object file that was compiled elsewhere, used as it is.
const OBJECT_VARIABLE: &str = "PROFILER_BPF_OBJECT";
/// The rustup name under which `cargo xtask setup` links the distribution's compiler.
const LINKED_TOOLCHAIN: &str = "bpf";
/// The oldest compiler that the workspace is written for.
const NEEDED: &str = env!("CARGO_PKG_RUST_VERSION");

fn main() -> Result<()> {
    println!("cargo:rerun-if-env-changed={OBJECT_VARIABLE}");
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=../profiler-common/src");
    if let Some(object) = env::var_os(OBJECT_VARIABLE) {
        println!("cargo:rerun-if-changed={}", object.display());
        let out = env::var("OUT_DIR").context("OUT_DIR is not set")?;
        fs::copy(&object, Path::new(&out).join("profiler-ebpf"))
            .with_context(|| format!("failed to copy `{}` ({OBJECT_VARIABLE})", object.display()))?;
        return Ok(());
    }
    let package = Package {
        name: "profiler-ebpf",
        root_dir: concat!(env!("CARGO_MANIFEST_DIR"), "/../profiler-ebpf"),
        ..Default::default()
    };
    // Progress of the inner build would show as warnings of this one.
    // SAFETY: a build script has one thread at this point.
    unsafe { env::set_var("CARGO_TERM_QUIET", "true") };
    let linker = succeeds("bpf-linker", &["--version"]);
    if linker && usable(LINKED_TOOLCHAIN) {
        // A stable compiler builds `core` from source only under this variable, and only this build may see it.
        // SAFETY: a build script has one thread at this point.
        unsafe { env::set_var("RUSTC_BOOTSTRAP", "1") };
        return build_ebpf([package], Toolchain::Custom(LINKED_TOOLCHAIN));
    }
    if linker && usable("nightly") {
        return build_ebpf([package], Toolchain::Nightly);
    }
    bail!(
        "no BPF toolchain (a compiler of Rust {NEEDED} or later with the sources of core, and bpf-linker): run `cargo xtask setup`"
    );
}

/// Whether rustup knows the toolchain, it is not older than what this is written for, and it has the sources of `core`.
fn usable(toolchain: &str) -> bool {
    let said = |argument: &str| {
        let output =
            Command::new("rustup").args(["run", toolchain, "rustc"]).args(argument.split(' ')).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let (Some(version), Some(sysroot)) = (said("--version"), said("--print sysroot")) else { return false };
    let new_enough = minor(&version).zip(minor(NEEDED)).is_some_and(|(has, needed)| has >= needed);
    new_enough && Path::new(&sysroot).join("lib/rustlib/src/rust/library/core/src/lib.rs").exists()
}

/// The minor version of a compiler of Rust 1.
fn minor(version: &str) -> Option<u32> {
    version.split_whitespace().find_map(|word| word.strip_prefix("1.")?.split('.').next()?.parse().ok())
}

fn succeeds(program: &str, arguments: &[&str]) -> bool {
    Command::new(program)
        .args(arguments)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}
