//! Where each version keeps what is read: the tables of `layouts.toml`. Never read from memory here.

use std::sync::LazyLock;

use profiler_common::coroutine::CoroutineLayout;
use serde::Deserialize;

/// Where one version keeps what is read. Offsets in bytes; see `layouts.toml` for the source of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields {
    before: u16,
    procedure: u16,
    state: u16,
    handle: u16,
    environment: u16,
    code: u16,
    block_kind: u16,
    body: u16,
    path: u16,
    line: u16,
    line_is_fixnum: bool,
    local_bit: u16,
    string_has_length: bool,
    collections_before: u64,
    phases_apart: u64,
}

/// The layout of a version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// What the probe reads.
    pub coroutine: CoroutineLayout,
    /// Of the body in a block's code.
    pub body: u64,
    /// Of the path in the body: a String, or an Array that begins with one.
    pub path: u64,
    /// Of the first line in the body.
    pub line: u64,
    /// Whether the line is a Fixnum, rather than an int.
    pub line_is_fixnum: bool,
    /// Whether an embedded String has its length in a word of its own.
    pub string_has_length: bool,
    /// How far the count of collections is before the collector's first clock.
    pub collections_before: u64,
    /// How far its second clock is behind the first one; 0 where there is one.
    pub phases_apart: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    layout: Vec<Row>,
}

#[derive(Deserialize)]
struct Row {
    versions: Vec<String>,
    #[serde(flatten)]
    fields: Fields,
}

static FILE: LazyLock<Result<File, String>> =
    LazyLock::new(|| toml::from_str(include_str!("layouts.toml")).map_err(|e| e.to_string()));

/// The layout of a version, as `3.1`; `None` where it is not known.
pub fn of(version: &str) -> Option<Layout> {
    // That the file is whole is tested.
    let rows = &FILE.as_ref().ok()?.layout;
    let fields = rows.iter().find(|row| row.versions.iter().any(|known| known == version))?.fields;
    Some(Layout {
        coroutine: CoroutineLayout {
            before: fields.before,
            procedure: fields.procedure,
            state: fields.state,
            handle: fields.handle,
            environment: fields.environment,
            code: fields.code,
            block_kind: fields.block_kind,
            body: fields.body,
            line: fields.line,
            local_bit: fields.local_bit,
            span: 0,
        },
        body: fields.body.into(),
        path: fields.path.into(),
        line: fields.line.into(),
        line_is_fixnum: fields.line_is_fixnum,
        string_has_length: fields.string_has_length,
        collections_before: fields.collections_before,
        phases_apart: fields.phases_apart,
    })
}

/// The versions whose layout is known, in the order of the file.
pub fn versions() -> impl Iterator<Item = &'static str> {
    FILE.iter().flat_map(|file| &file.layout).flat_map(|row| row.versions.iter().map(String::as_str))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Check that the file is whole: each version once, and what the probe reads of a fiber in bounds.
    #[test]
    fn the_file_is_whole() {
        assert!(FILE.is_ok(), "{:?}", FILE.as_ref().err());
        let all: Vec<&str> = versions().collect();
        assert_eq!(all, ["3.0", "3.1", "3.2", "3.3", "3.4"]);
        for version in all {
            let fiber = of(version).expect("it is there").coroutine;
            assert!(fiber.before <= 48 && fiber.before.is_multiple_of(8), "{version}");
            assert!(fiber.procedure < fiber.before && fiber.state < fiber.before, "{version}");
        }
        assert_eq!(of("2.7"), None);
        assert_eq!(of("3.5"), None);
    }
}
