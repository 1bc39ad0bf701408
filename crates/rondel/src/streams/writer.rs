//! `StreamWriter`: writing, and waiting until there is room for more.

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyTuple, PyType};
use pyo3::{PyTraverseError, PyVisit};

use super::Attribute;
use super::operation::Step;
use super::reader::StreamReader;
use crate::ffi::confined::Confined;
use crate::ffi::lookup;
use crate::imports;
use crate::transport::socket::SocketTransport;
use crate::transport::writing;

const CLASS: &str = "StreamWriter";

/// The native part of `rondel.StreamWriter`.
#[pyclass(frozen, subclass, dict, weakref, module = "rondel._rondel", name = "StreamWriter")]
pub struct StreamWriter {
    state: Confined<State>,
}

#[derive(Default)]
struct State {
    transport: Attribute,
    protocol: Attribute,
    reader: Attribute,
    event_loop: Attribute,
}

/// The transport as our socket transport, unless the program has put something of its own onto it:
/// perhaps in the place of a method.
#[inline]
fn socket<'a, 'py>(transport: &'a Bound<'py, PyAny>) -> Option<&'a Bound<'py, SocketTransport>> {
    let socket = transport.cast_exact::<SocketTransport>().ok()?;
    (!lookup::has_attributes(transport)).then_some(socket)
}

fn is_closing(transport: &Bound<'_, PyAny>) -> PyResult<bool> {
    let py = transport.py();
    match socket(transport) {
        Some(socket) => Ok(socket.get().stream(py).closing.get()),
        None => transport.call_method0(intern!(py, "is_closing"))?.is_truthy(),
    }
}

impl StreamWriter {
    fn its_transport<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.state.get(py).transport.get(py, CLASS, "_transport")
    }
}

/// `drain()`: done at once unless the protocol was asked to pause, the connection is closing or lost.
/// Then asyncio's own does the rest. Who writes much without ever having to wait gives way once in a
/// while, as `sleep(0)` does.
pub fn drain<'py>(writer: &Bound<'py, PyAny>, gave_way: bool) -> PyResult<Step<'py>> {
    let py = writer.py();
    let state = writer.cast::<StreamWriter>()?.get().state.get(py);
    if let Some(reader) = state.reader.value(py) {
        let exception = match reader.cast::<StreamReader>() {
            Ok(reader) => reader.get().state(py).exception.value(py),
            Err(_) => {
                let exception = reader.call_method0(intern!(py, "exception"))?;
                (!exception.is_none()).then_some(exception)
            }
        };
        if let Some(exception) = exception {
            return Err(PyErr::from_value(exception));
        }
    }
    let transport = state.transport.get(py, CLASS, "_transport")?;
    let protocol = state.protocol.get(py, CLASS, "_protocol")?;
    if !is_closing(&transport)? && has_room(&protocol)? {
        let none = py.None().into_bound(py);
        let gives_way = !gave_way
            && (transport.cast_exact::<SocketTransport>())
                .is_ok_and(|socket| writing::gives_way(socket.get().stream(py)));
        return Ok(if gives_way { Step::Wait(none) } else { Step::Done(none) });
    }
    let rest = imports::stream_writer(py)?.call_method1(intern!(py, "drain"), (writer,))?;
    Ok(Step::Delegate(rest, Ok(())))
}

/// Whether the protocol's own `_drain_helper()` would not wait.
fn has_room(protocol: &Bound<'_, PyAny>) -> PyResult<bool> {
    static FUNCTION: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let py = protocol.py();
    let function = FUNCTION.get_or_try_init(py, || {
        PyResult::Ok(imports::stream_protocol(py)?.getattr("_drain_helper")?.unbind())
    })?;
    if !lookup::calls(protocol, intern!(py, "_drain_helper"), function.bind(py)) {
        return Ok(false);
    }
    let clear = |name| PyResult::Ok(!protocol.getattr(name)?.is_truthy()?);
    Ok(clear(intern!(py, "_connection_lost"))? && clear(intern!(py, "_paused"))?)
}

