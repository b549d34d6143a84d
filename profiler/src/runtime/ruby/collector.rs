//! MRI's collector: where it looks at the clock when it begins and ends, and what it counts beside that. gc.c.

use super::layout::Layout;
use crate::target::elf::Binary;
use crate::target::memory::{Batch, Memory};

/// What reads the clock; imported.
const CLOCK: &str = "clock_gettime";
/// `mov edi, CLOCK_PROCESS_CPUTIME_ID`.
const LOAD: [u8; 5] = [0xbf, 2, 0, 0, 0];
/// The stack pointer's number.
const RSP: u8 = 4;

/// Addresses of the calls that read the process's CPU clock to where the caller says, which the collector does at begin and end
/// (`current_process_time`). Those that read it to a variable of their own are GC::Profiler's.
///
/// # Errors
/// Why there is none, for people.
pub fn clock_calls(binary: &Binary<'_>) -> Result<Vec<u64>, String> {
    let calls = binary.relative_calls(&binary.entries_of_import(CLOCK));
    let is_collectors = |call: &u64| {
        let before = call.checked_sub(8).and_then(|start| binary.bytes(start..*call));
        before.and_then(|code| code.split_at_checked(3)).is_some_and(|(store, load)| load == LOAD && passes_on(store))
    };
    let found: Vec<u64> = calls.into_iter().filter(is_collectors).collect();
    match found.len() {
        1 | 2 => Ok(found),
        0 => Err("where the collector reads the clock was not found".to_owned()),
        many => Err(format!("{many} places read the process's clock: which of them is the collector's is not known")),
    }
}

/// Whether it is `mov rsi, R` of a register that is not the stack pointer.
fn passes_on(store: &[u8]) -> bool {
    let &[rex, 0x89, modrm] = store else { return false };
    let register = (modrm >> 3 & 7) | (rex & 4) << 1;
    (rex == 0x48 || rex == 0x4c) && modrm & 0xc7 == 0xc6 && register != RSP
}

/// Collections since the process began, as the collector counts them beside where it keeps when it began: at `low`, and at `high`
/// where it keeps that of two phases. `None` where only one of the two is known.
pub fn collections(layout: &Layout, memory: &dyn Memory, low: u64, high: u64) -> Option<u64> {
    if high != low.checked_add(layout.phases_apart)? {
        return None;
    }
    let mut batch = Batch::default();
    let count = batch.add(low.checked_sub(layout.collections_before)?, 8);
    batch.read(memory).ok()?;
    batch.word(count, 0)
}
