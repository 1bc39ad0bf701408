//! Who uses which block: the parent's account.
//!
//! A block that carries a buffer is used by the parent (an object of its own lies there, or a call that
//! refers to it is under way) and by workers that have received it. A worker says in its answers which
//! blocks it has done with; when it dies, everything that it used is free of it. A block that nobody
//! uses goes back to the arena it came from.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard};

use rondel_reactor::lock::lock;

use super::arena::{Block, range_of};
use super::board::Board;
use super::frame::{Lender, Store};

#[derive(Debug, Default)]
struct Users {
    parent: u32,
    /// Berths, and how often each has received the block.
    workers: Vec<(usize, u32)>,
}

impl Users {
    fn is_empty(&self) -> bool {
        self.parent == 0 && self.workers.is_empty()
    }

    fn take(&mut self, berth: usize, how_often: u32) {
        if let Some(index) = self.workers.iter().position(|(worker, _)| *worker == berth) {
            self.workers[index].1 = self.workers[index].1.saturating_sub(how_often);
            if self.workers[index].1 == 0 {
                self.workers.swap_remove(index);
            }
        }
    }
}

/// All blocks in use. Methods that end a use say whether it was the last.
#[derive(Debug, Default)]
pub struct Ledger(HashMap<Block, Users>);

impl Ledger {
    /// The parent uses a block, once more.
    pub fn hold(&mut self, block: Block) {
        self.0.entry(block).or_default().parent += 1;
    }

    /// The parent uses it once less.
    #[must_use]
    pub fn let_go(&mut self, block: Block) -> bool {
        self.change(block, |users| users.parent = users.parent.saturating_sub(1))
    }

    /// One use of the parent's is one of a worker's now.
    pub fn hand_over(&mut self, block: Block, berth: usize) {
        let users = self.0.entry(block).or_default();
        users.parent = users.parent.saturating_sub(1);
        match users.workers.iter_mut().find(|(worker, _)| *worker == berth) {
            Some((_, count)) => *count += 1,
            None => users.workers.push((berth, 1)),
        }
    }

    /// A worker uses a block once less.
    #[must_use]
    pub fn returned(&mut self, block: Block, berth: usize) -> bool {
        self.change(block, |users| users.take(berth, 1))
    }

    /// A worker uses nothing any more: returns the blocks that nobody uses then.
    #[must_use]
    pub fn died(&mut self, berth: usize) -> Vec<Block> {
        let mut unused = Vec::new();
        self.0.retain(|block, users| {
            users.take(berth, u32::MAX);
            let stays = !users.is_empty();
            if !stays {
                unused.push(*block);
            }
            stays
        });
        unused
    }

    /// The blocks in use in a range of the file, in order.
    #[must_use]
    pub fn used_in(&self, range: &Range<u64>) -> Vec<Block> {
        let mut used: Vec<Block> =
            self.0.keys().copied().filter(|block| range.contains(&block.start())).collect();
        used.sort_unstable();
        used
    }

    /// The block in use that holds a place of the file.
    #[must_use]
    pub fn find(&self, place: u64, len: u64) -> Option<Block> {
        // Blocks begin at multiples of their size, up to the size of a unit.
        self.0
            .keys()
            .copied()
            .find(|block| block.start() <= place && place + len <= block.start() + block.capacity())
    }

    /// How many blocks are in use.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn change(&mut self, block: Block, change: impl FnOnce(&mut Users)) -> bool {
        let Some(users) = self.0.get_mut(&block) else { return false };
        change(users);
        let unused = users.is_empty();
        if unused {
            self.0.remove(&block);
        }
        unused
    }
}

/// The parent's store with its account, and the board: everything that decides when a block goes back.
#[derive(Debug)]
pub struct Accounts {
    /// The parent's allocations and mappings.
    pub store: Store,
    /// The board.
    pub board: Board,
    ledger: Mutex<Ledger>,
    /// Blocks that workers could not be told of yet that they are their own again.
    backlog: Mutex<Vec<Block>>,
}

