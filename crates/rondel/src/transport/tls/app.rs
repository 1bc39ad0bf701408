//! The transport that the program sees over TLS.

use std::cell::Cell;

use pyo3::exceptions::{PyNotImplementedError, PyResourceWarning, PyTypeError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PyBytes, PyMemoryView, PyTuple};
use pyo3::{PyTraverseError, PyVisit};

use super::layer::{Layer, TlsLayer};
use super::{flow, phases};
use crate::event_loop::Loop;
use crate::ffi::buffer::View;
use crate::ffi::confined::Confined;
use crate::imports;

/// The transport of a TLS connection; `asyncio.sslproto._SSLProtocolTransport` in behaviour.
#[pyclass(frozen, dict, weakref, module = "rondel._rondel", name = "TLSTransport")]
pub struct TlsTransport {
    state: Confined<State>,
}

struct State {
    protocol: Py<TlsLayer>,
    closed: Cell<bool>,
}

impl TlsTransport {
    /// The program's end of a connection.
    pub fn new(protocol: Py<TlsLayer>) -> Self {
        TlsTransport { state: Confined::new(State { protocol, closed: Cell::new(false) }) }
    }

    fn protocol<'a, 'py>(&'a self, py: Python<'py>) -> &'a Bound<'py, TlsLayer> {
        // The attached thread's lifetime is longer than the borrow.
        self.state.get(py).protocol.bind(py)
    }

    fn layer<'a>(&'a self, py: Python<'a>) -> &'a Layer {
        self.state.get(py).protocol.get().layer(py)
    }

    /// Whether it is closed; from now on it is.
    pub fn mark_closed(&self, py: Python<'_>) -> bool {
        self.state.get(py).closed.replace(true)
    }
}

fn as_bytes<'py>(data: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyBytes>> {
    match data.cast::<PyBytes>() {
        Ok(bytes) => Ok(bytes.clone()),
        // The program may change its buffer once write() has returned.
        Err(_) => Ok(PyBytes::new(data.py(), View::readable(data)?.bytes())),
    }
}

#[pymethods]
impl TlsTransport {
    /// For loop.start_tls(): TLS may run over this transport.
    #[classattr]
    fn _start_tls_compatible() -> bool {
        true
    }

    /// For loop.sendfile(): the file is read and written, since it must be encrypted.
    #[getter]
    fn _sendfile_compatible(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        Ok(imports::sendfile_mode(py)?.getattr(intern!(py, "FALLBACK"))?.unbind())
    }

    /// asyncio's class for the same thing, an asyncio.Transport: isinstance() believes `__class__`.
    /// Some look for "ssl" in its name.
    #[getter]
    fn __class__(slf: &Bound<'_, Self>) -> PyResult<Py<PyAny>> {
        Ok(imports::tls_transport_type(slf.py())?.clone().unbind())
    }

