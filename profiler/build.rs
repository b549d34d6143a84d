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
    bail!("no BPF toolchain (a nightly compiler with rust-src, and bpf-linker): run `cargo xtask setup`");
}

/// Whether rustup knows the toolchain, and it has the sources of `core`.
fn usable(toolchain: &str) -> bool {
    let Ok(output) = Command::new("rustup").args(["run", toolchain, "rustc", "--print", "sysroot"]).output() else {
        return false;
    };
    let sysroot = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    output.status.success() && Path::new(&sysroot).join("lib/rustlib/src/rust/library/core/src/lib.rs").exists()
}

fn succeeds(program: &str, arguments: &[&str]) -> bool {
    Command::new(program)
        .args(arguments)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}