impl Accounts {
    /// Nothing is in use yet.
    #[must_use]
    pub fn new(store: Store, board: Board) -> Accounts {
        Accounts { store, board, ledger: Mutex::default(), backlog: Mutex::default() }
    }

    /// The account. No call into anything but itself is made while it is held.
    pub fn ledger(&self) -> MutexGuard<'_, Ledger> {
        lock(&self.ledger)
    }

    /// Nobody uses a block any more.
    pub fn reclaim(&self, block: Block) {
        if block.owner().is_none() {
            self.store.release(block);
            return;
        }
        let mut backlog = lock(&self.backlog);
        backlog.push(block);
        backlog.retain(|block| {
            block.owner().is_some_and(|berth| !self.board.give_back(berth, block.number()))
        });
    }

    /// One use of the parent's ends.
    pub fn drop_use(&self, block: Block) {
        let unused = self.ledger().let_go(block);
        if unused {
            self.reclaim(block);
        }
    }

    /// A worker is dead: what it used and nobody else does goes back, and so does the memory of its own
    /// blocks that nobody uses.
    pub fn bury(&self, berth: usize) {
        let unused = self.ledger().died(berth);
        for block in unused {
            if block.owner() != Some(berth) {
                self.reclaim(block);
            }
        }
        let mut backlog = lock(&self.backlog);
        backlog.retain(|block| block.owner() != Some(berth));
        drop(backlog);
        let range = range_of(Some(berth));
        let used = self.ledger().used_in(&range);
        let mut at = range.start;
        for block in &used {
            self.store.file().forget(at, block.start().saturating_sub(at));
            at = block.start() + block.capacity();
        }
        self.store.file().forget(at, range.end - at);
        if used.is_empty() {
            self.store.forget(&range);
        }
    }

    /// Where the next worker in a berth may begin to allocate.
    #[must_use]
    pub fn first_free(&self, berth: usize) -> u64 {
        let range = range_of(Some(berth));
        let used = self.ledger().used_in(&range);
        used.last().map_or(range.start, |block| block.start() + block.capacity())
    }
}

impl Lender for Accounts {
    fn done_with(&self, block: Block) {
        self.drop_use(block);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(number: u64) -> Block {
        Block::from_number((number + 1) << 22 | 22).unwrap()
    }

    #[test]
    fn a_block_is_unused_when_its_last_user_has_gone() {
        let mut ledger = Ledger::default();
        let block = block(1);
        ledger.hold(block);
        ledger.hold(block);
        ledger.hand_over(block, 3);
        assert!(!ledger.let_go(block));
        assert!(!ledger.returned(block, 4), "it does not use it");
        assert!(ledger.returned(block, 3));
        assert!(ledger.is_empty());
        assert!(!ledger.returned(block, 3) && !ledger.let_go(block));
    }

    #[test]
    fn the_dead_use_nothing() {
        let mut ledger = Ledger::default();
        for number in 0..3 {
            ledger.hold(block(number));
            ledger.hold(block(number));
            ledger.hand_over(block(number), 5);
            ledger.hand_over(block(number), 5);
        }
        ledger.hold(block(0));
        ledger.hold(block(1));
        ledger.hand_over(block(1), 6);
        assert_eq!(ledger.died(5), [block(2)]);
        assert_eq!(ledger.died(6), [block(1)]);
        assert!(ledger.let_go(block(0)));
    }

    #[test]
    fn a_place_leads_to_its_block() {
        let mut ledger = Ledger::default();
        ledger.hold(block(1));
        let start = block(1).start();
        assert_eq!(ledger.find(start + 100, 50), Some(block(1)));
        assert_eq!(ledger.find(start + block(1).capacity() - 10, 11), None);
        assert_eq!(ledger.find(start - 1, 1), None);
    }
}
