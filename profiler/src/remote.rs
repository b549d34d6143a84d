//! Servers that this program asks or tells: what is said of their failures, and how long it waits after them. Never a request.

use std::error::Error;
use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

/// The longest reason that is said, characters: a server's text is in it.
const REASON: usize = 300;

/// An error with its causes, in one line of bounded length.
pub fn reason(e: &dyn Error) -> String {
    let mut text = e.to_string();
    let mut cause = e.source();
    while let Some(e) = cause {
        let further = e.to_string();
        if !text.contains(&further) {
            text = format!("{text}: {further}");
        }
        cause = e.source();
    }
    bounded(&text)
}

/// A server's text, in one line of bounded length.
pub fn bounded(text: &str) -> String {
    let line: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
    line.chars().filter(|c| !c.is_control()).take(REASON).collect()
}

/// Pauses after failures, each twice as long as the one before.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    /// The first.
    pub first: Duration,
    /// The longest.
    pub longest: Duration,
}

impl Backoff {
    /// How long to wait after so many failures: half of it, and a random part of the other half, so that not all come back at
    /// the same time.
    pub fn pause(&self, failures: u32) -> Duration {
        let whole = self.first.saturating_mul(2_u32.saturating_pow(failures)).min(self.longest);
        let random = RandomState::new().hash_one(failures) % 1000;
        whole / 2 + (whole / 2).mul_f64(random as f64 / 1000.0)
    }
}
