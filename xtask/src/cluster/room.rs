//! Where the node runs: cgroups, mounts and a network of its own, and the end of all that was started in them. Never what
//! runs there. Process ids are the host's, since the kernel reports these to an agent: so whoever is in the cgroups is ours.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::process::run;

/// The cgroup of all of it, in each hierarchy.
pub const CGROUP: &str = "/profiler-cluster";
/// The one in it of what is no pod.
const SYSTEM: &str = "system";
/// From being asked to end, to being ended, and to giving up.
const GRACE: Duration = Duration::from_secs(10);
const PATIENCE: Duration = Duration::from_secs(30);
/// Addresses of the node, and of the API server as pods know it.
pub const NODE: &str = "10.99.0.1";
pub const API_SERVER: &str = "10.96.0.1";
/// What a kubelet would set for the whole host, and reads back.
const SETTINGS: [(&str, &str); 6] = [
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
];
/// Folders of the host's that are written to, whatever a node is told.
const WRITTEN: [&str; 3] = ["/var/lib/kubelet", "/var/lib/cni", "/var/lib/containerd"];
/// Where the kubelet has what pods say.
const PODS_SAY: &str = "/var/log/pods";

/// The cgroups. Dropped, they and everybody in them are gone.
pub struct Room {
    hierarchies: Vec<PathBuf>,
}

impl Room {
    /// Makes it; what was left by a run that was killed goes first.
    pub fn open() -> Result<Room> {
        let room = Room { hierarchies: hierarchies()? };
        room.empty()?;
        for hierarchy in &room.hierarchies {
            let ours = hierarchy.join(CGROUP.trim_start_matches('/'));
            for (folder, from) in [(ours.clone(), hierarchy.clone()), (ours.join(SYSTEM), ours)] {
                fs::create_dir(&folder).with_context(|| format!("failed to make the cgroup `{}`", folder.display()))?;
                // Without these nothing can run in one of version 1.
                for file in ["cpuset.cpus", "cpuset.mems"].iter().filter(|file| from.join(file).exists()) {
                    let _ = fs::write(folder.join(file), fs::read(from.join(file))?);
                }
            }
        }
        Ok(room)
    }

    /// Has a command begin in it, with mounts and a network of its own, and end with this process.
    pub fn enter(&self, command: &mut Command) -> Result<()> {
        let place = |hierarchy: &PathBuf| {
            let file = hierarchy.join(CGROUP.trim_start_matches('/')).join(SYSTEM).join("cgroup.procs");
            CString::new(file.as_os_str().as_bytes())
        };
        let files = self.hierarchies.iter().map(place).collect::<Result<Vec<_>, _>>()?;
        let enter = move || {
            for file in &files {
                // SAFETY: a path that ends in zero, and a byte that lives; the descriptor is closed where it was opened.
                let written = unsafe {
                    let descriptor = libc::open(file.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
                    let written = libc::write(descriptor, c"0".as_ptr().cast(), 1);
                    libc::close(descriptor);
                    written
                };
                if written != 1 {
                    return Err(io::Error::last_os_error());
                }
            }
            // SAFETY: both change this process only.
            let done = unsafe {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) == 0
                    && libc::unshare(libc::CLONE_NEWNS | libc::CLONE_NEWNET) == 0
            };
            if done { Ok(()) } else { Err(io::Error::last_os_error()) }
        };
        // SAFETY: between fork and exec only async-signal-safe calls are made, and nothing is allocated.
        unsafe { command.pre_exec(enter).process_group(0) };
        Ok(())
    }

    /// Ends everybody in it, by id, and takes it away; how many there were.
    pub fn empty(&self) -> Result<usize> {
        let begun = Instant::now();
        let mut met = std::collections::BTreeSet::new();
        loop {
            let members = members()?;
            if members.is_empty() {
                break;
            }
            if begun.elapsed() > PATIENCE {
                bail!("failed to end processes {members:?}, which are in cgroups {CGROUP}: end them by hand");
            }
            for pid in members {
                let signal = if begun.elapsed() > GRACE { libc::SIGKILL } else { libc::SIGTERM };
                if met.insert(pid) || signal == libc::SIGKILL {
                    // SAFETY: signals a process that is in our cgroup.
                    unsafe { libc::kill(pid, signal) };
                }
            }
            thread::sleep(Duration::from_millis(100));
        }
        let ours = |hierarchy: &PathBuf| hierarchy.join(CGROUP.trim_start_matches('/'));
        self.hierarchies.iter().map(ours).filter(|folder| folder.exists()).try_for_each(|folder| remove(&folder))?;
        Ok(met.len())
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        if let Err(e) = self.empty() {
            eprintln!("error: {e:#}");
        }
    }
}

