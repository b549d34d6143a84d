//! Where MRI's threads wait for the interpreter's lock, and where they have it. thread_pthread.c.
//!
//! Since 3.2 the sources are found by the events that the same functions tell extensions of; before, by the quantum of the thread
//! that waits first. Every instruction is one that the kernel emulates, and reached only by who really waits.

use std::collections::BTreeSet;

use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register};
use profiler_common::lock::tells;
use profiler_common::map::Argument;

use crate::target::elf::{Binary, Function};
use crate::target::site::code::{Body, branch, call};
use crate::target::site::{argument, is_emulated};

/// What waits; exported.
const WAIT: &str = "rb_native_cond_wait";
/// What waits for some time; imported.
const TIMED: &str = "pthread_cond_timedwait";
/// What extensions ask for events by; exported since 3.2.
const ADD_HOOK: &str = "rb_internal_thread_add_event_hook";
/// Numbers of events (include/ruby/thread.h): a thread could run, a thread runs again.
const READY: u64 = 2;
const RESUMED: u64 = 4;
/// The quantum, nanoseconds.
const QUANTUM_NS: u64 = 100_000_000;
/// `cmp qword ptr [rip + ..], 0`, without its address.
const COMPARED: [u8; 3] = [0x48, 0x83, 0x3d];
/// Registers that a call leaves as they are.
const KEPT: [Argument; 6] = [Argument::Rbx, Argument::Rbp, Argument::R12, Argument::R13, Argument::R14, Argument::R15];
/// Instructions between a comparison and its jump, and of what is run for those that have asked for events.
const NEAR: usize = 5;
const MOST: usize = 14;

/// An instruction, and what it tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockSite {
    /// Virtual address.
    pub address: u64,
    /// Where the object of the thread is, where that is of use.
    pub thread: Argument,
    /// One of [`tells`].
    pub tells: i64,
}

/// The sites.
///
/// # Errors
/// Why there is none, for people.
pub fn sites(binary: &Binary<'_>) -> Result<Vec<LockSite>, String> {
    let mut targets = binary.entries_of_import(WAIT);
    targets.extend(binary.exported(WAIT));
    let waits = Calls::to(binary, &targets);
    let sites = match binary.exported(ADD_HOOK) {
        Some(add) => by_events(binary, add, &waits)?,
        None => by_quantum(binary, &waits)?,
    };
    let dear = |site: &&LockSite| !instruction_at(binary, site.address).is_some_and(|one| is_emulated(&one));
    match sites.iter().find(dear) {
        Some(site) => Err(format!("the kernel would have to step over the instruction at {:#x}", site.address)),
        None => Ok(sites),
    }
}

/// Calls of some functions, and the functions that they are in.
struct Calls(Vec<(u64, Function)>);

impl Calls {
    fn to(binary: &Binary<'_>, targets: &[u64]) -> Calls {
        Calls::at(binary, binary.relative_calls(targets))
    }

    fn at(binary: &Binary<'_>, addresses: Vec<u64>) -> Calls {
        let within = |address: u64| Some((address, *binary.function_at(address)?));
        Calls(addresses.into_iter().filter_map(within).collect())
    }

    fn within(&self, function: &Function) -> Vec<u64> {
        self.0.iter().filter(|(_, of)| of.start == function.start).map(|&(address, _)| address).collect()
    }

    fn functions(&self) -> Vec<&Function> {
        let mut seen = BTreeSet::new();
        self.0.iter().map(|(_, function)| function).filter(|function| seen.insert(function.start)).collect()
    }
}

