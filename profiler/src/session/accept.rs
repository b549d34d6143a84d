//! Which listening socket is counted in which slot of the kernel half.

use std::collections::HashMap;

use crate::kernel::KernelError;
use crate::kernel::load::Kernel;
use crate::kernel::maps::LISTENER_SLOTS;

/// Slots in use, by the socket's cookie.
#[derive(Default)]
pub(super) struct Slots {
    by_cookie: HashMap<u64, Slot>,
    free: Vec<u32>,
    unused: u32,
}

struct Slot {
    number: u32,
    port: u16,
}

impl Slots {
    /// The slot of a socket.
    pub fn get(&self, cookie: u64) -> Option<u32> {
        Some(self.by_cookie.get(&cookie)?.number)
    }

    /// Gives a socket a slot, where one is left; one that has a slot keeps it. Returns whether it has one.
    ///
    /// # Errors
    /// The kernel half's maps cannot be written.
    pub fn assign(&mut self, kernel: &mut Kernel, cookie: u64, port: u16) -> Result<bool, KernelError> {
        if self.by_cookie.contains_key(&cookie) {
            return Ok(true);
        }
        let number = match self.free.pop() {
            Some(number) => {
                kernel.clear_listener(number)?;
                number
            }
            None if self.unused < LISTENER_SLOTS => {
                self.unused += 1;
                self.unused - 1
            }
            None => return Ok(false),
        };
        kernel.set_listener(cookie, port, number)?;
        self.by_cookie.insert(cookie, Slot { number, port });
        Ok(true)
    }

    /// Takes the slot of a socket that was closed.
    pub fn release(&mut self, kernel: &mut Kernel, cookie: u64) {
        let Some(slot) = self.by_cookie.remove(&cookie) else { return };
        kernel.remove_listener(cookie);
        if !self.by_cookie.values().any(|other| other.port == slot.port) {
            kernel.remove_port(slot.port);
        }
        self.free.push(slot.number);
    }
}
