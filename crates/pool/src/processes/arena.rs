//! Blocks: parts of the memory file for what does not fit into a slot.
//!
//! Each process that sends allocates from a range of the file that is its own ([`Arena`]), so nobody
//! allocates from shared lists. Blocks have sizes of powers of two and go onto free lists; memory that
//! has been touched once is used again and again, since the first touch costs more than the copy. Only
//! what a block's user touches is there: rounding up costs addresses, not memory.
//!
//! A [`Block`]'s name is its place in the file, with its size's logarithm in the low bits. Any process
//! finds it by that ([`Maps`]): small blocks in mappings of [`UNIT`] bytes, large ones in mappings of
//! their own, which are kept.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;

use super::board;
use super::memory::{Mapping, MemoryFile};

/// Blocks of up to this size share mappings.
const UNIT: u64 = 1 << UNIT_ORDER;
const UNIT_ORDER: u32 = 22;
/// The smallest block is a page.
const SMALLEST: u32 = 12;
/// What one process can allocate: 256 GiB.
const RANGE: u64 = 1 << 38;
/// Free memory that an arena keeps; what is freed beyond it goes back to the system.
const KEPT: u64 = 256 << 20;

/// The size of the memory file: a range for the parent, and one for each berth.
pub const FILE_SIZE: u64 = RANGE * (board::BERTHS as u64 + 1);

/// A block's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Block(u64);

impl Block {
    /// The block of a number that came in a message; None for what can be no block.
    #[must_use]
    pub fn from_number(number: u64) -> Option<Block> {
        let block = Block(number);
        let order = block.order();
        let fits =
            (SMALLEST..=38).contains(&order) && block.start() % (1 << order.min(UNIT_ORDER)) == 0;
        (fits && block.start() >= UNIT && block.start() < FILE_SIZE).then_some(block)
    }

    /// Its number.
    #[must_use]
    pub fn number(self) -> u64 {
        self.0
    }

    fn order(self) -> u32 {
        (self.0 & 0x3f) as u32
    }

    /// Where it begins in the file.
    #[must_use]
    pub fn start(self) -> u64 {
        self.0 & !0xfff
    }

    /// How long it is.
    #[must_use]
    pub fn capacity(self) -> u64 {
        1 << self.order()
    }

    /// Whose it is: None for the parent, or a berth.
    #[must_use]
    pub fn owner(self) -> Option<usize> {
        #[allow(clippy::cast_possible_truncation)]
        let range = (self.start() / RANGE) as usize;
        range.checked_sub(1)
    }

    /// The part of the file that is mapped to reach it.
    fn unit(self) -> (u64, u64) {
        if self.order() <= UNIT_ORDER {
            (self.start() & !(UNIT - 1), UNIT)
        } else {
            (self.start(), self.capacity())
        }
    }
}

/// The range of the file from which an owner allocates.
#[must_use]
pub fn range_of(owner: Option<usize>) -> Range<u64> {
    let start = owner.map_or(0, |berth| (berth as u64 + 1) * RANGE);
    // The parent's begins behind the board.
    let first =
        if owner.is_none() { start + (board::SIZE as u64).next_multiple_of(UNIT) } else { start };
    first..start + RANGE
}

/// One process's allocations.
#[derive(Debug)]
pub struct Arena {
    next: u64,
    end: u64,
    /// Free blocks by order. The last one freed is the first used again: it is the warmest.
    free: [Vec<Block>; 40],
    /// Bytes of free blocks that may have memory.
    idle: u64,
}

impl Arena {
    /// An arena that begins at `first`, in its owner's range.
    #[must_use]
    pub fn new(first: u64, end: u64) -> Arena {
        Arena {
            next: first.next_multiple_of(UNIT),
            end,
            free: std::array::from_fn(|_| Vec::new()),
            idle: 0,
        }
    }

