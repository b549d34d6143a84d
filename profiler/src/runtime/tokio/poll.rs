//! Where polls begin and end, for the stack of polled tasks that each thread then keeps.

use iced_x86::{FlowControl, Instruction, Mnemonic, OpKind, Register};

use super::vtable::{Layout, Vtable};
use crate::target::elf::Binary;
use crate::target::site::code::Body;
use crate::target::site::{self, Site};

/// Instructions between the load of the vtable and the call of its first function.
const BEFORE: usize = 8;
/// Instructions between the call and the end of the poll.
const BEHIND: usize = 30;

/// Where each poll begins: the first function of every vtable.
pub(super) fn starts(binary: &Binary<'_>, vtables: &[Vtable]) -> Vec<Site> {
    let mut polls: Vec<u64> = vtables.iter().filter_map(|vtable| vtable.poll(binary)).collect();
    polls.sort_unstable();
    polls.dedup();
    polls
        .into_iter()
        .filter_map(|poll| binary.function_at(poll))
        .filter_map(|function| site::from_entry(binary, function, Register::RDI))
        .collect()
}

/// Where each poll has ended: behind the calls through a task's vtable, which are not monomorphised.
pub(super) fn ends(binary: &Binary<'_>, layout: Layout) -> Vec<Site> {
    let mut found = Vec::new();
    let mut bodies: Vec<(u64, Body)> = Vec::new();
    for (base, code) in binary.code() {
        for (at, pair) in code.windows(2).enumerate() {
            // `call [r]`, but for rsp and rbp, which are encoded otherwise.
            if pair[0] != 0xff || !matches!(pair[1], 0x10..=0x13 | 0x16 | 0x17) {
                continue;
            }
            let address = base + at as u64;
            let Some(function) = binary.function_at(address).copied() else { continue };
            if bodies.last().is_none_or(|(start, _)| *start != function.start) {
                let Some(body) = Body::decode(binary, &function) else { continue };
                bodies.clear();
                bodies.push((function.start, body));
            }
            let Some((_, body)) = bodies.last() else { continue };
            // The prefix of a high register comes first.
            let call = body.index_of(address).or_else(|| body.index_of(address - 1));
            if let Some(call) = call.filter(|&call| is_poll(body, call, layout)) {
                found.extend(behind(body, call));
            }
        }
    }
    found.sort_unstable_by_key(|site| site.address);
    found.dedup();
    found
}

/// `mov rA, [rB + vtable]; …; call [rA]`, with rB, the task, in rdi too.
fn is_poll(body: &Body, call: usize, layout: Layout) -> bool {
    let code = &body.instructions;
    let instruction = &code[call];
    let table = instruction.memory_base();
    let plain = instruction.flow_control() == FlowControl::IndirectCall
        && instruction.op0_kind() == OpKind::Memory
        && instruction.memory_displacement64() == 0
        && instruction.memory_index() == Register::None;
    if !plain {
        return false;
    }
    let before = &code[call.saturating_sub(BEFORE)..call];
    let loads = |i: &&Instruction| i.op0_kind() == OpKind::Register && i.op0_register() == table;
    let Some(load) = before.iter().rev().find(loads) else { return false };
    let task = load.memory_base();
    let from_task = load.mnemonic() == Mnemonic::Mov
        && load.op1_kind() == OpKind::Memory
        && load.memory_displacement64() == u64::from(layout.vtable_in_header)
        && load.memory_index() == Register::None
        && task.is_gpr64()
        && !matches!(task, Register::RSP);
    let passed = task == Register::RDI
        || before.iter().any(|i| {
            i.mnemonic() == Mnemonic::Mov
                && i.op1_kind() == OpKind::Register
                && ((i.op0_register() == Register::RDI && i.op1_register() == task)
                    || (i.op0_register() == task && i.op1_register() == Register::RDI))
        });
    from_task && passed
}

/// The first emulated instruction behind a call that runs only when it has returned; else the next one at all.
fn behind(body: &Body, call: usize) -> Option<Site> {
    let code = &body.instructions;
    let from = code[call].ip();
    let argument = site::argument(Register::RDI)?;
    let next = code.get(call + 1)?;
    if body.is_joined(from, next.ip()) {
        return None;
    }
    for instruction in code[call + 1..].iter().take(BEHIND) {
        if site::is_emulated(instruction) && !body.is_joined(from, instruction.ip()) {
            return Some(Site { address: instruction.ip(), argument, displacement: 0, emulated: true });
        }
        if instruction.flow_control() != FlowControl::Next {
            break;
        }
    }
    Some(Site { address: next.ip(), argument, displacement: 0, emulated: false })
}