/// Where cgroups are mounted, of either version.
fn hierarchies() -> Result<Vec<PathBuf>> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("failed to read this process's mounts")?;
    let place = |line: &str| {
        let mut words = line.split_whitespace().skip(1);
        let (folder, kind) = (words.next()?, words.next()?);
        matches!(kind, "cgroup" | "cgroup2").then(|| PathBuf::from(folder))
    };
    let found: Vec<PathBuf> = mounts.lines().filter_map(place).collect();
    if found.is_empty() {
        bail!("no cgroups are mounted here, which pods need");
    }
    Ok(found)
}

/// Everybody in the cgroups.
fn members() -> Result<Vec<i32>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // Who has ended meanwhile is not there any more; who is not waited for yet has no memory, and cannot be ended again.
        let cgroups = fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
        let ended = fs::read_to_string(entry.path().join("stat")).is_ok_and(|stat| stat.contains(") Z "));
        if !ended && is_ours(&cgroups) {
            found.push(pid);
        }
    }
    Ok(found)
}

/// Whether /proc/PID/cgroup names ours in any hierarchy.
fn is_ours(cgroups: &str) -> bool {
    cgroups.lines().filter_map(|line| line.splitn(3, ':').nth(2)).any(|path| Path::new(path).starts_with(CGROUP))
}

/// Removes a cgroup with those in it. The kernel takes a moment to let go of one whose last process has ended.
fn remove(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path())?;
        }
    }
    let mut last = Ok(());
    for _ in 0..50 {
        last = fs::remove_dir(folder);
        match &last {
            Err(e) if e.kind() != io::ErrorKind::NotFound => thread::sleep(Duration::from_millis(100)),
            _ => return Ok(()),
        }
    }
    last.with_context(|| format!("failed to remove the cgroup `{}`", folder.display()))
}

/// Within the new namespaces: mounts that nobody else sees, and addresses of a node. `folder` is for what is written to
/// places of the host, `logs` for what pods say.
pub fn furnish(folder: &Path, logs: &Path) -> Result<()> {
    let mount = |arguments: &[&str]| run(Command::new("mount").args(arguments));
    mount(&["--make-rprivate", "/"])?;
    // Pods get what is mounted later: that is for this namespace's own mounts.
    mount(&["--make-rshared", "/"])?;
    mount(&["-t", "tmpfs", "tmpfs", "/run"])?;
    for place in WRITTEN {
        let ours = folder.join(place.trim_start_matches('/'));
        fs::create_dir_all(&ours)?;
        over(place, &ours)?;
    }
    let pods = logs.join("pods");
    fs::create_dir_all(&pods)?;
    over(PODS_SAY, &pods)?;
    for (name, value) in SETTINGS {
        let file = folder.join(name.replace('/', "_"));
        fs::write(&file, format!("{value}\n"))?;
        mount(&["--bind", &file.display().to_string(), &format!("/proc/sys/{name}")])?;
    }
    let ip = |arguments: &str| run(Command::new("ip").args(arguments.split(' ')));
    ip("link set lo up")?;
    ip(&format!("address add {NODE}/32 dev lo"))?;
    ip(&format!("address add {API_SERVER}/32 dev lo"))
}

/// Puts a folder over one of the host's. Where the host has none, an empty one is made, and stays.
fn over(place: &str, ours: &Path) -> Result<()> {
    if !Path::new(place).exists() {
        fs::create_dir_all(place).with_context(|| format!("failed to make `{place}`"))?;
    }
    run(Command::new("mount").arg("--bind").arg(ours).arg(place))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_cgroups_are_ours() {
        assert!(is_ours("5:memory:/profiler-cluster/kubepods/pod1/a\n0::/\n"));
        assert!(is_ours("0::/profiler-cluster/system"));
        assert!(!is_ours("5:memory:/profiler-cluster2/a\n0::/kubepods/profiler-cluster\n"));
    }
}
