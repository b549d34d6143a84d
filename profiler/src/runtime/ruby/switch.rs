//! Where MRI goes from one fiber to another: the calls of `coroutine_transfer` in cont.c.

use crate::target::elf::Binary;

/// What switches; exported, since it is written in assembly.
const SWITCH: &str = "coroutine_transfer";
/// `test rax, rax`: cont.c looks whether the switch came back with nothing. Threads that are switched (thread_pthread_mn.c,
/// 3.3 and later) do not.
const TESTED: [u8; 3] = [0x48, 0x85, 0xc0];
/// More calls are no build's.
const MOST: usize = 8;

/// Addresses of the calls that switch fibers.
///
/// # Errors
/// Why there is none, for people.
pub fn calls(binary: &Binary<'_>) -> Result<Vec<u64>, String> {
    let entry = binary.exported(SWITCH).ok_or_else(|| format!("it does not export `{SWITCH}`"))?;
    let mut targets = binary.entries_of_import(SWITCH);
    targets.push(entry);
    let is_tested = |call: &u64| binary.bytes_from(call + 5).is_some_and(|code| code.starts_with(&TESTED));
    let found: Vec<u64> = binary.relative_calls(&targets).into_iter().filter(is_tested).collect();
    match found.len() {
        0 => Err(format!("no call of `{SWITCH}` was found whose result is looked at")),
        1..=MOST => Ok(found),
        many => Err(format!("{many} calls of `{SWITCH}` were found: which of them switch fibers is not known")),
    }
}
