//! The board, with threads in the place of worker processes.

use super::*;
use crate::processes::arena;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::thread;

fn board() -> Board {
    let file = MemoryFile::new(arena::FILE_SIZE).unwrap();
    Board::map(&file, [Bell::new().unwrap(), Bell::new().unwrap()]).unwrap()
}

fn collected(board: &Board) -> Vec<usize> {
    let mut slots = Vec::new();
    board.collect(Listener::Thread, &mut slots);
    slots
}

#[test]
fn a_call_is_claimed_once_and_collected_once() {
    let board = board();
    assert!(!board.has_work() && board.claim(1, 5).is_none());
    board.write_inline(7, b"hello");
    board.set_place(7, Place { block: 0, len: 5 });
    board.publish(7);
    assert!(board.has_work());
    assert_eq!(board.state(7), State::Ready);
    assert_eq!(board.claim(1, 5), Some(7));
    assert_eq!(board.claim(2, 6), None);
    assert_eq!((board.state(7), board.since(7)), (State::Claimed(1), 5));
    assert_eq!(board.read_inline(7, board.place(7).len), b"hello");
    assert!(collected(&board).is_empty());
    assert!(board.finish(7));
    assert_eq!(board.state(7), State::Done(1));
    assert_eq!(collected(&board), [7]);
    assert!(collected(&board).is_empty());
    board.free(7);
    assert_eq!(board.state(7), State::Free);
}

#[test]
fn calls_are_claimed_in_order_and_withdrawn_ones_are_passed() {
    let board = board();
    for slot in [5, 3, 9, 1] {
        board.publish(slot);
    }
    assert!(board.withdraw(3) && !board.withdraw(3));
    assert_eq!(board.claim(0, 1), Some(5));
    assert!(!board.withdraw(5));
    assert_eq!(board.claim(0, 1), Some(9));
    board.free(3);
    board.publish(3);
    assert_eq!(board.claim(0, 1), Some(1));
    assert_eq!(board.claim(0, 1), Some(3));
}

#[test]
fn a_doomed_call_cannot_be_finished() {
    let board = board();
    board.publish(0);
    assert_eq!(board.doom(0), None);
    assert_eq!(board.claim(4, 1), Some(0));
    assert_eq!(board.doom(0), Some(4));
    assert_eq!(board.doom(0), None, "the second time there is nobody new to kill");
    assert_eq!(board.state(0), State::Claimed(4));
    assert!(!board.finish(0));
    assert!(collected(&board).is_empty());
}

#[test]
fn the_board_fills_up_and_its_queue_goes_round() {
    let board = board();
    for turn in 0..5 {
        for slot in 0..SLOTS {
            assert!(board.has_room(), "turn {turn}, slot {slot}");
            board.publish(slot);
        }
        assert!(!board.has_room());
        // Withdrawn calls make room once nothing is before them.
        assert!(board.withdraw(0) && board.has_room());
        board.free(0);
        for slot in 1..SLOTS {
            assert_eq!(board.claim(3, 1), Some(slot));
            assert!(board.finish(slot));
        }
        assert_eq!(collected(&board).len(), SLOTS - 1);
        (1..SLOTS).for_each(|slot| board.free(slot));
    }
}

#[test]
fn many_workers_claim_every_call_exactly_once() {
    const CALLS: usize = 50_000;
    let board = Arc::new(board());
    let claimed = Arc::new(AtomicUsize::new(0));
    let workers: Vec<_> = (0..4)
        .map(|berth| {
            let (board, claimed) = (board.clone(), claimed.clone());
            thread::spawn(move || {
                loop {
                    if let Some(slot) = board.claim(berth, 1) {
                        assert_eq!(board.state(slot), State::Claimed(berth));
                        claimed.fetch_add(1, Relaxed);
                        assert!(board.finish(slot));
                    } else if board.is_stopping() {
                        return;
                    } else {
                        board.sleep(berth).unwrap();
                    }
                }
            })
        })
        .collect();
    let mut free: Vec<usize> = (0..SLOTS).collect();
    let (mut published, mut done) = (0, 0);
    while done < CALLS {
        while published < CALLS
            && board.has_room()
            && let Some(slot) = free.pop()
        {
            board.publish(slot);
            board.wake_one(0..4);
            published += 1;
        }
        for slot in collected(&board) {
            board.free(slot);
            free.push(slot);
            done += 1;
        }
        thread::yield_now();
    }
    board.stop(0..4);
    workers.into_iter().for_each(|worker| worker.join().unwrap());
    assert_eq!(claimed.load(Relaxed), CALLS);
}

#[test]
fn a_sleeping_worker_is_woken_once() {
    let board = Arc::new(board());
    let other = board.clone();
    let sleeper = thread::spawn(move || {
        other.sleep(2).unwrap();
        other.claim(2, 1)
    });
    while board.berth(2).asleep.load(SeqCst) == 0 {
        thread::yield_now();
    }
    board.publish(11);
    assert!(board.wake_one([0, 1, 2].into_iter()));
    assert_eq!(sleeper.join().unwrap(), Some(11));
    assert!(!board.wake_one([0, 1, 2].into_iter()));
}

#[test]
fn blocks_are_given_back_until_the_mailbox_is_full() {
    let board = board();
    for block in 0..u64::from(MAILBOX) {
        assert!(board.give_back(1, block));
    }
    assert!(!board.give_back(1, 99));
    assert_eq!(board.take_back(1), Some(0));
    assert!(board.give_back(1, 99));
    let rest: Vec<u64> = std::iter::from_fn(|| board.take_back(1)).collect();
    assert_eq!(rest.len(), MAILBOX as usize);
    assert_eq!(rest.last(), Some(&99));
}
