//! Handshake, shutdown, errors and loss: how a connection goes from phase to phase.
//!
//! The order of calls is asyncio's, where a program can tell.

use pyo3::exceptions::{
    PyConnectionAbortedError, PyConnectionResetError, PyException, PyOSError, PyTimeoutError,
};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};
use rondel_reactor::clock;

use super::layer::{Layer, TlsLayer, app_transport, mark_closed};
use super::{Phase, Told, flow};
use crate::event_loop::exceptions;
use crate::ffi::handle::HandleRef;
use crate::imports;

/// What goes wrong in the middle of things.
pub const PROTOCOL_ERROR: &str = "Fatal error on SSL protocol";

/// `call_soon(callback, *args)`: in a copy of the current context.
pub fn call_soon(
    layer: &Layer,
    callback: &Bound<'_, PyAny>,
    args: &Bound<'_, PyTuple>,
) -> PyResult<()> {
    let py = callback.py();
    let event_loop = layer.event_loop.bind(py);
    let state = event_loop.get().state(py);
    state.check_closed()?;
    state.push_ready(HandleRef::from_parts(event_loop, callback, args, None)?);
    Ok(())
}

fn call_later(
    this: &Bound<'_, TlsLayer>,
    seconds: &Py<PyAny>,
    method: &Bound<'_, pyo3::types::PyString>,
) -> PyResult<Py<PyAny>> {
    let py = this.py();
    let event_loop = this.get().layer(py).event_loop.bind(py);
    let callback = this.getattr(method)?;
    Ok(event_loop.call_method1(intern!(py, "call_later"), (seconds, callback))?.unbind())
}

fn cancel(py: Python<'_>, timer: Option<Py<PyAny>>) -> PyResult<()> {
    match timer {
        Some(timer) => timer.call_method0(py, intern!(py, "cancel")).map(drop),
        None => Ok(()),
    }
}

fn log_in_debug(this: &Bound<'_, TlsLayer>, what: &str) -> PyResult<()> {
    let py = this.py();
    if this.get().layer(py).debug(py) {
        imports::logger(py)?.call_method1("debug", (format!("%r{what}"), this))?;
    }
    Ok(())
}

// ---- from below

/// connection_made() of the transport below.
pub fn connection_made(this: &Bound<'_, TlsLayer>, transport: &Bound<'_, PyAny>) -> PyResult<()> {
    let py = this.py();
    let layer = this.get().layer(py);
    layer.set_lower(transport);
    if layer.phase.get() != Phase::New {
        // Closed before it began.
        return layer.force_close_lower(py, None);
    }
    log_in_debug(this, " starts SSL handshake")?;
    layer.handshake_start.set(clock::now_ns());
    layer.phase.set(Phase::Handshake);
    let timer =
        call_later(this, &layer.handshake_timeout, intern!(py, "_check_handshake_timeout"))?;
    drop(layer.handshake_timer.replace(Some(timer)));
    handshake(this)
}

/// data_received() of the transport below.
pub fn data_received(this: &Bound<'_, TlsLayer>, data: &Bound<'_, PyAny>) -> PyResult<()> {
    this.get().layer(this.py()).engine.feed(data)?;
    proceed(this)
}

/// Does what the phase asks for, now that there is more input or that the program reads again.
pub fn proceed(this: &Bound<'_, TlsLayer>) -> PyResult<()> {
    match this.get().layer(this.py()).phase.get() {
        Phase::Handshake => handshake(this),
        Phase::Wrapped => flow::read(this),
        Phase::Flushing => flush(this),
        Phase::Shutdown => shut_down(this),
        Phase::New | Phase::Unwrapped => Ok(()),
    }
}

/// eof_received() of the transport below: whether it is to stay open.
pub fn eof_received(this: &Bound<'_, TlsLayer>) -> PyResult<bool> {
    let py = this.py();
    this.get().layer(py).eof.set(true);
    let result = end_of_input(this);
    if let Err(error) = &result
        && error.is_instance_of::<PyException>(py)
        && let Some(lower) = this.get().layer(py).lower_object(py)
    {
        lower.call_method0(intern!(py, "close"))?;
    }
    result
}

