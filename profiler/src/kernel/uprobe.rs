//! Attaches uprobes: one link for many where the kernel has it, else a few perf events.

use std::ffi::CString;
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use super::attach::Links;
use super::load::Kernel;
use super::{KernelError, bpf, perf};

/// Detaching one perf-event uprobe takes 100 ms and more, during which the target's exit waits: no more than these.
pub const MAX_PERF_EVENTS: usize = 20;

/// One place to probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Site {
    /// Offset of the instruction in the file.
    pub offset: u64,
    /// What the program reads to tell the site.
    pub cookie: u64,
}

/// How uprobes are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mechanism {
    /// One link.
    Multi,
    /// A perf event per site.
    PerfEvents,
}

impl Kernel {
    /// How this kernel attaches `sites` uprobes.
    ///
    /// # Errors
    /// It has no multi links, and there are too many sites for perf events.
    pub fn uprobe_mechanism(&self, sites: usize) -> Result<Mechanism, String> {
        if self.features.uprobe_multi {
            Ok(Mechanism::Multi)
        } else if sites <= MAX_PERF_EVENTS {
            Ok(Mechanism::PerfEvents)
        } else {
            Err(format!(
                "{sites} probes are needed, and without uprobe_multi (kernel 6.10 and later) no more than {MAX_PERF_EVENTS} can be detached in time"
            ))
        }
    }

    /// How this kernel attaches a handful of uprobes.
    pub fn few_uprobes(&self) -> Mechanism {
        if self.features.uprobe_multi { Mechanism::Multi } else { Mechanism::PerfEvents }
    }

    /// Attaches `program` to all `sites` of `file`, for one process or (`None`) for all that map it.
    ///
    /// # Errors
    /// The kernel refuses; nothing of this call is left attached.
    pub fn attach_uprobes(
        &mut self,
        program: &'static str,
        mechanism: Mechanism,
        file: &Path,
        sites: &[Site],
        pid: Option<u32>,
    ) -> Result<Links, KernelError> {
        let system = |source| KernelError::System {
            what: format!("attach {program} to {} sites of `{}`", sites.len(), file.display()),
            source,
        };
        let path = CString::new(file.as_os_str().as_bytes()).map_err(|e| system(e.into()))?;
        let mut links = Links::default();
        match mechanism {
            Mechanism::Multi => {
                let (offsets, cookies): (Vec<u64>, Vec<u64>) = sites.iter().map(|s| (s.offset, s.cookie)).unzip();
                let program = self.multi_program(program)?;
                links.push(vec![bpf::link_uprobe_multi(program, &path, &offsets, &cookies, pid).map_err(system)?]);
            }
            Mechanism::PerfEvents => {
                let program = self.single_program(program)?;
                for site in sites {
                    let event = perf::uprobe(&path, site.offset, pid).map_err(system)?;
                    links.push(vec![bpf::link_perf_event(program, event.as_fd(), site.cookie).map_err(system)?, event]);
                }
            }
        }
        Ok(links)
    }
}
