//! One profiler per process: probes of two add up in the target, and each would miss the other's cost.

use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};

use crate::target::process::Process;

/// Why a process cannot be claimed.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// Another profiler has it.
    #[error(
        "process {pid} is being profiled by another profiler, and both would add to its cost: stop that one, or use --force"
    )]
    Taken {
        /// Which process.
        pid: u32,
    },
    /// The claim could not be made.
    #[error("failed to claim process {pid}: {source}")]
    Failed {
        /// Which process.
        pid: u32,
        /// Why.
        source: io::Error,
    },
}

/// Held while a process is watched. The name is the kernel's to free, so that it is free also after a SIGKILL.
pub struct Claim(#[expect(dead_code, reason = "held for its name")] Option<UnixListener>);

/// Claims a process by an abstract socket that is named after it.
///
/// # Errors
/// Another profiler has claimed it, unless `force`.
pub fn claim(process: &Process, force: bool) -> Result<Claim, ClaimError> {
    let pid = process.pid;
    let name = format!("profiler/{pid}/{}", process.start_ticks);
    let bound = SocketAddr::from_abstract_name(name).and_then(|address| UnixListener::bind_addr(&address));
    match bound {
        Ok(listener) => Ok(Claim(Some(listener))),
        Err(_) if force => Ok(Claim(None)),
        Err(e) if e.kind() == io::ErrorKind::AddrInUse => Err(ClaimError::Taken { pid }),
        Err(source) => Err(ClaimError::Failed { pid, source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_claimed_once_unless_forced() {
        let me = Process::find(std::process::id()).unwrap();
        let first = claim(&me, false).unwrap();
        assert!(matches!(claim(&me, false), Err(ClaimError::Taken { .. })));
        assert!(claim(&me, true).is_ok());
        drop(first);
        assert!(claim(&me, false).is_ok());
    }
}
