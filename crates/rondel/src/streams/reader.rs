//! `StreamReader`: its state, and how data comes into it.

use std::cell::{Cell, RefCell};

use pyo3::exceptions::{PyAssertionError, PyNotImplementedError, PyRuntimeError, PyTypeError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PyBytes, PyDict, PyInt, PyTuple, PyType};
use pyo3::{PyTraverseError, PyVisit};

use super::Attribute;
use super::buffer::Buffer;
use super::operation::Kind;
use crate::ffi::buffer::View;
use crate::ffi::confined::Confined;
use crate::ffi::operation::Operation;
use crate::imports;

const CLASS: &str = "StreamReader";

/// The native part of `rondel.StreamReader`.
#[pyclass(frozen, subclass, dict, weakref, module = "rondel._rondel", name = "StreamReader")]
pub struct StreamReader {
    state: Confined<State>,
}

/// A reader's state. Fields are cells, and no borrow outlives a statement that calls Python.
#[derive(Default)]
pub struct State {
    pub buffer: RefCell<Buffer>,
    pub limit: Cell<usize>,
    /// The same as it was given.
    limit_object: Attribute,
    pub event_loop: Attribute,
    pub eof: Cell<bool>,
    pub paused: Cell<bool>,
    pub exception: Attribute,
    pub transport: Attribute,
    /// The future that a reading operation waits for.
    pub waiter: Attribute,
    /// How many bytes that operation takes as soon as any come, if it is a read(n); else 0.
    pub wanted: Cell<usize>,
}

impl StreamReader {
    /// The state.
    #[inline]
    pub fn state<'a>(&'a self, py: Python<'a>) -> &'a State {
        self.state.get(py)
    }
}

