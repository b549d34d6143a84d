use iced_x86::{Decoder, DecoderOptions};

use super::*;
use crate::target::elf::Binary;

fn with_own(test: impl FnOnce(&Binary<'_>)) {
    let path = std::env::current_exe().expect("a test runs from a file");
    let data = std::fs::read(path).expect("a running executable can be read");
    test(&Binary::parse(&data).expect("an own file"));
}

/// Check that what an argument holds is told along straight code, and that a call forgets it.
#[test]
fn arguments_are_followed() {
    // lea rbx,[rip+0x10]; mov rsi,rbx; call +0
    let code = [0x48, 0x8d, 0x1d, 0x10, 0, 0, 0, 0x48, 0x89, 0xde, 0xe8, 0, 0, 0, 0];
    with_own(|binary| {
        let mut held = Held::new();
        let mut steps = Decoder::with_ip(64, &code, 0x1000, DecoderOptions::NONE).into_iter();
        steps.by_ref().take(2).for_each(|instruction| held.follow(binary, &instruction));
        assert_eq!(held.arguments().nth(1), Some(Value::Data(0x1017)));
        steps.for_each(|instruction| held.follow(binary, &instruction));
        assert_eq!(held.arguments().nth(1), Some(Value::Other));
    });
}

/// Check that what a loop needs is found where it is set, ahead of the loop.
#[test]
fn a_register_is_traced_out_of_a_loop() {
    // lea r15,[rip+0x10]; dec rbx; call +0; jne to the dec
    let code = [0x4c, 0x8d, 0x3d, 0x10, 0, 0, 0, 0x48, 0xff, 0xcb, 0xe8, 0, 0, 0, 0, 0x75, 0xf6];
    with_own(|binary| {
        let body = Body::of(&code, 0x1000);
        assert_eq!(held::before(binary, &body, 2, 15), [0x1017]);
        // What calls overwrite, and what nobody set.
        assert!(held::before(binary, &body, 3, 7).is_empty());
        assert!(held::before(binary, &body, 2, 14).is_empty());
    });
}
