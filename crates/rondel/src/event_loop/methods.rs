//! The methods of `Loop` as Python sees them; each leads to the module that does it. The hottest ones
//! are raw methods instead, in [`crate::ffi::scheduling`] and `crate::ffi::tasks`.

use std::os::fd::RawFd;

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple, PyType};
use pyo3::{PyTraverseError, PyVisit};
use rondel_reactor::clock;
use rondel_reactor::counting::Histogram;

use super::rehearsal::Rehearsal;
use super::{
    Loop, State, debug, exceptions, life_cycle, meter, nesting, tasks, traverse, watching,
};
use crate::connect;
use crate::coroutine::Coroutine;
use crate::errors::os_error;
use crate::ffi::confined::Confined;
use crate::pools;
use crate::sendfile;
use crate::sock;
use crate::transport::datagram::DatagramTransport;
use crate::transport::pipe::read::ReadPipeTransport;
use crate::transport::pipe::write::WritePipeTransport;
use crate::transport::socket::SocketTransport;

#[pymethods]
impl Loop {
    #[new]
    #[pyo3(signature = (*, debug=false))]
    fn new(py: Python<'_>, debug: bool) -> PyResult<Self> {
        let state = State::new(debug).map_err(|error| os_error(py, &error))?;
        Ok(Loop { state: Confined::new(state) })
    }

    /// Run until stop() is called.
    fn run_forever(slf: &Bound<'_, Self>) -> PyResult<()> {
        life_cycle::run_forever(slf)
    }

