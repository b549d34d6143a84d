use proptest::prelude::*;

use super::*;

/// Asks every runtime about a damaged file.
fn detect_all(data: &[u8]) {
    let Ok(binary) = Binary::parse(data) else { return };
    for runtime in RUNTIMES {
        let _ = runtime.detect(&binary);
    }
}

fn own() -> Vec<u8> {
    let path = std::env::current_exe().expect("a test runs from a file");
    std::fs::read(path).expect("a running executable can be read")
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 6, failure_persistence: None, ..ProptestConfig::default() })]

    /// Check that no runtime panics at a damaged binary: few cases, as each takes a while unoptimised.
    #[test]
    fn damaged_binaries_are_survived(
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..200),
        end in any::<prop::sample::Index>(),
    ) {
        let mut data = own();
        for (at, value) in flips {
            let at = at.index(data.len());
            data[at] = value;
        }
        detect_all(&data);
        detect_all(&data[..end.index(data.len())]);
    }
}
