//! `cargo xtask setup`: installs what is missing to build and test, and says what it does.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Once;

use anyhow::{Context as _, Result, bail};

use crate::process::{self, output, succeeds};

/// The name under which rustup knows the distribution's compiler; profiler's build script looks for it.
const LINKED_TOOLCHAIN: &str = "bpf";
const CORE: &str = "lib/rustlib/src/rust/library/core/src/lib.rs";
const LINKER_VERSION: &str = "0.13.0";
/// The oldest compiler that the workspace is written for.
const NEEDED: &str = env!("CARGO_PKG_RUST_VERSION");

/// One thing that is needed.
struct Need {
    name: &'static str,
    purpose: &'static str,
    there: fn() -> bool,
    install: fn() -> Result<()>,
}

/// In the order of installation.
const NEEDS: &[Need] = &[
    Need {
        name: "C linker",
        purpose: "to link programs",
        there: || succeeds("cc", &["--version"]),
        install: || packages(&["gcc", "libc6-dev"]),
    },
    Need {
        name: "rustfmt",
        purpose: "for the tests' formatting check",
        there: || succeeds("cargo", &["fmt", "--version"]),
        install: || process::run(Command::new("rustup").args(["component", "add", "rustfmt"])),
    },
    Need {
        name: "clippy",
        purpose: "for the tests' lints",
        there: || succeeds("cargo", &["clippy", "--version"]),
        install: || process::run(Command::new("rustup").args(["component", "add", "clippy"])),
    },
    Need {
        name: "BPF compiler",
        purpose: "to build the kernel half: a compiler, not older than what it is written for, with the sources of core",
        there: || compiles(LINKED_TOOLCHAIN) || compiles("nightly"),
        install: compiler,
    },
    Need {
        name: "bpf-linker",
        purpose: "to build the kernel half",
        there: || succeeds("bpf-linker", &["--version"]),
        install: linker,
    },
    Need {
        name: "strip",
        purpose: "for the tests' stripped programs",
        there: || succeeds("strip", &["--version"]),
        install: || packages(&["binutils"]),
    },
    Need {
        name: "QEMU",
        purpose: "for the tests on other kernels",
        there: || succeeds("qemu-system-x86_64", &["--version"]),
        install: || packages(&["qemu-system-x86"]),
    },
    Need {
        name: "node",
        purpose: "for the tests of event loops",
        there: || succeeds("node", &["--version"]),
        install: || packages(&["nodejs"]),
    },
    Need {
        name: "promtool",
        purpose: "for the tests of the metrics page",
        there: || succeeds("promtool", &["--version"]),
        install: || without_service("prometheus"),
    },
    Need {
        name: "ruby",
        purpose: "for the tests of fibers",
        there: || succeeds("ruby", &["--version"]),
        install: || packages(&["ruby"]),
    },
    Need {
        name: "puma",
        purpose: "for the tests of requests to a server of Ruby",
        there: || succeeds("puma", &["--version"]) && ruby("rack"),
        install: || packages(&["puma", "ruby-rack"]),
    },
    Need {
        name: "unicorn",
        purpose: "for the tests of requests to workers that are forked",
        there: || succeeds("unicorn", &["--version"]),
        install: || without_service("unicorn"),
    },
    Need {
        name: "async",
        purpose: "for the tests of fibers that a library of Ruby's makes",
        there: || ruby("async"),
        install: || packages(&["ruby-async"]),
    },
    Need {
        name: "sidekiq",
        purpose: "for the tests of jobs",
        there: || succeeds("sidekiq", &["--version"]),
        install: || packages(&["ruby-sidekiq"]),
    },
    Need {
        name: "redis-server",
        purpose: "which keeps those jobs",
        there: || succeeds("redis-server", &["--version"]),
        install: || without_service("redis-server"),
    },
    Need {
        name: "buildah",
        purpose: "for the container image",
        there: || succeeds("buildah", &["--version"]),
        install: || packages(&["buildah"]),
    },
    Need {
        name: "runc",
        purpose: "for the tests of the manifests, which run the image by it",
        there: || succeeds("runc", &["--version"]),
        install: || packages(&["runc"]),
    },
    Need {
        name: "schemas",
        purpose: "of Kubernetes, for the tests of the manifests",
        there: || python("kubernetes_validate"),
        install: || python_package(&["kubernetes-validate==1.37.0"]),
    },
    Need {
        name: "collector",
        purpose: "of OpenTelemetry in Python, for the tests of pushing",
        there: || python("grpc, opentelemetry.proto"),
        install: || python_package(&["opentelemetry-proto==1.45.2", "grpcio==1.85.3"]),
    },
    Need {
        name: "systemd-analyze",
        purpose: "for the tests of the units",
        there: || succeeds("systemd-analyze", &["--version"]),
        install: || packages(&["systemd"]),
    },
];

