//! Raw records of the ring, and the typed ones made of them. Never what a record means to a runtime.

pub mod stack;

use bytes::{Buf as _, BufMut as _};
use profiler_common::event::{Header, ProcessRecord, SAMPLE_STACK_WORDS, SampleHead, TaskRecord, ThreadRecord, kind};

/// A record whose length and kind were checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// A task's birth or end.
    Task(TaskRecord),
    /// A process's fork, exec or exit.
    Process(ProcessRecord),
    /// A thread's end.
    Thread(ThreadRecord),
    /// A sample of the CPU clock.
    Sample(Sample),
}

/// What was on a CPU when its clock ticked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Thread, time, registers; `length` is that of `stack` in bytes.
    pub head: SampleHead,
    /// Words of the stack, from the stack pointer upwards.
    pub stack: Box<[u64]>,
}

impl Record {
    /// Time, thread, kind and flags.
    pub const fn header(&self) -> &Header {
        match self {
            Record::Task(task) => &task.header,
            Record::Process(process) => &process.header,
            Record::Thread(thread) => &thread.header,
            Record::Sample(sample) => &sample.head.header,
        }
    }

    /// Value of the `kind` label of the events that were decoded.
    pub const fn label(&self) -> &'static str {
        match self.header().kind {
            kind::TASK_SPAWNED => "task_spawned",
            kind::TASK_COMPLETED => "task_completed",
            kind::TASK_SLOW_POLL => "task_slow_poll",
            kind::TASK_POLLED => "task_polled",
            kind::TASK_WOKEN => "task_woken",
            kind::TASK_FOUND => "task_found",
            kind::TASK_TYPE => "task_type",
            kind::HIT_STORM => "hit_storm",
            kind::SAMPLE => "sample",
            kind::THREAD_ENDED => "thread_ended",
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
        kind::TASK_SPAWNED..=kind::TASK_TYPE => {
            check(size_of::<TaskRecord>())?;
            Ok(Record::Task(TaskRecord {
                header,
                task: record.get_u64_ne(),
                vtable: record.get_u64_ne(),
                id: record.get_u64_ne(),
                parent: record.get_u64_ne(),
            }))
        }
        kind::HIT_STORM | kind::PROCESS_FORKED | kind::PROCESS_EXECED | kind::PROCESS_EXITED => {
            check(size_of::<ProcessRecord>())?;
            Ok(Record::Process(ProcessRecord { header, other: record.get_u32_ne(), reserved: record.get_u32_ne() }))
        }
        kind::THREAD_ENDED => {
            check(size_of::<ThreadRecord>())?;
            let mut name = [0; 16];
            record.copy_to_slice(&mut name);
            Ok(Record::Thread(ThreadRecord {
                header,
                name,
                on_cpu_ns: record.get_u64_ne(),
                run_queue_ns: record.get_u64_ne(),
                asleep_ns: record.get_u64_ne(),
            }))
        }
        kind::SAMPLE => {
            if length < size_of::<SampleHead>() {
                return Err(DecodeError::Truncated { length });
            }
            let head = SampleHead {
                header,
                task: record.get_u64_ne(),
                ip: record.get_u64_ne(),
                sp: record.get_u64_ne(),
                length: record.get_u32_ne(),
                missed: record.get_u32_ne(),
                sleeps: record.get_u64_ne(),
                cpu_ns: record.get_u64_ne(),
            };
            let words = (head.length as usize / 8).min(SAMPLE_STACK_WORDS);
            let expected = size_of::<SampleHead>() + words * 8;
            if head.length as usize != words * 8 {
                return Err(DecodeError::Length { kind: kind::SAMPLE, length, expected });
            }
            check(expected)?;
            let stack = (0..words).map(|_| record.get_u64_ne()).collect();
            Ok(Record::Sample(Sample { head, stack }))
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
        Record::Thread(thread) => {
            out.put_slice(&thread.name);
            out.put_u64_ne(thread.on_cpu_ns);
            out.put_u64_ne(thread.run_queue_ns);
            out.put_u64_ne(thread.asleep_ns);
        }
        Record::Sample(sample) => {
            out.put_u64_ne(sample.head.task);
            out.put_u64_ne(sample.head.ip);
            out.put_u64_ne(sample.head.sp);
            out.put_u32_ne(sample.head.length);
            out.put_u32_ne(sample.head.missed);
            out.put_u64_ne(sample.head.sleeps);
            out.put_u64_ne(sample.head.cpu_ns);
            sample.stack.iter().for_each(|&word| out.put_u64_ne(word));
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
        let task = ((kind::TASK_SPAWNED..=kind::TASK_TYPE).prop_flat_map(header), any::<[u64; 4]>()).prop_map(
            |(header, [task, vtable, id, parent])| Record::Task(TaskRecord { header, task, vtable, id, parent }),
        );
        let process = (
            prop_oneof![
                Just(kind::HIT_STORM),
                Just(kind::PROCESS_FORKED),
                Just(kind::PROCESS_EXECED),
                Just(kind::PROCESS_EXITED)
            ]
            .prop_flat_map(header),
            any::<u32>(),
        )
            .prop_map(|(header, other)| Record::Process(ProcessRecord { header, other, reserved: 0 }));
        let sample = (header(kind::SAMPLE), any::<[u64; 5]>(), proptest::collection::vec(any::<u64>(), 0..20))
            .prop_map(|(header, [task, ip, sp, sleeps, cpu_ns], stack)| {
                let head =
                    SampleHead { header, task, ip, sp, length: stack.len() as u32 * 8, missed: 2, sleeps, cpu_ns };
                Record::Sample(Sample { head, stack: stack.into() })
            });
        let thread = (header(kind::THREAD_ENDED), any::<[u8; 16]>(), any::<[u64; 3]>()).prop_map(
            |(header, name, [on_cpu_ns, run_queue_ns, asleep_ns])| {
                Record::Thread(ThreadRecord { header, name, on_cpu_ns, run_queue_ns, asleep_ns })
            },
        );
        prop_oneof![task, process, thread, sample]
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
            kind in prop_oneof![1u16..8, 10u16..11, 16u16..20],
        ) {
            bytes[16..18].copy_from_slice(&kind.to_ne_bytes());
            let expected = if kind < 8 { 56 } else if kind == kind::THREAD_ENDED { 64 } else { 32 };
            prop_assert_eq!(decode(&bytes).is_ok(), bytes.len() == expected);
        }

        /// Check that a sample whose stack is not as long as it says is refused.
        #[test]
        fn a_stack_of_another_length_is_refused(
            mut bytes in proptest::collection::vec(any::<u8>(), 24..200),
            length in prop_oneof![0u32..160, any::<u32>()],
        ) {
            bytes[16..18].copy_from_slice(&kind::SAMPLE.to_ne_bytes());
            if let Some(field) = bytes.get_mut(48..52) {
                field.copy_from_slice(&length.to_ne_bytes());
            }
            let whole = bytes.len() == 72 + length as usize && length % 8 == 0;
            prop_assert_eq!(decode(&bytes).is_ok(), whole);
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