impl State {
    /// Lets the waiting operation go on.
    #[inline]
    pub fn wake(&self, py: Python<'_>) -> PyResult<()> {
        let Some(waiter) = self.waiter.take(py) else { return Ok(()) };
        self.wanted.set(0);
        match waiter.call_method1(intern!(py, "set_result"), (py.None(),)) {
            Ok(_) => Ok(()),
            // asyncio asks before; that this is rarely so is worth a call.
            Err(_) if waiter.call_method0(intern!(py, "cancelled"))?.is_truthy()? => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Something was added to the buffer: wakes the waiting operation, and pauses the transport when
    /// it is too much.
    #[inline]
    pub fn fed(&self, py: Python<'_>) -> PyResult<()> {
        self.wake(py)?;
        let too_much = self.limit.get().saturating_mul(2);
        if self.paused.get() || self.buffer.borrow().len(py) <= too_much {
            return Ok(());
        }
        let Some(transport) = self.transport.value(py) else { return Ok(()) };
        match transport.call_method0(intern!(py, "pause_reading")) {
            Ok(_) => self.paused.set(true),
            // It cannot; all that comes is buffered, and nobody need ask again.
            Err(error) if error.is_instance_of::<PyNotImplementedError>(py) => {
                drop(self.transport.take(py));
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Adds a piece to the buffer; [`State::fed`] must follow.
    pub fn append(&self, data: Bound<'_, PyBytes>) -> PyResult<()> {
        self.buffer.borrow_mut().append_piece(data)
    }

    /// Takes data that is not empty.
    pub fn feed(&self, data: Bound<'_, PyBytes>) -> PyResult<()> {
        let py = data.py();
        self.append(data)?;
        self.fed(py)
    }

    fn resume_transport(&self, py: Python<'_>) -> PyResult<()> {
        self.paused.set(false);
        let transport = self.transport.get(py, CLASS, "_transport")?;
        transport.call_method0(intern!(py, "resume_reading")).map(drop)
    }

    /// Resumes the transport when the buffer has become short.
    #[inline]
    pub fn resume_if_short(&self, py: Python<'_>) -> PyResult<()> {
        if self.paused.get() && self.buffer.borrow().len(py) <= self.limit.get() {
            return self.resume_transport(py);
        }
        Ok(())
    }

    /// Makes the future that an operation waits for, so that its task may wait for it. `wanted` is
    /// what a read(n) takes.
    ///
    /// # Errors
    /// `RuntimeError` when another operation waits.
    pub fn wait<'py>(
        &self,
        py: Python<'py>,
        name: &str,
        wanted: usize,
    ) -> PyResult<Bound<'py, PyAny>> {
        if self.waiter.is_some(py) {
            return Err(PyRuntimeError::new_err(format!(
                "{name}() called while another coroutine is already waiting for incoming data"
            )));
        }
        if self.eof.get() {
            return Err(PyAssertionError::new_err("_wait_for_data after EOF"));
        }
        if self.paused.get() {
            // Nothing would come.
            self.resume_transport(py)?;
        }
        let event_loop = self.event_loop.get(py, CLASS, "_loop")?;
        let future = event_loop.call_method0(intern!(py, "create_future"))?;
        future.setattr(intern!(py, "_asyncio_future_blocking"), true)?;
        self.waiter.set(future.clone());
        self.wanted.set(wanted);
        Ok(future)
    }

    /// Reports the reader's exception, if one was set.
    #[inline]
    pub fn check(&self, py: Python<'_>) -> PyResult<()> {
        match self.exception.value(py) {
            Some(exception) => Err(PyErr::from_value(exception)),
            None => Ok(()),
        }
    }
}

/// An argument as it was given, if it was: None is a value, too.
struct Given<'py>(Option<Bound<'py, PyAny>>);

impl<'py> FromPyObject<'_, 'py> for Given<'py> {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        Ok(Given(Some(object.to_owned())))
    }
}

/// An `int` that fits, as it is; None for whatever asyncio's own code had better look at.
fn plain_size(n: &Bound<'_, PyAny>) -> Option<isize> {
    n.cast_exact::<PyInt>().ok().and_then(|n| n.extract::<isize>().ok())
}

/// The coroutine of asyncio's own method.
fn stock<'py>(
    slf: &Bound<'py, StreamReader>,
    method: &str,
    argument: Option<&Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyAny>> {
    let class = imports::stream_reader(slf.py())?;
    match argument {
        Some(argument) => class.call_method1(method, (slf, argument)),
        None => class.call_method1(method, (slf,)),
    }
}

/// Whether a program's subclass has methods of its own among those that asyncio's reading methods call.
#[inline]
fn has_own(slf: &Bound<'_, StreamReader>, names: &[&str]) -> PyResult<bool> {
    let ours = imports::our_stream_reader(slf.py())?;
    let class = slf.get_type();
    if class.is(ours) {
        return Ok(false);
    }
    for name in names.iter().chain(&["_wait_for_data", "_maybe_resume_transport"]) {
        if !class.getattr(name)?.is(&ours.getattr(name)?) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// `readuntil()` of several separators. asyncio knows them from 3.13 on.
fn until_any<'py>(
    slf: &Bound<'py, StreamReader>,
    separators: &Bound<'py, PyTuple>,
) -> PyResult<Bound<'py, PyAny>> {
    let py = slf.py();
    let mut sorted: Vec<Bound<'py, PyAny>> = separators.iter().collect();
    let plain = sorted.iter().all(|separator| separator.cast_exact::<PyBytes>().is_ok());
    if !plain || has_own(slf, &[])? || py.version_info() < (3, 13) {
        return stock(slf, "readuntil", Some(separators));
    }
    sorted.sort_by_key(|separator| separator.len().unwrap_or(0));
    let sorted = PyTuple::new(py, sorted)?;
    Operation::create(Kind::ReadUntil, slf, Some(sorted.into_any()), 0)
}

/// `read(n)`
pub fn read<'py>(
    slf: &Bound<'py, StreamReader>,
    n: Option<&Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyAny>> {
    let size = match n {
        None => -1,
        Some(n) => match plain_size(n) {
            Some(size) => size,
            None => return stock(slf, "read", Some(n)),
        },
    };
    if has_own(slf, if size < 0 { &["read"] } else { &[] })? {
        return stock(slf, "read", n);
    }
    Operation::create(if size < 0 { Kind::ReadAll } else { Kind::Read }, slf, None, size)
}

/// `readline()`
pub fn readline<'py>(slf: &Bound<'py, StreamReader>) -> PyResult<Bound<'py, PyAny>> {
    if has_own(slf, &["readuntil"])? {
        return stock(slf, "readline", None);
    }
    Operation::create(Kind::ReadLine, slf, None, 0)
}

