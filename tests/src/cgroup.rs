//! A cgroup with a CPU limit, made for one test. Never where none may be made.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process;

/// Where the CPU controller's hierarchy is mounted: of version 1, and of version 2.
const FIRST: [&str; 2] = ["/sys/fs/cgroup/cpu", "/sys/fs/cgroup/cpu,cpuacct"];
const SECOND: &str = "/sys/fs/cgroup";

/// A cgroup; dropped, its processes are back in the root and it is gone.
pub struct Cgroup {
    path: PathBuf,
    root: PathBuf,
}

impl Cgroup {
    /// Makes one that may use `percent` of one CPU.
    ///
    /// # Errors
    /// This host permits none.
    pub fn limited(percent: u32) -> io::Result<Cgroup> {
        let quota = percent * 1000;
        if let Some(root) = FIRST.into_iter().map(Path::new).find(|root| root.join("cpu.cfs_quota_us").exists()) {
            let cgroup = Cgroup::make(root)?;
            fs::write(cgroup.path.join("cpu.cfs_period_us"), "100000")?;
            fs::write(cgroup.path.join("cpu.cfs_quota_us"), quota.to_string())?;
            return Ok(cgroup);
        }
        let root = Path::new(SECOND);
        fs::write(root.join("cgroup.subtree_control"), "+cpu")?;
        let cgroup = Cgroup::make(root)?;
        fs::write(cgroup.path.join("cpu.max"), format!("{quota} 100000"))?;
        Ok(cgroup)
    }

    /// The same; where this host permits none it is said, and a test has nothing to look at.
    pub fn where_permitted(percent: u32) -> Option<Cgroup> {
        match Cgroup::limited(percent) {
            Ok(cgroup) => Some(cgroup),
            Err(e) => {
                eprintln!("not tested: no cgroup with a CPU limit can be made here: {e}");
                None
            }
        }
    }

    fn make(root: &Path) -> io::Result<Cgroup> {
        let path = root.join(format!("profiler-test-{}", process::id()));
        fs::create_dir(&path)?;
        Ok(Cgroup { path, root: root.to_owned() })
    }

    /// Its folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Moves a process into it.
    ///
    /// # Errors
    /// It has ended, or may not be moved.
    pub fn take(&self, pid: u32) -> io::Result<()> {
        fs::write(self.path.join("cgroup.procs"), pid.to_string())
    }

    /// Moves a process out of it.
    ///
    /// # Errors
    /// As above.
    pub fn release(&self, pid: u32) -> io::Result<()> {
        fs::write(self.root.join("cgroup.procs"), pid.to_string())
    }

    /// Periods in which the limit was reached, and for how long it held, nanoseconds.
    ///
    /// # Panics
    /// The kernel does not tell.
    pub fn throttled(&self) -> (u64, u64) {
        let stat = fs::read_to_string(self.path.join("cpu.stat")).expect("cpu.stat of an own cgroup");
        let number = |name: &str| {
            let line = stat.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            line.and_then(|number| number.parse::<u64>().ok())
        };
        let time_ns = number("throttled_time").or_else(|| number("throttled_usec").map(|us| us * 1000));
        number("nr_throttled").zip(time_ns).unwrap_or_else(|| panic!("no throttling in `{stat}`"))
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        for pid in fs::read_to_string(self.path.join("cgroup.procs")).unwrap_or_default().lines() {
            let _ = fs::write(self.root.join("cgroup.procs"), pid);
        }
        let _ = fs::remove_dir(&self.path);
    }
}
