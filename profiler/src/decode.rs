//! Raw records of the ring, and the typed ones made of them. Never what a record means to a runtime.

pub mod stack;

use bytes::{Buf as _, BufMut as _};
use profiler_common::event::{Header, ProcessRecord, TaskRecord, kind};

/// A record whose length and kind were checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record {
    /// A task's birth or end.
    Task(TaskRecord),
    /// A process's fork, exec or exit.
    Process(ProcessRecord),
}

impl Record {
    /// Time, thread, kind and flags.
    pub const fn header(&self) -> &Header {
        match self {
            Record::Task(task) => &task.header,
            Record::Process(process) => &process.header,
        }
    }

    /// Value of the `kind` label of the events that were decoded.
    pub const fn label(&self) -> &'static str {
        match self.header().kind {
            kind::TASK_SPAWNED => "task_spawned",
            kind::TASK_COMPLETED => "task_completed",
            kind::PROCESS_FORKED => "process_forked",
            kind::PROCESS_EXECED => "process_execed",
            _ => "process_exited",
        }
    }
}

/// A record that the kernel half does not send.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// It has no complete header.
    #[error("failed to decode record: {length} bytes are less than a header")]
    Truncated {
        /// Its length in bytes.
        length: usize,
    },
    /// Its kind is not known.
    #[error("failed to decode record: kind {kind} is not known")]
    Kind {
        /// The kind in its header.
        kind: u16,
    },
    /// Its kind is known, and has another length.
    #[error("failed to decode record of kind {kind}: {length} bytes instead of {expected}")]
    Length {
        /// The kind in its header.
        kind: u16,
        /// Its length in bytes.
        length: usize,
        /// The length of that kind in bytes.
        expected: usize,
    },
}

/// Reads one record, in the byte order of this machine: it is what the kernel half wrote on it.
///
/// # Errors
/// The length or the kind is none that the kernel half sends.
pub fn decode(mut record: &[u8]) -> Result<Record, DecodeError> {
    let length = record.len();
    if length < size_of::<Header>() {
        return Err(DecodeError::Truncated { length });
    }
    // From here on the reads below cannot run out of bytes, which would panic: each kind's length is checked first.
    let header = header(&mut record);
    let check = |expected| match length == expected {
        true => Ok(()),
        false => Err(DecodeError::Length { kind: header.kind, length, expected }),
    };
    match header.kind {
        kind::TASK_SPAWNED | kind::TASK_COMPLETED => {
            check(size_of::<TaskRecord>())?;
            Ok(Record::Task(TaskRecord {
                header,
                task: record.get_u64_ne(),
                vtable: record.get_u64_ne(),
                id: record.get_u64_ne(),
                parent: record.get_u64_ne(),
            }))
        }
        kind::PROCESS_FORKED | kind::PROCESS_EXECED | kind::PROCESS_EXITED => {
            check(size_of::<ProcessRecord>())?;
            Ok(Record::Process(ProcessRecord { header, other: record.get_u32_ne(), reserved: record.get_u32_ne() }))
        }
        kind => Err(DecodeError::Kind { kind }),
    }
}

/// Reads a header. The record must hold one.
fn header(record: &mut &[u8]) -> Header {
    Header {
        time_ns: record.get_u64_ne(),
        pid: record.get_u32_ne(),
        tid: record.get_u32_ne(),
        kind: record.get_u16_ne(),
        flags: record.get_u16_ne(),
        site: record.get_u32_ne(),
    }
}

