//! Waiting for a state, never for a time.

use std::thread::sleep;
use std::time::{Duration, Instant};

/// Far more than anything here takes on a busy host.
pub const LIMIT: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(20);

/// Waits until `state` is something. `Err` says what is still wrong.
///
/// # Panics
/// It does not come within [`LIMIT`].
pub fn until<T>(what: &str, mut state: impl FnMut() -> Result<T, String>) -> T {
    let begin = Instant::now();
    loop {
        match state() {
            Ok(value) => return value,
            Err(wrong) if begin.elapsed() > LIMIT => {
                panic!("{what} did not come within {} s: {wrong}", LIMIT.as_secs())
            }
            Err(_) => sleep(PAUSE),
        }
    }
}

/// Waits a while until `done`, and returns the last value in any case: what it lacks is for a table to show.
pub fn until_or_last<T>(mut read: impl FnMut() -> T, done: impl Fn(&T) -> bool) -> T {
    const LIMIT: Duration = Duration::from_secs(10);
    let begin = Instant::now();
    loop {
        let value = read();
        if done(&value) || begin.elapsed() > LIMIT {
            return value;
        }
        sleep(PAUSE);
    }
}

/// Waits until `state` holds.
///
/// # Panics
/// It does not come within [`LIMIT`].
pub fn until_true(what: &str, mut state: impl FnMut() -> bool) {
    until(what, || if state() { Ok(()) } else { Err("not yet".to_owned()) });
}

/// The first value that `read` returns `times` times in a row.
///
/// # Panics
/// It never rests within [`LIMIT`].
pub fn until_at_rest<T: PartialEq + std::fmt::Debug>(what: &str, times: usize, mut read: impl FnMut() -> T) -> T {
    let (mut last, mut same) = (read(), 1);
    until(what, || {
        let now = read();
        same = if now == last { same + 1 } else { 1 };
        last = now;
        if same >= times { Ok(()) } else { Err(format!("{last:?}")) }
    });
    last
}
