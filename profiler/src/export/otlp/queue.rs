//! What waits to be sent, bounded in bytes. Counters are cumulative, so that what is dropped costs resolution and no count: the
//! oldest goes first. Never a connection.

use std::collections::VecDeque;

use bytes::Bytes;

use super::convert::Encoded;

/// One request that waits.
#[derive(Clone, Debug)]
pub struct Batch {
    /// The request.
    pub bytes: Bytes,
    /// Data points in it.
    pub points: u64,
}

/// The requests that wait, the oldest first.
#[derive(Debug)]
pub struct Queue {
    batches: VecDeque<Batch>,
    bytes: usize,
    most: usize,
}

impl Queue {
    /// An empty one, for `most` bytes.
    pub fn new(most: usize) -> Queue {
        Queue { batches: VecDeque::new(), bytes: 0, most }
    }

    /// Adds the newest. Returns how many data points were dropped for it.
    pub fn push(&mut self, encoded: Encoded) -> u64 {
        let batch = Batch { bytes: encoded.bytes.into(), points: encoded.points };
        let mut dropped = 0;
        while self.bytes + batch.bytes.len() > self.most {
            let Some(oldest) = self.pop() else { return dropped + batch.points };
            dropped += oldest.points;
        }
        self.bytes += batch.bytes.len();
        self.batches.push_back(batch);
        dropped
    }

    /// Takes the oldest.
    pub fn pop(&mut self) -> Option<Batch> {
        let batch = self.batches.pop_front()?;
        self.bytes -= batch.bytes.len();
        Some(batch)
    }

    /// Puts back the oldest, which could not be sent. Returns how many data points were dropped, since there is no room any more.
    pub fn restore(&mut self, batch: Batch) -> u64 {
        if self.bytes + batch.bytes.len() > self.most {
            return batch.points;
        }
        self.bytes += batch.bytes.len();
        self.batches.push_front(batch);
        0
    }

    /// Bytes that wait.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(points: u64) -> Encoded {
        Encoded { bytes: vec![0; 10], points }
    }

    /// Check that the oldest goes where there is no room, that all that goes is counted, and that nothing exceeds the bound.
    #[test]
    fn the_oldest_goes() {
        let mut queue = Queue::new(25);
        assert_eq!((queue.push(of(1)), queue.push(of(2)), queue.push(of(4))), (0, 0, 1));
        let oldest = queue.pop().expect("there are two");
        assert_eq!((oldest.points, queue.bytes()), (2, 10));
        assert_eq!(queue.restore(oldest.clone()), 0);
        assert_eq!(queue.restore(oldest), 2, "no room");
        assert_eq!(queue.push(Encoded { bytes: vec![0; 26], points: 8 }), 2 + 4 + 8, "larger than all room");
        assert_eq!((queue.bytes(), queue.pop().is_none()), (0, true));
    }
}
