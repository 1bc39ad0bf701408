//! What a TLS layer has for `_incoming` and `_outgoing` where no `ssl.MemoryBIO` is between.

use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::ffi::buffer::View;
use crate::ffi::openssl::Pipe;

/// Ciphertext in one direction; `ssl.MemoryBIO` in behaviour, but for its end.
#[pyclass(frozen, module = "rondel._rondel", name = "TLSBuffer")]
pub struct TlsBuffer {
    pipe: Arc<Pipe>,
    is_outgoing: bool,
}

impl TlsBuffer {
    /// What comes and what goes.
    pub fn both(pipe: &Arc<Pipe>) -> [Self; 2] {
        [false, true].map(|is_outgoing| TlsBuffer { pipe: Arc::clone(pipe), is_outgoing })
    }
}

#[pymethods]
impl TlsBuffer {
    /// Bytes that are there.
    #[getter]
    fn pending(&self) -> usize {
        if self.is_outgoing { self.pipe.outgoing() } else { self.pipe.incoming() }
    }

    /// Add bytes; returns how many.
    fn write(&self, b: &Bound<'_, PyAny>) -> PyResult<usize> {
        let view = View::readable(b)?;
        if self.is_outgoing {
            self.pipe.send(view.bytes())
        } else {
            self.pipe.feed(view.bytes())
        }
        Ok(view.len())
    }

    /// Take up to `size` bytes; all if it is negative.
    #[pyo3(signature = (size=-1))]
    fn read<'py>(&self, py: Python<'py>, size: isize) -> Bound<'py, PyBytes> {
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        PyBytes::new(py, &self.pipe.take(self.is_outgoing, size))
    }
}
