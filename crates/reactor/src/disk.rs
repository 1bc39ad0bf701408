//! Files on disks: reading what the page cache holds without waiting, and the calls that may wait.

use std::ffi::CStr;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::RawFd;

/// Whether a call may wait for a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// No: on a loop's thread. What would wait is a `WouldBlock` error.
    Now,
    /// Yes: on a worker's thread.
    Wait,
}

/// Memory that is being filled from its beginning.
pub struct Sink<'a> {
    memory: &'a mut [MaybeUninit<u8>],
    filled: usize,
}

impl<'a> Sink<'a> {
    /// A sink with nothing in it.
    pub fn new(memory: &'a mut [MaybeUninit<u8>]) -> Self {
        Sink { memory, filled: 0 }
    }

    /// How many bytes are in it.
    #[must_use]
    pub fn filled(&self) -> usize {
        self.filled
    }

    /// How many more have room.
    #[must_use]
    pub fn room(&self) -> usize {
        self.memory.len() - self.filled
    }

    /// What is in it.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the first `filled` bytes have been written by `put` or by the kernel in `read`.
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr().cast(), self.filled) }
    }

    /// Adds as much of `bytes` as has room; returns how much that is.
    pub fn put(&mut self, bytes: &[u8]) -> usize {
        let count = bytes.len().min(self.room());
        for (place, byte) in self.memory[self.filled..].iter_mut().zip(&bytes[..count]) {
            place.write(*byte);
        }
        self.filled += count;
        count
    }

    /// Reads up to `limit` bytes from the file's position on; returns how many, 0 at the end.
    ///
    /// # Errors
    /// As [`read`].
    pub fn read(&mut self, fd: RawFd, limit: usize, patience: Patience) -> io::Result<usize> {
        let limit = limit.min(self.room());
        let count = read(fd, &mut self.memory[self.filled..self.filled + limit], patience)?;
        self.filled += count;
        Ok(count)
    }
}

/// Reads from the file's position on; returns how many bytes, 0 at the end.
///
/// # Errors
/// The operating system's. `WouldBlock` without [`Patience::Wait`]: when the bytes are not in memory,
/// and always where the system or the file's kind has no way to tell.
pub fn read(fd: RawFd, memory: &mut [MaybeUninit<u8>], patience: Patience) -> io::Result<usize> {
    if memory.is_empty() {
        return Ok(0);
    }
    if patience == Patience::Now {
        return read_cached(fd, memory);
    }
    loop {
        // SAFETY: the kernel writes at most `len` bytes into the memory.
        let count = unsafe { libc::read(fd, memory.as_mut_ptr().cast(), memory.len()) };
        match usize::try_from(count) {
            Ok(count) => return Ok(count),
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}

#[cfg(target_os = "linux")]
fn read_cached(fd: RawFd, memory: &mut [MaybeUninit<u8>]) -> io::Result<usize> {
    let part = libc::iovec { iov_base: memory.as_mut_ptr().cast(), iov_len: memory.len() };
    // SAFETY: `part` describes writable memory and outlives the call. The offset -1 stands for the
    // file's own position, which moves on.
    let count = unsafe { libc::preadv2(fd, &raw const part, 1, -1, libc::RWF_NOWAIT) };
    match usize::try_from(count) {
        // Some kernels have answered 0 for what they did not have in memory.
        Ok(0) if !at_end(fd) => Err(io::ErrorKind::WouldBlock.into()),
        Ok(count) => Ok(count),
        Err(_) => {
            let error = io::Error::last_os_error();
            match error.raw_os_error() {
                Some(
                    libc::EAGAIN | libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL | libc::EINTR,
                ) => Err(io::ErrorKind::WouldBlock.into()),
                _ => Err(error),
            }
        }
    }
}

#[cfg(not(target_os = "linux"))]
fn read_cached(_: RawFd, _: &mut [MaybeUninit<u8>]) -> io::Result<usize> {
    Err(io::ErrorKind::WouldBlock.into())
}

#[cfg(target_os = "linux")]
fn at_end(fd: RawFd) -> bool {
    match (crate::sendfile::file_size(fd), seek(fd, 0, libc::SEEK_CUR)) {
        (Ok(size), Ok(position)) => position >= size,
        _ => true, // a pipe: its 0 is the end
    }
}

/// Writes all of it; when that fails, says how much was written before.
///
/// # Errors
/// The operating system's.
pub fn write_all(fd: RawFd, mut bytes: &[u8]) -> Result<(), (usize, io::Error)> {
    let mut written = 0;
    while !bytes.is_empty() {
        // SAFETY: the kernel reads at most `len` bytes of the slice.
        let count = unsafe { libc::write(fd, bytes.as_ptr().cast(), bytes.len()) };
        match usize::try_from(count) {
            Ok(0) => return Err((written, io::ErrorKind::WriteZero.into())),
            Ok(count) => {
                written += count;
                bytes = bytes.get(count..).unwrap_or_default();
            }
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err((written, error));
                }
            }
        }
    }
    Ok(())
}

