//! bpf(2) itself, for what aya does not offer: links to many uprobes at once, and trials of what a kernel can do.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

use super::perf;

const BPF_MAP_CREATE: libc::c_long = 0;
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_RAW_TRACEPOINT_OPEN: libc::c_long = 17;
const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_MAP_TYPE_ARRAY: u32 = 2;
const BPF_PROG_TYPE_KPROBE: u32 = 2;
const BPF_PROG_TYPE_TRACING: u32 = 26;
const BPF_TRACE_FENTRY: u32 = 24;
const BPF_PERF_EVENT: u32 = 41;
const BPF_TRACE_UPROBE_MULTI: u32 = 48;
/// Room for what the verifier says of a program that it refuses.
const LOG_BYTES: usize = 1 << 20;

/// The head of `union bpf_attr` for BPF_PROG_LOAD, up to `attach_btf_id` (include/uapi/linux/bpf.h).
#[repr(C)]
#[derive(Default)]
struct ProgLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
    prog_ifindex: u32,
    expected_attach_type: u32,
    prog_btf_fd: u32,
    func_info_rec_size: u32,
    func_info: u64,
    func_info_cnt: u32,
    line_info_rec_size: u32,
    line_info: u64,
    line_info_cnt: u32,
    attach_btf_id: u32,
}

/// `union bpf_attr` for BPF_RAW_TRACEPOINT_OPEN.
#[repr(C)]
#[derive(Default)]
struct RawTracepointOpen {
    name: u64,
    prog_fd: u32,
    reserved: u32,
}

/// `union bpf_attr` for BPF_LINK_CREATE with `uprobe_multi`.
#[repr(C)]
#[derive(Default)]
struct LinkCreateUprobeMulti {
    prog_fd: u32,
    target_fd: u32,
    attach_type: u32,
    flags: u32,
    path: u64,
    offsets: u64,
    ref_ctr_offsets: u64,
    cookies: u64,
    cnt: u32,
    multi_flags: u32,
    pid: u32,
    reserved: u32,
}

/// `union bpf_attr` for BPF_LINK_CREATE with `perf_event`.
#[repr(C)]
#[derive(Default)]
struct LinkCreatePerfEvent {
    prog_fd: u32,
    target_fd: u32,
    attach_type: u32,
    flags: u32,
    bpf_cookie: u64,
}

/// The head of `union bpf_attr` for BPF_MAP_CREATE.
#[repr(C)]
struct MapCreate {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
}

