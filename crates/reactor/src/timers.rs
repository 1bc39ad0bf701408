//! Timers: a binary heap on (deadline, sequence number).
//!
//! Equal deadlines come out in the order in which they went in. A timer is cancelled by marking its
//! value, in constant time and without touching the heap; [`Timers::note_cancelled`] counts such
//! marks, and when they outnumber the living the heap is rebuilt without them.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

/// Heaps smaller than this are not worth compacting (asyncio's figure too).
const MIN_FOR_COMPACTION: usize = 100;

/// Due timers that are taken from the heap one by one before a better way is looked for.
const FEW: usize = 64;
/// Entries that are looked at to guess how many are due.
const SAMPLE: usize = 32;

struct Entry<T> {
    deadline: u64,
    sequence: u64,
    value: T,
}

impl<T> PartialEq for Entry<T> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}
impl<T> Eq for Entry<T> {}
impl<T> PartialOrd for Entry<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl<T> Ord for Entry<T> {
    // Reversed: BinaryHeap is a max-heap and the earliest deadline is wanted on top.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.deadline, other.sequence).cmp(&(self.deadline, self.sequence))
    }
}

/// Values that become due at a time in nanoseconds on the clock of [`crate::clock`].
pub struct Timers<T> {
    heap: BinaryHeap<Entry<T>>,
    sequence: u64,
    cancelled: usize,
}

impl<T> Default for Timers<T> {
    fn default() -> Self {
        Timers { heap: BinaryHeap::new(), sequence: 0, cancelled: 0 }
    }
}

impl<T> Timers<T> {
    /// Adds a value that becomes due at `deadline` nanoseconds.
    pub fn push(&mut self, deadline: u64, value: T) {
        self.sequence += 1;
        self.heap.push(Entry { deadline, sequence: self.sequence, value });
    }

    /// The earliest deadline in nanoseconds.
    #[must_use]
    pub fn next_deadline(&self) -> Option<u64> {
        self.heap.peek().map(|entry| entry.deadline)
    }

    /// The value that is due first.
    #[must_use]
    pub fn peek(&self) -> Option<&T> {
        self.heap.peek().map(|entry| &entry.value)
    }

    /// Takes out the value that is due first.
    pub fn pop(&mut self) -> Option<T> {
        self.heap.pop().map(|entry| entry.value)
    }

    /// Takes out every value whose deadline is not after `now`, the earliest first.
    pub fn pop_due(&mut self, now: u64, mut take: impl FnMut(T)) {
        for _ in 0..FEW {
            match self.heap.peek() {
                Some(entry) if entry.deadline <= now => {}
                _ => return,
            }
            if let Some(value) = self.pop() {
                take(value);
            }
        }
        if self.most_are_due(now) {
            // To sort them all at once is much faster than to mend the heap for each.
            let (mut due, later): (Vec<_>, Vec<_>) =
                std::mem::take(&mut self.heap).into_iter().partition(|entry| entry.deadline <= now);
            self.heap = later.into();
            due.sort_unstable_by(|a, b| b.cmp(a));
            due.into_iter().for_each(|entry| take(entry.value));
        }
        while self.heap.peek().is_some_and(|entry| entry.deadline <= now) {
            self.pop().into_iter().for_each(&mut take);
        }
    }

    /// A guess, from a sample.
    fn most_are_due(&self, now: u64) -> bool {
        let entries = self.heap.as_slice();
        let step = (entries.len() / SAMPLE).max(1);
        let due = entries.iter().step_by(step).filter(|entry| entry.deadline <= now).count();
        due * 2 > SAMPLE
    }

    /// Tells that a value in the heap was cancelled; true when it is time for [`Timers::compact`].
    pub fn note_cancelled(&mut self) -> bool {
        self.cancelled += 1;
        self.heap.len() > MIN_FOR_COMPACTION && self.cancelled * 2 > self.heap.len()
    }

    /// Tells that cancelled values left the heap by [`Timers::pop`] or [`Timers::pop_due`].
    pub fn note_popped_cancelled(&mut self, count: usize) {
        self.cancelled = self.cancelled.saturating_sub(count);
    }

    /// Takes out and returns all values that `is_cancelled` names. The caller drops them, which may
    /// run arbitrary code, once it no longer borrows the heap.
    pub fn compact(&mut self, mut is_cancelled: impl FnMut(&T) -> bool) -> Vec<T> {
        self.cancelled = 0;
        let (dead, alive): (Vec<_>, Vec<_>) = std::mem::take(&mut self.heap)
            .into_iter()
            .partition(|entry| is_cancelled(&entry.value));
        self.heap = alive.into();
        dead.into_iter().map(|entry| entry.value).collect()
    }

    /// Takes out everything, in no particular order.
    pub fn drain(&mut self) -> Vec<T> {
        self.cancelled = 0;
        std::mem::take(&mut self.heap).into_iter().map(|entry| entry.value).collect()
    }

    /// All values, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.heap.iter().map(|entry| &entry.value)
    }

    /// How many values there are, cancelled ones included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.heap.len()
    }

    /// How many values there are that are not cancelled.
    #[must_use]
    pub fn alive(&self) -> usize {
        self.heap.len().saturating_sub(self.cancelled)
    }

    /// Whether there is no value.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.heap.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn earliest_first_and_equal_deadlines_in_order() {
        let mut timers = Timers::default();
        for (deadline, value) in [(30, 'd'), (10, 'a'), (20, 'b'), (20, 'c')] {
            timers.push(deadline, value);
        }
        assert_eq!(timers.next_deadline(), Some(10));
        timers.pop_due(9, |value| panic!("{value} is not due"));
        let mut order = Vec::new();
        timers.pop_due(25, |value| order.push(value));
        assert_eq!(order, ['a', 'b', 'c']);
        assert_eq!(timers.len(), 1);
        assert_eq!(timers.pop(), Some('d'));
        assert!(timers.is_empty());
    }

    #[test]
    fn many_that_are_due_come_in_the_same_order() {
        // Numbers without an order: most due, half of them, few.
        for limit in [9_000_u64, 5_000, 500] {
            let mut timers = Timers::default();
            let deadlines: Vec<u64> = (0..3_000).map(|i| i * 7_919 % 2_003 * 5).collect();
            for (index, deadline) in deadlines.iter().enumerate() {
                timers.push(*deadline, index);
            }
            let mut expected: Vec<usize> = (0..3_000).collect();
            expected.sort_by_key(|index| deadlines[*index]);
            expected.retain(|index| deadlines[*index] <= limit);
            let mut order = Vec::new();
            timers.pop_due(limit, |index| order.push(index));
            assert_eq!(order, expected);
            assert_eq!(timers.len(), 3_000 - order.len());
            assert!(timers.next_deadline().is_none_or(|deadline| deadline > limit));
        }
    }

    #[test]
    fn compaction_waits_until_the_dead_outnumber_the_living() {
        let mut timers = Timers::default();
        for value in 0..200_u64 {
            timers.push(1000 - value, value);
        }
        let mut due = false;
        let mut marks = 0;
        while !due {
            due = timers.note_cancelled();
            marks += 1;
        }
        assert_eq!(marks, 101);
        assert_eq!(timers.alive(), 99);
        let dead = timers.compact(|value| *value < marks);
        assert_eq!(dead.len(), 101);
        assert_eq!(timers.len(), 99);
        assert_eq!(timers.pop(), Some(199));
    }

    #[test]
    fn small_heaps_are_never_compacted() {
        let mut timers = Timers::default();
        for value in 0..100 {
            timers.push(value, value);
        }
        assert!((0..100).all(|_| !timers.note_cancelled()));
    }
}