/// Moves the file's position (`lseek`); returns where it is then.
///
/// # Errors
/// The operating system's; `ESPIPE` for what has no position.
pub fn seek(fd: RawFd, offset: i64, whence: i32) -> io::Result<u64> {
    let too_far = || io::Error::from_raw_os_error(libc::EOVERFLOW);
    let offset = libc::off_t::try_from(offset).map_err(|_| too_far())?;
    // SAFETY: the call has no precondition.
    let position = unsafe { libc::lseek(fd, offset, whence) };
    u64::try_from(position).map_err(|_| io::Error::last_os_error())
}

/// Whether the file is on a file system of this machine's, whose metadata operations wait for no
/// network: there, asking for a size or closing what was only read takes no time worth mentioning.
#[cfg(target_os = "linux")]
#[must_use]
pub fn is_local(fd: RawFd) -> bool {
    // From linux/magic.h: ext2 to ext4, XFS, btrfs, F2FS, tmpfs, ramfs, overlayfs, bcachefs; ZFS.
    const LOCAL: [u32; 9] = [
        0xef53,
        0x5846_5342,
        0x9123_683e,
        0xf2f5_2010,
        0x0102_1994,
        0x8584_58f6,
        0x794c_7630,
        0xca45_1a4e,
        0x2fc1_2fc1,
    ];
    let mut about = MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: fstatfs fills the memory it is given, of the right type, when it returns 0.
    let kind = unsafe {
        if libc::fstatfs(fd, about.as_mut_ptr()) != 0 {
            return false;
        }
        about.assume_init().f_type
    };
    // The number is 32 bits wide, in a signed field of the machine's word size.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    LOCAL.contains(&(kind as u32))
}

/// As on Linux; not known here.
#[cfg(not(target_os = "linux"))]
#[must_use]
pub fn is_local(_: RawFd) -> bool {
    false
}

/// Opens a regular file for reading if nothing of that waits for a disk: if the names on the way to it
/// are in the kernel's cache. The descriptor is not inherited by programs that are started.
///
/// # Errors
/// `WouldBlock` when it is not certain that nothing waits, or the file is no regular one; then the
/// file is opened elsewhere, in the ordinary way, which finds every other error again.
#[cfg(target_os = "linux")]
pub fn open_cached(path: &CStr) -> io::Result<RawFd> {
    // To open a pipe or a device may itself do something; this way of opening does not.
    let found = open_how(path, libc::O_PATH | libc::O_CLOEXEC)?;
    let regular = is_regular(found);
    close(found);
    if !regular {
        return Err(io::ErrorKind::WouldBlock.into());
    }
    open_how(path, libc::O_RDONLY | libc::O_CLOEXEC | libc::O_NONBLOCK)
}