fn end_of_input(this: &Bound<'_, TlsLayer>) -> PyResult<bool> {
    let py = this.py();
    let layer = this.get().layer(py);
    log_in_debug(this, " received EOF")?;
    match layer.phase.get() {
        Phase::Handshake => {
            handshake_complete(this, Err(PyConnectionResetError::new_err(())))?;
        }
        Phase::Wrapped => {
            layer.phase.set(Phase::Flushing);
            if layer.app_reading_paused.get() {
                return Ok(true);
            }
            flush(this)?;
        }
        Phase::Flushing => {
            flow::write(this, true)?;
            layer.phase.set(Phase::Shutdown);
            shut_down(this)?;
        }
        Phase::Shutdown => shut_down(this)?,
        Phase::New | Phase::Unwrapped => {}
    }
    Ok(false)
}

/// connection_lost() of the transport below.
pub fn connection_lost(this: &Bound<'_, TlsLayer>, reason: &Bound<'_, PyAny>) -> PyResult<()> {
    let py = this.py();
    let layer = this.get().layer(py);
    drop(layer.backlog.take());
    layer.backlog_size.set(0);
    layer.offset.set(0);
    layer.engine.drop_outgoing(py)?;
    mark_closed(this);
    layer.conn_lost.set(layer.conn_lost.get().saturating_add(1));
    let last_word = match layer.protocol(py) {
        Some(protocol) if matches!(layer.told.get(), Told::Made | Told::Eof) => {
            layer.told.set(Told::Lost);
            let event_loop = layer.event_loop.bind(py);
            let callback = protocol.getattr(intern!(py, "connection_lost"))?;
            let args = PyTuple::new(py, [reason])?;
            Some(HandleRef::from_parts(event_loop, &callback, &args, None)?)
        }
        _ => None,
    };
    // One of ours calls this from the loop. Another may do so from within a call of the program's.
    let at_once = layer.lower_is_ours(py);
    layer.phase.set(Phase::Unwrapped);
    let reason = if reason.is_none() { None } else { Some(PyErr::from_value(reason.clone())) };
    let woken = wake_waiter(this, reason);
    layer.let_go(py);
    cancel(py, layer.shutdown_timer.take())?;
    cancel(py, layer.handshake_timer.take())?;
    let told = match last_word {
        None => Ok(()),
        Some(handle) if at_once => crate::handle::run(py, &handle),
        Some(handle) => {
            let state = layer.event_loop.get().state(py);
            state.check_closed().map(|()| state.push_ready(handle))
        }
    };
    told.and(woken)
}

// ---- the handshake

fn handshake(this: &Bound<'_, TlsLayer>) -> PyResult<()> {
    let py = this.py();
    match this.get().layer(py).engine.handshake(py) {
        Ok(true) => handshake_complete(this, Ok(())),
        Ok(false) => flow::send_outgoing(this),
        Err(error) if error.matches(py, imports::ssl_error(py)?)? => {
            handshake_complete(this, Err(error))
        }
        Err(error) => Err(error),
    }
}

fn handshake_complete(this: &Bound<'_, TlsLayer>, outcome: PyResult<()>) -> PyResult<()> {
    let py = this.py();
    let layer = this.get().layer(py);
    cancel(py, layer.handshake_timer.take())?;
    layer.phase.set(Phase::Wrapped);
    if let Err(error) = outcome.and_then(|()| learn_about_peer(layer, py)) {
        if !error.is_instance_of::<PyException>(py) {
            return Err(error);
        }
        layer.phase.set(Phase::Unwrapped);
        let message = if error.matches(py, imports::certificate_error(py)?)? {
            "SSL handshake failed on verifying the certificate"
        } else {
            "SSL handshake failed"
        };
        fatal_error(this, error.clone_ref(py), message)?;
        return wake_waiter(this, Some(error));
    }
    if layer.debug(py) {
        let elapsed = clock::to_seconds(clock::now_ns() - layer.handshake_start.get()) * 1e3;
        log_in_debug(this, &format!(": SSL handshake took {elapsed:.1} ms"))?;
    }
    if layer.told.get() == Told::Nothing
        && let Some(transport) = app_transport(this)?
        && let Some(protocol) = layer.protocol(py)
    {
        layer.told.set(Told::Made);
        protocol.call_method1(intern!(py, "connection_made"), (transport,))?;
    }
    wake_waiter(this, None)?;
    flow::read(this)
}