/// Appends the bytes that the kernel half would send for `record`.
pub fn encode(record: &Record, out: &mut Vec<u8>) {
    let header = record.header();
    out.put_u64_ne(header.time_ns);
    out.put_u32_ne(header.pid);
    out.put_u32_ne(header.tid);
    out.put_u16_ne(header.kind);
    out.put_u16_ne(header.flags);
    out.put_u32_ne(header.site);
    match record {
        Record::Task(task) => {
            out.put_u64_ne(task.task);
            out.put_u64_ne(task.vtable);
            out.put_u64_ne(task.id);
            out.put_u64_ne(task.parent);
        }
        Record::Process(process) => {
            out.put_u32_ne(process.other);
            out.put_u32_ne(process.reserved);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header(kind: u16) -> impl Strategy<Value = Header> {
        (any::<u64>(), any::<u32>(), any::<u32>(), any::<u16>(), any::<u32>())
            .prop_map(move |(time_ns, pid, tid, flags, site)| Header { time_ns, pid, tid, kind, flags, site })
    }

    fn record() -> impl Strategy<Value = Record> {
        let task = (
            prop_oneof![Just(kind::TASK_SPAWNED), Just(kind::TASK_COMPLETED)].prop_flat_map(header),
            any::<[u64; 4]>(),
        )
            .prop_map(|(header, [task, vtable, id, parent])| {
                Record::Task(TaskRecord { header, task, vtable, id, parent })
            });
        let process = (
            prop_oneof![Just(kind::PROCESS_FORKED), Just(kind::PROCESS_EXECED), Just(kind::PROCESS_EXITED)]
                .prop_flat_map(header),
            any::<u32>(),
        )
            .prop_map(|(header, other)| Record::Process(ProcessRecord { header, other, reserved: 0 }));
        prop_oneof![task, process]
    }

    proptest! {
        /// Check that no bytes make the decoder panic.
        #[test]
        fn any_bytes_are_decoded_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = decode(&bytes);
        }

        /// Check the same for bytes that have a known kind, where the length is all that protects the reads.
        #[test]
        fn any_length_of_a_known_kind_is_decoded_or_refused(
            mut bytes in proptest::collection::vec(any::<u8>(), 24..80),
            kind in prop_oneof![1u16..3, 16u16..19],
        ) {
            bytes[16..18].copy_from_slice(&kind.to_ne_bytes());
            let expected = if kind < 16 { 56 } else { 32 };
            prop_assert_eq!(decode(&bytes).is_ok(), bytes.len() == expected);
        }

        #[test]
        fn what_is_encoded_is_decoded(record in record()) {
            let mut bytes = Vec::new();
            encode(&record, &mut bytes);
            prop_assert_eq!(decode(&bytes), Ok(record));
        }
    }

    /// Check that fields stand where `repr(C)` puts them in the kernel half.
    #[test]
    fn fields_stand_where_the_kernel_half_puts_them() {
        let mut bytes = vec![0; size_of::<TaskRecord>()];
        let mut put = |offset: usize, value: &[u8]| bytes[offset..offset + value.len()].copy_from_slice(value);
        put(core::mem::offset_of!(Header, time_ns), &1u64.to_ne_bytes());
        put(core::mem::offset_of!(Header, pid), &2u32.to_ne_bytes());
        put(core::mem::offset_of!(Header, tid), &3u32.to_ne_bytes());
        put(core::mem::offset_of!(Header, kind), &kind::TASK_SPAWNED.to_ne_bytes());
        put(core::mem::offset_of!(Header, flags), &4u16.to_ne_bytes());
        put(core::mem::offset_of!(Header, site), &5u32.to_ne_bytes());
        put(core::mem::offset_of!(TaskRecord, task), &6u64.to_ne_bytes());
        put(core::mem::offset_of!(TaskRecord, vtable), &7u64.to_ne_bytes());
        put(core::mem::offset_of!(TaskRecord, id), &8u64.to_ne_bytes());
        put(core::mem::offset_of!(TaskRecord, parent), &9u64.to_ne_bytes());
        let header = Header { time_ns: 1, pid: 2, tid: 3, kind: kind::TASK_SPAWNED, flags: 4, site: 5 };
        assert_eq!(decode(&bytes), Ok(Record::Task(TaskRecord { header, task: 6, vtable: 7, id: 8, parent: 9 })));
    }
}
