//! A rate limit that all transfers of a run share.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::locked;

/// A token bucket: bytes per second, with room for a tenth of a second.
#[derive(Debug)]
pub struct Limiter {
    rate: f64,
    /// When all that was taken so far will have been earned.
    paid_until: Mutex<Instant>,
}

impl Limiter {
    /// A limit in bytes per second, at least 1.
    pub fn new(rate: u64) -> Self {
        #[allow(clippy::cast_precision_loss)] // a rate needs no exact digits
        let rate = rate.max(1) as f64;
        Self { rate, paid_until: Mutex::new(Instant::now()) }
    }

    /// Take `bytes`; the answer is how long to wait before the next read.
    pub fn take(&self, bytes: usize) -> Duration {
        const SLACK: Duration = Duration::from_millis(100);
        let now = Instant::now();
        let mut paid_until = locked(&self.paid_until);
        #[allow(clippy::cast_precision_loss)]
        let cost = Duration::from_secs_f64(bytes as f64 / self.rate);
        *paid_until = (*paid_until).max(now.checked_sub(SLACK).unwrap_or(now)) + cost;
        paid_until.saturating_duration_since(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_has_to_be_earned() {
        let limiter = Limiter::new(1_000_000);
        assert_eq!(limiter.take(0), Duration::ZERO);
        let wait = limiter.take(2_000_000);
        assert!(wait > Duration::from_secs(1) && wait <= Duration::from_secs(2), "{wait:?}");
        // Another transfer waits behind it.
        assert!(limiter.take(1_000_000) > wait);
    }
}