fn learn_about_peer(layer: &Layer, py: Python<'_>) -> PyResult<()> {
    let object = layer.engine.object(py);
    let extra = layer.extra.bind(py);
    let peercert = object.call_method0(intern!(py, "getpeercert"))?;
    extra.set_item(intern!(py, "peercert"), peercert)?;
    extra.set_item(intern!(py, "cipher"), object.call_method0(intern!(py, "cipher"))?)?;
    let compression = object.call_method0(intern!(py, "compression"))?;
    extra.set_item(intern!(py, "compression"), compression)?;
    extra.set_item(intern!(py, "ssl_object"), object)
}

/// The handshake's time is up.
pub fn handshake_timed_out(this: &Bound<'_, TlsLayer>) -> PyResult<()> {
    let py = this.py();
    let layer = this.get().layer(py);
    if layer.phase.get() != Phase::Handshake {
        return Ok(());
    }
    let text = format!(
        "SSL handshake is taking longer than {} seconds: aborting the connection",
        layer.handshake_timeout.bind(py).str()?
    );
    fatal_error(this, PyConnectionAbortedError::new_err(text), "Fatal error on transport")
}

/// Tells whoever waits for the handshake how it ended.
fn wake_waiter(this: &Bound<'_, TlsLayer>, error: Option<PyErr>) -> PyResult<()> {
    let py = this.py();
    let layer = this.get().layer(py);
    if let Some(waiter) = layer.waiter.take() {
        let waiter = waiter.bind(py);
        if waiter.call_method0(intern!(py, "done"))?.is_truthy()? {
            return Ok(());
        }
        return match error {
            Some(error) => {
                let error = crate::errors::exception(py, &error);
                waiter.call_method1(intern!(py, "set_exception"), (error,)).map(drop)
            }
            None => waiter.call_method1(intern!(py, "set_result"), (py.None(),)).map(drop),
        };
    }
    match error {
        Some(error) if layer.accepted && layer.told.get() == Told::Nothing => {
            layer.told.set(Told::Lost); // said once
            report_refused(this, &error)
        }
        _ => Ok(()),
    }
}

/// An accepted connection has failed before the program knew of it; asyncio tells in debug mode.
fn report_refused(this: &Bound<'_, TlsLayer>, error: &PyErr) -> PyResult<()> {
    let py = this.py();
    let layer = this.get().layer(py);
    if !layer.debug(py) {
        return Ok(());
    }
    let context = PyDict::new(py);
    context.set_item("message", "Error on transport creation for incoming connection")?;
    context.set_item("exception", crate::errors::exception(py, error))?;
    context.set_item("protocol", layer.protocol(py))?;
    context.set_item("transport", app_transport(this)?)?;
    mark_closed(this);
    exceptions::call_handler(layer.event_loop.bind(py), &context)
}

// ---- the shutdown

/// The program closes, or the peer has ended.
pub fn start_shutdown(this: &Bound<'_, TlsLayer>) -> PyResult<()> {
    let py = this.py();
    let layer = this.get().layer(py);
    mark_closed(this);
    match layer.phase.get() {
        Phase::Flushing | Phase::Shutdown | Phase::Unwrapped => Ok(()),
        Phase::New | Phase::Handshake => abort(this, None),
        Phase::Wrapped => {
            layer.phase.set(Phase::Flushing);
            start_shutdown_timer(this)?;
            flush(this)
        }
    }
}

fn start_shutdown_timer(this: &Bound<'_, TlsLayer>) -> PyResult<()> {
    let py = this.py();
    let layer = this.get().layer(py);
    let timer = call_later(this, &layer.shutdown_timeout, intern!(py, "_check_shutdown_timeout"))?;
    let before = layer.shutdown_timer.replace(Some(timer));
    cancel(py, before)
}

/// The shutdown's time is up.
pub fn shutdown_timed_out(this: &Bound<'_, TlsLayer>) -> PyResult<()> {
    let py = this.py();
    let layer = this.get().layer(py);
    match layer.phase.get() {
        Phase::Flushing | Phase::Shutdown => {
            let error = PyTimeoutError::new_err("SSL shutdown timed out");
            layer.force_close_lower(py, Some(error))
        }
        _ => Ok(()),
    }
}

