//! Puts events that arrive slightly out of order back in the order of their times. Never what an event does.
//!
//! CPUs take the time of an event and then reserve its place in the ring; between the two a thread may be preempted,
//! so that a completion can overtake its spawn. Holding events for a short horizon makes every later stage see one
//! sorted stream, whatever the interleaving: matching generations of a reused address then needs no guesses.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

/// Room for so many events in order is kept.
const ROOM: usize = 4096;

/// Events that wait for those that may still arrive before them.
pub struct Pending<T> {
    /// Most events that are held.
    limit: usize,
    /// Events that arrived in order: nearly all of them.
    in_order: VecDeque<(u64, T)>,
    /// Events that were overtaken.
    overtaken: BinaryHeap<Reverse<Overtaken<T>>>,
    /// Number of the next overtaken event: equal times keep the order of arrival.
    next: u64,
}

struct Overtaken<T> {
    key: (u64, u64),
    item: T,
}

impl<T> PartialEq for Overtaken<T> {
    fn eq(&self, other: &Self) -> bool {
        self.key == other.key
    }
}

impl<T> Eq for Overtaken<T> {}

impl<T> PartialOrd for Overtaken<T> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> Ord for Overtaken<T> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.key.cmp(&other.key)
    }
}

impl<T> Pending<T> {
    /// Holds at most `limit` events.
    pub fn new(limit: usize) -> Pending<T> {
        Pending { limit, in_order: VecDeque::new(), overtaken: BinaryHeap::new(), next: 0 }
    }

    /// Holds `item`.
    pub fn push(&mut self, time_ns: u64, item: T) {
        match self.in_order.back() {
            Some((last, _)) if *last > time_ns => {
                self.overtaken.push(Reverse(Overtaken { key: (time_ns, self.next), item }));
                self.next += 1;
            }
            _ => {
                // One is over the limit before it is taken out: that must not double what is allocated.
                if self.in_order.len() == self.in_order.capacity() && self.in_order.len() * 2 > self.limit {
                    self.in_order.reserve_exact((self.limit + 1).saturating_sub(self.in_order.len()).max(64));
                }
                self.in_order.push_back((time_ns, item));
            }
        }
    }

    /// The earliest event, if it happened at `until_ns` or before, or if more are held than may be.
    pub fn pop(&mut self, until_ns: u64) -> Option<(u64, T)> {
        let until_ns = if self.len() > self.limit { u64::MAX } else { until_ns };
        let in_order = self.in_order.front().map(|(time_ns, _)| *time_ns);
        let overtaken = self.overtaken.peek().map(|Reverse(event)| event.key.0);
        match (in_order, overtaken) {
            // At equal times the one in order arrived first: it was there when the other was found to be overtaken.
            (Some(a), Some(b)) if b < a => self.pop_overtaken(b, until_ns),
            (Some(a), _) if a <= until_ns => self.pop_in_order(),
            (None, Some(b)) => self.pop_overtaken(b, until_ns),
            _ => None,
        }
    }

    fn pop_in_order(&mut self) -> Option<(u64, T)> {
        let event = self.in_order.pop_front();
        // What a burst took is given back.
        if self.in_order.capacity() > ROOM && self.in_order.len() * 8 < self.in_order.capacity() {
            self.in_order.shrink_to(self.in_order.len() * 2);
        }
        event
    }

    fn pop_overtaken(&mut self, time_ns: u64, until_ns: u64) -> Option<(u64, T)> {
        if time_ns > until_ns {
            return None;
        }
        self.overtaken.pop().map(|Reverse(event)| (event.key.0, event.item))
    }

    /// All events that are held, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &T)> {
        let overtaken = self.overtaken.iter().map(|Reverse(event)| (event.key.0, &event.item));
        self.in_order.iter().map(|(time_ns, item)| (*time_ns, item)).chain(overtaken)
    }

    /// Number of events that are held.
    pub fn len(&self) -> usize {
        self.in_order.len() + self.overtaken.len()
    }

    /// Whether none is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Check that events come out as a stable sort would put them.
        #[test]
        fn events_leave_sorted_and_stable(times in proptest::collection::vec(0u64..50, 0..200)) {
            let mut pending = Pending::new(usize::MAX);
            for (index, time) in times.iter().enumerate() {
                pending.push(*time, index);
            }
            let mut expected: Vec<(u64, usize)> = times.iter().copied().zip(0..).collect();
            expected.sort_by_key(|(time, _)| *time);
            let actual: Vec<(u64, usize)> = std::iter::from_fn(|| pending.pop(u64::MAX)).collect();
            prop_assert_eq!(actual, expected);
        }

        /// Check that no more are held than may be, and nothing is released before its time for another reason.
        #[test]
        fn the_limit_holds(times in proptest::collection::vec(0u64..1000, 0..200)) {
            let mut pending = Pending::new(10);
            for time in times {
                pending.push(time, ());
                while pending.pop(0).is_some() {}
                prop_assert!(pending.len() <= 10);
            }
        }
    }
}
