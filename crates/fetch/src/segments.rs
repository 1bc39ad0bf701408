//! Which bytes of a file are there, which are coming, and which nobody fetches yet.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use crate::locked;

/// No segment is split below twice this.
pub const SMALLEST: u64 = 4 << 20;

/// Sorted ranges that do not touch, the end exclusive.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ranges(Vec<(u64, u64)>);

impl Ranges {
    /// Add a range; it may overlap what is there.
    pub fn add(&mut self, start: u64, end: u64) {
        if start >= end {
            return;
        }
        let from = self.0.partition_point(|&(_, known_end)| known_end < start);
        let to = self.0.partition_point(|&(known_start, _)| known_start <= end);
        let merged = self.0[from..to]
            .iter()
            .fold((start, end), |all, one| (all.0.min(one.0), all.1.max(one.1)));
        self.0.splice(from..to, [merged]);
    }

    /// How many bytes they hold.
    pub fn total(&self) -> u64 {
        self.0.iter().map(|(start, end)| end - start).sum()
    }

    /// What is not in them, of a file of that length.
    pub fn missing(&self, length: u64) -> Vec<(u64, u64)> {
        let mut gaps = Vec::new();
        let mut at = 0;
        for &(start, end) in &self.0 {
            if start > at {
                gaps.push((at, start.min(length)));
            }
            at = end;
        }
        if at < length {
            gaps.push((at, length));
        }
        gaps
    }

    /// The ranges.
    pub fn as_slice(&self) -> &[(u64, u64)] {
        &self.0
    }
}

/// A range that one connection is fetching.
#[derive(Debug)]
pub struct Segment {
    start: u64,
    position: AtomicU64,
    end: AtomicU64,
    /// How far its answer goes: where it would end if it had not been split.
    reach: u64,
}

impl Segment {
    /// The next byte to write.
    pub fn position(&self) -> u64 {
        self.position.load(Ordering::Acquire)
    }

    /// Where it ends; `u64::MAX` if the file's length is unknown. It shrinks when it is split.
    pub fn end(&self) -> u64 {
        self.end.load(Ordering::Acquire)
    }

    /// That many more bytes are written.
    pub fn advance(&self, bytes: u64) {
        self.position.fetch_add(bytes, Ordering::AcqRel);
    }
}

/// All of one file's ranges; its transfers share it.
#[derive(Debug)]
pub struct Plan(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    done: Ranges,
    gaps: Vec<(u64, u64)>,
    live: Vec<Arc<Segment>>,
}

impl Plan {
    /// With what an earlier run left. Without a length there is one gap without an end.
    pub fn new(done: Ranges, length: Option<u64>) -> Self {
        let mut gaps = done.missing(length.unwrap_or(u64::MAX));
        // The first one is the next to be taken.
        gaps.reverse();
        Self(Mutex::new(Inner { done, gaps, live: Vec::new() }))
    }

    /// The first gap, to be fetched by the caller, who gives it back if that fails.
    pub fn take_gap(&self) -> Option<(u64, u64)> {
        locked(&self.0).gaps.pop()
    }

    /// Whether a gap waits to be fetched.
    pub fn has_gap(&self) -> bool {
        !locked(&self.0).gaps.is_empty()
    }

    /// A gap that could not be fetched. The segment that it was cut from takes it back if it is still
    /// coming.
    pub fn give_back(&self, (start, end): (u64, u64)) {
        let mut inner = locked(&self.0);
        let donor = inner.live.iter().find(|segment| {
            segment.end() == start && segment.reach >= end && segment.position() < start
        });
        match donor {
            Some(donor) => donor.end.store(end, Ordering::Release),
            None => inner.gaps.push((start, end)),
        }
    }

    /// Begin to fetch a range.
    pub fn begin(&self, start: u64, end: u64) -> Live<'_> {
        let (position, shrinking) = (AtomicU64::new(start), AtomicU64::new(end));
        let segment = Arc::new(Segment { start, position, end: shrinking, reach: end });
        locked(&self.0).live.push(Arc::clone(&segment));
        Live { plan: self, segment }
    }

    /// Cut off the later half of the largest live segment, if it is worth a connection. It is the
    /// caller's to fetch or to give back.
    pub fn halve(&self) -> Option<(u64, u64)> {
        let inner = locked(&self.0);
        let largest = Self::largest(&inner)?;
        let (position, end) = (largest.position(), largest.end());
        let middle = position + (end - position) / 2;
        largest.end.store(middle, Ordering::Release);
        Some((middle, end))
    }

    /// Whether there is something for one more connection.
    pub fn has_work(&self) -> bool {
        let inner = locked(&self.0);
        !inner.gaps.is_empty() || Self::largest(&inner).is_some()
    }

    fn largest(inner: &Inner) -> Option<&Segment> {
        let left = |segment: &&Arc<Segment>| segment.end().saturating_sub(segment.position());
        let bounded = inner.live.iter().filter(|segment| segment.end() != u64::MAX);
        let largest = bounded.max_by_key(left)?;
        (left(&largest) >= 2 * SMALLEST).then_some(&**largest)
    }

    /// The bytes that are there now.
    pub fn done(&self) -> Ranges {
        let inner = locked(&self.0);
        let mut done = inner.done.clone();
        for segment in &inner.live {
            done.add(segment.start, segment.position());
        }
        done
    }
}

/// A live segment; when it is dropped, what it did not fetch is a gap again.
pub struct Live<'a> {
    plan: &'a Plan,
    /// The segment.
    pub segment: Arc<Segment>,
}

