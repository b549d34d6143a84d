//! Which Tokio a binary was built with, from the source paths that its panic locations keep.

use std::fmt;

/// A release of Tokio 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Version {
    /// The second number.
    pub(super) minor: u32,
    /// The third number.
    pub(super) patch: u32,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "1.{}.{}", self.minor, self.patch)
    }
}

/// How a source path of Tokio begins.
const PREFIX: &[u8] = b"tokio-1.";

impl Version {
    /// The newest version that `data` names by a path such as `tokio-1.54.1/src/`.
    pub(super) fn find(data: &[u8]) -> Option<Version> {
        let mut newest = None;
        let mut rest = data;
        while let Some(at) = position(rest, PREFIX) {
            rest = &rest[at + PREFIX.len()..];
            newest = newest.max(parse(&rest[..rest.len().min(32)]));
        }
        newest
    }
}

/// Parses `54.1/src/…`.
fn parse(text: &[u8]) -> Option<Version> {
    let (minor, rest) = number(text)?;
    let (patch, rest) = number(rest.strip_prefix(b".")?)?;
    // Pre-releases are not in the tables of layouts, and are not used in production.
    rest.starts_with(b"/src/").then_some(Version { minor, patch })
}

fn number(text: &[u8]) -> Option<(u32, &[u8])> {
    let digits = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let value = std::str::from_utf8(&text[..digits]).ok()?.parse().ok()?;
    Some((value, &text[digits..]))
}

/// The first position of `needle` in `haystack` (Horspool's search).
pub(super) fn position(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    let last = needle.len() - 1;
    let mut skip = [needle.len(); 256];
    for (index, &byte) in needle[..last].iter().enumerate() {
        skip[usize::from(byte)] = last - index;
    }
    let mut at = 0;
    while let Some(window) = haystack.get(at..at + needle.len()) {
        if window == needle {
            return Some(at);
        }
        at += skip[usize::from(window[last])];
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Check that we read the version from a path, and only from a path.
    #[test]
    fn versions_are_read_from_paths() {
        let find = |text: &str| Version::find(text.as_bytes());
        assert_eq!(find("xx/tokio-1.54.1/src/runtime/mod.rs"), Some(Version { minor: 54, patch: 1 }));
        assert_eq!(find("tokio-1.tokio-1.9.0/src/a tokio-1.44.2/src/b"), Some(Version { minor: 44, patch: 2 }));
        assert_eq!(find("tokio-1.54.1/docs"), None);
        assert_eq!(find("tokio-1.99999999999.1/src/"), None);
        assert_eq!(find("tokio-1."), None);
    }
}
