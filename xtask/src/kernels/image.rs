//! Kernels of Debian's: looked up, fetched and unpacked once, by an apt directory of the task's own that the host's
//! never sees. Never booted here.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::process::{output, root, run, succeeds};

/// A kernel of the matrix.
pub struct Kernel {
    /// What it is called here.
    pub name: &'static str,
    /// The archive's folder, and the suite in it.
    source: (&'static str, &'static str),
    /// What its package's name begins with.
    prefix: &'static str,
}

/// From the oldest to the newest. Each comes from a suite with a short list of packages.
pub const KERNELS: &[Kernel] = &[
    Kernel { name: "5.10", source: ("debian-security", "bullseye-security"), prefix: "linux-image-5.10." },
    Kernel { name: "6.1", source: ("debian-security", "bookworm-security"), prefix: "linux-image-6.1." },
    Kernel { name: "6.12", source: ("debian", "bookworm-backports"), prefix: "linux-image-6.12." },
    Kernel { name: "newest", source: ("debian", "trixie-backports"), prefix: "linux-image-" },
];

/// The flavour that boots fastest.
const FLAVOUR: &str = "-cloud-amd64";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// Modules that are needed, in the order in which they are loaded. What a kernel has built in is no module.
const MODULES: [&str; 3] = ["inet_diag", "tcp_diag", "unix_diag"];
/// Newer kernels' packages come in pieces.
const PIECES: [&str; 2] = ["linux-binary-", "linux-modules-"];

/// A kernel that can be booted.
pub struct Image {
    /// What it calls itself.
    pub release: String,
    /// The kernel itself.
    pub kernel: PathBuf,
    /// What is to be loaded into it, in this order.
    pub modules: Vec<PathBuf>,
}

impl Kernel {
    /// Fetches it, where that was not done before.
    ///
    /// # Errors
    /// It is not there, or there is no apt.
    pub fn image(&self) -> Result<Image> {
        let folder = root().join("target/kernels/images").join(self.name);
        if !folder.join("release").exists() {
            self.fetch(&folder).with_context(|| format!("failed to fetch kernel {}", self.name))?;
        }
        let release = fs::read_to_string(folder.join("release"))?.trim().to_owned();
        let modules = MODULES.iter().map(|name| folder.join(format!("{name}.ko"))).filter(|path| path.exists());
        Ok(Image { release, kernel: folder.join("vmlinuz"), modules: modules.collect() })
    }

    fn fetch(&self, folder: &Path) -> Result<()> {
        let apt = Apt::new(self.source)?;
        let names = apt.names()?;
        let newest = names
            .iter()
            .filter_map(|name| name.strip_prefix(self.prefix)?.strip_suffix(FLAVOUR).map(|version| (version, name)))
            .max_by_key(|(version, _)| order(version));
        let Some((_, package)) = newest else {
            bail!("{} has no package {}*{FLAVOUR}", self.source.1, self.prefix);
        };
        let release = package.trim_start_matches("linux-image-");
        let mut packages = vec![package.clone()];
        packages.extend(PIECES.map(|piece| format!("{piece}{release}")).into_iter().filter(|p| names.contains(p)));
        let unpacked = apt.unpack(&packages)?;
        let _ = fs::remove_dir_all(folder);
        fs::create_dir_all(folder)?;
        let files = files(&unpacked);
        let kernel = files.iter().find(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            name == "vmlinuz" || name == format!("vmlinuz-{release}")
        });
        fs::copy(kernel.context("no kernel is in the package")?, folder.join("vmlinuz"))?;
        for module in MODULES {
            let stem = format!("{module}.ko");
            let found =
                files.iter().find(|path| path.file_name().unwrap_or_default().to_string_lossy().starts_with(&stem));
            if let Some(found) = found {
                fs::write(folder.join(&stem), uncompressed(found)?)?;
            }
        }
        fs::remove_dir_all(unpacked)?;
        // Last: it says that all is there.
        Ok(fs::write(folder.join("release"), release)?)
    }
}

