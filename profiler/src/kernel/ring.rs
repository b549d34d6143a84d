//! The reading end of the ring buffer.

use std::os::fd::{AsFd, BorrowedFd};

use aya::maps::{MapData, RingBuf};

use super::KernelError;
use super::load::{Kernel, RING};

/// The ring's reader. Its descriptor becomes readable when the kernel half forces a wake-up; it is polled besides.
pub struct Ring(RingBuf<MapData>);

impl Kernel {
    /// Takes the reader; there is one.
    ///
    /// # Errors
    /// It was taken before.
    pub fn ring(&mut self) -> Result<Ring, KernelError> {
        let map = self.ebpf.take_map(RING).ok_or(KernelError::Missing(RING))?;
        RingBuf::try_from(map).map(Ring).map_err(|source| KernelError::Map { map: RING, source })
    }
}

impl Ring {
    /// Hands up to `limit` records to `handle`, in the order of their reservation; returns how many there were.
    pub fn drain(&mut self, limit: usize, mut handle: impl FnMut(&[u8])) -> usize {
        let mut n = 0;
        while n < limit
            && let Some(record) = self.0.next()
        {
            handle(&record);
            n += 1;
        }
        n
    }
}

impl AsFd for Ring {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
