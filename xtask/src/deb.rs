//! `cargo xtask deb`: the Debian package, installed, upgraded and purged for a trial in a copy of this host's files.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::build;
use crate::process::{output, root, run};
use crate::setup;

/// What a trial does, as root of a copy that keeps nothing: the host's root is below it, and is not written.
const TRIAL: &str = r##"
set -eu
mount --make-rprivate /
mount -t tmpfs tmpfs "$1"
mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" "$1/root"
cp "$2" "$1/root/package.deb"
mount -t proc proc "$1/root/proc"
chroot "$1/root" sh -eu -c '
    export PATH=/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive
    fail() { echo "error: $1" >&2; exit 1; }
    dpkg --install /package.deb
    /usr/bin/profiler --version
    [ -e /etc/profiler/rules.toml ] || fail "no rules"
    [ -e /lib/systemd/system/profiler-agent.service ] || fail "no unit"
    [ ! -e /etc/systemd/system/multi-user.target.wants/profiler-agent.service ] || fail "enabled without being asked"
    echo "# mine" >>/etc/profiler/rules.toml
    dpkg --install /package.deb
    grep -q "# mine" /etc/profiler/rules.toml || fail "an upgrade has overwritten the rules"
    dpkg --remove profiler
    [ -e /etc/profiler/rules.toml ] || fail "removing has taken the rules"
    dpkg --purge profiler
    for left in /usr/bin/profiler /etc/profiler /lib/systemd/system/profiler-agent.service /usr/share/doc/profiler; do
        [ ! -e "$left" ] || fail "purging has left $left"
    done
'
"##;

/// Builds the package, and tries it.
pub fn build() -> Result<()> {
    setup::have("cargo-deb")?;
    setup::have("lintian")?;
    build::static_profiler()?;
    let package = package()?;
    // What its policy asks of Debian's own packages is not asked of this one.
    let unasked = "bogus-mail-host,bogus-mail-host-in-debian-changelog,statically-linked-binary,\
                   copyright-not-using-common-license-for-apache2";
    let mut lintian = Command::new("lintian");
    lintian.args(["--allow-root", "--fail-on", "error", "--suppress-tags", unasked]).arg(&package);
    run(&mut lintian)?;
    try_out(&package)?;
    println!("{}: {:.1} MiB", package.display(), fs::metadata(&package)?.len() as f64 / (1 << 20) as f64);
    Ok(())
}

/// The same commit makes the same package.
fn package() -> Result<PathBuf> {
    let folder = root().join("target/deb");
    let _ = fs::remove_dir_all(&folder);
    let root = root().display().to_string();
    let time = output("git", &["-C", &root, "log", "-1", "--format=%ct"]).unwrap_or_else(|| "1".to_owned());
    let mut deb = Command::new(setup::tool("cargo-deb"));
    deb.args(["--no-build", "--no-strip", "--offline", "--quiet", "--output"]).arg(format!("{}/", folder.display()));
    run(deb.current_dir(Path::new(&root).join("profiler")).env("SOURCE_DATE_EPOCH", time))?;
    let made = fs::read_dir(&folder)?.flatten().map(|entry| entry.path());
    made.into_iter().find(|path| path.extension().is_some_and(|e| e == "deb")).context("cargo-deb has made no package")
}

fn try_out(package: &Path) -> Result<()> {
    // SAFETY: always succeeds.
    if unsafe { libc::geteuid() } != 0 {
        bail!("trying the package takes root: run this as `sudo -E cargo xtask deb`");
    }
    let folder = std::env::temp_dir().join(format!("profiler-deb-{}", std::process::id()));
    fs::create_dir(&folder)?;
    let mut trial = Command::new("unshare");
    trial.args(["--mount", "--net", "--pid", "--fork", "sh", "-c", TRIAL, "trial"]).arg(&folder).arg(package);
    let result = run(&mut trial);
    fs::remove_dir(&folder)?;
    result
}
