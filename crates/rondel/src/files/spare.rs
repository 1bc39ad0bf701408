//! Memory that waits to be written again: of all files together, so that a program with many of them does
//! not keep some for each, and finds it touched already.

use std::sync::Mutex;

use rondel_reactor::lock::lock;

/// Up to this size memory is only as large as it has to be: many files are small.
const SMALL: usize = 16 * 1024;
/// The size from there on: what is gathered before a thread writes it, and some that comes meanwhile.
const LARGE: usize = 192 * 1024;
/// How many are kept.
const KEPT: usize = 16;

static MEMORY: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());

/// Empty memory with room for so many bytes, and for some more.
pub fn of_size(size: usize) -> Vec<u8> {
    if size > LARGE {
        return Vec::with_capacity(2 * size);
    }
    if size > SMALL {
        return lock(&MEMORY).pop().unwrap_or_else(|| Vec::with_capacity(LARGE));
    }
    Vec::with_capacity(size.next_power_of_two())
}

/// What was in it has been written.
pub fn give_back(mut memory: Vec<u8>) {
    if memory.capacity() != LARGE {
        return;
    }
    memory.clear();
    let mut kept = lock(&MEMORY);
    if kept.len() < KEPT {
        kept.push(memory);
    }
}
