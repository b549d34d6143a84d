//! Jobs that threads take from a queue in Redis: values of BPF maps, and how a thread asks for one. Never what is in them.

/// A thread that takes jobs. Key: thread id.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Worker {
    /// Since when it does what it does, nanoseconds.
    pub since_ns: u64,
    /// Its target.
    pub slot: u32,
    /// Whether it does a job (1) or waits for one (0).
    pub works: u32,
}

/// Words at the begin of what is sent that tell whether it asks for a job.
pub const REQUEST_WORDS: usize = 3;

/// `BRPOP` as an argument of a command, without the end of its line.
const ASKS: u64 = u64::from_le_bytes(*b"\r\n$5\r\nbr");
const ASKS_REST: u64 = u64::from_le_bytes(*b"pop\r\n\0\0\0");
/// Letters in them that may be large ones.
const ASKS_LETTERS: u64 = u64::from_le_bytes([0, 0, 0, 0, 0, 0, 0x20, 0x20]);
const ASKS_REST_LETTERS: u64 = 0x20_2020;
const ASKS_REST_BYTES: u64 = 0xff_ffff_ffff;

/// A job has come: a list of two, its queue and what it is.
const ANSWER: u64 = u64::from_le_bytes(*b"*2\r\n\0\0\0\0");
const ANSWER_BYTES: u64 = 0xffff_ffff;

/// Whether what is sent asks for a job, by its begin: the command `BRPOP` of Redis, with at most 999 arguments.
#[inline(always)]
pub const fn asks(words: &[u64; REQUEST_WORDS]) -> bool {
    words[0] as u8 == b'*' && (asks_after(words, 1) || asks_after(words, 2) || asks_after(words, 3))
}

/// The same, where the number of arguments has so many digits.
#[inline(always)]
const fn asks_after(words: &[u64; REQUEST_WORDS], digits: usize) -> bool {
    let shift = 8 * (1 + digits);
    let first = words[0] >> shift | words[1] << (64 - shift);
    let second = words[1] >> shift | words[2] << (64 - shift);
    first | ASKS_LETTERS == ASKS && (second | ASKS_REST_LETTERS) & ASKS_REST_BYTES == ASKS_REST
}

/// Whether an answer to that is a job, by its first word, rather than that there was none in time, or that something is wrong.
#[inline(always)]
pub const fn is_job(word: u64) -> bool {
    word & ANSWER_BYTES == ANSWER
}

const _: () = assert!(size_of::<Worker>() == 16);

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> [u64; REQUEST_WORDS] {
        let mut bytes = [0; 8 * REQUEST_WORDS];
        let length = text.len().min(bytes.len());
        bytes[..length].copy_from_slice(&text.as_bytes()[..length]);
        core::array::from_fn(|n| u64::from_le_bytes(bytes[8 * n..8 * n + 8].try_into().unwrap()))
    }

    #[test]
    fn who_asks_for_a_job_pops_and_blocks() {
        for asking in [
            "*3\r\n$5\r\nbrpop\r\n$13\r\nqueue:default\r\n$1\r\n2\r\n",
            "*12\r\n$5\r\nBRPOP\r\n$7\r\nqueue:a\r\n",
            "*120\r\n$5\r\nBrPop\r\n$7\r\nqueue:a\r\n",
        ] {
            assert!(asks(&words(asking)), "{asking}");
        }
        for other in [
            "*3\r\n$5\r\nlpush\r\n$13\r\nqueue:default",
            "*3\r\n$4\r\nrpop\r\n$13\r\nqueue:default",
            "*4\r\n$10\r\nbrpoplpush\r\n$1\r\na",
            "*3\r\n$5\r\nbrpo\x10\r\n$13\r\nqueue",
            "*3\r\n$5\r\nbrpopx\n$13\r\nqueue",
            "*1234\r\n$5\r\nbrpop\r\n$1",
            "GET / HTTP/1.1\r\nHost: localhost",
            "",
        ] {
            assert!(!asks(&words(other)), "{other}");
        }
    }

    #[test]
    fn a_job_is_told_from_none_and_from_an_error() {
        assert!(is_job(words("*2\r\n$13\r\nqueue:default\r\n")[0]));
        for other in ["*-1\r\n", "_\r\n", "$-1\r\n", "-LOADING Redis is loading the dataset in memory\r\n", "+OK\r\n"] {
            assert!(!is_job(words(other)[0]), "{other}");
        }
    }
}