/// `union bpf_attr` for BPF_MAP_LOOKUP_BATCH.
#[repr(C)]
struct MapBatch {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// `union bpf_attr` for BPF_OBJ_GET_INFO_BY_FD.
#[repr(C)]
struct ObjGetInfo {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

fn bpf<T>(command: libc::c_long, attributes: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: `attributes` is a live `repr(C)` prefix of `union bpf_attr` whose size is passed; the kernel reads no
    // further, and the pointers in it outlive the call (callers below).
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attributes, size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Hands every entry of a hash map to `see`, some hundred at a time. What is added or removed meanwhile may be seen or not.
/// Keys and values are of the map's sizes, which `aya` has checked of the typed map that this descriptor is of.
///
/// # Errors
/// The kernel refuses.
pub fn for_each<K: aya::Pod, V: aya::Pod>(map: BorrowedFd<'_>, mut see: impl FnMut(&K, &V)) -> io::Result<()> {
    /// More than are in one bucket, which are read at once.
    const ENTRIES: u32 = 512;
    let mut keys: Vec<K> = Vec::with_capacity(ENTRIES as usize);
    let mut values: Vec<V> = Vec::with_capacity(ENTRIES as usize);
    let (mut from, mut to) = (0_u32, 0_u32);
    let mut first = true;
    loop {
        let mut attributes = MapBatch {
            in_batch: if first { 0 } else { (&raw const from).addr() as u64 },
            out_batch: (&raw mut to).addr() as u64,
            keys: keys.as_mut_ptr().addr() as u64,
            values: values.as_mut_ptr().addr() as u64,
            count: ENTRIES,
            map_fd: map.as_raw_fd().cast_unsigned(),
            elem_flags: 0,
            flags: 0,
        };
        let last = match bpf(BPF_MAP_LOOKUP_BATCH, &mut attributes) {
            Ok(_) => false,
            // It was the last bucket.
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => true,
            Err(e) => return Err(e),
        };
        let read = attributes.count.min(ENTRIES) as usize;
        // SAFETY: the kernel has written so many of each, for which there is room, and any bytes are a value of their types.
        unsafe {
            keys.set_len(read);
            values.set_len(read);
        }
        keys.iter().zip(&values).for_each(|(key, value)| see(key, value));
        if last {
            return Ok(());
        }
        (first, from) = (false, to);
    }
}

/// How many runs of a program the kernel has left out, since another one of it ran on that CPU; `None` where it does not
/// tell (before 5.12).
///
/// # Errors
/// The kernel refuses.
pub fn runs_missed(program: BorrowedFd<'_>) -> io::Result<Option<u64>> {
    /// `bpf_prog_info.recursion_misses`, in words.
    const AT: usize = 208 / 8;
    let mut info = [0_u64; 32];
    let mut attributes = ObjGetInfo {
        bpf_fd: program.as_raw_fd() as u32,
        info_len: size_of_val(&info) as u32,
        info: info.as_mut_ptr() as u64,
    };
    bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attributes)?;
    Ok((attributes.info_len as usize >= (AT + 1) * 8).then_some(info[AT]))
}

fn owned(descriptor: libc::c_long) -> OwnedFd {
    // SAFETY: the kernel has just returned this descriptor, and nobody else owns it.
    unsafe { OwnedFd::from_raw_fd(descriptor as i32) }
}

/// Makes an array of so many pages.
///
/// # Errors
/// The kernel refuses.
pub fn create_array(pages: u32) -> io::Result<OwnedFd> {
    let mut attributes = MapCreate { map_type: BPF_MAP_TYPE_ARRAY, key_size: 4, value_size: 4096, max_entries: pages };
    bpf(BPF_MAP_CREATE, &mut attributes).map(owned)
}

/// Loads a uprobe program for a multi link: such a link wants programs that were loaded for it.
/// `instructions` are relocated already, 8 bytes each.
pub fn load_uprobe_multi(name: &str, instructions: &[[u8; 8]], license: &CStr) -> io::Result<OwnedFd> {
    let mut attributes =
        ProgLoad { expected_attach_type: BPF_TRACE_UPROBE_MULTI, ..program(name, instructions, license) };
    bpf(BPF_PROG_LOAD, &mut attributes).map(owned).map_err(|refused| {
        // Only a refusal is worth the verifier's explanation: writing it takes longer than loading.
        let mut explanation = vec![0_u8; LOG_BYTES];
        attributes.log_level = 1;
        attributes.log_size = LOG_BYTES as u32;
        attributes.log_buf = explanation.as_mut_ptr() as u64;
        match bpf(BPF_PROG_LOAD, &mut attributes) {
            Err(_) => io::Error::new(refused.kind(), format!("{refused}: {}", last_words(&explanation))),
            Ok(program) => {
                drop(owned(program));
                refused
            }
        }
    })
}

/// Loads a program for single uprobes.
pub fn load_uprobe(name: &str, instructions: &[[u8; 8]], license: &CStr) -> io::Result<OwnedFd> {
    bpf(BPF_PROG_LOAD, &mut program(name, instructions, license)).map(owned)
}

/// Loads a program for the entry of a function of the kernel's, given by its number in BTF.
pub fn load_fentry(name: &str, instructions: &[[u8; 8]], license: &CStr, function: u32) -> io::Result<OwnedFd> {
    let mut attributes = ProgLoad {
        prog_type: BPF_PROG_TYPE_TRACING,
        expected_attach_type: BPF_TRACE_FENTRY,
        attach_btf_id: function,
        ..program(name, instructions, license)
    };
    bpf(BPF_PROG_LOAD, &mut attributes).map(owned)
}

/// Attaches a program to the function that it was loaded for.
pub fn link_tracing(program: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let mut attributes = RawTracepointOpen { prog_fd: program.as_raw_fd() as u32, ..RawTracepointOpen::default() };
    bpf(BPF_RAW_TRACEPOINT_OPEN, &mut attributes).map(owned)
}

/// What all programs have, for single uprobes.
fn program(name: &str, instructions: &[[u8; 8]], license: &CStr) -> ProgLoad {
    let mut prog_name = [0; 16];
    for (to, from) in prog_name.iter_mut().take(15).zip(name.bytes()) {
        *to = from;
    }
    ProgLoad {
        prog_type: BPF_PROG_TYPE_KPROBE,
        insn_cnt: instructions.len() as u32,
        insns: instructions.as_ptr() as u64,
        license: license.as_ptr() as u64,
        prog_name,
        ..ProgLoad::default()
    }
}

/// The end of the verifier's log, where the reason is.
fn last_words(log: &[u8]) -> String {
    let text = String::from_utf8_lossy(log.split(|&b| b == 0).next().unwrap_or_default()).into_owned();
    log::debug!("the verifier says:\n{text}");
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with("processed ")).collect();
    lines[lines.len().saturating_sub(2)..].join("; ")
}

/// Links a program to `offsets` of the file at `path`, for one process or (`None`) for all. One cookie per offset.
/// The probes are gone when the returned descriptor is closed.
pub fn link_uprobe_multi(
    program: BorrowedFd<'_>,
    path: &CString,
    offsets: &[u64],
    cookies: &[u64],
    pid: Option<u32>,
) -> io::Result<OwnedFd> {
    assert_eq!(offsets.len(), cookies.len(), "one cookie per offset");
    let mut attributes = LinkCreateUprobeMulti {
        prog_fd: program.as_raw_fd() as u32,
        attach_type: BPF_TRACE_UPROBE_MULTI,
        path: path.as_ptr() as u64,
        offsets: offsets.as_ptr() as u64,
        cookies: cookies.as_ptr() as u64,
        cnt: offsets.len() as u32,
        pid: pid.unwrap_or(0),
        ..LinkCreateUprobeMulti::default()
    };
    bpf(BPF_LINK_CREATE, &mut attributes).map(owned)
}

/// Puts a program on a perf event, for as long as all that is returned is open. A kernel without such links (before
/// 5.15) keeps the program with the event; it knows no cookies either, nor a program that asks for one.
pub fn attach_perf_event(program: BorrowedFd<'_>, event: OwnedFd, cookie: u64) -> io::Result<Vec<OwnedFd>> {
    match link_perf_event(program, event.as_fd(), cookie) {
        Ok(link) => Ok(vec![link, event]),
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {
            perf::set_program(event.as_fd(), program)?;
            Ok(vec![event])
        }
        Err(e) => Err(e),
    }
}

fn link_perf_event(program: BorrowedFd<'_>, event: BorrowedFd<'_>, cookie: u64) -> io::Result<OwnedFd> {
    let mut attributes = LinkCreatePerfEvent {
        prog_fd: program.as_raw_fd() as u32,
        target_fd: event.as_raw_fd() as u32,
        attach_type: BPF_PERF_EVENT,
        bpf_cookie: cookie,
        ..LinkCreatePerfEvent::default()
    };
    bpf(BPF_LINK_CREATE, &mut attributes).map(owned)
}

const _: () = assert!(size_of::<ProgLoad>() == 112);
const _: () = assert!(size_of::<RawTracepointOpen>() == 16);
const _: () = assert!(size_of::<LinkCreateUprobeMulti>() == 64);
const _: () = assert!(size_of::<LinkCreatePerfEvent>() == 24);
