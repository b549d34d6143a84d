//! Reading and shortening the names of Rust types. Never where they come from.

/// Segments of a path that a short name keeps.
pub(super) const SEGMENTS: usize = 3;
/// Longer names lose their generic arguments.
const MAX_SHORT: usize = 80;

/// Whether a mangled symbol may name the future of a task. Few do, and only those are demangled.
pub(super) fn may_name(mangled: &str) -> bool {
    let holds =
        ["runtime..task..core..", "7runtime4task4core", "runtime4task3raw", "7runtime4task7harness", "4task4core"];
    holds.iter().any(|part| mangled.contains(part)) && (mangled.contains("drop_in_place") || mangled.starts_with("_R"))
}

/// The type of the future in a symbol that belongs to one type of task.
pub(super) fn future(mangled: &str) -> Option<String> {
    // LLVM appends its own suffix to promoted symbols.
    let mangled = mangled.split(".llvm.").next()?;
    let name = format!("{:#}", rustc_demangle::try_demangle(mangled).ok()?);
    let arguments = ["task::core::Cell<", "task::core::Stage<", "task::core::CoreStage<", "task::core::Core<"]
        .iter()
        .filter(|_| name.contains("drop_in_place"))
        .find_map(|holder| name.split_once(holder))
        .or_else(|| name.split_once("task::raw::poll::<"))
        .map(|(_, arguments)| arguments)?;
    let future = first(arguments);
    (!future.is_empty()).then(|| future.to_owned())
}

/// What a symbol names, if it is a function of the application's: none of the toolchain's or of the runtime's.
pub(in crate::runtime::tokio) fn function(mangled: &str) -> Option<String> {
    let mangled = mangled.split(".llvm.").next()?;
    let name = format!("{:#}", rustc_demangle::try_demangle(mangled).ok()?);
    let path = name.trim_start_matches(['<', '&', '*']);
    let foreign = ["core::", "std::", "alloc::", "tokio::", "dyn ", "[", "("].iter().any(|head| path.starts_with(head));
    let body = name.trim_end_matches("::{{closure}}");
    (!foreign && !body.is_empty()).then(|| body.to_owned())
}

/// The first of a list of generic arguments.
fn first(arguments: &str) -> &str {
    let mut depth = 0usize;
    let mut previous = ' ';
    for (at, letter) in arguments.char_indices() {
        match letter {
            '<' | '(' | '[' | '{' => depth += 1,
            // The arrow of a function type closes nothing.
            '>' if previous == '-' => {}
            '>' | ')' | ']' | '}' if depth == 0 => return &arguments[..at],
            '>' | ')' | ']' | '}' => depth -= 1,
            ',' if depth == 0 => return &arguments[..at],
            _ => {}
        }
        previous = letter;
    }
    arguments
}

/// The closure within a blocking task, and whether it was one.
pub(super) fn unwrap_blocking(future: &str) -> (&str, bool) {
    match future.strip_prefix("tokio::runtime::blocking::task::BlockingTask<") {
        Some(inner) => (first(inner), true),
        None => (future, false),
    }
}

/// Whether the runtime itself spawns it: the workers of a multi-thread runtime.
pub(super) fn is_internal(body: &str) -> bool {
    let body = body.trim_start_matches('<');
    body.starts_with("tokio::runtime::") && body.contains("worker")
}

/// A name for people: the last `segments` of each path, without the closure that an async function's body is.
pub(super) fn short(name: &str, segments: usize) -> String {
    let whole = shorten(name, segments);
    let name = if whole.chars().count() > MAX_SHORT { without_arguments(&whole) } else { whole };
    // One label must stay a label.
    match name.char_indices().nth(MAX_SHORT * 2) {
        Some((at, _)) => format!("{}…", &name[..at]),
        None => name,
    }
}

/// Shortens every path in a type.
fn shorten(name: &str, segments: usize) -> String {
    let mut short = String::new();
    let mut rest = name;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !is_path(c)).unwrap_or(rest.len());
        if end > 0 {
            short.push_str(&path(&rest[..end], segments));
            rest = &rest[end..];
        }
        let mut letters = rest.chars();
        if let Some(letter) = letters.next() {
            short.push(letter);
            rest = letters.as_str();
        }
    }
    short
}

