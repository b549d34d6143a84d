use super::*;

const BASE: u64 = 0x1000;

fn site(bytes: &[u8]) -> Option<Site> {
    in_body(&Body::of(bytes, BASE), BASE, Register::RDI)
}

fn found(offset: u64, argument: Argument, displacement: i16) -> Option<Site> {
    Some(Site { address: BASE + offset, argument, displacement, emulated: true })
}

/// Check that we take the entry itself where it can be emulated.
#[test]
fn a_push_at_the_entry_is_taken() {
    assert_eq!(site(&[0x41, 0x57, 0xc3]), found(0, Argument::Rdi, 0));
    assert_eq!(site(&[0xe9, 0, 0, 0, 0]), found(0, Argument::Rdi, 0));
}

/// Check that we do not take what kernels reject or single-step: prefixed pushes, calls and long nops.
#[test]
fn prefixed_instructions_are_passed() {
    // data16 push di; nopw; push rbx
    assert_eq!(site(&[0x66, 0x57, 0x66, 0x0f, 0x1f, 0x00, 0x53]), found(6, Argument::Rdi, 0));
    // rex.w push rdi
    assert_eq!(site(&[0x48, 0x57, 0x90]), found(2, Argument::Rdi, 0));
}

/// Check that we follow the argument through registers and stack slots.
#[test]
fn the_argument_is_followed() {
    // mov rbx, rdi; xor edi, edi; test eax, eax; je +0
    assert_eq!(site(&[0x48, 0x89, 0xfb, 0x31, 0xff, 0x85, 0xc0, 0x74, 0]), found(7, Argument::Rbx, 0));
    // sub rsp, 24; mov [rsp+8], rdi; xor edi, edi; je +0
    assert_eq!(
        site(&[0x48, 0x83, 0xec, 24, 0x48, 0x89, 0x7c, 0x24, 8, 0x31, 0xff, 0x74, 0]),
        found(11, Argument::Stack, 8)
    );
}

/// Check that we refuse a site that a loop executes again.
#[test]
fn a_loop_is_refused() {
    // top: mov rax, [rdi]; lock cmpxchg [rdi], rcx; jne top (to +3)
    assert_eq!(site(&[0x48, 0x8b, 0x07, 0xf0, 0x48, 0x0f, 0xb1, 0x0f, 0x75, 0xf9]), None);
}

/// Check that we give up where the argument is lost.
#[test]
fn a_lost_argument_is_no_site() {
    // xor edi, edi; je +0
    assert_eq!(site(&[0x31, 0xff, 0x74, 0]), None);
}
