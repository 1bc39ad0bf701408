//! One poll instance (epoll on Linux, kqueue on macOS) on mio.
//!
//! Two kinds of sources:
//!
//! * **edge**: transports. Registered once for reading and writing together; their owner reads until
//!   a short read, so neither pausing nor a full send buffer costs a system call here.
//! * **level**: what programs watch themselves (`add_reader`, `sock_*`), where asyncio promises that a
//!   callback which does not read is called again. mio only offers edges; on Linux these sources are
//!   put into its epoll instance by hand, elsewhere they are armed again after each event.
//!
//! [`Poller`] waits and needs exclusive access; [`Registrar`] changes what is waited for and can be
//! used meanwhile, also from another thread; [`Waker`] ends a wait from any thread.

use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Registry, Token};

use crate::slab::Key;

const WAKE: Token = Token(usize::MAX);
/// Events taken per wait. What does not fit comes with the next one.
const EVENTS_PER_WAIT: usize = 1024;

/// What became possible on a source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Readiness {
    /// There is something to read: data, an end of file, or an error.
    pub readable: bool,
    /// There is room to write, or an error to fetch by writing.
    pub writable: bool,
    /// The peer will send nothing more, or the connection failed: read until the end.
    pub read_closed: bool,
}

impl Readiness {
    /// Both together.
    #[must_use]
    pub fn and(self, later: Readiness) -> Readiness {
        Readiness {
            readable: self.readable || later.readable,
            writable: self.writable || later.writable,
            read_closed: self.read_closed || later.read_closed,
        }
    }
}

/// An event of the poller: the source's key and what became possible.
#[derive(Clone, Copy, Debug)]
pub struct Event {
    /// The key under which the source was added.
    pub key: Key,
    /// What became possible.
    pub readiness: Readiness,
}

/// What a level-triggered source is watched for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watch {
    /// Tell when it can be read.
    pub read: bool,
    /// Tell when it can be written.
    pub write: bool,
}

impl Watch {
    /// Neither reading nor writing: not to be registered at all.
    #[must_use]
    pub fn is_empty(self) -> bool {
        !self.read && !self.write
    }
}

/// The waiting side.
pub struct Poller {
    poll: Poll,
    events: Events,
}

/// The side that adds and removes sources.
pub struct Registrar {
    registry: Registry,
}

/// Ends a wait from any thread; cheap to clone. A wake-up lasts only while a clone is alive, so the
/// loop keeps one for itself.
#[derive(Clone)]
pub struct Waker(Arc<mio::Waker>);

impl Waker {
    /// Makes the current wait, or the next one, return at once.
    ///
    /// # Errors
    /// The operating system's, when the wake-up descriptor cannot be written.
    pub fn wake(&self) -> io::Result<()> {
        self.0.wake()
    }
}

impl Poller {
    /// Opens a poll instance with its wake-up.
    ///
    /// # Errors
    /// The operating system's, usually that there are too many open files.
    pub fn new() -> io::Result<(Poller, Registrar, Waker)> {
        let poll = Poll::new()?;
        let registry = poll.registry().try_clone()?;
        let waker = Waker(Arc::new(mio::Waker::new(&registry, WAKE)?));
        let events = Events::with_capacity(EVENTS_PER_WAIT);
        Ok((Poller { poll, events }, Registrar { registry }, waker))
    }

    /// Waits until a source is ready, the waker is used or the time is over (`None`: for ever), and
    /// appends what happened to `into`. Times are rounded up to the millisecond.
    ///
    /// # Errors
    /// `Interrupted` when a signal arrived; the caller decides whether to go on.
    pub fn wait(&mut self, timeout: Option<Duration>, into: &mut Vec<Event>) -> io::Result<()> {
        self.poll.poll(&mut self.events, timeout)?;
        for event in &self.events {
            if event.token() == WAKE {
                continue;
            }
            let failed = event.is_error();
            let read_closed = event.is_read_closed() || failed;
            into.push(Event {
                key: Key::from_usize(event.token().0),
                readiness: Readiness {
                    readable: event.is_readable() || read_closed,
                    writable: event.is_writable() || event.is_write_closed() || failed,
                    read_closed,
                },
            });
        }
        Ok(())
    }
}

impl Registrar {
    /// Adds an edge-triggered source for reading and writing.
    ///
    /// # Errors
    /// `EPERM` for what cannot be polled (files), `EEXIST` when it is there already, and others.
    pub fn add_edge(&self, fd: RawFd, key: Key) -> io::Result<()> {
        self.registry.register(
            &mut SourceFd(&fd),
            Token(key.to_usize()),
            Interest::READABLE | Interest::WRITABLE,
        )
    }

    /// Removes a source. Must come before its descriptor is closed.
    ///
    /// # Errors
    /// `ENOENT` and `EBADF` when it is not there (any more).
    pub fn remove(&self, fd: RawFd) -> io::Result<()> {
        self.registry.deregister(&mut SourceFd(&fd))
    }

    /// Adds a level-triggered source. On systems without [`LEVEL_IS_NATIVE`], call
    /// [`Registrar::change_level`] again after each event that was handled.
    ///
    /// # Errors
    /// As [`Registrar::add_edge`].
    pub fn add_level(&self, fd: RawFd, key: Key, watch: Watch) -> io::Result<()> {
        level::add(&self.registry, fd, key, watch)
    }

