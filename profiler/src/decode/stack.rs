//! Copied stacks among the records of the ring. Never their unwinding.

use bytes::Buf as _;
use profiler_common::event::{Header, STACK_BYTES, SpawnStack, kind};

use super::{DecodeError, header};

/// The stack on which a task was created.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StackSample {
    /// Time, thread, and the site that was hit.
    pub header: Header,
    /// Address of the task's vtable; 0 where the site tells its type.
    pub vtable: u64,
    /// Registers by their DWARF numbers; 0 for those that are not copied.
    pub registers: [u64; 17],
    /// Bytes from the stack pointer on.
    pub bytes: Vec<u8>,
}

/// Whether a record is a stack, which [`super::decode`] does not take.
pub fn is_stack(record: &[u8]) -> bool {
    let at = core::mem::offset_of!(Header, kind);
    record.get(at..at + 2) == Some(&kind::SPAWN_STACK.to_ne_bytes())
}

/// Reads a stack.
///
/// # Errors
/// The length is not that of a stack, or says more than it holds.
pub fn decode(mut record: &[u8]) -> Result<StackSample, DecodeError> {
    let length = record.len();
    if length != size_of::<SpawnStack>() {
        return Err(DecodeError::Length { kind: kind::SPAWN_STACK, length, expected: size_of::<SpawnStack>() });
    }
    // From here on the reads cannot run out of bytes: the length is that of all of them.
    let header = header(&mut record);
    let vtable = record.get_u64_ne();
    let mut registers = [0; 17];
    // rip, rsp, rbp, rbx, r12 to r15.
    for number in [16, 7, 6, 3, 12, 13, 14, 15] {
        registers[number] = record.get_u64_ne();
    }
    let copied = usize::try_from(record.get_u64_ne()).ok().filter(|&copied| copied <= STACK_BYTES);
    let Some(bytes) = copied.and_then(|copied| record.get(..copied)) else {
        return Err(DecodeError::Length { kind: kind::SPAWN_STACK, length: usize::MAX, expected: STACK_BYTES });
    };
    Ok(StackSample { header, vtable, registers, bytes: bytes.to_vec() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::mem::offset_of;

    fn record(length: u64) -> Vec<u8> {
        let mut bytes = vec![0; size_of::<SpawnStack>()];
        let mut put = |at: usize, value: u64| bytes[at..at + 8].copy_from_slice(&value.to_ne_bytes());
        put(offset_of!(SpawnStack, vtable), 1);
        put(offset_of!(SpawnStack, rip), 2);
        put(offset_of!(SpawnStack, rsp), 3);
        put(offset_of!(SpawnStack, rbp), 4);
        put(offset_of!(SpawnStack, rbx), 5);
        put(offset_of!(SpawnStack, r15), 6);
        put(offset_of!(SpawnStack, length), length);
        put(offset_of!(SpawnStack, stack), 7);
        bytes[offset_of!(Header, kind)..][..2].copy_from_slice(&kind::SPAWN_STACK.to_ne_bytes());
        bytes
    }

    /// Check that fields stand where the kernel half puts them.
    #[test]
    fn fields_stand_where_the_kernel_half_puts_them() {
        let bytes = record(16);
        assert!(is_stack(&bytes));
        let sample = decode(&bytes).unwrap();
        assert_eq!((sample.vtable, sample.header.kind), (1, kind::SPAWN_STACK));
        let r = sample.registers;
        assert_eq!((r[16], r[7], r[6], r[3], r[15], r[0]), (2, 3, 4, 5, 6, 0));
        assert_eq!((sample.bytes.len(), sample.bytes[0]), (16, 7));
    }

    /// Check that we refuse what the kernel half does not send.
    #[test]
    fn other_lengths_are_refused() {
        assert!(decode(&record(u64::MAX)).is_err());
        assert!(decode(&record(STACK_BYTES as u64 + 1)).is_err());
        assert!(decode(&record(0)[1..]).is_err());
        assert!(decode(&[]).is_err() && !is_stack(&[]));
    }
}
