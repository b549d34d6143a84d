//! Which capabilities this process has, and which it gives up. The kernel's own error for a missing one names a random
//! map, so they are checked before anything is loaded.

use std::fs;
use std::io;
use std::path::PathBuf;

use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

use super::KernelError;

/// A capability that the profiler uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capability {
    /// Its name, as CAP_BPF.
    pub name: &'static str,
    /// Its bit.
    pub bit: u32,
    /// What it is needed for.
    pub purpose: &'static str,
    /// Whether nothing at all works without it.
    pub required: bool,
    /// Whether it is used for as long as something is watched, and not only to attach.
    pub lasting: bool,
}

const CAP_SYS_ADMIN: u32 = 21;

/// All that are used; CAP_SYS_ADMIN stands for each of them.
pub const CAPABILITIES: &[Capability] = &[
    Capability { name: "CAP_BPF", bit: 39, purpose: "create maps and load programs", required: true, lasting: false },
    Capability {
        name: "CAP_PERFMON",
        bit: 38,
        purpose: "attach to tracepoints and probes",
        required: true,
        lasting: false,
    },
    Capability {
        name: "CAP_SYS_PTRACE",
        bit: 19,
        purpose: "read another user's process",
        required: false,
        lasting: true,
    },
    Capability {
        name: "CAP_DAC_READ_SEARCH",
        bit: 2,
        purpose: "read another user's open files and the tracing directory",
        required: false,
        lasting: true,
    },
];

/// Gives up, for this thread and for those that it starts from now on, all capabilities but those that `kept` says.
/// With `admin`, CAP_SYS_ADMIN is kept, too.
///
/// # Errors
/// The kernel refuses, which it does not do to whom only gives up.
pub fn keep_only(kept: impl Fn(&Capability) -> bool, admin: bool) -> io::Result<()> {
    let admin = u64::from(admin) << CAP_SYS_ADMIN;
    let bits = CAPABILITIES.iter().filter(|capability| kept(capability)).fold(admin, |bits, c| bits | 1 << c.bit);
    let kept = CapabilitySet::from_bits_retain(bits);
    let mut sets = capabilities(None)?;
    for set in [&mut sets.effective, &mut sets.permitted, &mut sets.inheritable] {
        *set &= kept;
    }
    Ok(set_capabilities(None, sets)?)
}

/// The effective set of this process.
#[derive(Clone, Copy, Debug)]
pub struct Effective(u64);

impl Effective {
    /// Reads the set.
    ///
    /// # Errors
    /// /proc is not mounted.
    pub fn current() -> Result<Effective, KernelError> {
        let path = PathBuf::from("/proc/self/status");
        let status = fs::read_to_string(&path).map_err(|source| KernelError::Read { path, source })?;
        let set = status
            .lines()
            .find_map(|line| line.strip_prefix("CapEff:"))
            .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
        Ok(Effective(set.unwrap_or_default()))
    }

    /// Whether the set has it, or CAP_SYS_ADMIN in its place (which stands for CAP_BPF and CAP_PERFMON only).
    pub fn has(self, capability: &Capability) -> bool {
        let admin = capability.required && self.0 & (1 << CAP_SYS_ADMIN) != 0;
        admin || self.0 & (1 << capability.bit) != 0
    }

    /// Fails when a required one is missing, naming all that are.
    ///
    /// # Errors
    /// One is missing.
    pub fn require(self) -> Result<(), KernelError> {
        let missing: Vec<String> =
            CAPABILITIES.iter().filter(|c| c.required && !self.has(c)).map(|c| c.name.to_owned()).collect();
        if missing.is_empty() { Ok(()) } else { Err(KernelError::Capabilities { missing }) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_one_is_named_with_the_remedy() {
        let message = Effective(1 << 38).require().unwrap_err().to_string();
        assert!(message.contains("CAP_BPF") && !message.contains("CAP_PERFMON,"), "{message}");
        assert!(message.contains("setcap cap_bpf+ep"), "{message}");
    }

    /// Check that nothing is left but what is kept, in this thread alone.
    #[test]
    fn what_is_not_kept_is_given_up() {
        let before = capabilities(None).expect("they can be read");
        let after = std::thread::spawn(|| {
            keep_only(|capability| capability.lasting, false).expect("giving up is permitted");
            capabilities(None).expect("they can be read")
        });
        let after = after.join().expect("no panic");
        let lasting = CapabilitySet::SYS_PTRACE | CapabilitySet::DAC_READ_SEARCH;
        assert_eq!([after.effective, after.permitted], [before.effective & lasting, before.permitted & lasting]);
        assert_eq!(capabilities(None).expect("they can be read"), before);
    }

    #[test]
    fn sys_admin_stands_for_the_required_ones() {
        assert!(Effective(1 << CAP_SYS_ADMIN).require().is_ok());
        assert!(Effective((1 << 38) | (1 << 39)).require().is_ok());
        assert!(!Effective(1 << CAP_SYS_ADMIN).has(&CAPABILITIES[2]));
    }
}
