//! Whether the kernel is locked down, so that BPF programs may not read its memory. Its own error for that names a helper
//! function's number.

use std::fs;

use super::KernelError;

/// How much is locked, in the kernel's words; `None` where it does not say.
pub fn state() -> Option<String> {
    chosen(&fs::read_to_string("/sys/kernel/security/lockdown").ok()?)
}

/// Fails where nothing can be measured for it.
///
/// # Errors
/// It is.
pub fn require_open() -> Result<(), KernelError> {
    // "integrity" forbids to write kernel memory, which no program does.
    if state().as_deref() == Some("confidentiality") { Err(KernelError::LockedDown) } else { Ok(()) }
}

/// The one in brackets: `none [integrity] confidentiality`.
fn chosen(states: &str) -> Option<String> {
    Some(states.split_once('[')?.1.split_once(']')?.0.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_in_brackets_is_chosen() {
        assert_eq!(chosen("none [integrity] confidentiality\n").as_deref(), Some("integrity"));
        assert_eq!(chosen("[none] integrity confidentiality\n").as_deref(), Some("none"));
        assert_eq!(chosen(""), None);
    }
}
