//! A process by its pidfd, which can be polled for its end and cannot come to mean another process.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;
use std::thread;

/// A process.
#[derive(Debug)]
pub struct Process(OwnedFd);

impl Process {
    /// Opens a process by its number.
    ///
    /// # Errors
    /// `ESRCH` when there is none, `ENOSYS` before Linux 5.3.
    pub fn open(pid: i32) -> io::Result<Process> {
        // SAFETY: the call takes integers; the descriptor that comes back is owned by nobody else.
        unsafe {
            let fd = libc::syscall(libc::SYS_pidfd_open, pid, 0);
            match i32::try_from(fd) {
                Ok(fd) if fd >= 0 => Ok(Process(OwnedFd::from_raw_fd(fd))),
                _ => Err(io::Error::last_os_error()),
            }
        }
    }

    /// The descriptor; it can be read when the process has ended.
    #[must_use]
    pub fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    /// Sends a signal. A process that has ended does not mind.
    pub fn signal(&self, signal: i32) {
        // SAFETY: the call takes integers and an optional pointer.
        unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.fd(),
                signal,
                ptr::null::<libc::siginfo_t>(),
                0,
            )
        };
    }
}

/// Ends this process as soon as its parent has, whatever this process is busy with.
///
/// The parent is watched in two ways: by its pidfd, and by a descriptor whose other end only the
/// parent holds (multiprocessing's `parent_process().sentinel`). Each alone has a gap: the number can
/// belong to another process by now, and a child that the parent forked later can hold the other end.
///
/// # Errors
/// The operating system's, when no thread can be started.
pub fn end_with_parent(pid: i32, sentinel: Option<OwnedFd>) -> io::Result<()> {
    let parent = match Process::open(pid) {
        Ok(parent) => Some(parent),
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => end(),
        Err(_) => None,
    };
    thread::Builder::new().name("rondel-watchdog".into()).spawn(move || {
        let descriptors =
            [parent.as_ref().map(Process::fd), sentinel.as_ref().map(AsRawFd::as_raw_fd)];
        let mut watched: Vec<libc::pollfd> = descriptors
            .into_iter()
            .flatten()
            .map(|fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 })
            .collect();
        // No signal handler of the program's belongs on this thread.
        // SAFETY: fills a set on the stack and blocks its signals for this thread.
        unsafe {
            let mut all: libc::sigset_t = std::mem::zeroed();
            libc::sigfillset(&raw mut all);
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, ptr::null_mut());
        }
        loop {
            // SAFETY: the array is alive, and its length is given.
            let ready =
                unsafe { libc::poll(watched.as_mut_ptr(), watched.len() as libc::nfds_t, -1) };
            if ready > 0 {
                end();
            }
        }
    })?;
    Ok(())
}

fn end() -> ! {
    // SAFETY: ends the process without running anything, which is what is wanted: nobody is left to
    // care for its results.
    unsafe { libc::_exit(1) }
}