    /// Changes what a level-triggered source is watched for.
    ///
    /// # Errors
    /// `ENOENT` and `EBADF` when it is not there (any more).
    pub fn change_level(&self, fd: RawFd, key: Key, watch: Watch) -> io::Result<()> {
        level::change(&self.registry, fd, key, watch)
    }
}

/// Whether level-triggered sources stay armed by themselves.
pub const LEVEL_IS_NATIVE: bool = cfg!(target_os = "linux");

#[cfg(target_os = "linux")]
mod level {
    use super::{Key, RawFd, Registry, Watch, io};
    use std::os::fd::AsRawFd;

    #[allow(clippy::cast_sign_loss)]
    fn control(
        registry: &Registry,
        operation: i32,
        fd: RawFd,
        key: Key,
        watch: Watch,
    ) -> io::Result<()> {
        let mut events = 0;
        if watch.read {
            events |= libc::EPOLLIN;
        }
        if watch.write {
            events |= libc::EPOLLOUT;
        }
        let mut event = libc::epoll_event { events: events as u32, u64: key.to_usize() as u64 };
        // SAFETY: the registry's descriptor is an open epoll instance and `event` outlives the call;
        // a bad `fd` is reported as an error by the kernel.
        let result =
            unsafe { libc::epoll_ctl(registry.as_raw_fd(), operation, fd, &raw mut event) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    pub(super) fn add(registry: &Registry, fd: RawFd, key: Key, watch: Watch) -> io::Result<()> {
        control(registry, libc::EPOLL_CTL_ADD, fd, key, watch)
    }

    pub(super) fn change(registry: &Registry, fd: RawFd, key: Key, watch: Watch) -> io::Result<()> {
        control(registry, libc::EPOLL_CTL_MOD, fd, key, watch)
    }
}

#[cfg(not(target_os = "linux"))]
mod level {
    use super::{Interest, Key, RawFd, Registry, SourceFd, Token, Watch, io};

    fn interest(watch: Watch) -> Interest {
        match (watch.read, watch.write) {
            (true, true) => Interest::READABLE | Interest::WRITABLE,
            (false, true) => Interest::WRITABLE,
            (_, false) => Interest::READABLE,
        }
    }

    pub(super) fn add(registry: &Registry, fd: RawFd, key: Key, watch: Watch) -> io::Result<()> {
        registry.register(&mut SourceFd(&fd), Token(key.to_usize()), interest(watch))
    }

    pub(super) fn change(registry: &Registry, fd: RawFd, key: Key, watch: Watch) -> io::Result<()> {
        registry.reregister(&mut SourceFd(&fd), Token(key.to_usize()), interest(watch))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slab::Slab;
    use std::io::{Read, Write};
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;

    const NOW: Option<Duration> = Some(Duration::ZERO);
    const SOON: Option<Duration> = Some(Duration::from_secs(5));
    const READ: Watch = Watch { read: true, write: false };

    fn wait(poller: &mut Poller, timeout: Option<Duration>) -> Vec<Event> {
        let mut events = Vec::new();
        poller.wait(timeout, &mut events).unwrap();
        events
    }

    #[test]
    fn a_level_source_is_reported_until_it_is_read() {
        let (mut poller, registrar, _waker) = Poller::new().unwrap();
        let (mut here, mut there) = UnixStream::pair().unwrap();
        let key = Slab::default().insert(());
        registrar.add_level(here.as_raw_fd(), key, READ).unwrap();
        assert!(wait(&mut poller, NOW).is_empty());
        there.write_all(b"x").unwrap();
        for _ in 0..2 {
            let events = wait(&mut poller, SOON);
            assert_eq!(events.len(), 1);
            assert_eq!(events[0].key, key);
            assert!(events[0].readiness.readable && !events[0].readiness.writable);
            if !LEVEL_IS_NATIVE {
                registrar.change_level(here.as_raw_fd(), key, READ).unwrap();
            }
        }
        here.read_exact(&mut [0]).unwrap();
        assert!(wait(&mut poller, NOW).is_empty());
        registrar.change_level(here.as_raw_fd(), key, Watch { read: true, write: true }).unwrap();
        assert!(wait(&mut poller, SOON)[0].readiness.writable);
        registrar.remove(here.as_raw_fd()).unwrap();
        assert!(registrar.remove(here.as_raw_fd()).is_err());
        assert!(wait(&mut poller, NOW).is_empty());
    }

    #[test]
    fn an_edge_source_is_reported_once_and_tells_the_end() {
        let (mut poller, registrar, _waker) = Poller::new().unwrap();
        let (here, mut there) = UnixStream::pair().unwrap();
        let key = Slab::default().insert(());
        registrar.add_edge(here.as_raw_fd(), key).unwrap();
        assert!(wait(&mut poller, SOON)[0].readiness.writable);
        there.write_all(b"x").unwrap();
        assert!(wait(&mut poller, SOON)[0].readiness.readable);
        assert!(wait(&mut poller, NOW).is_empty());
        drop(there);
        assert!(wait(&mut poller, SOON)[0].readiness.read_closed);
    }

    #[test]
    fn a_wake_from_another_thread_ends_the_wait_and_is_no_event() {
        let (mut poller, _registrar, waker) = Poller::new().unwrap();
        let other = waker.clone();
        let thread = std::thread::spawn(move || other.wake().unwrap());
        assert!(wait(&mut poller, None).is_empty());
        thread.join().unwrap();
        assert!(wait(&mut poller, NOW).is_empty());
    }
}
