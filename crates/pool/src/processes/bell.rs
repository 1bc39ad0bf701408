//! Waking each other.
//!
//! Workers sleep on a word of the shared memory (a futex), which is the cheapest there is. The parent
//! waits for several things at once, so it is woken by a descriptor (an eventfd), which can be polled.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;
use std::sync::atomic::AtomicU32;

/// Sleeps while the word has the value; returns at once when it has not. May return for no reason.
///
/// # Errors
/// `Interrupted` when a signal arrived.
pub fn sleep_while(word: &AtomicU32, value: u32) -> io::Result<()> {
    // SAFETY: the word lives longer than the call; the kernel only compares it.
    let result = unsafe {
        libc::syscall(
            libc::SYS_futex,
            word.as_ptr(),
            libc::FUTEX_WAIT,
            value,
            ptr::null::<libc::timespec>(),
        )
    };
    if result == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    if error.raw_os_error() == Some(libc::EAGAIN) { Ok(()) } else { Err(error) }
}

/// Wakes one that sleeps on the word.
pub fn wake(word: &AtomicU32) {
    // SAFETY: the word is alive; nothing is done to it.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, 1) };
}

/// A bell that can be polled (edge-triggered, it need not be read).
#[derive(Debug)]
pub struct Bell(OwnedFd);

impl Bell {
    /// A new bell.
    ///
    /// # Errors
    /// The operating system's, usually that there are too many open files.
    pub fn new() -> io::Result<Bell> {
        // SAFETY: the call takes integers; the descriptor that comes back is owned by nobody else.
        unsafe {
            let fd = libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(Bell(OwnedFd::from_raw_fd(fd)))
        }
    }

    /// A bell of the parent's, by an inherited descriptor.
    #[must_use]
    pub fn inherited(fd: OwnedFd) -> Bell {
        Bell(fd)
    }

    /// Its descriptor.
    #[must_use]
    pub fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    /// Rings it. (It could only fail by having been rung 2^64 times.)
    pub fn ring(&self) {
        let one = 1u64;
        // SAFETY: writes eight bytes from a live number.
        unsafe { libc::write(self.fd(), (&raw const one).cast(), 8) };
    }
}
