//! A reader's buffer: what was received and nobody has read.
//!
//! Mostly it is memory of its own. A piece that arrives in an empty buffer as `bytes` stays that
//! object, so that who reads all of it gets it without a copy. And when a program looks at
//! `reader._buffer`, as some do, the buffer is that bytearray for as long as the program has it, so
//! that the program may change it.

use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PyBytes, PySlice};

use crate::ffi::buffer::View;
use crate::ffi::is_sole;

/// An empty buffer gives back memory beyond this size.
const KEPT: usize = 64 * 1024;

/// See the module's documentation. No method runs Python code: only memory is made and dropped, of
/// exact `bytes` and bytearrays.
#[derive(Default)]
pub struct Buffer {
    storage: Storage,
    /// How much of the storage's beginning was read already (0 for a bytearray).
    start: usize,
}

enum Storage {
    Own(Vec<u8>),
    Piece(Py<PyBytes>),
    Exposed(Py<PyByteArray>),
}

impl Default for Storage {
    fn default() -> Self {
        Storage::Own(Vec::new())
    }
}

impl Buffer {
    /// How many bytes wait.
    #[inline]
    pub fn len(&self, py: Python<'_>) -> usize {
        match &self.storage {
            Storage::Own(bytes) => bytes.len() - self.start,
            Storage::Piece(piece) => piece.as_bytes(py).len() - self.start,
            Storage::Exposed(array) => array.bind(py).len(),
        }
    }

    /// Whether nothing waits.
    #[inline]
    pub fn is_empty(&self, py: Python<'_>) -> bool {
        self.len(py) == 0
    }

    /// Looks at the bytes.
    ///
    /// # Errors
    /// `BufferError`
    #[inline]
    pub fn look<R>(&self, py: Python<'_>, look: impl FnOnce(&[u8]) -> R) -> PyResult<R> {
        match &self.storage {
            Storage::Own(bytes) => Ok(look(&bytes[self.start..])),
            Storage::Piece(piece) => Ok(look(&piece.as_bytes(py)[self.start..])),
            Storage::Exposed(array) => Ok(look(View::readable(array.bind(py))?.bytes())),
        }
    }

    /// Adds to the end.
    ///
    /// # Errors
    /// `BufferError` when a program holds a view of the exposed bytearray.
    pub fn append(&mut self, py: Python<'_>, data: &[u8]) -> PyResult<()> {
        self.hide(py);
        if let Storage::Exposed(array) = &self.storage {
            return array.call_method1(py, "extend", (PyBytes::new(py, data),)).map(drop);
        }
        if let Some(bytes) = self.own(py, data.len()) {
            bytes.extend_from_slice(data);
        }
        Ok(())
    }

    /// Adds a piece to the end; in an empty buffer it stays what it is.
    ///
    /// # Errors
    /// As [`Buffer::append`].
    pub fn append_piece(&mut self, data: Bound<'_, PyBytes>) -> PyResult<()> {
        let py = data.py();
        self.hide(py);
        if matches!(self.storage, Storage::Exposed(_)) || !self.is_empty(py) {
            return self.append(py, data.as_bytes());
        }
        self.storage = Storage::Piece(data.unbind());
        self.start = 0;
        Ok(())
    }

    /// The buffer's own memory, to receive up to `more` bytes behind what it holds; None when it is
    /// exposed.
    pub fn own_memory(&mut self, py: Python<'_>, more: usize) -> Option<&mut Vec<u8>> {
        self.hide(py);
        self.own(py, more)
    }

    /// Makes the storage its own, with room for `more` bytes; None for an exposed one.
    fn own(&mut self, py: Python<'_>, more: usize) -> Option<&mut Vec<u8>> {
        if let Storage::Piece(piece) = &self.storage {
            let rest = &piece.as_bytes(py)[self.start..];
            let mut bytes = Vec::with_capacity(rest.len() + more);
            bytes.extend_from_slice(rest);
            self.storage = Storage::Own(bytes);
            self.start = 0;
        }
        let Storage::Own(bytes) = &mut self.storage else { return None };
        if self.start > 0 && bytes.capacity() - bytes.len() < more {
            bytes.drain(..self.start);
            self.start = 0;
        }
        bytes.reserve(more);
        Some(bytes)
    }

    /// Takes up to `count` bytes from the beginning.
    ///
    /// # Errors
    /// As [`Buffer::append`].
    pub fn take<'py>(&mut self, py: Python<'py>, count: usize) -> PyResult<Bound<'py, PyBytes>> {
        let taken = match &self.storage {
            Storage::Piece(piece) if self.start == 0 && count >= piece.as_bytes(py).len() => {
                piece.bind(py).clone()
            }
            Storage::Own(bytes) if count < bytes.len() - self.start => {
                let taken = PyBytes::new(py, &bytes[self.start..self.start + count]);
                self.start += count;
                return Ok(taken);
            }
            _ => self.look(py, |bytes| PyBytes::new(py, &bytes[..count.min(bytes.len())]))?,
        };
        self.skip(py, count)?;
        Ok(taken)
    }

    /// Drops `count` bytes, or all there are, from the beginning.
    ///
    /// # Errors
    /// As [`Buffer::append`].
    pub fn skip(&mut self, py: Python<'_>, count: usize) -> PyResult<()> {
        if let Storage::Exposed(array) = &self.storage {
            let array = array.bind(py);
            let end = isize::try_from(count.min(array.len()))?;
            return array.del_item(PySlice::new(py, 0, end, 1));
        }
        let length = self.len(py);
        if count < length {
            self.start += count;
            return Ok(());
        }
        self.start = 0;
        match &mut self.storage {
            Storage::Own(bytes) if bytes.capacity() <= KEPT => bytes.clear(),
            other => *other = Storage::default(),
        }
        Ok(())
    }

    /// The buffer as a bytearray that is the buffer from now on.
    pub fn expose<'py>(&mut self, py: Python<'py>) -> PyResult<Bound<'py, PyByteArray>> {
        if let Storage::Exposed(array) = &self.storage {
            return Ok(array.bind(py).clone());
        }
        let array = self.look(py, |bytes| PyByteArray::new(py, bytes))?;
        self.replace(array.clone());
        Ok(array)
    }

    /// Takes the bytes back out of an exposed bytearray that nobody else has any more.
    #[inline]
    fn hide(&mut self, py: Python<'_>) {
        if let Storage::Exposed(array) = &self.storage
            && is_sole(array, py)
            && let Ok(bytes) = self.look(py, <[u8]>::to_vec)
        {
            self.storage = Storage::Own(bytes);
            self.start = 0;
        }
    }

    /// Makes a bytearray the buffer.
    pub fn replace(&mut self, array: Bound<'_, PyByteArray>) {
        self.storage = Storage::Exposed(array.unbind());
        self.start = 0;
    }
}
