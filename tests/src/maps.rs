//! BPF maps of a running profiler, read by their descriptors. Never what is in them.

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::fs;
use std::io;

// Commands of bpf(2), include/uapi/linux/bpf.h.
const MAP_GET_NEXT_KEY: i32 = 4;
const MAP_GET_FD_BY_ID: i32 = 14;
const OBJ_GET_INFO_BY_FD: i32 = 15;

/// The longest key.
const KEY_BYTES: usize = 64;

/// The head of `struct bpf_map_info`.
#[repr(C)]
#[derive(Default)]
struct Info {
    kind: u32,
    id: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
    name: [u8; 16],
}

/// How many keys a map of a process has; its name is cut after 15 characters.
///
/// # Panics
/// The process has no such map, or it cannot be read.
pub fn entries(pid: u32, name: &str) -> usize {
    let descriptors = maps(pid);
    let &(descriptor, key_size) = descriptors.get(name).unwrap_or_else(|| {
        let names: Vec<&String> = descriptors.keys().collect();
        panic!("process {pid} has no map {name}, but {names:?}")
    });
    let count = keys(descriptor, key_size);
    for (descriptor, _) in descriptors.into_values() {
        close(descriptor);
    }
    count
}

/// Descriptors and sizes of keys of the maps that a process holds, by name.
fn maps(pid: u32) -> BTreeMap<String, (i32, u32)> {
    let mut maps = BTreeMap::new();
    for info in fs::read_dir(format!("/proc/{pid}/fdinfo")).expect("the process lives").flatten() {
        let text = fs::read_to_string(info.path()).unwrap_or_default();
        let Some(id) = text.lines().find_map(|line| line.strip_prefix("map_id:")?.trim().parse::<u32>().ok()) else {
            continue;
        };
        let descriptor = bpf(MAP_GET_FD_BY_ID, &mut [id, 0, 0]).expect("the map exists");
        let mut info = Info::default();
        let address = &raw mut info as u64;
        let mut attributes = [descriptor as u32, size_of::<Info>() as u32, address as u32, (address >> 32) as u32];
        bpf(OBJ_GET_INFO_BY_FD, &mut attributes).expect("it tells of itself");
        let name = CStr::from_bytes_until_nul(&info.name).expect("names end").to_string_lossy().into_owned();
        if let Some((twin, _)) = maps.insert(name, (descriptor, info.key_size)) {
            close(twin);
        }
    }
    maps
}

fn keys(descriptor: i32, key_size: u32) -> usize {
    assert!(key_size as usize <= KEY_BYTES, "a key of {key_size} bytes");
    let (mut key, mut next) = ([0_u64; KEY_BYTES / 8], [0_u64; KEY_BYTES / 8]);
    let mut count = 0;
    loop {
        let from = if count == 0 { 0 } else { &raw const key as u64 };
        let to = &raw mut next as u64;
        let mut attributes = [descriptor as u32, 0, from as u32, (from >> 32) as u32, to as u32, (to >> 32) as u32];
        match bpf(MAP_GET_NEXT_KEY, &mut attributes) {
            Ok(_) => count += 1,
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => return count,
            Err(e) => panic!("failed to read a map: {e}"),
        }
        key = next;
    }
}

fn bpf(command: i32, attributes: &mut [u32]) -> io::Result<i32> {
    // SAFETY: the attributes are live and of the size that is passed; addresses among them are of live buffers of the
    // callers, large enough for what the command writes.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_mut_ptr(), size_of_val(attributes)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
}

fn close(descriptor: i32) {
    // SAFETY: a descriptor of this module's own.
    unsafe { libc::close(descriptor) };
}
