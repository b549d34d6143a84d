//! The hooks that see accepts by io_uring, and what the kernel must have for them.

use aya::Btf as KernelTypes;

use super::KernelError;
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
    /// Attaches to the requests of all io_urings of the machine.
    ///
    /// # Errors
    /// The kernel has them not, or in another form, or refuses.
    pub fn attach_uring_accepts(&mut self) -> Result<(), KernelError> {
        if !self.features.has(Feature::Uring) {
            let what = "see accepts by io_uring".to_owned();
            let source =
                std::io::Error::other("this kernel's tracepoints of io_uring have another form, or there are none");
            return Err(KernelError::System { what, source });
        }
        let types = KernelTypes::from_sys_fs()?;
        HOOKS.iter().try_for_each(|(hook, _)| self.attach_btf(&types, hook, hook))
    }
}
