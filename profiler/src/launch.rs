//! Starts a program and holds it at its first instruction, so that it can be attached to before it does anything.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child, Command, ExitStatus};

/// Why a program could not be started.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// It could not be run.
    #[error("failed to run `{}`: {source}", program.display())]
    Spawn {
        /// Which.
        program: OsString,
        /// Why.
        source: io::Error,
    },
    /// It could not be held.
    #[error("failed to hold process {pid} at its start: {reason}")]
    Hold {
        /// Its id.
        pid: u32,
        /// Why.
        reason: String,
    },
}

/// A program that is held at its first instruction. Dropped without [`Held::release`], it is ended: it has done nothing yet.
pub struct Held {
    child: Option<Child>,
}

/// Starts `command` and holds it right after it was loaded.
///
/// # Errors
/// There is no such program, or it may not be traced.
pub fn hold(command: &[OsString]) -> Result<Held, LaunchError> {
    let (program, arguments) = command
        .split_first()
        .ok_or_else(|| LaunchError::Spawn { program: OsString::new(), source: io::ErrorKind::InvalidInput.into() })?;
    let mut command = Command::new(program);
    command.args(arguments);
    // SAFETY: between fork and exec only this system call is made, which is async-signal-safe.
    unsafe {
        command.pre_exec(|| match libc::ptrace(libc::PTRACE_TRACEME) {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        });
    }
    let child = command.spawn().map_err(|source| LaunchError::Spawn { program: program.clone(), source })?;
    let pid = child.id();
    let held = Held { child: Some(child) };
    let mut status = 0;
    // SAFETY: waits for our own child; `status` is live.
    let waited = unsafe { libc::waitpid(pid as i32, &raw mut status, 0) };
    let hold_error = |reason| LaunchError::Hold { pid, reason };
    if waited < 0 {
        return Err(hold_error(io::Error::last_os_error().to_string()));
    }
    if !libc::WIFSTOPPED(status) {
        return Err(hold_error(format!("it ended at once ({})", ExitStatus::from_raw(status))));
    }
    Ok(held)
}

impl Held {
    /// Its process id.
    pub fn pid(&self) -> Option<u32> {
        Some(self.child.as_ref()?.id())
    }

    /// Lets it run.
    ///
    /// # Errors
    /// It has been killed meanwhile.
    pub fn release(mut self) -> Result<Child, LaunchError> {
        let child = self.child.take().ok_or_else(|| LaunchError::Hold { pid: 0, reason: "it is gone".to_owned() })?;
        // SAFETY: detaches from our own, stopped child; address and data are not used.
        if unsafe { libc::ptrace(libc::PTRACE_DETACH, child.id() as i32, 0, 0) } != 0 {
            return Err(LaunchError::Hold { pid: child.id(), reason: io::Error::last_os_error().to_string() });
        }
        Ok(child)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_held_program_has_its_image_and_has_done_nothing() {
        let directory = std::env::temp_dir().join(format!("profiler-launch-{}", std::process::id()));
        let file = directory.with_extension("made");
        let held = hold(&["touch".into(), file.clone().into()]).unwrap();
        let image = std::fs::read_link(format!("/proc/{}/exe", held.pid().unwrap())).unwrap();
        assert!(image.ends_with("touch") || image.ends_with("coreutils"), "{image:?}");
        assert!(!file.exists());
        assert!(held.release().unwrap().wait().unwrap().success());
        assert!(file.exists());
        std::fs::remove_file(file).unwrap();
    }

    #[test]
    fn a_program_that_is_not_released_never_runs() {
        let held = hold(&["sleep".into(), "1000".into()]).unwrap();
        let pid = held.pid().unwrap();
        drop(held);
        assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
    }

    #[test]
    fn a_missing_program_is_named() {
        let Err(error) = hold(&["/no/such/program".into()]) else { panic!("it does not exist") };
        assert!(error.to_string().contains("/no/such/program"));
    }
}
