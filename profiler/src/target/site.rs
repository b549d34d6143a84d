//! Where a probe costs little: instructions that the kernel emulates instead of single-stepping. Never a runtime's shapes.

pub mod code;
pub mod once;
#[cfg(test)]
mod tests;
pub mod values;

use iced_x86::{Code, FlowControl, Instruction, Register};
use profiler_common::map::Argument;

use self::code::Body;
use self::values::{Place, Values};
use super::elf::{Binary, Function};

/// An instruction to probe, and where the tracked argument is when it is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Site {
    /// Virtual address.
    pub address: u64,
    /// Where the tracked value is.
    pub argument: Argument,
    /// Displacement from the stack pointer, for [`Argument::Stack`].
    pub displacement: i16,
    /// Whether the kernel emulates the instruction.
    pub emulated: bool,
}

/// Instructions that are walked from an entry before giving up.
const MAX_WALK: usize = 64;

/// Whether every supported kernel emulates `instruction` under a uprobe (`arch/x86/kernel/uprobes.c`,
/// `branch_setup_ops` and `push_setup_ops` of Linux 5.10; 6.18 adds the longer nops). The exact lengths rule out
/// prefixes, which it either rejects or single-steps.
pub fn is_emulated(instruction: &Instruction) -> bool {
    match (instruction.code(), instruction.len()) {
        (Code::Push_r64, 1) => true,
        // Only REX.B, which the high registers need.
        (Code::Push_r64, 2) => instruction.op0_register().number() >= 8,
        (Code::Nopd, 1) | (Code::Call_rel32_64, 5) | (Code::Jmp_rel8_64, 2) | (Code::Jmp_rel32_64, 5) => true,
        (_, length) => (instruction.is_jcc_short() && length == 2) || (instruction.is_jcc_near() && length == 6),
    }
}

/// The first emulated instruction that every call of `function` executes exactly once and at which the value that
/// `register` had on entry can still be found; else the entry itself, which the kernel then single-steps.
pub fn from_entry(binary: &Binary<'_>, function: &Function, register: Register) -> Option<Site> {
    let argument = argument(register)?;
    let fallback = Site { address: function.start, argument, displacement: 0, emulated: false };
    let body = Body::decode(binary, function)?;
    Some(in_body(&body, function.start, register).unwrap_or(fallback))
}

/// As [`from_entry`], in a decoded function; `None` where there is no such instruction.
pub fn in_body(body: &Body, entry: u64, register: Register) -> Option<Site> {
    let mut values = Values::new();
    let tracked = values.of(register)?;
    let first = body.index_of(entry)?;
    for instruction in body.instructions[first..].iter().take(MAX_WALK) {
        if is_emulated(instruction) {
            let address = instruction.ip();
            if body.is_joined(entry, address) {
                return None;
            }
            return at(&values, tracked, address);
        }
        if instruction.flow_control() != FlowControl::Next && instruction.flow_control() != FlowControl::IndirectCall {
            return None;
        }
        values.step(instruction);
    }
    None
}

/// The emulated site `address`, with the argument where `values` finds the value `tracked`.
pub fn at(values: &Values, tracked: values::Value, address: u64) -> Option<Site> {
    let (argument, displacement) = match values.find(tracked)? {
        Place::Register(register) => (argument(register)?, 0),
        Place::Stack(displacement) => (Argument::Stack, displacement),
    };
    Some(Site { address, argument, displacement, emulated: true })
}

/// The code of a register.
pub fn argument(register: Register) -> Option<Argument> {
    Some(match register {
        Register::RDI => Argument::Rdi,
        Register::RSI => Argument::Rsi,
        Register::RDX => Argument::Rdx,
        Register::RCX => Argument::Rcx,
        Register::RAX => Argument::Rax,
        Register::RBX => Argument::Rbx,
        Register::RBP => Argument::Rbp,
        Register::R8 => Argument::R8,
        Register::R9 => Argument::R9,
        Register::R10 => Argument::R10,
        Register::R11 => Argument::R11,
        Register::R12 => Argument::R12,
        Register::R13 => Argument::R13,
        Register::R14 => Argument::R14,
        Register::R15 => Argument::R15,
        _ => return None,
    })
}
