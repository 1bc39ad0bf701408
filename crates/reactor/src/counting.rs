//! Numbers that one thread counts up and others read at any time, and histograms of them.
//!
//! Plain loads and stores, which are atomic so that readers need no lock.

use std::sync::atomic::{AtomicU64, Ordering};

/// The first bucket's upper bound is 2 to this power, in nanoseconds: 8.2 us.
const FIRST: u32 = 13;
/// So many buckets, each twice as wide as the one before, and one for what is longer than 17 s.
const BUCKETS: usize = 22;

/// A number that one thread writes and others may read.
#[derive(Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Its value.
    #[inline]
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Gives it another value.
    #[inline]
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// Adds. No read-modify-write, whose lock would cost more than all the rest: there is one writer.
    #[inline]
    pub fn add(&self, more: u64) {
        self.set(self.get().wrapping_add(more));
    }

    /// Gives it a greater value, if this is one.
    #[inline]
    pub fn raise(&self, value: u64) {
        if value > self.get() {
            self.set(value);
        }
    }
}

/// How many times were how long.
#[derive(Default)]
pub struct Histogram {
    buckets: [Counter; BUCKETS + 1],
    total: Counter,
    longest: Counter,
}

impl Histogram {
    /// Counts one.
    pub fn note(&self, ns: u64) {
        // The least power of two that is not below it.
        let power = u64::BITS - ns.saturating_sub(1).leading_zeros();
        let index = (power.saturating_sub(FIRST) as usize).min(BUCKETS);
        self.buckets[index].add(1);
        self.total.add(ns);
        self.longest.raise(ns);
    }

    /// How many are in each bucket.
    #[must_use]
    pub fn counts(&self) -> Vec<u64> {
        self.buckets.iter().map(Counter::get).collect()
    }

    /// All together, in nanoseconds.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.total.get()
    }

    /// The longest, in nanoseconds.
    #[must_use]
    pub fn longest(&self) -> u64 {
        self.longest.get()
    }

    /// The upper bounds of the buckets in nanoseconds; the last bucket has none.
    #[must_use]
    pub fn bounds() -> Vec<u64> {
        (0..BUCKETS).map(|index| 1 << (FIRST as usize + index)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_in_the_first_bucket_whose_bound_is_not_below_it() {
        let histogram = Histogram::default();
        for ns in [0, 1, 1 << FIRST, (1 << FIRST) + 1, 1 << 34, (1 << 34) + 1, 1 << 50] {
            histogram.note(ns);
        }
        let counts = histogram.counts();
        assert_eq!(counts.len(), Histogram::bounds().len() + 1);
        assert_eq!((counts[0], counts[1]), (3, 1));
        assert_eq!((counts[BUCKETS - 1], counts[BUCKETS]), (1, 2));
        assert_eq!(counts.iter().sum::<u64>(), 7);
        assert_eq!(histogram.longest(), 1 << 50);
        assert_eq!(histogram.total(), (1 << 50) + (2 << 34) + (2 << FIRST) + 3);
        assert_eq!(
            (Histogram::bounds()[0], Histogram::bounds()[BUCKETS - 1]),
            (1 << FIRST, 1 << 34)
        );
    }
}
