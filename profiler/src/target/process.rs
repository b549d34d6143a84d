//! A process as /proc shows it: name, image, threads, namespaces. Never its memory.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use procfs::ProcError;
use rustix::io::Errno;
use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_getaffinity};

/// Inode of the initial PID namespace (PROC_PID_INIT_INO, include/linux/proc_ns.h): BPF sees the ids of that one.
const INIT_PID_NAMESPACE: u64 = 0xeffffffc;

/// Why a process cannot be looked at.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// There is none.
    #[error("no process with PID {pid}")]
    NoSuchProcess {
        /// Its id.
        pid: u32,
    },
    /// It is a kernel thread.
    #[error("PID {pid} ({comm}) is a kernel thread: it has no program to profile")]
    KernelThread {
        /// Its id.
        pid: u32,
        /// Its name.
        comm: String,
    },
    /// It is a thread of another process.
    #[error("{tid} is a thread of process {pid}: use --pid {pid}")]
    NotALeader {
        /// The id that was given.
        tid: u32,
        /// The process that it belongs to.
        pid: u32,
    },
    /// It is another user's, and this process may not look into it.
    #[error(
        "failed to look into process {pid} of user {uid}: run as root, or grant CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH"
    )]
    NotPermitted {
        /// Its id.
        pid: u32,
        /// Its owner.
        uid: u32,
    },
    /// The profiler itself is in a container's PID namespace.
    #[error(
        "the profiler is not in the host's PID namespace, whose ids the kernel reports: run it with the host's (`--pid=host`, `hostPID: true`)"
    )]
    PidNamespace,
    /// Something else.
    #[error("failed to read {what} of process {pid}: {source}")]
    Read {
        /// Its id.
        pid: u32,
        /// What.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
}

/// A larger library is none of a runtime's.
const MOST_LIBRARY_BYTES: u64 = 256 << 20;
/// Of longer command lines the rest is not looked at.
const MOST_ARGUMENT_BYTES: u64 = 64 << 10;

/// A process, as it was when it was looked at.
#[derive(Clone, Debug)]
pub struct Process {
    /// Process id.
    pub pid: u32,
    /// Its name.
    pub comm: String,
    /// When it started, in clock ticks since boot: with the id, it tells a process from a later one.
    pub start_ticks: u64,
    /// Its owner.
    pub uid: u32,
}

/// The image that a process runs.
#[derive(Debug)]
pub struct Image {
    /// A path that opens the file even if it was deleted, or is in a container.
    pub path: PathBuf,
    /// The open file.
    pub file: File,
    /// Device and inode.
    pub identity: (u64, u64),
    /// Tells it from other builds, also from one that came to be under the same inode.
    pub file_id: FileId,
    /// The path that the memory map shows for it, where it is not the executable.
    pub mapped_as: Option<PathBuf>,
}

impl Image {
    /// The bytes of a library, which may be written to, unlike an executable that runs: it is read, and not mapped.
    ///
    /// # Errors
    /// Why they cannot be had, for people.
    pub fn read_library(&self) -> Result<Vec<u8>, String> {
        let length = self.file.metadata().map_err(|e| e.to_string())?.len();
        if length > MOST_LIBRARY_BYTES {
            return Err("the runtime's library is larger than any is".to_owned());
        }
        let mut bytes = Vec::new();
        (&self.file).read_to_end(&mut bytes).map_err(|e| e.to_string())?;
        Ok(bytes)
    }

    /// Whether another file, or none, has its place by now.
    pub fn is_replaced(&self) -> bool {
        self.path.components().any(|part| part.as_os_str() == MAPPED)
    }
}

/// Where the kernel shows the files of a process's memory map, whatever has become of their paths.
const MAPPED: &str = "map_files";

/// A file as it was when it was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileId {
    device: u64,
    inode: u64,
    bytes: u64,
    /// When it was written last: seconds and nanoseconds.
    modified: (i64, i64),
}

impl FileId {
    /// Of an open file.
    pub fn of(metadata: &fs::Metadata) -> FileId {
        FileId {
            device: metadata.dev(),
            inode: metadata.ino(),
            bytes: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        }
    }
}