    /// A block of at least `len` bytes.
    ///
    /// # Errors
    /// `OutOfMemory` when the range is used up.
    pub fn allocate(&mut self, len: usize) -> io::Result<Block> {
        let order = (len as u64).max(1).next_power_of_two().trailing_zeros().max(SMALLEST);
        if order > 37 {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        if let Some(block) = self.free[order as usize].pop() {
            self.idle = self.idle.saturating_sub(block.capacity());
            return Ok(block);
        }
        let start = self.next.next_multiple_of(1 << order.min(UNIT_ORDER));
        let end = start + (1u64 << order);
        if end > self.end {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        self.next = end;
        Ok(Block(start | u64::from(order)))
    }

    /// Takes a block back.
    pub fn release(&mut self, file: &MemoryFile, block: Block) {
        let len = block.capacity();
        if self.idle + len > KEPT {
            file.forget(block.start(), len);
        } else {
            self.idle += len;
        }
        self.free[block.order() as usize].push(block);
    }
}

/// A process's mappings of blocks.
#[derive(Debug, Default)]
pub struct Maps {
    by_start: HashMap<u64, Arc<Mapping>>,
    /// Where each mapping begins in memory, and in the file.
    by_address: BTreeMap<usize, (usize, u64)>,
}

impl Maps {
    /// The memory of a block, mapped at the first use.
    ///
    /// # Errors
    /// The operating system's.
    pub fn reach(
        &mut self,
        file: &MemoryFile,
        block: Block,
    ) -> io::Result<(Arc<Mapping>, NonNull<u8>)> {
        let (start, len) = block.unit();
        let len = usize::try_from(len).map_err(io::Error::other)?;
        let mapping = match self.by_start.get(&start) {
            Some(mapping) if mapping.len() >= len => mapping.clone(),
            _ => {
                let mapping = Arc::new(file.map(start, len)?);
                self.by_address.insert(mapping.address().as_ptr() as usize, (len, start));
                self.by_start.insert(start, mapping.clone());
                mapping
            }
        };
        let delta = usize::try_from(block.start() - start).map_err(io::Error::other)?;
        // SAFETY: the block lies inside of its unit, which is mapped.
        let address = unsafe { mapping.address().add(delta) };
        Ok((mapping, address))
    }

    /// Which place of the file is mapped at an address, if any.
    #[must_use]
    pub fn find(&self, address: *const u8, len: usize) -> Option<u64> {
        let address = address as usize;
        let (start, (size, offset)) = self.by_address.range(..=address).next_back()?;
        let delta = address - start;
        (delta + len <= *size).then(|| offset + delta as u64)
    }

    /// Lets go of the mappings of a part of the file. Those in use stay until they are not.
    pub fn forget(&mut self, range: &Range<u64>) {
        self.by_start.retain(|start, mapping| {
            let goes = range.contains(start);
            if goes {
                self.by_address.remove(&(mapping.address().as_ptr() as usize));
            }
            !goes
        });
    }
}

/// A message or buffer that lies in a block, and keeps it mapped.
#[derive(Clone, Debug)]
pub struct View {
    _mapping: Arc<Mapping>,
    address: NonNull<u8>,
    len: usize,
}

// SAFETY: as for the mapping that it is a part of.
unsafe impl Send for View {}
// SAFETY: as above.
unsafe impl Sync for View {}

impl View {
    /// A part of a block.
    ///
    /// # Errors
    /// `InvalidData` when the block is not that long; the operating system's when mapping fails.
    pub fn of(
        maps: &mut Maps,
        file: &MemoryFile,
        block: Block,
        delta: u64,
        len: u64,
    ) -> io::Result<View> {
        if delta.checked_add(len).is_none_or(|end| end > block.capacity()) {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let (mapping, address) = maps.reach(file, block)?;
        let delta = usize::try_from(delta).map_err(io::Error::other)?;
        let len = usize::try_from(len).map_err(io::Error::other)?;
        // SAFETY: checked above to lie inside of the block.
        Ok(View { _mapping: mapping, address: unsafe { address.add(delta) }, len })
    }

    /// Where it begins.
    #[must_use]
    pub fn address(&self) -> NonNull<u8> {
        self.address
    }

    /// How long it is.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is nothing in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Copies bytes into it, from `at` on; what does not fit is left out.
    pub fn write(&self, at: usize, bytes: &[u8]) {
        let len = bytes.len().min(self.len.saturating_sub(at));
        // SAFETY: `len` bytes are there to read, and as many to write from `at` on. A block that is
        // written to was just allocated by this process; nobody else knows of it.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.address.as_ptr().add(at), len)
        };
    }

    /// Copies another view's beginning, as much as fits. The two do not overlap.
    pub fn copy_from(&self, other: &View) {
        let len = self.len.min(other.len);
        // SAFETY: `len` bytes are there to read and to write, in different blocks.
        unsafe {
            std::ptr::copy_nonoverlapping(other.address.as_ptr(), self.address.as_ptr(), len);
        }
    }

    /// A copy of its beginning.
    #[must_use]
    pub fn head(&self, len: usize) -> Vec<u8> {
        let len = len.min(self.len);
        let mut copy = Vec::with_capacity(len);
        // SAFETY: `len` bytes are there to read, and as many to write.
        unsafe {
            std::ptr::copy_nonoverlapping(self.address.as_ptr(), copy.as_mut_ptr(), len);
            copy.set_len(len);
        }
        copy
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts() -> (MemoryFile, Arena, Maps) {
        let range = range_of(None);
        (MemoryFile::new(FILE_SIZE).unwrap(), Arena::new(range.start, range.end), Maps::default())
    }

    #[test]
    fn blocks_do_not_overlap_and_their_names_say_where_they_are() {
        let (_, mut arena, _) = parts();
        let mut blocks: Vec<Block> = [1, 4096, 4097, 100_000, 5 << 20, 1, 4 << 20, 9 << 20, 70_000]
            .into_iter()
            .map(|len| {
                let block = arena.allocate(len).unwrap();
                assert!(block.capacity() >= len as u64);
                assert_eq!(Block::from_number(block.number()), Some(block));
                assert_eq!(block.owner(), None);
                block
            })
            .collect();
        blocks.sort_unstable();
        for pair in blocks.windows(2) {
            assert!(pair[0].start() + pair[0].capacity() <= pair[1].start(), "{pair:?}");
        }
        assert!(blocks[0].start() >= board::SIZE as u64);
        for wrong in [0, 12, u64::MAX, FILE_SIZE | 12, UNIT | 63, UNIT | 3] {
            assert_eq!(Block::from_number(wrong), None, "{wrong:x}");
        }
    }

    #[test]
    fn released_blocks_are_used_again() {
        let (file, mut arena, _) = parts();
        let first = arena.allocate(100_000).unwrap();
        let second = arena.allocate(100_000).unwrap();
        arena.release(&file, first);
        assert_eq!(arena.allocate(70_000).unwrap(), first);
        arena.release(&file, second);
        assert_ne!(arena.allocate(10_000).unwrap(), second);
        assert_eq!(arena.allocate(131_072).unwrap(), second);
    }

    #[test]
    fn an_arena_ends_where_its_range_does() {
        let mut arena = Arena::new(UNIT, 4 * UNIT);
        assert!(arena.allocate(usize::MAX >> 1).is_err());
        assert!(arena.allocate(8 << 20).is_ok());
        assert!(arena.allocate(8 << 20).is_err());
        assert!(arena.allocate(4 << 20).is_ok());
        assert!(arena.allocate(1).is_err());
    }

    #[test]
    fn another_process_s_mapping_shows_the_same_bytes() {
        let (file, mut arena, mut here) = parts();
        let mut there = Maps::default();
        for len in [10, 100_000, 6 << 20] {
            let block = arena.allocate(len).unwrap();
            let view = View::of(&mut here, &file, block, 0, len as u64).unwrap();
            view.write(3, b"rondel");
            let other = View::of(&mut there, &file, block, 3, 6).unwrap();
            assert_eq!(other.head(100), b"rondel");
            assert_ne!(other.address(), view.address());
            let inner = view.address().as_ptr().wrapping_add(3);
            assert_eq!(here.find(inner, 5), Some(block.start() + 3));
            assert!(View::of(&mut here, &file, block, 1, block.capacity()).is_err());
        }
        let stack = [0u8; 16];
        assert_eq!(here.find(stack.as_ptr(), 16), None);
    }

    #[test]
    fn memory_beyond_what_is_kept_goes_back() {
        let (file, mut arena, mut maps) = parts();
        let blocks: Vec<Block> = (0..3).map(|_| arena.allocate(128 << 20).unwrap()).collect();
        for block in &blocks {
            let view = View::of(&mut maps, &file, *block, 0, 4096).unwrap();
            view.write(0, b"x");
        }
        for block in &blocks {
            arena.release(&file, *block);
        }
        let first =
            |block: Block, maps: &mut Maps| View::of(maps, &file, block, 0, 1).unwrap().head(1);
        assert_eq!(first(blocks[0], &mut maps), b"x");
        assert_eq!(first(blocks[2], &mut maps), [0]);
    }
}