/// `write(data)`
pub fn write(writer: &Bound<'_, StreamWriter>, data: &Bound<'_, PyAny>) -> PyResult<()> {
    let py = data.py();
    let transport = writer.get().its_transport(py)?;
    match socket(&transport) {
        Some(socket) => writing::write(socket, data),
        None => transport.call_method1(intern!(py, "write"), (data,)).map(drop),
    }
}

#[pymethods]
impl StreamWriter {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> Self {
        StreamWriter { state: Confined::new(State::default()) }
    }

    /// What `__init__` does.
    fn _start(
        &self,
        transport: Bound<'_, PyAny>,
        protocol: Bound<'_, PyAny>,
        reader: Bound<'_, PyAny>,
        event_loop: Bound<'_, PyAny>,
    ) {
        let state = self.state.get(transport.py());
        state.transport.set(transport.clone());
        state.protocol.set(protocol);
        state.reader.set(reader);
        state.event_loop.set(event_loop);
    }

    /// Gives a subclass that overrides none of them its own raw methods.
    #[classmethod]
    fn _own_methods(cls: &Bound<'_, PyType>) -> PyResult<()> {
        crate::ffi::streams::install_writer(cls)
    }

    /// Send the items of an iterable of bytes-like objects.
    fn writelines(&self, data: &Bound<'_, PyAny>) -> PyResult<()> {
        let transport = self.its_transport(data.py())?;
        transport.call_method1(intern!(data.py(), "writelines"), (data,)).map(drop)
    }

    /// Close the connection once everything is sent.
    fn close<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.its_transport(py)?.call_method0(intern!(py, "close"))
    }

    /// Whether the connection is closed or about to be.
    fn is_closing<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.its_transport(py)?.call_method0(intern!(py, "is_closing"))
    }

    /// What is known of the connection.
    #[pyo3(signature = (name, default=None))]
    fn get_extra_info<'py>(
        &self,
        py: Python<'py>,
        name: &Bound<'py, PyAny>,
        default: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let transport = self.its_transport(py)?;
        transport.call_method1(intern!(py, "get_extra_info"), (name, default))
    }

    /// The transport below.
    #[getter]
    fn transport<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.its_transport(py)
    }

    // ---- private attributes, for programs and for asyncio's own code

    #[getter(_transport)]
    fn private_transport<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.its_transport(py)
    }

    #[setter(_transport)]
    fn set_transport(&self, transport: Bound<'_, PyAny>) {
        self.state.get(transport.py()).transport.set(transport.clone());
    }

    #[getter(_protocol)]
    fn protocol<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.state.get(py).protocol.get(py, CLASS, "_protocol")
    }

    #[setter(_protocol)]
    fn set_protocol(&self, protocol: Bound<'_, PyAny>) {
        self.state.get(protocol.py()).protocol.set(protocol.clone());
    }

    #[getter(_reader)]
    fn reader<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.state.get(py).reader.get(py, CLASS, "_reader")
    }

    #[setter(_reader)]
    fn set_reader(&self, reader: Bound<'_, PyAny>) {
        self.state.get(reader.py()).reader.set(reader.clone());
    }

    #[getter(_loop)]
    fn event_loop<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.state.get(py).event_loop.get(py, CLASS, "_loop")
    }

    #[setter(_loop)]
    fn set_event_loop(&self, event_loop: Bound<'_, PyAny>) {
        self.state.get(event_loop.py()).event_loop.set(event_loop.clone());
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        let Some(state) = self.state.in_traverse(&visit) else { return Ok(()) };
        let fields = [&state.transport, &state.protocol, &state.reader, &state.event_loop];
        fields.into_iter().try_for_each(|field| field.traverse(&visit))
    }

    fn __clear__(slf: &Bound<'_, Self>) {
        let state = slf.get().state.get(slf.py());
        for field in [&state.transport, &state.protocol, &state.reader, &state.event_loop] {
            field.clear();
        }
    }
}
