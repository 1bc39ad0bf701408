//! Whole files in one trip: opening, reading and closing.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use pyo3::exceptions::PyOSError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use rondel_reactor::disk::{self, Patience, Sink};
use rondel_reactor::sendfile::file_size;

use super::attempt;
use super::job::in_thread;
use crate::coroutine::Coroutine;
use crate::imports;

/// How much is read at a time from files that do not say how long they are.
const PART: usize = 256 * 1024;

/// A system call's error on a path, as Python raises it.
fn path_error(py: Python<'_>, error: &io::Error, path: &Py<PyAny>) -> PyErr {
    let Some(number) = error.raw_os_error() else { return PyOSError::new_err(error.to_string()) };
    let text = imports::strerror(py)
        .and_then(|strerror| strerror.call1((number,)))
        .and_then(|text| text.extract::<String>())
        .unwrap_or_else(|_| error.to_string());
    PyOSError::new_err((number, text, path.clone_ref(py)))
}

/// A file that is closed when dropped, if it can be opened without waiting.
fn opened_now(path: &std::path::Path) -> Option<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes()).ok()?;
    let fd = disk::open_cached(&path).ok()?;
    // SAFETY: the descriptor has just been opened and belongs to nobody else.
    Some(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Read a whole file: at once if it is in memory, in a thread otherwise.
///
/// `shown` is the path as it is named in errors.
#[pyfunction]
pub fn read_file(path: PathBuf, shown: Py<PyAny>, executor: Option<Py<PyAny>>) -> Coroutine {
    Coroutine::new("read_bytes", move |waiting| async move {
        let now = Python::attach(|py| match opened_now(&path) {
            Some(file) => attempt::read_cached(py, file.as_raw_fd()),
            None => Ok(None),
        })?;
        if let Some(bytes) = now {
            return Ok(bytes);
        }
        in_thread(&waiting, executor, move |py| {
            let read = py.detach(|| open_and_read(&path));
            match read {
                Ok(bytes) => Ok(PyBytes::new(py, &bytes).into_any().unbind()),
                Err(error) => Err(path_error(py, &error, &shown)),
            }
        })
        .await
    })
}

fn open_and_read(path: &std::path::Path) -> io::Result<Vec<u8>> {
    let file = File::open(path)?;
    let fd = file.as_raw_fd();
    let size = file_size(fd).map_or(0, |size| usize::try_from(size).unwrap_or(0));
    let mut whole = Vec::new();
    let mut most = size.saturating_add(1).max(if size == 0 { PART } else { 0 });
    loop {
        whole.try_reserve_exact(most).map_err(|_| io::Error::from_raw_os_error(libc::ENOMEM))?;
        let spare: &mut [MaybeUninit<u8>] = whole.spare_capacity_mut();
        let mut sink = Sink::new(spare);
        let count = sink.read(fd, most, Patience::Wait)?;
        let length = whole.len() + count;
        // SAFETY: so many bytes behind the vector's length have just been filled.
        unsafe { whole.set_len(length) };
        if count == 0 {
            return Ok(whole);
        }
        most = most.saturating_sub(count).max(1);
        if most == 1 {
            most = PART;
        }
    }
}

/// Open a regular file for reading if that waits for nothing: an opener for io.FileIO. Raises
/// FileWouldBlock otherwise.
#[pyfunction]
pub fn open_cached(path: PathBuf, flags: i32) -> PyResult<i32> {
    if flags & (libc::O_ACCMODE | libc::O_CREAT | libc::O_TRUNC) == libc::O_RDONLY {
        if let Ok(path) = CString::new(path.as_os_str().as_bytes()) {
            if let Ok(fd) = disk::open_cached(&path) {
                return Ok(fd);
            }
        }
    }
    Err(super::buffer::FileWouldBlock::new_err(()))
}
