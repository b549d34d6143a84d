//! For how long a CPU limit has held a process: what its cgroup and those above it count. Never which threads waited.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use procfs::process::MountInfo;
use procfs::{ProcError, ProcessCGroup};

/// Longer than any `cpu.stat`.
const STAT_BYTES: usize = 2048;

/// Why it cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum ThrottleError {
    /// The process's cgroups or this process's mounts cannot be read.
    #[error("failed to read the cgroup of process {pid}: {source}")]
    Read {
        /// Its id.
        pid: u32,
        /// Why.
        source: ProcError,
    },
    /// The hierarchy is nowhere to be seen.
    #[error("the cgroup file system is not mounted here: mount the host's at /sys/fs/cgroup")]
    NotMounted,
    /// The cgroup is outside of what is mounted or of this process's cgroup namespace.
    #[error("cgroup `{path}` cannot be seen from here: run the profiler in the host's cgroup namespace")]
    OutOfSight {
        /// The cgroup, as /proc has it.
        path: String,
    },
    /// No cgroup that it is in has the controller.
    #[error("no CPU controller in cgroup `{path}` or above: a CPU limit cannot hold it")]
    NoController {
        /// The cgroup, as /proc has it.
        path: String,
    },
    /// The root has no limit.
    #[error("it is in the root cgroup: a CPU limit cannot hold it")]
    Root,
}

/// Throttlings, and for how long they held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Throttled {
    /// Periods in which the limit was reached.
    pub periods: u64,
    /// Time that CPUs were held for it, nanoseconds: CPUs that were held at the same time are added.
    pub time_ns: u64,
}

impl Throttled {
    fn since(self, before: Throttled) -> Throttled {
        Throttled {
            periods: self.periods.saturating_sub(before.periods),
            time_ns: self.time_ns.saturating_sub(before.time_ns),
        }
    }
}

/// A cgroup that a limit can hold.
struct Level {
    file: File,
    /// What was told of it already.
    told: Throttled,
}

/// What the cgroups of a process count from now on.
pub struct Throttle {
    levels: Vec<Level>,
}

impl Throttle {
    /// Finds the cgroups of a process, of the CPU controller of version 1 or of version 2.
    ///
    /// # Errors
    /// Nothing counts for it, or that cannot be seen.
    pub fn find(pid: u32) -> Result<Throttle, ThrottleError> {
        let failed = |source| ThrottleError::Read { pid, source };
        let groups = groups(pid).map_err(failed)?;
        let mounts = procfs::process::Process::myself().and_then(|own| own.mountinfo()).map_err(failed)?;
        Throttle::among(&groups, &mounts.0)
    }

    fn among(groups: &[ProcessCGroup], mounts: &[MountInfo]) -> Result<Throttle, ThrottleError> {
        let Place { path, folder, top } = place(groups, mounts)?;
        let levels: Vec<Level> = folder
            .ancestors()
            .take_while(|folder| folder.starts_with(&top))
            .filter(|folder| !is_root(folder))
            .filter_map(|folder| {
                let file = File::open(folder.join("cpu.stat")).ok()?;
                let told = read(&file).ok().flatten()?;
                Some(Level { file, told })
            })
            .collect();
        if !levels.is_empty() {
            return Ok(Throttle { levels });
        }
        Err(if is_root(&folder) { ThrottleError::Root } else { ThrottleError::NoController { path } })
    }

    /// How many cgroups, one within the other, are read.
    pub fn levels(&self) -> usize {
        self.levels.len()
    }

    /// What has come since it was told last; `None` for nothing. Of cgroups one within the other it is the one that was
    /// held longest: while the inner one is held, the outer one cannot be told from it, and a sum would count twice.
    ///
    /// # Errors
    /// The cgroup is gone: look for the process's again.
    pub fn take(&mut self) -> io::Result<Option<Throttled>> {
        let mut longest: Option<Throttled> = None;
        for level in &mut self.levels {
            let Some(now) = read(&level.file)? else { continue };
            let grown = now.since(level.told);
            // The kernel counts a period at its end and the time when it lets go: one may be there before the other.
            if grown.periods == 0 || grown.time_ns == 0 {
                continue;
            }
            level.told = now;
            longest = longest.filter(|other| other.time_ns >= grown.time_ns).or(Some(grown));
        }
        Ok(longest)
    }
}

fn groups(pid: u32) -> Result<Vec<ProcessCGroup>, ProcError> {
    let id = i32::try_from(pid).map_err(|_| ProcError::NotFound(None))?;
    Ok(procfs::process::Process::new(id)?.cgroups()?.0)
}

/// Where a cgroup is.
#[derive(Debug)]
struct Place {
    /// As /proc has it.
    path: String,
    /// Its folder.
    folder: PathBuf,
    /// The folder of the topmost cgroup that can be seen.
    top: PathBuf,
}

/// The place of the process's cgroup that the CPU controller looks at: version 1 where that has it.
fn place(groups: &[ProcessCGroup], mounts: &[MountInfo]) -> Result<Place, ThrottleError> {
    let first = groups.iter().find(|group| group.controllers.iter().any(|controller| controller == "cpu"));
    let group = first.or_else(|| groups.iter().find(|group| group.hierarchy == 0)).ok_or(ThrottleError::NotMounted)?;
    let is_its = |mount: &&MountInfo| match first {
        Some(_) => mount.fs_type == "cgroup" && mount.super_options.contains_key("cpu"),
        None => mount.fs_type == "cgroup2",
    };
    let mut mounts = mounts.iter().filter(is_its).peekable();
    if mounts.peek().is_none() {
        return Err(ThrottleError::NotMounted);
    }
    let path = group.pathname.clone();
    let seen = mounts.find_map(|mount| {
        let below = Path::new(&path).strip_prefix(&mount.root).ok()?;
        // What is outside of this process's cgroup namespace begins with `/..`.
        let inside = below.components().all(|part| matches!(part, std::path::Component::Normal(_)));
        inside.then(|| (mount.mount_point.join(below), mount.mount_point.clone()))
    });
    match seen {
        Some((folder, top)) => Ok(Place { path, folder, top }),
        None => Err(ThrottleError::OutOfSight { path }),
    }
}

/// Whether it is the real root: version 1 keeps this file there only, and version 2 lacks this one there only.
fn is_root(folder: &Path) -> bool {
    folder.join("cgroup.sane_behavior").exists()
        || (folder.join("cgroup.controllers").exists() && !folder.join("cgroup.type").exists())
}

/// What a `cpu.stat` says; `None` where it does not tell of throttling.
fn read(file: &File) -> io::Result<Option<Throttled>> {
    let mut bytes = [0; STAT_BYTES];
    let length = file.read_at(&mut bytes, 0)?;
    Ok(parse(&String::from_utf8_lossy(&bytes[..length])))
}

fn parse(stat: &str) -> Option<Throttled> {
    let number = |name: &str| {
        let line = stat.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.and_then(|number| number.trim().parse::<u64>().ok())
    };
    // Version 1 has nanoseconds.
    let time_ns = number("throttled_time").or_else(|| number("throttled_usec").map(|us| us.saturating_mul(1000)))?;
    Some(Throttled { periods: number("nr_throttled")?, time_ns })
}

#[cfg(test)]
mod tests;