/// By the events: a thread waits where it tells that it runs again, and is made ready where that is told of it.
fn by_events(binary: &Binary<'_>, add: u64, waits: &Calls) -> Result<Vec<LockSite>, String> {
    let hooks = hooks(binary, add).ok_or("where it keeps who asks for threads' events was not found")?;
    let events = events(binary, hooks);
    let turns: Vec<(&Event, u64)> = events
        .iter()
        .filter(|event| event.number == RESUMED)
        .flat_map(|event| waits.within(&event.function).into_iter().map(move |wait| (event, wait)))
        .collect();
    let [(turn, wait)] = turns[..] else {
        return Err(format!("{} places wait before a thread runs again: which of them do is not known", turns.len()));
    };
    let made_ready: Vec<&Event> = events.iter().filter(|event| event.number == READY).collect();
    let [ready] = made_ready[..] else {
        return Err(format!("{} places make a thread ready: which of them do is not known", made_ready.len()));
    };
    // The waiter's is looked for after a call, and the other's is the function's argument.
    if !KEPT.contains(&turn.thread) || ready.thread != Argument::Rsi {
        return Err("where a thread's object is when it waits, or is made ready, is not known".to_owned());
    }
    let body = Body::decode(binary, &turn.function).ok_or("a function is cut off")?;
    let mut sites = vec![
        LockSite { address: wait, thread: turn.thread, tells: tells::BEGINS_UNREADY },
        LockSite { address: end_after(&body, wait)?, thread: Argument::Rdi, tells: tells::ENDS },
    ];
    for (address, function) in Calls::at(binary, binary.relative_branches(&[ready.function.start])).0 {
        let body = Body::decode(binary, &function).ok_or("a function is cut off")?;
        if is_by_another(&body, address)? {
            sites.push(LockSite { address, thread: Argument::Rsi, tells: tells::READY });
        }
    }
    // Without any each endless sleep would be a wait for the lock.
    if sites.iter().all(|site| site.tells != tells::READY) {
        return Err("where one thread makes another ready was not found".to_owned());
    }
    Ok(sites)
}

/// Where a thread's event is told.
struct Event {
    number: u64,
    function: Function,
    /// Where the thread's object is.
    thread: Argument,
}

/// Where the list of those is that have asked for events: what the exported function puts a new one in front of.
fn hooks(binary: &Binary<'_>, add: u64) -> Option<u64> {
    let body = Body::decode(binary, binary.function_at(add)?)?;
    let is_exchange = |one: &&Instruction| one.mnemonic() == Mnemonic::Xchg && one.is_ip_rel_memory_operand();
    let mut found: Vec<u64> =
        body.instructions.iter().filter(is_exchange).map(Instruction::ip_rel_memory_address).collect();
    found.dedup();
    if let [hooks] = found[..] { Some(hooks) } else { None }
}

/// Whatever tells an event, where somebody has asked for any.
fn events(binary: &Binary<'_>, hooks: u64) -> Vec<Event> {
    let mut found = Vec::new();
    for (address, code) in binary.code() {
        for (at, window) in code.windows(8).enumerate() {
            let [a, b, c, d, e, f, g, 0] = *window else { continue };
            let next = address + at as u64 + window.len() as u64;
            let compared = next.wrapping_add_signed(i64::from(i32::from_le_bytes([d, e, f, g])));
            if [a, b, c] == COMPARED && compared == hooks {
                found.extend(event(binary, next - window.len() as u64));
            }
        }
    }
    found
}

/// The event that is told after the comparison at `address`.
fn event(binary: &Binary<'_>, address: u64) -> Option<Event> {
    let function = binary.function_at(address)?;
    let body = Body::decode(binary, function)?;
    let compared = body.index_of(address)?;
    let near = &body.instructions[compared + 1..];
    let jump = near.iter().take(NEAR).find(|one| matches!(one.mnemonic(), Mnemonic::Je | Mnemonic::Jne))?;
    let told = if jump.mnemonic() == Mnemonic::Jne { branch(jump)? } else { jump.next_ip() };
    let (mut number, mut thread) = (None, Register::RSI);
    for one in body.instructions[body.index_of(told)?..].iter().take(MOST) {
        if call(one).is_some() || branch(one).is_some() {
            break;
        }
        match (one.code(), one.op0_register(), one.op1_kind()) {
            (Code::Mov_r32_imm32, Register::EDI, _) => number = Some(one.immediate(1)),
            (Code::Mov_r64_rm64 | Code::Mov_rm64_r64, Register::RSI, OpKind::Register) => thread = one.op1_register(),
            _ => {}
        }
    }
    Some(Event { number: number?, function: *function, thread: argument(thread)? })
}

