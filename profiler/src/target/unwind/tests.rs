use proptest::prelude::*;

use super::*;

fn own() -> Vec<u8> {
    let path = std::env::current_exe().expect("a test runs from a file");
    std::fs::read(path).expect("a running executable can be read")
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]

    /// Check that no stack makes us panic or walk without end, with whole tables and with damaged ones.
    #[test]
    fn any_stack_is_survived(
        at in any::<prop::sample::Index>(),
        words in prop::collection::vec((any::<prop::sample::Index>(), any::<u64>(), any::<bool>()), 0..512),
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..64),
    ) {
        let data = own();
        let binary = Binary::parse(&data).expect("an own file");
        let unwinder = Unwinder::of(&binary).expect("an own file has tables");
        let function = |index: prop::sample::Index| binary.functions[index.index(binary.functions.len())].start + 1;
        // Half of the words lead to functions, so that frames are found at all.
        let bytes: Vec<u8> = words
            .iter()
            .flat_map(|&(index, word, code)| if code { function(index) } else { word }.to_le_bytes())
            .collect();
        let mut registers = [0x7fff_0000; REGISTERS];
        registers[16] = function(at);
        let stack = CopiedStack { registers, bytes: &bytes };
        let frames = unwinder.frames(&data, 0, &stack);
        prop_assert!(!frames.is_empty() && frames.len() <= MAX_FRAMES);
        let mut damaged = data.clone();
        let table = unwinder.table.1.clone();
        for (place, value) in flips {
            let place = table.start + place.index(table.len());
            damaged[place] = value;
        }
        prop_assert!(unwinder.frames(&damaged, 0, &stack).len() <= MAX_FRAMES);
        // A file that became shorter has no frames, and that is all.
        prop_assert!(unwinder.frames(&data[..table.start], 0, &stack).is_empty());
    }
}
