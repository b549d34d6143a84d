//! Recorded streams: the ring's records in a file, to be replayed. Never what is in a record.
//!
//! The file is [`MAGIC`], then per record its length (32 bits) and its bytes, all in the byte order of the machine
//! that recorded it; a machine of the other order sees another magic.

use std::io::{self, Read, Write};

/// The first bytes of a recorded stream; the last part is the version, in the recording machine's byte order.
pub const MAGIC: [u8; 8] = {
    let [a, b] = 1u16.to_ne_bytes();
    [b'P', b'R', b'O', b'F', b'R', b'E', a, b]
};

/// Longest record that is read, bytes: a damaged length must not become an allocation.
const LONGEST: usize = 64 * 1024;

/// A stream that could not be replayed.
#[derive(Debug, thiserror::Error)]
pub enum RecordingError {
    /// It does not begin as one does.
    #[error("failed to read recorded stream: it does not begin with its magic")]
    Magic,
    /// A record is longer than any.
    #[error("failed to read recorded stream: a record of {length} bytes")]
    Long {
        /// Its length in bytes.
        length: usize,
    },
    /// It could not be read, or ends within a record.
    #[error("failed to read recorded stream: {0}")]
    Io(#[from] io::Error),
}

/// Writes a recorded stream.
pub struct Writer<W> {
    out: W,
}

impl<W: Write> Writer<W> {
    /// Begins a stream.
    ///
    /// # Errors
    /// `out` refused the magic.
    pub fn new(mut out: W) -> io::Result<Writer<W>> {
        out.write_all(&MAGIC)?;
        Ok(Writer { out })
    }

    /// Appends one record as it left the ring.
    ///
    /// # Errors
    /// `out` refused it, or it is longer than what can be read back.
    pub fn write(&mut self, record: &[u8]) -> io::Result<()> {
        if record.len() > LONGEST {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the record is too long"));
        }
        self.out.write_all(&(record.len() as u32).to_ne_bytes())?;
        self.out.write_all(record)
    }

    /// Ends the stream.
    ///
    /// # Errors
    /// `out` could not be flushed.
    pub fn finish(mut self) -> io::Result<W> {
        self.out.flush()?;
        Ok(self.out)
    }
}

/// Reads a recorded stream.
pub struct Reader<R> {
    input: R,
    record: Vec<u8>,
}

impl<R: Read> Reader<R> {
    /// Opens a stream.
    ///
    /// # Errors
    /// It is none, or it could not be read.
    pub fn new(mut input: R) -> Result<Reader<R>, RecordingError> {
        let mut magic = [0; MAGIC.len()];
        input.read_exact(&mut magic)?;
        if magic != MAGIC {
            return Err(RecordingError::Magic);
        }
        Ok(Reader { input, record: Vec::new() })
    }

    /// The next record; `None` at the end of the stream.
    ///
    /// # Errors
    /// It could not be read, or the stream ends within it.
    pub fn read(&mut self) -> Result<Option<&[u8]>, RecordingError> {
        let mut length = [0; 4];
        let first = loop {
            match self.input.read(&mut length) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                other => break other?,
            }
        };
        if first == 0 {
            return Ok(None);
        }
        self.input.read_exact(&mut length[first..])?;
        let length = u32::from_ne_bytes(length) as usize;
        if length > LONGEST {
            return Err(RecordingError::Long { length });
        }
        self.record.resize(length, 0);
        self.input.read_exact(&mut self.record)?;
        Ok(Some(&self.record))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn written(records: &[Vec<u8>]) -> Vec<u8> {
        let mut writer = Writer::new(Vec::new()).unwrap();
        for record in records {
            writer.write(record).unwrap();
        }
        writer.finish().unwrap()
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            records in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..80), 0..20),
        ) {
            let stream = written(&records);
            let mut reader = Reader::new(&stream[..]).unwrap();
            for record in &records {
                prop_assert_eq!(reader.read().unwrap(), Some(&record[..]));
            }
            prop_assert!(reader.read().unwrap().is_none());
        }

        /// Check that a damaged stream ends in an error or early, and never in a panic.
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let stream = [&MAGIC[..], &bytes].concat();
            let mut reader = Reader::new(&stream[..]).unwrap();
            while let Ok(Some(_)) = reader.read() {}
        }
    }

    #[test]
    fn a_stream_that_ends_within_a_record_is_an_error() {
        let stream = written(&[vec![1, 2, 3]]);
        let mut reader = Reader::new(&stream[..stream.len() - 1]).unwrap();
        assert!(matches!(reader.read(), Err(RecordingError::Io(_))));
        assert!(matches!(Reader::new(&b"not one!"[..]), Err(RecordingError::Magic)));
    }
}
