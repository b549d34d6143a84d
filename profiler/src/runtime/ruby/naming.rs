//! Names of fibers: the file and line of the block that a fiber runs, read from the process's memory.

use profiler_common::event::TaskRecord;

use super::layout::Layout;
use crate::runtime::{Naming, SpawnSite, TaskType};
use crate::target::memory::{Batch, Memory};

/// Kinds of objects, in the lower bits of their flags (include/ruby/internal/value_type.h).
const KIND: u64 = 0x1f;
const STRING: u64 = 5;
const ARRAY: u64 = 7;
/// Set of a String that is not embedded, and of an Array that is (FL_USER1).
const USER1: u64 = 1 << 13;
/// A longer path is none.
const LONGEST: usize = 4096;
/// A line beyond is none.
const LAST_LINE: u64 = 10_000_000;
/// Directories of libraries: a block in one of them that was given another one to run is named after that.
const LIBRARIES: [&str; 5] = ["/gems/", "/lib/ruby/", "/vendor_ruby/", "/site_ruby/", "<internal:"];

/// Names the fibers of one version.
pub struct Names(pub Layout);

impl Naming for Names {
    fn name(&self, memory: &dyn Memory, record: &TaskRecord) -> Option<TaskType> {
        let own = self.place(memory, record.task)?;
        let is_library = LIBRARIES.iter().any(|library| own.0.contains(library));
        let given = (is_library && record.id != 0).then(|| self.place(memory, record.id)).flatten();
        let (file, line) = given.unwrap_or(own);
        let place = SpawnSite::Line { file, line, column: None };
        Some(TaskType { name: place.short(), full_name: Some(place.to_string()), ..fiber() })
    }

    fn unknown(&self) -> TaskType {
        fiber()
    }
}

/// A fiber whose code is not known: written in C, or gone.
fn fiber() -> TaskType {
    TaskType {
        name: "fiber".to_owned(),
        full_name: None,
        aliases: Vec::new(),
        blocking: false,
        internal: false,
        spawn_sites: Vec::new(),
    }
}

impl Names {
    /// File and first line of a block's code.
    fn place(&self, memory: &dyn Memory, code: u64) -> Option<(String, u32)> {
        let body = word(memory, code.checked_add(self.0.body)?)?;
        let mut batch = Batch::default();
        let path = batch.add(body.checked_add(self.0.path)?, 8);
        let line = batch.add(body.checked_add(self.0.line)?, 8);
        batch.read(memory).ok()?;
        let (path, line) = (batch.word(path, 0)?, batch.word(line, 0)?);
        let line = match self.0.line_is_fixnum {
            true if line & 1 == 1 => line >> 1,
            true => return None,
            false => line & u64::from(u32::MAX),
        };
        let line = (1..=LAST_LINE).contains(&line).then_some(line as u32)?;
        Some((self.path(memory, path)?, line))
    }

    /// A path: a String, or an Array of the path and the real one.
    fn path(&self, memory: &dyn Memory, object: u64) -> Option<String> {
        let flags = word(memory, object)?;
        let string = match flags & KIND {
            STRING => object,
            ARRAY if flags & USER1 != 0 => word(memory, object.checked_add(16)?)?,
            ARRAY => word(memory, word(memory, object.checked_add(32)?)?)?,
            _ => return None,
        };
        self.string(memory, string)
    }

    fn string(&self, memory: &dyn Memory, object: u64) -> Option<String> {
        let mut batch = Batch::default();
        let span = batch.add(object, 32);
        batch.read(memory).ok()?;
        let (flags, second, third) = (batch.word(span, 0)?, batch.word(span, 16)?, batch.word(span, 24)?);
        if flags & KIND != STRING {
            return None;
        }
        let (length, start) = match (flags & USER1 != 0, self.0.string_has_length) {
            (true, _) => (second, third),
            (false, true) => (second, object.checked_add(24)?),
            (false, false) => (flags >> 14 & 0x1f, object.checked_add(16)?),
        };
        let length = usize::try_from(length).ok().filter(|length| (1..=LONGEST).contains(length))?;
        let mut batch = Batch::default();
        let text = batch.add(start, length);
        batch.read(memory).ok()?;
        // What is no text is no path, and no label either.
        let text = std::str::from_utf8(batch.bytes(text)?).ok()?;
        (!text.chars().any(char::is_control)).then(|| text.to_owned())
    }
}

fn word(memory: &dyn Memory, address: u64) -> Option<u64> {
    let mut batch = Batch::default();
    let span = batch.add(address, 8);
    batch.read(memory).ok()?;
    batch.word(span, 0)
}
