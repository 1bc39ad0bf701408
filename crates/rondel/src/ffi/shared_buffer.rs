//! Memory that crosses between processes: what is sent from, and what is received into.

use std::ffi::c_int;
use std::slice;

use pyo3::exceptions::PyBufferError;
use pyo3::ffi;
use pyo3::prelude::*;
use rondel_pool::processes::arena::View;
use rondel_pool::processes::frame::{Lease, Reference};

/// Memory to send: bytes of our own, or those of a Python object that is kept as it is.
pub enum Piece {
    Owned(Vec<u8>),
    Held(HeldBuffer),
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        match self {
            Piece::Owned(bytes) => bytes,
            Piece::Held(buffer) => buffer.bytes(),
        }
    }
}

/// A contiguous view of an object's memory that may move to another thread.
///
/// Its owner must not count on the bytes staying the same: the program may write to them, as it may to
/// the arguments of any call that another thread is still packing.
pub struct HeldBuffer(Box<ffi::Py_buffer>);

// SAFETY: a filled view is memory plus a reference that is only released with the GIL held.
unsafe impl Send for HeldBuffer {}
// SAFETY: as above; the view itself is never changed.
unsafe impl Sync for HeldBuffer {}

impl HeldBuffer {
    /// A view for reading.
    ///
    /// # Errors
    /// `TypeError` for what is not bytes-like, `BufferError` when its memory is not contiguous.
    pub fn of(object: &Bound<'_, PyAny>) -> PyResult<Self> {
        let mut raw = Box::new(ffi::Py_buffer::new());
        // SAFETY: attached; `raw` is an empty view at a stable address.
        let result =
            unsafe { ffi::PyObject_GetBuffer(object.as_ptr(), &raw mut *raw, ffi::PyBUF_SIMPLE) };
        if result < 0 { Err(PyErr::fetch(object.py())) } else { Ok(HeldBuffer(raw)) }
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        if self.0.len == 0 {
            return &[];
        }
        // SAFETY: a filled view has `len` readable bytes at `buf` until it is released. They are only
        // copied from; a program that writes to them meanwhile gets some of both, as it does from
        // every system call that reads its memory.
        unsafe { slice::from_raw_parts(self.0.buf.cast(), self.0.len.unsigned_abs()) }
    }
}

impl Drop for HeldBuffer {
    fn drop(&mut self) {
        Python::attach(|_| {
            // SAFETY: attached, and the view was filled by PyObject_GetBuffer and is released once.
            unsafe { ffi::PyBuffer_Release(&raw mut *self.0) };
        });
    }
}

/// Memory shared between the processes of a pool, as a bytes-like object.
#[pyclass(frozen, module = "rondel._rondel", name = "SharedBuffer")]
pub struct SharedBuffer {
    view: View,
    /// The first byte that shows.
    from: usize,
    /// Told when this object goes; None where the memory is looked after otherwise.
    lease: Option<Lease>,
}

impl SharedBuffer {
    /// A buffer whose sender is told when it is not used any more.
    pub fn leased(lease: Lease) -> Self {
        SharedBuffer { view: lease.view().clone(), from: 0, lease: Some(lease) }
    }

    /// The part of a message from a place on.
    pub fn part(view: View, from: usize, lease: Option<Lease>) -> Self {
        let from = from.min(view.len());
        SharedBuffer { view, from, lease }
    }

    /// Where it is in the pool's memory file.
    pub fn reference(&self) -> Option<Reference> {
        self.lease.as_ref().map(Lease::reference)
    }
}

#[pymethods]
impl SharedBuffer {
    fn __len__(&self) -> usize {
        self.view.len() - self.from
    }

    /// # Safety
    /// Called by CPython with an empty view to fill.
    unsafe fn __getbuffer__(
        slf: Bound<'_, Self>,
        view: *mut ffi::Py_buffer,
        flags: c_int,
    ) -> PyResult<()> {
        let this = slf.get();
        let len = isize::try_from(this.view.len() - this.from)
            .map_err(|_| PyBufferError::new_err("too long"))?;
        // SAFETY: the memory from `from` on is mapped for as long as this object lives, to which the
        // view gets a reference.
        let result = unsafe {
            let start = this.view.address().as_ptr().add(this.from);
            ffi::PyBuffer_FillInfo(view, slf.as_ptr(), start.cast(), len, 0, flags)
        };
        if result < 0 { Err(PyErr::fetch(slf.py())) } else { Ok(()) }
    }
}
