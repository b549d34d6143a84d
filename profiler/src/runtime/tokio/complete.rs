//! Where a task becomes complete: `State::transition_to_complete`, inlined or not.

use iced_x86::{FlowControl, Mnemonic, Register};

use crate::target::elf::{Binary, Function};
use crate::target::site::code::{Body, immediate};
use crate::target::site::{self, Site};

/// RUNNING | COMPLETE: what the transition flips in the state word (`runtime/task/state.rs`, since 1.9).
const FLIPPED: u64 = 3;

/// The sites that every task passes exactly once when it ends, whichever way it does.
pub(super) fn sites(binary: &Binary<'_>) -> Vec<Site> {
    let mut found: Vec<Site> = Vec::new();
    let mut seen = None;
    for (address, bytes) in binary.code() {
        for at in candidates(bytes) {
            let Some(function) = binary.function_at(address + at as u64).copied() else { continue };
            if seen.replace(function) == Some(function) {
                continue;
            }
            let Some(body) = Body::decode(binary, &function) else { continue };
            found.extend(in_body(&body, &function));
        }
    }
    found.sort_unstable_by_key(|site| site.address);
    found.dedup();
    found
}

/// Offsets of `xor r64, 3` with a `lock cmpxchg` close behind it.
fn candidates(code: &[u8]) -> impl Iterator<Item = usize> + '_ {
    code.windows(3).enumerate().filter_map(|(at, window)| {
        let flips = matches!(window[0], 0x83) && window[1] & 0xf8 == 0xf0 && u64::from(window[2]) == FLIPPED;
        let behind = code.get(at + 3..code.len().min(at + 16))?;
        (flips && behind.windows(2).any(|pair| pair == [0x0f, 0xb1])).then_some(at)
    })
}

/// The sites of all transitions in one function.
fn in_body(body: &Body, function: &Function) -> Vec<Site> {
    let transitions = transitions(body);
    if let &[transition] = transitions.as_slice()
        && let Some(site) = at_entry(body, function, transition)
    {
        return vec![site];
    }
    transitions.into_iter().filter_map(|transition| behind(body, transition)).collect()
}

/// A transition in a decoded function.
#[derive(Clone, Copy)]
struct Transition {
    /// Index of the `lock cmpxchg`.
    exchange: usize,
    /// The register that points to the state, which is the first word of the task.
    task: Register,
}

/// `xor r, 3; lock cmpxchg [task], r; jne; test, 1`.
fn transitions(body: &Body) -> Vec<Transition> {
    let code = &body.instructions;
    let mut found = Vec::new();
    for (index, exchange) in code.iter().enumerate() {
        let whole = exchange.memory_displacement64() == 0 && exchange.memory_index() == Register::None;
        if exchange.mnemonic() != Mnemonic::Cmpxchg || !exchange.has_lock_prefix() || !whole {
            continue;
        }
        let flipped = code[index.saturating_sub(3)..index].iter().any(|i| {
            i.mnemonic() == Mnemonic::Xor
                && i.op0_register() == exchange.op1_register()
                && immediate(i) == Some(FLIPPED)
        });
        // The transition asserts that the task was running.
        let asserted = code[index + 1..].iter().take(6).any(|i| {
            matches!(i.mnemonic(), Mnemonic::Test | Mnemonic::Bt)
                && immediate(i) == Some(u64::from(i.mnemonic() == Mnemonic::Test))
        });
        if flipped && asserted && exchange.memory_base().is_gpr64() {
            found.push(Transition { exchange: index, task: exchange.memory_base() });
        }
    }
    found
}

/// A site between the entry and the transition, where nothing but the transition's own loop branches before it: then
/// each call is one transition, of the task in the first argument.
fn at_entry(body: &Body, function: &Function, transition: Transition) -> Option<Site> {
    let first = body.index_of(function.start)?;
    let straight = body
        .instructions
        .get(first..transition.exchange)?
        .iter()
        .all(|instruction| matches!(instruction.flow_control(), FlowControl::Next));
    if !straight || !reaches(body, first, transition) {
        return None;
    }
    let fallback =
        Site { address: function.start, argument: site::argument(Register::RDI)?, displacement: 0, emulated: false };
    let before = body.instructions[transition.exchange].ip();
    let site = site::in_body(body, function.start, Register::RDI).filter(|site| site.address < before);
    Some(site.or_else(|| behind(body, transition)).unwrap_or(fallback))
}

