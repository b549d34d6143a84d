//! Which task's poll a thread is in, by a copy of its stack. Never how the copy was made.

use std::ops::Range;

use crate::event::TypeId;

/// The code that polls the tasks of one type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PollCode {
    /// Its virtual addresses, in the file's own terms.
    pub code: Range<u64>,
    /// Whose tasks it polls. Of types that share their code, the first.
    pub kind: TypeId,
}

/// The type whose poll a thread is in: the innermost one, where polls are nested. `polls` are sorted and do not overlap;
/// `ip` and the words of `stack`, from the stack pointer upwards, are addresses in a process that has the image at
/// `load_bias`.
///
/// A word is taken for a return address if it points into a poll. Words that earlier calls left in the frames that live
/// now look the same: this is the weaker evidence wherever a thread itself says what it polls.
pub fn innermost(polls: &[PollCode], load_bias: u64, ip: u64, stack: &[u64]) -> Option<TypeId> {
    let at = |address: u64| {
        let index = polls.partition_point(|poll| poll.code.end <= address);
        polls.get(index).filter(|poll| poll.code.contains(&address)).map(|poll| poll.kind)
    };
    // A return address is behind its call, which may be the last instruction of the function.
    let returns = stack.iter().filter_map(|&word| word.checked_sub(load_bias)?.checked_sub(1).and_then(at));
    ip.checked_sub(load_bias).and_then(at).into_iter().chain(returns).next()
}

#[cfg(test)]
mod tests {
    use super::*;

    const BIAS: u64 = 0x5555_0000_0000;

    fn check(ip: u64, stack: &[u64], expected: Option<u32>) {
        let poll = |start, end, kind| PollCode { code: start..end, kind: TypeId(kind) };
        let polls = [poll(0x1000, 0x1100, 0), poll(0x1100, 0x1200, 1), poll(0x2000, 0x2010, 2)];
        let stack: Vec<u64> = stack.iter().map(|&word| if word < 0x10000 { BIAS + word } else { word }).collect();
        assert_eq!(innermost(&polls, BIAS, BIAS + ip, &stack), expected.map(TypeId));
    }

    /// Check that the thread's own place comes first, then the lowest return address.
    #[test]
    fn the_innermost_poll_is_found() {
        check(0x10ff, &[0x1101], Some(0));
        check(0x1100, &[], Some(1));
        check(0x3000, &[0x7fff_0000_0000, 3, 0x2008, 0x1050], Some(2));
        check(0x3000, &[0x7fff_0000_0000], None);
        check(0, &[0, u64::MAX], None);
    }

    /// Check that a call at the very end of a function returns into it, and not into the next.
    #[test]
    fn a_return_address_belongs_to_its_call() {
        check(0x3000, &[0x1100], Some(0));
        check(0x3000, &[0x1000], None);
        check(0x3000, &[0x2010], Some(2));
    }
}
