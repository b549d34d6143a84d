//! Which registers hold the addresses of data at a place in code. Never other values.

use std::collections::HashSet;

use iced_x86::{FlowControl, Instruction, Mnemonic, OpKind};

use crate::target::elf::Binary;
use crate::target::site::code::{self, Body};

/// Registers that carry arguments (System V ABI), by their numbers: rdi, rsi, rdx, rcx, r8, r9.
const ARGUMENTS: [usize; 6] = [7, 6, 2, 1, 8, 9];
/// Registers that a call may overwrite, by their numbers.
const CLOBBERED: [usize; 9] = [0, 1, 2, 6, 7, 8, 9, 10, 11];
/// Instructions that are walked back to what set a register.
const MAX_BACK: usize = 400;

/// What one register holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Value {
    /// What this register held where the path began.
    Entry(usize),
    /// The address of data.
    Data(u64),
    /// Something else.
    Other,
}

/// What registers hold along one path.
#[derive(Clone, Debug)]
pub(super) struct Held([Value; 16]);

impl Held {
    /// The beginning of a path.
    pub(super) fn new() -> Held {
        Held(std::array::from_fn(Value::Entry))
    }

    /// Follows one instruction.
    pub(super) fn follow(&mut self, binary: &Binary<'_>, instruction: &Instruction) {
        if is_call(instruction) {
            CLOBBERED.iter().for_each(|&register| self.0[register] = Value::Other);
        } else if let Some((register, value)) = set(binary, instruction) {
            self.0[register] = match value {
                Value::Entry(copied) => self.0[copied],
                value => value,
            };
        }
    }

    /// What the registers that carry arguments hold.
    pub(super) fn arguments(&self) -> impl Iterator<Item = Value> + '_ {
        ARGUMENTS.iter().map(|&register| self.0[register])
    }
}

/// The addresses of data that a register may hold before an instruction, as far as they are set nearby.
pub(super) fn before(binary: &Binary<'_>, body: &Body, index: usize, register: usize) -> Vec<u64> {
    let code = &body.instructions;
    let mut found = Vec::new();
    let mut seen = HashSet::from([(index, register)]);
    let mut open = vec![(index, register)];
    while let Some((at, register)) = open.pop() {
        let falls = |above: &usize| {
            use FlowControl as F;
            matches!(code[*above].flow_control(), F::Next | F::ConditionalBranch | F::Call | F::IndirectCall)
        };
        let above = at.checked_sub(1).filter(falls);
        let branches = body.sources(code[at].ip()).filter_map(|source| body.index_of(source));
        for ahead in above.into_iter().chain(branches) {
            let instruction = &code[ahead];
            let register = match set(binary, instruction) {
                Some((changed, value)) if changed == register => match value {
                    Value::Entry(copied) => copied,
                    Value::Data(data) => {
                        found.push(data);
                        continue;
                    }
                    Value::Other => continue,
                },
                _ if is_call(instruction) && CLOBBERED.contains(&register) => continue,
                _ => register,
            };
            if seen.len() < MAX_BACK && seen.insert((ahead, register)) {
                open.push((ahead, register));
            }
        }
    }
    found
}

/// The register that an instruction sets, and to what; [`Value::Entry`] is the register that it copies.
fn set(binary: &Binary<'_>, instruction: &Instruction) -> Option<(usize, Value)> {
    let to = instruction.op0_register();
    let reads = matches!(instruction.mnemonic(), Mnemonic::Cmp | Mnemonic::Test | Mnemonic::Push | Mnemonic::Bt);
    if instruction.op0_kind() != OpKind::Register || !to.is_gpr() || reads {
        return None;
    }
    let copies = instruction.mnemonic() == Mnemonic::Mov && instruction.op1_kind() == OpKind::Register;
    let copied = (copies && instruction.op1_register().is_gpr64()).then(|| instruction.op1_register().number());
    let value = data(binary, instruction).map(Value::Data).or(copied.map(Value::Entry)).unwrap_or(Value::Other);
    Some((to.full_register().number(), value))
}

/// The address of data that an instruction takes.
pub(super) fn data(binary: &Binary<'_>, instruction: &Instruction) -> Option<u64> {
    match instruction.mnemonic() {
        Mnemonic::Lea if instruction.is_ip_rel_memory_operand() => Some(instruction.ip_rel_memory_address()),
        Mnemonic::Mov if instruction.op0_kind() != OpKind::Register => None,
        // Through the global offset table, whose words are relocated.
        Mnemonic::Mov if instruction.is_ip_rel_memory_operand() => {
            binary.relocation(instruction.ip_rel_memory_address())
        }
        Mnemonic::Mov if !binary.relocatable => code::immediate(instruction),
        _ => None,
    }
}

fn is_call(instruction: &Instruction) -> bool {
    matches!(instruction.flow_control(), FlowControl::Call | FlowControl::IndirectCall)
}
