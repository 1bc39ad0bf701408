//! The BIO between OpenSSL and a transport: ciphertext that has come and ciphertext that is to go.
//!
//! A BIO is called from whoever calls OpenSSL: mostly [`super::Connection`], but the handshake and the
//! shutdown are methods of `_ssl`, which let go of the GIL meanwhile. Hence the lock, for which nobody
//! ever waits; it is not held across anything but copying.

use std::ffi::{c_char, c_int, c_long, c_void};
use std::mem;
use std::slice;
use std::sync::{Arc, Mutex, MutexGuard};

use rondel_reactor::lock::lock;

use super::library::{Bio, BioMethod, Found, Library, SOURCE_SINK};

/// Memory that a quiet connection keeps for what it sends next, in bytes.
const KEPT: usize = 4 * 1024;

#[derive(Default)]
struct Buffers {
    incoming: Vec<u8>,
    /// How much of it OpenSSL has taken.
    taken: usize,
    outgoing: Vec<u8>,
}

impl Buffers {
    fn rest(&self) -> &[u8] {
        &self.incoming[self.taken..]
    }
}

/// What OpenSSL reads from and writes to.
#[derive(Default)]
pub struct Pipe {
    buffers: Mutex<Buffers>,
}

impl Pipe {
    fn lock(&self) -> MutexGuard<'_, Buffers> {
        lock(&self.buffers)
    }

    /// Adds ciphertext that has come.
    pub fn feed(&self, data: &[u8]) {
        let mut buffers = self.lock();
        if buffers.rest().is_empty() {
            buffers.incoming.clear();
            buffers.taken = 0;
        }
        buffers.incoming.extend_from_slice(data);
    }

    /// Adds ciphertext without a copy if nothing else waits: takes the memory, which
    /// [`Pipe::give_back`] returns.
    pub fn lend(&self, memory: Vec<u8>) {
        let mut buffers = self.lock();
        if buffers.rest().is_empty() {
            buffers.incoming = memory;
            buffers.taken = 0;
        } else {
            buffers.incoming.extend_from_slice(&memory);
        }
    }

    /// The memory that was lent. What OpenSSL has not taken of it is copied.
    pub fn give_back(&self) -> Vec<u8> {
        let mut buffers = self.lock();
        let rest = buffers.rest().to_vec();
        buffers.taken = 0;
        mem::replace(&mut buffers.incoming, rest)
    }

    /// Bytes that OpenSSL has not taken.
    pub fn incoming(&self) -> usize {
        self.lock().rest().len()
    }

    /// Bytes that are to go.
    pub fn outgoing(&self) -> usize {
        self.lock().outgoing.len()
    }

    /// Takes the ciphertext that is to go.
    pub fn take_outgoing(&self) -> Vec<u8> {
        mem::take(&mut self.lock().outgoing)
    }

    /// Offers the memory of what has gone for what goes next.
    pub fn reuse(&self, mut memory: Vec<u8>) {
        let mut buffers = self.lock();
        if buffers.outgoing.capacity() == 0 && memory.capacity() <= KEPT {
            memory.clear();
            buffers.outgoing = memory;
        }
    }

    /// Takes up to `size` bytes of what is to go or of what has come.
    pub fn take(&self, is_outgoing: bool, size: usize) -> Vec<u8> {
        let mut buffers = self.lock();
        if is_outgoing {
            let size = size.min(buffers.outgoing.len());
            return buffers.outgoing.drain(..size).collect();
        }
        let size = size.min(buffers.rest().len());
        let data = buffers.rest()[..size].to_vec();
        buffers.taken += size;
        data
    }

    /// Adds to what is to go.
    pub fn send(&self, data: &[u8]) {
        self.lock().outgoing.extend_from_slice(data);
    }

    /// A BIO over this, with one reference; None when memory is short.
    pub fn bio(self: &Arc<Self>, found: &'static Found) -> Option<*mut Bio> {
        let calls = &found.library;
        // SAFETY: the method table is complete and lives for ever.
        let bio = unsafe { (calls.bio_new)(found.method) };
        if bio.is_null() {
            return None;
        }
        // SAFETY: the BIO is new and nobody else knows it. It owns one count of the Arc, which
        // `destroy` takes back.
        unsafe {
            (calls.bio_set_data)(bio, Arc::into_raw(Arc::clone(self)).cast_mut().cast());
            (calls.bio_set_init)(bio, 1);
        }
        Some(bio)
    }
}

