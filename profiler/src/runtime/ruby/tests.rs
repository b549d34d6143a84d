use super::*;

/// Check that libraries are told by their names, of both forms, and others are not.
#[test]
fn libraries() {
    for name in ["libruby-3.1.so.3.1", "libruby.so.3.3", "libruby-3.3.so.3.3.8"] {
        assert!(is_library(name), "{name}");
    }
    for name in ["libruby.so", "libruby2.so.1.0", "librubyish.so.3.1", "libruby.so.three", "libruby.so.3", "libc.so.6"]
    {
        assert!(!is_library(name), "{name}");
    }
}

/// Check that this program, which has no interpreter, is not taken for one.
#[test]
fn others_are_not_ruby() {
    let data = std::fs::read("/proc/self/exe").expect("this program");
    let binary = Binary::parse(&data).expect("it is ELF");
    assert!(binary.needed.iter().any(|library| library.starts_with("libc.so")), "{:?}", binary.needed);
    assert!(Ruby.detect(&binary).expect("it is not broken").is_none());
}
