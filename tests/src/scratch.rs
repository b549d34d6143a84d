//! Files and folders of a test's own that are gone when the test is over.

use std::fs;
use std::path::PathBuf;

/// Where a file may be. Nothing is there at first.
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

/// A folder. It is empty at first.
pub struct Folder(pub PathBuf);

impl Folder {
    /// A folder of this process's own.
    ///
    /// # Panics
    /// It cannot be made.
    pub fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("profiler-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir(&path).expect("a folder of our own");
        Folder(path)
    }

    /// Where something in it may be.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Writes a file, and says where it is.
    ///
    /// # Panics
    /// It cannot be written.
    pub fn write(&self, name: &str, text: &str) -> String {
        let path = self.path(name);
        fs::write(&path, text).expect("a file of our own");
        path.display().to_string()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
