//! The clock that the kernel half stamps events with.

use std::time::{SystemTime, UNIX_EPOCH};

/// CLOCK_MONOTONIC, nanoseconds.
pub fn monotonic_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a live timespec; this clock always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// CPU time that a process has used, over all its threads that live or have ended, nanoseconds; `None` once it is gone.
pub fn process_cpu_ns(pid: u32) -> Option<u64> {
    // include/linux/posix-timers_types.h: the complement of the PID, and the scheduler's own clock of the whole process.
    const CPUCLOCK_SCHED: libc::clockid_t = 2;
    let clock = (!libc::clockid_t::try_from(pid).ok()? << 3) | CPUCLOCK_SCHED;
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a live timespec; a clock that does not exist is an error.
    let result = unsafe { libc::clock_gettime(clock, &raw mut time) };
    (result == 0).then_some(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
}

/// Seconds since the epoch at monotonic time 0.
pub fn epoch_offset_seconds() -> f64 {
    let wall = match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(after) => after.as_secs_f64(),
        Err(before) => -before.duration().as_secs_f64(),
    };
    wall - monotonic_ns() as f64 / 1e9
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_time_of_a_process_grows_until_it_is_gone() {
        let before = process_cpu_ns(std::process::id()).expect("this process runs");
        while process_cpu_ns(std::process::id()) == Some(before) {}
        assert_eq!(process_cpu_ns(4_000_000_000), None);
    }
}
