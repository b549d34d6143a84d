//! The limit of locked memory, which kernels before 5.11 count BPF maps against. Their own error for it names a map.

use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::{KernelError, bpf};

/// About what all maps take: 64 MiB.
const NEEDED_PAGES: u32 = 16 << 10;

/// Raises the limit where that is permitted, and fails where maps do not fit into it.
///
/// # Errors
/// They do not.
pub fn require_room() -> Result<(), KernelError> {
    let unlimited = Rlimit { current: None, maximum: None };
    if getrlimit(Resource::Memlock).current.is_none() || setrlimit(Resource::Memlock, unlimited).is_ok() {
        return Ok(());
    }
    // Who has the memory, and may make maps, is refused for the limit alone.
    match bpf::create_array(NEEDED_PAGES) {
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
            let kib = getrlimit(Resource::Memlock).current.unwrap_or_default() >> 10;
            Err(KernelError::LockedMemory { kib })
        }
        _ => Ok(()),
    }
}