/// Where the image is in the process's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    /// First address.
    pub start: u64,
    /// End.
    pub end: u64,
    /// Offset in the file of what is at `start`.
    pub file_offset: u64,
}

impl Process {
    /// Looks a process up.
    ///
    /// # Errors
    /// There is none, or it is none that can be profiled.
    pub fn find(pid: u32) -> Result<Process, ProcessError> {
        let process = open(pid)?;
        let stat = process.stat().map_err(|e| translate(pid, "stat", e))?;
        let status = process.status().map_err(|e| translate(pid, "status", e))?;
        if status.tgid != pid as i32 {
            return Err(ProcessError::NotALeader { tid: pid, pid: status.tgid as u32 });
        }
        const PF_KTHREAD: u32 = 0x0020_0000;
        if stat.flags & PF_KTHREAD != 0 {
            return Err(ProcessError::KernelThread { pid, comm: stat.comm });
        }
        if stat.state == 'Z' {
            return Err(ProcessError::NoSuchProcess { pid });
        }
        Ok(Process { pid, comm: stat.comm, start_ticks: stat.starttime, uid: status.euid })
    }

    /// Whether this very process still runs, not another one under its id, nor its corpse.
    pub fn is_running(&self) -> bool {
        open(self.pid)
            .ok()
            .and_then(|p| p.stat().ok())
            .is_some_and(|stat| stat.starttime == self.start_ticks && !matches!(stat.state, 'Z' | 'X'))
    }

    /// Opens the image.
    ///
    /// # Errors
    /// The process has ended, or may not be looked into.
    pub fn image(&self) -> Result<Image, ProcessError> {
        let path = PathBuf::from(format!("/proc/{}/exe", self.pid));
        let file = File::open(&path).map_err(|e| self.failed("the executable", e))?;
        let metadata = file.metadata().map_err(|e| self.failed("the executable", e))?;
        let file_id = FileId::of(&metadata);
        Ok(Image { path, file, identity: (metadata.dev(), metadata.ino()), file_id, mapped_as: None })
    }

    /// Opens a shared library that is mapped, by its name without the directory; `None` where none is.
    ///
    /// # Errors
    /// The process has ended, or may not be looked into.
    pub fn library(&self, is: impl Fn(&str) -> bool) -> Result<Option<Image>, ProcessError> {
        const WHAT: &str = "a library";
        let maps = open(self.pid)?.maps().map_err(|e| self.failed(WHAT, io::Error::other(e.to_string())))?;
        let named = |map: &procfs::process::MemoryMap| match &map.pathname {
            procfs::process::MMapPath::Path(path) => {
                let name = path.file_name()?.to_str()?;
                is(name.strip_suffix(" (deleted)").unwrap_or(name)).then(|| (path.clone(), map.address, map.inode))
            }
            _ => None,
        };
        let Some((mapped_as, (start, end), inode)) = maps.iter().find_map(named) else { return Ok(None) };
        // The map shows paths as they are in another mount namespace, or in ours where the process has but another root. A
        // file that was replaced since is still open under its addresses, to who may look there.
        let paths = [
            PathBuf::from(format!("/proc/{}/root{}", self.pid, mapped_as.display())),
            mapped_as.clone(),
            PathBuf::from(format!("/proc/{}/{MAPPED}/{start:x}-{end:x}", self.pid)),
        ];
        let open_same = |path: &PathBuf| {
            let file = File::open(path)?;
            match file.metadata()?.ino() == inode {
                true => Ok(file),
                false => Err(io::Error::other(format!("`{}` was replaced since it was loaded", mapped_as.display()))),
            }
        };
        let mut failure = None;
        let opened = paths.into_iter().find_map(|path| match open_same(&path) {
            Ok(file) => Some((path, file)),
            Err(e) => {
                failure.get_or_insert(e);
                None
            }
        });
        let Some((path, file)) = opened else {
            return Err(self.failed(WHAT, failure.unwrap_or_else(|| io::ErrorKind::NotFound.into())));
        };
        let metadata = file.metadata().map_err(|e| self.failed(WHAT, e))?;
        let file_id = FileId::of(&metadata);
        let identity = (metadata.dev(), metadata.ino());
        Ok(Some(Image { path, file, identity, file_id, mapped_as: Some(mapped_as) }))
    }

