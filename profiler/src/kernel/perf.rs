//! perf_event_open(2): single uprobes, kprobes, tracepoints by number, and sampling clocks.

use std::ffi::{CStr, CString};
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::path::Path;

const PERF_TYPE_SOFTWARE: u32 = 1;
const PERF_TYPE_TRACEPOINT: u32 = 2;
const PERF_COUNT_SW_CPU_CLOCK: u64 = 0;
const PERF_FLAG_FD_CLOEXEC: libc::c_ulong = 8;
/// Is there where the kernel has uprobes.
pub(super) const UPROBE_TYPE: &str = "/sys/bus/event_source/devices/uprobe/type";
const KPROBE_TYPE: &str = "/sys/bus/event_source/devices/kprobe/type";
const PERF_EVENT_IOC_SET_BPF: libc::c_ulong = 0x4004_2408;
const TRACEFS: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];

/// `struct perf_event_attr` of 136 bytes (PERF_ATTR_SIZE_VER8): only the fields that are used have names.
#[repr(C)]
struct Attributes {
    kind: u32,
    size: u32,
    config: u64,
    sample_period: u64,
    unused_1: [u64; 4],
    config1: u64,
    config2: u64,
    unused_2: [u64; 8],
}

const _: () = assert!(size_of::<Attributes>() == 136);
const _: () = assert!(std::mem::offset_of!(Attributes, config1) == 56);

fn open(mut attributes: Attributes, pid: i32, cpu: i32) -> io::Result<OwnedFd> {
    attributes.size = size_of::<Attributes>() as u32;
    // SAFETY: `attributes` is a live structure of the size that it names; the other arguments are plain numbers.
    let fd =
        unsafe { libc::syscall(libc::SYS_perf_event_open, &raw const attributes, pid, cpu, -1, PERF_FLAG_FD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just returned this descriptor, and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Opens a uprobe at a file offset, for one process or (`None`) for all.
pub fn uprobe(path: &CString, offset: u64, pid: Option<u32>) -> io::Result<OwnedFd> {
    let attributes = Attributes {
        kind: kind(UPROBE_TYPE)?,
        size: 0,
        config: 0,
        sample_period: 0,
        unused_1: [0; 4],
        config1: path.as_ptr() as u64,
        config2: offset,
        unused_2: [0; 8],
    };
    match pid {
        Some(pid) => open(attributes, pid as i32, -1),
        None => open(attributes, -1, 0),
    }
}

fn kind(path: &str) -> io::Result<u32> {
    let kind = fs::read_to_string(path)?;
    kind.trim().parse().map_err(|_| io::Error::other(format!("`{path}` holds no number")))
}

/// Opens a kprobe at the entry of a function of the kernel's.
pub fn kprobe(function: &CStr) -> io::Result<OwnedFd> {
    let attributes = Attributes {
        kind: kind(KPROBE_TYPE)?,
        size: 0,
        config: 0,
        sample_period: 0,
        unused_1: [0; 4],
        config1: function.as_ptr() as u64,
        config2: 0,
        unused_2: [0; 8],
    };
    open(attributes, -1, 0)
}

/// Has a program run at each hit of an event, for as long as that is open.
pub(super) fn set_program(event: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: live descriptors; the command takes the program's as a number.
    let result = unsafe { libc::ioctl(event.as_raw_fd(), PERF_EVENT_IOC_SET_BPF, program.as_raw_fd()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Opens a clock that ticks each `period_ns` of one CPU's time.
pub fn cpu_clock(cpu: u32, period_ns: u64) -> io::Result<OwnedFd> {
    clock(-1, cpu as i32, period_ns)
}

/// Opens a clock that ticks each `period_ns` of the calling thread's time, and that nobody listens to.
pub fn own_clock(period_ns: u64) -> io::Result<OwnedFd> {
    clock(0, -1, period_ns)
}

fn clock(pid: i32, cpu: i32, period_ns: u64) -> io::Result<OwnedFd> {
    open(
        Attributes {
            kind: PERF_TYPE_SOFTWARE,
            size: 0,
            config: PERF_COUNT_SW_CPU_CLOCK,
            sample_period: period_ns,
            unused_1: [0; 4],
            config1: 0,
            config2: 0,
            unused_2: [0; 8],
        },
        pid,
        cpu,
    )
}

/// Opens a tracepoint given as `category/name`. It reports every CPU's hits to a linked BPF program.
pub fn tracepoint(name: &str) -> io::Result<OwnedFd> {
    let config = tracepoint_id(name)?;
    open(
        Attributes {
            kind: PERF_TYPE_TRACEPOINT,
            size: 0,
            config,
            sample_period: 0,
            unused_1: [0; 4],
            config1: 0,
            config2: 0,
            unused_2: [0; 8],
        },
        -1,
        0,
    )
}

/// The tracepoint's number: from tracefs where it is mounted, else from a private mount that nobody else sees.
fn tracepoint_id(name: &str) -> io::Result<u64> {
    let relative = format!("events/{name}/id");
    let mut text = String::new();
    for root in TRACEFS {
        match File::open(Path::new(root).join(&relative)) {
            Ok(mut file) => {
                file.read_to_string(&mut text)?;
                break;
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
    }
    if text.is_empty() {
        let mount = detached_tracefs()?;
        let path = CString::new(relative)?;
        // SAFETY: a live directory descriptor and a live, terminated path.
        let fd = unsafe { libc::openat(mount.as_raw_fd(), path.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just returned this descriptor, and nobody else owns it.
        File::from(unsafe { OwnedFd::from_raw_fd(fd) }).read_to_string(&mut text)?;
    }
    text.trim().parse().map_err(|_| io::Error::other(format!("the id of tracepoint {name} is no number")))
}

/// Mounts tracefs without attaching it anywhere (fsopen(2), fsmount(2)): the mount is gone with the descriptor.
fn detached_tracefs() -> io::Result<OwnedFd> {
    const FSCONFIG_CMD_CREATE: libc::c_ulong = 6;
    let checked = |fd: libc::c_long| {
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just returned this descriptor, and nobody else owns it.
        Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
    };
    let name = c"tracefs";
    // SAFETY: a terminated string and plain numbers.
    let context = checked(unsafe { libc::syscall(libc::SYS_fsopen, name.as_ptr(), 1) })?;
    // SAFETY: a live descriptor; this command takes no key and no value.
    let created = unsafe {
        libc::syscall(
            libc::SYS_fsconfig,
            context.as_raw_fd(),
            FSCONFIG_CMD_CREATE,
            std::ptr::null::<u8>(),
            std::ptr::null::<u8>(),
            0,
        )
    };
    if created < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a live descriptor and plain numbers.
    checked(unsafe { libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), 1, 0) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tracepoint_is_found_whether_or_not_tracefs_is_mounted() {
        assert!(tracepoint_id("syscalls/sys_exit_accept4").expect("root is needed") > 0);
        assert_eq!(tracepoint_id("syscalls/no_such").unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
