//! Which capabilities this process has. The kernel's own error for a missing one names a random map, so they are
//! checked before anything is loaded.

use std::fs;
use std::path::PathBuf;

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
}

const CAP_SYS_ADMIN: u32 = 21;

/// All that are used; CAP_SYS_ADMIN stands for each of them.
pub const CAPABILITIES: &[Capability] = &[
    Capability { name: "CAP_BPF", bit: 39, purpose: "create maps and load programs", required: true },
    Capability { name: "CAP_PERFMON", bit: 38, purpose: "attach to tracepoints and probes", required: true },
    Capability { name: "CAP_SYS_PTRACE", bit: 19, purpose: "read another user's process", required: false },
    Capability {
        name: "CAP_DAC_READ_SEARCH",
        bit: 2,
        purpose: "read another user's open files and the tracing directory",
        required: false,
    },
];

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

    #[test]
    fn sys_admin_stands_for_the_required_ones() {
        assert!(Effective(1 << CAP_SYS_ADMIN).require().is_ok());
        assert!(Effective((1 << 38) | (1 << 39)).require().is_ok());
        assert!(!Effective(1 << CAP_SYS_ADMIN).has(&CAPABILITIES[2]));
    }
}
