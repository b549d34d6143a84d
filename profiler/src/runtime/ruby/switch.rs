//! Where MRI goes from one fiber to another: the calls of `coroutine_transfer` in cont.c.

use crate::target::elf::Binary;

/// What switches; exported, since it is written in assembly.
const SWITCH: &str = "coroutine_transfer";
/// `call`, and `jmp *` through a word that is relative to it.
const CALL: u8 = 0xe8;
const JUMP: [u8; 2] = [0xff, 0x25];
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
    let mut targets = stubs(binary);
    targets.push(entry);
    let mut found = Vec::new();
    for (address, code) in binary.code() {
        for (at, window) in code.windows(8).enumerate() {
            let [CALL, a, b, c, d, rest @ ..] = window else { continue };
            if rest != TESTED {
                continue;
            }
            let call = address + at as u64;
            let target = relative(call + 5, [*a, *b, *c, *d]);
            if targets.contains(&target) {
                found.push(call);
            }
        }
    }
    match found.len() {
        0 => Err(format!("no call of `{SWITCH}` was found whose result is looked at")),
        1..=MOST => Ok(found),
        many => Err(format!("{many} calls of `{SWITCH}` were found: which of them switch fibers is not known")),
    }
}

/// The entries of the procedure linkage table through which it is called.
fn stubs(binary: &Binary<'_>) -> Vec<u64> {
    const ENDBR64: [u8; 4] = [0xf3, 0x0f, 0x1e, 0xfa];
    let slots = binary.import_slots(SWITCH);
    let mut found = Vec::new();
    if slots.is_empty() {
        return found;
    }
    for (address, code) in binary.code() {
        for (at, window) in code.windows(6).enumerate() {
            let [first, second, a, b, c, d] = *window else { continue };
            let jump = address + at as u64;
            if [first, second] == JUMP && slots.contains(&relative(jump + 6, [a, b, c, d])) {
                let marked = at >= 4 && code[at - 4..at] == ENDBR64;
                found.push(if marked { jump - 4 } else { jump });
            }
        }
    }
    found
}

fn relative(next: u64, displacement: [u8; 4]) -> u64 {
    next.wrapping_add_signed(i64::from(i32::from_le_bytes(displacement)))
}