/// An apt directory of one suite.
struct Apt {
    folder: PathBuf,
}

impl Apt {
    fn new((archive, suite): (&str, &str)) -> Result<Apt> {
        if !succeeds("apt-get", &["--version"]) || !Path::new(KEYRING).exists() {
            bail!("Debian's kernels are fetched by apt-get with `{KEYRING}`: run this on Debian");
        }
        let folder = root().join("target/kernels/apt").join(suite);
        for part in ["etc", "lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(folder.join(part))?;
        }
        fs::write(folder.join("status"), "")?;
        let site = site(archive)?;
        let source = format!("deb [signed-by={KEYRING}] {site} {suite} main\n");
        fs::write(folder.join("etc/sources.list"), source)?;
        let apt = Apt { folder };
        run(apt.command("apt-get").args(["--quiet", "update"]))?;
        Ok(apt)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let folder = self.folder.display();
        for option in [
            format!("Dir::Etc::SourceList={folder}/etc/sources.list"),
            "Dir::Etc::SourceParts=/dev/null".to_owned(),
            format!("Dir::State::Lists={folder}/lists"),
            format!("Dir::State::status={folder}/status"),
            format!("Dir::Cache={folder}/cache"),
            "APT::Architecture=amd64".to_owned(),
            "APT::Sandbox::User=root".to_owned(),
            "Acquire::Languages=none".to_owned(),
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".to_owned(),
        ] {
            command.args(["-o", &option]);
        }
        command
    }

    fn names(&self) -> Result<Vec<String>> {
        let output =
            self.command("apt-cache").args(["pkgnames", "linux-"]).output().context("failed to run apt-cache")?;
        Ok(String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect())
    }

    fn unpack(&self, packages: &[String]) -> Result<PathBuf> {
        let (debs, unpacked) = (self.folder.join("debs"), self.folder.join("unpacked"));
        for folder in [&debs, &unpacked] {
            let _ = fs::remove_dir_all(folder);
            fs::create_dir_all(folder)?;
        }
        run(self.command("apt-get").args(["--quiet", "download"]).args(packages).current_dir(&debs))?;
        for deb in files(&debs) {
            run(Command::new("dpkg-deb").arg("-x").arg(deb).arg(&unpacked))?;
        }
        fs::remove_dir_all(debs)?;
        Ok(unpacked)
    }
}

/// Where this host has an archive's folder from.
fn site(archive: &str) -> Result<String> {
    let sites = output("apt-get", &["indextargets", "--format", "$(SITE)"]).unwrap_or_default();
    match sites.lines().find(|site| site.trim_end_matches('/').ends_with(&format!("/{archive}"))) {
        Some(site) => Ok(site.to_owned()),
        None => {
            bail!("this host's apt has no source that ends in /{archive}: add one to its sources, and run this again")
        }
    }
}

/// The numbers in a version, which order it.
fn order(version: &str) -> Vec<u64> {
    version.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect()
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => found.extend(files(&entry.path())),
            Ok(kind) if kind.is_file() => found.push(entry.path()),
            _ => {}
        }
    }
    found
}

fn uncompressed(path: &Path) -> Result<Vec<u8>> {
    let unpacker = match path.extension().unwrap_or_default().to_string_lossy().as_ref() {
        "ko" => return Ok(fs::read(path)?),
        "zst" => "zstd",
        _ => "xz",
    };
    let output =
        Command::new(unpacker).arg("-dc").arg(path).output().with_context(|| format!("failed to run {unpacker}"))?;
    if !output.status.success() {
        bail!("{unpacker} cannot unpack `{}`", path.display());
    }
    Ok(output.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ordered_by_their_numbers() {
        assert!(order("5.10.0-46") > order("5.10.0-9"));
        assert!(order("7.3.4+deb13") > order("7.2.13+deb13"));
        assert!(order("7.0.4+deb13") > order("6.19.14+deb13"));
    }
}