/// What one task needs, and no other: it is installed by that task.
const FOR_ONE_TASK: &[Need] = &[
    Need {
        name: "cargo-deb",
        purpose: "for the package",
        there: || tool("cargo-deb").exists(),
        install: || {
            let mut install = Command::new("cargo");
            install.args(["install", "--locked", "cargo-deb@3.8.0", "--root"]).arg(process::root().join(TOOLS));
            process::run(&mut install)
        },
    },
    Need {
        name: "lintian",
        purpose: "for the package's policy",
        there: || succeeds("lintian", &["--version"]),
        install: || packages(&["lintian"]),
    },
    Need {
        name: "go",
        purpose: "to build Kubernetes",
        there: || succeeds("go", &["version"]),
        install: || packages(&["golang-go"]),
    },
    Need {
        name: "reflect2",
        purpose: "to build Kubernetes: its own copy of this module is too old for the compiler",
        there: || Path::new("/usr/share/gocode/src/github.com/modern-go/reflect2").exists(),
        install: || packages(&["golang-github-modern-go-reflect2-dev"]),
    },
    Need {
        name: "rsync",
        purpose: "to build Kubernetes",
        there: || succeeds("rsync", &["--version"]),
        install: || packages(&["rsync"]),
    },
    Need {
        name: "make",
        purpose: "to build Kubernetes",
        there: || succeeds("make", &["--version"]),
        install: || packages(&["make"]),
    },
    Need {
        name: "dpkg-source",
        purpose: "to unpack the source of Kubernetes",
        there: || succeeds("dpkg-source", &["--version"]),
        install: || packages(&["dpkg-dev"]),
    },
    Need {
        name: "openssl",
        purpose: "for the keys of a cluster",
        there: || succeeds("openssl", &["version"]),
        install: || packages(&["openssl"]),
    },
    Need {
        name: "sinatra",
        purpose: "for the measurements of servers of Ruby",
        there: || ruby("sinatra/base"),
        install: || packages(&["ruby-sinatra"]),
    },
    Need {
        name: "debootstrap",
        purpose: "for the Ruby of a later Debian",
        there: || succeeds("debootstrap", &["--version"]),
        install: || packages(&["debootstrap"]),
    },
    Need {
        name: "ip",
        purpose: "for the network of a cluster",
        there: || succeeds("ip", &["-Version"]),
        install: || packages(&["iproute2"]),
    },
];
const TOOLS: &str = "target/tools";
/// What is written in Python, in an environment of its own.
const PYTHON: &str = "target/python";

/// A program that is installed for this project alone.
pub fn tool(name: &str) -> PathBuf {
    process::root().join(TOOLS).join("bin").join(name)
}

/// Whether these modules are in the environment.
fn python(modules: &str) -> bool {
    let program = process::root().join(PYTHON).join("bin/python3");
    succeeds(&program.display().to_string(), &["-c", &format!("import {modules}")])
}

/// Whether Ruby finds this library.
fn ruby(library: &str) -> bool {
    succeeds("ruby", &["-e", &format!("require '{library}'")])
}

fn python_package(names: &[&str]) -> Result<()> {
    let folder = process::root().join(PYTHON);
    if !folder.join("bin/pip").exists() {
        if !succeeds("python3", &["-c", "import ensurepip"]) {
            packages(&["python3", "python3-venv"])?;
        }
        process::run(Command::new("python3").args(["-m", "venv"]).arg(&folder))?;
    }
    process::run(Command::new(folder.join("bin/pip")).args(["install", "--quiet"]).args(names))
}

/// Installs what is missing; with `check` only reports it.
pub fn run(check: bool) -> Result<()> {
    let missing: Vec<&Need> = NEEDS.iter().filter(|need| !(need.there)()).collect();
    if check {
        for need in NEEDS {
            let state = if missing.iter().any(|m| m.name == need.name) { "missing" } else { "ok" };
            println!("{:<14} {:<8} {}", need.name, state, need.purpose);
        }
        if !missing.is_empty() {
            bail!("{} missing: run `cargo xtask setup`", missing.len());
        }
        return Ok(());
    }
    for need in missing {
        eprintln!("setup: installing {} ({})", need.name, need.purpose);
        (need.install)().with_context(|| format!("failed to install {}", need.name))?;
        if !(need.there)() {
            bail!("{} was installed, but is not found: is $HOME/.cargo/bin in PATH?", need.name);
        }
    }
    eprintln!("setup: everything is there");
    Ok(())
}

/// Installs one thing, where it is missing.
pub fn have(name: &str) -> Result<()> {
    let Some(need) = NEEDS.iter().chain(FOR_ONE_TASK).find(|need| need.name == name) else {
        bail!("no need is called {name}")
    };
    if (need.there)() {
        return Ok(());
    }
    eprintln!("setup: installing {} ({})", need.name, need.purpose);
    (need.install)().with_context(|| format!("failed to install {}", need.name))
}

