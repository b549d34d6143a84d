//! The kernel boundary: the only place that imports aya, and the only one that makes system calls about BPF.

pub mod attach;
pub mod bpf;
pub mod btf;
pub mod capability;
pub mod clock;
pub mod deferred;
pub mod discovery;
pub mod durations;
pub mod enqueue;
pub mod feature;
pub mod holder;
pub mod load;
pub mod lockdown;
pub mod locked_memory;
pub mod loops;
pub mod maps;
pub mod perf;
pub mod polls;
pub mod request;
pub mod ring;
pub mod signal;
pub mod slots;
pub mod uprobe;
pub mod uring;

use std::path::PathBuf;

/// What the kernel refused, or lacks.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// A file of the kernel's could not be read.
    #[error("failed to read `{}`: {source}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The kernel publishes no type information.
    #[error("this kernel has no BTF (`{}` is missing): a kernel built with CONFIG_DEBUG_INFO_BTF=y is needed", path.display())]
    NoBtf {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// BTF does not have what is needed.
    #[error("failed to find {what} in the kernel's BTF: {reason}")]
    Btf {
        /// A type or member.
        what: String,
        /// Why not.
        reason: &'static str,
    },
    /// Capabilities are missing.
    #[error("missing {}: run as root, or grant them with `setcap {}+ep PROFILER` (a container: `capabilities.add`)", missing.join(", "), missing.join(",").to_lowercase())]
    Capabilities {
        /// Their names, as CAP_BPF.
        missing: Vec<String>,
    },
    /// Maps do not fit into the limit of locked memory.
    #[error(
        "this kernel counts BPF maps against the limit of locked memory, which is {kib} KiB here: run as root, grant \
         CAP_SYS_RESOURCE, or raise the limit (`ulimit -l unlimited`; systemd: LimitMEMLOCK=infinity)"
    )]
    LockedMemory {
        /// The limit.
        kib: u64,
    },
    /// The kernel is locked down.
    #[error(
        "the kernel is locked down (confidentiality), so BPF programs cannot read its memory: boot it with \
         lockdown=integrity or lockdown=none"
    )]
    LockedDown,
    /// aya cannot read the kernel's types.
    #[error("failed to read the kernel's BTF: {0}")]
    Types(#[from] aya::BtfError),
    /// The BPF object could not be loaded.
    #[error("failed to load the BPF programs: {0}")]
    Load(#[from] aya::EbpfError),
    /// A program could not be loaded or attached.
    #[error("failed to attach {program}: {source}")]
    Program {
        /// Which program.
        program: &'static str,
        /// Why.
        source: aya::programs::ProgramError,
    },
    /// The process that holds the uprobes has ended.
    #[error(
        "the process that held the probes was ended by somebody: nothing is measured any more, start the profiler again"
    )]
    HolderEnded,
    /// A map is missing from the object or could not be used.
    #[error("failed to use map {map}: {source}")]
    Map {
        /// Which map.
        map: &'static str,
        /// Why.
        source: aya::maps::MapError,
    },
    /// The BPF object does not have what this program expects of it.
    #[error("the BPF object has no {0}: it was built from other sources than this program")]
    Missing(&'static str),
    /// A system call failed.
    #[error("failed to {what}: {source}")]
    System {
        /// What was tried.
        what: String,
        /// Why it failed.
        source: std::io::Error,
    },
}

/// Fails where this process, or any on this kernel, may not load programs and make their maps.
///
/// # Errors
/// A capability is missing, the kernel is locked down, or the limit of locked memory is too low.
pub fn require_permission() -> Result<(), KernelError> {
    capability::Effective::current()?.require()?;
    lockdown::require_open()?;
    locked_memory::require_room()
}
