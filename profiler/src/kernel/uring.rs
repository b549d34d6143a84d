//! The hooks that see accepts by io_uring, and what the kernel must have for them.

use std::os::fd::AsFd as _;

use aya::Btf as KernelTypes;
use aya::programs::BtfTracePoint;

use super::KernelError;
use super::attach::Links;
use super::btf::Btf;
use super::feature::Feature;
use super::load::Kernel;

/// Global of the object, and where BTF tells its value.
pub(super) const OFFSETS: &[(&str, &str)] = &[
    ("IO_KIOCB_CTX", "io_kiocb.ctx"),
    ("IO_KIOCB_OPCODE", "io_kiocb.opcode"),
    ("IO_KIOCB_FILE", "io_kiocb.file"),
    ("IO_KIOCB_FLAGS", "io_kiocb.flags"),
    ("IO_KIOCB_FD", "io_kiocb.cqe.fd"),
    ("IO_KIOCB_USER_DATA", "io_kiocb.cqe.user_data"),
    ("IO_ACCEPT_FILE_SLOT", "io_accept.file_slot"),
    ("IO_URING_CQE_RES", "io_uring_cqe.res"),
];

/// Tracepoints, which are the programs' names too, and how many arguments they must have.
const HOOKS: &[(&str, usize)] = &[("io_uring_submit_req", 1), ("io_uring_task_add", 2), ("io_uring_complete", 3)];

/// Whether the kernel has all that is needed.
pub(super) fn is_there(btf: &Btf) -> bool {
    HOOKS.iter().all(|(hook, arity)| btf.tracepoint_arity(hook) == Some(*arity))
        && OFFSETS.iter().all(|(_, path)| btf.offset(path).is_ok())
}

impl Kernel {
    /// By which way these accepts are seen, where they are.
    pub fn how_uring_accepts(&self) -> &'static str {
        if self.accepts_by_fentry {
            "by fexit of the function that accepts a connection"
        } else {
            "by BTF tracepoints of io_uring"
        }
    }

    /// Loads what sees the requests of all io_urings of the machine, to be attached when there is a reason for it.
    ///
    /// # Errors
    /// The kernel has the tracepoints not, or in another form, or refuses.
    pub fn load_uring_accepts(&mut self) -> Result<(), KernelError> {
        if self.accepts_by_fentry {
            return Ok(());
        }
        if !self.features.has(Feature::Uring) {
            let what = "see accepts by io_uring".to_owned();
            let source =
                std::io::Error::other("this kernel's tracepoints of io_uring have another form, or there are none");
            return Err(KernelError::System { what, source });
        }
        let types = KernelTypes::from_sys_fs()?;
        for (hook, _) in HOOKS {
            let program = self.tracepoint(hook)?;
            if program.fd().is_err() {
                program.load(hook, &types).map_err(|source| KernelError::Program { program: hook, source })?;
            }
        }
        Ok(())
    }

    /// Attaches it, unless these accepts are seen by the way of all others: to count them twice would be wrong.
    ///
    /// # Errors
    /// As above.
    pub fn attach_uring_accepts(&mut self) -> Result<Links, KernelError> {
        if self.accepts_by_fentry {
            return Ok(Links::default());
        }
        self.load_uring_accepts()?;
        let holder = self.holder()?;
        let mut held = Vec::with_capacity(HOOKS.len());
        for (hook, _) in HOOKS {
            let failed = |source| KernelError::Program { program: hook, source };
            let program = self.tracepoint(hook)?.fd().map_err(failed)?.as_fd();
            let system = |source| KernelError::System { what: format!("attach to tracepoint {hook}"), source };
            held.push(holder.tracing(program).map_err(system)?);
        }
        Ok(Links::of(held))
    }

    fn tracepoint(&mut self, name: &'static str) -> Result<&mut BtfTracePoint, KernelError> {
        let program = self.ebpf.program_mut(name).ok_or(KernelError::Missing(name))?;
        program.try_into().map_err(|source| KernelError::Program { program: name, source })
    }
}
