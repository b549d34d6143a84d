//! Which registers hold the addresses of data, along straight code. Never other values.

use iced_x86::{FlowControl, Instruction, Mnemonic, OpKind, Register};

use crate::target::elf::Binary;
use crate::target::site::code;

/// Registers that carry arguments (System V ABI), by their numbers: rdi, rsi, rdx, rcx, r8, r9.
const ARGUMENTS: [usize; 6] = [7, 6, 2, 1, 8, 9];
/// Registers that a call may overwrite, by their numbers.
const CLOBBERED: [usize; 9] = [0, 1, 2, 6, 7, 8, 9, 10, 11];

/// The addresses that registers hold.
#[derive(Clone, Debug, Default)]
pub(super) struct Held([Option<u64>; 16]);

impl Held {
    /// Follows one instruction.
    pub(super) fn follow(&mut self, binary: &Binary<'_>, instruction: &Instruction) {
        if matches!(instruction.flow_control(), FlowControl::Call | FlowControl::IndirectCall) {
            CLOBBERED.iter().for_each(|&register| self.0[register] = None);
            return;
        }
        let to = instruction.op0_register();
        let reads = matches!(instruction.mnemonic(), Mnemonic::Cmp | Mnemonic::Test | Mnemonic::Push | Mnemonic::Bt);
        if instruction.op0_kind() != OpKind::Register || !to.is_gpr() || reads {
            return;
        }
        let copied = (instruction.mnemonic() == Mnemonic::Mov && instruction.op1_kind() == OpKind::Register)
            .then(|| self.of(instruction.op1_register()))
            .flatten();
        self.0[to.full_register().number()] = data(binary, instruction).or(copied);
    }

    /// What the registers that carry arguments hold.
    pub(super) fn arguments(&self) -> impl Iterator<Item = u64> + '_ {
        ARGUMENTS.iter().filter_map(|&register| self.0[register])
    }

    fn of(&self, register: Register) -> Option<u64> {
        register.is_gpr64().then(|| self.0[register.number()]).flatten()
    }
}

/// The address of data that an instruction takes.
pub(super) fn data(binary: &Binary<'_>, instruction: &Instruction) -> Option<u64> {
    match instruction.mnemonic() {
        Mnemonic::Lea if instruction.is_ip_rel_memory_operand() => Some(instruction.ip_rel_memory_address()),
        Mnemonic::Mov if !binary.relocatable => code::immediate(instruction),
        // Through the global offset table, whose words are relocated.
        Mnemonic::Mov if instruction.is_ip_rel_memory_operand() && instruction.op0_kind() == OpKind::Register => {
            binary.relocation(instruction.ip_rel_memory_address())
        }
        _ => None,
    }
}
