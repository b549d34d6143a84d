//! Tasks that are coroutines: how they lie in memory, what they wait for, and their types. Never a map of polls.

/// Where an interpreter keeps what is read of its coroutines, and of the code that they run. Offsets in bytes. A coroutine is
/// known by the address of its context, whose first word is its saved stack pointer.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CoroutineLayout {
    /// What is read of a coroutine begins so far before its context: a multiple of 8, at most 48.
    pub before: u16,
    /// Of its procedure in what is read: an object; 0 where the thread itself is the coroutine.
    pub procedure: u16,
    /// Of its state in what is read: the lower two bits are 3 once it has ended.
    pub state: u16,
    /// Of the flags of an object that is a handle, behind which is the pointer to its data; of the data itself where the flags
    /// have bit 1.
    pub handle: u16,
    /// Of the environment in a procedure's block.
    pub environment: u16,
    /// Of the code in the block.
    pub code: u16,
    /// Of the kind of block: 0 where it has code.
    pub block_kind: u16,
    /// Of the code's body.
    pub body: u16,
    /// Of the line in the body.
    pub line: u16,
    /// Bit of an environment's flags (its first word) that says that it is a method's, whose block is the word before.
    pub local_bit: u16,
    /// Number of the span of time in which births and ends are seen without a gap: what was known in an earlier one is void.
    pub span: u32,
}

/// Key of the types of coroutines that could not be told, or are too many to be told apart. Real keys are not so small.
pub const UNKNOWN_TYPE: u64 = 1;
/// Keys of [`TypeKey`] that the coroutines of one target may have: a program may make code without end.
pub const MOST_TYPE_KEYS: u64 = 1024;

/// What a coroutine waits for between two of its polls. Numbers are parts of keys: only added to.
pub mod wait {
    /// It was not told: another coroutine goes on, and comes back when it likes.
    pub const OTHER: u32 = 0;
    /// For a time to pass.
    pub const SLEEP: u32 = 1;
    /// For a lock, a queue, another task.
    pub const BLOCK: u32 = 2;
    /// For a file or a socket to be ready.
    pub const IO_WAIT: u32 = 3;
    /// For a read.
    pub const IO_READ: u32 = 4;
    /// For a write.
    pub const IO_WRITE: u32 = 5;
    /// For a process to end.
    pub const PROCESS: u32 = 6;
    /// For the address of a name.
    pub const RESOLVE: u32 = 7;
    /// How many there are.
    pub const COUNT: usize = 8;
    /// Their labels.
    pub const LABELS: [&str; COUNT] =
        ["other", "sleep", "block", "io_wait", "io_read", "io_write", "process", "resolve"];
}

const _: () = assert!(size_of::<CoroutineLayout>() == 24);