fn is_path(letter: char) -> bool {
    letter.is_alphanumeric() || matches!(letter, '_' | ':' | '{' | '}' | '#')
}

/// Shortens one path.
fn path(path: &str, segments: usize) -> String {
    let mut parts: Vec<&str> = path.split("::").collect();
    // The body of an async function is a closure in it, and the only one of its name.
    if parts.len() > 1 && matches!(parts.last(), Some(&("{{closure}}" | "{closure#0}"))) {
        parts.pop();
    }
    // A closure says nothing without the function that it is in.
    let named = parts.iter().rposition(|part| !part.starts_with('{')).unwrap_or(0);
    let from = (named + 1).saturating_sub(segments.max(1)).min(named);
    parts[from..].join("::").replace("{{closure}}", "{closure}")
}

/// Drops everything between angle brackets that follow a name.
fn without_arguments(name: &str) -> String {
    let mut kept = String::new();
    let mut depth = 0usize;
    let mut previous = ' ';
    for letter in name.chars() {
        match letter {
            // `<T as Trait>::method` begins with a bracket that is no list of arguments.
            '<' if depth > 0 || is_path(previous) => depth += 1,
            '>' if depth > 0 && previous != '-' => depth -= 1,
            _ if depth == 0 => kept.push(letter),
            _ => {}
        }
        previous = letter;
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Check that we read the future from drop glue, in both manglings.
    #[test]
    fn futures_are_read_from_symbols() {
        let legacy = "_ZN4core3ptr104drop_in_place$LT$tokio..runtime..task..core..Stage$LT$sample..worky..$u7b$$u7b$closure\
                      $u7d$$u7d$$GT$$GT$17hc3552cac1af1ab7eE.llvm.4490183991129919288";
        assert!(may_name(legacy));
        assert_eq!(future(legacy).as_deref(), Some("sample::worky::{{closure}}"));
        assert_eq!(future("_ZN3std2io5stdio6_print17h0123456789abcdefE"), None);
    }

    /// Check that we take the first argument, however it is nested.
    #[test]
    fn the_first_argument_is_taken() {
        assert_eq!(first("a::B<c::D, e::F>, g::H>>"), "a::B<c::D, e::F>");
        assert_eq!(first("fn(u8) -> u8, g::H>"), "fn(u8) -> u8");
        assert_eq!(first("a::{closure#0}>"), "a::{closure#0}");
    }

    /// Check that names are short, and closures keep the function that they are in.
    #[test]
    fn names_are_short() {
        let check = |name: &str, expected: &str| assert_eq!(short(name, SEGMENTS), expected);
        check("app::handle_connection::{{closure}}", "app::handle_connection");
        check("app::handle_connection::{closure#0}", "app::handle_connection");
        check("app::main::{{closure}}::{{closure}}", "app::main::{closure}");
        check("app::main::{closure#0}::{closure#2}", "app::main::{closure#0}::{closure#2}");
        check("a::b::c::d::handle::{{closure}}", "c::d::handle");
        check("a::b::c::Timed<d::e::f::g::{{closure}}>", "b::c::Timed<e::f::g>");
        check("<a::B as c::D>::run::{{closure}}", "<a::B as c::D>::run");
    }

    /// Check that we unwrap blocking tasks, and know the runtime's own.
    #[test]
    fn blocking_tasks_are_unwrapped() {
        let task = "tokio::runtime::blocking::task::BlockingTask<app::main::{{closure}}::{{closure}}>";
        assert_eq!(unwrap_blocking(task), ("app::main::{{closure}}::{{closure}}", true));
        assert!(is_internal("tokio::runtime::scheduler::multi_thread::worker::Launch::launch::{{closure}}"));
        assert!(!is_internal("tokio::fs::asyncify<app::main>::{{closure}}"));
    }
}