    /// What is known of the connection: "ssl_object", "peercert", "cipher", "compression",
    /// "sslcontext", and what the transport below knows.
    #[pyo3(signature = (name, default=None))]
    fn get_extra_info<'py>(
        slf: &Bound<'py, Self>,
        name: &Bound<'py, PyAny>,
        default: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        let py = slf.py();
        let layer = slf.get().layer(py);
        if let Some(known) = layer.extra.bind(py).get_item(name)? {
            return Ok(Some(known));
        }
        match layer.informant(py) {
            Some(lower) => {
                lower.call_method1(intern!(py, "get_extra_info"), (name, default)).map(Some)
            }
            None => Ok(default),
        }
    }

    /// Set the protocol that gets the data from now on.
    fn set_protocol(slf: &Bound<'_, Self>, protocol: &Bound<'_, PyAny>) -> PyResult<()> {
        slf.get().layer(slf.py()).set_protocol(protocol)
    }

    /// The current protocol.
    fn get_protocol<'py>(slf: &Bound<'py, Self>) -> Option<Bound<'py, PyAny>> {
        slf.get().layer(slf.py()).protocol(slf.py())
    }

    /// Whether the transport is closed or about to be.
    fn is_closing(slf: &Bound<'_, Self>) -> PyResult<bool> {
        let py = slf.py();
        if slf.get().state.get(py).closed.get() {
            return Ok(true);
        }
        match slf.get().layer(py).lower_object(py) {
            Some(lower) => lower.call_method0(intern!(py, "is_closing"))?.is_truthy(),
            None => Ok(false),
        }
    }

    /// Send what is queued and close_notify, wait for the peer's, then close.
    fn close(slf: &Bound<'_, Self>) -> PyResult<()> {
        if slf.get().mark_closed(slf.py()) {
            return Ok(());
        }
        phases::start_shutdown(slf.get().protocol(slf.py()))
    }

    /// Close at once; what is queued is lost.
    fn abort(slf: &Bound<'_, Self>) -> PyResult<()> {
        slf.get().mark_closed(slf.py());
        phases::abort(slf.get().protocol(slf.py()), None)
    }

    /// The same, with the reason for connection_lost().
    fn _force_close(slf: &Bound<'_, Self>, exc: &Bound<'_, PyAny>) -> PyResult<()> {
        slf.get().mark_closed(slf.py());
        let error = if exc.is_none() { None } else { Some(PyErr::from_value(exc.clone())) };
        phases::abort(slf.get().protocol(slf.py()), error)
    }

    /// Whether the protocol gets data.
    fn is_reading(slf: &Bound<'_, Self>) -> bool {
        !slf.get().layer(slf.py()).app_reading_paused.get()
    }

    /// Stop calling data_received() until resume_reading().
    fn pause_reading(slf: &Bound<'_, Self>) {
        slf.get().layer(slf.py()).app_reading_paused.set(true);
    }

    /// Call data_received() again.
    fn resume_reading(slf: &Bound<'_, Self>) -> PyResult<()> {
        let py = slf.py();
        let protocol = slf.get().protocol(py);
        let layer = protocol.get().layer(py);
        if !layer.app_reading_paused.replace(false) {
            return Ok(());
        }
        let resume = protocol.getattr(intern!(py, "_resume"))?;
        phases::call_soon(layer, &resume, &PyTuple::empty(py))
    }

    /// Send data; never blocks, what cannot be sent now is queued.
    fn write(slf: &Bound<'_, Self>, data: &Bound<'_, PyAny>) -> PyResult<()> {
        let py = slf.py();
        if !data.is_instance_of::<PyBytes>()
            && !data.is_instance_of::<PyByteArray>()
            && !data.is_instance_of::<PyMemoryView>()
        {
            let name = data.get_type().name()?;
            let text = format!("data: expecting a bytes-like instance, got {name}");
            return Err(PyTypeError::new_err(text));
        }
        let data = as_bytes(data)?;
        if data.as_bytes().is_empty() {
            return Ok(());
        }
        flow::write_all(slf.get().protocol(py), vec![data])
    }

    /// Send the items of an iterable of bytes-like objects in one go.
    fn writelines(slf: &Bound<'_, Self>, list_of_data: &Bound<'_, PyAny>) -> PyResult<()> {
        // All or nothing: a bad item must not leave the ones before it half sent.
        let items = list_of_data.try_iter()?.map(|item| as_bytes(&item?));
        let items = items.collect::<PyResult<Vec<_>>>()?;
        flow::write_all(slf.get().protocol(slf.py()), items)
    }

    /// Not possible over TLS: raises NotImplementedError.
    fn write_eof(&self) -> PyResult<()> {
        Err(PyNotImplementedError::new_err(()))
    }

    /// Whether write_eof() is supported: no.
    fn can_write_eof(&self) -> bool {
        false
    }

    /// Bytes, plain or encrypted, that the transport below has not taken.
    fn get_write_buffer_size(slf: &Bound<'_, Self>) -> PyResult<usize> {
        flow::write_buffer_size(slf.py(), slf.get().layer(slf.py()))
    }

    /// The (low, high) limits of the write buffer in bytes.
    fn get_write_buffer_limits(slf: &Bound<'_, Self>) -> (usize, usize) {
        let layer = slf.get().layer(slf.py());
        (layer.write_low.get(), layer.write_high.get())
    }

    /// Set the limits in bytes beyond which the protocol is asked to pause, and to resume.
    #[pyo3(signature = (high=None, low=None))]
    fn set_write_buffer_limits(
        slf: &Bound<'_, Self>,
        high: Option<&Bound<'_, PyAny>>,
        low: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let (low, high) = crate::transport::flow::limits(high, low, flow::WRITE_HIGH_WATER)?;
        let protocol = slf.get().protocol(slf.py());
        let layer = protocol.get().layer(slf.py());
        layer.write_high.set(high);
        layer.write_low.set(low);
        flow::control_app_writing(protocol)
    }

    /// Bytes from the transport below that wait until the protocol reads.
    fn get_read_buffer_size(slf: &Bound<'_, Self>) -> PyResult<usize> {
        slf.get().layer(slf.py()).engine.undecrypted(slf.py())
    }

    /// The (low, high) limits of the read buffer in bytes.
    fn get_read_buffer_limits(slf: &Bound<'_, Self>) -> (usize, usize) {
        let layer = slf.get().layer(slf.py());
        (layer.read_low.get(), layer.read_high.get())
    }

    /// Set the limits in bytes beyond which the transport below is paused, and resumed.
    #[pyo3(signature = (high=None, low=None))]
    fn set_read_buffer_limits(
        slf: &Bound<'_, Self>,
        high: Option<&Bound<'_, PyAny>>,
        low: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let (low, high) = crate::transport::flow::limits(high, low, flow::READ_HIGH_WATER)?;
        let protocol = slf.get().protocol(slf.py());
        let layer = protocol.get().layer(slf.py());
        layer.read_high.set(high);
        layer.read_low.set(low);
        flow::control_lower_reading(protocol, layer)
    }

    /// Whether the protocol was asked to pause (private name that asyncio's code uses).
    #[getter]
    fn _protocol_paused(slf: &Bound<'_, Self>) -> bool {
        slf.get().layer(slf.py()).app_writing_paused.get()
    }

    #[getter]
    fn _loop<'py>(slf: &Bound<'py, Self>) -> Bound<'py, Loop> {
        slf.get().layer(slf.py()).event_loop.bind(slf.py()).clone()
    }

    /// What drives TLS (private name that programs use).
    #[getter]
    fn _ssl_protocol<'py>(slf: &Bound<'py, Self>) -> Bound<'py, TlsLayer> {
        slf.get().protocol(slf.py()).clone()
    }

    /// The SSLContext (private name that programs use).
    #[getter]
    fn _sslcontext<'py>(slf: &Bound<'py, Self>) -> Bound<'py, PyAny> {
        TlsLayer::_sslcontext(slf.get().protocol(slf.py()))
    }

    fn __repr__(slf: &Bound<'_, Self>) -> PyResult<String> {
        let py = slf.py();
        let closing = if slf.get().state.get(py).closed.get() { " closing" } else { "" };
        Ok(match slf.get().layer(py).lower_object(py) {
            Some(lower) => format!("<TLSTransport{closing} over {}>", lower.repr()?),
            None => format!("<TLSTransport{closing}>"),
        })
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        match self.state.in_traverse(&visit) {
            Some(state) => visit.call(&state.protocol),
            None => Ok(()),
        }
    }
}

impl Drop for TlsTransport {
    fn drop(&mut self) {
        if self.state.get_mut().closed.get() {
            return;
        }
        Python::attach(|py| {
            // Deallocation may happen with an exception set, which must survive.
            let pending = PyErr::take(py);
            let category = py.get_type::<PyResourceWarning>();
            if let Err(error) = PyErr::warn(py, &category, c"unclosed transport <TLSTransport>", 1)
            {
                error.write_unraisable(py, None);
            }
            if let Some(pending) = pending {
                pending.restore(py);
            }
        });
    }
}
