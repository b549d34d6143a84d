//! Which registers and stack slots hold the same value along one path through a function.

use iced_x86::{
    FlowControl, Instruction, InstructionInfoFactory, InstructionInfoOptions, Mnemonic, OpAccess, OpKind, Register,
};

use super::code::immediate;

/// A value that some instruction made. Equal values are equal; different ones may still be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Value(u32);

/// Where a value can be found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In a general register.
    Register(Register),
    /// At the stack pointer plus this displacement.
    Stack(i16),
}

/// The registers in the order of their numbers.
const REGISTERS: [Register; 16] = [
    Register::RAX,
    Register::RCX,
    Register::RDX,
    Register::RBX,
    Register::RSP,
    Register::RBP,
    Register::RSI,
    Register::RDI,
    Register::R8,
    Register::R9,
    Register::R10,
    Register::R11,
    Register::R12,
    Register::R13,
    Register::R14,
    Register::R15,
];

/// Registers that a call may overwrite (System V ABI).
const CALL_CLOBBERED: [Register; 9] = [
    Register::RAX,
    Register::RCX,
    Register::RDX,
    Register::RSI,
    Register::RDI,
    Register::R8,
    Register::R9,
    Register::R10,
    Register::R11,
];

/// The number of a 64-bit general register.
fn number(register: Register) -> Option<usize> {
    register.is_gpr64().then(|| register.number())
}

/// The state of a path.
#[derive(Clone)]
pub struct Values {
    registers: [Value; 16],
    /// Stack slots by their distance from the stack pointer at the beginning of the path.
    slots: Vec<(i64, Value)>,
    /// The stack pointer, relative to the beginning of the path.
    stack: i64,
    next: u32,
}

impl Values {
    /// The beginning of a path: every register holds a value of its own.
    pub fn new() -> Values {
        Values { registers: std::array::from_fn(|n| Value(n as u32)), slots: Vec::new(), stack: 0, next: 16 }
    }

    /// The value that a 64-bit register holds.
    pub fn of(&self, register: Register) -> Option<Value> {
        number(register).map(|n| self.registers[n])
    }

    /// Where `value` is: a register if possible.
    pub fn find(&self, value: Value) -> Option<Place> {
        self.register(value).map(Place::Register).or_else(|| {
            let &(slot, _) = self.slots.iter().find(|&&(_, held)| held == value)?;
            i16::try_from(slot - self.stack).ok().map(Place::Stack)
        })
    }

    /// A register, other than the stack pointer, that holds `value`.
    pub fn register(&self, value: Value) -> Option<Register> {
        REGISTERS.into_iter().zip(self.registers).find(|&(r, held)| held == value && r != Register::RSP).map(|(r, _)| r)
    }

    /// The stack pointer, relative to the beginning of the path.
    pub fn stack(&self) -> i64 {
        self.stack
    }

    /// Follows one instruction.
    pub fn step(&mut self, instruction: &Instruction) {
        match (instruction.mnemonic(), instruction.op0_kind(), instruction.op1_kind()) {
            (Mnemonic::Mov, OpKind::Register, OpKind::Register)
                if instruction.op0_register().is_gpr64() && instruction.op1_register().is_gpr64() =>
            {
                self.set(instruction.op0_register(), self.of(instruction.op1_register()));
            }
            (Mnemonic::Mov, OpKind::Register, OpKind::Memory)
                if instruction.op0_register().is_gpr64() && self.slot(instruction).is_some() =>
            {
                let value = self.slot(instruction).map(|slot| self.load(slot));
                self.set(instruction.op0_register(), value);
            }
            (Mnemonic::Mov, OpKind::Memory, OpKind::Register)
                if instruction.op1_register().is_gpr64() && self.slot(instruction).is_some() =>
            {
                if let (Some(slot), Some(value)) = (self.slot(instruction), self.of(instruction.op1_register())) {
                    self.store(slot, value);
                }
            }
            (Mnemonic::Push, OpKind::Register, _) if instruction.op0_register().is_gpr64() => {
                self.stack -= 8;
                if let Some(value) = self.of(instruction.op0_register()) {
                    self.store(self.stack, value);
                }
            }
            (Mnemonic::Pop, OpKind::Register, _) if instruction.op0_register().is_gpr64() => {
                let value = self.load(self.stack);
                self.stack += 8;
                self.set(instruction.op0_register(), Some(value));
            }
            (Mnemonic::Sub | Mnemonic::Add, OpKind::Register, _)
                if instruction.op0_register() == Register::RSP && immediate(instruction).is_some() =>
            {
                let amount = immediate(instruction).unwrap_or_default() as i64;
                let change = if instruction.mnemonic() == Mnemonic::Sub { amount.checked_neg() } else { Some(amount) };
                self.stack = change.and_then(|change| self.stack.checked_add(change)).unwrap_or(0);
            }
            _ => self.other(instruction),
        }
    }

    fn other(&mut self, instruction: &Instruction) {
        if matches!(instruction.flow_control(), FlowControl::Call | FlowControl::IndirectCall) {
            CALL_CLOBBERED.into_iter().for_each(|register| self.set(register, None));
            // A slot whose address escaped may have changed.
            self.slots.clear();
            return;
        }
        let mut factory = InstructionInfoFactory::new();
        let info = factory.info_options(instruction, InstructionInfoOptions::NONE);
        let written = |access| {
            matches!(access, OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite)
        };
        for used in info.used_registers().iter().filter(|used| written(used.access())) {
            let register = used.register().full_register();
            if register == Register::RSP {
                // Aligned or restored: distances are lost.
                self.slots.clear();
            } else {
                self.set(register, None);
            }
        }
        if info.used_memory().iter().any(|used| written(used.access()) && used.base() == Register::RSP)
            && let Some(slot) = self.slot(instruction)
        {
            let size = instruction.memory_size().size() as i64;
            self.slots.retain(|&(at, _)| at + 8 <= slot || slot.saturating_add(size) <= at);
        }
    }

    /// The slot that a memory operand names.
    fn slot(&self, instruction: &Instruction) -> Option<i64> {
        let direct = instruction.memory_base() == Register::RSP && instruction.memory_index() == Register::None;
        direct.then(|| self.stack.checked_add(instruction.memory_displacement64() as i64)).flatten()
    }

    fn fresh(&mut self) -> Value {
        self.next = self.next.wrapping_add(1);
        Value(self.next)
    }

    fn set(&mut self, register: Register, value: Option<Value>) {
        if let Some(n) = number(register) {
            self.registers[n] = value.unwrap_or_else(|| self.fresh());
        }
    }

    fn load(&mut self, slot: i64) -> Value {
        if let Some(&(_, value)) = self.slots.iter().find(|&&(at, _)| at == slot) {
            return value;
        }
        let value = self.fresh();
        self.slots.push((slot, value));
        value
    }

    fn store(&mut self, slot: i64, value: Value) {
        self.slots.retain(|&(at, _)| at.abs_diff(slot) >= 8);
        self.slots.push((slot, value));
    }
}

impl Default for Values {
    fn default() -> Self {
        Values::new()
    }
}
