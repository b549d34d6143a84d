//! Kubernetes, built once of Debian's own source package, and what else of Debian's a node runs. All of it stays below
//! `target/cluster`: nothing of it is installed on the host, where packages would start services.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::process::{output, root, run};
use crate::setup;

/// What is built, in the order of its size.
const PROGRAMS: [&str; 5] = ["kubectl", "kube-scheduler", "kube-controller-manager", "kube-apiserver", "kubelet"];
/// What it takes to build, and to make keys.
const NEEDS: [&str; 6] = ["go", "reflect2", "rsync", "make", "dpkg-source", "openssl"];
/// Debian's packages of what is not built.
const PACKAGES: [&str; 4] = ["etcd-server", "containerd", "runc", "containernetworking-plugins"];
/// A module of the source does not build with Debian's compiler; Debian's own package of it does.
const REFLECT2: &str = "github.com/modern-go/reflect2";
const DEBIAN_GO: &str = "/usr/share/gocode/src";
/// Variables of the programs that say which version they are. Vendored packages are known by two names.
const VERSION_IN: [&str; 4] = [
    "k8s.io/component-base/version",
    "k8s.io/kubernetes/vendor/k8s.io/component-base/version",
    "k8s.io/client-go/pkg/version",
    "k8s.io/kubernetes/vendor/k8s.io/client-go/pkg/version",
];

/// Everything that a node runs.
pub struct Programs {
    folder: PathBuf,
}

impl Programs {
    /// Builds and fetches what is not there yet.
    pub fn have() -> Result<Programs> {
        let programs = Programs { folder: root().join("target/cluster") };
        if !PROGRAMS.iter().chain(&["pause"]).all(|name| programs.built(name).exists()) {
            programs.build()?;
        }
        if !programs.folder.join("packages/usr").exists() {
            programs.fetch()?;
        }
        Ok(programs)
    }

    /// A program of Kubernetes.
    pub fn built(&self, name: &str) -> PathBuf {
        self.folder.join("bin").join(name)
    }

    /// Where shells look for the others.
    pub fn path(&self) -> String {
        let packages = self.folder.join("packages/usr");
        let host = std::env::var("PATH").unwrap_or_default();
        format!("{0}/bin:{0}/sbin:{host}:/usr/sbin:/sbin", packages.display())
    }

    /// Where the plugins of networks are.
    pub fn plugins(&self) -> PathBuf {
        self.folder.join("packages/usr/lib/cni")
    }

    fn fetch(&self) -> Result<()> {
        let archives = fresh(&self.folder.join("archives"))?;
        let unpacked = fresh(&self.folder.join("packages.new"))?;
        run(Command::new("apt-get")
            .args(["-o", "APT::Sandbox::User=root", "--quiet", "download"])
            .args(PACKAGES)
            .current_dir(&archives))?;
        for archive in fs::read_dir(&archives)? {
            run(Command::new("dpkg-deb").arg("-x").arg(archive?.path()).arg(&unpacked))?;
        }
        fs::rename(unpacked, self.folder.join("packages"))?;
        Ok(fs::remove_dir_all(archives)?)
    }

    fn build(&self) -> Result<()> {
        NEEDS.iter().try_for_each(|need| setup::have(need))?;
        let folder = fresh(&self.folder.join("source"))?;
        let (source, version) = fetch_source(&folder)?;
        eprintln!("cluster: building Kubernetes {version}, once; with two CPUs it takes ten to twenty minutes");
        let module = source.join("vendor").join(REFLECT2);
        fs::remove_dir_all(&module).with_context(|| format!("failed to replace `{}`", module.display()))?;
        run(Command::new("cp").arg("-r").arg(Path::new(DEBIAN_GO).join(REFLECT2)).arg(&module))?;
        // Debian takes generated files out of the source, this one among them.
        run(go(Command::new("make").arg("gen_openapi"), &folder).current_dir(&source))?;
        let flags = flags(&version);
        fs::create_dir_all(self.folder.join("bin"))?;
        for name in PROGRAMS {
            let mut build = Command::new("go");
            build.args(["build", "-trimpath", "-ldflags", &flags, "-o"]).arg(self.built(name));
            build.arg(format!("k8s.io/kubernetes/cmd/{name}"));
            run(go(&mut build, &folder).current_dir(&source))?;
        }
        let pause = source.join("build/pause/linux/pause.c");
        run(Command::new("cc").args(["-static", "-Os", "-o"]).arg(self.built("pause")).arg(pause))?;
        Ok(fs::remove_dir_all(folder)?)
    }
}