/// A method table for [`Pipe`]; None when memory is short.
pub fn method(calls: &Library) -> Option<*const BioMethod> {
    // SAFETY: the name is a static C string; the functions have the signatures that are asked for. A
    // table that could not be completed is left alone, which happens once at most.
    unsafe {
        let kind = (calls.bio_new_index)();
        if kind < 0 {
            return None;
        }
        let method = (calls.bio_method_new)(kind | SOURCE_SINK, c"rondel".as_ptr());
        if method.is_null() {
            return None;
        }
        let complete = (calls.bio_method_read)(method, read) == 1
            && (calls.bio_method_write)(method, write) == 1
            && (calls.bio_method_control)(method, control) == 1
            && (calls.bio_method_destroy)(method, destroy) == 1;
        complete.then_some(method.cast_const())
    }
}

/// The library, which was found before there were any BIOs of ours.
fn calls() -> Option<&'static Library> {
    super::found().map(|found| &found.library)
}

/// The pipe of a BIO.
///
/// # Safety
/// `bio` is one that [`Pipe::bio`] made and that is not destroyed yet; so is the result.
unsafe fn pipe<'a>(calls: &Library, bio: *mut Bio) -> Option<&'a Pipe> {
    // SAFETY: by this function's contract the data is what `Pipe::bio` has put there: null for a
    // moment, and then a pipe that the BIO's own count keeps.
    unsafe { (calls.bio_get_data)(bio).cast::<Pipe>().as_ref() }
}

/// `BIO_FLAGS_READ | BIO_FLAGS_SHOULD_RETRY`: nothing is there now.
const RETRY_READ: c_int = 0x01 | 0x08;
/// These and the flags for the other reasons to try again.
const RETRY: c_int = 0x01 | 0x02 | 0x04 | 0x08;

unsafe extern "C" fn read(bio: *mut Bio, memory: *mut c_char, size: c_int) -> c_int {
    let Some(calls) = calls() else { return -1 };
    // SAFETY: OpenSSL calls this for BIOs of our method, while they exist.
    let Some(pipe) = (unsafe { pipe(calls, bio) }) else { return -1 };
    // SAFETY: the BIO exists.
    unsafe { (calls.bio_clear_flags)(bio, RETRY) };
    let Ok(size) = usize::try_from(size) else { return -1 };
    if memory.is_null() || size == 0 {
        return 0;
    }
    let mut buffers = pipe.lock();
    let rest = buffers.rest();
    let count = size.min(rest.len());
    if count == 0 {
        drop(buffers);
        // SAFETY: the BIO exists.
        unsafe { (calls.bio_set_flags)(bio, RETRY_READ) };
        return -1;
    }
    // SAFETY: OpenSSL gives memory for `size` bytes, and `count` is no more; it is not ours.
    unsafe { memory.cast::<u8>().copy_from_nonoverlapping(rest.as_ptr(), count) };
    buffers.taken += count;
    // It is no more than `size`.
    c_int::try_from(count).unwrap_or(c_int::MAX)
}

unsafe extern "C" fn write(bio: *mut Bio, memory: *const c_char, size: c_int) -> c_int {
    let Some(calls) = calls() else { return -1 };
    // SAFETY: OpenSSL calls this for BIOs of our method, while they exist.
    let Some(pipe) = (unsafe { pipe(calls, bio) }) else { return -1 };
    // SAFETY: the BIO exists.
    unsafe { (calls.bio_clear_flags)(bio, RETRY) };
    let Ok(length) = usize::try_from(size) else { return -1 };
    if memory.is_null() || length == 0 {
        return 0;
    }
    // SAFETY: OpenSSL gives `size` bytes to read.
    pipe.send(unsafe { slice::from_raw_parts(memory.cast(), length) });
    size
}

unsafe extern "C" fn control(
    bio: *mut Bio,
    command: c_int,
    _number: c_long,
    _pointer: *mut c_void,
) -> c_long {
    const PENDING: c_int = 10;
    const FLUSH: c_int = 11;
    const WRITE_PENDING: c_int = 13;
    // SAFETY: OpenSSL calls this for BIOs of our method, while they exist.
    let Some(pipe) = calls().and_then(|calls| unsafe { pipe(calls, bio) }) else { return 0 };
    match command {
        PENDING => c_long::try_from(pipe.incoming()).unwrap_or(c_long::MAX),
        WRITE_PENDING => c_long::try_from(pipe.outgoing()).unwrap_or(c_long::MAX),
        FLUSH => 1,
        _ => 0,
    }
}

unsafe extern "C" fn destroy(bio: *mut Bio) -> c_int {
    let Some(calls) = calls() else { return 0 };
    // SAFETY: the BIO exists until this function returns. Its data is null, or the count that
    // `Pipe::bio` gave to it; nobody finds that a second time.
    unsafe {
        let data = (calls.bio_get_data)(bio);
        (calls.bio_set_data)(bio, std::ptr::null_mut());
        if !data.is_null() {
            drop(Arc::from_raw(data.cast_const().cast::<Pipe>()));
        }
    }
    1
}
