//! How long to wait before the next attempt.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::time::{Duration, SystemTime};

/// The first wait, doubled for each further attempt.
const FIRST: Duration = Duration::from_millis(500);
/// The longest wait that we choose ourselves.
const LONGEST: Duration = Duration::from_secs(30);

/// The wait before retry number `retry` (from 1): exponential, with the upper half of it random, so
/// that many that failed together do not come back together. `random` is from 0 to 1.
pub fn delay(retry: u32, random: f64) -> Duration {
    let full = FIRST.saturating_mul(1_u32 << retry.saturating_sub(1).min(16)).min(LONGEST);
    full.mul_f64(0.5 + 0.5 * random.clamp(0.0, 1.0))
}

/// A random number from 0 to 1, good enough to spread waits.
pub fn random() -> f64 {
    // Each RandomState is keyed anew.
    let bits = RandomState::new().build_hasher().finish() >> 11;
    #[allow(clippy::cast_precision_loss)] // 53 bits are what an f64 holds
    let value = bits as f64 / (1_u64 << 53) as f64;
    value
}

/// The wait that a Retry-After header asks for: seconds, or a date.
pub fn retry_after(header: &str, now: SystemTime) -> Option<Duration> {
    let header = header.trim();
    if let Ok(seconds) = header.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(header).ok()?;
    Some(date.duration_since(now).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_and_are_bounded() {
        assert_eq!(delay(1, 1.0), Duration::from_millis(500));
        assert_eq!(delay(1, 0.0), Duration::from_millis(250));
        assert_eq!(delay(4, 1.0), Duration::from_secs(4));
        for retry in [7, 20, 1000, u32::MAX] {
            assert_eq!(delay(retry, 1.0), LONGEST);
            assert_eq!(delay(retry, 0.0), LONGEST / 2);
        }
    }

    #[test]
    fn random_spreads() {
        let values: Vec<f64> = (0..200).map(|_| random()).collect();
        assert!(values.iter().all(|value| (0.0..=1.0).contains(value)));
        assert!(values.iter().any(|&value| value < 0.3) && values.iter().any(|&value| value > 0.7));
    }

    #[test]
    fn retry_after_in_both_forms() {
        let now = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
        for (header, wait) in [
            ("120", Some(120)),
            (" 0 ", Some(0)),
            ("Sun, 06 Nov 1994 08:50:37 GMT", Some(60)),
            ("Sun, 06 Nov 1994 08:00:00 GMT", Some(0)),
            ("soon", None),
            ("-1", None),
            ("", None),
        ] {
            assert_eq!(retry_after(header, now), wait.map(Duration::from_secs), "{header}");
        }
    }
}
