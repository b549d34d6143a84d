//! Another process's memory, read from outside while it runs. Never written, never a runtime's shapes.
//!
//! What is read was written by a stranger, and changes meanwhile: a word is a claim, not a fact.

use std::io;

/// Bytes of one system call: while it copies, the process cannot change its memory map.
const CALL_BYTES: usize = 64 * 1024;
/// Spans of one system call (UIO_MAXIOV, include/uapi/linux/uio.h).
const CALL_SPANS: usize = 1024;

/// Why a process's memory cannot be read at all.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// It has ended.
    #[error("process {pid} has ended")]
    Ended {
        /// Its id.
        pid: u32,
    },
    /// It may not be looked into.
    #[error(
        "failed to read the memory of process {pid}: not permitted: run as root, or grant CAP_SYS_PTRACE; where kernel.yama.ptrace_scope is 3, nobody may"
    )]
    NotPermitted {
        /// Its id.
        pid: u32,
    },
    /// Something else.
    #[error("failed to read {what} of process {pid}: {source}")]
    Read {
        /// Its id.
        pid: u32,
        /// What.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
}

/// Some bytes of a process's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Address of the first.
    pub address: u64,
    /// How many.
    pub length: usize,
}

/// A range of addresses that a process can write to and that shows no file: heaps, stacks, thread-local storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// First address.
    pub start: u64,
    /// End.
    pub end: u64,
}

/// The memory of a process.
pub trait Memory {
    /// Fills `bytes` with what is in `spans`, back to back, up to the first span that cannot be read; returns how many
    /// spans were filled. `bytes` is as long as all spans together.
    ///
    /// # Errors
    /// Nothing of the process can be read, now or later.
    fn fill(&self, spans: &[Span], bytes: &mut [u8]) -> Result<usize, MemoryError>;

    /// Its regions, sorted, without overlaps.
    ///
    /// # Errors
    /// Nothing of the process can be read, now or later.
    fn regions(&self) -> Result<Vec<Region>, MemoryError>;
}

/// The memory of a running process.
#[derive(Clone, Copy, Debug)]
pub struct ProcessMemory {
    /// Its id.
    pub pid: u32,
}

impl Memory for ProcessMemory {
    fn fill(&self, spans: &[Span], bytes: &mut [u8]) -> Result<usize, MemoryError> {
        let (mut filled, mut at) = (0, 0);
        while filled < spans.len() {
            let call = call(&spans[filled..]);
            let length = call.iter().map(|span| span.length).sum::<usize>();
            let Some(room) = bytes.get_mut(at..at + length) else { break };
            let read = self.read(call, room)?;
            let mut rest = read;
            let whole =
                call.iter().take_while(|span| rest.checked_sub(span.length).map(|r| rest = r).is_some()).count();
            filled += whole;
            if whole < call.len() {
                break;
            }
            at += length;
        }
        Ok(filled)
    }

    fn regions(&self) -> Result<Vec<Region>, MemoryError> {
        use procfs::process::{MMPermissions, MMapPath};
        let failed = |e: procfs::ProcError| match e {
            procfs::ProcError::NotFound(_) => MemoryError::Ended { pid: self.pid },
            procfs::ProcError::PermissionDenied(_) => MemoryError::NotPermitted { pid: self.pid },
            other => {
                MemoryError::Read { pid: self.pid, what: "the memory map", source: io::Error::other(other.to_string()) }
            }
        };
        let id = i32::try_from(self.pid).map_err(|_| MemoryError::Ended { pid: self.pid })?;
        let maps = procfs::process::Process::new(id).and_then(|process| process.maps()).map_err(failed)?;
        let private = MMPermissions::READ | MMPermissions::WRITE | MMPermissions::PRIVATE;
        let regions: Vec<Region> = maps
            .iter()
            .filter(|map| map.perms.contains(private))
            .filter(|map| !matches!(map.pathname, MMapPath::Path(_) | MMapPath::Vdso | MMapPath::Vvar))
            .map(|map| Region { start: map.address.0, end: map.address.1 })
            .collect();
        // A process that has ended has an empty map until it is waited for.
        if regions.is_empty() { Err(MemoryError::Ended { pid: self.pid }) } else { Ok(regions) }
    }
}

impl ProcessMemory {
    /// One system call: the bytes that were read, from the first span on without a gap.
    fn read(&self, spans: &[Span], bytes: &mut [u8]) -> Result<usize, MemoryError> {
        let remote: Vec<libc::iovec> = spans
            .iter()
            .map(|span| libc::iovec { iov_base: span.address as *mut libc::c_void, iov_len: span.length })
            .collect();
        let local = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
        // SAFETY: the kernel writes at most `iov_len` bytes to `local`, which is all of the live `bytes`; `remote` is
        // live, of this length, and is only resolved in the other process.
        let read = unsafe {
            libc::process_vm_readv(self.pid as i32, &raw const local, 1, remote.as_ptr(), remote.len() as u64, 0)
        };
        if let Ok(read) = usize::try_from(read) {
            return Ok(read);
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            // The first span is not mapped, or its address is none.
            Some(libc::EFAULT | libc::EINVAL) => Ok(0),
            Some(libc::ESRCH) => Err(MemoryError::Ended { pid: self.pid }),
            Some(libc::EPERM) => Err(MemoryError::NotPermitted { pid: self.pid }),
            _ => Err(MemoryError::Read { pid: self.pid, what: "the memory", source: error }),
        }
    }
}