/// The compiler asks nothing of a network, and writes nothing outside of `folder`.
fn go<'a>(command: &'a mut Command, folder: &Path) -> &'a mut Command {
    let settings = [("GOFLAGS", ""), ("GOPROXY", "off"), ("GO111MODULE", "off"), ("CGO_ENABLED", "0")];
    let folders = [("GOPATH", "go"), ("GOCACHE", "cache"), ("HOME", "home")];
    command.envs(settings).envs(folders.map(|(name, place)| (name, folder.join(place))))
}

/// Debian's source package of Kubernetes, unpacked where Go looks for it, and its version. Its index and its files are in an
/// apt directory of the task's own.
fn fetch_source(folder: &Path) -> Result<(PathBuf, String)> {
    let line = "deb-src [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $(REPO_URI) $(RELEASE) $(COMPONENT)";
    let sources = output("apt-get", &["indextargets", "--format", line, "Created-By: Packages", "Component: main"]);
    let sources = sources.filter(|sources| !sources.is_empty());
    fs::write(
        folder.join("sources.list"),
        sources.context("this host's apt has no source: run this on Debian")? + "\n",
    )?;
    fs::create_dir_all(folder.join("lists/partial"))?;
    let apt = |arguments: &[&str]| {
        let mut apt = Command::new("apt-get");
        apt.arg("--quiet").arg("-o").arg(format!("Dir::Etc::sourcelist={}", folder.join("sources.list").display()));
        apt.args(["-o", "Dir::Etc::sourceparts=-", "-o", "Dir::Cache::pkgcache=", "-o", "Dir::Cache::srcpkgcache="]);
        apt.arg("-o").arg(format!("Dir::State::lists={}", folder.join("lists").display()));
        apt.args(["-o", "APT::Sandbox::User=root"]).args(arguments).current_dir(folder);
        run(&mut apt)
    };
    apt(&["update"])?;
    apt(&["source", "--only-source", "kubernetes"])?;
    let unpacked = fs::read_dir(folder)?.flatten().map(|entry| entry.path()).find(|path| {
        path.is_dir() && path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("kubernetes-"))
    });
    let unpacked = unpacked.context("apt has unpacked no source of kubernetes")?;
    let version = version(&unpacked.to_string_lossy()).context("the source of kubernetes has no version")?;
    let place = folder.join("go/src/k8s.io/kubernetes");
    fs::create_dir_all(folder.join("go/src/k8s.io"))?;
    fs::create_dir_all(folder.join("home"))?;
    fs::rename(unpacked, &place)?;
    Ok((place, version))
}

/// What it is: `1.20.2` of `kubernetes-1.20.5+really1.20.2`.
fn version(folder: &str) -> Option<String> {
    let (_, version) = folder.rsplit_once("kubernetes-")?;
    Some(version.rsplit("really").next()?.to_owned()).filter(|version| version.split('.').count() == 3)
}

fn flags(version: &str) -> String {
    let mut numbers = version.split('.');
    let mut next = || numbers.next().unwrap_or_default();
    let (major, minor) = (next(), next());
    let values =
        [("gitVersion", format!("v{version}")), ("gitMajor", major.to_owned()), ("gitMinor", minor.to_owned())];
    let set =
        |package: &str| values.iter().map(|(name, value)| format!(" -X {package}.{name}={value}")).collect::<String>();
    format!("-s -w{}", VERSION_IN.iter().map(|package| set(package)).collect::<String>())
}

/// An empty folder, whatever was there.
pub fn fresh(folder: &Path) -> Result<PathBuf> {
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| format!("failed to empty `{}`", folder.display()))?;
    }
    fs::create_dir_all(folder)?;
    Ok(folder.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_what_the_source_is() {
        assert_eq!(version("/a/kubernetes-1.20.5+really1.20.2").as_deref(), Some("1.20.2"));
        assert_eq!(version("/a/kubernetes-1.32.4").as_deref(), Some("1.32.4"));
        assert_eq!(version("/a/kubernetes-x"), None);
        assert!(flags("1.20.2").contains(" -X k8s.io/client-go/pkg/version.gitMinor=20"));
    }
}