/// Whether a toolchain is new enough for the kernel half, and has the sources of core.
fn compiles(toolchain: &str) -> bool {
    let said = |arguments: &[&str]| output("rustup", &[&["run", toolchain, "rustc"], arguments].concat());
    let new_enough = || minor(&said(&["--version"])?).zip(minor(NEEDED)).map(|(has, needed)| has >= needed);
    let has_core = || Some(Path::new(&said(&["--print", "sysroot"])?).join(CORE).exists());
    new_enough() == Some(true) && has_core() == Some(true)
}

/// The minor version of a compiler of Rust 1: 95 of `1.95` and of `rustc 1.95.0 (59807616e 2026-04-14)`.
fn minor(version: &str) -> Option<u32> {
    version.split_whitespace().find_map(|word| word.strip_prefix("1.")?.split('.').next()?.parse().ok())
}

/// Debian has a compiler with the sources of its core; elsewhere rustup fetches both.
fn compiler() -> Result<()> {
    if !succeeds("rustup", &["--version"]) {
        bail!("rustup is needed to keep the compilers apart: install it first (Debian: `apt-get install rustup`)");
    }
    if debian_has("rust-web-src") {
        packages(&["rustc-web", "cargo-web", "rust-web-src"])?;
        return process::run(Command::new("rustup").args(["toolchain", "link", LINKED_TOOLCHAIN, "/usr"]));
    }
    process::run(Command::new("rustup").args([
        "toolchain",
        "install",
        "nightly",
        "--profile",
        "minimal",
        "--component",
        "rust-src",
    ]))
}

/// The linker must know at least the compiler's LLVM. Debian has it as a library; elsewhere it is built in.
fn linker() -> Result<()> {
    let mut install = Command::new("cargo");
    let package = format!("bpf-linker@{LINKER_VERSION}");
    if debian_has("llvm-22-dev") {
        packages(&["llvm-22-dev", "zlib1g-dev", "libzstd-dev", "g++"])?;
        install.args(["install", "--locked", &package, "--no-default-features", "--features", "llvm-22"]);
        install.env("LLVM_PREFIX", "/usr/lib/llvm-22");
    } else {
        install.args(["install", "--locked", &package]);
    }
    process::run(&mut install)
}

fn debian_has(package: &str) -> bool {
    if !succeeds("apt-get", &["--version"]) {
        return false;
    }
    refresh();
    output("apt-cache", &["policy", package])
        .is_some_and(|policy| policy.lines().any(|l| l.trim().starts_with("Candidate:") && !l.contains("(none)")))
}

/// Has apt read its archive's lists, once: a machine that was set up long ago knows packages that are too old, or gone.
fn refresh() {
    static REFRESHED: Once = Once::new();
    REFRESHED.call_once(|| {
        if let Err(e) = process::run(Command::new("apt-get").args(["update", "-qq"])) {
            eprintln!("setup: {e:#}; going on with what apt knows");
        }
    });
}

fn packages(names: &[&str]) -> Result<()> {
    if !succeeds("apt-get", &["--version"]) {
        bail!("no apt-get here: install {} with this system's package manager", names.join(", "));
    }
    refresh();
    process::run(
        Command::new("apt-get")
            .args(["install", "-y", "--no-install-recommends"])
            .args(names)
            .env("DEBIAN_FRONTEND", "noninteractive"),
    )
}

/// The file that says whether a package may start what it brings.
const POLICY: &str = "/usr/sbin/policy-rc.d";
const NOTHING_STARTS: &str = "#!/bin/sh\nexit 101\n";

/// Installs a package for its program, and its service of the same name is not started, neither now nor with the machine.
/// Before a start policy-rc.d is asked, with systemd, with another init and in containers, which often have one that forbids
/// all: ours is there for as long as the installation takes. `update-rc.d` then disables the service for each of them.
fn without_service(name: &str) -> Result<()> {
    let policy = Path::new(POLICY);
    let ours = !policy.exists() && succeeds("apt-get", &["--version"]);
    if ours {
        fs::write(policy, NOTHING_STARTS).with_context(|| format!("failed to write {POLICY}"))?;
        fs::set_permissions(policy, fs::Permissions::from_mode(0o755))?;
    }
    let installed = packages(&[name]);
    if ours {
        fs::remove_file(policy)
            .with_context(|| format!("failed to remove {POLICY}: no service starts while it is there"))?;
    }
    installed?;
    process::run(Command::new("update-rc.d").args([name, "disable"]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_compiler_says_its_version() {
        assert_eq!(minor("rustc 1.96.0 (ac68faa20 2026-05-25) (built from a source tarball)"), Some(96));
        assert_eq!(minor("rustc 1.99.0-nightly (0123abc 2026-09-01)"), Some(99));
        assert_eq!(minor("1.95"), Some(95));
        assert_eq!(minor("no such toolchain"), None);
        assert!(minor(NEEDED).is_some());
    }
}