/// The spans that one system call reads: one at least.
fn call(spans: &[Span]) -> &[Span] {
    let mut bytes = 0usize;
    let fits = |span: &&Span| {
        bytes = bytes.saturating_add(span.length);
        bytes <= CALL_BYTES
    };
    let count = spans.iter().take(CALL_SPANS).take_while(fits).count();
    &spans[..count.max(1)]
}

/// Spans that are read together, and what was in them. Used again and again, it allocates once.
#[derive(Default)]
pub struct Batch {
    spans: Vec<Span>,
    /// Where the bytes of each span begin.
    starts: Vec<usize>,
    bytes: Vec<u8>,
    readable: Vec<bool>,
}

impl Batch {
    /// Forgets all spans.
    pub fn clear(&mut self) {
        self.spans.clear();
        self.starts.clear();
        self.bytes.clear();
        self.readable.clear();
    }

    /// Adds a span, and returns its number.
    pub fn add(&mut self, address: u64, length: usize) -> usize {
        self.starts.push(self.bytes.len());
        self.bytes.resize(self.bytes.len() + length, 0);
        self.spans.push(Span { address, length });
        self.readable.push(false);
        self.spans.len() - 1
    }

    /// Number of spans.
    pub fn len(&self) -> usize {
        self.spans.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    /// Bytes of all spans.
    pub fn size(&self) -> usize {
        self.bytes.len()
    }

    /// Reads all spans. One that is not mapped is passed over.
    ///
    /// # Errors
    /// Nothing of the process can be read.
    pub fn read(&mut self, memory: &dyn Memory) -> Result<(), MemoryError> {
        let mut next = 0;
        while next < self.spans.len() {
            let filled = memory.fill(&self.spans[next..], &mut self.bytes[self.starts[next]..])?;
            let end = next.saturating_add(filled).min(self.spans.len());
            self.readable[next..end].fill(true);
            next = end + 1;
        }
        Ok(())
    }

    /// What was read of a span; `None` where it is not mapped.
    pub fn bytes(&self, span: usize) -> Option<&[u8]> {
        let start = *self.starts.get(span).filter(|_| self.readable[span])?;
        self.bytes.get(start..start + self.spans[span].length)
    }

    /// The word at `offset` of a span.
    pub fn word(&self, span: usize, offset: usize) -> Option<u64> {
        let bytes = self.bytes(span)?.get(offset..)?.first_chunk::<8>()?;
        Some(u64::from_le_bytes(*bytes))
    }

    /// The words of a span; none where it is not mapped.
    pub fn words(&self, span: usize) -> impl Iterator<Item = u64> + '_ {
        self.bytes(span).unwrap_or_default().as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> ProcessMemory {
        ProcessMemory { pid: std::process::id() }
    }

    /// Check that we read our own memory, and pass over what is not mapped, in whatever order.
    #[test]
    fn spans_are_read_and_holes_are_passed_over() {
        let words: Vec<u64> = (0..64).collect();
        let at = words.as_ptr() as u64;
        let mut batch = Batch::default();
        let spans = [(at, 16), (8, 8), (16, 8), (at + 8, 24), (u64::MAX - 7, 8), (at + 64, 8), (0, 8)];
        for (address, length) in spans {
            batch.add(address, length);
        }
        batch.read(&own()).unwrap();
        let read: Vec<Vec<u64>> = (0..batch.len()).map(|span| batch.words(span).collect()).collect();
        assert_eq!(read, [vec![0, 1], vec![], vec![], vec![1, 2, 3], vec![], vec![8], vec![]]);
        assert_eq!(batch.word(3, 16), Some(3));
        assert_eq!((batch.word(3, 17), batch.word(1, 0), batch.word(99, 0)), (None, None, None));
    }

    /// Check that more than one system call takes is read whole.
    #[test]
    fn many_spans_are_read() {
        let bytes: Vec<u8> = (0..CALL_BYTES * 3).map(|n| (n / 8) as u8).collect();
        let mut batch = Batch::default();
        for n in 0..CALL_SPANS * 2 + 1 {
            batch.add(bytes.as_ptr() as u64 + n as u64 * 8, 8);
        }
        batch.add(bytes.as_ptr() as u64, bytes.len());
        batch.read(&own()).unwrap();
        for n in 0..CALL_SPANS * 2 + 1 {
            assert_eq!(batch.bytes(n).unwrap()[0], n as u8);
        }
        assert_eq!(batch.bytes(batch.len() - 1), Some(&bytes[..]));
    }

    /// Check that our own heap and stack are in the regions, and our code is not.
    #[test]
    fn regions_hold_heap_and_stack() {
        let regions = own().regions().unwrap();
        let holds = |address: u64| regions.iter().any(|r| (r.start..r.end).contains(&address));
        let (heap, stack) = (Box::new(1), 2);
        assert!(holds(&raw const *heap as u64) && holds(&raw const stack as u64));
        assert!(!holds(own as *const () as u64));
        assert!(regions.is_sorted_by_key(|region| region.start));
    }

    /// Check that a process that is gone is an error, not an empty answer.
    #[test]
    fn a_vanished_process_is_an_error() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let memory = ProcessMemory { pid: child.id() };
        child.wait().unwrap();
        let mut batch = Batch::default();
        batch.add(4096, 8);
        assert!(matches!(batch.read(&memory), Err(MemoryError::Ended { .. })));
        assert!(matches!(memory.regions(), Err(MemoryError::Ended { .. })));
    }
}