impl Drop for Live<'_> {
    fn drop(&mut self) {
        let mut inner = locked(&self.plan.0);
        inner.live.retain(|segment| !Arc::ptr_eq(segment, &self.segment));
        let (position, end) = (self.segment.position(), self.segment.end());
        inner.done.add(self.segment.start, position);
        if position < end && end != u64::MAX {
            inner.gaps.push((position, end));
        }
    }
}

/// Decides when one more connection is worth trying: as long as the last one made it faster.
#[derive(Debug)]
pub struct Growth {
    most: usize,
    last_rate: f64,
    settled: bool,
}

impl Growth {
    /// Faster by this is worth another connection.
    const WORTH: f64 = 1.2;
    /// Seconds that the file must still take.
    const LEAST_LEFT: f64 = 3.0;

    /// Up to `most` connections.
    pub fn new(most: usize) -> Self {
        Self { most, last_rate: 0.0, settled: false }
    }

    /// Whether to add a connection, after a while with `connections` of them at `rate` bytes per second.
    pub fn wants_more(&mut self, connections: usize, rate: f64, bytes_left: f64) -> bool {
        if self.settled || connections >= self.most || rate <= 0.0 {
            return false;
        }
        if bytes_left / rate < Self::LEAST_LEFT {
            return false;
        }
        if connections > 1 && rate < self.last_rate * Self::WORTH {
            self.settled = true;
            return false;
        }
        self.last_rate = rate;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_merge() {
        let mut ranges = Ranges::default();
        for (start, end) in [(10, 20), (30, 40), (50, 50), (20, 25), (0, 5), (24, 31)] {
            ranges.add(start, end);
        }
        assert_eq!(ranges.as_slice(), [(0, 5), (10, 40)]);
        assert_eq!(ranges.total(), 35);
        assert_eq!(ranges.missing(50), [(5, 10), (40, 50)]);
        assert_eq!(ranges.missing(40), [(5, 10)]);
        ranges.add(0, 100);
        assert_eq!(ranges.as_slice(), [(0, 100)]);
        assert!(ranges.missing(100).is_empty());
        assert_eq!(Ranges::default().missing(3), [(0, 3)]);
        assert!(Ranges::default().missing(0).is_empty());
    }

    #[test]
    fn every_byte_has_one_owner() {
        const MIB: u64 = 1 << 20;
        let plan = Plan::new(Ranges::default(), Some(100 * MIB));
        let (start, end) = plan.take_gap().unwrap();
        assert!(!plan.has_gap());
        let first = plan.begin(start, end);
        first.segment.advance(20 * MIB);
        assert_eq!(plan.halve(), Some((60 * MIB, 100 * MIB)));
        let second = plan.begin(60 * MIB, 100 * MIB);
        assert_eq!(first.segment.end(), 60 * MIB);
        second.segment.advance(5 * MIB);
        drop(second);
        assert_eq!(plan.done().as_slice(), [(0, 20 * MIB), (60 * MIB, 65 * MIB)]);
        assert_eq!(plan.take_gap(), Some((65 * MIB, 100 * MIB)));
        plan.give_back((65 * MIB, 100 * MIB));
        first.segment.advance(40 * MIB);
        drop(first);
        assert_eq!(plan.take_gap(), Some((65 * MIB, 100 * MIB)));
        assert!(plan.take_gap().is_none() && !plan.has_work());
    }

    #[test]
    fn what_nobody_else_could_fetch_goes_back_to_its_donor() {
        const MIB: u64 = 1 << 20;
        let plan = Plan::new(Ranges::default(), Some(64 * MIB));
        let (start, end) = plan.take_gap().unwrap();
        let first = plan.begin(start, end);
        let last = plan.halve().unwrap();
        let middle = plan.halve().unwrap();
        assert_eq!((middle, last), ((16 * MIB, 32 * MIB), (32 * MIB, 64 * MIB)));
        plan.give_back(middle);
        assert_eq!(first.segment.end(), 32 * MIB);
        plan.give_back(last);
        assert_eq!(first.segment.end(), 64 * MIB);
        assert!(!plan.has_gap());
        // One that has come to its end will not go on.
        let half = plan.halve().unwrap();
        first.segment.advance(32 * MIB);
        plan.give_back(half);
        assert_eq!((first.segment.end(), plan.has_gap()), (32 * MIB, true));
    }

    #[test]
    fn small_rests_stay_whole() {
        let plan = Plan::new(Ranges::default(), Some(2 * SMALLEST - 1));
        let (start, end) = plan.take_gap().unwrap();
        let live = plan.begin(start, end);
        assert!(plan.halve().is_none() && !plan.has_work());
        drop(live);
        let endless = Plan::new(Ranges::default(), None);
        let (start, end) = endless.take_gap().unwrap();
        let live = endless.begin(start, end);
        assert!(endless.halve().is_none());
        live.segment.advance(3);
        drop(live);
        assert_eq!(endless.done().as_slice(), [(0, 3)]);
        assert!(!endless.has_gap());
    }

    #[test]
    fn connections_are_added_while_they_help() {
        let mut growth = Growth::new(4);
        assert!(growth.wants_more(1, 1e6, 1e9));
        assert!(growth.wants_more(2, 1.9e6, 1e9));
        assert!(!growth.wants_more(3, 2.0e6, 1e9));
        assert!(!growth.wants_more(3, 9.0e6, 1e9), "it has settled");
        let mut growth = Growth::new(2);
        assert!(!growth.wants_more(1, 1e9, 1e9), "it is nearly there");
        assert!(!growth.wants_more(1, 0.0, 1e9));
        assert!(growth.wants_more(1, 1e6, 1e9));
        assert!(!growth.wants_more(2, 2e6, 1e9), "the most there may be");
    }
}
