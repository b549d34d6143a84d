//! Reading memory that is not ours: BTF-typed kernel pointers, other kernel memory, the target's memory.

use aya_ebpf::helpers::generated::bpf_probe_read_user as bpf_probe_read_user_raw;
use aya_ebpf::helpers::{bpf_probe_read_kernel, bpf_probe_read_user};

/// Reads a member through a pointer that the verifier knows to be of a BTF type.
///
/// # Safety
/// `base` came from a BTF tracepoint's argument, and a `T` is at `offset` in it, as BTF says.
#[inline(always)]
pub unsafe fn member<T: Copy>(base: *const u8, offset: usize) -> T {
    // SAFETY: the caller's; the verifier turns it into a faulting-safe load.
    unsafe { *base.add(offset).cast::<T>() }
}

/// Reads a word of kernel memory.
#[inline(always)]
pub fn kernel(address: u64) -> Option<u64> {
    // SAFETY: the helper checks the address.
    unsafe { bpf_probe_read_kernel(address as *const u64) }.ok()
}

/// Reads a half word of kernel memory.
#[inline(always)]
pub fn kernel_u32(address: u64) -> Option<u32> {
    // SAFETY: the helper checks the address.
    unsafe { bpf_probe_read_kernel(address as *const u32) }.ok()
}

/// Reads a word of the current process.
#[inline(always)]
pub fn user(address: u64) -> Option<u64> {
    // SAFETY: the helper checks the address.
    unsafe { bpf_probe_read_user(address as *const u64) }.ok()
}

/// Reads words of the current process; false where one of them cannot be read.
#[inline(always)]
pub fn user_words<const N: usize>(address: u64, words: &mut [u64; N]) -> bool {
    user_bytes(address, words.as_mut_ptr().cast(), N * 8)
}

/// Reads `length` bytes of the current process to `to`, which has room for them; false where they cannot be read.
#[inline(always)]
pub fn user_bytes(address: u64, to: *mut u8, length: usize) -> bool {
    // SAFETY: the destination is as long as the callers say; the helper checks the source.
    unsafe { bpf_probe_read_user_raw(to.cast(), length as u32, address as *const _) == 0 }
}
