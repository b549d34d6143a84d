//! Places in an application's sources. Never how they are found.

use std::fmt;

/// Where in the application tasks are spawned.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SpawnSite {
    /// The call of what spawns.
    Line {
        /// Path of the source file, as the compiler was given it.
        file: String,
        /// Line, from 1.
        line: u32,
        /// Column, from 1, where it is known.
        column: Option<u32>,
    },
    /// A function that spawns, where no more is known.
    Function(String),
    /// A source file of a function that spawns, where no more is known.
    File(String),
}

impl SpawnSite {
    /// For people and labels: the last parts of the path and the line.
    pub fn short(&self) -> String {
        match self {
            SpawnSite::Line { file, line, .. } => format!("{}:{line}", short_path(file)),
            SpawnSite::Function(name) => format!("in {name}"),
            SpawnSite::File(file) => format!("in {}", short_path(file)),
        }
    }
}

impl fmt::Display for SpawnSite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SpawnSite::Line { file, line, column: Some(column) } => write!(f, "{file}:{line}:{column}"),
            SpawnSite::Line { file, line, column: None } => write!(f, "{file}:{line}"),
            SpawnSite::Function(name) | SpawnSite::File(name) => write!(f, "in {name}"),
        }
    }
}

/// The last parts of a path, from the directory above `src`: `cart/src/http/mod.rs`.
pub fn short_path(file: &str) -> String {
    let parts: Vec<&str> = file.split('/').filter(|part| !matches!(*part, "" | "." | "..")).collect();
    let source = parts.iter().rposition(|&part| part == "src");
    let from = match source {
        // A path within a workspace names the crate in front of `src`; an absolute one does too.
        Some(source) => source.saturating_sub(1),
        None => parts.len().saturating_sub(2),
    };
    parts[from..].join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Check that we keep what tells files apart, and drop where they were built.
    #[test]
    fn paths_are_shortened() {
        let short = |file: &str| SpawnSite::Line { file: file.to_owned(), line: 7, column: Some(3) }.short();
        assert_eq!(short("src/main.rs"), "src/main.rs:7");
        assert_eq!(short("/build/shop/crates/cart/src/http/mod.rs"), "cart/src/http/mod.rs:7");
        assert_eq!(short("examples/echo.rs"), "examples/echo.rs:7");
        assert_eq!(short("../src/main.rs"), "src/main.rs:7");
        assert_eq!(SpawnSite::Function("shop::serve".to_owned()).short(), "in shop::serve");
    }
}