#[pymethods]
impl StreamReader {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> Self {
        StreamReader { state: Confined::new(State::default()) }
    }

    /// What `__init__` does: a new, empty reader with a limit in bytes.
    fn _start(
        slf: &Bound<'_, Self>,
        limit: Bound<'_, PyAny>,
        event_loop: Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let py = slf.py();
        let state = slf.get().state(py);
        slf.get().set_limit(py, limit)?;
        state.event_loop.set(event_loop);
        drop(state.buffer.take());
        state.eof.set(false);
        state.paused.set(false);
        state.wanted.set(0);
        for field in [&state.exception, &state.transport, &state.waiter] {
            field.set(py.None().into_bound(py));
        }
        Ok(())
    }

    /// Gives a subclass that overrides none of them its own raw methods.
    #[classmethod]
    fn _own_methods(cls: &Bound<'_, PyType>) -> PyResult<()> {
        crate::ffi::streams::install_reader(cls)
    }

    // ---- reading; read() and readline() are in `ffi::streams`

    /// Read exactly n bytes; IncompleteReadError when the end comes before.
    #[pyo3(signature = (n))]
    fn readexactly<'py>(
        slf: &Bound<'py, Self>,
        n: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        match plain_size(n) {
            Some(size) if !has_own(slf, &[])? => {
                Operation::create(Kind::ReadExactly, slf, None, size)
            }
            _ => stock(slf, "readexactly", Some(n)),
        }
    }

    /// Read up to and including the separator, or from Python 3.13 on the first of several in a tuple.
    ///
    /// IncompleteReadError when the end comes before, LimitOverrunError when it is beyond the limit.
    #[pyo3(signature = (separator=Given(None)), text_signature = "($self, separator=b'\\n')")]
    fn readuntil<'py>(
        slf: &Bound<'py, Self>,
        separator: Given<'py>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let Some(separator) = &separator.0 else {
            if has_own(slf, &[])? {
                return stock(slf, "readuntil", None);
            }
            return Operation::create(Kind::ReadUntil, slf, None, 0);
        };
        if let Ok(separators) = separator.cast_exact::<PyTuple>() {
            return until_any(slf, separators);
        }
        match separator.cast_exact::<PyBytes>() {
            Ok(_) if !has_own(slf, &[])? => {
                Operation::create(Kind::ReadUntil, slf, Some(separator.clone()), 0)
            }
            _ => stock(slf, "readuntil", Some(separator)),
        }
    }

    fn __aiter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __anext__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        if has_own(slf, &["readline", "readuntil"])? {
            return stock(slf, "__anext__", None);
        }
        Operation::create(Kind::Next, slf, None, 0)
    }

    /// Whether the end was fed and everything before it was read.
    fn at_eof(&self, py: Python<'_>) -> bool {
        let state = self.state(py);
        state.eof.get() && state.buffer.borrow().is_empty(py)
    }

    // ---- what feeds it

    /// Add data; asserts that the end was not fed yet.
    fn feed_data(&self, data: &Bound<'_, PyAny>) -> PyResult<()> {
        let py = data.py();
        let state = self.state(py);
        if state.eof.get() {
            return Err(PyAssertionError::new_err("feed_data after feed_eof"));
        }
        if !data.is_truthy()? {
            return Ok(());
        }
        if let Ok(bytes) = data.cast_exact::<PyBytes>() {
            return state.feed(bytes.clone());
        }
        let plain = data.cast_exact::<PyByteArray>().is_ok();
        if plain {
            let view = View::readable(data)?;
            state.buffer.borrow_mut().append(py, view.bytes())?;
        } else {
            // Whatever a bytearray can be extended by.
            let buffer = self.buffer(py)?;
            buffer.call_method1(intern!(py, "extend"), (data,))?;
        }
        state.fed(py)
    }

    /// Say that nothing follows.
    fn feed_eof(&self, py: Python<'_>) -> PyResult<()> {
        let state = self.state(py);
        state.eof.set(true);
        state.wake(py)
    }

    /// The exception that was set, or None.
    fn exception<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.state(py).exception.get(py, CLASS, "_exception")
    }

    /// Let every reading from now on raise exc.
    fn set_exception(&self, exc: &Bound<'_, PyAny>) -> PyResult<()> {
        let py = exc.py();
        let state = self.state(py);
        state.exception.set(exc.clone());
        let Some(waiter) = state.waiter.take(py) else { return Ok(()) };
        state.wanted.set(0);
        if !waiter.call_method0(intern!(py, "cancelled"))?.is_truthy()? {
            waiter.call_method1(intern!(py, "set_exception"), (exc,))?;
        }
        Ok(())
    }

    /// For loop.start_tls(): what nobody has read yet. The transport is resumed in any case.
    fn _take_over<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        let state = self.state(py);
        state.paused.set(false);
        state.buffer.borrow_mut().take(py, usize::MAX)
    }

    // ---- private attributes, for programs and for asyncio's own code

    #[getter(_buffer)]
    fn buffer<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyByteArray>> {
        self.state(py).buffer.borrow_mut().expose(py)
    }

    #[setter(_buffer)]
    fn set_buffer(&self, buffer: &Bound<'_, PyAny>) -> PyResult<()> {
        let Ok(array) = buffer.cast_exact::<PyByteArray>() else {
            return Err(PyTypeError::new_err("a reader's buffer must be a bytearray"));
        };
        self.state(buffer.py()).buffer.borrow_mut().replace(array.clone());
        Ok(())
    }

    #[getter(_limit)]
    fn limit<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.state(py).limit_object.get(py, CLASS, "_limit")
    }

    #[setter(_limit)]
    fn set_limit(&self, py: Python<'_>, limit: Bound<'_, PyAny>) -> PyResult<()> {
        // An int beyond all memory, or a float (infinity is one way to say "none").
        let size = match limit.extract::<usize>() {
            Ok(size) => size,
            Err(_) => limit.extract::<f64>()? as usize,
        };
        self.state(py).limit.set(size);
        self.state(py).limit_object.set(limit);
        Ok(())
    }

    #[getter(_loop)]
    fn event_loop<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.state(py).event_loop.get(py, CLASS, "_loop")
    }

    #[setter(_loop)]
    fn set_event_loop(&self, event_loop: Bound<'_, PyAny>) {
        self.state(event_loop.py()).event_loop.set(event_loop.clone());
    }

    #[getter(_eof)]
    fn eof(&self, py: Python<'_>) -> bool {
        self.state(py).eof.get()
    }

    #[setter(_eof)]
    fn set_eof(&self, eof: &Bound<'_, PyAny>) -> PyResult<()> {
        self.state(eof.py()).eof.set(eof.is_truthy()?);
        Ok(())
    }

    #[getter(_paused)]
    fn paused(&self, py: Python<'_>) -> bool {
        self.state(py).paused.get()
    }

    #[setter(_paused)]
    fn set_paused(&self, paused: &Bound<'_, PyAny>) -> PyResult<()> {
        self.state(paused.py()).paused.set(paused.is_truthy()?);
        Ok(())
    }

    #[getter(_exception)]
    fn kept_exception<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.exception(py)
    }

    #[setter(_exception)]
    fn set_kept_exception(&self, exception: Bound<'_, PyAny>) {
        self.state(exception.py()).exception.set(exception.clone());
    }

    #[getter(_transport)]
    fn transport<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.state(py).transport.get(py, CLASS, "_transport")
    }

    #[setter(_transport)]
    fn set_its_transport(&self, transport: Bound<'_, PyAny>) {
        self.state(transport.py()).transport.set(transport.clone());
    }

    #[getter(_waiter)]
    fn waiter<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.state(py).waiter.get(py, CLASS, "_waiter")
    }

    #[setter(_waiter)]
    fn set_waiter(&self, waiter: Bound<'_, PyAny>) {
        let state = self.state(waiter.py());
        state.wanted.set(0);
        state.waiter.set(waiter.clone());
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        let Some(state) = self.state.in_traverse(&visit) else { return Ok(()) };
        let fields = [
            &state.limit_object,
            &state.event_loop,
            &state.exception,
            &state.transport,
            &state.waiter,
        ];
        fields.into_iter().try_for_each(|field| field.traverse(&visit))
    }

    fn __clear__(slf: &Bound<'_, Self>) {
        let state = slf.get().state(slf.py());
        for field in [&state.exception, &state.transport, &state.waiter, &state.event_loop] {
            field.clear();
        }
    }
}
