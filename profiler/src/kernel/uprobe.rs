//! Attaches uprobes: one link for many where the kernel has it, else a few perf events.

use std::ffi::CString;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::KernelError;
use super::attach::Links;
use super::holder::Holder;
use super::load::Kernel;
use super::signal::{ACCEPT_WAIT, Attach, TASKS};

/// Detaching one perf-event uprobe takes 100 ms and more, during which the target's exit waits: no more than these.
pub const MAX_PERF_EVENTS: usize = 20;

/// One place to probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Site {
    /// Offset of the instruction in the file.
    pub offset: u64,
    /// What the program reads to tell the site.
    pub cookie: u64,
}

/// How uprobes are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
        let way = self.signals.way(TASKS)?;
        if way.attach == Attach::UprobeMulti {
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
        let multi = self.signals.get(ACCEPT_WAIT).permits(Attach::UprobeMulti);
        if multi { Mechanism::Multi } else { Mechanism::PerfEvents }
    }

    /// Loads programs that may be wanted when it is no longer permitted to. What cannot be loaded will say so when it is.
    pub fn load_uprobes(&mut self, programs: impl Iterator<Item = &'static str>) {
        for program in programs {
            let loaded = match self.few_uprobes() {
                Mechanism::Multi => self.multi_program(program),
                Mechanism::PerfEvents => self.single_program(program),
            };
            if let Err(e) = loaded {
                log::debug!("{e}");
            }
        }
    }

    /// Gets everything ready to attach `program` to all `sites` of `file`. Attaches nothing.
    ///
    /// # Errors
    /// The kernel refuses the program, or no descriptor is left.
    pub fn prepare_uprobes(
        &mut self,
        program: &'static str,
        mechanism: Mechanism,
        file: &Path,
        sites: Vec<Site>,
    ) -> Result<Prepared, KernelError> {
        let loaded = match mechanism {
            Mechanism::Multi => self.multi_program(program)?,
            Mechanism::PerfEvents => self.single_program(program)?,
        };
        let loaded = loaded.try_clone_to_owned().map_err(|source| KernelError::System {
            what: format!("duplicate the descriptor of program {program}"),
            source,
        })?;
        let holder = self.holder()?;
        Ok(Prepared { program, loaded, mechanism, file: file.to_owned(), sites, holder })
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
        self.prepare_uprobes(program, mechanism, file, sites.to_vec())?.attach(pid)
    }
}

/// Uprobes that are ready to be attached, again and again, by any thread.
pub struct Prepared {
    program: &'static str,
    loaded: OwnedFd,
    mechanism: Mechanism,
    file: PathBuf,
    sites: Vec<Site>,
    holder: Arc<Holder>,
}

impl Prepared {
    /// Attaches them, for one process or (`None`) for all that map the file.
    ///
    /// # Errors
    /// The kernel refuses; nothing of this call is left attached.
    pub fn attach(&self, pid: Option<u32>) -> Result<Links, KernelError> {
        let system = |source| KernelError::System {
            what: format!("attach {} to {} sites of `{}`", self.program, self.sites.len(), self.file.display()),
            source,
        };
        let path = CString::new(self.file.as_os_str().as_bytes()).map_err(|e| system(e.into()))?;
        let held = self.holder.attach(self.loaded.as_fd(), &path, self.mechanism, pid, &self.sites);
        Ok(Links::of(held.map_err(system)?))
    }
}