/// Whether the call says that another thread makes this one ready, which its third argument tells.
fn is_by_another(body: &Body, address: u64) -> Result<bool, String> {
    let unknown = || format!("who makes a thread ready at {address:#x} is not known");
    let at = body.index_of(address).ok_or_else(unknown)?;
    for one in body.instructions[..at].iter().rev() {
        if body.is_joined(one.ip(), address) || call(one).is_some() || branch(one).is_some() {
            return Err(unknown());
        }
        if matches!(one.mnemonic(), Mnemonic::Cmp | Mnemonic::Test) {
            continue;
        }
        if one.op_count() > 0 && one.op0_register().full_register() == Register::RDX {
            return match one.code() {
                Code::Mov_r32_imm32 => Ok(one.immediate(1) != 0),
                Code::Xor_r32_rm32 | Code::Xor_rm32_r32 if one.op1_register() == Register::EDX => Ok(false),
                _ => Err(unknown()),
            };
        }
    }
    Err(unknown())
}

/// By the quantum: who waits first looks again when it is over.
fn by_quantum(binary: &Binary<'_>, waits: &Calls) -> Result<Vec<LockSite>, String> {
    let entries = binary.entries_of_import(TIMED);
    let mut timed: Vec<u64> =
        Calls::to(binary, &entries).functions().into_iter().map(|function| function.start).collect();
    timed.extend(entries);
    let timed = Calls::to(binary, &timed);
    let has_quantum = |function: &&Function| {
        let body = Body::decode(binary, function);
        !timed.within(function).is_empty() && body.is_some_and(|body| body.instructions.iter().any(is_quantum))
    };
    let found: Vec<&Function> = waits.functions().into_iter().filter(has_quantum).collect();
    let [acquires] = found[..] else {
        return Err(format!(
            "{} functions wait for a quantum: which of them does for the lock is not known",
            found.len()
        ));
    };
    let begins = |address| LockSite { address, thread: Argument::Rdi, tells: tells::BEGINS };
    let ends = |address| LockSite { address, thread: Argument::Rdi, tells: tells::ENDS };
    let body = Body::decode(binary, acquires).ok_or("a function is cut off")?;
    let mut sites: Vec<LockSite> = Vec::new();
    for wait in waits.within(acquires) {
        let end = end_after(&body, wait)?;
        sites.extend([begins(wait), ends(end)]);
        // Who waits for a quantum looks at the same word.
        let owner = looked_at(&body, end).ok_or("what a thread looks at after it has waited is not known")?;
        let others = body
            .instructions
            .iter()
            .map(Instruction::ip)
            .filter(|&ip| ip != end && looked_at(&body, ip) == Some(owner));
        sites.extend(others.map(ends));
    }
    let limited = timed.within(acquires);
    // A wait that is not seen to end would be one until the next.
    if sites.iter().filter(|site| site.tells == tells::ENDS).count() < waits.within(acquires).len() + limited.len() {
        return Err("where a wait for the quantum is over is not known".to_owned());
    }
    sites.extend(limited.into_iter().map(begins));
    // Whoever lets another thread go first waits until it has.
    let callers = Calls::at(binary, binary.relative_branches(&[acquires.start]));
    for yields in callers.functions() {
        let all = waits.within(yields);
        if all.len() < 2 || !timed.within(yields).is_empty() {
            continue;
        }
        let body = Body::decode(binary, yields).ok_or("a function is cut off")?;
        for wait in all {
            sites.extend([begins(wait), ends(end_after(&body, wait)?)]);
        }
    }
    sites.sort_by_key(|site| site.address);
    sites.dedup();
    Ok(sites)
}

/// Whether the instruction has the quantum in it.
fn is_quantum(one: &Instruction) -> bool {
    one.memory_displacement64() == QUANTUM_NS
        || (0..one.op_count()).any(|n| one.try_immediate(n).is_ok_and(|value| value == QUANTUM_NS))
}

/// The conditional jump behind the wait at `address`: it is where the thread looks whether its wait is over.
fn end_after(body: &Body, address: u64) -> Result<u64, String> {
    let unknown = || format!("where the wait at {address:#x} is over is not known");
    let at = body.index_of(address).ok_or_else(unknown)?;
    for one in &body.instructions[at + 1..] {
        match one.mnemonic() {
            Mnemonic::Je | Mnemonic::Jne => return Ok(one.ip()),
            Mnemonic::Mov | Mnemonic::Cmp | Mnemonic::Test => {}
            _ => break,
        }
    }
    Err(unknown())
}

