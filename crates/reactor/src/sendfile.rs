//! Sending a file by the kernel alone, without its bytes coming by here.

use std::io;
use std::os::fd::RawFd;

/// The most that one call sends; Linux does not take more.
const MOST: usize = 0x7fff_f000;

/// Sends up to `count` bytes of a file from `offset` on; returns how many the socket took, 0 at the
/// end of the file. The file's own position has no part in it.
///
/// # Errors
/// The operating system's; `WouldBlock` when the send buffer is full, `EINVAL` for files of which it
/// cannot be done.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub fn sendfile(socket: RawFd, file: RawFd, offset: u64, count: usize) -> io::Result<usize> {
    let mut offset = position(offset)?;
    // SAFETY: `offset` outlives the call; the kernel answers bad descriptors with an error.
    let sent = unsafe { libc::sendfile(socket, file, &raw mut offset, count.min(MOST)) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// As on Linux.
///
/// # Errors
/// As on Linux.
#[cfg(target_os = "macos")]
pub fn sendfile(socket: RawFd, file: RawFd, offset: u64, count: usize) -> io::Result<usize> {
    let offset = position(offset)?;
    let mut length = libc::off_t::try_from(count.min(MOST)).unwrap_or(0);
    // SAFETY: `length` outlives the call; the kernel answers bad descriptors with an error.
    let result =
        unsafe { libc::sendfile(file, socket, offset, &raw mut length, std::ptr::null_mut(), 0) };
    // A full socket is an error here even when it took something.
    match usize::try_from(length) {
        Ok(sent) if result == 0 || sent > 0 => Ok(sent),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Not to be had here.
///
/// # Errors
/// Always: `Unsupported`.
#[cfg(not(any(target_os = "linux", target_os = "android", target_os = "macos")))]
pub fn sendfile(_: RawFd, _: RawFd, _: u64, _: usize) -> io::Result<usize> {
    Err(io::ErrorKind::Unsupported.into())
}

/// The size of a file, as far as it has one.
///
/// # Errors
/// The operating system's.
pub fn file_size(file: RawFd) -> io::Result<u64> {
    let mut status = std::mem::MaybeUninit::<libc::stat>::uninit();
    // SAFETY: fstat fills the memory it is given, of the right type, when it returns 0.
    unsafe {
        if libc::fstat(file, status.as_mut_ptr()) != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(u64::try_from(status.assume_init().st_size).unwrap_or(0))
    }
}

/// Sets the position from which a file is read next.
///
/// # Errors
/// The operating system's.
pub fn seek(file: RawFd, offset: u64) -> io::Result<()> {
    let offset = position(offset)?;
    // SAFETY: the call has no precondition.
    if unsafe { libc::lseek(file, offset, libc::SEEK_SET) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn position(offset: u64) -> io::Result<libc::off_t> {
    libc::off_t::try_from(offset).map_err(|_| io::Error::from_raw_os_error(libc::EOVERFLOW))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Seek, Write};
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;

    #[test]
    fn sends_a_part_and_leaves_the_position() {
        let path = std::env::temp_dir().join(format!("rondel-sendfile-{}", std::process::id()));
        let mut file = std::fs::File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&path)
            .unwrap();
        std::fs::remove_file(&path).unwrap();
        file.write_all(b"0123456789").unwrap();
        let fd = file.as_raw_fd();
        assert_eq!(file_size(fd).unwrap(), 10);
        let (here, mut there) = UnixStream::pair().unwrap();
        assert_eq!(sendfile(here.as_raw_fd(), fd, 3, 4).unwrap(), 4);
        assert_eq!(sendfile(here.as_raw_fd(), fd, 8, 100).unwrap(), 2);
        assert_eq!(sendfile(here.as_raw_fd(), fd, 10, 100).unwrap(), 0);
        assert_eq!(file.stream_position().unwrap(), 10);
        seek(fd, 7).unwrap();
        assert_eq!(file.stream_position().unwrap(), 7);
        drop(here);
        let mut got = String::new();
        there.read_to_string(&mut got).unwrap();
        assert_eq!(got, "345689");
    }

    #[test]
    fn what_cannot_be_sent_is_an_error() {
        let (here, there) = UnixStream::pair().unwrap();
        assert!(sendfile(here.as_raw_fd(), there.as_raw_fd(), 0, 1).is_err());
        assert!(sendfile(here.as_raw_fd(), -1, 0, 1).is_err());
        assert!(file_size(-1).is_err());
        assert!(seek(-1, 0).is_err());
        assert!(position(u64::MAX).is_err());
    }
}
