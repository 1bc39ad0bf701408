//! A slab whose keys carry a generation.
//!
//! The poller's tokens are such keys. When a source is removed its slot's generation moves on, so an
//! event that was already collected for it finds nothing, even when the slot (or the descriptor) has
//! a new owner.

/// Index and generation of a value in a [`Slab`]; fits the poller's token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    index: u32,
    generation: u32,
}

impl Key {
    /// The key as a number, for a poller's token.
    #[must_use]
    pub fn to_usize(self) -> usize {
        ((self.generation as usize) << 32) | self.index as usize
    }

    /// The key that [`Key::to_usize`] gave.
    #[must_use]
    #[allow(clippy::cast_possible_truncation)]
    pub fn from_usize(raw: usize) -> Self {
        Key { index: raw as u32, generation: (raw >> 32) as u32 }
    }
}

#[derive(Debug)]
struct Slot<T> {
    generation: u32,
    value: Option<T>,
}

/// Values in stable slots, found by [`Key`] in constant time.
#[derive(Debug)]
pub struct Slab<T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Slab { slots: Vec::new(), free: Vec::new() }
    }
}

impl<T> Slab<T> {
    /// Stores a value and returns its key.
    pub fn insert(&mut self, value: T) -> Key {
        if let Some(index) = self.free.pop() {
            let slot = &mut self.slots[index as usize];
            slot.value = Some(value);
            Key { index, generation: slot.generation }
        } else {
            // Descriptors are far fewer than 2^32, so the index fits.
            #[allow(clippy::cast_possible_truncation)]
            let index = self.slots.len() as u32;
            self.slots.push(Slot { generation: 0, value: Some(value) });
            Key { index, generation: 0 }
        }
    }

    fn slot(&self, key: Key) -> Option<&Slot<T>> {
        self.slots.get(key.index as usize).filter(|slot| slot.generation == key.generation)
    }

    /// The value behind a key, unless it was removed.
    #[must_use]
    pub fn get(&self, key: Key) -> Option<&T> {
        self.slot(key)?.value.as_ref()
    }

    /// The value behind a key, to change.
    pub fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        self.slots
            .get_mut(key.index as usize)
            .filter(|slot| slot.generation == key.generation)?
            .value
            .as_mut()
    }

    /// Takes a value out; its key, and every copy of it, is dead from then on.
    pub fn remove(&mut self, key: Key) -> Option<T> {
        let slot = self
            .slots
            .get_mut(key.index as usize)
            .filter(|slot| slot.generation == key.generation)?;
        let value = slot.value.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(key.index);
        Some(value)
    }

    /// All values with their keys.
    pub fn iter(&self) -> impl Iterator<Item = (Key, &T)> {
        self.slots.iter().enumerate().filter_map(|(index, slot)| {
            #[allow(clippy::cast_possible_truncation)]
            let key = Key { index: index as u32, generation: slot.generation };
            slot.value.as_ref().map(|value| (key, value))
        })
    }

    /// How many values there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Whether there is no value.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_removed_key_stays_dead_when_its_slot_is_reused() {
        let mut slab = Slab::default();
        let first = slab.insert("first");
        assert_eq!(slab.remove(first), Some("first"));
        assert!(slab.is_empty());
        let second = slab.insert("second");
        assert_eq!(first.index, second.index);
        assert_eq!(slab.get(first), None);
        assert_eq!(slab.remove(first), None);
        assert_eq!(slab.get(second), Some(&"second"));
        assert_eq!(slab.len(), 1);
    }

    #[test]
    fn keys_survive_the_trip_through_a_token() {
        let key = Key { index: 7, generation: u32::MAX };
        assert_eq!(Key::from_usize(key.to_usize()), key);
    }

    #[test]
    fn iterates_over_what_is_there() {
        let mut slab = Slab::default();
        let a = slab.insert(1);
        let b = slab.insert(2);
        slab.remove(a);
        assert_eq!(slab.iter().collect::<Vec<_>>(), vec![(b, &2)]);
        *slab.get_mut(b).unwrap() = 3;
        assert_eq!(slab.get(b), Some(&3));
    }
}