    /// The path of the executable, as the process sees it.
    ///
    /// # Errors
    /// The process has ended, or may not be looked into.
    pub fn executable(&self) -> Result<String, ProcessError> {
        let path = fs::read_link(format!("/proc/{}/exe", self.pid)).map_err(|e| self.failed("the executable", e))?;
        let path = path.to_string_lossy();
        Ok(path.strip_suffix(" (deleted)").unwrap_or(&path).to_owned())
    }

    /// Its arguments, the first of which is its name; none where it has ended, or is the kernel's.
    pub fn arguments(&self) -> Vec<String> {
        let mut bytes = Vec::new();
        let file = File::open(format!("/proc/{}/cmdline", self.pid));
        let read = file.and_then(|file| file.take(MOST_ARGUMENT_BYTES).read_to_end(&mut bytes));
        if read.is_err() {
            return Vec::new();
        }
        let text = |argument: &[u8]| String::from_utf8_lossy(argument).into_owned();
        bytes.split(|&byte| byte == 0).filter(|argument| !argument.is_empty()).map(text).collect()
    }

    /// All places of the image's file in the process's memory, in the order of their addresses.
    ///
    /// # Errors
    /// The process has ended, or may not be looked into.
    pub fn placements(&self, image: &Image) -> Result<Vec<Placement>, ProcessError> {
        let maps =
            open(self.pid)?.maps().map_err(|e| self.failed("the memory map", io::Error::other(e.to_string())))?;
        Ok(maps
            .iter()
            .filter(|map| {
                let device = libc::makedev(map.dev.0 as u32, map.dev.1 as u32);
                (device, map.inode) == image.identity || is_image(&map.pathname, image, map.inode)
            })
            .map(|map| Placement { start: map.address.0, end: map.address.1, file_offset: map.offset })
            .collect())
    }

    /// Forked children, and theirs, that run the same image as this process: a preforking server's workers.
    pub fn same_image_children(&self) -> Vec<u32> {
        let Ok(image) = self.image() else { return Vec::new() };
        let mut found = Vec::new();
        let mut parents = vec![self.pid];
        while let Some(parent) = parents.pop() {
            for child in children(parent) {
                let same = Process::find(child)
                    .ok()
                    .and_then(|c| c.image().ok())
                    .is_some_and(|i| i.identity == image.identity);
                if same && !found.contains(&child) {
                    found.push(child);
                    parents.push(child);
                }
            }
        }
        found
    }

    /// Number of threads; `None` once the process has ended.
    pub fn thread_count(&self) -> Option<u64> {
        u64::try_from(open(self.pid).ok()?.stat().ok()?.num_threads).ok()
    }

    fn failed(&self, what: &'static str, source: io::Error) -> ProcessError {
        match source.kind() {
            io::ErrorKind::PermissionDenied => ProcessError::NotPermitted { pid: self.pid, uid: self.uid },
            io::ErrorKind::NotFound => ProcessError::NoSuchProcess { pid: self.pid },
            _ => ProcessError::Read { pid: self.pid, what, source },
        }
    }
}

/// Ids of all processes, in their order.
pub fn all() -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let mut pids: Vec<u32> = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    pids.sort_unstable();
    pids
}

/// Whether a process with this id runs: neither none, nor its corpse. Its first thread may have ended before others.
pub fn is_running(pid: u32) -> bool {
    let state = open(pid).ok().and_then(|p| p.stat().ok()).map(|stat| stat.state);
    state.is_some_and(|state| !matches!(state, 'Z' | 'X') || threads(pid).len() > 1)
}