/// Whether the register of the transition holds the function's first argument.
fn reaches(body: &Body, first: usize, transition: Transition) -> bool {
    let mut values = site::values::Values::new();
    let argument = values.of(Register::RDI);
    body.instructions[first..transition.exchange].iter().for_each(|instruction| values.step(instruction));
    values.of(transition.task) == argument
}

/// The first emulated instruction behind the loop of the transition: it runs once, after the exchange succeeded.
/// The task still holds a reference of its own there.
fn behind(body: &Body, transition: Transition) -> Option<Site> {
    let code = &body.instructions;
    let mut values = site::values::Values::new();
    let task = values.of(transition.task)?;
    // The retry is the first conditional branch behind the exchange.
    let retry = (transition.exchange + 1..code.len())
        .take(3)
        .find(|&index| code[index].flow_control() == FlowControl::ConditionalBranch)?;
    if site::code::branch(&code[retry]).is_none_or(|target| target > code[transition.exchange].ip()) {
        return None;
    }
    for instruction in code[transition.exchange..].iter().take(24) {
        if instruction.ip() > code[retry].ip() {
            if site::is_emulated(instruction) {
                let joined = body.is_joined(code[retry].ip(), instruction.ip());
                return if joined { None } else { site::at(&values, task, instruction.ip()) };
            }
            if instruction.flow_control() != FlowControl::Next {
                return None;
            }
        }
        values.step(instruction);
    }
    None
}

#[cfg(test)]
mod tests {
    use profiler_common::map::Argument;

    use super::*;

    #[rustfmt::skip]
    const COMPLETE: &[u8] = &[
        0x53, // push rbx
        0x48, 0x89, 0xfb, // mov rbx,rdi
        0x48, 0x8b, 0x07, // mov rax,QWORD PTR [rdi]
        0x48, 0x89, 0xc1, // mov rcx,rax
        0x48, 0x83, 0xf1, 0x03, // xor rcx,0x3
        0xf0, 0x48, 0x0f, 0xb1, 0x0b, // lock cmpxchg QWORD PTR [rbx],rcx
        0x75, 0xf2, // jne 116
        0xa8, 0x01, // test al,0x1
        0x74, 0x01, // je 129
        0xc3, // ret
        0x0f, 0x0b, // ud2
    ];

    /// The transition is inlined into a function that does not always make it.
    #[rustfmt::skip]
    const COMPLETE_INLINED: &[u8] = &[
        0x53, // push rbx
        0x48, 0x89, 0xfb, // mov rbx,rdi
        0x85, 0xf6, // test esi,esi
        0x74, 0x16, // je 149
        0x48, 0x8b, 0x03, // mov rax,QWORD PTR [rbx]
        0x48, 0x89, 0xc1, // mov rcx,rax
        0x48, 0x83, 0xf1, 0x03, // xor rcx,0x3
        0xf0, 0x48, 0x0f, 0xb1, 0x0b, // lock cmpxchg QWORD PTR [rbx],rcx
        0x75, 0xf2, // jne 136
        0xa8, 0x01, // test al,0x1
        0x74, 0x01, // je 149
        0xc3, // ret
        0x0f, 0x0b, // ud2
    ];

    fn find(code: &[u8]) -> Vec<(u64, Argument)> {
        let function = Function { start: 0, end: code.len() as u64 };
        in_body(&Body::of(code, 0), &function).iter().map(|site| (site.address, site.argument)).collect()
    }

    /// Check that a function which is the transition is probed at its entry, before the result can be taken away.
    #[test]
    fn the_entry_is_taken() {
        assert_eq!(find(COMPLETE), [(0, Argument::Rdi)]);
    }

    /// Check that an inlined transition is probed behind its loop, which may run more than once.
    #[test]
    fn an_inlined_transition_is_found() {
        assert_eq!(find(COMPLETE_INLINED), [(0x1b, Argument::Rbx)]);
    }

    /// Check that other exclusive-ors are not transitions.
    #[test]
    fn other_exchanges_are_passed() {
        let mut code = COMPLETE.to_vec();
        // xor rcx, 2
        code[0xd] = 2;
        assert_eq!(find(&code), []);
        assert_eq!(candidates(&code).count(), 0);
        assert_eq!(candidates(COMPLETE).count(), 1);
    }
}
