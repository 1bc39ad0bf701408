//! The loop's clock: `CLOCK_MONOTONIC`, which is what `time.monotonic()` reads, so that times of the
//! two can be compared as asyncio programs do.

/// Nanoseconds since the clock's epoch (boot, on Linux).
#[must_use]
pub fn now_ns() -> u64 {
    read(libc::CLOCK_MONOTONIC)
}

/// Nanoseconds of processor time that the process's other threads have used.
#[must_use]
pub fn other_threads_ns() -> u64 {
    // In this order: what passes in between counts as the others', a microsecond at most.
    let mine = read(libc::CLOCK_THREAD_CPUTIME_ID);
    read(libc::CLOCK_PROCESS_CPUTIME_ID).saturating_sub(mine)
}

fn read(clock: libc::clockid_t) -> u64 {
    let mut ts = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `ts` is a valid timespec to write to; the clocks that are read here exist on every
    // supported system, so the call cannot fail.
    unsafe { libc::clock_gettime(clock, &raw mut ts) };
    // Both fields are non-negative for these clocks.
    #[allow(clippy::cast_sign_loss)]
    {
        ts.tv_sec as u64 * 1_000_000_000 + ts.tv_nsec as u64
    }
}

/// Converts nanoseconds to the seconds that `loop.time()` returns.
#[must_use]
pub fn to_seconds(ns: u64) -> f64 {
    // As time.monotonic() does: exact for 104 days of uptime, to the microsecond for centuries.
    ns as f64 * 1e-9
}

/// Converts seconds on the loop's clock to nanoseconds, saturating: a time before the epoch is 0, a
/// time that 64 bits cannot hold (infinity included) never comes. NaN counts as the past.
#[must_use]
pub fn from_seconds(seconds: f64) -> u64 {
    // A float-to-integer `as` cast saturates and maps NaN to 0. Rounding up keeps the promise that a
    // timer never fires before its time.
    (seconds * 1e9).ceil() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_other_threads_is_theirs() {
        let spin = |limit| while read(libc::CLOCK_THREAD_CPUTIME_ID) < limit {};
        let before = other_threads_ns();
        std::thread::spawn(move || spin(20_000_000)).join().unwrap();
        assert!(other_threads_ns() - before >= 20_000_000);
    }

    #[test]
    fn it_moves_forward() {
        let a = now_ns();
        let b = now_ns();
        assert!(a > 0 && b >= a);
    }

    #[test]
    fn conversions_saturate() {
        assert_eq!(from_seconds(1.5), 1_500_000_000);
        assert_eq!(from_seconds(-1.0), 0);
        assert_eq!(from_seconds(f64::INFINITY), u64::MAX);
        assert_eq!(from_seconds(f64::NAN), 0);
        assert!((to_seconds(2_500_000_000) - 2.5).abs() < 1e-12);
    }
}
