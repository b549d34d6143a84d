//! A file of a test's own that is gone when the test is over.

use std::fs;
use std::path::PathBuf;

/// Where it may be. Nothing is there at first.
pub struct Scratch(pub PathBuf);

impl Scratch {
    /// A place for a file, of this process's own.
    pub fn new(name: &str) -> Scratch {
        let path = std::env::temp_dir().join(format!("profiler-{name}-{}", std::process::id()));
        let _ = fs::remove_file(&path);
        Scratch(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}
