//! Which module may import which: the invariants of the architecture, read from the source.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// A module, and the modules of the crate that it may name. A path allows what is below it.
/// Data flows from the kernel to the exporters, and a module names only what stands before it.
const ALLOWED: &[(&str, &[&str])] = &[
    ("clock", &[]),
    ("event", &[]),
    ("histogram", &[]),
    ("launch", &[]),
    ("status", &[]),
    ("decode", &["event"]),
    ("recording", &["event", "decode"]),
    ("trace", &[]),
    ("target", &["event", "status"]),
    ("kernel", &["event", "histogram", "status", "target"]),
    ("runtime", &["event", "status", "target"]),
    ("model", &["event", "histogram", "status"]),
    ("diagnosis", &["histogram", "status", "model::snapshot"]),
    ("budget", &["event", "status"]),
    ("remote", &[]),
    ("cluster", &["remote"]),
    ("discovery", &["cluster", "target"]),
    ("metrics", &["event", "histogram", "status", "model::snapshot"]),
    ("export", &["event", "histogram", "status", "metrics", "model::snapshot", "remote"]),
    (
        "session",
        &[
            "budget",
            "clock",
            "decode",
            "diagnosis",
            "event",
            "histogram",
            "kernel",
            "model",
            "runtime",
            "status",
            "target",
            "trace",
        ],
    ),
];

/// Modules that wire the others together: they may name all, and none may name them.
const WIRING: &[&str] = &["lib", "main", "cli", "command"];

struct File {
    /// Its module, as `model::table`.
    module: String,
    /// Its code without comments and strings' contents of lines that are comments.
    code: Vec<String>,
}

impl File {
    fn top(&self) -> &str {
        self.module.split("::").next().unwrap_or_default()
    }
}

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../profiler/src")
}

fn files() -> Vec<File> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).expect("the source") {
            let path = entry.expect("the source").path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    walk(&source(), &mut found);
    found.sort();
    found.iter().map(|path| file(path)).collect()
}

fn file(path: &Path) -> File {
    let relative = path.strip_prefix(source()).expect("below the source").with_extension("");
    let mut parts: Vec<_> = relative.iter().map(|part| part.to_string_lossy().into_owned()).collect();
    if parts.len() > 1 && parts.last().is_some_and(|last| last == "mod") {
        parts.pop();
    }
    let text = fs::read_to_string(path).expect("the source");
    let code = text.lines().map(|line| line.split("//").next().unwrap_or_default().to_owned()).collect();
    File { module: parts.join("::"), code }
}

/// Paths that follow `prefix` in `code`, with the groups of a `use` expanded one level: `a::{b, c}` is `a::b`, `a::c`.
fn paths(code: &str, prefix: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (at, _) in code.match_indices(prefix) {
        if code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '$' || c == ':') {
            continue;
        }
        let rest = &code[at + prefix.len()..];
        let end = rest.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':')).unwrap_or(rest.len());
        let path = &rest[..end];
        match rest[end..].strip_prefix('{') {
            Some(group) => {
                for item in items(group) {
                    found.insert(format!("{path}{item}"));
                }
            }
            None => {
                found.insert(path.to_owned());
            }
        }
    }
    found
}

/// The heads of the items of a brace group, up to its closing brace.
fn items(group: &str) -> Vec<String> {
    let (mut depth, mut items, mut item) = (1, Vec::new(), String::new());
    for c in group.chars() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 || (depth == 1 && c == ',') {
            items.push(std::mem::take(&mut item));
        } else if depth == 1 && c != '}' {
            item.push(c);
        }
        if depth == 0 {
            break;
        }
    }
    items
        .into_iter()
        .map(|item| item.trim().trim_end_matches("::").to_owned())
        .filter(|item| !item.is_empty())
        .collect()
}

fn allows(allowed: &str, path: &str) -> bool {
    path == allowed || path.strip_prefix(allowed).is_some_and(|rest| rest.starts_with("::"))
}

/// What is wrong with the imports of `files`.
fn violations(files: &[File]) -> Vec<String> {
    let mut wrong = Vec::new();
    for file in files {
        let code = file.code.join("\n");
        let top = file.top();
        let imports = paths(&code, "crate::");
        let mut refuse = |what: &str| wrong.push(format!("{} names {what}", file.module));
        if top != "kernel" {
            for aya in ["aya::", "aya_obj::", "aya_log::"] {
                paths(&code, aya).iter().for_each(|path| refuse(&format!("{aya}{path}")));
            }
        }
        if top == "model" {
            for clock in ["Instant::now", "SystemTime", "std::fs", "std::net", "std::io", "tokio::", "async fn"] {
                if code.contains(clock) {
                    refuse(clock);
                }
            }
        }
        if top == "runtime" {
            // A runtime's folder names itself and what all share, which is in the parent's own file.
            let own = file.module.split("::").nth(1);
            for path in imports.iter().filter(|path| allows("runtime", path)) {
                let other = path.split("::").nth(1).filter(|name| is_runtime(files, name));
                if own.is_some() && other.is_some() && own != other {
                    refuse(&format!("another runtime: crate::{path}"));
                }
            }
        }
        if WIRING.contains(&top) {
            continue;
        }
        let Some((_, allowed)) = ALLOWED.iter().find(|(module, _)| *module == top) else {
            refuse("no place in the table of this test: add a row");
            continue;
        };
        for path in &imports {
            if !allows(top, path) && !allowed.iter().any(|allowed| allows(allowed, path)) {
                refuse(&format!("crate::{path}"));
            }
        }
    }
    wrong
}

fn is_runtime(files: &[File], name: &str) -> bool {
    let module = format!("runtime::{name}");
    files.iter().any(|file| allows(&module, &file.module))
}

#[test]
fn modules_import_only_what_stands_before_them() {
    let files = files();
    assert!(files.len() > 10, "the source was not found");
    let wrong = violations(&files);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Check that the test sees what it must refuse.
#[test]
fn forbidden_imports_are_found() {
    let file = |module: &str, code: &str| File { module: module.into(), code: vec![code.to_owned()] };
    let refused = [
        file("model::table", "use crate::runtime::Plan;"),
        file("model::table", "let t = std::time::Instant::now();"),
        file("runtime::ruby", "use crate::runtime::tokio::Tokio;"),
        file("runtime::ruby", "use crate::{event::TaskEvent, kernel::ring};"),
        file("export::http", "use crate::model::{snapshot::Snapshot, table::Table};"),
        file("metrics::table", "use crate::export::http;"),
        file("target::process", "use aya::Ebpf;"),
        file("drawer", "fn f() {}"),
    ];
    for refused in refused {
        let name = format!("{}: {}", refused.module, refused.code[0]);
        let known = file("runtime::tokio", "");
        assert_eq!(violations(&[refused, known]).len(), 1, "{name}");
    }
    let fine = file("export::http", "use crate::model::{snapshot::Snapshot};\nuse crate::metrics::{self, Own};");
    assert_eq!(violations(&[fine]), Vec::<String>::new());
}
