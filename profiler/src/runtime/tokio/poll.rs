//! Where polls begin and end, for the stack of polled tasks that each thread then keeps.

use std::collections::HashSet;

use iced_x86::{FlowControl, Instruction, Mnemonic, OpKind, Register};

use super::vtable::{Layout, Vtable};
use crate::event::TypeId;
use crate::runtime::PollCode;
use crate::target::elf::{Binary, Function};
use crate::target::site::code::{self, Body};
use crate::target::site::{self, Site};

/// Instructions between the load of the vtable and the call of its first function.
const BEFORE: usize = 8;
/// Instructions of a function that does nothing but pass a task on to its poll.
const PASSING: usize = 6;
/// Functions that pass a task on, one to the next.
const MAX_PASSED: usize = 2;
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

/// The code of each type's poll: the first function of its vtable, and where that only passes the task on, the one that
/// it passes it to.
pub(super) fn code(binary: &Binary<'_>, vtables: &[Vtable]) -> Vec<PollCode> {
    let mut found: Vec<PollCode> = Vec::new();
    for (index, vtable) in vtables.iter().enumerate() {
        let mut entry = vtable.poll(binary);
        for _ in 0..=MAX_PASSED {
            let Some(function) = entry.and_then(|entry| binary.function_at(entry)) else { break };
            found.push(PollCode { code: function.start..function.end, kind: TypeId(index as u32) });
            entry = passed_to(binary, function);
        }
    }
    // Of types that share a function, the first is kept.
    found.sort_by_key(|poll| (poll.code.start, poll.kind));
    found.dedup_by_key(|poll| poll.code.start);
    found
}

/// The function that a short one ends in, by a jump.
fn passed_to(binary: &Binary<'_>, function: &Function) -> Option<u64> {
    let body = Body::decode(binary, function)?;
    let last = body.instructions.iter().take(PASSING).find(|i| i.flow_control() != FlowControl::Next)?;
    code::branch(last)
        .filter(|_| last.flow_control() == FlowControl::UnconditionalBranch)
        .filter(|to| !(function.start..function.end).contains(to))
}

/// Where each poll has ended: behind the calls through a task's vtable, which are not monomorphised.
pub(super) fn ends(binary: &Binary<'_>, layout: Layout) -> Vec<Site> {
    let mut found = Vec::new();
    // Functions that only pass a task on to its poll, in whose callers the poll then ends.
    let mut passing = HashSet::new();
    let mut bodies = Recent::default();
    for (base, code) in binary.code() {
        for (at, pair) in code.windows(2).enumerate() {
            // `call [r]` and `jmp [r]`, but for rsp and rbp, which are encoded otherwise.
            if pair[0] != 0xff || !matches!(pair[1], 0x10..=0x13 | 0x16 | 0x17 | 0x20..=0x23 | 0x26 | 0x27) {
                continue;
            }
            let address = base + at as u64;
            let Some((function, body)) = bodies.at(binary, address) else { continue };
            // The prefix of a high register comes first.
            let Some(call) = body.index_of(address).or_else(|| body.index_of(address - 1)) else { continue };
            if !is_poll(body, call, layout) {
                continue;
            }
            match body.instructions[call].flow_control() {
                FlowControl::IndirectCall => found.extend(behind(body, call)),
                FlowControl::IndirectBranch if call < PASSING => {
                    passing.insert(function);
                }
                _ => {}
            }
        }
    }
    if !passing.is_empty() {
        found.extend(behind_callers(binary, &passing));
        found.extend(behind_kept(binary, &passing));
    }
    found.sort_unstable_by_key(|site| site.address);
    found.dedup();
    found
}

/// The sites behind the calls of some functions: `call f`, or `call [rip + slot]` of a slot that holds its address.
fn behind_callers(binary: &Binary<'_>, functions: &HashSet<u64>) -> Vec<Site> {
    let mut found = Vec::new();
    let mut bodies = Recent::default();
    for (base, code) in binary.code() {
        for (at, bytes) in code.windows(6).enumerate() {
            let (length, distance) = match *bytes {
                [0xe8, a, b, c, d, _] => (5, i32::from_le_bytes([a, b, c, d])),
                [0xff, 0x15, a, b, c, d] => (6, i32::from_le_bytes([a, b, c, d])),
                _ => continue,
            };
            let address = base + at as u64;
            let to = (address + length).wrapping_add_signed(distance.into());
            let to = if length == 5 { Some(to) } else { binary.word(to) };
            if !to.is_some_and(|to| functions.contains(&to)) {
                continue;
            }
            let Some((_, body)) = bodies.at(binary, address) else { continue };
            found.extend(body.index_of(address).and_then(|call| behind(body, call)));
        }
    }
    found
}

/// The sites behind `call r`, where a function keeps such a one's address in a register: `mov r, [rip + slot]`.
fn behind_kept(binary: &Binary<'_>, functions: &HashSet<u64>) -> Vec<Site> {
    let mut found = Vec::new();
    let mut bodies = Recent::default();
    for (base, code) in binary.code() {
        for (at, bytes) in code.windows(7).enumerate() {
            // A load of a 64-bit register from a place relative to the instruction.
            let [0x48 | 0x4c, 0x8b, registers, a, b, c, d] = *bytes else { continue };
            if registers & 0b1100_0111 != 0b101 {
                continue;
            }
            let address = base + at as u64;
            let slot = (address + 7).wrapping_add_signed(i32::from_le_bytes([a, b, c, d]).into());
            if !binary.word(slot).is_some_and(|to| functions.contains(&to)) {
                continue;
            }
            let Some((_, body)) = bodies.at(binary, address) else { continue };
            let Some(load) = body.index_of(address) else { continue };
            let register = body.instructions[load].op0_register();
            let is = |i: &Instruction| i.op0_kind() == OpKind::Register && i.op0_register() == register;
            // From the load to the next that puts something else there.
            let behind_load = &body.instructions[load + 1..];
            let sets = |i: &Instruction| is(i) && matches!(i.mnemonic(), Mnemonic::Mov | Mnemonic::Lea | Mnemonic::Pop);
            let kept = behind_load.iter().position(sets).unwrap_or(behind_load.len());
            let calls = behind_load[..kept].iter().enumerate();
            let calls = calls.filter(|(_, i)| i.flow_control() == FlowControl::IndirectCall && is(i));
            found.extend(calls.filter_map(|(call, _)| behind(body, load + 1 + call)));
        }
    }
    found
}

/// The function that was decoded last: scans ask for the same one many times.
#[derive(Default)]
struct Recent(Option<(u64, Body)>);

impl Recent {
    /// The start and the code of the function at `address`.
    fn at(&mut self, binary: &Binary<'_>, address: u64) -> Option<(u64, &Body)> {
        let function = binary.function_at(address)?;
        if self.0.as_ref().is_none_or(|(start, _)| *start != function.start) {
            self.0 = Some((function.start, Body::decode(binary, function)?));
        }
        self.0.as_ref().map(|(start, body)| (*start, body))
    }
}

/// `mov rA, [rB + vtable]; …; call [rA]` or `jmp [rA]`, with rB, the task, in rdi too.
fn is_poll(body: &Body, call: usize, layout: Layout) -> bool {
    let code = &body.instructions;
    let instruction = &code[call];
    let table = instruction.memory_base();
    let plain = instruction.op0_kind() == OpKind::Memory
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