    /// Run until the future or coroutine is done; return its result or raise its exception.
    fn run_until_complete<'py>(
        slf: &Bound<'py, Self>,
        future: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        life_cycle::run_until_complete(slf, future)
    }

    /// Stop after the current turn: callbacks that are ready now still run.
    fn stop(slf: &Bound<'_, Self>) -> PyResult<()> {
        nesting::stop(slf.py(), slf.get().state(slf.py()))
    }

    /// Whether the loop may be run where a loop runs already: again inside one of its own callbacks, or
    /// inside a callback of another loop, which stands still meanwhile. asyncio forbids both.
    #[getter]
    fn nesting(slf: &Bound<'_, Self>) -> bool {
        slf.get().state(slf.py()).nesting.get()
    }

    #[setter(nesting)]
    fn set_nesting(slf: &Bound<'_, Self>, allowed: bool) {
        nesting::allow(slf.get().state(slf.py()), allowed);
    }

    /// Whether the loop runs.
    fn is_running(slf: &Bound<'_, Self>) -> bool {
        slf.get().state(slf.py()).thread_id.get().is_some()
    }

    /// Whether the loop was closed.
    fn is_closed(slf: &Bound<'_, Self>) -> bool {
        slf.get().state(slf.py()).closed.get()
    }

    /// Give back what the loop holds: descriptors, handles, sources.
    fn _close(slf: &Bound<'_, Self>) -> PyResult<()> {
        life_cycle::close(slf)
    }

    fn _check_closed(slf: &Bound<'_, Self>) -> PyResult<()> {
        slf.get().state(slf.py()).check_closed()
    }

    /// Debug mode: refuse callbacks that are coroutines or cannot be called.
    fn _check_callback(
        slf: &Bound<'_, Self>,
        callback: &Bound<'_, PyAny>,
        method: &str,
    ) -> PyResult<()> {
        debug::check_call(slf, callback, method, false)
    }

    /// Wake the loop from any thread.
    fn _write_to_self(slf: &Bound<'_, Self>) {
        slf.get().state(slf.py()).wake();
    }

    /// Set what create_task() calls to make a task; None for the default.
    fn set_task_factory(slf: &Bound<'_, Self>, factory: &Bound<'_, PyAny>) -> PyResult<()> {
        tasks::set_factory(slf, factory)
    }

    /// The task factory, or None.
    fn get_task_factory(slf: &Bound<'_, Self>) -> Option<Py<PyAny>> {
        let py = slf.py();
        slf.get().state(py).task_factory.borrow().as_ref().map(|f| f.clone_ref(py))
    }

    /// Gives a subclass that overrides none of them its own scheduling methods, which are called faster
    /// than inherited ones.
    #[classmethod]
    fn _own_scheduling(cls: &Bound<'_, PyType>) -> PyResult<()> {
        crate::ffi::scheduling::install(cls)
    }

    /// Have runs from now on directed: virtual time, and callbacks in the order that is chosen.
    fn _rehearse(slf: &Bound<'_, Self>, director: Py<Rehearsal>) {
        drop(slf.get().state(slf.py()).director.replace(Some(director)));
    }

    /// Switch debug mode on or off.
    fn set_debug(slf: &Bound<'_, Self>, enabled: &Bound<'_, PyAny>) -> PyResult<()> {
        debug::set(slf, enabled.is_truthy()?)
    }

    /// Switch the tracking of where coroutines are created on or off.
    fn _set_coroutine_origin_tracking(slf: &Bound<'_, Self>, enabled: bool) -> PyResult<()> {
        let py = slf.py();
        debug::track_origins(py, slf.get().state(py), enabled)
    }

    #[getter(_debug)]
    fn debug(slf: &Bound<'_, Self>) -> bool {
        slf.get().state(slf.py()).debug.get()
    }

    #[setter(_debug)]
    fn assign_debug(slf: &Bound<'_, Self>, enabled: bool) {
        slf.get().state(slf.py()).debug.set(enabled);
    }

    /// Debug mode: callbacks that take at least so many seconds are logged.
    #[getter]
    fn slow_callback_duration(slf: &Bound<'_, Self>) -> f64 {
        slf.get().state(slf.py()).slow_callback_duration.get()
    }

    #[setter(slow_callback_duration)]
    fn set_slow_callback_duration(slf: &Bound<'_, Self>, seconds: f64) {
        slf.get().state(slf.py()).slow_callback_duration.set(seconds);
    }

    /// The identifier of the thread that runs the loop, or None.
    #[getter]
    fn _thread_id(slf: &Bound<'_, Self>) -> Option<u64> {
        slf.get().state(slf.py()).thread_id.get()
    }

    /// The handle that runs, in debug mode.
    #[getter]
    fn _current_handle<'py>(slf: &Bound<'py, Self>) -> Option<Bound<'py, PyAny>> {
        let py = slf.py();
        slf.get().state(py).current_handle.borrow().as_ref().map(|handle| handle.bind(py))
    }

    /// Set the exception handler, `handler(loop, context)`; None for the default.
    fn set_exception_handler(slf: &Bound<'_, Self>, handler: &Bound<'_, PyAny>) -> PyResult<()> {
        exceptions::set_handler(slf, handler)
    }

    /// The exception handler, or None.
    fn get_exception_handler(slf: &Bound<'_, Self>) -> Option<Py<PyAny>> {
        let py = slf.py();
        slf.get().state(py).exception_handler.borrow().as_ref().map(|f| f.clone_ref(py))
    }

    /// Call the callback each time the descriptor can be read.
    #[pyo3(signature = (fd, callback, *args))]
    fn add_reader(
        slf: &Bound<'_, Self>,
        fd: &Bound<'_, PyAny>,
        callback: &Bound<'_, PyAny>,
        args: &Bound<'_, PyTuple>,
    ) -> PyResult<()> {
        watching::add(slf, fd, watching::Side::Read, callback, args)
    }

    /// Stop calling for reading; whether there was a callback.
    fn remove_reader(slf: &Bound<'_, Self>, fd: &Bound<'_, PyAny>) -> PyResult<bool> {
        watching::remove(slf, fd, watching::Side::Read)
    }

    /// Call the callback each time the descriptor can be written.
    #[pyo3(signature = (fd, callback, *args))]
    fn add_writer(
        slf: &Bound<'_, Self>,
        fd: &Bound<'_, PyAny>,
        callback: &Bound<'_, PyAny>,
        args: &Bound<'_, PyTuple>,
    ) -> PyResult<()> {
        watching::add(slf, fd, watching::Side::Write, callback, args)
    }

    /// Stop calling for writing; whether there was a callback.
    fn remove_writer(slf: &Bound<'_, Self>, fd: &Bound<'_, PyAny>) -> PyResult<bool> {
        watching::remove(slf, fd, watching::Side::Write)
    }

    /// Receive up to n bytes from the socket.
    fn sock_recv(slf: &Bound<'_, Self>, sock: Py<PyAny>, n: usize) -> PyResult<Coroutine> {
        sock::recv(slf, sock, n)
    }

    /// Receive into a writable buffer; return the number of bytes.
    fn sock_recv_into(
        slf: &Bound<'_, Self>,
        sock: Py<PyAny>,
        buf: Py<PyAny>,
    ) -> PyResult<Coroutine> {
        sock::recv_into(slf, sock, buf)
    }

    /// Receive a datagram of up to bufsize bytes; return it with its sender's address.
    fn sock_recvfrom(
        slf: &Bound<'_, Self>,
        sock: Py<PyAny>,
        bufsize: usize,
    ) -> PyResult<Coroutine> {
        sock::recvfrom(slf, sock, bufsize)
    }

    /// Receive a datagram into a writable buffer; return its size and its sender's address.
    #[pyo3(signature = (sock, buf, nbytes=0))]
    fn sock_recvfrom_into(
        slf: &Bound<'_, Self>,
        sock: Py<PyAny>,
        buf: Py<PyAny>,
        nbytes: usize,
    ) -> PyResult<Coroutine> {
        sock::recvfrom_into(slf, sock, buf, nbytes)
    }

    /// Send all data to the socket.
    fn sock_sendall(
        slf: &Bound<'_, Self>,
        sock: Py<PyAny>,
        data: Py<PyAny>,
    ) -> PyResult<Coroutine> {
        sock::sendall(slf, sock, data)
    }

    /// Send a datagram to the address; return the number of bytes sent.
    fn sock_sendto(
        slf: &Bound<'_, Self>,
        sock: Py<PyAny>,
        data: Py<PyAny>,
        address: Py<PyAny>,
    ) -> PyResult<Coroutine> {
        sock::sendto(slf, sock, data, address)
    }

    /// Accept a connection; return its socket and the peer's address.
    fn sock_accept(slf: &Bound<'_, Self>, sock: Py<PyAny>) -> PyResult<Coroutine> {
        sock::accept(slf, sock)
    }

    /// Connect the socket to an address that is resolved already.
    fn _sock_connect(
        slf: &Bound<'_, Self>,
        sock: Py<PyAny>,
        address: Py<PyAny>,
    ) -> PyResult<Coroutine> {
        sock::connect(slf, sock, address)
    }

    /// create_connection() to an address, without options; None when it takes more than that.
    fn _create_connection<'py>(
        slf: &Bound<'py, Self>,
        protocol_factory: Py<PyAny>,
        host: &Bound<'py, PyAny>,
        port: &Bound<'py, PyAny>,
        family: i32,
    ) -> PyResult<Option<Coroutine>> {
        connect::create_connection(slf, protocol_factory, host, port, family)
    }

    /// Send a file over a socket by the system call.
    #[pyo3(signature = (sock, file, offset, count))]
    fn _sock_sendfile_native(
        slf: &Bound<'_, Self>,
        sock: Py<PyAny>,
        file: Py<PyAny>,
        offset: u64,
        count: Option<u64>,
    ) -> Coroutine {
        sendfile::to_socket(slf, sock, file, offset, count)
    }

    /// Send a file over a transport by the system call.
    #[pyo3(signature = (transport, file, offset, count))]
    fn _sendfile_native(
        slf: &Bound<'_, Self>,
        transport: Bound<'_, SocketTransport>,
        file: Py<PyAny>,
        offset: u64,
        count: Option<u64>,
    ) -> Coroutine {
        sendfile::to_transport(slf, transport, file, offset, count)
    }

    /// Make a transport of a connected stream socket, which then belongs to it.
    #[pyo3(signature = (sock, protocol, waiter=None, *, extra=None, server=None))]
    fn _make_socket_transport<'py>(
        slf: &Bound<'py, Self>,
        sock: &Bound<'py, PyAny>,
        protocol: &Bound<'py, PyAny>,
        waiter: Option<Py<PyAny>>,
        extra: Option<Bound<'py, PyDict>>,
        server: Option<Py<PyAny>>,
    ) -> PyResult<Bound<'py, SocketTransport>> {
        SocketTransport::adopt(slf, sock, protocol, waiter, extra, server)
    }

    /// Make a transport of a datagram socket, which then belongs to it.
    #[pyo3(signature = (sock, protocol, address=None, waiter=None, extra=None))]
    fn _make_datagram_transport<'py>(
        slf: &Bound<'py, Self>,
        sock: &Bound<'py, PyAny>,
        protocol: &Bound<'py, PyAny>,
        address: Option<Bound<'py, PyAny>>,
        waiter: Option<Py<PyAny>>,
        extra: Option<Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, DatagramTransport>> {
        DatagramTransport::open(slf, sock, protocol, address, waiter, extra)
    }

    /// Make a transport that reads from a pipe, which then belongs to it.
    #[pyo3(signature = (pipe, protocol, waiter=None, extra=None))]
    fn _make_read_pipe_transport<'py>(
        slf: &Bound<'py, Self>,
        pipe: &Bound<'py, PyAny>,
        protocol: &Bound<'py, PyAny>,
        waiter: Option<Py<PyAny>>,
        extra: Option<Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, ReadPipeTransport>> {
        ReadPipeTransport::adopt(slf, pipe, protocol, waiter, extra)
    }

    /// Make a transport that writes to a pipe, which then belongs to it.
    #[pyo3(signature = (pipe, protocol, waiter=None, extra=None))]
    fn _make_write_pipe_transport<'py>(
        slf: &Bound<'py, Self>,
        pipe: &Bound<'py, PyAny>,
        protocol: &Bound<'py, PyAny>,
        waiter: Option<Py<PyAny>>,
        extra: Option<Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, WritePipeTransport>> {
        WritePipeTransport::adopt(slf, pipe, protocol, waiter, extra)
    }

    /// Call func(*args) in an executor, and return a future; None is the default executor, threads.
    #[pyo3(signature = (executor, func, *args))]
    fn run_in_executor<'py>(
        slf: &Bound<'py, Self>,
        executor: &Bound<'py, PyAny>,
        func: &Bound<'py, PyAny>,
        args: Bound<'py, PyTuple>,
    ) -> PyResult<Bound<'py, PyAny>> {
        pools::executing::run_in_executor(slf, executor, func, args)
    }

    /// What the loop has counted, and what is there now, by name; times are seconds. A histogram is
    /// its buckets' counts, the sum and the greatest of its values.
    fn _metrics<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyDict>> {
        let py = slf.py();
        meter::metrics(py, slf.get().state(py))
    }

    /// The upper bounds of the buckets of histograms in seconds; the last bucket has none.
    #[staticmethod]
    fn _histogram_bounds() -> Vec<f64> {
        Histogram::bounds().into_iter().map(clock::to_seconds).collect()
    }

    /// The open transport that uses the descriptor, or None.
    fn _transport_of(slf: &Bound<'_, Self>, fd: RawFd) -> Option<Py<PyAny>> {
        let py = slf.py();
        slf.get().state(py).transport_of(py, fd).map(Bound::unbind)
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        match self.state.in_traverse(&visit) {
            Some(state) => traverse(state, &visit),
            None => Ok(()),
        }
    }

    fn __clear__(slf: &Bound<'_, Self>) {
        let state = slf.get().state(slf.py());
        life_cycle::drop_work(state);
        state.task_factory.take();
        state.exception_handler.take();
        state.director.take();
        state.saved_hooks.take();
    }
}
