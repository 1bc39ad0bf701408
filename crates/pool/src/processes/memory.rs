//! The memory file and its mappings.

use std::ffi::c_void;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::{self, NonNull};

/// A file that exists only in memory and has no name. Pages that nobody touched cost nothing.
#[derive(Debug)]
pub struct MemoryFile(OwnedFd);

fn check(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn offset(value: u64) -> io::Result<libc::off_t> {
    libc::off_t::try_from(value).map_err(io::Error::other)
}

impl MemoryFile {
    /// Makes a file of `size` bytes, all of them zero and none of them there yet.
    ///
    /// # Errors
    /// The operating system's; `EFBIG` when the process may not have files of that size.
    pub fn new(size: u64) -> io::Result<MemoryFile> {
        // SAFETY: the name is a C string; the descriptor that comes back is owned by nobody else.
        let file = unsafe {
            let fd = check(libc::memfd_create(c"rondel-pool".as_ptr(), libc::MFD_CLOEXEC))?;
            MemoryFile(OwnedFd::from_raw_fd(fd))
        };
        // SAFETY: changes the size of a file of ours.
        check(unsafe { libc::ftruncate(file.fd(), offset(size)?) })?;
        Ok(file)
    }

    /// A file that the parent has made, by an inherited descriptor.
    #[must_use]
    pub fn inherited(fd: OwnedFd) -> MemoryFile {
        MemoryFile(fd)
    }

    /// Its descriptor.
    #[must_use]
    pub fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    /// Maps a part of it, which begins on a page.
    ///
    /// # Errors
    /// The operating system's, usually `ENOMEM`.
    pub fn map(&self, start: u64, len: usize) -> io::Result<Mapping> {
        // SAFETY: a new mapping at an address of the kernel's choice disturbs nobody.
        let address = unsafe {
            libc::mmap(
                ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                self.fd(),
                offset(start)?,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        match NonNull::new(address.cast()) {
            Some(address) => Ok(Mapping { address, len }),
            None => Err(io::Error::from_raw_os_error(libc::ENOMEM)),
        }
    }

    /// Gives the memory of a part back to the system; it reads as zeros afterwards.
    pub fn forget(&self, start: u64, len: u64) {
        let (Ok(start), Ok(len)) = (offset(start), offset(len)) else { return };
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        // SAFETY: changes the content of a file of ours. That it fails only means that the memory
        // stays.
        unsafe { libc::fallocate(self.fd(), mode, start, len) };
    }
}

/// A mapped part of a [`MemoryFile`]. It stays valid without the file's descriptor.
#[derive(Debug)]
pub struct Mapping {
    address: NonNull<u8>,
    len: usize,
}

// SAFETY: a mapping is memory, which belongs to no thread; who reads and writes when is the
// business of those who take pointers from it.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Where it begins.
    #[must_use]
    pub fn address(&self) -> NonNull<u8> {
        self.address
    }

    /// How long it is.
    #[must_use]
    #[allow(clippy::len_without_is_empty)] // none is empty
    pub fn len(&self) -> usize {
        self.len
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and whoever has pointers into it holds a reference to it.
        unsafe { libc::munmap(self.address.as_ptr().cast::<c_void>(), self.len) };
    }
}