/// Delivers what has come, encrypts what is queued, and goes on to say goodbye.
fn flush(this: &Bound<'_, TlsLayer>) -> PyResult<()> {
    let layer = this.get().layer(this.py());
    flow::read(this)?;
    if layer.phase.get() != Phase::Flushing {
        return Ok(()); // the program has aborted meanwhile, or is done
    }
    if layer.backlog_size.get() > 0 {
        flow::write(this, true)?;
    }
    layer.phase.set(Phase::Shutdown);
    shut_down(this)
}

fn shut_down(this: &Bound<'_, TlsLayer>) -> PyResult<()> {
    let py = this.py();
    let layer = this.get().layer(py);
    if !layer.eof.get() {
        match layer.engine.shut_down(py) {
            Ok(true) => {}
            Ok(false) => return flow::send_outgoing(this),
            Err(error) if error.matches(py, imports::ssl_error(py)?)? => {
                cancel(py, layer.shutdown_timer.take())?;
                return fatal_error(this, error, "Fatal error on transport");
            }
            Err(error) => return Err(error),
        }
    }
    flow::send_outgoing(this)?;
    call_eof_received(this)?;
    let Some(lower) = layer.lower_object(py) else { return Ok(()) };
    // The transport below sends what it still holds before it closes, which a peer that does not
    // read can put off forever: the time limit runs until connection_lost().
    if layer.shutdown_timer.borrow().is_none() {
        start_shutdown_timer(this)?;
    }
    call_soon(layer, &lower.getattr(intern!(py, "close"))?, &PyTuple::empty(py))
}

/// Gives the connection up; nothing that is queued is sent.
pub fn abort(this: &Bound<'_, TlsLayer>, error: Option<PyErr>) -> PyResult<()> {
    let py = this.py();
    let layer = this.get().layer(py);
    layer.phase.set(Phase::Unwrapped);
    layer.force_close_lower(py, error)
}

/// Tells the program's protocol, once, that the peer has ended.
pub fn call_eof_received(this: &Bound<'_, TlsLayer>) -> PyResult<()> {
    let py = this.py();
    let layer = this.get().layer(py);
    if layer.told.get() != Told::Made {
        return Ok(());
    }
    layer.told.set(Told::Eof);
    let Some(protocol) = layer.protocol(py) else { return Ok(()) };
    let answer = protocol
        .call_method0(intern!(py, "eof_received"))
        .and_then(|keep_open| keep_open.is_truthy());
    match answer {
        Ok(false) => Ok(()),
        Ok(true) => {
            let text = "returning true from eof_received() has no effect when using ssl";
            imports::logger(py)?.call_method1("warning", (text,)).map(drop)
        }
        Err(error) if exceptions::must_propagate(py, &error) => Err(error),
        Err(error) => fatal_error(this, error, "Error calling eof_received()"),
    }
}

/// Ends the connection after an error. Those of the connection itself are for connection_lost();
/// others are reported as well.
pub fn fatal_error(this: &Bound<'_, TlsLayer>, error: PyErr, message: &str) -> PyResult<()> {
    let py = this.py();
    let layer = this.get().layer(py);
    // Asked now: nothing is left of it when the handler has run Python code.
    let lower = layer.lower_object(py);
    layer.force_close_lower(py, Some(error.clone_ref(py)))?;
    let exception = crate::errors::exception(py, &error);
    if error.is_instance_of::<PyOSError>(py) {
        if layer.debug(py) {
            let info = PyDict::new(py);
            info.set_item("exc_info", exception)?;
            imports::logger(py)?.call_method("debug", ("%r: %s", this, message), Some(&info))?;
        }
        return Ok(());
    }
    if error.matches(py, imports::cancelled_error(py)?)? {
        return Ok(());
    }
    let context = PyDict::new(py);
    context.set_item("message", message)?;
    context.set_item("exception", exception)?;
    context.set_item("transport", lower)?;
    context.set_item("protocol", this)?;
    exceptions::call_handler(layer.event_loop.bind(py), &context)
}
