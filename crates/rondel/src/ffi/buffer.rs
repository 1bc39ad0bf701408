//! Bytes-like objects: views for sending and receiving, and receiving straight into new `bytes`.

use std::mem::MaybeUninit;
use std::slice;

use pyo3::exceptions::PyTypeError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

/// A contiguous view of a bytes-like object's memory (PEP 3118), released when dropped.
///
/// While the view exists its exporter does not move the memory (a bytearray refuses to resize).
pub struct View<'py>(Exporter<'py>);

enum Exporter<'py> {
    /// What is sent most: its memory never moves, so a reference is enough.
    Bytes(Bound<'py, PyBytes>),
    // Boxed because the buffer protocol forbids to move a filled view.
    Other(Box<ffi::Py_buffer>, Python<'py>),
}

impl<'py> View<'py> {
    /// A view for reading.
    ///
    /// # Errors
    /// `TypeError` for what is not bytes-like, `BufferError` when its memory is not contiguous.
    pub fn readable(object: &Bound<'py, PyAny>) -> PyResult<Self> {
        match object.cast_exact::<PyBytes>() {
            Ok(bytes) => Ok(View(Exporter::Bytes(bytes.clone()))),
            Err(_) => Self::request(object, ffi::PyBUF_SIMPLE),
        }
    }

    /// A view for writing into the object.
    ///
    /// # Errors
    /// `TypeError` for what is not bytes-like or read-only, as socket.recv_into() raises it.
    pub fn writable(object: &Bound<'py, PyAny>) -> PyResult<Self> {
        Self::request(object, ffi::PyBUF_WRITABLE).map_err(|_| {
            let name = object.get_type().name().map_or_else(|_| String::new(), |n| n.to_string());
            PyTypeError::new_err(format!(
                "a read-write bytes-like object is required, not '{name}'"
            ))
        })
    }

    fn request(object: &Bound<'py, PyAny>, flags: i32) -> PyResult<Self> {
        let py = object.py();
        let mut raw = Box::new(ffi::Py_buffer::new());
        // SAFETY: attached; `raw` is an empty view at a stable address.
        if unsafe { ffi::PyObject_GetBuffer(object.as_ptr(), &raw mut *raw, flags) } < 0 {
            return Err(PyErr::fetch(py));
        }
        Ok(View(Exporter::Other(raw, py)))
    }

    /// How many bytes there are.
    pub fn len(&self) -> usize {
        self.bytes().len()
    }

    /// The bytes. Other Python threads may change them only while this one lets go of the GIL,
    /// which no caller does while it holds the slice.
    pub fn bytes(&self) -> &[u8] {
        let raw = match &self.0 {
            Exporter::Bytes(bytes) => return bytes.as_bytes(),
            Exporter::Other(raw, _) => raw,
        };
        if raw.len == 0 {
            return &[];
        }
        // SAFETY: a filled view has `len` (never negative) readable bytes at `buf` until it is
        // released; see above for why nobody writes to them meanwhile.
        unsafe { slice::from_raw_parts(raw.buf.cast(), raw.len.unsigned_abs()) }
    }

    /// The bytes of a writable view, to receive into.
    pub fn bytes_mut(&mut self) -> &mut [MaybeUninit<u8>] {
        let raw = match &self.0 {
            Exporter::Other(raw, _) if raw.len > 0 && raw.readonly == 0 => raw,
            _ => return &mut [],
        };
        // SAFETY: as in `bytes`; the view is writable, and `&mut self` makes this the only slice.
        unsafe { slice::from_raw_parts_mut(raw.buf.cast(), raw.len.unsigned_abs()) }
    }
}

impl Drop for View<'_> {
    fn drop(&mut self) {
        if let Exporter::Other(raw, _attached) = &mut self.0 {
            // SAFETY: attached, and the view was filled by PyObject_GetBuffer and is released once.
            unsafe { ffi::PyBuffer_Release(&raw mut **raw) };
        }
    }
}

/// Makes a new `bytes` of at most `capacity` bytes from what `fill` writes, without a copy.
///
/// # Errors
/// `MemoryError`, or what `fill` returned.
pub fn bytes_filled_by<'py, E>(
    py: Python<'py>,
    capacity: usize,
    fill: impl FnOnce(&mut [MaybeUninit<u8>]) -> Result<usize, E>,
) -> PyResult<Result<Bound<'py, PyBytes>, E>> {
    let size = isize::try_from(capacity)?;
    // SAFETY: with a null source PyBytes_FromStringAndSize makes a bytes object with uninitialised
    // content that nobody else knows yet. It is shrunk to what was written before anybody sees it;
    // on every other path it is dropped. _PyBytes_Resize takes over the reference and clears it
    // when it fails.
    unsafe {
        let object = ffi::PyBytes_FromStringAndSize(std::ptr::null(), size);
        let bytes = Bound::from_owned_ptr_or_err(py, object)?.cast_into_unchecked::<PyBytes>();
        let memory = ffi::PyBytes_AsString(bytes.as_ptr()).cast::<MaybeUninit<u8>>();
        let filled = match fill(slice::from_raw_parts_mut(memory, capacity)) {
            Ok(filled) => filled.min(capacity),
            Err(error) => return Ok(Err(error)),
        };
        if filled == capacity {
            return Ok(Ok(bytes));
        }
        let mut object = bytes.into_ptr();
        if _PyBytes_Resize(&raw mut object, isize::try_from(filled)?) < 0 {
            return Err(PyErr::fetch(py));
        }
        Ok(Ok(Bound::from_owned_ptr(py, object).cast_into_unchecked()))
    }
}

/// What [`bytes_by_copy`] holds at most.
pub const ON_STACK: usize = 16 * 1024;

/// Makes a new `bytes` of at most [`ON_STACK`] bytes from what `fill` writes to the stack: for small
/// ones that is faster than to make large ones and shrink them.
pub fn bytes_by_copy(
    py: Python<'_>,
    fill: impl FnOnce(&mut [MaybeUninit<u8>]) -> usize,
) -> Bound<'_, PyBytes> {
    let mut memory = [MaybeUninit::<u8>::uninit(); ON_STACK];
    let filled = fill(&mut memory).min(ON_STACK);
    // SAFETY: so many bytes were written, says `fill`.
    PyBytes::new(py, unsafe { slice::from_raw_parts(memory.as_ptr().cast(), filled) })
}

unsafe extern "C" {
    // Part of CPython's documented C-API (bytesobject.h), not bound by PyO3.
    fn _PyBytes_Resize(bytes: *mut *mut ffi::PyObject, size: ffi::Py_ssize_t) -> std::ffi::c_int;
}
