//! Non-blocking calls on pipes and what can be used like one: FIFOs, sockets, character devices.
//!
//! As in [`crate::net`], descriptors belong to transports; a stale one gives the operating system's
//! error.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::RawFd;

/// What a descriptor leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A pipe or FIFO.
    Fifo,
    /// A socket.
    Socket,
    /// A terminal or another character device.
    Character,
    /// Anything else, such as a file.
    Other,
}

/// What the descriptor leads to.
///
/// # Errors
/// The operating system's.
pub fn kind(fd: RawFd) -> io::Result<Kind> {
    let mut stat = MaybeUninit::<libc::stat>::uninit();
    // SAFETY: fstat fills `stat` when it succeeds, and it is read only then.
    let stat = unsafe {
        if libc::fstat(fd, stat.as_mut_ptr()) < 0 {
            return Err(io::Error::last_os_error());
        }
        stat.assume_init()
    };
    Ok(match stat.st_mode & libc::S_IFMT {
        libc::S_IFIFO => Kind::Fifo,
        libc::S_IFSOCK => Kind::Socket,
        libc::S_IFCHR => Kind::Character,
        _ => Kind::Other,
    })
}

/// Makes reads and writes return instead of waiting, for everybody who shares the open file.
///
/// # Errors
/// The operating system's.
pub fn set_nonblocking(fd: RawFd) -> io::Result<()> {
    // SAFETY: these commands of fcntl take and return integers.
    unsafe {
        let flags = libc::fcntl(fd, libc::F_GETFL);
        if flags < 0 || libc::fcntl(fd, libc::F_SETFL, flags | libc::O_NONBLOCK) < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Reads what is there; 0 is the end of the file.
///
/// # Errors
/// The operating system's; `WouldBlock` when nothing is there.
pub fn read(fd: RawFd, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the kernel writes at most the buffer's length into it.
    count(unsafe { libc::read(fd, buffer.as_mut_ptr().cast(), buffer.len()) })
}

/// Reads into memory that need not be initialised; that many of its first bytes are, afterwards.
///
/// # Errors
/// As [`read`].
pub fn read_uninit(fd: RawFd, buffer: &mut [MaybeUninit<u8>]) -> io::Result<usize> {
    // SAFETY: as in `read`; the kernel only writes.
    count(unsafe { libc::read(fd, buffer.as_mut_ptr().cast(), buffer.len()) })
}

/// Writes what there is room for and returns how much that was.
///
/// # Errors
/// The operating system's; `WouldBlock` when there is no room, `BrokenPipe` when nobody reads.
pub fn write(fd: RawFd, data: &[u8]) -> io::Result<usize> {
    // SAFETY: the kernel reads at most the slice's length.
    count(unsafe { libc::write(fd, data.as_ptr().cast(), data.len()) })
}

/// Writes several pieces in one call and returns how many bytes were taken.
///
/// # Errors
/// As [`write`].
pub fn write_vectored(fd: RawFd, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
    let number = i32::try_from(pieces.len()).unwrap_or(i32::MAX);
    // SAFETY: IoSlice is guaranteed to have the layout of iovec, and `number` is at most how many
    // there are.
    count(unsafe { libc::writev(fd, pieces.as_ptr().cast(), number) })
}

fn count(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    #[test]
    fn a_pipe_carries_bytes_without_blocking() {
        let (reader, writer) = io::pipe().unwrap();
        let (from, to) = (reader.as_raw_fd(), writer.as_raw_fd());
        set_nonblocking(from).unwrap();
        set_nonblocking(to).unwrap();
        let mut buffer = [0; 16];
        assert_eq!(read(from, &mut buffer).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        assert_eq!(write(to, b"ab").unwrap(), 2);
        let pieces = [IoSlice::new(b"cd"), IoSlice::new(b"e")];
        assert_eq!(write_vectored(to, &pieces).unwrap(), 3);
        assert_eq!(read(from, &mut buffer).unwrap(), 5);
        assert_eq!(&buffer[..5], b"abcde");
        drop(writer);
        assert_eq!(read_uninit(from, &mut [MaybeUninit::uninit(); 4]).unwrap(), 0);
    }

    #[test]
    fn kinds() {
        let (reader, _writer) = io::pipe().unwrap();
        let (socket, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        let null = std::fs::File::open("/dev/null").unwrap();
        let directory = std::fs::File::open("/").unwrap();
        assert_eq!(kind(reader.as_raw_fd()).unwrap(), Kind::Fifo);
        assert_eq!(kind(socket.as_raw_fd()).unwrap(), Kind::Socket);
        assert_eq!(kind(null.as_raw_fd()).unwrap(), Kind::Character);
        assert_eq!(kind(directory.as_raw_fd()).unwrap(), Kind::Other);
        assert!(kind(-1).is_err());
    }
}
