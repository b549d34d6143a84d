use proptest::prelude::*;

use super::*;

/// This test's own executable: a real binary with symbols, relocations and thread-local storage.
fn own() -> Vec<u8> {
    let path = std::env::current_exe().expect("a test runs from a file");
    std::fs::read(path).expect("a running executable can be read")
}

/// The head of an ELF file with one field changed.
fn head(field: usize, value: u8) -> Vec<u8> {
    let mut data = own();
    data[field] = value;
    data
}

/// A function that keeps its symbol: the compiler may inline a test into its harness.
#[inline(never)]
fn landmark(n: u64) -> u64 {
    std::hint::black_box(n).wrapping_mul(3)
}

/// Check that we read what the linker wrote into this very executable.
#[test]
fn the_own_executable_is_understood() {
    assert_eq!(landmark(std::hint::black_box(2)), 6);
    let data = own();
    let binary = Binary::parse(&data).expect("the linker's output is well-formed");
    let symbol = binary
        .symbols
        .iter()
        .find(|s| s.kind == SymbolKind::Function && s.name.contains("landmark"))
        .expect("a test binary has symbols");
    let function = binary.function_at(symbol.address + symbol.size / 2).expect("it is a function");
    assert_eq!(function.start, symbol.address);
    assert!(function.end - function.start >= symbol.size);
    assert!(binary.is_code(symbol.address));
    let offset = usize::try_from(binary.file_offset(symbol.address).expect("code is in the file")).expect("small");
    assert_eq!(binary.bytes_from(symbol.address).expect("code is in the file")[..8], data[offset..offset + 8]);
    assert!(binary.relocatable);
    let &(place, addend) = binary.relocations().first().expect("it is relocatable");
    assert_eq!(binary.word(place), Some(addend));
    let local = binary.thread_local.expect("std has thread-locals");
    assert!(local.from_thread_pointer(0).is_some_and(|distance| distance < 0));
}

/// Check that without symbols we still know where functions begin.
#[test]
fn functions_survive_stripping() {
    let data = own();
    let whole = Binary::parse(&data).expect("well-formed");
    // Without section headers there is no symbol table.
    let mut stripped = data.clone();
    stripped[0x28..0x30].fill(0);
    stripped[0x3a..0x40].fill(0);
    let stripped = Binary::parse(&stripped).expect("well-formed");
    assert!(stripped.symbols.is_empty());
    let known = |b: &Binary<'_>, start| b.functions.binary_search_by_key(&start, |f| f.start).is_ok();
    let (found, all) = (stripped.functions.iter().filter(|f| known(&whole, f.start)).count(), stripped.functions.len());
    assert!(all > 100 && found == all, "{found} of {all}");
}

/// Check that files which we do not support are told apart from broken ones.
#[test]
fn foreign_files_are_refused() {
    assert_eq!(Binary::parse(b"#!/bin/sh\n").err(), Some(ElfError::NotElf));
    assert_eq!(Binary::parse(&[]).err(), Some(ElfError::NotElf));
    assert_eq!(Binary::parse(&head(4, 1)).err(), Some(ElfError::Unsupported("not 64-bit")));
    assert_eq!(Binary::parse(&head(5, 2)).err(), Some(ElfError::Unsupported("not little-endian")));
    assert_eq!(Binary::parse(&head(18, 183)).err(), Some(ElfError::Unsupported("another machine")));
    let cut = &own()[..100];
    assert!(matches!(Binary::parse(cut), Err(ElfError::Malformed { .. })));
}

/// Uses everything that a parsed file offers.
fn use_all(data: &[u8]) {
    let Ok(binary) = Binary::parse(data) else { return };
    assert!(binary.functions.windows(2).all(|pair| pair[0].end <= pair[1].start));
    assert!(binary.relocations().len() <= data.len() / 8 * 2);
    for function in binary.functions.iter().step_by(97) {
        let _ = binary.bytes(function.start..function.end);
        let _ = binary.word(function.start);
        let _ = crate::target::site::from_entry(&binary, function, iced_x86::Register::RDI);
    }
    let _ = binary.symbols_at(0).count();
}

/// A small executable with the parts that matter: reading it thousands of times takes no time.
fn small() -> Vec<u8> {
    let candidates = ["/bin/true", "/usr/bin/true", "/bin/sh"];
    candidates.iter().find_map(|path| std::fs::read(path).ok()).unwrap_or_else(own)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// Check that no sequence of bytes makes us panic, with an ELF head in front so that we get beyond it.
    #[test]
    fn random_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..4096)) {
        use_all(&bytes);
        let mut headed = small()[..64].to_vec();
        headed.extend(bytes);
        use_all(&headed);
    }

    /// Check that changed bytes do not make us panic: in the headers, and anywhere.
    #[test]
    fn flipped_bytes_are_survived(flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>(), any::<bool>()), 1..40)) {
        let mut data = small();
        let headers = data.len().min(1024);
        for (at, value, anywhere) in flips {
            let at = at.index(if anywhere { data.len() } else { headers });
            data[at] = value;
        }
        use_all(&data);
    }

    /// Check that a file may end anywhere.
    #[test]
    fn truncations_are_survived(at in any::<prop::sample::Index>()) {
        let data = small();
        use_all(&data[..at.index(data.len())]);
    }
}

/// Check that a large binary with many changed bytes is survived too: a few, as each takes a while unoptimised.
#[test]
fn the_own_executable_may_be_damaged() {
    let whole = own();
    for round in 0..6u64 {
        let mut data = whole.clone();
        let mut state = round.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        for _ in 0..200 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let at = (state >> 20) as usize % data.len();
            data[at] = state as u8;
        }
        use_all(&data);
        use_all(&data[..data.len() / (round as usize + 1)]);
    }
}