/// The word that is compared with nothing before the jump at `address`: its base register and displacement.
fn looked_at(body: &Body, address: u64) -> Option<(Register, u64)> {
    let at = body.index_of(address).filter(|&at| at >= 2)?;
    let [loaded, tested, jump] = body.instructions[at - 2..=at] else { return None };
    let register = loaded.op0_register();
    let is = matches!(jump.mnemonic(), Mnemonic::Je | Mnemonic::Jne)
        && tested.mnemonic() == Mnemonic::Test
        && (tested.op0_register(), tested.op1_register()) == (register, register)
        && loaded.code() == Code::Mov_r64_rm64
        && loaded.op1_kind() == OpKind::Memory
        && loaded.memory_index() == Register::None;
    is.then(|| (loaded.memory_base(), loaded.memory_displacement64()))
}

fn instruction_at(binary: &Binary<'_>, address: u64) -> Option<Instruction> {
    let bytes = binary.bytes_from(address)?;
    Body::of(&bytes[..bytes.len().min(16)], address).instructions.first().copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: u64 = 0x1000;

    fn body(bytes: &[u8]) -> Body {
        Body::of(bytes, AT)
    }

    /// Check that the jump behind a wait is found over what only looks, and nothing is made of other code.
    #[test]
    fn a_wait_ends_at_the_next_jump() {
        // call; mov rax, [rbx]; test rax, rax; je
        let code = body(&[0xe8, 0, 0, 0, 0, 0x48, 0x8b, 0x03, 0x48, 0x85, 0xc0, 0x74, 0x10]);
        assert_eq!(end_after(&code, AT), Ok(AT + 11));
        assert_eq!(looked_at(&code, AT + 11), Some((Register::RBX, 0)));
        // call; cmp [rbx + 8], rax; jne
        let code = body(&[0xe8, 0, 0, 0, 0, 0x48, 0x39, 0x43, 0x08, 0x0f, 0x85, 0, 0, 0, 0]);
        assert_eq!(end_after(&code, AT), Ok(AT + 9));
        assert_eq!(looked_at(&code, AT + 9), None);
        // call; call; je
        assert!(end_after(&body(&[0xe8, 0, 0, 0, 0, 0xe8, 0, 0, 0, 0, 0x74, 0x10]), AT).is_err());
        // No instruction begins there.
        assert!(end_after(&code, AT + 1).is_err());
    }

    /// Check that it is told whether another thread makes one ready, and that it is not guessed.
    #[test]
    fn who_makes_a_thread_ready() {
        // mov edx, 1; mov rsi, rbx; call
        let by_another = body(&[0xba, 1, 0, 0, 0, 0x48, 0x89, 0xde, 0xe8, 0, 0, 0, 0]);
        assert_eq!(is_by_another(&by_another, AT + 8), Ok(true));
        // xor edx, edx; call
        assert_eq!(is_by_another(&body(&[0x31, 0xd2, 0xe8, 0, 0, 0, 0]), AT + 2), Ok(false));
        // mov edx, ecx; call
        assert!(is_by_another(&body(&[0x89, 0xca, 0xe8, 0, 0, 0, 0]), AT + 2).is_err());
        // mov edx, 1; jmp +0; call: somebody may come from elsewhere.
        assert!(is_by_another(&body(&[0xba, 1, 0, 0, 0, 0xeb, 0, 0xe8, 0, 0, 0, 0]), AT + 7).is_err());
        // call
        assert!(is_by_another(&body(&[0xe8, 0, 0, 0, 0]), AT).is_err());
    }

    #[test]
    fn the_quantum_is_an_immediate_or_a_displacement() {
        // mov ebx, 100000000; lea rbx, [rax + 100000000]; mov ebx, 10000000
        let code = body(&[0xbb, 0, 0xe1, 0xf5, 0x05, 0x48, 0x8d, 0x98, 0, 0xe1, 0xf5, 0x05, 0xbb, 0x80, 0x96, 0x98, 0]);
        assert_eq!(code.instructions.iter().map(is_quantum).collect::<Vec<_>>(), [true, true, false]);
    }
}