/// Ids of all threads of a process; none once it has ended.
pub fn threads(pid: u32) -> Vec<u32> {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// The name of a thread; `None` once it has ended.
pub fn comm(tid: u32) -> Option<String> {
    let name = fs::read(format!("/proc/{tid}/comm")).ok()?;
    Some(String::from_utf8_lossy(&name).trim_end_matches('\n').to_owned())
}

/// The CPUs on which some of these threads may run.
///
/// # Errors
/// The machine has more CPUs than are asked for here, 1024.
pub fn cpus(threads: &[u32]) -> io::Result<BTreeSet<u32>> {
    let mut cpus = BTreeSet::new();
    let mut last = None;
    for &tid in threads {
        let allowed = match sched_getaffinity(Pid::from_raw(tid as i32)) {
            Ok(allowed) => allowed,
            // The thread has ended.
            Err(Errno::SRCH) => continue,
            Err(e) => return Err(e.into()),
        };
        // As a rule all threads may run on the same ones.
        if last != Some(allowed) {
            last = Some(allowed);
            cpus.extend((0..CpuSet::MAX_CPU).filter(|&cpu| allowed.is_set(cpu)).map(|cpu| cpu as u32));
        }
    }
    Ok(cpus)
}

/// Children of a process: each thread's own list.
fn children(pid: u32) -> Vec<u32> {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    threads
        .flatten()
        .filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok())
        .flat_map(|list| list.split_whitespace().filter_map(|id| id.parse().ok()).collect::<Vec<u32>>())
        .collect()
}

/// On overlay and btrfs the memory map shows another device than stat(2) does: there the inode and the path decide.
fn is_image(path: &procfs::process::MMapPath, image: &Image, inode: u64) -> bool {
    let procfs::process::MMapPath::Path(path) = path else { return false };
    inode == image.identity.1
        && match &image.mapped_as {
            Some(mapped_as) => mapped_as == path,
            None => fs::read_link(&image.path).is_ok_and(|target| target == *path),
        }
}

/// Refuses to go on in a container's PID namespace, where the kernel's ids mean other processes.
///
/// # Errors
/// This process is in one.
pub fn require_init_pid_namespace() -> Result<(), ProcessError> {
    match fs::metadata("/proc/self/ns/pid") {
        Ok(namespace) if namespace.ino() != INIT_PID_NAMESPACE => Err(ProcessError::PidNamespace),
        _ => Ok(()),
    }
}

fn open(pid: u32) -> Result<procfs::process::Process, ProcessError> {
    let id = i32::try_from(pid).map_err(|_| ProcessError::NoSuchProcess { pid })?;
    procfs::process::Process::new(id).map_err(|e| translate(pid, "/proc", e))
}

fn translate(pid: u32, what: &'static str, error: ProcError) -> ProcessError {
    match error {
        ProcError::NotFound(_) => ProcessError::NoSuchProcess { pid },
        other => ProcessError::Read { pid, what, source: io::Error::other(other.to_string()) },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_found_and_placed() {
        let me = Process::find(std::process::id()).unwrap();
        assert!(me.is_running());
        assert!(me.thread_count() >= Some(1));
        assert!(threads(me.pid).contains(&me.pid));
        let image = me.image().unwrap();
        let placements = me.placements(&image).unwrap();
        let here = this_process_is_found_and_placed as *const () as u64;
        assert!(placements.iter().any(|p| (p.start..p.end).contains(&here)), "{here:x} is in none of {placements:x?}");
    }

    #[test]
    fn what_cannot_be_profiled_is_named() {
        assert!(matches!(Process::find(4_000_000_000), Err(ProcessError::NoSuchProcess { .. })));
        assert!(matches!(Process::find(2), Err(ProcessError::KernelThread { .. })));
        let tid = std::thread::spawn(|| {
            // SAFETY: takes no argument, returns this thread's id.
            let tid = unsafe { libc::syscall(libc::SYS_gettid) } as u32;
            matches!(Process::find(tid), Err(ProcessError::NotALeader { pid, .. }) if pid == std::process::id())
        });
        assert!(tid.join().unwrap());
    }

    #[test]
    fn a_process_under_a_reused_id_is_another() {
        let mut me = Process::find(std::process::id()).unwrap();
        me.start_ticks -= 1;
        assert!(!me.is_running());
    }
}
