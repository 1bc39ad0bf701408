//! Timers: a heap on (deadline, sequence number).
//!
//! Equal deadlines come out in the order in which they went in. A timer is cancelled by marking its
//! value, in constant time and without touching the heap; [`Timers::note_cancelled`] counts such
//! marks, and when they outnumber the living the heap is rebuilt without them. Only the one at the
//! heap's very end leaves it at once ([`Timers::take_last`]): often that is the latest, the time limit
//! of something that took no time.

/// Heaps smaller than this are not worth compacting (asyncio's figure too).
const MIN_FOR_COMPACTION: usize = 100;

/// Due timers that are taken from the heap one by one before a better way is looked for.
const FEW: usize = 64;
/// Entries that are looked at to guess how many are due.
const SAMPLE: usize = 32;
/// Children of each entry: they lie side by side, and the heap is half as high as with two.
const CHILDREN: usize = 4;

struct Entry<T> {
    deadline: u64,
    sequence: u64,
    value: T,
}

impl<T> Entry<T> {
    #[inline]
    fn key(&self) -> (u64, u64) {
        (self.deadline, self.sequence)
    }
}

/// Values that become due at a time in nanoseconds on the clock of [`crate::clock`].
pub struct Timers<T> {
    /// No entry comes before its parent, whose index is one less, divided by [`CHILDREN`].
    heap: Vec<Entry<T>>,
    sequence: u64,
    cancelled: usize,
}

impl<T> Default for Timers<T> {
    fn default() -> Self {
        Timers { heap: Vec::new(), sequence: 0, cancelled: 0 }
    }
}

impl<T> Timers<T> {
    /// Adds a value that becomes due at `deadline` nanoseconds.
    pub fn push(&mut self, deadline: u64, value: T) {
        self.sequence += 1;
        self.heap.push(Entry { deadline, sequence: self.sequence, value });
        self.rise(self.heap.len() - 1);
    }

    /// Moves an entry up to its place.
    #[inline]
    fn rise(&mut self, mut at: usize) {
        while at > 0 {
            let parent = (at - 1) / CHILDREN;
            if self.heap[parent].key() <= self.heap[at].key() {
                return;
            }
            self.heap.swap(parent, at);
            at = parent;
        }
    }

    /// Moves an entry down to its place.
    fn sink(&mut self, mut at: usize) {
        loop {
            let first = at * CHILDREN + 1;
            let last = (first + CHILDREN).min(self.heap.len());
            let Some(least) = (first..last).min_by_key(|child| self.heap[*child].key()) else {
                return;
            };
            if self.heap[at].key() <= self.heap[least].key() {
                return;
            }
            self.heap.swap(at, least);
            at = least;
        }
    }

    /// Makes a heap of entries in any order.
    fn rebuild(&mut self, entries: Vec<Entry<T>>) {
        self.heap = entries;
        for at in (0..self.heap.len().div_ceil(CHILDREN)).rev() {
            self.sink(at);
        }
    }

    /// The earliest deadline in nanoseconds.
    #[must_use]
    pub fn next_deadline(&self) -> Option<u64> {
        self.heap.first().map(|entry| entry.deadline)
    }

    /// The value that is due first.
    #[must_use]
    pub fn peek(&self) -> Option<&T> {
        self.heap.first().map(|entry| &entry.value)
    }

    /// Takes out the value that is due first.
    pub fn pop(&mut self) -> Option<T> {
        let last = self.heap.len().checked_sub(1)?;
        self.heap.swap(0, last);
        let entry = self.heap.pop();
        self.sink(0);
        entry.map(|entry| entry.value)
    }

    /// Takes out the value at the heap's end if it is the one.
    #[inline]
    pub fn take_last(&mut self, is_it: impl FnOnce(&T) -> bool) -> Option<T> {
        if is_it(&self.heap.last()?.value) {
            self.heap.pop().map(|entry| entry.value)
        } else {
            None
        }
    }

    /// Takes out every value whose deadline is not after `now`, the earliest first.
    pub fn pop_due(&mut self, now: u64, mut take: impl FnMut(T)) {
        for _ in 0..FEW {
            match self.heap.first() {
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
            self.rebuild(later);
            due.sort_unstable_by_key(Entry::key);
            due.into_iter().for_each(|entry| take(entry.value));
        }
        while self.heap.first().is_some_and(|entry| entry.deadline <= now) {
            self.pop().into_iter().for_each(&mut take);
        }
    }

    /// A guess, from a sample.
    fn most_are_due(&self, now: u64) -> bool {
        let entries = &self.heap;
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
        self.rebuild(alive);
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
    fn only_the_one_at_the_end_leaves_at_once() {
        let mut timers = Timers::default();
        for value in [10, 20, 30] {
            timers.push(value, value);
        }
        assert_eq!(timers.take_last(|value| *value == 20), None);
        assert_eq!(timers.take_last(|value| *value == 30), Some(30));
        // The earliest goes to the top, and its parent to the end.
        timers.push(5, 5);
        assert_eq!(timers.take_last(|value| *value == 5), None);
        assert_eq!((timers.len(), timers.alive()), (3, 3));
        let order: Vec<u64> = std::iter::from_fn(|| timers.pop()).collect();
        assert_eq!(order, [5, 10, 20]);
        assert_eq!(timers.take_last(|_| true), None);
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