#[cfg(target_os = "linux")]
fn open_how(path: &CStr, flags: i32) -> io::Result<RawFd> {
    // SAFETY: open_how is plain numbers, for which zero is valid.
    let mut how: libc::open_how = unsafe { std::mem::zeroed() };
    how.flags = u64::from(flags.unsigned_abs());
    how.resolve = libc::RESOLVE_CACHED;
    // SAFETY: the path ends with a zero byte; `how` has the size that is told, and outlives the call.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_openat2,
            libc::AT_FDCWD,
            path.as_ptr(),
            &raw const how,
            size_of::<libc::open_how>(),
        )
    };
    match RawFd::try_from(fd) {
        Ok(fd) if fd >= 0 => Ok(fd),
        _ => Err(io::ErrorKind::WouldBlock.into()),
    }
}

#[cfg(target_os = "linux")]
fn is_regular(fd: RawFd) -> bool {
    let mut status = MaybeUninit::<libc::stat>::uninit();
    // SAFETY: fstat fills the memory it is given, of the right type, when it returns 0.
    unsafe {
        libc::fstat(fd, status.as_mut_ptr()) == 0
            && status.assume_init().st_mode & libc::S_IFMT == libc::S_IFREG
    }
}

/// Not to be had here.
///
/// # Errors
/// Always: `WouldBlock`.
#[cfg(not(target_os = "linux"))]
pub fn open_cached(_: &CStr) -> io::Result<RawFd> {
    Err(io::ErrorKind::WouldBlock.into())
}

/// Closes a descriptor that belongs to the caller, who forgets it.
pub fn close(fd: RawFd) {
    // SAFETY: by this function's contract nobody uses the descriptor afterwards.
    unsafe { libc::close(fd) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::CString;
    use std::fs::File;
    use std::io::Write;
    use std::os::fd::AsRawFd;

    fn temporary(content: &[u8], name: &str) -> (File, CString) {
        let path = std::env::temp_dir().join(format!("rondel-disk-{name}-{}", std::process::id()));
        let mut file =
            File::options().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
        file.write_all(content).unwrap();
        (file, CString::new(path.to_str().unwrap()).unwrap())
    }

    #[test]
    fn reads_on_and_ends() {
        let (file, path) = temporary(b"0123456789", "read");
        let fd = file.as_raw_fd();
        assert_eq!(seek(fd, 2, libc::SEEK_SET).unwrap(), 2);
        let mut memory = [MaybeUninit::uninit(); 16];
        let mut sink = Sink::new(&mut memory);
        assert_eq!(sink.put(b"ab"), 2);
        assert_eq!(sink.read(fd, 3, Patience::Wait).unwrap(), 3);
        // In memory or not known: never an error but WouldBlock.
        match sink.read(fd, 100, Patience::Now) {
            Ok(count) => assert_eq!(count, 5),
            Err(error) => {
                assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                assert_eq!(sink.read(fd, 100, Patience::Wait).unwrap(), 5);
            }
        }
        assert_eq!(sink.bytes(), b"ab23456789");
        assert_eq!(sink.filled(), 10);
        assert_eq!(sink.room(), 6);
        assert_eq!(sink.read(fd, 100, Patience::Wait).unwrap(), 0);
        assert_eq!(sink.put(b"too much"), 6);
        assert_eq!(sink.room(), 0);
        let _ = std::fs::remove_file(path.to_str().unwrap());
    }

    #[test]
    fn opens_what_is_cached_and_regular() {
        let (_file, path) = temporary(b"x", "open");
        match open_cached(&path) {
            Ok(fd) => close(fd),
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
        }
        assert!(open_cached(c"/").is_err());
        assert!(open_cached(c"/dev/null").is_err());
        assert!(open_cached(c"/no/such/file").is_err());
        let _ = std::fs::remove_file(path.to_str().unwrap());
    }

    #[test]
    fn errors_are_the_system_s() {
        assert!(read(-1, &mut [MaybeUninit::uninit(); 4], Patience::Wait).is_err());
        assert_eq!(read(-1, &mut [], Patience::Wait).unwrap(), 0);
        let (written, error) = write_all(-1, b"x").unwrap_err();
        assert_eq!((written, error.raw_os_error()), (0, Some(libc::EBADF)));
        assert!(seek(-1, 0, libc::SEEK_SET).is_err());
        assert!(!is_local(-1));
    }
}
